//! One file, written from its tensors' own memory, or copied from the files that they lie in.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fmt::Display;
use std::ops::Range;

use super::file_plan::{InOrder, wrong_size};
use super::tensors::Item;
use crate::error::{Code, Error, Result};
use crate::io::extent::Extent;
use crate::io::sink::Sink;
use crate::io::source::{FileSource, ReadAt};
use crate::io::transfer::{BUFFER, read_through};
use crate::io::workers::Workers;

/// Bytes that are written before the save is counted again, and looks whether it goes on.
const PIECE: u64 = 8 << 20;

/// Files that are kept open to be copied from.
const SOURCES: usize = 8;

const AFTER_AN_ERROR: &str = "data that go on after an error";

/// What takes the bytes of a file, front to back.
pub(super) enum Output<'o, 'f> {
    /// It wants to see them.
    Writer(&'o mut dyn FnMut(&[u8]) -> Result<()>),
    /// It can have them copied.
    File(&'o mut Sink<'f>),
}

impl Output<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Writer(write) => write(bytes),
            Self::File(sink) => sink.write(bytes),
        }
    }

    fn copy(&mut self, from: &FileSource, range: Range<u64>) -> Result<()> {
        match self {
            Self::Writer(write) => read_through(from, range, BUFFER, write),
            Self::File(sink) => sink.copy(from, range),
        }
    }
}

/// Gives all bytes of a file to `output`: the header, then the tensors in the order of their data.
///
/// # Errors
/// What `output` or a tensor's data answered; `tensor-short` and `tensor-long` where the data are not
/// as many bytes as dtype and shape say; `file-changed` where a file that they lie in is not as it was
/// when it was opened; `cancelled`.
pub(super) fn write_file(
    output: Output<'_, '_>,
    tensors: InOrder<'_>,
    workers: &Workers<'_>,
) -> Result<()> {
    workers.go_on()?;
    let header = tensors.header().bytes();
    let mut file = FileWriter {
        output,
        tensors,
        workers,
        position: header.len() as u64,
        uncounted: 0,
        sources: VecDeque::new(),
    };
    file.output.write(header)?;
    let mut at = 0;
    while let Some(item) = tensors.get(at) {
        match file.run_from(at, &item)? {
            Some(run) => {
                file.copy(&run)?;
                at = run.end;
            }
            None => {
                let written = file.write(&item);
                written.map_err(|error| error.in_tensor(item.tensor.name))?;
                at += 1;
            }
        }
    }
    file.check_sources(0)?;
    file.count();
    Ok(())
}

/// Whether a tensor lies in a file that its bytes could be copied from.
pub(super) fn is_in_file(item: &Item<'_>) -> bool {
    let extent = item.data.extent();
    extent.is_some_and(|extent| matches!(extent.source.as_file(), Ok(Some(_))))
}

/// Where in a source a tensor lies, if it does.
fn extent<'t>(item: &'t Item<'_>) -> Result<Option<Extent<'t>>> {
    let Some(extent) = item.data.extent() else {
        return Ok(None);
    };
    let code = match extent.len.cmp(&item.tensor.byte_len()?) {
        Ordering::Equal => return Ok(Some(extent)),
        Ordering::Greater => Code::TensorLong,
        Ordering::Less => Code::TensorShort,
    };
    let error = wrong_size(&item.tensor, code, extent.len);
    Err(error.in_tensor(item.tensor.name))
}

/// Tensors that follow each other in a file as they do in the new one.
struct Run {
    range: Range<u64>,
    /// Places of the first one, and of the one behind the last.
    start: usize,
    end: usize,
}

struct FileWriter<'w, 'o, 'f> {
    output: Output<'o, 'f>,
    tensors: InOrder<'w>,
    workers: &'w Workers<'w>,
    /// Bytes of the file so far.
    position: u64,
    /// Bytes of tensors that are not counted yet.
    uncounted: u64,
    /// The files that were copied from, the last one in front, and the addresses of their sources. They
    /// are not checked yet.
    sources: VecDeque<(usize, FileSource)>,
}

impl FileWriter<'_, '_, '_> {
    /// The tensor, and those behind it, if they are to be copied out of the file in front.
    fn run_from(&mut self, start: usize, item: &Item<'_>) -> Result<Option<Run>> {
        let (Output::File(_), Some(first)) = (&self.output, extent(item)?) else {
            return Ok(None);
        };
        if !self.take_source(&first)? {
            return Ok(None);
        }
        let mut range = first.range();
        let mut end = start + 1;
        while let Some(next) = self.tensors.get(end)
            && let Some(next) = extent(&next)?
            && next.address() == first.address()
            && next.start == range.end
        {
            range.end = next.range().end;
            end += 1;
        }
        Ok(Some(Run { range, start, end }))
    }

    /// Whether a source is a file, which is in front then: small tensors in many places would ask for
    /// the same few files again and again.
    fn take_source(&mut self, extent: &Extent<'_>) -> Result<bool> {
        let address = extent.address();
        let known = self.sources.iter().position(|(other, _)| *other == address);
        if let Some(at) = known {
            self.sources.swap(0, at);
            return Ok(true);
        }
        let Some(file) = extent.source.as_file()? else {
            return Ok(false);
        };
        self.check_sources(SOURCES - 1)?;
        self.sources.push_front((address, file));
        Ok(true)
    }

    /// Checks that what was copied is what was opened, and keeps a few files at hand.
    fn check_sources(&mut self, keep: usize) -> Result<()> {
        while self.sources.len() > keep {
            if let Some((_, file)) = self.sources.pop_back() {
                file.check_unchanged()?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, run: &Run) -> Result<()> {
        let mut at = run.range.start;
        while at < run.range.end {
            // Where the pieces end at whole blocks, a file system that can share blocks does.
            let len = PIECE - self.position % PIECE;
            let piece = at..run.range.end.min(at + len);
            self.workers.go_on()?;
            if let Some((_, file)) = self.sources.front() {
                let copied = self.output.copy(file, piece.clone());
                copied.map_err(|error| self.name(run, error, &piece))?;
            }
            self.took(piece.end - piece.start);
            at = piece.end;
        }
        Ok(())
    }

    /// Says in which tensor something went wrong, while this range was copied.
    fn name(&self, run: &Run, error: Error, range: &Range<u64>) -> Error {
        let offset = error.offset().unwrap_or(range.start);
        let mut items = (run.start..run.end).filter_map(|at| self.tensors.get(at));
        let at_fault = items.find(|item| {
            let extent = item.data.extent();
            extent.is_some_and(|extent| extent.range().end > offset)
        });
        match at_fault {
            Some(item) => error.in_tensor(item.tensor.name),
            None => error,
        }
    }

    fn write(&mut self, item: &Item<'_>) -> Result<()> {
        let expected = item.tensor.byte_len()?;
        let wrong = |code, found: &dyn Display| wrong_size(&item.tensor, code, found);
        let mut given = 0u64;
        let mut failed = false;
        item.data.write_range(0..expected, &mut |bytes| {
            // Whoever goes on after a failure would go on at the wrong place.
            if failed {
                return Err(wrong(Code::TensorShort, &AFTER_AN_ERROR));
            }
            given = given.saturating_add(bytes.len() as u64);
            let written = match given > expected {
                true => Err(wrong(Code::TensorLong, &format_args!("{given} or more"))),
                false => self.write_pieces(bytes),
            };
            failed = written.is_err();
            written
        })?;
        match given == expected {
            _ if failed => Err(wrong(Code::TensorShort, &AFTER_AN_ERROR)),
            true => Ok(()),
            false => Err(wrong(Code::TensorShort, &given)),
        }
    }

    fn write_pieces(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE as usize) {
            self.workers.go_on()?;
            self.output.write(piece)?;
            self.took(piece.len() as u64);
        }
        Ok(())
    }

    fn took(&mut self, bytes: u64) {
        self.position += bytes;
        self.uncounted += bytes;
        if self.uncounted >= PIECE {
            self.count();
        }
    }

    fn count(&mut self) {
        if self.uncounted > 0 {
            self.workers.add(self.uncounted);
            self.uncounted = 0;
        }
    }
}
