//! The core.
#![deny(unsafe_code)]

mod checkpoint;
mod error;
mod format;
mod io;
mod limits;

pub use checkpoint::{
    CastRecord, Checkpoint, CheckpointKind, DtypeRule, Fill, Filter, Index, Io, LoadOptions,
    LoadReport, Mismatch, OpenOptions, Plan, Planned, Prefer, Rename, ShardFile, Support, Totals,
    Unsupported, natural_order,
};
pub use error::{Code, Error, Finding, Kind, Result, Severity};
pub use format::dtype::Dtype;
pub use format::header::{
    Header, HeaderOptions, Prefix, Profile, TensorInfo, UnknownDtype, UnsupportedTensor,
};
pub use format::slice::{DimRange, Slice};
pub use io::buffer::{Destination, TypedBuffer, TypedVec};
pub use io::cast::{Cast, CastError};
pub use io::engine::{Cancel, Progress, ReadOptions};
pub use io::mmap::MappedSource;
pub use io::source::{FileSource, MemorySource, ReadAt};
pub use limits::Limits;
