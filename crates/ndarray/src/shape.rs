//! Shapes of the format as ndarray's dimensions.

use ndarray::{Array, ArrayView, Dimension, IxDyn, ShapeError};
use safeshard_core::{Code, Error, Result};

use crate::dyn_array::rank_mismatch;

/// The dimensions of a tensor.
pub(crate) fn dimension<D: Dimension>(shape: &[u64]) -> Result<D> {
    let dims: Result<Vec<usize>, _> = shape.iter().map(|&dim| dim.try_into()).collect();
    let dims =
        dims.map_err(|_| Error::new(Code::ShapeOverflow).found(format_args!("{shape:?}")))?;
    D::from_dimension(&IxDyn(&dims)).ok_or_else(|| rank_mismatch::<D>(dims.len()))
}

/// An array that owns these elements.
pub(crate) fn array_of<A, D: Dimension>(dim: D, elements: Vec<A>) -> Result<Array<A, D>> {
    Array::from_shape_vec(dim, elements).map_err(refused)
}

/// An array of elements that lie elsewhere.
pub(crate) fn view_of<A, D: Dimension>(dim: D, elements: &[A]) -> Result<ArrayView<'_, A, D>> {
    // ndarray takes too many elements for enough.
    if dim.size_checked() != Some(elements.len()) {
        return Err(Error::new(Code::BufferSize).found(elements.len()));
    }
    ArrayView::from_shape(dim, elements).map_err(refused)
}

/// What ndarray refuses, such as a shape whose dimensions other than 0 overflow.
fn refused(error: ShapeError) -> Error {
    Error::new(Code::Framework).found(error)
}
