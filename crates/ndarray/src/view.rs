//! Tensors that lie in memory already, used where they lie.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView, CowArray, Dimension};
use safeshard_core::{Checkpoint, Code, Error, ReadAt, Result, TensorInfo};
use yoke::Yoke;

use crate::dyn_array::dtype_mismatch;
use crate::shape::{dimension, view_of};
use crate::{CheckpointExt, Element};

/// As [`CheckpointExt::view`].
pub(crate) fn view<'c, A: Element, D: Dimension>(
    checkpoint: &'c Checkpoint,
    name: &str,
) -> Result<ArrayView<'c, A, D>> {
    let view = || {
        let place = Place::new::<A>(checkpoint, name)?;
        let dim = dimension(place.info.shape)?;
        view_of(dim, elements(&**place.source, &place.bytes)?)
    };
    view().map_err(|error| error.in_tensor(name))
}

/// As [`CheckpointExt::cow`].
pub(crate) fn cow<'c, A: Element, D: Dimension>(
    checkpoint: &'c Checkpoint,
    name: &str,
) -> Result<CowArray<'c, A, D>> {
    match view(checkpoint, name) {
        Ok(view) => Ok(view.into()),
        Err(error) if matches!(error.code(), Code::Misaligned | Code::NotInMemory) => {
            checkpoint.array(name).map(CowArray::from)
        }
        Err(error) => Err(error),
    }
}

/// An array that owns the memory it lies in together with others: the mapping of a file, or the bytes of
/// one. [`CheckpointExt::mapped`] makes it.
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
            let place = Place::new::<A>(checkpoint, name)?;
            let dim: D = dimension(place.info.shape)?;
            let source = Arc::clone(place.source);
            let elements: Yoke<&'static [A], _> =
                Yoke::try_attach_to_cart(source, |source| elements(source, &place.bytes))?;
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

/// Where a tensor lies.
struct Place<'c> {
    info: TensorInfo<'c>,
    source: &'c Arc<dyn ReadAt>,
    /// In the source.
    bytes: Range<u64>,
}

impl<'c> Place<'c> {
    /// Of a tensor with elements of type `A`.
    fn new<A: Element>(checkpoint: &'c Checkpoint, name: &str) -> Result<Self> {
        let info = checkpoint.info(name)?;
        if info.dtype != A::DTYPE {
            return Err(dtype_mismatch::<A>(info.dtype));
        }
        let file = checkpoint.file_of(name);
        let file = file.ok_or_else(|| Error::new(Code::TensorMissing))?;
        let start = file.header().data_start() + info.start;
        Ok(Self {
            info,
            source: file.source(),
            bytes: start..start + info.byte_len(),
        })
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
