//! What each reader finds in a folder. The rules of transformers and huggingface_hub are those that
//! `tests/python/load_folders.py` asks the libraries themselves for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use safeshard_core::Checkpoint;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::killed::files;
use crate::operations::{INDEX, SINGLE, TENSORS, Weights};

/// What a reader finds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Found {
    /// All tensors of one checkpoint.
    Whole(Weights),
    /// By its own rule, there is none.
    Nothing,
    /// It says that it cannot.
    Refused(String),
    /// Tensors of several checkpoints, or not all of one.
    Broken(String),
}

/// Name, and the bytes of the one element.
type Tensors = BTreeMap<String, Vec<u8>>;

/// What everybody finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Views {
    pub(crate) ours: Found,
    pub(crate) transformers: Found,
    pub(crate) hub: Found,
}

impl Views {
    pub(crate) fn of(folder: &Path) -> Self {
        Self {
            ours: ours(folder),
            transformers: single_first(folder),
            hub: index_first(folder),
        }
    }

    pub(crate) fn each(&self) -> [(&'static str, &Found); 3] {
        [
            ("safeshard", &self.ours),
            ("transformers", &self.transformers),
            ("huggingface_hub", &self.hub),
        ]
    }
}

/// This library.
fn ours(folder: &Path) -> Found {
    let checkpoint = match Checkpoint::open(folder) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return Found::Refused(error.code().as_str().to_owned()),
    };
    let mut tensors = Tensors::new();
    for name in checkpoint.names() {
        match checkpoint.read(name) {
            Ok(bytes) => tensors.insert(name.to_owned(), bytes),
            Err(error) => return Found::Broken(format!("opened, but: {error}")),
        };
    }
    whole(&tensors)
}

/// transformers and accelerate: the single file, then the index.
fn single_first(folder: &Path) -> Found {
    match folder.join(SINGLE).is_file() {
        true => in_files([folder.join(SINGLE)]),
        false if folder.join(INDEX).is_file() => by_index(folder),
        false => Found::Nothing,
    }
}

/// huggingface_hub: the index, then whatever safetensors file is alone.
fn index_first(folder: &Path) -> Found {
    if folder.join(INDEX).is_file() {
        return by_index(folder);
    }
    let files = visible(folder);
    match files.as_slice() {
        [only] => in_files([only.clone()]),
        _ => Found::Nothing,
    }
}

/// The safetensors files that a pattern finds.
fn visible(folder: &Path) -> Vec<PathBuf> {
    let names = files(folder).into_keys();
    let is_file = |name: &String| name.ends_with(".safetensors") && !name.starts_with('.');
    let names = names.filter(is_file);
    names.map(|name| folder.join(name)).collect()
}

fn by_index(folder: &Path) -> Found {
    let index = fs::read(folder.join(INDEX)).unwrap();
    let Ok(index) = serde_json::from_slice::<Value>(&index) else {
        return Found::Broken("an index that is no JSON".to_owned());
    };
    let Some(map) = index["weight_map"].as_object() else {
        return Found::Broken("an index without a map".to_owned());
    };
    let shards = map.values().map(|shard| shard.as_str().unwrap());
    let shards: BTreeSet<_> = shards.map(|shard| folder.join(shard)).collect();
    in_files(shards)
}

/// What is in all of these files; it is said where one cannot be read.
fn in_files(files: impl IntoIterator<Item = PathBuf>) -> Found {
    let mut tensors = Tensors::new();
    for file in files {
        let Ok(bytes) = fs::read(&file) else {
            return Found::Refused("not-found".to_owned());
        };
        let Ok(file) = SafeTensors::deserialize(&bytes) else {
            return Found::Broken(format!("{} is no safetensors file", file.display()));
        };
        let found = file
            .iter()
            .map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec()));
        tensors.extend(found);
    }
    whole(&tensors)
}

fn whole(tensors: &Tensors) -> Found {
    let values: BTreeSet<_> = tensors.values().collect();
    let names: Vec<_> = tensors.keys().map(String::as_str).collect();
    match Vec::from_iter(values).as_slice() {
        [bytes] if names == TENSORS => Found::Whole(weights(bytes)),
        _ => Found::Broken(format!("{tensors:?}")),
    }
}

fn weights(bytes: &[u8]) -> Weights {
    let value = match bytes {
        [one, two] => f32::from_le_bytes([0, 0, *one, *two]),
        bytes => f32::from_le_bytes(bytes.try_into().unwrap()),
    };
    let (value, element) = (value as u8, bytes.len());
    Weights { value, element }
}

/// The values whose every tensor is in some file of the folder: none of them is lost.
pub(crate) fn values_kept(folder: &Path) -> BTreeSet<u8> {
    let mut names: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
    for path in visible(folder) {
        let bytes = fs::read(&path).unwrap();
        let Ok(file) = SafeTensors::deserialize(&bytes) else {
            continue;
        };
        for (name, tensor) in file.iter() {
            let value = weights(tensor.data()).value;
            names.entry(value).or_default().insert(name.to_owned());
        }
    }
    names.retain(|_, names| names.len() == TENSORS.len());
    names.into_keys().collect()
}
