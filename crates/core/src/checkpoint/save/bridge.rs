//! The bridge: an index that names nothing but the single file.
//!
//! transformers and accelerate take the single file where there is one. huggingface_hub takes the
//! index, and without one the only safetensors file of the folder, whichever it is. So while there are
//! shards in a folder there must be an index, or it loads a shard as if it were the model. Where the
//! checkpoint is the single file, that index is a bridge. Where there is no single file either, the
//! bridge leads nowhere: there is nothing to load, and huggingface_hub says so.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::owned::is_failure;
use crate::checkpoint::index::Index;
use crate::checkpoint::open::read_header;
use crate::io::source::FileSource;
use crate::{HeaderOptions, Limits, Profile, Result, UnknownDtype};

/// The name under which huggingface_hub looks for an index.
pub(super) fn name(single: &str) -> String {
    format!("{single}.index.json")
}

/// A bridge to `single`, which is now at `path`; none where there is nothing that can be loaded.
///
/// # Errors
/// `io`; `file-changed`. With the path.
pub(super) fn to_file(path: &Path, single: &str) -> Result<Option<Vec<u8>>> {
    let options = HeaderOptions {
        profile: Profile::Reference,
        limits: Limits::default(),
        unknown_dtype: UnknownDtype::Keep,
    };
    let header = FileSource::open(path).and_then(|file| read_header(&file, &options));
    let header = match header {
        Ok(header) => header,
        Err(error) if is_failure(&error) => return Err(error.at_path(path)),
        Err(_) => return Ok(None),
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

/// A bridge to a `single` that is not there.
pub(super) fn to_nowhere(single: &str) -> Vec<u8> {
    let index = json!({"metadata": {}, "weight_map": {"none": single}});
    index.to_string().into_bytes()
}

/// Whether what is at `path` is a bridge to `single`.
///
/// # Errors
/// As [`to_file`].
pub(super) fn is_bridge(path: &Path, single: &str) -> Result<bool> {
    match Index::open(path, &Limits::default()) {
        Ok(index) => Ok(index.shards().all(|shard| shard == single)),
        Err(error) if is_failure(&error) => Err(error),
        Err(_) => Ok(false),
    }
}
