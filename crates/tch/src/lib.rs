//! Safetensors files and sharded checkpoints in tch: without a wasted copy, with shards, and with a
//! `VarStore` that is loaded exactly or not at all.
//!
//! - [`load()`] and [`load_with`] read everything at once; [`tensor()`] and [`slice()`] one or part of one. As all
//!   entry points do, they take a path (a file, an index or a folder) or an open [`Checkpoint`].
//! - [`map()`] gives tensors that lie in their files, copied only where they are written to.
//! - [`VarStoreExt`] loads into the variables of a `VarStore`, lets them take over tensors, and saves them.
//! - [`save()`] and [`save_with`] write a file, or shards with an index, from where the tensors lie in
//!   memory; a reader finds the old checkpoint or the new one at every instant.
//! - [`support`] says what libtorch can hold, which is more than tch has names for.
//! - [`tch`](mod@tch) is the very version whose tensors these are.
//!
//! Tensors share storages, and tch lets safe code move a storage to other memory under all of its tensors, by
//! `resize_` for example. What is to be saved is found where it is then. From another thread it must not be
//! moved or written to while a save or a read uses it, as while any operation of libtorch does: tch does not
//! prevent it, and it is a data race.
//!
//! It needs libtorch as tch does: for PyTorch in the Python of the environment, set
//! `LIBTORCH_USE_PYTORCH=1` to build and have `torch/lib` in `LD_LIBRARY_PATH` to run; for one elsewhere,
//! `LIBTORCH`.
//!
//! ```
//! use safeshard_tch::{LoadOptions, SaveOptions, VarOptions, VarStoreExt};
//! use tch::{Device, nn};
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("model");
//! # fn model(path: nn::Path<'_>) -> nn::Linear { nn::linear(path / "head", 4, 2, Default::default()) }
//! let vars = nn::VarStore::new(Device::Cpu);
//! let trained = model(vars.root());
//! vars.save_checkpoint(&path, &SaveOptions::default())?; // what transformers loads, too
//!
//! let mut vars = nn::VarStore::new(Device::Cpu);
//! let loaded = model(vars.root());
//! let report = vars.load_checkpoint(&path, &VarOptions::default())?;
//! assert!(report.is_exact());
//! assert_eq!(loaded.ws, trained.ws);
//! # Ok::<(), safeshard_tch::Error>(())
//! ```
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod blob;
mod dtype;
mod load;
mod map;
mod save;
mod var_store;

pub use dtype::{dtype_of, floats_as, from_kind, support, to_kind};
pub use load::{load, load_with, slice, tensor};
pub use map::{MapReport, map, map_from, map_with};
pub use safeshard_core::{
    Checkpoint, DimRange, Dtype, Error, IntoCheckpoint, Io, LoadOptions, LoadReport, OpenOptions,
    Result, SaveOptions, SaveReport, Support, Unsupported,
};
pub use save::{save, save_with, tensor_to_save};
pub use tch;
pub use var_store::{Fit, Kinds, VarOptions, VarStoreExt};

/// The example of README, which is run as all others are.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
