//! Looks at many bytes of many files once, on a few threads, and keeps none of them.
//!
//! What is looked at comes in blocks that fit a processor's cache, so that the bytes are still there
//! when they are hashed, counted or compared; a mapped file is looked at where it lies.

use std::mem::MaybeUninit;

use super::buffer::{fill_all, uninit};
use super::extent::Extent;
use super::workers::{Workers, threads};
use crate::error::{Code, Error, Result};
use crate::io::engine::ReadOptions;

/// Bytes in a block: whole elements of any dtype, those of 6 bits included.
const BLOCK: u64 = 3 << 17;

/// One look at some bytes.
pub(crate) struct Scan<'o>(Workers<'o>);

impl<'o> Scan<'o> {
    /// Of so many bytes.
    pub(crate) fn new(options: &'o ReadOptions, total: u64) -> Self {
        Self(options.workers(threads(options.threads), total))
    }

    /// Does the same with every item, on as many threads as the options say; results come in order.
    /// The first failure, or a panic, stops all of them.
    ///
    /// Memory: two blocks of 384 KiB a thread, and the results.
    pub(crate) fn each<I: Sync, T: Send>(
        &self,
        items: &[I],
        work: impl Fn(&I, &mut Reader<'_>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        self.0.each(items, || Reader::new(&self.0), work)
    }
}

/// What one thread reads with.
pub(crate) struct Reader<'s> {
    workers: &'s Workers<'s>,
    blocks: [Block; 2],
}

impl<'s> Reader<'s> {
    fn new(workers: &'s Workers<'s>) -> Self {
        Self {
            workers,
            blocks: Default::default(),
        }
    }

    /// Shows all bytes of an extent, block by block.
    pub(crate) fn read(
        &mut self,
        extent: &Extent<'_>,
        mut show: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let [block, _] = &mut self.blocks;
        let mut at = 0;
        while at < extent.len {
            self.workers.go_on()?;
            let bytes = block.of(extent, at, BLOCK)?;
            show(bytes)?;
            at += bytes.len() as u64;
            self.workers.add(bytes.len() as u64);
        }
        Ok(())
    }

    /// Shows two extents with the same number of elements side by side, as many elements of the one as
    /// of the other at a time. `bits` are those of an element of each.
    pub(crate) fn read_two(
        &mut self,
        [a, b]: [&Extent<'_>; 2],
        bits: [u64; 2],
        mut show: impl FnMut(&[u8], &[u8]),
    ) -> Result<()> {
        let [block_a, block_b] = &mut self.blocks;
        // Of the larger elements, as many as fit into a block: whole bytes of both.
        let [bits_a, bits_b] = bits;
        let elements = BLOCK * 8 / bits_a.max(bits_b).max(1);
        let [step_a, step_b] = [elements * bits_a / 8, elements * bits_b / 8];
        let (mut at_a, mut at_b) = (0, 0);
        while at_a < a.len && at_b < b.len {
            self.workers.go_on()?;
            let part = block_a.of(a, at_a, step_a)?;
            show(part, block_b.of(b, at_b, step_b)?);
            self.workers.add(part.len() as u64);
            at_a += step_a;
            at_b += step_b;
        }
        Ok(())
    }
}

/// Room for a block, allocated when it is first needed, and never zeroed.
#[derive(Default)]
struct Block(Vec<MaybeUninit<u8>>);

impl Block {
    /// Up to `len` bytes of an extent, from there on; at most a block, and none only at its end.
    fn of<'b>(&'b mut self, extent: &Extent<'b>, at: u64, len: u64) -> Result<&'b [u8]> {
        let part = extent.part(at, len.min(BLOCK));
        if let Some(bytes) = extent.source.as_bytes() {
            return part.bytes().ok_or_else(|| {
                Error::new(Code::FileTruncated)
                    .at_path(extent.path)
                    .at_offset(bytes.len() as u64)
            });
        }
        if self.0.is_empty() {
            self.0 = uninit(BLOCK)?;
        }
        let room = self.0.get_mut(..part.len as usize).unwrap_or_default();
        let filled = fill_all(room, |filled, rest| {
            extent.source.read_at(part.start + filled as u64, rest)
        });
        filled
            .map(|bytes| &*bytes)
            .map_err(|error| error.at_path(extent.path).at_offset(part.start))
    }
}
