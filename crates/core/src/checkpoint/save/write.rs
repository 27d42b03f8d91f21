//! One file, written from its tensors' own memory.

use std::fmt::Display;

use super::SaveTensor;
use super::prepare::wrong_size;
use super::workers::Meter;
use crate::format::write::NewHeader;
use crate::{Code, Result};

/// Bytes that are written before the save is counted again, and looks whether it goes on.
const PIECE: usize = 8 << 20;

const AFTER_AN_ERROR: &str = "data that go on after an error";

/// Gives all bytes of a file to `sink`, front to back: the header, then the tensors, which are those
/// that the header was made of, in the order of their data.
///
/// # Errors
/// What `sink` or a tensor's data answered; `tensor-short` and `tensor-long` where the data are not
/// as many bytes as dtype and shape say; `cancelled`.
pub(super) fn write_file<'t>(
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    header: &NewHeader,
    tensors: impl Iterator<Item = &'t SaveTensor<'t>>,
    meter: &Meter<'_>,
) -> Result<()> {
    meter.go_on()?;
    sink(header.bytes())?;
    let mut file = FileWriter {
        sink,
        meter,
        uncounted: 0,
    };
    for tensor in tensors {
        let written = file.write(tensor);
        written.map_err(|error| error.in_tensor(&tensor.name))?;
    }
    file.count();
    Ok(())
}

struct FileWriter<'w> {
    sink: &'w mut dyn FnMut(&[u8]) -> Result<()>,
    meter: &'w Meter<'w>,
    /// Bytes of tensors that the meter does not know of yet.
    uncounted: u64,
}

impl FileWriter<'_> {
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
        for piece in bytes.chunks(PIECE) {
            self.meter.go_on()?;
            (self.sink)(piece)?;
            self.uncounted += piece.len() as u64;
            if self.uncounted >= PIECE as u64 {
                self.count();
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        if self.uncounted > 0 {
            self.meter.add(self.uncounted);
            self.uncounted = 0;
        }
    }
}
