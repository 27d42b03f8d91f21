//! Saving: tensors become one file, or shards with an index, such that every reader finds the old
//! checkpoint or the new one at every instant.

mod bridge;
mod change;
#[cfg_attr(not(test), expect(dead_code, reason = "saving will use it"))]
mod commit;
#[cfg_attr(not(test), expect(dead_code, reason = "saving will use it"))]
mod destination;
#[cfg_attr(not(test), expect(dead_code, reason = "saving will use it"))]
mod dialect;
pub(super) mod journal;
mod options;
#[cfg(test)]
mod oracle;
mod owned;
mod recover;
mod shard_size;
#[cfg_attr(not(test), expect(dead_code, reason = "saving will use it"))]
mod shards;
#[cfg(test)]
mod testing;
#[cfg_attr(not(test), expect(dead_code, reason = "saving will use it"))]
mod ties;

use std::fmt;

use crate::{Dtype, TensorData};

pub use options::{Dialect, Durability, SaveOptions, Sharding, Ties};
pub use shard_size::ShardSize;

/// A tensor that is to be saved.
pub struct SaveTensor<'t> {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; none for a scalar.
    pub shape: Vec<u64>,
    /// Its bytes: little-endian, row-major.
    pub data: Box<dyn TensorData + 't>,
}

impl<'t> SaveTensor<'t> {
    /// A tensor of these bytes.
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: impl Into<Vec<u64>>,
        data: impl TensorData + 't,
    ) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.into(),
            data: Box::new(data),
        }
    }
}

impl fmt::Debug for SaveTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaveTensor")
            .field("name", &self.name)
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}
