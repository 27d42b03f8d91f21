//! How a checkpoint is saved.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use serde_json::Value;

use super::shard_size::ShardSize;
use crate::checkpoint::commit::losses::Losses;
use crate::checkpoint::dialect::Dialect;
use crate::format::write::DataAlignment;
use crate::io::durability::Durability;
use crate::io::workers::{Cancel, Progress, Workers, threads};

/// How a checkpoint is saved. The default is what `transformers` writes: safetensors files of up to
/// 5 GB with `format: pt`, an index in its spelling where there is more than one.
#[derive(Clone)]
pub struct SaveOptions {
    /// The name without its end: `model` gives `model.safetensors`, or
    /// `model-00001-of-00002.safetensors` and `model.safetensors.index.json`.
    pub stem: String,
    /// A variant such as `fp16`, which goes where transformers puts it:
    /// `model.fp16-00001-of-00002.safetensors` and `model.safetensors.index.fp16.json`.
    pub variant: Option<String>,
    /// Bytes of tensors in a shard, at most; a larger tensor has a shard of its own.
    pub max_shard_size: ShardSize,
    /// Which tensor goes into which shard.
    pub sharding: Sharding,
    /// Whose spelling of the index.
    pub dialect: Dialect,
    /// Metadata for `__metadata__` or the index, wherever the dialect puts it. A `format` goes into
    /// every header; without one, `format: pt` does. A key has one value: another one, of a tied
    /// tensor's record for instance, is an error.
    pub metadata: Vec<(String, String)>,
    /// More for the index's `metadata`, such as `total_parameters`; a single file does not have it.
    pub index_metadata: Vec<(String, Value)>,
    /// What becomes of tensors that share their memory.
    pub ties: Ties,
    /// More names for tensors, `(name, stored tensor)`, recorded like those of tied tensors. Left out is
    /// an alias whose tensor is not saved, or whose name is that of a tensor.
    pub aliases: Vec<(String, String)>,
    /// What becomes of tensors that the save would make disappear although they are not what it replaces.
    pub losses: Losses,
    /// When the save returns.
    pub durability: Durability,
    /// At which multiple the data section of a file begins.
    pub alignment: DataAlignment,
    /// Writing threads; `None` means as many as there are cores, at most 8. Threads write different
    /// shards.
    pub threads: Option<NonZeroUsize>,
    /// Called after every few MiB, from the writing threads, one call at a time; counts the bytes of
    /// tensors.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// Stops the save when cancelled; what was there before stays.
    pub cancel: Option<Cancel>,
}

impl SaveOptions {
    pub(super) fn workers(&self, total: u64) -> Workers<'_> {
        let threads = threads(self.threads);
        Workers::new(threads, self.progress.as_ref(), self.cancel.as_ref(), total)
    }
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            stem: "model".to_owned(),
            variant: None,
            max_shard_size: ShardSize::default(),
            sharding: Sharding::default(),
            dialect: Dialect::default(),
            metadata: Vec::new(),
            index_metadata: Vec::new(),
            ties: Ties::default(),
            aliases: Vec::new(),
            losses: Losses::default(),
            durability: Durability::default(),
            alignment: DataAlignment::default(),
            threads: None,
            progress: None,
            cancel: None,
        }
    }
}

impl fmt::Debug for SaveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaveOptions")
            .field("stem", &self.stem)
            .field("variant", &self.variant)
            .field("max_shard_size", &self.max_shard_size)
            .field("sharding", &self.sharding)
            .field("dialect", &self.dialect)
            .field("metadata", &self.metadata)
            .field("index_metadata", &self.index_metadata)
            .field("ties", &self.ties)
            .field("aliases", &self.aliases)
            .field("losses", &self.losses)
            .field("durability", &self.durability)
            .field("alignment", &self.alignment)
            .field("threads", &self.threads)
            .field("progress", &self.progress.is_some())
            .field("cancel", &self.cancel)
            .finish()
    }
}

/// Which tensor goes into which shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sharding {
    /// As Hugging Face's libraries do: in the order given, a new shard where the next tensor does
    /// not fit, and a tensor that is too large in a shard of its own while the open shard stays open.
    /// Tensors without bytes go where the first of them goes.
    #[default]
    Greedy,
    /// In the order given throughout, in as few shards as that allows, each about as large as the
    /// others. A tensor that is too large keeps its place, in a shard of its own.
    Balanced,
    /// These names in these shards, whatever their size. Every stored tensor has to be named once; a
    /// shard without names is left out.
    Explicit(Vec<Vec<String>>),
}

/// What becomes of tensors that share their memory.
///
/// Tied are tensors of one dtype and shape at the very same bytes. What overlaps only in part is
/// always stored as copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ties {
    /// Store them once, under the name that comes first in the alphabet, and record the others as
    /// `dropped: kept`, as huggingface_hub does.
    #[default]
    Dedup,
    /// Store each of them.
    Duplicate,
    /// Refuse.
    Error,
}
