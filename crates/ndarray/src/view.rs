//! Tensors that lie in memory already, used where they lie.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView, CowArray, Dimension};
use safeshard_core::{Checkpoint, Code, Error, Extent, ReadAt, Result};
use yoke::Yoke;

use crate::dyn_array::dtype_mismatch;
use crate::shape::{dimension, view_of};
use crate::{Element, tensor};

/// As [`CheckpointExt::view`](crate::CheckpointExt::view).
pub(crate) fn view<'c, A: Element, D: Dimension>(
    checkpoint: &'c Checkpoint,
    name: &str,
) -> Result<ArrayView<'c, A, D>> {
    let view = || {
        let (shape, extent) = place::<A>(checkpoint, name)?;
        view_of(
            dimension(shape)?,
            elements(&**extent.source, &extent.range())?,
        )
    };
    view().map_err(|error| error.in_tensor(name))
}

/// As [`CheckpointExt::cow`](crate::CheckpointExt::cow).
pub(crate) fn cow<'c, A: Element, D: Dimension>(
    checkpoint: &'c Checkpoint,
    name: &str,
) -> Result<CowArray<'c, A, D>> {
    match view(checkpoint, name) {
        Ok(view) => Ok(view.into()),
        Err(error) if matches!(error.code(), Code::Misaligned | Code::NotInMemory) => {
            tensor(checkpoint, name).map(CowArray::from)
        }
        Err(error) => Err(error),
    }
}

/// An array that owns the memory it lies in together with others: the mapping of a file, or the bytes of
/// one. [`CheckpointExt::mapped`](crate::CheckpointExt::mapped) makes it.
///
/// It outlives the checkpoint, can be sent to other threads and shared by them. Clones are cheap. The
/// mapping is gone with the last array of it.
///
/// ```
/// use ndarray::{Ix2, arr2};
/// use safeshard_ndarray::{Checkpoint, CheckpointExt};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// # safeshard_ndarray::write_array(&path, "w", &arr2(&[[1f32, 2.], [3., 4.]]))?;
/// let checkpoint = Checkpoint::from_bytes(std::fs::read(&path).unwrap())?;
/// let w = checkpoint.mapped::<f32, Ix2>("w")?;
/// drop(checkpoint);
/// let sum = std::thread::spawn(move || w.view().sum()).join().unwrap();
/// assert_eq!(sum, 10.);
/// # Ok::<(), safeshard_ndarray::Error>(())
/// ```
#[derive(Clone)]
pub struct MappedArray<A: Element, D> {
    elements: Yoke<&'static [A], Arc<dyn ReadAt>>,
    dim: D,
}

impl<A: Element, D: Dimension> MappedArray<A, D> {
    pub(crate) fn new(checkpoint: &Checkpoint, name: &str) -> Result<Self> {
        let make = || {
            let (shape, extent) = place::<A>(checkpoint, name)?;
            let dim: D = dimension(shape)?;
            let (source, range) = (Arc::clone(extent.source), extent.range());
            let elements: Yoke<&'static [A], _> =
                Yoke::try_attach_to_cart(source, |source| elements(source, &range))?;
            view_of(dim.clone(), elements.get())?;
            Ok(Self { elements, dim })
        };
        make().map_err(|error: Error| error.in_tensor(name))
    }

    /// Its elements. Copies nothing and checks nothing again.
    pub fn view(&self) -> ArrayView<'_, A, D> {
        let elements: &[A] = self.elements.get();
        let view = ArrayView::from_shape(self.dim.clone(), elements);
        view.expect("the shape was checked when the array was made")
    }

    /// Its dimensions, outermost first; none for a scalar.
    pub fn shape(&self) -> &[usize] {
        self.dim.slice()
    }
}

impl<A: Element, D: Dimension> fmt::Debug for MappedArray<A, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedArray({} {:?})", A::DTYPE, self.shape())
    }
}

/// The shape of a tensor with elements of type `A`, and where it lies.
fn place<'c, A: Element>(
    checkpoint: &'c Checkpoint,
    name: &str,
) -> Result<(&'c [u64], Extent<'c>)> {
    let info = checkpoint.info(name)?;
    match info.dtype == A::DTYPE {
        true => Ok((info.shape, checkpoint.extent(name)?)),
        false => Err(dtype_mismatch::<A>(info.dtype)),
    }
}

fn elements<'s, A: Element>(source: &'s dyn ReadAt, place: &Range<u64>) -> Result<&'s [A]> {
    let all = source
        .as_bytes()
        .ok_or_else(|| Error::new(Code::NotInMemory))?;
    let start = usize::try_from(place.start).ok();
    let range = start.zip(usize::try_from(place.end).ok());
    let bytes = range.and_then(|(start, end)| all.get(start..end));
    // A source of the user's own may say one length and have another.
    let short = || Error::new(Code::FileTruncated).at_offset(all.len() as u64);
    A::from_bytes(bytes.ok_or_else(short)?)
}
