//! One program for all tests of the adapter but the one that counts memory.
#![allow(
    clippy::single_range_in_vec_init,
    reason = "a range of one dimension is what is meant"
)]

mod interop;
mod load;
mod matrix;
mod save;
mod support;
mod views;
