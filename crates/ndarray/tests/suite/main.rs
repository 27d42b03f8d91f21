//! One program for all tests of the adapter but the one that counts memory.
mod contract;
mod interop;
mod load;
mod matrix;
mod save;
mod slice;
mod support;
mod views;
