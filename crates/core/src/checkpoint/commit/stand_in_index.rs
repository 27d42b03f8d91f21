//! The index that stands in: it names nothing but the single file.
//!
//! transformers and accelerate take the single file where there is one. huggingface_hub takes the
//! index, and without one the only safetensors file of the folder, whichever it is. So while there are
//! shards in a folder there must be an index, or it loads a shard as if it were the model. Where the
//! checkpoint is the single file, that index leads to it. Where there is no single file either, it
//! leads nowhere: there is nothing to load, and huggingface_hub says so.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::replaced_files::header_of;
use crate::error::Result;

/// The name under which huggingface_hub looks for an index.
pub(super) fn name(single: &str) -> String {
    format!("{single}.index.json")
}

/// An index that leads to `single`, which is now at `path`; none where there is nothing that can be loaded.
///
/// # Errors
/// `io`; `file-changed`. With the path.
pub(super) fn to_file(path: &Path, single: &str) -> Result<Option<Vec<u8>>> {
    let Some(header) = header_of(path)? else {
        return Ok(None);
    };
    let known = header.tensors().map(|tensor| tensor.name);
    let names = known.chain(header.unsupported().map(|tensor| tensor.name));
    let map: Map<String, Value> = names.map(|name| (name.to_owned(), json!(single))).collect();
    // With what huggingface_hub records of tied tensors.
    let mut metadata: Map<String, Value> = header
        .metadata()
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect();
    metadata.insert("total_size".to_owned(), json!(header.data_len()));
    let index = json!({"metadata": metadata, "weight_map": map});
    Ok((!map.is_empty()).then(|| index.to_string().into_bytes()))
}

/// An index that leads to a `single` that is not there.
pub(super) fn to_nowhere(single: &str) -> Vec<u8> {
    let index = json!({"metadata": {}, "weight_map": {"none": single}});
    index.to_string().into_bytes()
}
