#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub use safeshard_core::*;

/// Checkpoints as candle tensors, `VarBuilder` and `VarMap`.
#[cfg(feature = "candle")]
pub use safeshard_candle as candle;

/// Files of other formats as checkpoints, with nothing executed.
#[cfg(feature = "import")]
pub use safeshard_import as import;
#[cfg(feature = "import")]
pub use safeshard_import::open;

/// Checkpoints as ndarray views and arrays.
#[cfg(feature = "ndarray")]
pub use safeshard_ndarray as ndarray;

/// Checkpoints as tch tensors and `VarStore`; needs libtorch.
#[cfg(feature = "tch")]
pub use safeshard_tch as tch;
