//! The opt-in source that maps a file instead of reading it.

use std::any::Any;
use std::mem::MaybeUninit;
use std::path::PathBuf;

use memmap2::{Mmap, MmapOptions, MmapRaw};

use super::access::Access;
use super::source::{FileSource, ReadAt, copy_at};
use super::version::{Identity, Version};
use crate::error::{Code, Error, Result};

/// A regular file mapped into memory: its bytes can be borrowed without being read first.
///
/// Reading copies out of the mapping; a page that is not in the page cache is fetched on first
/// touch, 4 KiB at a time, which is slow on network file systems. The mapping shares the page
/// cache's memory.
#[derive(Debug)]
pub struct MappedSource {
    path: PathBuf,
    identity: Identity,
    map: Mmap,
}

impl MappedSource {
    /// Maps a file.
    ///
    /// # Safety
    /// No process may write to the file or truncate it while it is mapped: bytes that change under
    /// a `&[u8]` are undefined behaviour, and touching a page behind the new end kills the process
    /// with SIGBUS. The same holds for its private mappings. Replacing the file by
    /// rename, as this library saves, is fine.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub unsafe fn open(path: impl Into<PathBuf>) -> Result<Self> {
        // SAFETY: passed on.
        unsafe { Self::of(&FileSource::open(path)?) }
    }

    /// Maps a file that is open.
    ///
    /// # Safety
    /// As [`MappedSource::open`].
    ///
    /// # Errors
    /// `io`.
    pub(crate) unsafe fn of(file: &FileSource) -> Result<Self> {
        // SAFETY: the caller keeps the file from changing.
        let map = unsafe { Mmap::map(file.file()) };
        let path = file.path().to_path_buf();
        let map = map.map_err(|error| Error::io(Code::Io, error).at_path(&path))?;
        Ok(Self {
            path,
            identity: file.identity(),
            map,
        })
    }

    fn map_private(&self) -> Result<PrivateMap> {
        let map = || {
            let file = FileSource::open(&self.path)?;
            self.identity.check_same(&file.identity())?;
            // SAFETY: whoever opened this source keeps the file from changing as long as anything
            // of it is used.
            let map = unsafe { MmapOptions::new().map_copy(file.file()) };
            map.map_err(|error| Error::io(Code::Io, error))
        };
        let map = map().map_err(|error| error.at_path(&self.path))?;
        Ok(PrivateMap(map.into()))
    }
}

impl dyn ReadAt {
    /// A mapping of its own that may be written to without changing the file, where the source is a mapped
    /// file; the caller of [`Io::mmap`](crate::Io::mmap) vouches for it too.
    ///
    /// # Errors
    /// `file-changed` where its path does not lead to the same file any more; `io`.
    pub fn map_private(&self) -> Result<Option<PrivateMap>> {
        let source: &dyn Any = self;
        let mapped = source.downcast_ref::<MappedSource>();
        mapped.map(MappedSource::map_private).transpose()
    }
}

impl ReadAt for MappedSource {
    fn len(&self) -> u64 {
        self.map.len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        copy_at(&self.map, offset, buf).map_err(|error| error.at_path(&self.path))
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        Some(&self.map)
    }

    fn access(&self) -> Access {
        Access::LOCAL
    }

    fn version(&self) -> Option<Version> {
        Some(self.identity.into())
    }

    fn as_file(&self) -> Result<Option<FileSource>> {
        // The mapping keeps no descriptor. If the path leads elsewhere by now, its memory has to do.
        let file = FileSource::open(&self.path).ok();
        Ok(file.filter(|file| file.identity().is_same(&self.identity)))
    }
}

/// A file mapped into memory that may be written to. What is written stays in this mapping, a copy of
/// each page that is touched, and never reaches the file or another mapping of it.
///
/// It outlives its source and whatever else was opened with it; `map_private` of a `dyn` [`ReadAt`] makes it.
/// Who uses the memory sees to it that nobody reads what another thread writes.
#[derive(Debug)]
pub struct PrivateMap(MmapRaw);

impl PrivateMap {
    /// Its first byte, which lies at the beginning of a page.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// Its length in bytes: the file's.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
