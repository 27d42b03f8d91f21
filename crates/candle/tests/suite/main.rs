//! One program for all tests of the adapter but the one that counts memory: candle links slowly.

mod dtypes;
mod incumbents;
mod interop;
mod load;
mod parts;
mod prefetch;
mod support;
mod var_map;
