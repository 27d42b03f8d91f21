//! Everything at once, or one tensor, or part of one.

use std::collections::HashMap;

use ndarray::{Array, ArrayView, CowArray, Dimension, SliceInfoElem};
use safeshard_core::{
    Checkpoint, DimRange, IntoCheckpoint, LoadOptions, LoadReport, Planned, ReadOptions, Result,
    Support, TypedVec, Unsupported,
};

use crate::dyn_array::{dtype_mismatch, with_rank};
use crate::shape::{array_of, dimension};
use crate::slice::Part;
use crate::{DynArray, Element, MappedArray, view};

/// All tensors of a checkpoint, as they are stored: of one at a path (a file, an index or a folder), or of one
/// that is open already.
///
/// Each byte is copied once, from the file into the array's own memory, by a few threads; for N bytes
/// of tensors the peak is N and little more. Tied tensors that were stored once share their elements.
///
/// # Errors
/// As [`Checkpoint::open`]; `cast-value` where a `BOOL` is neither 0 nor 1; or what reading meets. Then
/// nothing is handed out.
///
/// ```
/// use ndarray::{Array2, arr2};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// let w = arr2(&[[1f32, 2.], [3., 4.]]);
/// safeshard_ndarray::write_array(&path, "w", &w)?;
///
/// let mut arrays = safeshard_ndarray::load(&path)?;
/// let loaded: Array2<f32> = arrays.remove("w").unwrap().try_into()?;
/// assert_eq!(loaded, w);
/// # Ok::<(), safeshard_ndarray::Error>(())
/// ```
pub fn load(checkpoint: impl IntoCheckpoint) -> Result<HashMap<String, DynArray>> {
    let (arrays, _) = load_with(checkpoint, &LoadOptions::default())?;
    Ok(arrays)
}

/// As [`load`], with options: which tensors, under which names, in which dtype. The report says what
/// was cast and which names share a tensor.
///
/// # Errors
/// As [`load`]; `unsupported-cast`, `unknown-dtype`, `name-collision`, `cancelled`.
///
/// ```
/// use safeshard_ndarray::{Dtype, LoadOptions, bf16, load_with};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// # safeshard_ndarray::write_array(&path, "w", &ndarray::Array1::<bf16>::zeros(3))?;
/// let (arrays, report) = load_with(&path, &LoadOptions::floats_as(Dtype::F32))?;
/// assert_eq!(arrays["w"].dtype(), Dtype::F32);
/// println!("{report}"); // 1 tensors loaded; 1 cast
/// # Ok::<(), safeshard_ndarray::Error>(())
/// ```
pub fn load_with(
    checkpoint: impl IntoCheckpoint,
    options: &LoadOptions,
) -> Result<(HashMap<String, DynArray>, LoadReport)> {
    let checkpoint = checkpoint.into_checkpoint(&options.open)?;
    let plan = checkpoint.plan(options, |_| Support::Native)?;
    let read = checkpoint.read_planned(&plan.tensors, &options.read)?;
    let arrays = plan.tensors.iter().zip(read).map(|(planned, elements)| {
        let array = DynArray::from_read(planned.dtype, &planned.shape, elements);
        array.map_err(|error| error.in_tensor(&planned.name))
    });
    let arrays = arrays.collect::<Result<Vec<_>>>()?;
    Ok((plan.named(arrays, DynArray::clone), plan.report))
}

/// One tensor of a checkpoint, in an array of its own. One copy. Of shards with an index at a path, only the one
/// that holds it is opened. For more than one tensor, open a [`Checkpoint`].
///
/// # Errors
/// As [`Checkpoint::open`]; `tensor-missing`, `dtype-mismatch`, `rank-mismatch`, `cast-value` where a `BOOL` is
/// neither 0 nor 1, or what reading meets.
///
/// ```
/// use ndarray::{Ix1, Ix2, arr1, arr2, s};
/// use safeshard_ndarray::{slice, tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// # safeshard_ndarray::write_array(&path, "w", &arr2(&[[1f32, 2.], [3., 4.]]))?;
/// let w = tensor::<f32, Ix2>(&path, "w")?;
/// let column = slice::<f32, Ix1>(&path, "w", s![.., 1])?;
/// assert_eq!((column, w.column(0)), (arr1(&[2., 4.]), arr1(&[1., 3.]).view()));
/// # Ok::<(), safeshard_ndarray::Error>(())
/// ```
pub fn tensor<A: Element, D: Dimension>(
    checkpoint: impl IntoCheckpoint,
    name: &str,
) -> Result<Array<A, D>> {
    slice(checkpoint, name, [])
}

/// As [`tensor()`], of any dtype and rank.
///
/// # Errors
/// As [`tensor()`].
pub fn dyn_tensor(checkpoint: impl IntoCheckpoint, name: &str) -> Result<DynArray> {
    let (planned, elements) = read_one(&checkpoint.into_checkpoint_of(name)?, name, &[])?;
    let array = DynArray::from_read(planned.dtype, &planned.shape, elements);
    array.map_err(|error| error.in_tensor(name))
}

/// Part of one tensor of a checkpoint, as [`s!`](ndarray::s) spells it: ranges with steps, also backwards, indexes
/// that take an axis away, new axes. Axes behind the last one named are taken whole. Only the bytes of the
/// part are read, and small gaps between them.
///
/// # Errors
/// As [`tensor()`]; `slice-rank`, `slice-range`, `slice-reversed`, `slice-step`, where slicing an array would
/// panic.
pub fn slice<A: Element, D: Dimension>(
    checkpoint: impl IntoCheckpoint,
    name: &str,
    part: impl AsRef<[SliceInfoElem]>,
) -> Result<Array<A, D>> {
    let checkpoint = checkpoint.into_checkpoint_of(name)?;
    let info = checkpoint.info(name)?;
    let make = || {
        if info.dtype != A::DTYPE {
            return Err(dtype_mismatch::<A>(info.dtype));
        }
        let part = Part::new::<D>(info.shape, part.as_ref())?;
        let (planned, elements) = read_one(&checkpoint, name, &part.ranges)?;
        let array = array_of(dimension(&planned.shape)?, A::from_read(elements)?)?;
        with_rank(part.apply(array))
    };
    make().map_err(|error| error.in_tensor(name))
}

/// Tensors of an open [`Checkpoint`] that lie in memory already, by name or alias.
pub trait CheckpointExt {
    /// A tensor where it lies, of a checkpoint that is mapped ([`Io::mmap`](safeshard_core::Io::mmap))
    /// or was opened from bytes. Time: independent of its size, but for `BOOL`, where every byte is
    /// looked at.
    ///
    /// # Errors
    /// `tensor-missing`, `dtype-mismatch`, `rank-mismatch`; `not-in-memory` of a checkpoint that reads
    /// its files; `misaligned` where the tensor begins at a byte at which its elements cannot be used,
    /// which [`CheckpointExt::cow`] copies; `cast-value` where a `BOOL` is neither 0 nor 1.
    ///
    /// ```
    /// use ndarray::Ix1;
    /// use safeshard_ndarray::{Checkpoint, CheckpointExt, Io, OpenOptions};
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("model.safetensors");
    /// # safeshard_ndarray::write_array(&path, "w", &ndarray::arr1(&[1f32, 2.]))?;
    /// let options = OpenOptions {
    ///     // SAFETY: nobody writes to the file meanwhile.
    ///     io: unsafe { Io::mmap() },
    ///     ..OpenOptions::default()
    /// };
    /// let checkpoint = Checkpoint::open_with(&path, &options)?;
    /// assert_eq!(checkpoint.view::<f32, Ix1>("w")?.sum(), 3.);
    /// # Ok::<(), safeshard_ndarray::Error>(())
    /// ```
    fn view<A: Element, D: Dimension>(&self, name: &str) -> Result<ArrayView<'_, A, D>>;

    /// A tensor where it lies if that can be, otherwise in an array of its own.
    ///
    /// # Errors
    /// As [`tensor()`].
    fn cow<A: Element, D: Dimension>(&self, name: &str) -> Result<CowArray<'_, A, D>>;

    /// As [`CheckpointExt::view`], as a value that owns the mapping together with all others of it and
    /// does not borrow the checkpoint.
    ///
    /// # Errors
    /// As [`CheckpointExt::view`].
    fn mapped<A: Element, D: Dimension>(&self, name: &str) -> Result<MappedArray<A, D>>;
}

impl CheckpointExt for Checkpoint {
    fn view<A: Element, D: Dimension>(&self, name: &str) -> Result<ArrayView<'_, A, D>> {
        view::view(self, name)
    }

    fn cow<A: Element, D: Dimension>(&self, name: &str) -> Result<CowArray<'_, A, D>> {
        view::cow(self, name)
    }

    fn mapped<A: Element, D: Dimension>(&self, name: &str) -> Result<MappedArray<A, D>> {
        MappedArray::new(self, name)
    }
}

fn read_one(
    checkpoint: &Checkpoint,
    name: &str,
    ranges: &[DimRange],
) -> Result<(Planned, TypedVec)> {
    let refuse = Unsupported::Refuse;
    let planned = checkpoint.plan_one(name, ranges, None, refuse, |_| Support::Native)?;
    let only = std::slice::from_ref(&planned);
    let mut read = checkpoint.read_planned(only, &ReadOptions::default())?;
    Ok((planned, read.pop().unwrap_or(TypedVec::U8(Vec::new()))))
}
