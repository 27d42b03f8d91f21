//! A file that is nowhere: a header, and behind it tensors that lie anywhere.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Code, Error, Result};
use crate::io::buffer::fill_all;
use crate::io::data::TensorData;
use crate::io::extent::Extent;
use crate::io::source::{MEMORY, ReadAt, copy_at};

/// The bytes of a file whose tensors lie elsewhere.
pub(super) struct Scattered {
    header: Vec<u8>,
    /// In the order of the file, without holes.
    parts: Vec<Part>,
}

/// A tensor of such a file.
struct Part {
    /// In the file.
    range: Range<u64>,
    source: Arc<dyn ReadAt>,
    path: Arc<Path>,
    /// Where in the source it begins.
    start: u64,
}

impl Scattered {
    /// A file that begins with a header and has no tensors yet.
    pub(super) fn new(header: Vec<u8>) -> Self {
        let parts = Vec::new();
        Self { header, parts }
    }

    /// Puts a tensor of so many bytes behind the others.
    pub(super) fn push(&mut self, data: Box<dyn TensorData>, len: u64) {
        let start = self.len();
        let range = start..start + len;
        let last = self.parts.last();
        let part = match data.extent() {
            Some(extent) => Part {
                range,
                source: extent.source.clone(),
                path: match last.filter(|last| *last.path == *extent.path) {
                    Some(last) => last.path.clone(),
                    None => extent.path.into(),
                },
                start: extent.start,
            },
            None => Part {
                range,
                source: Arc::new(Computed { data, len }),
                path: match last.filter(|last| *last.path == *Path::new(MEMORY)) {
                    Some(last) => last.path.clone(),
                    None => Path::new(MEMORY).into(),
                },
                start: 0,
            },
        };
        self.parts.push(part);
    }

    /// Where the tensor lies that has this range of the file.
    pub(super) fn extent(&self, range: &Range<u64>) -> Option<Extent<'_>> {
        let order = |part: &Part| (part.range.start, part.range.end).cmp(&(range.start, range.end));
        let part = self.parts.get(self.parts.binary_search_by(order).ok()?)?;
        Some(Extent {
            source: &part.source,
            path: &part.path,
            start: part.start,
            len: range.end - range.start,
        })
    }
}

impl ReadAt for Scattered {
    fn len(&self) -> u64 {
        let header = self.header.len() as u64;
        self.parts.last().map_or(header, |part| part.range.end)
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        fill_all(buf, |filled, rest| {
            let at = offset.saturating_add(filled as u64);
            let (left, part) = match (self.header.len() as u64).checked_sub(at) {
                Some(left @ 1..) => (left, None),
                _ => {
                    let next = self.parts.partition_point(|part| part.range.end <= at);
                    let end = || Error::new(Code::FileTruncated).at_offset(self.len());
                    let part = self.parts.get(next).ok_or_else(end)?;
                    (part.range.end - at, Some(part))
                }
            };
            let len = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let rest = rest.get_mut(..len).unwrap_or_default();
            match part {
                None => copy_at(&self.header, at, rest),
                Some(part) => part
                    .source
                    .read_at(part.start + (at - part.range.start), rest),
            }
        })
    }

    fn check_unchanged(&self) -> Result<()> {
        let mut last = None;
        for part in &self.parts {
            // Those of one source mostly follow each other.
            let address = Arc::as_ptr(&part.source).addr();
            if last.replace(address) != Some(address) {
                part.source.check_unchanged()?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Scattered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scattered({} tensors)", self.parts.len())
    }
}

/// Data that lie in no source: each read asks them for what it wants, and nothing is kept.
struct Computed {
    data: Box<dyn TensorData>,
    len: u64,
}

impl ReadAt for Computed {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.len => self.data.read_at(offset, buf),
            _ => Err(Error::new(Code::FileTruncated)
                .at_offset(self.len)
                .expected(format_args!("{} bytes at {offset}", buf.len()))),
        }
    }
}

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Computed({} bytes)", self.len)
    }
}
