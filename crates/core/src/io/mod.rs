//! The only floor that touches files.

pub(crate) mod access;
#[allow(unsafe_code)]
pub(crate) mod buffer;
pub(crate) mod cast;
pub(crate) mod data;
mod direct;
pub(crate) mod durability;
#[allow(unsafe_code)]
pub(crate) mod engine;
pub(crate) mod entry;
pub(crate) mod extent;
pub(crate) mod folder;
pub(crate) mod gather;
pub(crate) mod lock;
#[allow(unsafe_code)]
pub(crate) mod mmap;
#[allow(unsafe_code)]
pub(crate) mod new_memory;
pub(crate) mod pool;
pub(crate) mod publish;
pub(crate) mod rights;
pub(crate) mod scan;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod technique;
pub(crate) mod transfer;
pub(crate) mod version;
pub(crate) mod workers;
