//! Looks at many bytes of many sources once, on a few threads, and keeps none of them.
//!
//! What is looked at comes in blocks. Those of a local file fit a processor's cache, so that the bytes are still
//! there when they are hashed, counted or compared; those of a source whose answers take long are so long
//! that a call is worth it; a mapped file is looked at where it lies.

use std::num::NonZeroUsize;

use super::access::Access;
use super::buffer::Refilled;
use super::engine::ReadOptions;
use super::extent::Extent;
use super::workers::{Workers, threads};
use crate::error::{Code, Error, Result};

/// Bytes in a block of a local file: whole elements of any dtype, those of 6 bits included.
const BLOCK: u64 = 3 << 17;

/// A longer block is so many times as long as what a call costs.
const WORTH_A_CALL: u64 = 16;

/// What is looked at in one go, by one thread.
pub(crate) trait Item: Sync {
    /// Where its bytes lie.
    fn extent(&self) -> Extent<'_>;

    /// Where the bytes lie that they are compared with.
    fn other(&self) -> Option<Extent<'_>> {
        None
    }
}

/// All of an extent.
impl Item for Extent<'_> {
    fn extent(&self) -> Extent<'_> {
        *self
    }
}

/// Does the same with every item, in the order in which they lie, on as many threads as the options or the
/// sources say; results come in the order of the items. The first failure, or a panic, stops all of them.
///
/// Short items that lie near to each other are read together.
///
/// Memory: a block a thread for each extent of an item, some 40 bytes an item, and the results. A block has
/// 384 KiB; where a call costs much, up to [`Access::together`].
pub(crate) fn each<I: Item, T: Send>(
    options: &ReadOptions,
    items: &[I],
    work: impl Fn(&I, &mut Reader<'_>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let mut ordered: Vec<_> = items.iter().enumerate().collect();
    ordered.sort_by(|(_, a), (_, b)| a.extent().order(&b.extent()));
    let access = Together::of(items.first());
    let total = items.iter().map(|item| item.extent().len).sum();
    let streams = options.threads.or(access.streams());
    let workers = options.workers(threads(streams), total);
    let batches: Vec<_> = ordered.chunk_by(access.joins()).collect();
    let blocks = || [access.block(), access.block()];
    let found = workers.each(batches, blocks, |batch, [one, other]| {
        let items = || batch.iter().map(|(_, item)| *item);
        let sides = [
            one.side(items().map(|item| Some(item.extent())), &access.first),
            other.side(items().map(Item::other), &access.other),
        ];
        let mut reader = Reader {
            workers: &workers,
            block_len: access.block_len(),
            sides,
        };
        let results = batch
            .iter()
            .map(|(at, item)| Ok((*at, work(item, &mut reader)?)));
        results.collect::<Result<Vec<_>>>()
    })?;
    let mut found: Vec<_> = found.into_iter().flatten().collect();
    found.sort_unstable_by_key(|(at, _)| *at);
    Ok(found.into_iter().map(|(_, result)| result).collect())
}

/// How the sources want to be read: those of a checkpoint lie on one disk, or one server.
struct Together {
    first: Access,
    other: Access,
}

impl Together {
    fn of<I: Item>(item: Option<&I>) -> Self {
        let access = |extent: Extent<'_>| extent.source.access().bounded();
        let first = item.map_or(Access::LOCAL, |item| access(item.extent()));
        let other = item.and_then(Item::other).map_or(Access::LOCAL, access);
        Self { first, other }
    }

    fn streams(&self) -> Option<NonZeroUsize> {
        self.first.streams.max(self.other.streams)
    }

    fn block_len(&self) -> u64 {
        let worth = |access: &Access| {
            let worth = access.gap.saturating_mul(WORTH_A_CALL);
            worth.min(access.together)
        };
        let longest = worth(&self.first).max(worth(&self.other));
        longest.max(BLOCK).next_multiple_of(BLOCK)
    }

    fn block(&self) -> Block {
        Block {
            len: self.block_len(),
            bytes: Refilled::default(),
        }
    }

    /// Says of each item whether it is read together with the one before it.
    fn joins<I: Item>(&self) -> impl FnMut(&(usize, &I), &(usize, &I)) -> bool {
        let (access, longest) = (self.first, self.block_len());
        let mut first = None;
        move |(_, before), (_, item)| {
            let (before, item) = (before.extent(), item.extent());
            let joins = before.joins(&item, &access)
                && item.range().end - *first.get_or_insert(before.start) <= longest;
            if !joins {
                first = None;
            }
            joins
        }
    }
}

/// What one thread reads with.
pub(crate) struct Reader<'r> {
    workers: &'r Workers<'r>,
    block_len: u64,
    sides: [Side<'r>; 2],
}

impl Reader<'_> {
    /// Shows all bytes of an item's extent, or of a part of it, block by block.
    pub(crate) fn read(
        &mut self,
        extent: &Extent<'_>,
        mut show: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let [side, _] = &mut self.sides;
        let mut at = 0;
        while at < extent.len {
            self.workers.go_on()?;
            let bytes = side.bytes(&extent.part(at, self.block_len))?;
            show(bytes)?;
            at += bytes.len() as u64;
            self.workers.add(bytes.len() as u64);
        }
        Ok(())
    }

    /// Shows the two extents of an item, which have the same number of elements, side by side, as many
    /// elements of the one as of the other at a time. `bits` are those of an element of each.
    pub(crate) fn read_two(
        &mut self,
        [a, b]: [&Extent<'_>; 2],
        bits: [u64; 2],
        mut show: impl FnMut(&[u8], &[u8]),
    ) -> Result<()> {
        let [side_a, side_b] = &mut self.sides;
        // Of the larger elements, as many as fit into a block: whole bytes of both.
        let [bits_a, bits_b] = bits;
        let elements = self.block_len * 8 / bits_a.max(bits_b).max(1);
        let [step_a, step_b] = [elements * bits_a / 8, elements * bits_b / 8];
        let (mut at_a, mut at_b) = (0, 0);
        while at_a < a.len && at_b < b.len {
            self.workers.go_on()?;
            let part = side_a.bytes(&a.part(at_a, step_a))?;
            show(part, side_b.bytes(&b.part(at_b, step_b))?);
            self.workers.add(part.len() as u64);
            at_a += step_a;
            at_b += step_b;
        }
        Ok(())
    }
}

/// Where the bytes of one of the extents of an item come from.
enum Side<'r> {
    /// They are read when they are asked for.
    Block(&'r mut Block),
    /// They were read together with others, from a place in the source on.
    Held(&'r [u8], u64),
}

impl Side<'_> {
    /// The bytes of an extent that is no longer than a block.
    fn bytes<'b>(&'b mut self, extent: &Extent<'b>) -> Result<&'b [u8]> {
        match self {
            Self::Block(block) => block.read(extent),
            Self::Held(bytes, start) => {
                let at = extent.start.checked_sub(*start).map(|at| at as usize);
                let bytes = at.and_then(|at| bytes.get(at..)?.get(..extent.len as usize));
                bytes.ok_or_else(|| truncated(extent, *start))
            }
        }
    }
}

/// Room for a block, allocated when it is first needed.
struct Block {
    len: u64,
    bytes: Refilled,
}

impl Block {
    /// For items with these extents: all of them, read at once, if there are several and each joins the one
    /// before. What cannot be read at once is read one by one, for the error to name what it strikes.
    fn side<'b, 'e>(
        &'b mut self,
        mut extents: impl Iterator<Item = Option<Extent<'e>>>,
        access: &Access,
    ) -> Side<'b> {
        let Some(first) = extents.next().flatten() else {
            return Side::Block(self);
        };
        let mut last = first;
        for extent in extents {
            match extent.filter(|extent| last.joins(extent, access)) {
                Some(extent) => last = extent,
                None => return Side::Block(self),
            }
        }
        let len = last.range().end - first.start;
        let all = Extent { len, ..first };
        let is_one = last.start == first.start;
        match !is_one && len <= self.len && self.fill(&all).is_ok() {
            true => Side::Held(self.bytes.as_slice(), first.start),
            false => Side::Block(self),
        }
    }

    /// The bytes of an extent that is no longer than a block.
    fn read<'b>(&'b mut self, extent: &Extent<'b>) -> Result<&'b [u8]> {
        if let Some(bytes) = extent.source.as_bytes() {
            return extent
                .bytes()
                .ok_or_else(|| truncated(extent, bytes.len() as u64));
        }
        let filled = self.fill(extent);
        filled.map_err(|error| error.at_path(extent.path).at_offset(extent.start))?;
        Ok(self.bytes.as_slice())
    }

    fn fill(&mut self, extent: &Extent<'_>) -> Result<()> {
        self.bytes.fill(self.len, extent.len, |filled, rest| {
            extent.source.read_at(extent.start + filled as u64, rest)
        })
    }
}

fn truncated(extent: &Extent<'_>, end: u64) -> Error {
    let error = Error::new(Code::FileTruncated).at_path(extent.path);
    error.at_offset(end)
}
