//! What comes after a command was killed: what a person does to the folder, and the next command.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::killed::files;
use crate::operations::*;

/// What a person does to the folder before the next command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Person {
    Nothing,
    RemovesNewShards,
    IndexesTheSingleFile,
    IndexesTheOldShards,
    TouchesAll,
    CopiesTheFolder,
    AddsFiles,
}

const OTHER: &str = "other.safetensors";
const NOTES: (&str, &str) = ("notes.txt", "mine");

impl Person {
    pub(crate) const ALL: [Self; 7] = [
        Self::Nothing,
        Self::RemovesNewShards,
        Self::IndexesTheSingleFile,
        Self::IndexesTheOldShards,
        Self::TouchesAll,
        Self::CopiesTheFolder,
        Self::AddsFiles,
    ];

    /// Does it, where there is something to do it to: with the names of the files whose bytes the person
    /// counts on from then on.
    pub(crate) fn act(self, scene: Scene, old: Old) -> Option<(Scene, Vec<&'static str>)> {
        let folder = scene.model();
        let has = |name: &str| folder.join(name).exists();
        if self != Self::Nothing && !folder.exists() {
            return None;
        }
        match self {
            Self::Nothing => Some((scene, vec![])),
            Self::RemovesNewShards => {
                let new = new_shards(&folder, old);
                new.iter()
                    .for_each(|name| fs::remove_file(folder.join(name)).unwrap());
                (!new.is_empty()).then_some((scene, vec![]))
            }
            Self::IndexesTheSingleFile => has(SINGLE).then(|| {
                index_by_hand(&folder, &[SINGLE]);
                (scene, vec![INDEX])
            }),
            Self::IndexesTheOldShards => {
                let has_all = old.has_shards() && SHARDS.iter().all(|name| has(name));
                has_all.then(|| {
                    index_by_hand(&folder, &SHARDS);
                    (scene, vec![INDEX])
                })
            }
            Self::TouchesAll => {
                // File systems count time in steps.
                let later = SystemTime::now() + Duration::from_secs(1);
                for name in files(&folder).keys() {
                    let file = File::options()
                        .append(true)
                        .open(folder.join(name))
                        .unwrap();
                    file.set_modified(later).unwrap();
                }
                Some((scene, vec![]))
            }
            Self::CopiesTheFolder => Some((scene.copied(), vec![])),
            Self::AddsFiles => {
                OF_OTHER.write(&folder.join(OTHER), &TENSORS);
                fs::write(folder.join(NOTES.0), NOTES.1).unwrap();
                Some((scene, vec![OTHER, NOTES.0]))
            }
        }
    }

    /// Whether what a journal says holds as before.
    pub(crate) fn leaves_the_files(self) -> bool {
        matches!(self, Self::Nothing | Self::AddsFiles)
    }
}

/// The shards that a save has brought.
fn new_shards(folder: &Path, old: Old) -> BTreeSet<String> {
    let mut names: BTreeSet<_> = files(folder).into_keys().collect();
    let was_there = |name: &str| old.has_shards() && SHARDS.contains(&name);
    names.retain(|name| {
        name.starts_with("model-") && name.ends_with(".safetensors") && !was_there(name)
    });
    names
}

fn index_by_hand(folder: &Path, files: &[&str]) {
    let index = index_of(files, &json!({"by": "hand"}));
    let path = folder.join(INDEX);
    // As an editor does: another file, not the same one with other contents.
    let draft = folder.join("draft");
    fs::write(&draft, index).unwrap();
    fs::rename(&draft, &path).unwrap();
}

/// The next command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Later {
    Nothing,
    MetaShort,
    MetaLong,
    Index,
    ReshardToShards,
    ReshardToSingle,
    SaveAdapter,
    Convert,
    Digest,
}

impl Later {
    pub(crate) const ALL: [Self; 9] = [
        Self::Nothing,
        Self::MetaShort,
        Self::MetaLong,
        Self::Index,
        Self::ReshardToShards,
        Self::ReshardToSingle,
        Self::SaveAdapter,
        Self::Convert,
        Self::Digest,
    ];

    /// Runs it, and tells how it ended.
    pub(crate) fn run(self, scene: &Scene, sources: &Sources) -> Option<Ended> {
        let long = format!("meta m set later={}", "z".repeat(5000));
        let args = match self {
            Self::Nothing => return None,
            Self::MetaShort => "meta m set later=z",
            Self::MetaLong => &long,
            Self::Index => "index m --write",
            Self::ReshardToShards => "reshard m m --max-shard-size 12",
            Self::ReshardToSingle => "reshard m m --single",
            Self::SaveAdapter => "reshard adapter.safetensors m/adapter_model.safetensors",
            Self::Convert => "convert m m --dtype BF16",
            Self::Digest => "digest m -o m/SUMS",
        };
        let output = scene.command(&[], args, sources).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => Some(Ended::Well),
            Some(2) => Some(Ended::WithAnError(text)),
            code => Some(Ended::Otherwise(format!("{code:?}: {text}"))),
        }
    }

    /// Which files it may change, though somebody counts on them.
    pub(crate) fn may_change(self, name: &str) -> bool {
        match self {
            Self::Nothing | Self::SaveAdapter | Self::Digest => false,
            _ => name == INDEX,
        }
    }

    /// Whether it writes what it finds in the folder.
    pub(crate) fn is_of_the_checkpoint(self) -> bool {
        !matches!(self, Self::Nothing | Self::SaveAdapter)
    }

    /// Whether it may write the checkpoint to a single file, and remove its index.
    pub(crate) fn writes_a_single_file(self) -> bool {
        matches!(
            self,
            Self::ReshardToSingle | Self::ReshardToShards | Self::Convert
        )
    }

    pub(crate) fn is_of_metadata(self) -> bool {
        matches!(self, Self::MetaShort | Self::MetaLong)
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Well,
    /// Its own error, on standard error.
    WithAnError(String),
    Otherwise(String),
}
