//! Tests of what safeshard-tch promises, sorted by property.

mod contract;
mod dtypes;
mod incumbents;
mod interop;
mod lifetime;
mod load;
mod map;
mod save;
mod support;
mod var_store;
