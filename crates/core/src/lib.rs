//! The core.
#![deny(unsafe_code)]

mod error;
mod format;
mod limits;

pub use error::{Code, Error, Finding, Kind, Result, Severity};
pub use format::dtype::Dtype;
pub use format::header::{
    Header, HeaderOptions, Prefix, Profile, TensorInfo, UnknownDtype, UnsupportedTensor,
};
pub use format::slice::{DimRange, Slice};
pub use limits::Limits;
