//! Tensors into files: borrowed where they lie in memory as they are stored, else piece by piece.

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use safeshard_core::{
    Code, Dtype, Error, Result, SaveOptions, SaveReport, SaveTensor, TensorData, WriteBytes, gather,
};
use tch::{Device, Kind, TchError, Tensor};

use crate::blob::memory::{self, Gathered, Memory, check_storage};
use crate::dtype::{Layout, dtype_of, framework, stored_shape};

/// Saves tensors under their names: a `HashMap`, a `BTreeMap`, a `Vec` of pairs or any other iterator,
/// owned or borrowed. A path that ends in `.safetensors` is one file; any other is a folder, made if
/// need be, with one file or, above 5 GB, shards and an index as transformers writes them.
///
/// - At every instant, whoever reads `path` finds what was there before or what is saved now, whole.
///   When the call returns, everything is on the medium.
/// - Tensors that lie in the CPU's memory in row-major order are written from there. Others (strides, a
///   GPU, complex numbers that libtorch conjugates lazily) are copied, 8 MiB at a time, whatever the size
///   of the storage that they are a view of; the report names them as materialised. Otherwise it takes
///   the memory that [`safeshard_core::save`] takes.
/// - Tied tensors, which are the same bytes under several names, are stored once; [`load`](crate::load())
///   gives them back under all names. Slices of one storage are not tied.
/// - The result does not depend on the order of the iterator: tensors are taken in natural order
///   (`layer.2` before `layer.10`). For an order of your own, pass what [`tensor_to_save`] makes to
///   [`safeshard_core::save`].
/// - They may be tensors that are [mapped](crate::map()) from the very files that are replaced.
///
/// Whoever changes a tensor in place meanwhile, from another thread, gets a mixture; whoever makes one
/// larger there (`resize_`), a data race, as with every operation of libtorch. Progress of a save is told by
/// the threads that save.
///
/// # Errors
/// As [`safeshard_core::save`] and [`tensor_to_save`]. What was there before stays.
///
/// ```
/// use std::collections::HashMap;
/// use tch::{Device, Kind, Tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model");
/// let embed = Tensor::ones([2, 3], (Kind::BFloat16, Device::Cpu));
/// let tensors = HashMap::from([
///     ("embed.weight", embed.shallow_clone()),
///     ("head.weight", embed), // tied: stored once
/// ]);
/// let report = safeshard_tch::save(&tensors, &path)?;
/// assert_eq!(report.total_size, 2 * 3 * 2);
/// assert_eq!(report.aliases["head.weight"], "embed.weight");
/// # Ok::<(), safeshard_tch::Error>(())
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
/// use safeshard_tch::{SaveOptions, save_with};
/// use tch::{Device, Kind, Tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path();
/// let w = Tensor::zeros([250, 100], (Kind::Float, Device::Cpu));
/// let options = SaveOptions {
///     max_shard_size: "100KB".parse()?,
///     ..SaveOptions::default()
/// };
/// let report = save_with([("a", &w), ("b", &w.tr())], path, &options)?;
/// assert_eq!(report.index.as_deref(), Some("model.safetensors.index.json"));
/// assert_eq!(report.materialised, ["b"]);
/// # Ok::<(), safeshard_tch::Error>(())
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
    memory::save(path.as_ref(), options, |lender| {
        let tensors = tensors.into_iter().map(|(name, tensor)| {
            describe(name.as_ref().to_owned(), tensor.as_ref(), |memory| {
                Box::new(lender.lend(memory))
            })
        });
        SaveTensor::in_natural_order(tensors)
    })
}

/// A tensor for [`safeshard_core::save`] and [`safeshard_core::write_to`], for those who decide the
/// order themselves or mix tch's tensors with others. It shares the tensor's memory, also when that is moved
/// to another place, by `resize_` for example: then it is read from there.
///
/// Nobody knows what is done with its bytes while they are given away, so they are copied first, 512 KiB at
/// a time; [`save`] can do without.
///
/// # Errors
/// - `unsupported-dtype`: a kind that the format lacks (quantised, `ComplexHalf`, `ComplexDouble`).
/// - `framework`: a sparse tensor, one that is not defined, or a layout of a library's own.
pub fn tensor_to_save(name: impl Into<String>, tensor: &Tensor) -> Result<SaveTensor<'static>> {
    describe(name.into(), tensor, |memory| Box::new(memory))
}

fn describe<'d>(
    name: String,
    tensor: &Tensor,
    of_memory: impl FnOnce(Memory) -> Box<dyn TensorData + 'd>,
) -> Result<SaveTensor<'d>> {
    let described = described(tensor, of_memory);
    let (dtype, shape, data) = described.map_err(|error| error.in_tensor(&name))?;
    Ok(SaveTensor {
        name,
        dtype,
        shape,
        data,
    })
}

fn described<'d>(
    tensor: &Tensor,
    of_memory: impl FnOnce(Memory) -> Box<dyn TensorData + 'd>,
) -> Result<(Dtype, Vec<u64>, Box<dyn TensorData + 'd>)> {
    let dtype = dtype_of(tensor)?;
    if tensor.is_sparse() || tensor.is_mkldnn() {
        return Err(Error::new(Code::Framework)
            .found("a tensor that is not dense")
            .help("`to_dense` makes it so"));
    }
    let shape = stored_shape(dtype, tensor)?;
    let layout = Layout::new(dtype, &shape)?;
    if tensor.device() == Device::Cpu && lies_as_stored(tensor) {
        let memory = Memory::new(tensor, &layout)?;
        return Ok((dtype, shape, of_memory(memory)));
    }
    // Without its history, which would be kept alive and grow with every piece.
    let tensor = tensor.f_detach().map_err(|error| framework(&error))?;
    let pieces = Pieces {
        element_size: layout.alignment(),
        byte_len: layout.byte_len,
        tensor: Mutex::new(tensor),
    };
    Ok((dtype, shape, Box::new(pieces)))
}

fn lies_as_stored(tensor: &Tensor) -> bool {
    tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg()
}

/// A tensor on another device, with strides, or with elements that are yet to be computed.
struct Pieces {
    /// Bytes of an element of libtorch's; of `F4`, a pair is one.
    element_size: usize,
    byte_len: usize,
    tensor: Mutex<Tensor>,
}

impl Pieces {
    /// The elements as integers of their size, which libtorch copies whatever they mean.
    fn bits(&self, part: &Tensor) -> Result<Tensor, TchError> {
        // Numbers that are conjugated or negated lazily have to be what they say first.
        let plain = part.f_resolve_conj()?.f_resolve_neg()?;
        plain.f_view_dtype(match self.element_size {
            8 => Kind::Int64,
            4 => Kind::Int,
            2 => Kind::Int16,
            _ => Kind::Uint8,
        })
    }
}

impl TensorData for Pieces {
    fn byte_len(&self) -> Option<u64> {
        Some(self.byte_len as u64)
    }

    fn is_materialised(&self) -> bool {
        true
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let tensor = self.tensor.lock().unwrap_or_else(PoisonError::into_inner);
        check_storage(&tensor, self.element_size)?;
        let refused = |error: TchError| framework(&error);
        let mut gathered = Gathered::default();
        let copy = |ranges: &[Range<u64>], write: &mut WriteBytes<'_>| {
            // Somebody may have cut the storage off while the piece before was written.
            check_storage(&tensor, self.element_size)?;
            let narrowed = |part: Tensor, (range, dim): (&Range<u64>, i64)| {
                let (start, len) = (range.start as i64, (range.end - range.start) as i64);
                part.f_narrow(dim, start, len)
            };
            let part = ranges
                .iter()
                .zip(0..)
                .try_fold(tensor.shallow_clone(), narrowed);
            let bits = part.and_then(|part| self.bits(&part)).map_err(refused)?;
            write(gathered.bytes_of(&bits).map_err(refused)?)
        };
        let shape: Vec<_> = tensor.size().iter().map(|dim| dim.unsigned_abs()).collect();
        gather(&shape, self.element_size as u64, range, copy, write)
    }
}
