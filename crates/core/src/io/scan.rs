//! Looks at many bytes of many files once, on a few threads, and keeps none of them.
//!
//! What is looked at comes in blocks that fit a processor's cache, so that the bytes are still there
//! when they are hashed, counted or compared; a mapped file is looked at where it lies.

use std::mem::{self, MaybeUninit};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::buffer::fill_all;
use super::source::ReadAt;
use crate::{Cancel, Code, Error, Progress, ReadOptions, Result};

/// Bytes in a block: whole elements of any dtype, those of 6 bits included.
const BLOCK: u64 = 3 << 17;

/// More threads than this have not made any storage faster.
const MAX_THREADS: usize = 8;

/// Bytes of a file that lie side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'s> {
    pub(crate) source: &'s dyn ReadAt,
    /// What errors call the file.
    pub(crate) path: &'s Path,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// How far a scan has come, and whether it goes on.
pub(crate) struct Scan<'o> {
    options: &'o ReadOptions,
    /// The caller's switch works it, and the first failure does.
    stop: Cancel,
    total: u64,
    done: Mutex<u64>,
}

impl<'o> Scan<'o> {
    /// Of so many bytes.
    pub(crate) fn new(options: &'o ReadOptions, total: u64) -> Self {
        let cancel = options.cancel.as_ref();
        Self {
            options,
            stop: cancel.map(Cancel::child).unwrap_or_default(),
            total,
            done: Mutex::new(0),
        }
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
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::with_capacity(items.len()));
        let failure = Mutex::new(None);
        let worker = || {
            let stop = StopWhenDropped(&self.stop);
            let mut reader = Reader::new(self);
            while !self.stop.is_cancelled() {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(at) else {
                    break;
                };
                match work(item, &mut reader) {
                    Ok(result) => lock(&results).push((at, result)),
                    Err(error) => {
                        lock(&failure).get_or_insert(error);
                        self.stop.cancel();
                    }
                }
            }
            mem::forget(stop);
        };
        thread::scope(|scope| {
            for _ in 1..self.threads().min(items.len()) {
                // Where no further thread can be had, the others do its work.
                let thread = thread::Builder::new().name("safeshard-scan".into());
                let _no_thread = thread.spawn_scoped(scope, worker);
            }
            worker();
        });
        if let Some(error) = lock(&failure).take() {
            return Err(error);
        }
        self.go_on()?;
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_unstable_by_key(|&(at, _)| at);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    fn go_on(&self) -> Result<()> {
        match self.stop.is_cancelled() {
            true => Err(Error::new(Code::Cancelled)),
            false => Ok(()),
        }
    }

    fn add(&self, bytes: u64) {
        let Some(progress) = &self.options.progress else {
            return;
        };
        // Held during the call, so that `done` only ever grows for the one who is told.
        let mut done = lock(&self.done);
        *done += bytes;
        progress(Progress {
            done: *done,
            total: self.total,
        });
    }

    fn threads(&self) -> usize {
        let available = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        match self.options.threads {
            Some(threads) => threads.get(),
            None => available().min(MAX_THREADS),
        }
    }
}

/// What one thread reads with.
pub(crate) struct Reader<'s> {
    scan: &'s Scan<'s>,
    blocks: [Block; 2],
}

impl<'s> Reader<'s> {
    fn new(scan: &'s Scan<'s>) -> Self {
        Self {
            scan,
            blocks: Default::default(),
        }
    }

    /// Shows all bytes of a span, block by block.
    pub(crate) fn read(
        &mut self,
        span: &Span<'_>,
        mut show: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let [block, _] = &mut self.blocks;
        let mut at = 0;
        while at < span.len {
            self.scan.go_on()?;
            let bytes = block.of(span, at, BLOCK)?;
            show(bytes)?;
            at += bytes.len() as u64;
            self.scan.add(bytes.len() as u64);
        }
        Ok(())
    }

    /// Shows two spans with the same number of elements side by side, as many elements of the one as
    /// of the other at a time. `bits` are those of an element of each.
    pub(crate) fn read_two(
        &mut self,
        [a, b]: [&Span<'_>; 2],
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
            self.scan.go_on()?;
            let part = block_a.of(a, at_a, step_a)?;
            show(part, block_b.of(b, at_b, step_b)?);
            self.scan.add(part.len() as u64);
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
    /// Up to `len` bytes of a span, from there on; at most a block, and none only at its end.
    fn of<'b>(&'b mut self, span: &Span<'b>, at: u64, len: u64) -> Result<&'b [u8]> {
        let len = len.min(BLOCK).min(span.len - at);
        let start = span.start + at;
        if let Some(bytes) = span.source.as_bytes() {
            let range = usize::try_from(start).ok().and_then(|start| {
                let end = start.checked_add(len as usize)?;
                bytes.get(start..end)
            });
            return range.ok_or_else(|| {
                Error::new(Code::FileTruncated)
                    .at_path(span.path)
                    .at_offset(bytes.len() as u64)
            });
        }
        if self.0.is_empty() {
            self.0 = vec![MaybeUninit::uninit(); BLOCK as usize];
        }
        let room = self.0.get_mut(..len as usize).unwrap_or_default();
        let filled = fill_all(room, |filled, rest| {
            span.source.read_at(start + filled as u64, rest)
        });
        filled
            .map(|bytes| &*bytes)
            .map_err(|error| error.at_path(span.path).at_offset(start))
    }
}

/// Stops the others where one panics: their work would be for nothing.
struct StopWhenDropped<'m>(&'m Cancel);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A lock that a panicking progress callback cannot break: what it guards is always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
