//! The files beside a checkpoint that it is of little use without: they are copied along to another
//! folder, just before the checkpoint itself is there to be seen.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::is_same;
use crate::checkpoint::Checkpoint;
use crate::io::publish::{Mode, Publish, Stage};
use crate::io::sink::{Origin, Sink};
use crate::io::source::{FileSource, ReadAt, read_vec};
use crate::{Code, Durability, Error, Result};

/// Larger files are data. The largest tokenizers have some 30 MB.
const LARGEST: u64 = 128 << 20;

/// Ends of the names of weights, and of what else belongs to one format of them.
const WEIGHTS: [&str; 18] = [
    ".safetensors",
    ".index.json",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".onnx_data",
    ".npz",
    ".npy",
    ".ot",
    ".pkl",
    ".tflite",
    ".mlmodel",
    ".distcp",
];

/// Files that go along. Those that were put into the folder are removed when this is dropped, unless
/// they are to stay.
#[derive(Debug, Default)]
pub(super) struct GoingAlong {
    from: PathBuf,
    /// Names of those that are still to be copied.
    files: Vec<String>,
    /// Those that were there before, the same.
    there: Vec<String>,
    others: Vec<String>,
    put: Vec<PathBuf>,
}

impl GoingAlong {
    /// Finds what lies beside the checkpoint, unless it is to stay in its folder. Changes nothing.
    ///
    /// # Errors
    /// `side-file-differs`; `io`.
    pub(super) fn find(checkpoint: &Checkpoint, to: &Path) -> Result<Self> {
        let mut found = Self::default();
        let Some(from) = checkpoint.folder().filter(|from| !is_same(from, to)) else {
            return Ok(found);
        };
        from.clone_into(&mut found.from);
        let failed = |error| Error::io(Code::Io, error).at_path(from);
        // Without a folder, the path of a file is just its name.
        let listed = match from.as_os_str().is_empty() {
            true => Path::new("."),
            false => from,
        };
        for entry in fs::read_dir(listed).map_err(failed)? {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') || is_part(checkpoint, &name) {
                continue;
            }
            // What a link leads to counts: the cache is made of links.
            let metadata = fs::metadata(from.join(&name));
            let goes =
                metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LARGEST);
            match goes && !WEIGHTS.iter().any(|end| name.ends_with(end)) {
                false => found.others.push(name),
                true if is_there(from, to, &name)? => found.there.push(name),
                true => found.files.push(name),
            }
        }
        found.files.sort_unstable();
        found.others.sort_unstable();
        Ok(found)
    }

    /// Copies them.
    ///
    /// # Errors
    /// `io`, with the file; `file-changed`.
    pub(super) fn put(&mut self, folder: &Path, durability: Durability) -> Result<()> {
        for name in &self.files {
            let source = FileSource::open(self.from.join(name))?;
            let (stage, descriptor) = Stage::create_beside(folder, name, Mode::New)?;
            let copy = || {
                let mut sink = Sink::new(&descriptor, source.len(), durability, Origin::Files)?;
                sink.copy(&source, 0..source.len())?;
                source.check_unchanged()?;
                sink.finish()
            };
            copy().map_err(|error| error.at_path(stage.target()))?;
            let target = stage.target().to_path_buf();
            stage.publish(Publish::NoReplace)?;
            self.put.push(target);
        }
        Ok(())
    }

    /// Leaves them where they are now. Names of those that went along, and of those that did not.
    pub(super) fn stay(mut self) -> (Vec<String>, Vec<String>) {
        self.put.clear();
        let mut along = std::mem::take(&mut self.files);
        along.append(&mut self.there);
        along.sort_unstable();
        (along, std::mem::take(&mut self.others))
    }
}

impl Drop for GoingAlong {
    fn drop(&mut self) {
        for path in &self.put {
            let _nothing_else_can_be_done = fs::remove_file(path);
        }
    }
}

/// Whether a file is the checkpoint's own.
fn is_part(checkpoint: &Checkpoint, name: &str) -> bool {
    let index = checkpoint
        .index()
        .and_then(|index| index.path().file_name());
    index.is_some_and(|index| index == name)
        || checkpoint.files().iter().any(|file| file.name() == name)
}

/// Whether the very same file is there already.
fn is_there(from: &Path, to: &Path, name: &str) -> Result<bool> {
    let path = to.join(name);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(false),
        Err(error) => return Err(Error::io(Code::Io, error).at_path(path)),
        Ok(_) => {}
    }
    let differs = || Error::new(Code::SideFileDiffers).at_path(&path);
    let there = FileSource::open(&path).map_err(|_| differs())?;
    match is_equal(&FileSource::open(from.join(name))?, &there)? {
        true => Ok(true),
        false => Err(differs()),
    }
}

fn is_equal(one: &FileSource, other: &FileSource) -> Result<bool> {
    const PIECE: u64 = 1 << 20;
    let len = one.len();
    let mut is_equal = len == other.len();
    let mut at = 0;
    while is_equal && at < len {
        let piece = PIECE.min(len - at);
        is_equal = read_vec(one, at, piece)? == read_vec(other, at, piece)?;
        at += piece;
    }
    Ok(is_equal)
}
