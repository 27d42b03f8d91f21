//! Bytes of a source, front to back.

use std::mem::MaybeUninit;
use std::ops::Range;

use safeshard_core::{Code, Error, ReadAt, Result};

/// Bytes that are read at a time.
const PIECE: u64 = 64 << 10;

/// Bytes of a range of a source, front to back, through a buffer.
pub(crate) struct Input<'s> {
    source: &'s dyn ReadAt,
    /// Where in the source the bytes behind the buffer lie.
    next: u64,
    end: u64,
    buffer: Vec<u8>,
    /// How many bytes of the buffer were taken.
    taken: usize,
}

impl<'s> Input<'s> {
    pub(crate) fn new(source: &'s dyn ReadAt, range: Range<u64>) -> Self {
        Self {
            source,
            next: range.start,
            end: range.end.max(range.start),
            buffer: Vec::new(),
            taken: 0,
        }
    }

    /// Where in the source the next byte lies.
    pub(crate) fn at(&self) -> u64 {
        self.next - self.ready() as u64
    }

    /// How many bytes there are still.
    pub(crate) fn left(&self) -> u64 {
        self.end - self.at()
    }

    /// The next bytes.
    ///
    /// # Errors
    /// `pickle-truncated` where there are fewer, before anything is allocated; those of the source.
    pub(crate) fn take(&mut self, len: u64) -> Result<&[u8]> {
        let start = self.fill(len)?;
        self.taken = start + len as usize;
        Ok(self.buffer.get(start..self.taken).unwrap_or_default())
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// As [`Input::take`].
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.first_chunk().copied().unwrap_or([0; N]))
    }

    /// The next bytes up to a line feed, which is taken too and not given.
    ///
    /// # Errors
    /// `pickle-text` where there is none in the next `most` bytes.
    pub(crate) fn line(&mut self, most: u64) -> Result<&[u8]> {
        let start = self.fill(most.min(self.left()))?;
        let ready = self.buffer.get(start..).unwrap_or_default();
        let within = ready.get(..most as usize).unwrap_or(ready);
        match within.iter().position(|&byte| byte == b'\n') {
            Some(len) => {
                self.taken = start + len + 1;
                Ok(self.buffer.get(start..start + len).unwrap_or_default())
            }
            None => Err(Error::new(Code::PickleText)
                .at_offset(self.at())
                .expected(format_args!("a line of at most {most} bytes"))),
        }
    }

    /// Passes over bytes, which are not read.
    ///
    /// # Errors
    /// `pickle-truncated` where there are fewer.
    pub(crate) fn skip(&mut self, len: u64) -> Result<()> {
        self.check_left(len)?;
        let ready = self.ready() as u64;
        match len.checked_sub(ready) {
            Some(beyond) => {
                self.next += beyond;
                self.buffer.clear();
                self.taken = 0;
            }
            None => self.taken += len as usize,
        }
        Ok(())
    }

    fn ready(&self) -> usize {
        self.buffer.len() - self.taken
    }

    fn check_left(&self, len: u64) -> Result<()> {
        if len <= self.left() {
            return Ok(());
        }
        Err(Error::new(Code::PickleTruncated)
            .at_offset(self.at())
            .expected(format_args!("{len} more bytes"))
            .found(self.left()))
    }

    /// Makes the buffer hold the next bytes, and says where in it they begin.
    fn fill(&mut self, len: u64) -> Result<usize> {
        self.check_left(len)?;
        let missing = len.saturating_sub(self.ready() as u64);
        if missing > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
            let piece = missing.max(PIECE).min(self.end - self.next);
            self.buffer.extend(read(self.source, self.next, piece)?);
            self.next += piece;
        }
        Ok(self.taken)
    }
}

/// Reads bytes of a source.
///
/// # Errors
/// `limit-memory`, and those of the source.
pub(crate) fn read(source: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut room = Vec::new();
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if room.try_reserve_exact(len).is_err() {
        return Err(Error::new(Code::LimitMemory).found(format_args!("{len} bytes asked for")));
    }
    room.resize(len, MaybeUninit::uninit());
    Ok(source.read_at(offset, &mut room)?.to_vec())
}

#[cfg(test)]
mod tests {
    use safeshard_core::MemorySource;

    use super::*;

    #[test]
    fn bytes_come_in_order_whatever_their_lengths() {
        let bytes: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
        let source = MemorySource::new(bytes.clone());
        let mut input = Input::new(&source, 10..290_000);
        let mut at = 10;
        for len in [0, 1, 7, 70_000, 3, 200_000, 1] {
            assert_eq!(input.at(), at as u64);
            assert_eq!(input.take(len as u64).unwrap(), &bytes[at..at + len]);
            at += len;
        }
        input.skip(19_000).unwrap();
        at += 19_000;
        assert_eq!(input.take(1).unwrap(), &bytes[at..=at]);
        let error = input.take(300_000).unwrap_err();
        assert_eq!(error.code(), Code::PickleTruncated);
        assert_eq!(error.offset(), Some(at as u64 + 1));
        assert!(input.skip(u64::MAX).is_err());
    }

    #[test]
    fn a_line_ends_where_it_should() {
        let source = MemorySource::new(b"one\n\nthree without an end".to_vec());
        let mut input = Input::new(&source, 0..source.len());
        assert_eq!(input.line(9).unwrap(), b"one");
        assert_eq!(input.line(9).unwrap(), b"");
        assert_eq!(input.line(9).unwrap_err().code(), Code::PickleText);
        assert_eq!(input.line(99).unwrap_err().code(), Code::PickleText);
        assert_eq!(input.at(), 5);
    }
}
