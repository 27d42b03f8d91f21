//! The files beside a checkpoint that it is of little use without: they are copied along to another
//! folder, just before the checkpoint itself is there to be seen.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::is_same;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::quantized::QUANTIZATION_KEYS;
use crate::error::{Code, Error, Result};
use crate::io::durability::Durability;
use crate::io::publish::Stage;
use crate::io::rights::Rights;
use crate::io::sink::{Origin, Sink};
use crate::io::source::{FileSource, MemorySource, ReadAt, describe, read_vec};

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

/// How `config.json` goes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Config {
    #[default]
    AsItIs,
    /// Without the entry that would have readers look for scales.
    WithoutQuantization,
}

/// Files that go along.
#[derive(Debug, Default)]
pub(super) struct GoingAlong {
    from: PathBuf,
    config: Config,
    /// Names of those that are to be copied.
    files: Vec<String>,
    /// Those that were there before, the same.
    there: Vec<String>,
    others: Vec<String>,
}

impl GoingAlong {
    /// Finds what lies beside the checkpoint, unless it is to stay in its folder. Changes nothing.
    ///
    /// # Errors
    /// `side-file-differs`; `side-file-kind` for what is no file, or a link that leads elsewhere; `io`.
    pub(super) fn find(checkpoint: &Checkpoint, to: &Path, config: Config) -> Result<Self> {
        let mut found = Self {
            config,
            ..Self::default()
        };
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
            let metadata = fs::metadata(from.join(&name)).ok();
            let is_of_weights = WEIGHTS.iter().any(|end| name.ends_with(end));
            let goes =
                metadata.is_some_and(|metadata| !metadata.is_dir() && metadata.len() <= LARGEST);
            if is_of_weights || !goes {
                found.others.push(name);
                continue;
            }
            check_kind(listed, &name)?;
            match found.is_there(to, &name)? {
                true => found.there.push(name),
                false => found.files.push(name),
            }
        }
        found.files.sort_unstable();
        found.others.sort_unstable();
        Ok(found)
    }

    /// Copies them, for nobody to see who could not see them before.
    ///
    /// # Errors
    /// `io`, with the file; `file-changed`.
    pub(super) fn stage(&self, folder: &Path, durability: Durability) -> Result<Vec<Stage>> {
        let stages = self.files.iter().map(|name| {
            let path = self.from.join(name);
            let rights = Rights::at(&path)?.of_a_copy();
            let source = FileSource::open(&path)?;
            let (stage, descriptor) = Stage::create(folder, name, &rights)?;
            let copy = || {
                let edited = self.edited(name, &source)?;
                let len = edited
                    .as_ref()
                    .map_or(source.len(), |bytes| bytes.len() as u64);
                let mut sink = Sink::new(&descriptor, len, durability, Origin::Files)?;
                match edited {
                    Some(bytes) => sink.write(&bytes)?,
                    None => sink.copy(&source, 0..source.len())?,
                }
                source.check_unchanged()?;
                sink.finish()
            };
            copy().map_err(|error| error.at_path(stage.target()))?;
            Ok(stage)
        });
        stages.collect()
    }

    /// What goes along in place of a file, where it is not the file itself.
    fn edited(&self, name: &str, file: &FileSource) -> Result<Option<Vec<u8>>> {
        if self.config == Config::AsItIs || name != "config.json" {
            return Ok(None);
        }
        Ok(without_quantization(&read_vec(file, 0, file.len())?))
    }

    /// Whether what goes along is there already.
    fn is_there(&self, to: &Path, name: &str) -> Result<bool> {
        let path = to.join(name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(false),
            Err(error) => return Err(Error::io(Code::Io, error).at_path(path)),
            Ok(_) => {}
        }
        let differs = || Error::new(Code::SideFileDiffers).at_path(&path);
        let there = FileSource::open(&path).map_err(|_| differs())?;
        let file = FileSource::open(self.from.join(name))?;
        let is_same = match self.edited(name, &file)? {
            Some(bytes) => is_equal(&MemorySource::new(bytes), &there)?,
            None => is_equal(&file, &there)?,
        };
        match is_same {
            true => Ok(true),
            false => Err(differs()),
        }
    }

    /// Names of those that went along, and of those that did not.
    pub(super) fn names(mut self) -> (Vec<String>, Vec<String>) {
        self.files.append(&mut self.there);
        self.files.sort_unstable();
        (self.files, self.others)
    }
}

/// That a file is a file, and one of this folder: what a link from elsewhere leads to was never beside the
/// checkpoint. The Hugging Face cache keeps a repository's files in a folder of their own.
fn check_kind(folder: &Path, name: &str) -> Result<()> {
    let path = folder.join(name);
    let failed = |error| Error::io(Code::Io, error).at_path(&path);
    let refused = |found: &str| Err(Error::new(Code::SideFileKind).at_path(&path).found(found));
    let found = fs::metadata(&path).map_err(failed)?;
    if !found.is_file() {
        return refused(describe(&found));
    }
    if !fs::symlink_metadata(&path).map_err(failed)?.is_symlink() {
        return Ok(());
    }
    let real = fs::canonicalize(&path).map_err(failed)?;
    let home = fs::canonicalize(folder).map_err(failed)?;
    let snapshots = home.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots
        .and_then(Path::parent)
        .map(|repository| repository.join("blobs"));
    match real.starts_with(&home) || blobs.is_some_and(|blobs| real.starts_with(blobs)) {
        true => Ok(()),
        false => refused("a link that leads out of the folder"),
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

fn is_equal(one: &dyn ReadAt, other: &dyn ReadAt) -> Result<bool> {
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

/// A configuration without its entry of the quantisation; `None` where it has none, or is no JSON.
fn without_quantization(json: &[u8]) -> Option<Vec<u8>> {
    let mut config: Map<String, Value> = serde_json::from_slice(json).ok()?;
    let mut was_there = false;
    for key in QUANTIZATION_KEYS {
        was_there |= config.shift_remove(key).is_some();
        // Of a model with several parts, the language model's.
        if let Some(Value::Object(text)) = config.get_mut("text_config") {
            was_there |= text.shift_remove(key).is_some();
        }
    }
    let mut text = serde_json::to_vec_pretty(&config).ok()?;
    text.push(b'\n');
    was_there.then_some(text)
}
