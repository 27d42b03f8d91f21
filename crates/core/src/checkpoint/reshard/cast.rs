//! A stored tensor as another dtype, converted block by block while it is written.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::checkpoint::save::stored::Stored;
use crate::io::buffer::fill_all;
use crate::{Cast, Code, Dtype, Error, Result, TensorData};

/// Bytes that are converted at a time: with what they become, they stay in a core's cache. A multiple
/// of every element's size.
const BLOCK: u64 = 256 << 10;

/// A stored tensor that is converted.
pub(super) struct CastStored<'c> {
    stored: Stored<'c>,
    cast: Cast,
    /// Where finite numbers that become infinite are counted.
    overflows: &'c AtomicU64,
}

impl<'c> CastStored<'c> {
    pub(super) fn new(stored: Stored<'c>, cast: Cast, overflows: &'c AtomicU64) -> Self {
        Self {
            stored,
            cast,
            overflows,
        }
    }

    fn convert(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (source, range) = (self.stored.file().source(), self.stored.range());
        let len = BLOCK.min(range.end - range.start);
        let mut memory = vec![MaybeUninit::uninit(); len as usize];
        let mut results = vec![0; self.cast.output_len(len) as usize];
        let mut at = range.start;
        while at < range.end {
            let len = BLOCK.min(range.end - at);
            let block = memory.get_mut(..len as usize).unwrap_or_default();
            let block: &[u8] = fill_all(block, |filled, rest| {
                source.read_at(at + filled as u64, rest)
            })?;
            let results = results.get_mut(..self.cast.output_len(len) as usize);
            let results = results.unwrap_or_default();
            self.cast.run(block, results).map_err(|error| {
                let size = self.cast.from().size().unwrap_or(1);
                let offset = at + error.element as u64 * size;
                let element = (offset - range.start) / size;
                Error::new(Code::CastValue)
                    .at_offset(offset)
                    .expected(error.expected)
                    .found(format_args!("{} in element {element}", error.value))
            })?;
            self.count_overflows(block, results);
            write(results)?;
            at += len;
        }
        source.check_unchanged()
    }

    fn count_overflows(&self, block: &[u8], results: &[u8]) {
        let after = infinities(self.cast.to(), results);
        if after > 0 {
            let before = infinities(self.cast.from(), block);
            let overflows = after.saturating_sub(before);
            self.overflows.fetch_add(overflows, Ordering::Relaxed);
        }
    }
}

impl TensorData for CastStored<'_> {
    fn byte_len(&self) -> Option<u64> {
        let range = self.stored.range();
        Some(self.cast.output_len(range.end - range.start))
    }

    fn write_to(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.convert(write)
            .map_err(|error| error.at_path(self.stored.file().place()))
    }
}

/// How many of the elements are infinite.
fn infinities(dtype: Dtype, bytes: &[u8]) -> u64 {
    fn count<const N: usize>(bytes: &[u8], is_infinite: impl Fn([u8; N]) -> bool) -> u64 {
        let elements = bytes.as_chunks().0.iter();
        elements
            .map(|&element| u64::from(is_infinite(element)))
            .sum()
    }
    match dtype {
        Dtype::F16 => count(bytes, |x| u16::from_le_bytes(x) & 0x7FFF == 0x7C00),
        Dtype::Bf16 => count(bytes, |x| u16::from_le_bytes(x) & 0x7FFF == 0x7F80),
        Dtype::F32 => count(bytes, |x| f32::from_le_bytes(x).is_infinite()),
        Dtype::F64 => count(bytes, |x| f64::from_le_bytes(x).is_infinite()),
        Dtype::F8E5M2 => count(bytes, |[x]| x & 0x7F == 0x7C),
        _ => 0,
    }
}
