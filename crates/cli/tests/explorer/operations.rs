//! What writes, and what is in its folder before. Every tensor tells which checkpoint it is of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::suite_support::{SAFESHARD, Tensor, write_with};

pub(crate) const TENSORS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
pub(crate) const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];
pub(crate) const MANIFEST: &str = "SUMS";

/// What goes along with weights, and is in every old folder.
pub(crate) const CONFIG: (&str, &str) = ("config.json", r#"{"model_type": "six-scalars"}"#);
/// What goes along, and is in none.
pub(crate) const TOKENIZER: (&str, &str) = ("tokenizer.json", r#"{"version": "1.0"}"#);

/// What all tensors of a checkpoint have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Weights {
    /// The one element of each.
    pub(crate) value: u8,
    /// Its bytes: four of `F32`, two of `BF16`.
    pub(crate) element: usize,
}

pub(crate) const OLD: Weights = Weights::floats(1);
pub(crate) const NEW: Weights = Weights::floats(2);
pub(crate) const OF_ADAPTER: Weights = Weights::floats(7);
pub(crate) const OF_OTHER: Weights = Weights::floats(8);

impl Weights {
    const fn floats(value: u8) -> Self {
        Self { value, element: 4 }
    }

    /// As `BF16`.
    pub(crate) fn half(self) -> Self {
        Self { element: 2, ..self }
    }

    /// A file with these of the tensors.
    pub(crate) fn write(self, path: &Path, names: &[&'static str]) {
        let bytes = f32::from(self.value).to_le_bytes();
        let tensors = names.iter();
        let tensors: Vec<Tensor<'_>> = tensors
            .map(|name| (*name, Dtype::F32, vec![1], bytes.to_vec()))
            .collect();
        write_with(path, &tensors, &[("note", "old")]);
    }

    fn write_shards(self, folder: &Path) {
        for (name, tensors) in SHARDS.iter().zip(TENSORS.chunks(3)) {
            self.write(&folder.join(name), tensors);
        }
    }
}

/// An index that places the tensors in these files, the same number in each.
pub(crate) fn index_of(files: &[&str], metadata: &Value) -> String {
    let parts = TENSORS.chunks(TENSORS.len() / files.len());
    let map = parts.zip(files).flat_map(|(tensors, file)| {
        let placed = move |tensor: &&str| (tensor.to_string(), json!(file));
        tensors.iter().map(placed)
    });
    json!({"metadata": metadata, "weight_map": Map::from_iter(map)}).to_string()
}

/// What is in the folder before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Old {
    /// Not even the folder.
    Missing,
    Empty,
    Single,
    Shards,
    /// Shards, and a single file with the same tensors.
    Both,
    /// An index that names only the single file, as mlx writes it.
    Indexed,
    /// Shards without an index.
    Unindexed,
    /// Shards whose index has the wrong size.
    OddIndex,
}

impl Old {
    /// What readers find.
    pub(crate) fn weights(self) -> Option<Weights> {
        let has_some = !matches!(self, Self::Missing | Self::Empty | Self::Unindexed);
        has_some.then_some(OLD)
    }

    /// Whether there are shards of the usual names.
    pub(crate) fn has_shards(self) -> bool {
        matches!(
            self,
            Self::Shards | Self::Both | Self::Unindexed | Self::OddIndex
        )
    }

    fn write(self, folder: &Path) {
        if self == Self::Missing {
            return;
        }
        fs::create_dir(folder).unwrap();
        if self == Self::Empty {
            return;
        }
        let put = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        put(CONFIG.0, CONFIG.1);
        if matches!(self, Self::Single | Self::Both | Self::Indexed) {
            OLD.write(&folder.join(SINGLE), &TENSORS);
        }
        // Somebody's, for all but `digest`.
        if self == Self::Single {
            put(MANIFEST, &format!("{}  {SINGLE}\n", "0".repeat(64)));
        }
        let right = json!({"note": "old", "total_size": 24});
        match self {
            Self::Shards | Self::Both => put(INDEX, &index_of(&SHARDS, &right)),
            Self::Indexed => put(INDEX, &index_of(&[SINGLE], &right)),
            Self::OddIndex => put(INDEX, &index_of(&SHARDS, &json!({"total_size": 7}))),
            _ => {}
        }
        if self.has_shards() {
            OLD.write_shards(folder);
        }
    }
}

/// One writing command, on one folder.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// `x` is a sharded checkpoint elsewhere, `m` the folder.
    pub(crate) args: String,
    pub(crate) old: Old,
}

impl Operation {
    /// All that there are.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |args: &str, olds: &[Old]| {
            let of = |&old: &Old| Self {
                args: args.to_owned(),
                old,
            };
            all.extend(olds.iter().map(of));
        };
        for args in [
            "reshard x m",
            "reshard x m --single",
            "convert x m --dtype BF16",
            "reshard x m --max-shard-size 8",
        ] {
            let olds = [Old::Single, Old::Shards, Old::Both, Old::Indexed];
            add(args, &[Old::Missing]);
            add(args, &olds);
            let along = format!("{args} --with-files");
            add(&along, &[Old::Empty]);
            add(&along, &olds);
        }
        for args in [
            "reshard m m --max-shard-size 8",
            "reshard m m --single",
            "convert m m --dtype BF16",
        ] {
            add(args, &[Old::Single, Old::Shards, Old::Indexed]);
        }
        add("reshard m/model.safetensors.index.json m", &[Old::Both]);
        add("reshard m/model.safetensors m --single", &[Old::Both]);
        add(
            "meta m set note=new",
            &[Old::Single, Old::Shards, Old::Indexed],
        );
        let long = format!("meta m set note={}", "long ".repeat(40).replace(' ', "-"));
        add(&long, &[Old::Single, Old::Shards]);
        add("meta m set --shards note=new", &[Old::Shards]);
        add("meta m unset note", &[Old::Single, Old::Shards]);
        add("meta m/model.safetensors set note=new", &[Old::Both]);
        add("index m --write", &[Old::Unindexed, Old::OddIndex]);
        add("digest m -o m/SUMS", &[Old::Single, Old::Shards]);
        all
    }

    /// What readers find afterwards.
    pub(crate) fn new_weights(&self) -> Weights {
        let from_elsewhere = self.args.split(' ').any(|word| word == "x");
        let weights = if from_elsewhere { NEW } else { OLD };
        match self.args.contains("BF16") {
            true => weights.half(),
            false => weights,
        }
    }

    /// The one file that it writes anew, where it leaves all others as they are.
    pub(crate) fn edits(&self) -> Option<&'static str> {
        let command = self.args.split(' ').next()?;
        match (command, self.old) {
            _ if self.args.contains("--shards") => None,
            ("meta", Old::Single | Old::Both) => Some(SINGLE),
            ("meta" | "index", _) => Some(INDEX),
            ("digest", _) => Some(MANIFEST),
            _ => None,
        }
    }

    pub(crate) fn carries_files(&self) -> bool {
        self.args.ends_with("--with-files")
    }
}

/// Checkpoints to write from.
pub(crate) struct Sources(TempDir);

impl Sources {
    pub(crate) fn new() -> Self {
        let sources = Self(in_memory());
        let sharded = sources.path("x");
        fs::create_dir(&sharded).unwrap();
        NEW.write_shards(&sharded);
        let index = index_of(&SHARDS, &json!({"total_size": 24}));
        fs::write(sharded.join(INDEX), index).unwrap();
        for (name, text) in [CONFIG, TOKENIZER] {
            fs::write(sharded.join(name), text).unwrap();
        }
        OF_ADAPTER.write(&sources.path("adapter.safetensors"), &TENSORS);
        sources
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A folder `m` in one of its own.
pub(crate) struct Scene(TempDir);

impl Scene {
    pub(crate) fn new(old: Old) -> Self {
        let scene = Self(in_memory());
        old.write(&scene.model());
        scene
    }

    /// Without the folder.
    pub(crate) fn bare() -> Self {
        Self(in_memory())
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.0.path().join("m")
    }

    /// The command that these arguments make of what `launcher` starts.
    pub(crate) fn command(&self, launcher: &[String], args: &str, sources: &Sources) -> Command {
        let words = args.split(' ').map(|word| match word {
            "m" => self.model(),
            "x" | "adapter.safetensors" => sources.path(word),
            _ if word.starts_with("m/") => self.root().join(word),
            _ => PathBuf::from(word),
        });
        let this = SAFESHARD.to_owned();
        let mut line = launcher.iter().chain([&this]);
        let mut command = Command::new(line.next().unwrap());
        command
            .args(line)
            .args(words)
            .args(["--threads", "1", "-q"]);
        command
    }
}

/// Thousands of writes take too long where each of them waits for a disk.
fn in_memory() -> TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    folder.unwrap()
}
