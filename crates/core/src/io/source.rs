//! Where bytes come from: anything that can be read at an offset.

use std::any::Any;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::access::Access;
use super::buffer::{fill_all, filled_vec};
use super::version::{Identity, Version};
use crate::error::{Code, Error, Result};

/// A source of bytes that is read by position, from any thread.
///
/// Implement it for a source of your own (an HTTP range, an object store), and open it with
/// [`Checkpoint::from_sources`](crate::Checkpoint::from_sources) or out of a [`Folder`](crate::Folder) of your
/// own.
pub trait ReadAt: Any + Debug + Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills all of `buf` with the bytes at `offset` and returns it, now initialised.
    ///
    /// # Errors
    /// `file-truncated` where the source ends before the buffer is full; `io` where the operating
    /// system refuses. A short read or an interrupted call is no error: it is continued.
    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]>;

    /// All bytes at once, where they lie in memory already.
    fn as_bytes(&self) -> Option<&[u8]> {
        None
    }

    /// The file that these are the bytes of, at the same offsets, where there is one: what is saved out
    /// of it is copied by the system and never read.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`].
    fn as_file(&self) -> Result<Option<FileSource>> {
        Ok(None)
    }

    /// What reading it costs.
    fn access(&self) -> Access {
        Access::default()
    }

    /// Which version of the bytes behind its name was opened; `None` where there is only one, or nobody can
    /// say. A [`Folder`](crate::Folder) says which one the name leads to now.
    fn version(&self) -> Option<Version> {
        None
    }

    /// Says whether the bytes may have changed since the source was opened.
    ///
    /// # Errors
    /// `file-changed`.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// Reads `len` bytes at `offset` into a new vector.
///
/// # Errors
/// As [`ReadAt::read_at`]; `limit-memory` where there is not enough memory.
pub(crate) fn read_vec(source: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>> {
    let missing = |found| {
        Error::new(Code::FileTruncated)
            .at_offset(found)
            .expected(format_args!("{len} bytes at {offset}"))
    };
    // Not before the length is known to be there: it may come from a hostile header.
    let end = offset.checked_add(len).filter(|&end| end <= source.len());
    if end.is_none() {
        return Err(missing(source.len()));
    }
    filled_vec(len, |filled, rest| {
        source.read_at(offset + filled as u64, rest)
    })
}

/// A regular file, read by `pread` through one descriptor for the life of the source, which clones
/// share.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: PathBuf,
    file: Arc<File>,
    identity: Identity,
}

impl FileSource {
    /// Opens a file; follows symbolic links. A FIFO, device, socket or folder is refused without
    /// blocking.
    ///
    /// # Errors
    /// `not-found`, `not-a-regular-file`, `io`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (file, identity) = open_regular(&path).map_err(|error| error.at_path(&path))?;
        Ok(Self {
            path,
            file: Arc::new(file),
            identity,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, where a source is one by itself and not something around one.
    pub(crate) fn of(source: Arc<dyn ReadAt>) -> Result<Arc<Self>, Arc<dyn ReadAt>> {
        let any: Arc<dyn Any + Send + Sync> = source.clone();
        any.downcast().map_err(|_| source)
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl ReadAt for FileSource {
    fn len(&self) -> u64 {
        self.identity.len
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        pread_exact(&*self.file, offset, buf).map_err(|error| error.at_path(&self.path))
    }

    fn as_file(&self) -> Result<Option<FileSource>> {
        Ok(Some(self.clone()))
    }

    fn access(&self) -> Access {
        match is_on_fuse(&self.file) {
            // The kernel cuts a FUSE read into small requests, and those of two readers interleave.
            true => Access::LOCAL.streams(NonZeroUsize::MIN),
            false => Access::LOCAL,
        }
    }

    fn version(&self) -> Option<Version> {
        Some(self.identity.into())
    }

    fn check_unchanged(&self) -> Result<()> {
        let metadata = self.file.metadata();
        let checked = match metadata {
            Ok(now) => self.identity.check_same(&Identity::of(&now)),
            Err(error) => Err(Error::io(Code::Io, error)),
        };
        checked.map_err(|error| error.at_path(&self.path))
    }
}

#[cfg(target_os = "linux")]
fn is_on_fuse(file: &File) -> bool {
    const FUSE: u64 = 0x6573_5546;
    rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type as u64 == FUSE)
}

#[cfg(not(target_os = "linux"))]
fn is_on_fuse(_file: &File) -> bool {
    false
}

/// What errors call what lies in memory.
pub(crate) const MEMORY: &str = "memory";

/// Bytes in memory, which clones share.
#[derive(Clone)]
pub struct MemorySource(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl MemorySource {
    /// Takes the bytes of a whole file, whoever owns them. Copies nothing.
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(bytes))
    }

    fn bytes(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl ReadAt for MemorySource {
    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        copy_at(self.bytes(), offset, buf)
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        Some(self.bytes())
    }

    fn access(&self) -> Access {
        Access::LOCAL
    }
}

impl Debug for MemorySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemorySource({} bytes)", self.len())
    }
}

/// Opens a regular file for reading. The error has no path yet.
pub(crate) fn open_regular(path: &Path) -> Result<(File, Identity)> {
    // Without NONBLOCK, opening a FIFO waits for a writer that may never come; without NOCTTY, a
    // terminal may become ours.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(open_error)?;
    let metadata = file
        .metadata()
        .map_err(|error| Error::io(Code::Io, error))?;
    if !metadata.is_file() {
        return Err(Error::new(Code::NotRegularFile).found(describe(&metadata)));
    }
    Ok((file, Identity::of(&metadata)))
}

/// The error of opening a path, by cause.
pub(crate) fn open_error(error: io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        // Nothing can have a name that is too long.
        Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Error::new(Code::NotFound),
        Some(Errno::LOOP) => Error::new(Code::NotRegularFile).found("a link that leads to itself"),
        // What opening a socket answers.
        Some(Errno::NXIO) => Error::new(Code::NotRegularFile).found("a socket or device"),
        _ => Error::io(Code::Io, error),
    }
}

pub(crate) fn describe(metadata: &std::fs::Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

/// `pread` until the buffer is full.
pub(crate) fn pread_exact(
    file: impl AsFd,
    offset: u64,
    buf: &mut [MaybeUninit<u8>],
) -> Result<&mut [u8]> {
    fill_all(buf, |filled, rest| {
        let offset = offset + filled as u64;
        let missing = rest.len();
        match rustix::io::pread(&file, rest, offset) {
            Ok(([], _)) => Err(Error::new(Code::FileTruncated)
                .at_offset(offset)
                .expected(format_args!("{missing} more bytes"))
                .found("the end of the file, which shrank while it was read")),
            Ok((read, _)) => Ok(read),
            Err(errno) => Err(Error::io(Code::Io, errno.into()).at_offset(offset)),
        }
    })
}

/// Copies from bytes in memory.
pub(crate) fn copy_at<'b>(
    bytes: &[u8],
    offset: u64,
    buf: &'b mut [MaybeUninit<u8>],
) -> Result<&'b mut [u8]> {
    let source = usize::try_from(offset)
        .ok()
        .and_then(|start| bytes.get(start..start.checked_add(buf.len())?));
    match source {
        Some(source) => Ok(buf.write_copy_of_slice(source)),
        None => Err(Error::new(Code::FileTruncated)
            .at_offset(bytes.len() as u64)
            .expected(format_args!("{} bytes at {offset}", buf.len()))),
    }
}
