//! Many files through few descriptors.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::source::{FileSource, Identity, ReadAt};
use crate::{Error, Result};

/// Descriptors that one checkpoint keeps open: enough for any usual one, and little enough for a
/// process that may open 64 files.
const OPEN_FILES: usize = 24;

/// The files of a checkpoint that are open right now, the one used last at the back.
#[derive(Debug, Default)]
pub(crate) struct FilePool {
    open: Mutex<VecDeque<Arc<FileSource>>>,
}

impl FilePool {
    /// Opens a file as a source. It stays open until more than [`OPEN_FILES`] others were used
    /// since; then it is opened again when needed, and must be the same file still.
    pub(crate) fn source(self: &Arc<Self>, path: &Path) -> Result<PooledFile> {
        let file = self.open(path)?;
        Ok(PooledFile {
            pool: Arc::clone(self),
            path: path.to_path_buf(),
            identity: file.identity(),
        })
    }

    fn file(&self, path: &Path, identity: Identity) -> Result<Arc<FileSource>> {
        {
            let mut open = self.lock();
            if let Some(at) = open.iter().position(|file| file.path() == path)
                && let Some(file) = open.remove(at)
            {
                open.push_back(Arc::clone(&file));
                return Ok(file);
            }
        }
        let file = self.open(path)?;
        let same = identity.check_same(&file.identity());
        same.map_err(|error| error.at_path(path))?;
        Ok(file)
    }

    fn open(&self, path: &Path) -> Result<Arc<FileSource>> {
        let file = match FileSource::open(path) {
            Err(error) if out_of_descriptors(&error) => {
                self.lock().clear();
                FileSource::open(path)
            }
            result => result,
        };
        let file = Arc::new(file?);
        let mut open = self.lock();
        if open.len() >= OPEN_FILES {
            open.pop_front();
        }
        open.push_back(Arc::clone(&file));
        Ok(file)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<FileSource>>> {
        // Whatever a thread that panicked left behind is a valid list of open files.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn out_of_descriptors(error: &Error) -> bool {
    let code = error.io_error().and_then(std::io::Error::raw_os_error);
    let errno = code.map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// A file of a [`FilePool`].
#[derive(Debug)]
pub(crate) struct PooledFile {
    pool: Arc<FilePool>,
    path: PathBuf,
    identity: Identity,
}

impl ReadAt for PooledFile {
    fn len(&self) -> u64 {
        self.identity.len
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        self.pool
            .file(&self.path, self.identity)?
            .read_at(offset, buf)
    }

    fn check_unchanged(&self) -> Result<()> {
        self.pool.file(&self.path, self.identity)?.check_unchanged()
    }
}
