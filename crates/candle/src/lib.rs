//! Safetensors files and sharded checkpoints in candle: safely, at the speed of memory, with a report.
//!
//! - [`var_builder()`] gives an ordinary `VarBuilder<'static>`. As all entry points do, it takes a path (a file,
//!   an index or a folder) or an open [`Checkpoint`].
//! - [`Weights`] is the same as a handle: options, names, several builders, parts of tensors, and
//!   afterwards a [`LoadReport`] of what was missing, unused and cast.
//! - [`Weights::sharded_var_builder`] serves tensor-parallel models; each rank reads only its bytes.
//! - [`load()`] and [`load_with`] read everything at once; [`tensor()`] and [`slice()`] one or part of one.
//! - [`VarMapExt`] loads into the variables of a `VarMap`, all or nothing, builds one, or saves one.
//! - [`save()`] and [`save_with`] write a file, or shards with an index, from where the tensors lie in
//!   memory; a reader finds the old checkpoint or the new one at every instant.
//! - [`support`] says which dtypes candle has and what the others can be widened to.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use safeshard_candle::Weights;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path();
//! let weight = Tensor::ones((2, 3), DType::BF16, &Device::Cpu)?;
//! weight.save_safetensors("proj.weight", path.join("model.safetensors"))?;
//!
//! let weights = Weights::open(path)?;
//! let vb = weights.var_builder(DType::F32, &Device::Cpu);
//! let layer = candle_nn::linear_no_bias(3, 2, vb.pp("proj"))?;
//! assert_eq!(layer.weight().to_vec2::<f32>()?, [[1.; 3]; 2]);
//! println!("{}", weights.report()); // 1 tensors loaded; 1 cast
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod bytes;
mod dtype;
mod load;
mod load_into;
mod outlook;
mod prefetch;
mod progress;
mod save;
mod tensor;
mod tensor_parallel;
mod usage;
mod var_builder;
mod var_map;
mod weights;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use dtype::{floats_as, from_candle, support, to_candle};
pub use load::{load, load_with, slice, tensor, var_builder};
pub use safeshard_core::{
    Checkpoint, DimRange, Error, IntoCheckpoint, LoadOptions, LoadReport, Result, SaveOptions,
    SaveReport, Support, Unsupported,
};
pub use save::{save, save_with, tensor_to_save};
pub use tensor_parallel::TensorParallel;
pub use var_map::{Fit, VarMapExt};
pub use weights::Weights;

/// A lock that a panic elsewhere does not break: what it guards is always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The example of README, which is run as all others are.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
