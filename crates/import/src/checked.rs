//! Entries of an archive whose bytes are checked before they are given away.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use safeshard_core::{Access, Code, Error, FileSource, ReadAt, Result};

/// Bytes that are checked at a time; they stay in a core's cache.
const PIECE: usize = 256 << 10;

/// The source that an entry lies in, at the same offsets, which gives nothing away before all bytes of the
/// entry were found to have their checksum. They are read once for that, when something of them is wanted
/// first.
#[derive(Debug)]
pub(crate) struct Checked {
    source: Arc<dyn ReadAt>,
    path: Arc<Path>,
    range: Range<u64>,
    crc: u32,
    /// Whoever comes while they are checked waits for the result.
    is_right: Mutex<bool>,
}

impl Checked {
    /// The source of an entry that has these bytes.
    pub(crate) fn new(
        source: Arc<dyn ReadAt>,
        path: Arc<Path>,
        range: Range<u64>,
        crc: u32,
    ) -> Self {
        Self {
            source,
            path,
            range,
            crc,
            is_right: Mutex::new(false),
        }
    }

    fn check(&self) -> Result<()> {
        let mut is_right = self.is_right.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_right {
            return Ok(());
        }
        let mut crc = crc32fast::Hasher::new();
        let mut room = vec![MaybeUninit::uninit(); PIECE];
        let mut at = self.range.start;
        while at < self.range.end {
            let left = usize::try_from(self.range.end - at).unwrap_or(usize::MAX);
            let piece = room.get_mut(..left.min(PIECE)).unwrap_or_default();
            let piece = self.source.read_at(at, piece)?;
            crc.update(piece);
            at += piece.len().max(1) as u64;
        }
        let found = crc.finalize();
        if found != self.crc {
            return Err(Error::new(Code::ZipChecksum)
                .at_path(&self.path)
                .at_offset(self.range.start)
                .expected(format_args!("the CRC-32 {:08x}", self.crc))
                .found(format_args!("{found:08x}")));
        }
        *is_right = true;
        Ok(())
    }
}

impl ReadAt for Checked {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        self.check()?;
        self.source.read_at(offset, buf)
    }

    fn as_file(&self) -> Result<Option<FileSource>> {
        self.check()?;
        self.source.as_file()
    }

    fn access(&self) -> Access {
        self.source.access()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.source.check_unchanged()
    }
}

#[cfg(test)]
mod tests {
    use safeshard_core::{MemorySource, contract};

    use super::*;

    fn checked(bytes: &[u8], crc: u32) -> Checked {
        let source = Arc::new(MemorySource::new(bytes.to_vec()));
        Checked::new(source, Path::new("a.pt").into(), 3..900_000, crc)
    }

    #[test]
    fn it_gives_the_bytes_where_they_are_right_and_none_where_not() {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
        let crc = crc32fast::hash(&bytes[3..900_000]);
        contract::check_source(&checked(&bytes, crc), &bytes);
        let wrong = checked(&bytes, crc ^ 1);
        for _ in 0..2 {
            let error = wrong
                .read_at(5, &mut [MaybeUninit::uninit(); 1])
                .unwrap_err();
            assert_eq!(error.code(), Code::ZipChecksum);
            assert_eq!(error.path(), Some(Path::new("a.pt")));
            assert!(wrong.as_file().is_err());
        }
    }
}
