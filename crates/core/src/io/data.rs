//! The bytes of a tensor that is to be saved: in memory already, in a source, or made when they are needed.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::buffer::Filling;
use super::extent::Extent;
use super::source::ReadAt;
use super::transfer::read_through;
use crate::error::Result;

/// What takes bytes, front to back.
pub type WriteBytes<'w> = dyn FnMut(&[u8]) -> Result<()> + 'w;

/// Where a tensor's bytes come from when it is saved, or read by another framework.
///
/// Implement it for a framework's tensors, or for bytes that are computed or fetched on the way. Bytes in
/// memory are one, borrowed (`&[u8]`) or owned (`Vec<u8>`, `Arc<[u8]>`), and so is a [`Located`] part of a
/// source. The bytes are those of a safetensors file: little-endian, row-major.
pub trait TensorData: Send + Sync {
    /// How many bytes there are, where that is known; it is compared with dtype and shape before anything
    /// is written.
    fn byte_len(&self) -> Option<u64>;

    /// Where the bytes lie in memory, exactly as they will be written; `None` where they do not.
    /// Tensors at the same place are tied, see [`Ties`](crate::Ties).
    fn place(&self) -> Option<Range<usize>> {
        None
    }

    /// Where the bytes lie in a source, exactly as they will be written; `None` where they do not. Out
    /// of a [file](ReadAt::as_file) into a file, the system copies them, and nobody reads them. Tensors
    /// with the same extent are tied too.
    fn extent(&self) -> Option<Extent<'_>> {
        None
    }

    /// Whether the bytes are made by copying a tensor that is not held as a file holds it: on a device,
    /// or with strides. [`SaveReport::materialised`](crate::SaveReport::materialised) names such
    /// tensors.
    fn is_materialised(&self) -> bool {
        false
    }

    /// Gives the bytes of `range` to `write`, front to back, in one part or in many: no more and no fewer.
    /// Called from several threads, for any part of the bytes and any number of times; a save asks for all
    /// of them at once, one time for each file that the tensor is stored in. Should cost no more than the
    /// range demands; [`gather`](crate::gather()) does that for tensors with strides.
    ///
    /// # Errors
    /// What `write` returned, or what the source met; either ends the save or the read.
    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()>;

    /// Gives all bytes to `write`.
    ///
    /// # Errors
    /// As [`TensorData::write_range`].
    fn write_to(&self, write: &mut WriteBytes<'_>) -> Result<()> {
        self.write_range(0..self.byte_len().unwrap_or(u64::MAX), write)
    }

    /// Fills all of `buf` with the bytes at `offset`. Unless implemented, with what
    /// [`TensorData::write_range`] gives.
    ///
    /// # Errors
    /// As [`TensorData::write_range`]; `buffer-size` where it gives more or fewer bytes.
    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        let mut filling = Filling::new(buf);
        self.write_range(range, &mut |part| filling.push(part))?;
        filling.finish()
    }
}

/// Of bytes in memory, those of a range; fewer where there are fewer.
fn part(bytes: &[u8], range: Range<u64>) -> &[u8] {
    let at = |place: u64| {
        usize::try_from(place)
            .unwrap_or(usize::MAX)
            .min(bytes.len())
    };
    bytes
        .get(at(range.start)..at(range.end))
        .unwrap_or_default()
}

macro_rules! bytes_in_memory {
    ($($type:ty),*) => {$(
        impl TensorData for $type {
            fn byte_len(&self) -> Option<u64> {
                Some(self.len() as u64)
            }

            fn place(&self) -> Option<Range<usize>> {
                let start = self.as_ptr().addr();
                Some(start..start + self.len())
            }

            fn write_range(
                &self,
                range: Range<u64>,
                write: &mut WriteBytes<'_>,
            ) -> Result<()> {
                write(part(self, range))
            }
        }
    )*};
}

bytes_in_memory!(&[u8], Vec<u8>, Arc<[u8]>);

/// Part of a source as the bytes of a tensor: an [`Extent`] that owns.
///
/// With it, [`Checkpoint::from_tensors`](crate::Checkpoint::from_tensors) makes a checkpoint of tensors that
/// lie anywhere, such as in a file of another format.
///
/// ```
/// use std::sync::Arc;
/// use safeshard_core::{Checkpoint, Dtype, FileSource, Located, SaveTensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("foreign.bin");
/// # std::fs::write(&path, b"head\x01\x02\x03tail").unwrap();
/// let file = Arc::new(FileSource::open(&path)?); // "head", three bytes, "tail"
/// let tensor = SaveTensor::new("w", Dtype::U8, [3], Located::new(file, &path, 4..7));
/// let checkpoint = Checkpoint::from_tensors(vec![tensor])?;
/// assert_eq!(checkpoint.read("w")?, [1, 2, 3]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Located {
    source: Arc<dyn ReadAt>,
    path: PathBuf,
    range: Range<u64>,
}

impl Located {
    /// The bytes of `range` in a source, which errors call `path`.
    pub fn new(source: Arc<dyn ReadAt>, path: impl Into<PathBuf>, range: Range<u64>) -> Self {
        Self {
            source,
            path: path.into(),
            range,
        }
    }

    fn lies_at(&self) -> Extent<'_> {
        Extent {
            source: &self.source,
            path: &self.path,
            start: self.range.start,
            len: self.range.end.saturating_sub(self.range.start),
        }
    }
}

impl TensorData for Located {
    fn byte_len(&self) -> Option<u64> {
        Some(self.lies_at().len)
    }

    fn extent(&self) -> Option<Extent<'_>> {
        Some(self.lies_at())
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        write_extent(&self.lies_at(), range, write)
    }
}

/// Bytes that are read, and then given away, at a time.
const PIECE: u64 = 8 << 20;

/// Gives a range of an extent: from memory where it lies there, else in pieces of 8 MiB.
///
/// # Errors
/// As [`TensorData::write_range`], with the path; `file-changed`.
pub(crate) fn write_extent(
    extent: &Extent<'_>,
    range: Range<u64>,
    write: &mut WriteBytes<'_>,
) -> Result<()> {
    let extent = extent.part(range.start, range.end.saturating_sub(range.start));
    if let Some(bytes) = extent.bytes() {
        return write(bytes);
    }
    let read = read_through(&**extent.source, extent.range(), PIECE, write);
    let read = read.and_then(|()| extent.source.check_unchanged());
    read.map_err(|error| error.at_path(extent.path))
}
