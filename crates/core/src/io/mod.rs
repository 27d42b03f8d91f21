//! The only floor that touches files.

#[allow(unsafe_code)]
pub(crate) mod buffer;
pub(crate) mod cast;
pub(crate) mod data;
#[allow(unsafe_code)]
pub(crate) mod engine;
#[allow(unsafe_code)]
pub(crate) mod mmap;
pub(crate) mod pool;
pub(crate) mod source;
