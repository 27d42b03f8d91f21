//! Bytes of one file into another: by the system, which needs no memory of ours and on some file
//! systems does not even copy; where it does not do that, through a buffer.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::buffer::{fill_all, uninit};
use super::data::WriteBytes;
use super::source::{FileSource, ReadAt};
use crate::error::Result;

/// What is read and then written at a time, where the system does not copy.
pub(crate) const BUFFER: u64 = 1 << 20;

/// Lets the system append bytes of `from` to what was written to `to`. Returns how many of them it
/// did, which may be none.
///
/// Only a lack of space is an error. After any other, whoever reads and writes the rest either
/// succeeds, or is told which of the two files is at fault.
#[cfg(target_os = "linux")]
pub(super) fn copied_by_system(
    from: &FileSource,
    range: &Range<u64>,
    to: &File,
) -> io::Result<u64> {
    use rustix::fs::copy_file_range;
    use rustix::io::Errno;
    let mut at = range.start;
    while at < range.end {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        match copy_file_range(from.file(), Some(&mut at), to, None, left) {
            Ok(0) => break,
            // `at` has moved.
            Ok(_) | Err(Errno::INTR) => {}
            Err(full @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => return Err(full.into()),
            Err(_) => break,
        }
    }
    Ok(at - range.start)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn copied_by_system(_: &FileSource, _: &Range<u64>, _: &File) -> io::Result<u64> {
    Ok(0)
}

/// Reads bytes of `from`, a piece at a time.
///
/// # Errors
/// What `write` answered; `file-truncated` and `io` with the path of `from`.
pub(crate) fn read_through(
    from: &dyn ReadAt,
    range: Range<u64>,
    piece: u64,
    write: &mut WriteBytes<'_>,
) -> Result<()> {
    let mut memory = uninit(piece.min(range.end.saturating_sub(range.start)))?;
    let mut at = range.start;
    while at < range.end {
        let len = piece.min(range.end - at);
        let piece = memory.get_mut(..len as usize).unwrap_or_default();
        let piece = fill_all(piece, |filled, rest| from.read_at(at + filled as u64, rest))?;
        write(piece)?;
        at += len;
    }
    Ok(())
}
