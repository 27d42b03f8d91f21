//! What stands in for the contenders where libtorch is not linked.

use std::path::Path;

use crate::Result;
use crate::job::Prepared;

macro_rules! absent {
    ($($name:ident)*) => {
        $(pub(super) fn $name(_: &Path) -> Result<Prepared> {
            Err("this needs `--features tch`".into())
        })*
    };
}

absent! {
    load read_safetensors map raw_map map_and_touch raw_map_and_touch
    adopt load_variables var_store_load save write_safetensors
}
