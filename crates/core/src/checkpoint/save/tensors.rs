//! Tensors that are to be saved, however they are kept: a million of them need not all be described at
//! once.

use std::ops::Deref;

use super::SaveTensor;
use crate::format::write::NewTensor;
use crate::io::data::TensorData;

/// Tensors that are to be saved, at positions from 0 on.
pub(in crate::checkpoint) trait Tensors: Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// What a header says of one.
    fn described(&self, at: usize) -> Option<NewTensor<'_>>;

    /// The bytes of one.
    fn data(&self, at: usize) -> Option<Data<'_>>;

    /// Whether it is known that no two have one name, and that none are tied.
    fn are_distinct(&self) -> bool {
        false
    }

    /// Which of them go into which file, where it is not for the options to say; only of
    /// those that are not tied.
    fn shards(&self) -> Option<Vec<Vec<u32>>> {
        None
    }
}

/// The bytes of a tensor.
pub(in crate::checkpoint) enum Data<'t> {
    /// Of a tensor that is kept.
    Kept(&'t (dyn TensorData + 't)),
    /// Of one that is only looked at.
    Made(Box<dyn TensorData + 't>),
}

impl<'t> Deref for Data<'t> {
    type Target = dyn TensorData + 't;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Kept(data) => *data,
            Self::Made(data) => &**data,
        }
    }
}

impl Tensors for Vec<SaveTensor<'_>> {
    fn len(&self) -> usize {
        self.len()
    }

    fn described(&self, at: usize) -> Option<NewTensor<'_>> {
        self.get(at).map(SaveTensor::described)
    }

    fn data(&self, at: usize) -> Option<Data<'_>> {
        self.get(at).map(|tensor| Data::Kept(&*tensor.data))
    }
}

/// A tensor on its way into a file.
pub(super) struct Item<'t> {
    pub(super) tensor: NewTensor<'t>,
    pub(super) data: Data<'t>,
}

impl<'t> Item<'t> {
    /// The tensor at a position.
    pub(super) fn of(tensors: &'t dyn Tensors, at: usize) -> Option<Self> {
        Some(Self {
            tensor: tensors.described(at)?,
            data: tensors.data(at)?,
        })
    }
}
