#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod checked;
mod input;
mod open;
mod options;
mod pickle;
mod torch;
mod zip;

pub use open::{open, open_with};
pub use options::{Checksums, ImportLimits, ImportOptions, PickledCode};
