//! A folder to write into: locked, and rid of what saves left that died. Every writer begins with one.

use std::path::{Path, PathBuf};

use super::recovery::recover;
use super::{Commit, NewFiles, Replaces};
use crate::checkpoint::file_names::index_of;
use crate::error::{Code, Error, Result};
use crate::io::durability::Durability;
use crate::io::engine::ReadOptions;
use crate::io::entry::Entry;
use crate::io::lock::{FolderLock, sweep};
use crate::io::publish::Stage;
use crate::io::rights::Rights;
use crate::io::sink::{Origin, Sink};
use crate::io::source::{FileSource, ReadAt};
use crate::io::workers::{Cancel, Workers};

/// Bytes that are copied before the work is counted again, and looks whether it goes on.
const PIECE: u64 = 8 << 20;

/// Nobody else saves into it as long as this lives.
#[derive(Debug)]
pub(in crate::checkpoint) struct LockedFolder {
    path: PathBuf,
    /// Saves of checkpoints that could neither be finished nor undone, each with its single file.
    failed: Vec<(String, Error)>,
    _lock: FolderLock,
}

impl LockedFolder {
    /// Waits for other saves, finishes or undoes what one of them left when it died, and removes what none
    /// of them needs any more.
    ///
    /// # Errors
    /// `io`; `cancelled`; `not-found` where there is no such folder.
    pub(in crate::checkpoint) fn open(folder: &Path, cancel: Option<&Cancel>) -> Result<Self> {
        let lock = FolderLock::acquire(folder, cancel)?;
        let failed = recover(folder)?;
        sweep(folder, &lock);
        Ok(Self {
            path: folder.to_path_buf(),
            failed,
            _lock: lock,
        })
    }

    pub(in crate::checkpoint) fn path(&self) -> &Path {
        &self.path
    }

    /// That the checkpoint of this single file is not half-way between two; what is wrong with others.
    ///
    /// # Errors
    /// Why its save could be neither finished nor undone.
    pub(in crate::checkpoint) fn recovered(&mut self, single: &str) -> Result<Vec<NotRecovered>> {
        let failed = std::mem::take(&mut self.failed);
        let (own, others): (Vec<_>, Vec<_>) = failed.into_iter().partition(|(of, _)| of == single);
        match own.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(others.into_iter().map(NotRecovered::new).collect()),
        }
    }

    /// Writes a file of this folder anew, if what has its name is still what was looked at. When the call
    /// returns, it is on the disk.
    ///
    /// # Errors
    /// As [`Commit::run`]; why a save into the folder could not be recovered.
    pub(in crate::checkpoint) fn replace_file(
        mut self,
        target: Target<'_>,
        contents: Contents<'_>,
        options: &ReadOptions,
    ) -> Result<()> {
        if let Some((_, error)) = self.failed.pop() {
            return Err(error);
        }
        let durability = Durability::Durable;
        let main = stage_contents(&self.path, target.name, &target.rights, contents, options)?;
        let new = NewFiles {
            main,
            shards: Vec::new(),
            along: Vec::new(),
        };
        self.replace(new, target.replaced, durability).map(drop)
    }

    /// Replaces one file, which nothing else in the folder hangs on, if what has its name is still
    /// `replaced`.
    ///
    /// # Errors
    /// As [`Commit::run`]; why a save that this file belongs to, or another one, could not be recovered.
    pub(in crate::checkpoint) fn replace(
        mut self,
        new: NewFiles,
        replaced: Option<Entry>,
        durability: Durability,
    ) -> Result<Vec<NotRecovered>> {
        let name = new.main.final_name();
        let single = index_of(name).unwrap_or_else(|| name.to_owned());
        let others = self.recovered(&single)?;
        let replaces = Replaces {
            main: replaced,
            superseded: Vec::new(),
        };
        let commit = Commit::new(&self.path, single, new, replaces, [None, None], durability)?;
        commit.run(&Rights::New, &[])?;
        Ok(others)
    }
}

/// What is to be in a file.
pub(in crate::checkpoint) enum Contents<'c> {
    Bytes(&'c [u8]),
    /// A new beginning, and behind it what another file has from here on.
    Rest(&'c [u8], &'c FileSource, u64),
}

/// Stages a file and brings it to the disk.
///
/// # Errors
/// `io`, `cancelled`, `file-changed`.
pub(in crate::checkpoint) fn stage_contents(
    folder: &Path,
    name: &str,
    rights: &Rights,
    contents: Contents<'_>,
    options: &ReadOptions,
) -> Result<Stage> {
    let (start, rest) = match contents {
        Contents::Bytes(bytes) => (bytes, None),
        Contents::Rest(start, source, from) => (start, Some((source, from..source.len()))),
    };
    let more = rest
        .as_ref()
        .map_or(0, |(_, range)| range.end - range.start);
    let len = start.len() as u64 + more;
    let (progress, cancel) = (options.progress.as_ref(), options.cancel.as_ref());
    let workers = Workers::new(1, progress, cancel, more);
    let (stage, file) = Stage::create(folder, name, rights)?;
    let write = || {
        let mut sink = Sink::new(&file, len, Durability::Durable, Origin::Files)?;
        sink.write(start)?;
        if let Some((source, mut left)) = rest {
            while !left.is_empty() {
                workers.go_on()?;
                let end = left.end.min(left.start + PIECE);
                sink.copy(source, left.start..end)?;
                workers.add(end - left.start);
                left.start = end;
            }
            source.check_unchanged()?;
        }
        sink.finish()
    };
    write().map_err(|error| error.at_path(stage.target()))?;
    Ok(stage)
}

/// A save of another checkpoint in the folder that died, and that could be neither finished nor undone:
/// whoever saves that checkpoint next gets this as an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotRecovered {
    /// The single file that the checkpoint has or would have.
    pub checkpoint: String,
    /// Which rule stood in the way.
    pub code: Code,
    /// What is wrong, and where.
    pub why: String,
}

impl NotRecovered {
    fn new((checkpoint, error): (String, Error)) -> Self {
        Self {
            checkpoint,
            code: error.code(),
            why: error.to_string(),
        }
    }
}

/// A file that is to be replaced, or that is to be new.
#[derive(Debug)]
pub(in crate::checkpoint) struct Target<'p> {
    pub(in crate::checkpoint) folder: &'p Path,
    pub(in crate::checkpoint) name: &'p str,
    /// What has the name now.
    pub(in crate::checkpoint) replaced: Option<Entry>,
    /// Who may read and write the new file.
    pub(in crate::checkpoint) rights: Rights,
}

impl<'p> Target<'p> {
    /// What is there now.
    ///
    /// # Errors
    /// `checkpoint-name` for a name that is not UTF-8; `not-a-regular-file` where something is there that
    /// must not be replaced; `io`.
    pub(in crate::checkpoint) fn at(path: &'p Path) -> Result<Self> {
        let folder = folder_of(path);
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| {
            let error = Error::new(Code::CheckpointName).at_path(path);
            error.found("a name that is not UTF-8")
        })?;
        Ok(Self {
            folder,
            name,
            replaced: Entry::at(folder, name)?,
            rights: Rights::at(path)?,
        })
    }
}

/// The folder of a file.
pub(in crate::checkpoint) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
