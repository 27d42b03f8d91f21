//! The only floor that touches files.

#[allow(unsafe_code)]
pub(crate) mod buffer;
pub(crate) mod cast;
pub(crate) mod data;
mod direct;
#[allow(unsafe_code)]
pub(crate) mod engine;
pub(crate) mod entry;
pub(crate) mod lock;
#[allow(unsafe_code)]
pub(crate) mod mmap;
#[allow(unsafe_code)]
pub(crate) mod new_memory;
pub(crate) mod patch;
pub(crate) mod pool;
pub(crate) mod publish;
pub(crate) mod scan;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod technique;
pub(crate) mod transfer;
pub(crate) mod workers;
