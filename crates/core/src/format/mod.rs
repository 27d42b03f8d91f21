//! Bytes and numbers only: no files, no threads.

mod counts;
pub(crate) mod dtype;
mod fields;
pub(crate) mod header;
pub(crate) mod json;
pub(crate) mod json_edit;
pub(crate) mod layout;
pub(crate) mod name_table;
mod parse;
pub(crate) mod python_json;
pub(crate) mod skip;
pub(crate) mod slice;
pub(crate) mod sniff;
pub(crate) mod write;
