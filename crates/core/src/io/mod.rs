//! The only floor that touches files.

#[allow(unsafe_code)]
pub(crate) mod buffer;
pub(crate) mod cast;
pub(crate) mod data;
#[allow(dead_code)]
mod direct;
#[allow(unsafe_code)]
pub(crate) mod engine;
pub(crate) mod entry;
#[allow(dead_code)]
pub(crate) mod lock;
#[allow(unsafe_code)]
pub(crate) mod mmap;
pub(crate) mod pool;
#[allow(dead_code)]
pub(crate) mod publish;
#[allow(dead_code)]
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod technique;
