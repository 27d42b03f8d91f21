//! Bytes and numbers only: no files, no threads.

mod counts;
pub(crate) mod dtype;
pub(crate) mod header;
pub(crate) mod json;
mod layout;
mod parse;
pub(crate) mod slice;
pub(crate) mod sniff;
