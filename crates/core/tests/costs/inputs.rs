//! Inputs that have many of something: tensors, shards, keys, lines.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use safeshard_core::{Checkpoint, Result};

use crate::support;

/// What there is many of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Scalars of `F32` in one file.
    Tensors,
    /// The same with names of 1,000 bytes.
    LongNames,
    /// The same in ten shards with an index.
    InTenShards,
    /// Shards of one tensor, with an index.
    Shards,
    /// Keys of metadata in one file.
    Keys,
    /// Keys of metadata in an index.
    KeysOfIndex,
    /// Keys of metadata in each of two shards, with other values.
    KeysThatDiffer,
    /// Names that are recorded for tensors of other names.
    Aliases,
    /// Lines of a manifest, all of one file.
    #[cfg(feature = "digest")]
    LinesOfOneFile,
    /// Lines of a manifest of tensors that are not there.
    #[cfg(feature = "digest")]
    LinesOfNothing,
}

impl Input {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tensors => "bytes of tensors",
            Self::LongNames => "bytes of long names",
            Self::InTenShards => "bytes of tensors in shards",
            Self::Shards => "bytes of shards",
            Self::Keys => "bytes of metadata",
            Self::KeysOfIndex => "bytes of an index's metadata",
            Self::KeysThatDiffer => "bytes of metadata that differ",
            Self::Aliases => "bytes of aliases",
            #[cfg(feature = "digest")]
            Self::LinesOfOneFile => "bytes of lines of one file",
            #[cfg(feature = "digest")]
            Self::LinesOfNothing => "bytes of lines of nothing",
        }
    }
}

/// Where an operation finds its input, and what it may write to.
pub(crate) struct Place {
    pub(crate) input: PathBuf,
    pub(crate) output: PathBuf,
    pub(crate) count: usize,
}

/// Names of tensors, and metadata.
type Shard = (Vec<String>, Vec<(String, String)>);

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
#[cfg(feature = "digest")]
pub(crate) const MANIFEST: &str = "SUMS";

impl Place {
    /// An input with `count` of what it has many, in a new folder; and how long its texts are.
    pub(crate) fn make(folder: &Path, input: Input, count: usize) -> (Self, u64) {
        let place = Self {
            input: folder.join("input"),
            output: folder.join("output"),
            count,
        };
        fs::create_dir_all(&place.input).unwrap();
        let names = (0..count).map(|at| format!("t{at}"));
        let one = || vec!["a".to_owned()];
        let empty = Vec::new;
        let len = match input {
            Input::Tensors => place.write(SINGLE, &names.collect::<Vec<_>>(), &empty()),
            Input::LongNames => {
                let names = names.map(|name| name + &"-".repeat(1000));
                place.write(SINGLE, &names.collect::<Vec<_>>(), &empty())
            }
            Input::InTenShards => {
                let names: Vec<_> = names.collect();
                let shards = names.chunks(count.div_ceil(10)).map(<[_]>::to_vec);
                place.write_shards(
                    &shards.map(|shard| (shard, empty())).collect::<Vec<_>>(),
                    &[],
                )
            }
            Input::Shards => {
                let shards = names.map(|name| (vec![name], vec![("format".into(), "pt".into())]));
                place.write_shards(&shards.collect::<Vec<_>>(), &[])
            }
            Input::Keys => {
                let pairs = (0..count).map(|at| (key(at), "v".to_owned()));
                place.write(SINGLE, &one(), &pairs.collect::<Vec<_>>())
            }
            Input::KeysOfIndex => {
                let shards = ["a", "b"].map(|name| (vec![name.to_owned()], empty()));
                let pairs = (0..count).map(|at| (key(at), "v".to_owned()));
                place.write_shards(&shards, &pairs.collect::<Vec<_>>())
            }
            Input::KeysThatDiffer => {
                let shards = ["a", "b"].map(|name| {
                    let pairs = (0..count).map(|at| (key(at), name.to_owned()));
                    (vec![name.to_owned()], pairs.collect())
                });
                place.write_shards(&shards, &[])
            }
            Input::Aliases => {
                let names: Vec<_> = names.collect();
                let pairs = names
                    .iter()
                    .map(|name| (format!("of-{name}"), name.clone()));
                place.write(SINGLE, &names, &pairs.collect::<Vec<_>>())
            }
            #[cfg(feature = "digest")]
            Input::LinesOfOneFile => {
                place.write(SINGLE, &one(), &empty());
                let line = format!("{}  {SINGLE}\n", "0".repeat(64));
                place.write_text(MANIFEST, &line.repeat(count))
            }
            #[cfg(feature = "digest")]
            Input::LinesOfNothing => {
                place.write(SINGLE, &one(), &empty());
                let zeros = "0".repeat(64);
                let lines =
                    names.map(|name| format!("# tensor sha256 {zeros} U8 [1] \"{name}\"\n"));
                place.write_text(MANIFEST, &lines.collect::<String>())
            }
        };
        (place, len)
    }

    pub(crate) fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(&self.input)
    }

    /// A file of `F32` scalars. Returns the length of its header.
    fn write(&self, file: &str, names: &[String], metadata: &[(String, String)]) -> u64 {
        let mut json = "{\"__metadata__\":{\"a\":\"\"".to_owned();
        for (key, value) in metadata {
            write!(json, ",\"{key}\":\"{value}\"").unwrap();
        }
        json += "}";
        for (at, name) in names.iter().enumerate() {
            let (start, end) = (4 * at, 4 * at + 4);
            let offsets = format!("\"data_offsets\":[{start},{end}]");
            write!(
                json,
                ",\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1],{offsets}}}"
            )
            .unwrap();
        }
        json += "}";
        let ones = 1f32.to_le_bytes().repeat(names.len());
        fs::write(self.input.join(file), support::by_hand(&json, &ones)).unwrap();
        json.len() as u64
    }

    /// Shards with their names and metadata, and an index with metadata. Returns the length of the
    /// headers and of the index.
    fn write_shards(&self, shards: &[Shard], metadata: &[(String, String)]) -> u64 {
        let mut len = 0;
        let (mut map, mut pairs) = (Vec::new(), Vec::new());
        for (at, (names, metadata)) in shards.iter().enumerate() {
            let file = format!("model-{:05}-of-{:05}.safetensors", at + 1, shards.len());
            len += self.write(&file, names, metadata);
            map.extend(names.iter().map(|name| format!("\"{name}\": \"{file}\"")));
        }
        pairs.extend(
            metadata
                .iter()
                .map(|(key, value)| format!("\"{key}\": \"{value}\"")),
        );
        let (pairs, map) = (pairs.join(",\n"), map.join(",\n"));
        len + self.write_text(
            INDEX,
            &format!("{{\"metadata\": {{{pairs}}}, \"weight_map\": {{{map}}}}}\n"),
        )
    }

    fn write_text(&self, file: &str, text: &str) -> u64 {
        fs::write(self.input.join(file), text).unwrap();
        text.len() as u64
    }
}

pub(crate) fn key(at: usize) -> String {
    format!("a-key-of-metadata-{at}")
}
