//! One program for all tests of the adapter but the one that counts memory: candle links slowly.

mod contract;
mod dtypes;
mod incumbents;
mod interop;
mod load;
mod load_into;
mod parts;
mod parts_ahead;
mod prefetch;
mod save;
mod save_interop;
mod support;
mod var_map;
