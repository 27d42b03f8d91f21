//! A checkpoint that is there already as one to be saved: its tensors, read when they are written,
//! and options that save them as they are.

use std::ops::Range;

use serde_json::Value;

use super::{SaveOptions, SaveTensor, ShardSize, Sharding};
use crate::checkpoint::dialect::Dialect;
use crate::checkpoint::file_names::{END, FileName, Role};
use crate::checkpoint::names::natural_order;
use crate::checkpoint::{Checkpoint, CheckpointKind, Index, ShardFile};
use crate::error::Result;
use crate::format::write::DataAlignment;
use crate::io::data::{TensorData, WriteBytes, write_extent};
use crate::io::extent::Extent;

impl Checkpoint {
    /// Its tensors for [`save`](crate::save), in natural order of their names: bytes of files are copied
    /// by the system, as long as no [`write_to`](crate::write_to) wants to see them; bytes in memory are
    /// written from there, others are read in pieces of 8 MiB. It may be saved to where it is.
    ///
    /// [`reshard`](crate::reshard) and [`convert`](crate::convert) do the usual things with them in one
    /// call.
    ///
    /// Aliases are not among them; [`SaveOptions::like`] has them.
    ///
    /// ```
    /// use safeshard_core::{Checkpoint, SaveOptions, SaveTensor, save};
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let (path, small) = (folder.path().join("large"), folder.path().join("small"));
    /// # let bytes: &[u8] = &[1, 2, 3];
    /// # let tensor = |name| SaveTensor::new(name, safeshard_core::Dtype::U8, [3], bytes);
    /// # save(vec![tensor("a"), tensor("b")], &path, &SaveOptions::default())?;
    /// let checkpoint = Checkpoint::open(&path)?;
    /// let options = SaveOptions {
    ///     max_shard_size: "1GB".parse()?,
    ///     sharding: Default::default(),
    ///     ..SaveOptions::like(&checkpoint)
    /// };
    /// save(checkpoint.save_tensors(), &small, &options)?;
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn save_tensors(&self) -> Vec<SaveTensor<'_>> {
        let tensors = self.tensors().filter_map(|tensor| {
            let stored = Stored(self.file_of(tensor.name)?.extent(&tensor));
            Some(SaveTensor::new(
                tensor.name,
                tensor.dtype,
                tensor.shape,
                stored,
            ))
        });
        tensors.collect()
    }
}

/// A tensor of a checkpoint.
pub(in crate::checkpoint) struct Stored<'c>(pub(in crate::checkpoint) Extent<'c>);

impl TensorData for Stored<'_> {
    fn byte_len(&self) -> Option<u64> {
        Some(self.0.len)
    }

    fn place(&self) -> Option<Range<usize>> {
        self.0.bytes().and_then(|bytes| bytes.place())
    }

    fn extent(&self) -> Option<Extent<'_>> {
        Some(self.0)
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        write_extent(&self.0, range, write)
    }
}

impl SaveOptions {
    /// Options that save a checkpoint's tensors as they are: under its file names, in its shards, with
    /// its metadata, aliases and alignment, and an index in the spelling of its own.
    ///
    /// Of shards, the metadata is what all of them have. Whether an index is by huggingface_hub or by
    /// transformers is told by its last byte; what else writes none like transformers' counts as
    /// huggingface_hub's, or as torch's where its shards have more metadata than hub's.
    pub fn like(checkpoint: &Checkpoint) -> Self {
        Self {
            sharding: sharding(checkpoint),
            ..Self::like_in_any_shards(checkpoint)
        }
    }

    /// The same, but for the shards.
    pub(in crate::checkpoint) fn like_in_any_shards(checkpoint: &Checkpoint) -> Self {
        let (stem, variant) = stem_and_variant(checkpoint);
        let is_alias = |name: &str| checkpoint.aliases().contains_key(name);
        // What only some have is about their tensors, such as where torch's ranks began.
        let is_common = |(key, value): &(&str, &str)| {
            let values = checkpoint.files().iter();
            let mut values = values.map(|file| file.header().metadata_value(key));
            values.all(|other| other == Some(*value))
        };
        let header = checkpoint.files().first();
        let header = header.into_iter().flat_map(|file| file.header().metadata());
        let mut metadata: Vec<_> = header
            .filter(is_common)
            // What every save adds.
            .filter(|entry| *entry != ("format", "pt") && !is_alias(entry.0))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let dialect = match checkpoint.index().map(|index| index.dialect) {
            Some(Dialect::Hub) if !metadata.is_empty() => Dialect::Dcp,
            dialect => dialect.unwrap_or_default(),
        };
        let mut index_metadata = Vec::new();
        let index = checkpoint.index().into_iter();
        for (key, value) in index.flat_map(Index::metadata) {
            match (dialect, value) {
                _ if key == "total_size" || is_alias(key) => {}
                // Where the metadata of huggingface_hub's checkpoints is.
                (Dialect::Hub, Value::String(value)) => {
                    metadata.push((key.clone(), value.clone()));
                }
                _ => index_metadata.push((key.clone(), value.clone())),
            }
        }
        let alias = |name: &String| {
            let kept = checkpoint.aliases().get(name)?;
            Some((name.clone(), kept.clone()))
        };
        let aliases = match checkpoint.index() {
            // As they are recorded.
            Some(index) => index.metadata().keys().filter_map(alias).collect(),
            None => checkpoint.aliases().keys().filter_map(alias).collect(),
        };
        Self {
            stem,
            variant,
            max_shard_size: ShardSize::UNLIMITED,
            dialect,
            metadata,
            index_metadata,
            aliases,
            alignment: DataAlignment::of(checkpoint.files().iter().map(ShardFile::header)),
            ..Self::default()
        }
    }
}

fn sharding(checkpoint: &Checkpoint) -> Sharding {
    let mut files: Vec<_> = checkpoint.files().iter().collect();
    if files.len() < 2 {
        return Sharding::Greedy;
    }
    // As they are numbered; an index may name them in another order.
    files.sort_by(|a, b| natural_order(a.name(), b.name()));
    let served = |file: &ShardFile| {
        let tensors = file.header().tensors().map(|tensor| tensor.name);
        let served = tensors.filter(|name| {
            let owner = checkpoint.file_of(name);
            owner.is_some_and(|owner| std::ptr::eq(owner, file))
        });
        let mut served: Vec<_> = served.map(str::to_owned).collect();
        served.sort_by_cached_key(|name| checkpoint.rank(name));
        served
    };
    Sharding::Explicit(files.into_iter().map(served).collect())
}

/// What the checkpoint's files are called, where a save gives such names.
fn stem_and_variant(checkpoint: &Checkpoint) -> (String, Option<String>) {
    let name = match (checkpoint.index(), checkpoint.files()) {
        (Some(index), _) => index.path().file_name().and_then(|name| name.to_str()),
        (None, [file]) if checkpoint.kind() == CheckpointKind::File => Some(file.name()),
        (None, _) => None,
    };
    let Some((name, parsed)) = name.and_then(|name| Some((name, FileName::parse(name)?))) else {
        return (SaveOptions::default().stem, None);
    };
    match parsed.role {
        Role::Single | Role::Index => parsed.names.into_parts(),
        // One shard is not the checkpoint, and must not be saved under its names: they are refused.
        Role::Shard(_) => (name.trim_end_matches(END).to_owned(), None),
    }
}
