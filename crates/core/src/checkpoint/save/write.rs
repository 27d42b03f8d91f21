//! One file, written from its tensors' own memory, or copied from the files that they lie in.

use std::fmt::Display;
use std::iter::Peekable;
use std::ops::Range;

use super::SaveTensor;
use super::prepare::wrong_size;
use crate::format::write::NewHeader;
use crate::io::sink::Sink;
use crate::io::source::{FileSource, ReadAt};
use crate::io::transfer::read_through;
use crate::io::workers::Workers;
use crate::{Code, Error, Result};

/// Bytes that are written before the save is counted again, and looks whether it goes on.
const PIECE: u64 = 8 << 20;

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
            Self::Writer(write) => read_through(from, range, write),
            Self::File(sink) => sink.copy(from, range),
        }
    }
}

/// Gives all bytes of a file to `output`: the header, then the tensors, which are those that the header
/// was made of, in the order of their data.
///
/// # Errors
/// What `output` or a tensor's data answered; `tensor-short` and `tensor-long` where the data are not
/// as many bytes as dtype and shape say; `file-changed` where a file that they lie in is not as it was
/// when it was opened; `cancelled`.
pub(super) fn write_file<'t>(
    output: Output<'_, '_>,
    header: &NewHeader,
    tensors: impl Iterator<Item = &'t SaveTensor<'t>>,
    workers: &Workers<'_>,
) -> Result<()> {
    workers.go_on()?;
    let mut file = FileWriter {
        output,
        workers,
        position: header.bytes().len() as u64,
        uncounted: 0,
    };
    file.output.write(header.bytes())?;
    let mut tensors = tensors.peekable();
    while let Some(tensor) = tensors.next() {
        match file.run_from(tensor, &mut tensors)? {
            Some(run) => file.copy(&run)?,
            None => {
                let written = file.write(tensor);
                written.map_err(|error| error.in_tensor(&tensor.name))?;
            }
        }
    }
    file.count();
    Ok(())
}

/// Whether a tensor lies in a file that its bytes could be copied from.
pub(super) fn is_in_file(tensor: &SaveTensor<'_>) -> bool {
    let source = tensor.data.in_source();
    source.is_some_and(|(source, _)| matches!(source.as_file(), Ok(Some(_))))
}

/// Where in a source a tensor lies, if it does.
fn in_source<'t>(tensor: &'t SaveTensor<'_>) -> Result<Option<(&'t dyn ReadAt, Range<u64>)>> {
    let Some((source, range)) = tensor.data.in_source() else {
        return Ok(None);
    };
    let (expected, found) = (
        tensor.described().byte_len()?,
        range.end.checked_sub(range.start),
    );
    match found == Some(expected) {
        true => Ok(Some((source, range))),
        false => {
            let code = match found > Some(expected) {
                true => Code::TensorLong,
                false => Code::TensorShort,
            };
            let error = wrong_size(tensor, code, format_args!("{range:?}"));
            Err(error.in_tensor(&tensor.name))
        }
    }
}

/// Tensors that follow each other in a file as they do in the new one.
struct Run<'t> {
    file: FileSource,
    range: Range<u64>,
    /// Where in the file each of them ends, and its name.
    ends: Vec<(u64, &'t str)>,
}

impl Run<'_> {
    /// Says in which tensor something went wrong, while this range was copied.
    fn name(&self, error: Error, range: &Range<u64>) -> Error {
        let offset = error.offset().unwrap_or(range.start);
        let at = self.ends.partition_point(|&(end, _)| end <= offset);
        match self.ends.get(at) {
            Some((_, name)) => error.in_tensor(*name),
            None => error,
        }
    }
}

struct FileWriter<'w, 'o, 'f> {
    output: Output<'o, 'f>,
    workers: &'w Workers<'w>,
    /// Bytes of the file so far.
    position: u64,
    /// Bytes of tensors that are not counted yet.
    uncounted: u64,
}

impl FileWriter<'_, '_, '_> {
    /// The tensor, and those behind it, if they are to be copied.
    fn run_from<'t>(
        &self,
        tensor: &'t SaveTensor<'t>,
        others: &mut Peekable<impl Iterator<Item = &'t SaveTensor<'t>>>,
    ) -> Result<Option<Run<'t>>> {
        let (Output::File(_), Some((source, mut range))) = (&self.output, in_source(tensor)?)
        else {
            return Ok(None);
        };
        let Some(file) = source.as_file()? else {
            return Ok(None);
        };
        let mut ends = vec![(range.end, &*tensor.name)];
        while let Some(&next) = others.peek()
            && let Some((next_source, next_range)) = in_source(next)?
            && std::ptr::addr_eq(next_source, source)
            && next_range.start == range.end
        {
            range.end = next_range.end;
            ends.push((range.end, &next.name));
            others.next();
        }
        Ok(Some(Run { file, range, ends }))
    }

    fn copy(&mut self, run: &Run<'_>) -> Result<()> {
        let mut at = run.range.start;
        while at < run.range.end {
            // Where the pieces end at whole blocks, a file system that can share blocks does.
            let len = PIECE - self.position % PIECE;
            let piece = at..run.range.end.min(at + len);
            self.workers.go_on()?;
            let copied = self.output.copy(&run.file, piece.clone());
            copied.map_err(|error| run.name(error, &piece))?;
            self.took(piece.end - piece.start);
            at = piece.end;
        }
        run.file.check_unchanged()
    }

    fn write(&mut self, tensor: &SaveTensor<'_>) -> Result<()> {
        let expected = tensor.described().byte_len()?;
        let wrong = |code, found: &dyn Display| wrong_size(tensor, code, found);
        let mut given = 0u64;
        let mut failed = false;
        tensor.data.write_to(&mut |bytes| {
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
