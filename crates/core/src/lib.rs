//! The safetensors format and sharded checkpoints, from scratch and without a framework.
//!
//! - [`Checkpoint`] opens a file, an index or a folder, checks all of it, and reads any part.
//! - [`Header`] and [`Prefix`] parse a header from bytes alone, whole or in two steps.
//! - [`Slice`] turns part of a tensor into runs of bytes.
//! - [`ReadAt`] is a source of bytes: [`FileSource`], [`MemorySource`], [`MappedSource`], or yours.
//! - [`Folder`] is where files have names: [`DiskFolder`], [`MemoryFolder`], or yours; [`Resolve`] finds the
//!   one that a place such as `hf://org/name` stands for.
//! - [`Checkpoint::plan`] and [`Checkpoint::fill`] are what adapters build on: a plan of what to
//!   load, and an engine that reads it into destinations of the adapter's.
//!
//! [`Error`] says where, what and what to do, under a stable [`Code`]; [`Limits`] bound what a file
//! can make us allocate.
//!
//! ```no_run
//! use safeshard_core::Checkpoint;
//!
//! let checkpoint = Checkpoint::open("path/to/model")?;
//! for tensor in checkpoint.tensors() {
//!     println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
//! }
//! let bytes = checkpoint.read("lm_head.weight")?;
//! # Ok::<(), safeshard_core::Error>(())
//! ```
#![deny(unsafe_code)]

#[cfg(not(unix))]
compile_error!("safeshard reads files by position and tells them apart as Unix does");
#[cfg(target_endian = "big")]
compile_error!("safeshard hands out elements as they are stored: little-endian");

mod checkpoint;
#[cfg(feature = "contract")]
pub mod contract;
mod error;
mod format;
mod io;
mod limits;
mod printable;

#[cfg(feature = "digest")]
pub use checkpoint::{
    Algorithm, Digest, DigestOf, DigestOptions, Manifest, ManifestEntry, verify_digests,
};
pub use checkpoint::{
    CastRecord, Change, Changed, Checkpoint, CheckpointKind, Companion, ConvertOptions, Dialect,
    DiffOptions, Difference, DtypeChange, DtypeRule, Fill, Filter, ForeignFile, Index,
    IndexOutcome, IndexReport, IntoCheckpoint, Io, LoadOptions, LoadReport, Losses, MetadataChange,
    MetadataLeft, MetadataWrite, Mismatch, NotRecovered, OpenOptions, PartRule, Plan, Planned,
    Prefer, Quantization, QuantizedTensor, Rename, ReshardOptions, ReshardReport, Role,
    SaveOptions, SaveReport, SaveTensor, SavedFile, Scheme, ShardFile, ShardSize, Sharding, Shards,
    SideFiles, Support, Ties, Tolerance, Totals, Unsupported, Verification, VerifyLevel,
    VerifyOptions, change_metadata, change_shard_metadata, convert, diff, natural_order, reshard,
    save, verify, verify_opened, write_index, write_to,
};
pub use error::{Code, Error, Finding, Kind, Result, Severity};
pub use format::dtype::Dtype;
pub use format::header::{
    Header, HeaderOptions, Prefix, Profile, TensorInfo, UnknownDtype, UnsupportedTensor,
};
pub use format::slice::{DimRange, Slice};
pub use format::write::DataAlignment;
pub use io::access::Access;
pub use io::buffer::{Destination, TypedBuffer, TypedVec};
pub use io::cast::{Cast, CastError};
pub use io::data::{Located, TensorData, WriteBytes};
pub use io::durability::Durability;
pub use io::engine::ReadOptions;
pub use io::extent::Extent;
pub use io::folder::{DiskFolder, Folder, MemoryFolder, Place, Resolve};
pub use io::gather::gather;
pub use io::mmap::{MappedSource, PrivateMap};
pub use io::source::{FileSource, MemorySource, ReadAt};
#[doc(hidden)]
pub use io::technique::Technique;
pub use io::version::Version;
pub use io::workers::{Cancel, Progress};
pub use limits::Limits;
pub use printable::Printable;

/// The example of README, which is run as all others are.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
