//! Many files through few descriptors.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;

use super::access::Access;
use super::folder::Folder;
use super::source::{FileSource, ReadAt};
use super::version::{Identity, Version};
use crate::error::{Code, Error, Result};

/// Descriptors that one checkpoint keeps open: enough for any usual one, and little enough for a
/// process that may open 64 files.
const OPEN_FILES: usize = 24;

/// The files of a checkpoint that are open right now, the one used last at the back.
#[derive(Debug, Default)]
pub(crate) struct FilePool {
    open: Mutex<VecDeque<(Ticket, Arc<FileSource>)>>,
    tickets: AtomicUsize,
    /// What reading them costs, once somebody asked.
    access: OnceLock<Access>,
}

/// Tells the files of a pool apart.
type Ticket = usize;

impl FilePool {
    /// Opens a file of a folder. A local one stays open until more than [`OPEN_FILES`] others were used
    /// since; then it is opened again when needed, and must be the same file still.
    pub(crate) fn open(
        self: &Arc<Self>,
        folder: &dyn Folder,
        name: &str,
    ) -> Result<Arc<dyn ReadAt>> {
        let source = self.with_descriptors(|| folder.open(name));
        let source = source.map_err(|error| error.at_path(folder.place(name)))?;
        Ok(match FileSource::of(source) {
            Ok(file) => Arc::new(self.take_in(file)),
            Err(source) => source,
        })
    }

    fn take_in(self: &Arc<Self>, file: Arc<FileSource>) -> PooledFile {
        let source = PooledFile {
            pool: Arc::clone(self),
            ticket: self.tickets.fetch_add(1, Ordering::Relaxed),
            path: file.path().to_path_buf(),
            identity: file.identity(),
        };
        self.keep(source.ticket, file);
        source
    }

    fn file(&self, of: &PooledFile) -> Result<Arc<FileSource>> {
        if let Some(file) = self.kept(of.ticket) {
            return Ok(file);
        }
        let file = match self.with_descriptors(|| FileSource::open(&of.path)) {
            Err(error) if error.code() == Code::NotFound => {
                Err(error.recode(Code::FileChanged).found("no file any more"))
            }
            result => result,
        }?;
        let file = Arc::new(file);
        // Before it is kept: what is in the pool is read without being looked at again.
        let same = of.identity.check_same(&file.identity());
        same.map_err(|error| error.at_path(&of.path))?;
        self.keep(of.ticket, Arc::clone(&file));
        Ok(file)
    }

    fn kept(&self, ticket: Ticket) -> Option<Arc<FileSource>> {
        let mut open = self.lock();
        let at = open.iter().rposition(|(other, _)| *other == ticket)?;
        let file = Arc::clone(&open.get(at)?.1);
        // Mostly it is at the back already.
        if at + 1 < open.len()
            && let Some(entry) = open.remove(at)
        {
            open.push_back(entry);
        }
        Some(file)
    }

    fn keep(&self, ticket: Ticket, file: Arc<FileSource>) {
        let mut open = self.lock();
        let given_up = match open.len() >= OPEN_FILES {
            true => open.pop_front(),
            false => None,
        };
        open.push_back((ticket, file));
        // Closing it is a call, for which nobody should have to wait.
        drop(open);
        drop(given_up);
    }

    /// Closes the pool's files and tries again, where there is no descriptor left.
    fn with_descriptors<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(error) if out_of_descriptors(&error) => {
                self.lock().clear();
                open()
            }
            result => result,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Ticket, Arc<FileSource>)>> {
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
    ticket: Ticket,
    path: PathBuf,
    identity: Identity,
}

impl ReadAt for PooledFile {
    fn len(&self) -> u64 {
        self.identity.len
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        self.pool.file(self)?.read_at(offset, buf)
    }

    fn as_file(&self) -> Result<Option<FileSource>> {
        self.pool.file(self)?.as_file()
    }

    fn access(&self) -> Access {
        // The files of a checkpoint lie on one disk.
        *self.pool.access.get_or_init(|| {
            let file = self.pool.file(self);
            file.map_or(Access::LOCAL, |file| file.access())
        })
    }

    fn version(&self) -> Option<Version> {
        Some(self.identity.into())
    }

    fn check_unchanged(&self) -> Result<()> {
        self.pool.file(self)?.check_unchanged()
    }
}
