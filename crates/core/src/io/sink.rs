//! Bytes into one new file: its space reserved, written, and brought to the medium.
//!
//! A large file that must be on the medium goes around the page cache: through the cache, every byte
//! would be copied, kept, and written later, while all wait for the medium anyway. Everything else is
//! handed to the kernel from where it lies. What comes out of other files the kernel copies within the
//! cache, and is told now and then to begin with the medium.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;

use super::direct::DirectWriter;
use super::durability::Durability;
use super::source::FileSource;
use super::transfer::{BUFFER, copied_by_system, read_through};
use crate::error::{Code, Error, Result};
use crate::limits::room;

/// Below this, the page cache is no slower.
const WORTH_DIRECT: u64 = 16 << 20;

/// What is smaller than this is gathered, so that small tensors do not take a call each.
const GATHER: usize = 64 << 10;

/// Of fewer bytes, no file system shares any, and the system takes longer to copy them.
const BLOCK: u64 = 4096;

/// So many bytes in the cache are worth waking the medium.
const AHEAD: u64 = 32 << 20;

/// Where the bytes of a file come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Memory,
    /// Other files, some of them at least.
    Files,
}

/// Writes a new file, front to back.
#[derive(Debug)]
pub(crate) struct Sink<'f> {
    file: &'f File,
    durability: Durability,
    len: u64,
    written: u64,
    /// Up to where the medium was told to begin.
    begun: u64,
    way: Way<'f>,
    /// Whether the system does not copy here.
    refused: bool,
}

#[derive(Debug)]
enum Way<'f> {
    Cached(BufWriter<&'f File>),
    Direct(DirectWriter),
}

impl<'f> Sink<'f> {
    /// A sink for `len` bytes into an empty file, whose space is reserved where the file system can.
    ///
    /// Memory: 64 KiB; 16 MiB for a file of 16 MiB or more that is to be durable and comes from memory;
    /// 1 MiB more where the system does not copy out of files.
    ///
    /// # Errors
    /// `io` where there is no room for the file.
    pub(crate) fn new(
        file: &'f File,
        len: u64,
        durability: Durability,
        origin: Origin,
    ) -> Result<Self> {
        reserve(file, len).map_err(failed)?;
        let direct = match (durability, origin) {
            (Durability::Durable, Origin::Memory) if len >= WORTH_DIRECT => {
                DirectWriter::start(file)
            }
            _ => None,
        };
        let way = match direct {
            Some(direct) => Way::Direct(direct),
            None => {
                // The writer's own request would end the process where there is no memory.
                drop(room::<u8>(GATHER)?);
                Way::Cached(BufWriter::with_capacity(GATHER, file))
            }
        };
        Ok(Self {
            file,
            durability,
            len,
            written: 0,
            begun: 0,
            way,
            refused: false,
        })
    }

    /// Writes the next bytes, or takes them in to be written.
    ///
    /// # Errors
    /// `io`, perhaps of an earlier write; the file is of no use then.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        match &mut self.way {
            Way::Direct(file) => return file.write(bytes).map_err(failed),
            Way::Cached(file) => file.write_all(bytes).map_err(failed)?,
        }
        self.begin_ahead();
        Ok(())
    }

    /// Writes bytes of another file next: the system copies them, unless they are few.
    ///
    /// # Errors
    /// As [`Sink::write`]; `file-truncated` and `io` with the path of `from` where that is at fault.
    pub(crate) fn copy(&mut self, from: &FileSource, mut range: Range<u64>) -> Result<()> {
        if let Way::Cached(file) = &mut self.way
            && !self.refused
            && range.end - range.start >= BLOCK
        {
            file.flush().map_err(failed)?;
            let copied = copied_by_system(from, &range, self.file).map_err(failed)?;
            range.start += copied;
            self.written = self.written.saturating_add(copied);
            // Whatever it does not do once, it is not asked for again.
            self.refused = !range.is_empty();
            self.begin_ahead();
        }
        read_through(from, range, BUFFER, &mut |bytes| self.write(bytes))
    }

    /// Lets the medium begin with what is in the cache, so that there is little left to wait for.
    fn begin_ahead(&mut self) {
        if self.durability == Durability::Durable && self.written - self.begun >= AHEAD {
            begin_to_write(self.file, self.begun..self.written);
            self.begun = self.written;
        }
    }

    /// Writes what is left; for [`Durability::Durable`], returns when the file is on the medium.
    ///
    /// # Errors
    /// `io`; `buffer-size` where the file did not get the bytes that it was to have.
    pub(crate) fn finish(self) -> Result<()> {
        if self.written != self.len {
            return Err(Error::new(Code::BufferSize)
                .expected(format_args!("{} bytes", self.len))
                .found(self.written));
        }
        match self.way {
            Way::Cached(mut file) => file.flush(),
            Way::Direct(file) => file.finish(),
        }
        .map_err(failed)?;
        match self.durability {
            // Once, whatever it answers: after a failure the kernel forgets what it could not write,
            // and a second call would succeed.
            Durability::Durable => self.file.sync_all().map_err(failed),
            Durability::Cached => Ok(()),
        }
    }
}

fn failed(error: io::Error) -> Error {
    Error::io(Code::Io, error)
}

/// Takes the space of a file, so that a full medium is known before anything is written.
#[cfg(target_os = "linux")]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    if len == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(full @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(full.into()),
        // It can do without.
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_file: &File, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Lets the medium begin with a range; nothing waits for it, and no failure is lost by it.
#[cfg(target_os = "linux")]
fn begin_to_write(file: &File, range: Range<u64>) {
    use rustix::fs::{Advice, fadvise};
    let len = std::num::NonZeroU64::new(range.end - range.start);
    // What is not on the medium yet is brought there before it could be forgotten.
    let _advice = fadvise(file, range.start, len, Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn begin_to_write(_file: &File, _range: Range<u64>) {}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rstest::rstest;
    use tempfile::{tempdir, tempdir_in};

    use super::*;

    const MIB: usize = 1 << 20;

    /// Bytes in which every block differs from every other.
    fn bytes(len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8) as u64).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(len);
        bytes
    }

    /// Writes parts of this length, and returns what the file is then.
    #[track_caller]
    fn round_trip(folder: &Path, bytes: &[u8], part: usize, durability: Durability) {
        let path = folder.join("file");
        let file = File::create(&path).unwrap();
        let len = bytes.len() as u64;
        let mut sink = Sink::new(&file, len, durability, Origin::Memory).unwrap();
        for part in bytes.chunks(part) {
            sink.write(part).unwrap();
        }
        sink.finish().unwrap();
        assert!(fs::read(path).unwrap() == bytes, "{} bytes", bytes.len());
    }

    #[rstest]
    fn files_are_what_was_written(
        #[values(0, 1, 4095, 4096, 4097, GATHER - 1, GATHER, GATHER + 1, MIB)] len: usize,
        #[values(Durability::Durable, Durability::Cached)] durability: Durability,
    ) {
        let folder = tempdir().unwrap();
        for part in [1000, 4096, MIB] {
            round_trip(folder.path(), &bytes(len), part, durability);
        }
    }

    #[rstest]
    fn large_files_are_what_was_written(
        #[values(16 * MIB - 1, 16 * MIB, 16 * MIB + 1, 20 * MIB - 4096, 37 * MIB + 4097)]
        len: usize,
        #[values(100_003, 8 * MIB, usize::MAX)] part: usize,
    ) {
        let folder = tempdir().unwrap();
        round_trip(folder.path(), &bytes(len), part, Durability::Durable);
    }

    #[test]
    fn memory_file_systems_take_large_files_too() {
        let Ok(folder) = tempdir_in("/dev/shm") else {
            eprintln!("WARNING: NOT TESTED: there is no /dev/shm");
            return;
        };
        let bytes = bytes(17 * MIB + 5);
        round_trip(folder.path(), &bytes, usize::MAX, Durability::Durable);
    }

    #[test]
    fn a_file_that_gets_too_little_is_no_success() {
        let folder = tempdir().unwrap();
        let file = File::create(folder.path().join("file")).unwrap();
        for (len, given) in [(10, 9), (10, 11), (20 << 20, 9)] {
            let mut sink = Sink::new(&file, len, Durability::Durable, Origin::Memory).unwrap();
            sink.write(&bytes(given)).unwrap();
            assert_eq!(sink.finish().unwrap_err().code(), Code::BufferSize);
        }
    }

    #[test]
    fn a_full_medium_is_an_error() {
        let Ok(file) = File::options().write(true).open("/dev/full") else {
            eprintln!("WARNING: NOT TESTED: there is no /dev/full");
            return;
        };
        let mut sink = Sink::new(&file, 3, Durability::Cached, Origin::Memory).unwrap();
        sink.write(&[1, 2, 3]).unwrap();
        let error = sink.finish().unwrap_err();
        assert_eq!(error.code(), Code::Io);
        assert_eq!(error.io_error().unwrap().kind(), io::ErrorKind::StorageFull);
    }

    fn source(folder: &Path, bytes: &[u8]) -> FileSource {
        let path = folder.join("source");
        fs::write(&path, bytes).unwrap();
        FileSource::open(path).unwrap()
    }

    #[rstest]
    fn what_comes_out_of_a_file_arrives_between_what_is_written(
        #[values(Durability::Durable, Durability::Cached)] durability: Durability,
        #[values(Origin::Memory, Origin::Files)] origin: Origin,
        #[values(false, true)] refused: bool,
    ) {
        let bytes = bytes(40 * MIB + 3);
        let ranges = [5..36 * MIB, 0..0, 7..8, 40 * MIB..40 * MIB + 3, 0..MIB + 1];
        let mut expected = Vec::new();
        for range in &ranges {
            expected.push(b'-');
            expected.extend_from_slice(&bytes[range.clone()]);
        }
        let folder = tempdir().unwrap();
        // Whether the kernel copies to another file system depends on its version.
        let elsewhere = tempdir_in("/dev/shm").or_else(|_| tempdir()).unwrap();
        let from = source(folder.path(), &bytes);
        for to in [folder.path(), elsewhere.path()] {
            let file = File::create(to.join("file")).unwrap();
            let mut sink = Sink::new(&file, expected.len() as u64, durability, origin).unwrap();
            sink.refused = refused;
            for range in &ranges {
                sink.write(b"-").unwrap();
                let range = range.start as u64..range.end as u64;
                sink.copy(&from, range).unwrap();
            }
            sink.finish().unwrap();
            assert!(fs::read(to.join("file")).unwrap() == expected);
        }
    }

    #[rstest]
    fn a_source_that_was_cut_off_is_at_fault(#[values(false, true)] refused: bool) {
        let folder = tempdir().unwrap();
        let from = source(folder.path(), &bytes(3 * MIB));
        let source = File::options().write(true).open(from.path()).unwrap();
        source.set_len(2_000_000).unwrap();
        let file = File::create(folder.path().join("file")).unwrap();
        let mut sink = Sink::new(&file, 1000, Durability::Cached, Origin::Files).unwrap();
        sink.refused = refused;
        let error = sink.copy(&from, 100..3_000_000).unwrap_err();
        assert_eq!(error.code(), Code::FileTruncated);
        assert_eq!(error.path(), Some(from.path()));
        assert_eq!(error.offset(), Some(2_000_000));
    }

    #[rstest]
    fn a_full_medium_is_at_fault_and_not_the_source(#[values(false, true)] refused: bool) {
        let Ok(file) = File::options().write(true).open("/dev/full") else {
            eprintln!("WARNING: NOT TESTED: there is no /dev/full");
            return;
        };
        let folder = tempdir().unwrap();
        let from = source(folder.path(), &bytes(MIB));
        let mut sink = Sink::new(&file, 1000, Durability::Cached, Origin::Files).unwrap();
        sink.refused = refused;
        let error = sink.copy(&from, 0..MIB as u64).unwrap_err();
        assert_eq!(error.io_error().unwrap().kind(), io::ErrorKind::StorageFull);
        assert_eq!(error.path(), None);
    }
}
