//! The bytes of a tensor that is to be saved: in memory already, or made when they are needed.

use std::ops::Range;

use crate::{ReadAt, Result};

/// Where a tensor's bytes come from when it is saved.
///
/// Implement it for a framework's tensors, or for bytes that are computed or fetched on the way.
/// For bytes in memory, `&[u8]` is one.
pub trait TensorData: Send + Sync {
    /// How many bytes [`TensorData::write_to`] will give, where that is known; it is compared with
    /// dtype and shape before anything is written.
    fn byte_len(&self) -> Option<u64>;

    /// Where the bytes lie in memory, exactly as they will be written; `None` where they do not.
    /// Tensors at the same place are tied, see [`Ties`](crate::Ties).
    fn place(&self) -> Option<Range<usize>> {
        None
    }

    /// Where the bytes lie in a source, exactly as they will be written; `None` where they do not. Out
    /// of a [file](ReadAt::as_file) into a file, the system copies them, and nobody reads them.
    fn in_source(&self) -> Option<(&dyn ReadAt, Range<u64>)> {
        None
    }

    /// Whether the bytes are made by copying a tensor that is not held as a file holds it: on a device,
    /// or with strides. [`SaveReport::materialised`](crate::SaveReport::materialised) names such
    /// tensors.
    fn is_materialised(&self) -> bool {
        false
    }

    /// Gives all bytes to `write`, front to back, in one part or in many. Called at most once for each
    /// time that the tensor is stored, from one of the saving threads.
    ///
    /// # Errors
    /// What `write` returned, or what the source met; either ends the save.
    fn write_to(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

impl TensorData for &[u8] {
    fn byte_len(&self) -> Option<u64> {
        Some(self.len() as u64)
    }

    fn place(&self) -> Option<Range<usize>> {
        let start = self.as_ptr().addr();
        Some(start..start + self.len())
    }

    fn write_to(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        write(self)
    }
}
