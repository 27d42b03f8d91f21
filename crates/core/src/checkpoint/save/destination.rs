//! Where a checkpoint is saved: the folder, and how its new files are to be called.

use std::fs;
use std::path::{Path, PathBuf};

use super::owned::Owned;
use super::recover::recover;
use super::shards::Names;
use crate::checkpoint::locate::cache_snapshot;
use crate::io::lock::{FolderLock, sweep};
use crate::io::publish::Mode;
use crate::io::source::open_error;
use crate::{Cancel, Code, Error, Result};

/// A folder that a checkpoint is being saved into. Nobody else saves into it meanwhile.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(super) folder: PathBuf,
    /// Folders in which the folder, or one on the way to it, was made.
    pub(super) parents: Vec<PathBuf>,
    pub(super) names: Names,
    pub(super) owned: Owned,
    _lock: FolderLock,
}

impl Destination {
    /// Makes the folder if it is not there, waits for other saves, finishes or undoes what one of them
    /// left when it died, and finds out what the checkpoint of these names owns.
    ///
    /// # Errors
    /// `io`; `cancelled`; `broken-journal`; `cache-repository`; `not-a-regular-file` where a file of
    /// the checkpoint would have to replace something else.
    pub(crate) fn open(folder: &Path, names: Names, cancel: Option<&Cancel>) -> Result<Self> {
        let (folder, parents) = make(folder)?;
        if cache_snapshot(&folder).is_some() {
            return Err(Error::new(Code::CacheRepository).at_path(folder));
        }
        let lock = FolderLock::acquire(&folder, cancel)?;
        recover(&folder, &names.single(), &lock)?;
        sweep(&folder, &lock);
        let owned = Owned::of(&folder, &names)?;
        Ok(Self {
            folder,
            parents,
            names,
            owned,
            _lock: lock,
        })
    }

    /// The folder, without links, so that it stays the same one until the end.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a single file is to be called.
    ///
    /// # Errors
    /// `indexed-single`: no single file can be saved here.
    pub(crate) fn single_name(&self) -> Result<String> {
        self.owned.check_single(&self.folder)?;
        Ok(self.names.single())
    }

    /// What an index is to be called.
    pub(crate) fn index_name(&self) -> String {
        self.names.index()
    }

    /// What so many shards are to be called: as Hugging Face calls them, if these names are free; or
    /// by the first generation of names of which all are.
    ///
    /// # Errors
    /// `io`.
    pub(crate) fn shard_names(&self, count: usize) -> Result<Vec<String>> {
        let mut generation = 1;
        loop {
            let names = (1..=count).map(|number| self.names.shard(number, count, generation));
            let names: Vec<_> = names.collect();
            let mut all_free = true;
            for name in &names {
                all_free = all_free && self.owned.is_free(&self.folder, name)?;
            }
            if all_free {
                return Ok(names);
            }
            generation += 1;
        }
    }

    /// Who may read and write a new file of this name: as with the file that it replaces; if there is
    /// none, as with the tensors of the checkpoint that is replaced.
    ///
    /// # Errors
    /// `io`; `not-a-regular-file`.
    pub(crate) fn mode_for(&self, name: &str) -> Result<Mode> {
        match Mode::at(&self.folder.join(name))? {
            Mode::New => self.owned.mode(&self.folder),
            kept => Ok(kept),
        }
    }
}

/// Makes the folder, and says in which folders something was made for that.
fn make(folder: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let or_here = |path: &Path| match path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => path.to_path_buf(),
    };
    let real = |path: &Path| {
        let real = fs::canonicalize(or_here(path));
        real.map_err(|error| open_error(error).at_path(path))
    };
    let on_the_way = folder.ancestors();
    let missing: Vec<_> = on_the_way
        .take_while(|path| !or_here(path).exists())
        .collect();
    let made = fs::create_dir_all(or_here(folder));
    made.map_err(|error| Error::io(Code::Io, error).at_path(folder))?;
    let parents = missing.iter().filter_map(|made| made.parent());
    Ok((real(folder)?, parents.map(real).collect::<Result<_>>()?))
}
