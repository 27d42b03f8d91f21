//! What becomes of metadata when tensors move to other files: kept or reported, never lost.
//!
//! A key that has one value wherever it occurs is a fact about the checkpoint, and every new file gets
//! it. Where the values differ, each is about its own file, which is no more.

use std::collections::{BTreeMap, HashSet};
use std::mem;
use std::path::Path;

use serde_json::Value;

use super::MetadataLeft;
use super::choice::Choice;
use crate::checkpoint::save::SaveOptions;
use crate::checkpoint::{Checkpoint, Index};
use crate::error::Result;
use crate::io::workers::Cancel;

/// How many elements there are, as transformers writes it into an index.
const PARAMETERS: &str = "total_parameters";

/// Puts all metadata that can be kept into the options, which are those that save the checkpoint as it
/// is; returns the rest.
///
/// # Errors
/// `cancelled`.
pub(super) fn keep(
    checkpoint: &Checkpoint,
    choice: &Choice<'_>,
    is_single: bool,
    options: &mut SaveOptions,
) -> Result<Vec<MetadataLeft>> {
    let mut left = Vec::new();
    let agreed = keep_of_headers(checkpoint, options, &mut left)?;
    options.metadata.extend(agreed);
    let counts = options
        .index_metadata
        .iter()
        .any(|(key, _)| key == PARAMETERS);
    let (before, now) = match counts {
        true => (checkpoint.totals().parameters, choice.elements()),
        false => (0, 0),
    };
    let mut texts = Vec::new();
    let taken: HashSet<&str> = options.metadata.iter().map(|(key, _)| &**key).collect();
    for (key, value) in mem::take(&mut options.index_metadata) {
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
            // An index has a key once.
            Value::String(text) if !taken.contains(&*key) => texts.push((key, text)),
            value => left.push(of_the_index(checkpoint, key, &value)),
        }
    }
    options.metadata.append(&mut texts);
    Ok(left)
}

/// What only some files say, if none of the others contradicts; the rest goes to what is left.
fn keep_of_headers(
    checkpoint: &Checkpoint,
    options: &SaveOptions,
    left: &mut Vec<MetadataLeft>,
) -> Result<Vec<(String, String)>> {
    let kept = options.metadata.iter();
    let mut kept: Vec<(&str, &str)> = kept.map(|(key, value)| (&**key, &**value)).collect();
    kept.sort_unstable();
    let mut values: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for file in checkpoint.files() {
        Cancel::check(options.cancel.as_ref())?;
        for (key, value) in file.header().metadata() {
            let is_alias = checkpoint.aliases().contains_key(key);
            if !is_alias && kept.binary_search(&(key, value)).is_err() {
                values.entry(key).or_default().push((file.name(), value));
            }
        }
    }
    let mut agreed = Vec::new();
    for (key, values) in values {
        let is_agreed = match values.as_slice() {
            [(_, first), others @ ..] => others.iter().all(|(_, value)| value == first),
            [] => true,
        };
        let is_taken = kept.binary_search_by_key(&key, |(key, _)| key).is_ok();
        for (at, (file, value)) in values.into_iter().enumerate() {
            match () {
                // What every save adds.
                () if key == "format" && value == "pt" && !is_taken => {}
                () if is_agreed && !is_taken => {
                    if at == 0 {
                        agreed.push((key.to_owned(), value.to_owned()));
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
    Ok(agreed)
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
