//! Arrays into files: from where they lie in memory as a file holds them, else piece by piece.

use std::ops::Range;
use std::path::Path;

use ndarray::{ArrayBase, ArrayRef, Data, Dimension, Slice};
use safeshard_core::{
    Code, Dtype, Error, Result, SaveOptions, SaveReport, SaveTensor, TensorData, WriteBytes, gather,
};

use crate::element::{for_each_element, sealed::Sealed};
use crate::{DynArray, Element};

/// Saves arrays under their names: a `HashMap`, a `BTreeMap`, a `Vec` of pairs or any other iterator;
/// arrays of one element type, owned, borrowed or views, or [`DynArray`]s for several. A path that ends
/// in `.safetensors` is one file; any other is a folder, made if need be, with one file or, above 5 GB,
/// shards and an index as transformers writes them.
///
/// - At every instant, whoever reads `path` finds what was there before or what is saved now, whole.
///   When the call returns, everything is on the medium.
/// - Arrays in standard layout are written from their own memory. Others (Fortran order, reversed axes,
///   broadcast) are put into row-major order, 8 MiB at a time; the report names them as materialised.
///   Otherwise it takes the memory that [`safeshard_core::save`] takes.
/// - Tied arrays, which are the same memory under several names, are stored once; [`load`](crate::load())
///   gives them back under all names.
/// - The result does not depend on the order of the iterator: arrays are taken in natural order
///   (`layer.2` before `layer.10`). For an order of your own, or several element types in one call, pass
///   what [`tensor_to_save`] makes to [`safeshard_core::save`].
///
/// # Errors
/// As [`safeshard_core::save`]. What was there before stays.
///
/// ```
/// use std::collections::HashMap;
/// use ndarray::{Array2, Ix2};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model");
/// let weight = Array2::from_shape_fn((2, 3), |(i, j)| (3 * i + j) as f32);
/// let arrays = HashMap::from([("w", weight.view()), ("transposed", weight.t())]);
/// let report = safeshard_ndarray::save(arrays, &path)?;
/// assert_eq!(report.materialised, ["transposed"]);
///
/// let loaded = safeshard_ndarray::tensor::<f32, Ix2>(&path, "transposed")?;
/// assert_eq!(loaded, weight.t());
/// # Ok::<(), safeshard_ndarray::Error>(())
/// ```
pub fn save<'t, N, T>(
    arrays: impl IntoIterator<Item = (N, T)>,
    path: impl AsRef<Path>,
) -> Result<SaveReport>
where
    N: AsRef<str>,
    T: IntoTensor<'t>,
{
    save_with(arrays, path, &SaveOptions::default())
}

/// As [`save`], with options: size and names of shards, metadata, whose spelling of the index, what
/// becomes of ties, when it returns.
///
/// # Errors
/// As [`save`].
///
/// ```
/// use ndarray::Array2;
/// use safeshard_ndarray::{SaveOptions, save_with};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path();
/// let options = SaveOptions {
///     max_shard_size: "100KB".parse()?,
///     ..SaveOptions::default()
/// };
/// let arrays = ["a", "b"].map(|name| (name, Array2::<f32>::zeros((250, 100))));
/// let report = save_with(arrays, path, &options)?;
/// assert_eq!(report.index.as_deref(), Some("model.safetensors.index.json"));
/// # Ok::<(), safeshard_ndarray::Error>(())
/// ```
pub fn save_with<'t, N, T>(
    arrays: impl IntoIterator<Item = (N, T)>,
    path: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<SaveReport>
where
    N: AsRef<str>,
    T: IntoTensor<'t>,
{
    let tensors = arrays
        .into_iter()
        .map(|(name, array)| Ok(tensor_to_save(name.as_ref(), array)));
    safeshard_core::save(SaveTensor::in_natural_order(tensors)?, path, options)
}

/// Saves one array: as [`save`].
///
/// # Errors
/// As [`save`].
///
/// ```
/// use ndarray::{Ix1, arr1};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("mask.safetensors");
/// safeshard_ndarray::write_array(&path, "mask", &arr1(&[true, false]))?;
/// let mask = safeshard_ndarray::tensor::<bool, Ix1>(&path, "mask")?;
/// assert_eq!(mask, arr1(&[true, false]));
/// # Ok::<(), safeshard_ndarray::Error>(())
/// ```
pub fn write_array<A: Element, D: Dimension>(
    path: impl AsRef<Path>,
    name: &str,
    array: &ArrayRef<A, D>,
) -> Result<SaveReport> {
    save([(name, array)], path)
}

/// An array for [`safeshard_core::save`] and [`safeshard_core::write_to`], for those who decide the
/// order themselves or mix arrays of several element types.
///
/// ```
/// use ndarray::{arr0, arr1};
/// use safeshard_ndarray::{SaveOptions, tensor_to_save};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path();
/// let weight = arr1(&[1f32, 2.]);
/// let tensors = vec![tensor_to_save("step", arr0(7i64)), tensor_to_save("weight", &weight)];
/// safeshard_core::save(tensors, path, &SaveOptions::default())?;
/// # Ok::<(), safeshard_ndarray::Error>(())
/// ```
pub fn tensor_to_save<'t>(name: impl Into<String>, array: impl IntoTensor<'t>) -> SaveTensor<'t> {
    array.into_tensor(name.into())
}

/// What can be saved: an array or view of [`Element`]s, owned or borrowed, or a [`DynArray`].
pub trait IntoTensor<'t> {
    /// As a tensor of this name. Copies nothing.
    fn into_tensor(self, name: String) -> SaveTensor<'t>;
}

impl<'t, S, D> IntoTensor<'t> for ArrayBase<S, D>
where
    S: Data<Elem: Element> + Send + Sync + 't,
    D: Dimension + 't,
{
    fn into_tensor(self, name: String) -> SaveTensor<'t> {
        tensor(name, S::Elem::DTYPE, shape(self.shape()), self)
    }
}

impl<'t, S, D> IntoTensor<'t> for &'t ArrayBase<S, D>
where
    S: Data<Elem: Element>,
    D: Dimension + 't,
{
    fn into_tensor(self, name: String) -> SaveTensor<'t> {
        self.view().into_tensor(name)
    }
}

impl<'t, A: Element, D: Dimension + 't> IntoTensor<'t> for &'t ArrayRef<A, D> {
    fn into_tensor(self, name: String) -> SaveTensor<'t> {
        self.view().into_tensor(name)
    }
}

macro_rules! dyn_array_into_tensor {
    ($($dtype:ident $type:ident $read:ident $kind:ident;)*) => {
        impl<'t> IntoTensor<'t> for DynArray {
            fn into_tensor(self, name: String) -> SaveTensor<'t> {
                match self {
                    $(Self::$dtype(array) => array.into_tensor(name),)*
                    Self::Packed(array) => {
                        let shape = shape(array.shape());
                        tensor(name, array.dtype(), shape, array.bytes().clone())
                    }
                }
            }
        }
    };
}

for_each_element!(dyn_array_into_tensor);

impl IntoTensor<'static> for &DynArray {
    fn into_tensor(self, name: String) -> SaveTensor<'static> {
        self.clone().into_tensor(name)
    }
}

fn shape(dims: &[usize]) -> Vec<u64> {
    dims.iter().map(|&dim| dim as u64).collect()
}

fn tensor<'t, S, D>(
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    array: ArrayBase<S, D>,
) -> SaveTensor<'t>
where
    S: Data<Elem: Element> + Send + Sync + 't,
    D: Dimension + 't,
{
    SaveTensor::new(name, dtype, shape, Elements(array))
}

/// An array as the bytes of its elements in row-major order.
struct Elements<S: Data, D>(ArrayBase<S, D>);

impl<S, D> TensorData for Elements<S, D>
where
    S: Data<Elem: Element> + Send + Sync,
    D: Dimension,
{
    fn byte_len(&self) -> Option<u64> {
        let size = size_of::<S::Elem>() as u64;
        (self.0.len() as u64).checked_mul(size)
    }

    fn place(&self) -> Option<Range<usize>> {
        let bytes = S::Elem::to_bytes(self.0.as_slice()?);
        let address = bytes.as_ptr().addr();
        // What has no bytes shares none, whatever its address.
        (!bytes.is_empty()).then(|| address..address + bytes.len())
    }

    fn is_materialised(&self) -> bool {
        !self.0.is_standard_layout()
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let array = &self.0;
        if let Some(elements) = array.as_slice() {
            return S::Elem::to_bytes(elements).write_range(range, write);
        }
        let size = size_of::<S::Elem>() as u64;
        let array = array.view().into_dyn();
        let copy = |ranges: &[Range<u64>], write: &mut WriteBytes<'_>| {
            let part = array.slice_each_axis(|axis| {
                let Range { start, end } = ranges[axis.axis.index()].clone();
                Slice::from(start as usize..end as usize)
            });
            let copy = part.as_standard_layout();
            let elements = copy.as_slice();
            let elements = elements.ok_or_else(|| Error::new(Code::Framework).found("a layout"))?;
            write(S::Elem::to_bytes(elements))
        };
        gather(&shape(array.shape()), size, range, copy, write)
    }
}
