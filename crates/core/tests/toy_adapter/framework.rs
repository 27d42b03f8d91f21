//! A toy framework: tensors of `f32` or `i64` with strides, whose memory clones and views share.

use std::ops::Range;
use std::sync::Arc;

/// The memory of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Storage {
    F32(Arc<Vec<f32>>),
    I64(Arc<Vec<i64>>),
}

/// A view of a storage.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) storage: Storage,
    pub(crate) shape: Vec<usize>,
    /// In elements.
    pub(crate) strides: Vec<usize>,
    pub(crate) offset: usize,
}

impl Tensor {
    pub(crate) fn new(storage: Storage, shape: Vec<usize>) -> Self {
        let step = |dim: usize| shape[dim + 1..].iter().product();
        Self {
            strides: (0..shape.len()).map(step).collect(),
            storage,
            shape,
            offset: 0,
        }
    }

    pub(crate) fn transposed(&self) -> Self {
        let mut transposed = self.clone();
        transposed.shape.reverse();
        transposed.strides.reverse();
        transposed
    }

    pub(crate) fn narrow(&self, dim: usize, range: Range<usize>) -> Self {
        let mut part = self.clone();
        part.offset += range.start * part.strides[dim];
        part.shape[dim] = range.len();
        part
    }

    /// The bytes of its elements in row-major order: what every framework can copy.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut places = vec![self.offset];
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            let along = |place: usize| (0..size).map(move |index| place + index * stride);
            places = places.into_iter().flat_map(along).collect();
        }
        let places = places.into_iter();
        match &self.storage {
            Storage::F32(memory) => places.flat_map(|at| memory[at].to_le_bytes()).collect(),
            Storage::I64(memory) => places.flat_map(|at| memory[at].to_le_bytes()).collect(),
        }
    }
}
