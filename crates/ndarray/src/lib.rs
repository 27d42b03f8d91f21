//! Safetensors files and sharded checkpoints in ndarray.
//!
//! - [`load()`] and [`load_with`] read a whole checkpoint, every array as a [`DynArray`]. As all entry points do,
//!   they take a path (a file, an index or a folder) or an open [`Checkpoint`].
//! - [`tensor()`] and [`slice()`] read one tensor or part of one, [`dyn_tensor`] one of any dtype and rank.
//! - [`CheckpointExt::view`] and its kin give the tensors of a mapped checkpoint, or of one in memory,
//!   where they lie.
//! - [`save()`] and [`save_with`] save arrays of any layout; [`write_array`] saves one.
//! - [`Element`] is the table of element types.
//!
//! ```
//! use ndarray::{Array2, Ix2};
//! use safeshard_ndarray::bf16;
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path();
//! let weight = Array2::from_elem((2, 3), bf16::ONE);
//! safeshard_ndarray::save([("proj.weight", &weight)], path)?;
//!
//! let loaded = safeshard_ndarray::tensor::<bf16, Ix2>(path, "proj.weight")?;
//! assert_eq!(loaded, weight);
//! # Ok::<(), safeshard_ndarray::Error>(())
//! ```
#![forbid(unsafe_code)]

mod dyn_array;
mod eight_bit;
mod element;
mod load;
mod save;
mod shape;
mod slice;
mod view;

pub use dyn_array::{DynArray, PackedArray};
pub use eight_bit::{F8E4M3Fnuz, F8E5M2Fnuz, F8E8M0};
pub use element::Element;
pub use float8::{F8E4M3, F8E5M2};
pub use half::{bf16, f16};
pub use load::{CheckpointExt, dyn_tensor, load, load_with, slice, tensor};
pub use num_complex::Complex32;
pub use safeshard_core::{
    Checkpoint, Code, DimRange, Dtype, Error, IntoCheckpoint, Io, LoadOptions, LoadReport,
    OpenOptions, Result, SaveOptions, SaveReport,
};
pub use save::{IntoTensor, save, save_with, tensor_to_save, write_array};
pub use view::MappedArray;

/// The example of README, which is run as all others are.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
