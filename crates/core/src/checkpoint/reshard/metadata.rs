//! What becomes of metadata when tensors move to other files: kept or reported, never lost.
//!
//! A key that has one value wherever it occurs is a fact about the checkpoint, and every new file gets
//! it. Where the values differ, each is about its own file, which is no more.

use std::collections::BTreeMap;
use std::mem;
use std::path::Path;

use serde_json::Value;

use super::MetadataLeft;
use crate::SaveOptions;
use crate::checkpoint::{Checkpoint, Index, Plan};
use crate::format::layout;

/// How many elements there are, as transformers writes it into an index.
const PARAMETERS: &str = "total_parameters";

/// Puts all metadata that can be kept into the options, which are those that save the checkpoint as it
/// is; returns the rest.
pub(super) fn keep(
    checkpoint: &Checkpoint,
    plan: &Plan,
    is_single: bool,
    options: &mut SaveOptions,
) -> Vec<MetadataLeft> {
    let mut left = Vec::new();
    keep_of_headers(checkpoint, options, &mut left);
    let before = checkpoint.totals().parameters;
    let now = elements(plan);
    for (key, value) in mem::take(&mut options.index_metadata) {
        let is_taken = || options.metadata.iter().any(|(kept, _)| *kept == key);
        match value {
            // It can be counted again.
            Value::Number(count) if key == PARAMETERS && count.as_u64() == Some(before) => {
                if !is_single {
                    options.index_metadata.push((key, now.into()));
                }
            }
            // Nobody can tell what was counted.
            value if key == PARAMETERS && now != before => {
                left.push(of_the_index(checkpoint, key, &value));
            }
            value if !is_single => options.index_metadata.push((key, value)),
            Value::String(text) if !is_taken() => options.metadata.push((key, text)),
            value => left.push(of_the_index(checkpoint, key, &value)),
        }
    }
    left
}

/// Adds what only some files say, if none of the others contradicts.
fn keep_of_headers(
    checkpoint: &Checkpoint,
    options: &mut SaveOptions,
    left: &mut Vec<MetadataLeft>,
) {
    let mut values: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for file in checkpoint.files() {
        for (key, value) in file.header().metadata() {
            let is_alias = checkpoint.aliases().contains_key(key);
            let is_kept = options
                .metadata
                .iter()
                .any(|(kept, with)| kept == key && with == value);
            if !is_alias && !is_kept {
                values.entry(key).or_default().push((file.name(), value));
            }
        }
    }
    for (key, values) in values {
        let agreed = match values.as_slice() {
            [(_, first), others @ ..] => others.iter().all(|(_, value)| value == first),
            [] => true,
        };
        let is_taken = options.metadata.iter().any(|(kept, _)| kept == key);
        for (at, (file, value)) in values.into_iter().enumerate() {
            match () {
                // What every save adds.
                () if key == "format" && value == "pt" && !is_taken => {}
                () if agreed && !is_taken => {
                    if at == 0 {
                        options.metadata.push((key.to_owned(), value.to_owned()));
                    }
                }
                () => left.push(MetadataLeft {
                    file: file.to_owned(),
                    key: key.to_owned(),
                    value: value.to_owned(),
                }),
            }
        }
    }
}

fn elements(plan: &Plan) -> u64 {
    let shapes = plan.tensors.iter().map(|planned| &planned.shape);
    let elements = shapes.map(|shape| layout::elements(shape).unwrap_or(u64::MAX));
    elements.fold(0, u64::saturating_add)
}

fn of_the_index(checkpoint: &Checkpoint, key: String, value: &Value) -> MetadataLeft {
    let path = checkpoint.index().map(Index::path);
    let name = path.and_then(Path::file_name).unwrap_or_default();
    let value = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    MetadataLeft {
        file: name.to_string_lossy().into_owned(),
        key,
        value,
    }
}
