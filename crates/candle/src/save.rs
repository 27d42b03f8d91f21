//! Tensors into files: borrowed where they lie in memory as they are stored, else piece by piece.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Storage, Tensor};
use safeshard_core::{
    Code, Dtype, Error, Result, SaveOptions, SaveReport, SaveTensor, TensorData, WriteBytes, gather,
};

use crate::bytes::{Span, storage_bytes};
use crate::dtype::from_candle;
use crate::tensor::framework;

/// Saves tensors under their names: a `HashMap`, a `BTreeMap`, a `Vec` of pairs or any other iterator,
/// owned or borrowed. A path that ends in `.safetensors` is one file; any other is a folder, made if
/// need be, with one file or, above 5 GB, shards and an index as transformers writes them.
///
/// - At every instant, whoever reads `path` finds what was there before or what is saved now, whole.
///   When the call returns, everything is on the medium.
/// - Tensors that lie in the CPU's memory in row-major order are written from there. Views with
///   strides (transposed, narrowed, broadcast) and tensors on other devices are copied, 8 MiB at a
///   time; the report names them as materialised. Otherwise it takes the memory that
///   [`safeshard_core::save`] takes.
/// - Tied tensors, which are the same bytes under several names, are stored once; [`load`](crate::load())
///   gives them back under all names.
/// - The result does not depend on the order of the iterator: tensors are taken in natural order
///   (`layer.2` before `layer.10`). For an order of your own, pass what [`tensor_to_save`] makes to
///   [`safeshard_core::save`].
/// - A variable on the CPU that another thread sets meanwhile is saved as it is before or after;
///   setting it waits until it is written.
///
/// # Errors
/// As [`safeshard_core::save`] and [`tensor_to_save`]. What was there before stays.
///
/// ```
/// use std::collections::HashMap;
/// use candle_core::{DType, Device, Tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model");
/// let embed = Tensor::ones((2, 3), DType::BF16, &Device::Cpu)?;
/// let tensors = HashMap::from([
///     ("embed.weight".to_string(), embed.clone()),
///     ("head.weight".to_string(), embed), // tied: stored once
/// ]);
/// let report = safeshard_candle::save(&tensors, &path)?;
/// assert_eq!(report.total_size, 2 * 3 * 2);
/// assert_eq!(report.aliases["head.weight"], "embed.weight");
///
/// let loaded = safeshard_candle::load(&path, &Device::Cpu)?;
/// assert_eq!(loaded["head.weight"].dims(), [2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save<N, T>(
    tensors: impl IntoIterator<Item = (N, T)>,
    path: impl AsRef<Path>,
) -> Result<SaveReport>
where
    N: AsRef<str>,
    T: AsRef<Tensor>,
{
    save_with(tensors, path, &SaveOptions::default())
}

/// As [`save`], with options: size and names of shards, metadata, whose spelling of the index, what
/// becomes of ties, when it returns.
///
/// # Errors
/// As [`save`].
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use safeshard_candle::{SaveOptions, save_with};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path();
/// let w = Tensor::zeros((250, 100), DType::F32, &Device::Cpu)?;
/// let options = SaveOptions {
///     max_shard_size: "100KB".parse()?,
///     ..SaveOptions::default()
/// };
/// let report = save_with([("a", &w), ("b", &w.t()?)], path, &options)?;
/// assert_eq!(report.files.len(), 2);
/// assert_eq!(report.index.as_deref(), Some("model.safetensors.index.json"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save_with<N, T>(
    tensors: impl IntoIterator<Item = (N, T)>,
    path: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<SaveReport>
where
    N: AsRef<str>,
    T: AsRef<Tensor>,
{
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| tensor_to_save(name.as_ref(), tensor.as_ref()));
    safeshard_core::save(SaveTensor::in_natural_order(tensors)?, path, options)
}

/// A tensor for [`safeshard_core::save`] and [`safeshard_core::write_to`], for those who decide the
/// order themselves or mix candle's tensors with others. It shares the tensor's memory.
///
/// # Errors
/// - `unsupported-dtype`: a dtype of candle's that the format lacks.
/// - `slice-sub-byte`: part of a tensor of `F4`, `F6_E2M3` or `F6_E3M2` that does not begin and end
///   on a whole byte.
/// - `framework`: a view with strides of one of these or of `F8_E8M0`, which candle cannot copy; or
///   a storage that is smaller than the tensor's shape.
pub fn tensor_to_save(name: impl Into<String>, tensor: &Tensor) -> Result<SaveTensor<'static>> {
    let name = name.into();
    let found = tensor.dtype().as_str();
    let unknown = || Error::new(Code::UnsupportedDtype).in_tensor(&name);
    let dtype = from_candle(tensor.dtype()).ok_or_else(|| unknown().found(found))?;
    let shape: Vec<_> = tensor.dims().iter().map(|&dim| dim as u64).collect();
    // Without its history, which would be kept alive and grow with every piece.
    let tensor = tensor.detach();
    if tensor.device().is_cpu() && tensor.is_contiguous() {
        let memory = Memory::new(dtype, tensor).map_err(|error| error.in_tensor(&name))?;
        return Ok(SaveTensor::new(name, dtype, shape, memory));
    }
    if !is_copied(dtype) && !tensor.is_contiguous() {
        let error = Error::new(Code::Framework).in_tensor(name);
        return Err(error
            .found(format_args!("{dtype} in a view with strides"))
            .help(
                "candle does not copy elements of this dtype: save the tensor that it is a view of",
            ));
    }
    Ok(SaveTensor::new(
        name,
        dtype,
        shape,
        Pieces { dtype, tensor },
    ))
}

/// Whether candle makes views of this dtype contiguous.
fn is_copied(dtype: Dtype) -> bool {
    use Dtype::{F4, F6E2M3, F6E3M2, F8E8M0};
    !matches!(dtype, F4 | F6E2M3 | F6E3M2 | F8E8M0)
}

/// A tensor that lies in the CPU's memory as a file holds it.
struct Memory {
    tensor: Tensor,
    span: Span,
}

impl Memory {
    /// `tensor` is on the CPU and contiguous.
    fn new(dtype: Dtype, tensor: Tensor) -> Result<Self> {
        let span = Span::of(dtype, &tensor)?;
        let memory = Self { tensor, span };
        memory.with_bytes(|_| ())?;
        Ok(memory)
    }

    /// Lends the bytes. Whoever wants to set the tensor waits meanwhile.
    fn with_bytes<R>(&self, lend: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let (storage, _) = self.tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => self.span.of_bytes(storage_bytes(storage)).map(lend),
            _ => Err(Error::new(Code::Framework).found("a storage that is not the CPU's")),
        }
    }
}

impl TensorData for Memory {
    fn byte_len(&self) -> Option<u64> {
        Some(self.span.len() as u64)
    }

    fn place(&self) -> Option<Range<usize>> {
        let address = self.with_bytes(|bytes| bytes.as_ptr().addr()).ok()?;
        // What has no bytes shares none, whatever its address.
        (self.span.len() > 0).then(|| address..address + self.span.len())
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        self.with_bytes(|bytes| bytes.write_range(range, write))?
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        self.with_bytes(|bytes| bytes.read_at(offset, buf))?
    }
}

/// A tensor on another device, or a view with strides.
struct Pieces {
    dtype: Dtype,
    tensor: Tensor,
}

impl Pieces {
    /// Gives a part that candle may have to copy, in row-major order.
    fn write(
        &self,
        part: candle_core::Result<Tensor>,
        range: Range<u64>,
        write: &mut WriteBytes<'_>,
    ) -> Result<()> {
        let tensor = part.and_then(|part| part.to_device(&Device::Cpu));
        let tensor = tensor.map_err(|error| framework(&error))?;
        Memory::new(self.dtype, tensor)?.write_range(range, write)
    }
}

impl TensorData for Pieces {
    fn byte_len(&self) -> Option<u64> {
        self.dtype.byte_len(&[self.tensor.elem_count() as u64])
    }

    fn is_materialised(&self) -> bool {
        true
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let size = self.dtype.size().filter(|_| is_copied(self.dtype));
        let Some(size) = size else {
            // On another device, and in order: candle fetches all of it.
            return self.write(Ok(self.tensor.clone()), range, write);
        };
        let copy = |ranges: &[Range<u64>], write: &mut WriteBytes<'_>| {
            let narrowed = |part: Tensor, (dim, range): (usize, &Range<u64>)| {
                let (start, len) = (range.start as usize, (range.end - range.start) as usize);
                part.narrow(dim, start, len)
            };
            let part = ranges
                .iter()
                .enumerate()
                .try_fold(self.tensor.clone(), narrowed);
            // By a copy of its own, because candle fetches a whole storage, whatever part of it a
            // tensor is.
            let part = part.and_then(|part| part.force_contiguous());
            self.write(part, 0..u64::MAX, write)
        };
        let shape: Vec<_> = self.tensor.dims().iter().map(|&dim| dim as u64).collect();
        gather(&shape, size, range, copy, write)
    }
}
