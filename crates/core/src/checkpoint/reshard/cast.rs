//! A stored tensor as another dtype, converted block by block while it is written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::io::cast::Cast;
use crate::io::data::{TensorData, WriteBytes};
use crate::io::extent::Extent;
use crate::io::gather::Window;
use crate::io::source::read_vec;

/// Bytes that are converted at a time: with what they become, they stay in a core's cache. A multiple
/// of every element's size.
const BLOCK: u64 = 256 << 10;

/// What the conversions of one call have in common.
#[derive(Default)]
pub(super) struct Casting {
    /// How many finite numbers became infinite, by the position of the tensor, where some did.
    overflows: Mutex<BTreeMap<usize, u64>>,
    /// Those that no thread has in its hands.
    buffers: Mutex<Vec<Buffer>>,
}

impl Casting {
    /// How many finite numbers of a tensor became infinite.
    pub(super) fn overflows(&self, tensor: usize) -> u64 {
        let overflows = self.overflows.lock();
        let overflows = overflows.unwrap_or_else(PoisonError::into_inner);
        overflows.get(&tensor).copied().unwrap_or_default()
    }

    fn count(&self, tensor: usize, overflows: u64) {
        let counts = self.overflows.lock();
        let mut counts = counts.unwrap_or_else(PoisonError::into_inner);
        *counts.entry(tensor).or_default() += overflows;
    }

    /// A buffer, if need be a new one; of those at hand, the one that has read this far.
    fn buffer(&self, source: usize, at: u64) -> Buffer {
        let buffers = self.buffers.lock();
        let mut buffers = buffers.unwrap_or_else(PoisonError::into_inner);
        let near = buffers.iter().position(|buffer| buffer.is_near(source, at));
        match near {
            Some(near) => buffers.swap_remove(near),
            None => buffers.pop().unwrap_or_default(),
        }
    }

    fn give_back(&self, buffer: Buffer) {
        let buffers = self.buffers.lock();
        let mut buffers = buffers.unwrap_or_else(PoisonError::into_inner);
        buffers.push(buffer);
    }
}

/// A stored tensor that is converted.
pub(super) struct CastStored<'c> {
    stored: Extent<'c>,
    cast: Cast,
    casting: &'c Casting,
    /// Its position among those that are written.
    at: usize,
}

impl<'c> CastStored<'c> {
    pub(super) fn new(stored: Extent<'c>, cast: Cast, casting: &'c Casting, at: usize) -> Self {
        Self {
            stored,
            cast,
            casting,
            at,
        }
    }

    /// Converts these stored bytes, counted from the tensor's first, block by block.
    fn convert(
        &self,
        stored: Range<u64>,
        buffer: &mut Buffer,
        write: &mut WriteBytes<'_>,
    ) -> Result<()> {
        let mut results = std::mem::take(&mut buffer.results);
        let mut at = stored.start;
        while at < stored.end {
            let piece = self.stored.part(at, BLOCK.min(stored.end - at));
            let block = buffer.read(&piece)?;
            results.resize(self.cast.output_len(block.len() as u64) as usize, 0);
            self.cast.run(block, &mut results).map_err(|error| {
                let size = self.stored_size();
                let element = at / size + error.element as u64;
                Error::new(Code::CastValue)
                    .at_offset(self.stored.start + element * size)
                    .expected(error.expected)
                    .found(format_args!("{} in element {element}", error.value))
            })?;
            self.count_overflows(block, &results);
            write(&results)?;
            at += piece.len;
        }
        buffer.results = results;
        Ok(())
    }

    /// Stored bytes that are converted together: an element, or some where one has no whole bytes.
    fn stored_size(&self) -> u64 {
        self.cast.from().size().unwrap_or(1)
    }

    fn count_overflows(&self, block: &[u8], results: &[u8]) {
        let after = infinities(self.cast.to(), results);
        if after > 0 {
            let before = infinities(self.cast.from(), block);
            if let Some(overflows @ 1..) = after.checked_sub(before) {
                self.casting.count(self.at, overflows);
            }
        }
    }
}

impl TensorData for CastStored<'_> {
    fn byte_len(&self) -> Option<u64> {
        Some(self.cast.output_len(self.stored.len))
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        // Whole elements, of which only the range is given.
        let size = self.stored_size();
        let new_size = self.cast.output_len(size).max(1);
        let (first, end) = (range.start / new_size, range.end.div_ceil(new_size));
        let stored = first * size..self.stored.len.min(end.saturating_mul(size));
        let mut window = Window::new(first * new_size, range);
        let start = self.stored.start + stored.start;
        let mut buffer = self.casting.buffer(self.stored.address(), start);
        let mut show = |bytes: &[u8]| window.show(bytes, write);
        let converted = self.convert(stored, &mut buffer, &mut show);
        self.casting.give_back(buffer);
        converted.map_err(|error| error.at_path(self.stored.path))
    }
}

/// Bytes of a source. Where one tensor follows another, twice as many are read each time, up to a block,
/// because many tensors are smaller.
#[derive(Default)]
struct Buffer {
    /// The address of the source.
    source: usize,
    start: u64,
    bytes: Vec<u8>,
    /// What was made of a block.
    results: Vec<u8>,
}

impl Buffer {
    /// Whether it holds what is at this place of a source, or all that is before it.
    fn is_near(&self, source: usize, at: u64) -> bool {
        let end = self.start + self.bytes.len() as u64;
        self.source == source && (self.start..=end).contains(&at)
    }

    /// These bytes, at most a block; what is read along with them may be of the tensors behind them.
    fn read(&mut self, wanted: &Extent<'_>) -> Result<&[u8]> {
        let (source, range) = (wanted.source, wanted.range());
        let is_near = self.is_near(wanted.address(), range.start);
        if !is_near || range.end - self.start > self.bytes.len() as u64 {
            let ahead = match is_near {
                true => BLOCK.min(self.bytes.len() as u64 * 2),
                false => 0,
            };
            let end = range.end.max(source.len().min(range.start + ahead));
            self.bytes = Vec::new();
            self.bytes = read_vec(&**source, range.start, end - range.start)?;
            source.check_unchanged()?;
            (self.source, self.start) = (wanted.address(), range.start);
        }
        let start = (range.start - self.start) as usize;
        let end = (range.end - self.start) as usize;
        Ok(self.bytes.get(start..end).unwrap_or_default())
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
