//! Reads many parts of many files into many destinations, on a few threads.
//!
//! Every destination is cut into pieces of a few MiB. The pieces are sorted by file and offset, so
//! that a cold file is read front to back whatever the order of the request, and the threads take
//! them one after the other. A piece is read straight into its destination; only a cast or a finely
//! scattered slice goes through a thread's own small buffer. So a tensor's bytes are touched once.
//!
//! The medium is not told what comes: for a cold file, long reads and the kernel's own read-ahead
//! took 1.2 times as long as the bare disk, with `POSIX_FADV_WILLNEED` for every piece it was 1.5.

use std::fmt;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use super::buffer::{Destination, fill_all};
use super::cast::Cast;
use super::new_memory::NewMemory;
use super::source::ReadAt;
use super::technique::Technique;
use super::workers::{Cancel, Progress, Workers, threads};
use crate::{Code, Error, Result, Slice};

/// Bytes of a file that one call reads: large enough that the call costs nothing, small enough that
/// the threads finish together.
const PIECE: u64 = 8 << 20;

/// A short request is cut into smaller pieces, but into none below this.
const SHORT_PIECE: u64 = 128 << 10;

/// Into how many pieces for every thread: the one that starts last, or waits longest for its pages,
/// leaves pieces to the others.
const PIECES_A_THREAD: u64 = 8;

/// Source bytes of a piece that is cast.
const CAST_PIECE: u64 = 2 << 20;

/// What is cast goes through a buffer of this length: it stays in a core's cache, and below 128 KiB
/// the allocator gives out the same memory again, instead of new pages for every call.
const CAST_BUFFER: u64 = 96 << 10;

/// What is gathered goes through one of this length: ten times as much at once, and the kernel copies
/// it in 0.8 of the time.
const GATHER_BUFFER: u64 = 1 << 20;

/// Runs of this length are worth a call of their own.
const LONG_RUN: u64 = 64 << 10;

/// What lies between two runs is read along, rather than making a call for each, up to this length.
const SMALL_GAP: u64 = 8 << 10;

/// Less than this is read before another thread has started.
const WORTH_A_THREAD: u64 = 512 << 10;

/// How a read runs.
#[derive(Clone, Default)]
pub struct ReadOptions {
    /// Reading threads; `None` means as many as there are cores, at most 8, and one where the source
    /// [prefers one stream](crate::ReadAt::prefers_one_stream).
    pub threads: Option<NonZeroUsize>,
    /// Called after every few MiB, from the reading threads, one call at a time.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// Stops the read when cancelled.
    pub cancel: Option<Cancel>,
}

impl fmt::Debug for ReadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOptions")
            .field("threads", &self.threads)
            .field("progress", &self.progress.is_some())
            .field("cancel", &self.cancel)
            .finish()
    }
}

impl ReadOptions {
    pub(crate) fn workers(&self, threads: usize, total: u64) -> Workers<'_> {
        Workers::new(threads, self.progress.as_ref(), self.cancel.as_ref(), total)
    }
}

/// One part of one tensor and where it goes.
pub(crate) struct Job<'s, D> {
    pub(crate) source: &'s dyn ReadAt,
    /// The file's place in the checkpoint: jobs of one file are read together.
    pub(crate) file: usize,
    /// What errors call the file.
    pub(crate) path: &'s Path,
    pub(crate) tensor: &'s str,
    /// Where in the file the tensor begins.
    pub(crate) start: u64,
    pub(crate) slice: Slice,
    pub(crate) cast: Option<Cast>,
    pub(crate) destination: D,
}

impl<D> Job<'_, D> {
    /// Bytes of the file that are read or passed by: the gaps in a scattered slice cost nearly as much
    /// as its runs.
    fn effort(&self) -> u64 {
        let slice = &self.slice;
        let gaps = slice.run_count().saturating_mul(SMALL_GAP);
        let span = match slice.byte_len() {
            0 => 0,
            len => slice.offset_of(len - 1) - slice.offset_of(0),
        };
        span.min(slice.byte_len().saturating_add(gaps))
    }

    /// Bytes of the destination for `bytes` of the file; the two differ where a cast is asked for.
    fn scaled(&self, bytes: u64) -> u64 {
        self.cast.map_or(bytes, |cast| cast.output_len(bytes))
    }
}

/// Fills all destinations; on an error, none is handed out and the first error is returned.
///
/// Memory: 1.1 MiB a thread at most, besides the destinations.
pub(crate) fn fill<D: Destination>(
    mut jobs: Vec<Job<'_, D>>,
    options: &ReadOptions,
) -> Result<Vec<D::Filled>> {
    let lengths = jobs.iter().map(|job| job.slice.byte_len());
    let total = lengths.fold(0, u64::saturating_add);
    let efforts = jobs.iter().map(Job::effort);
    let effort = efforts.fold(0, u64::saturating_add);
    let piece_len = match effort / WORTH_A_THREAD {
        0 | 1 => PIECE,
        _ => short_piece_len(total, threads(options.threads)),
    };
    let untouched = jobs.iter_mut().map(|job| &mut job.destination);
    let untouched = untouched.filter(|destination| destination.is_untouched());
    let new_memory = NewMemory::new(untouched.map(Destination::bytes));
    let mut pieces = Vec::new();
    for job in &mut jobs {
        cut(job, piece_len, &mut pieces)?;
    }
    if Technique::FileOrder.is_on() {
        pieces.sort_by_key(|piece| (piece.file, piece.file_offset()));
    }

    let threads = useful_threads(&pieces, effort, options);
    let workers = options.workers(threads, total);
    workers.each(pieces, Scratch::default, |piece, scratch| {
        new_memory.before_filling(piece.memory);
        let len = piece.len;
        piece.read(scratch)?;
        workers.add(len);
        Ok(())
    })?;

    let filled = jobs.into_iter().map(|job| {
        // SAFETY: `cut` covered the whole of every destination with pieces, and `each` returned
        // without error, so `Piece::read` has returned `Ok` for each of them: every byte of every
        // piece was written.
        unsafe { job.destination.assume_filled() }
    });
    Ok(filled.collect())
}

/// Part of a job, small enough for one thread to do at a time.
struct Piece<'j> {
    source: &'j dyn ReadAt,
    file: usize,
    path: &'j Path,
    tensor: &'j str,
    start: u64,
    slice: &'j Slice,
    cast: Option<Cast>,
    /// Which bytes of the slice, counted as if its runs were one.
    from: u64,
    len: u64,
    memory: &'j mut [MaybeUninit<u8>],
}

/// Bytes of a piece where several threads share `total`.
fn short_piece_len(total: u64, threads: usize) -> u64 {
    let longest = match Technique::LongPieces.is_on() {
        true => PIECE,
        false => 4 * SHORT_PIECE,
    };
    let len = total / (PIECES_A_THREAD * threads as u64);
    len.clamp(SHORT_PIECE, longest)
        .next_multiple_of(SHORT_PIECE)
}

/// No more threads than there is work for.
fn useful_threads(pieces: &[Piece<'_>], effort: u64, options: &ReadOptions) -> usize {
    // The files of a checkpoint lie on one medium.
    let first = pieces.first();
    let one_stream = || first.is_some_and(|piece| piece.source.prefers_one_stream());
    let useful = usize::try_from(effort / WORTH_A_THREAD).unwrap_or(usize::MAX);
    let useful = useful.min(pieces.len()).max(1);
    match options.threads {
        None if useful == 1 || one_stream() => 1,
        asked => threads(asked).min(useful),
    }
}

fn cut<'j, D: Destination>(
    job: &'j mut Job<'_, D>,
    piece_len: u64,
    pieces: &mut Vec<Piece<'j>>,
) -> Result<()> {
    let byte_len = job.slice.byte_len();
    let expected = job.scaled(byte_len);
    // Both are multiples of any element's size, so that no element is cut in two.
    let piece_len = job.cast.map_or(piece_len, |_| piece_len.min(CAST_PIECE));
    let memory_len = job.scaled(piece_len) as usize;
    let (source, path, tensor, slice) = (job.source, job.path, job.tensor, &job.slice);
    let memory = job.destination.bytes();
    if memory.len() as u64 != expected {
        return Err(Error::new(Code::BufferSize)
            .at_path(path)
            .in_tensor(tensor)
            .expected(format_args!("{expected} bytes"))
            .found(memory.len()));
    }
    let mut from = 0;
    for memory in memory.chunks_mut(memory_len) {
        let len = piece_len.min(byte_len - from);
        pieces.push(Piece {
            source,
            file: job.file,
            path,
            tensor,
            start: job.start,
            slice,
            cast: job.cast,
            from,
            len,
            memory,
        });
        from += len;
    }
    Ok(())
}

impl Piece<'_> {
    fn file_offset(&self) -> u64 {
        self.start + self.slice.offset_of(self.from)
    }

    /// Fills the piece's memory: all of it, on `Ok`.
    fn read(self, scratch: &mut Scratch) -> Result<()> {
        let (path, tensor, offset) = (self.path, self.tensor, self.file_offset());
        self.read_into_memory(scratch)
            .map_err(|error| error.at_path(path).in_tensor(tensor).at_offset(offset))
    }

    fn read_into_memory(self, scratch: &mut Scratch) -> Result<()> {
        let runs = Runs {
            source: self.source,
            start: self.start,
            slice: self.slice,
            from: self.from,
        };
        match self.cast {
            None => runs.read(self.memory, &mut scratch.gather).map(|_| ()),
            Some(cast) => runs.cast(cast, self.from + self.len, self.memory, scratch),
        }
    }
}

/// A stretch of a slice, read run by run.
struct Runs<'j> {
    source: &'j dyn ReadAt,
    start: u64,
    slice: &'j Slice,
    /// Where the stretch begins, counted in the slice's bytes.
    from: u64,
}

impl Runs<'_> {
    /// Reads up to `end` of the slice's bytes and fills `memory` with what they become, part by part.
    fn cast(
        mut self,
        cast: Cast,
        end: u64,
        memory: &mut [MaybeUninit<u8>],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let part_len = cast.output_len(CAST_BUFFER) as usize;
        for memory in memory.chunks_mut(part_len) {
            let raw = scratch
                .cast
                .first((end - self.from).min(CAST_BUFFER) as usize);
            let raw = self.read(raw, &mut scratch.gather)?;
            cast.run(raw, memory).map_err(|error| {
                let size = cast.from().size().unwrap_or(1);
                let element = self.from / size + error.element as u64;
                Error::new(Code::CastValue)
                    .at_offset(self.start + self.slice.offset_of(element * size))
                    .expected(error.expected)
                    .found(format_args!("{} in element {element}", error.value))
            })?;
            self.from += raw.len() as u64;
        }
        Ok(())
    }

    fn read<'b>(
        &self,
        memory: &'b mut [MaybeUninit<u8>],
        gather: &mut Room,
    ) -> Result<&'b mut [u8]> {
        let run_len = self.slice.run_len().max(1);
        fill_all(memory, |filled, rest| {
            let at = self.from + filled as u64;
            let left_in_run = run_len - at % run_len;
            if left_in_run < LONG_RUN && left_in_run < rest.len() as u64 {
                return match self.source.as_bytes() {
                    Some(file) => self.copy_runs(at, rest, file, 0),
                    None => self.gather(at, rest, gather),
                };
            }
            let len = rest
                .len()
                .min(usize::try_from(left_in_run).unwrap_or(usize::MAX));
            let part = rest.get_mut(..len).unwrap_or_default();
            self.source
                .read_at(self.start + self.slice.offset_of(at), part)
        })
    }

    /// Reads short runs that lie close together with one call, and fills what they give.
    fn gather<'b>(
        &self,
        at: u64,
        memory: &'b mut [MaybeUninit<u8>],
        gather: &mut Room,
    ) -> Result<&'b mut [u8]> {
        // From run to run, as long as the next one is near and all of it fits.
        let first = self.slice.offset_of(at);
        let (mut len, mut end) = (0, first);
        for run in self.slice.runs_from(at) {
            let run_len = run.end - run.start;
            let fits = len + run_len <= memory.len() as u64 && run.end - first <= GATHER_BUFFER;
            if len > 0 && (!fits || run.start - end > SMALL_GAP) {
                break;
            }
            len += run_len;
            end = run.end;
        }
        let block = gather.first((end - first) as usize);
        // Through `fill_all`, so that a source that fills something else is noticed here too.
        let block: &[u8] = fill_all(block, |filled, rest| {
            self.source
                .read_at(self.start + first + filled as u64, rest)
        })?;
        let memory = memory.get_mut(..len as usize).unwrap_or_default();
        self.copy_runs(at, memory, block, self.start + first)
    }

    /// Fills `memory` from bytes of the file, those from `first` on.
    fn copy_runs<'b>(
        &self,
        at: u64,
        memory: &'b mut [MaybeUninit<u8>],
        bytes: &[u8],
        first: u64,
    ) -> Result<&'b mut [u8]> {
        // A source may lend fewer bytes than it has said.
        let truncated = || Error::new(Code::FileTruncated);
        let mut runs = self.slice.runs_from(at);
        fill_all(memory, |_, rest| {
            let run = runs.next().ok_or_else(truncated)?;
            let start = (self.start + run.start - first) as usize;
            let len = rest.len().min((run.end - run.start) as usize);
            let range = start..start.saturating_add(len);
            let run = bytes.get(range).ok_or_else(truncated)?;
            let part = rest.get_mut(..run.len()).unwrap_or_default();
            Ok(part.write_copy_of_slice(run))
        })
    }
}

/// A thread's own buffers.
struct Scratch {
    gather: Room,
    cast: Room,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            gather: Room::new(GATHER_BUFFER),
            cast: Room::new(CAST_BUFFER),
        }
    }
}

/// Memory that is allocated when it is first needed, and never zeroed.
struct Room {
    len: u64,
    memory: Vec<MaybeUninit<u8>>,
}

impl Room {
    fn new(len: u64) -> Self {
        Self {
            len,
            memory: Vec::new(),
        }
    }

    /// The first `len` bytes of all that there is.
    fn first(&mut self, len: usize) -> &mut [MaybeUninit<u8>] {
        if self.memory.is_empty() {
            self.memory = vec![MaybeUninit::uninit(); self.len as usize];
        }
        self.memory.get_mut(..len).unwrap_or_default()
    }
}
