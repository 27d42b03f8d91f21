//! How a checkpoint is written again.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::checkpoint::commit::losses::Losses;
use crate::checkpoint::dialect::Dialect;
use crate::checkpoint::load::{DtypeRule, Filter, Rename};
use crate::checkpoint::save::ShardSize;
use crate::format::dtype::Dtype;
use crate::io::durability::Durability;
use crate::io::workers::{Cancel, Progress};

/// How [`reshard`](crate::reshard) writes a checkpoint again; by default, like it is.
#[derive(Clone, Default)]
pub struct ReshardOptions {
    /// Into which files.
    pub shards: Shards,
    /// Whose spelling of the index; `None` for that of the checkpoint's own.
    pub dialect: Option<Dialect>,
    /// What becomes of the files beside the checkpoint.
    pub side_files: SideFiles,
    /// What becomes of tensors that would disappear although nobody asked for that.
    pub losses: Losses,
    /// When the call returns.
    pub durability: Durability,
    /// Writing threads; `None` means as many as there are cores, at most 8. Threads write different
    /// shards.
    pub threads: Option<NonZeroUsize>,
    /// Called after every few MiB, from the writing threads, one call at a time; counts the bytes of
    /// tensors that are written.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// Stops everything when cancelled; what was there before stays.
    pub cancel: Option<Cancel>,
}

impl fmt::Debug for ReshardOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReshardOptions")
            .field("shards", &self.shards)
            .field("dialect", &self.dialect)
            .field("side_files", &self.side_files)
            .field("losses", &self.losses)
            .field("durability", &self.durability)
            .field("threads", &self.threads)
            .field("progress", &self.progress.is_some())
            .field("cancel", &self.cancel)
            .finish()
    }
}

/// Into which files a checkpoint is written again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shards {
    /// As many as it has, each with the tensors that it has.
    #[default]
    Keep,
    /// Of so many bytes of tensors at most, filled as Hugging Face's libraries fill them; one file
    /// where that is enough.
    Limit(ShardSize),
    /// One file.
    Single,
}

/// What becomes of the files that lie beside a checkpoint: configuration, tokenizer, licence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SideFiles {
    /// They stay where they are.
    #[default]
    Leave,
    /// They are copied along, as part of the commit: beside old weights they do not appear, and nobody may
    /// read a copy who could not read the file. Left behind are weights of whatever format, what is hidden, folders, and
    /// what is larger than 128 MiB; [`ReshardReport::not_carried`](crate::ReshardReport::not_carried)
    /// has all of it except what is hidden. A file that is there already and says something else is
    /// not replaced, but an error; so are a device or the like, and a link that leads out of the folder,
    /// unless it is one of the Hugging Face cache.
    Carry,
}

/// What [`convert`](crate::convert) changes; by default, nothing.
///
/// ```
/// use std::sync::Arc;
/// use safeshard_core::{ConvertOptions, Dtype};
///
/// // BF16, but norms in F32, and without the optimizer's.
/// let options = ConvertOptions {
///     dtype: Some(Arc::new(|name, dtype| match dtype {
///         Dtype::F32 | Dtype::F16 if name.contains("norm") => Some(Dtype::F32),
///         Dtype::F32 | Dtype::F16 => Some(Dtype::Bf16),
///         _ => None,
///     })),
///     filter: Some(Arc::new(|name| !name.starts_with("optimizer."))),
///     ..ConvertOptions::default()
/// };
/// ```
#[derive(Clone, Default)]
pub struct ConvertOptions {
    /// Which dtype a tensor is to have; what [`Cast`](crate::Cast) does not offer is an error. Quantised
    /// weights are treated as by [`LoadOptions::dtype`](crate::LoadOptions::dtype).
    pub dtype: Option<DtypeRule>,
    /// What quantised weights become: `F32`, `BF16` or `F16`, by the rules of
    /// [`Checkpoint::dequantised`](crate::Checkpoint::dequantised). Their scales are not written. If
    /// `config.json` goes along, it goes without what it says of the quantisation.
    pub dequantise: Option<Dtype>,
    /// Which names are kept, as stored; `None` for all.
    pub filter: Option<Filter>,
    /// What a stored name becomes; two names must not become one.
    pub rename: Option<Rename>,
    /// Into which files, and how.
    pub reshard: ReshardOptions,
}

impl ConvertOptions {
    /// `F64`, `F32`, `BF16` and `F16` become this dtype. Integers, booleans and complex numbers stay as
    /// they are, and so do floats of 8 bits and fewer; a quantised weight is refused.
    pub fn floats_as(dtype: Dtype) -> Self {
        Self {
            dtype: Some(Arc::new(move |_, stored| match stored {
                Dtype::F64 | Dtype::F32 | Dtype::Bf16 | Dtype::F16 => Some(dtype),
                _ => None,
            })),
            ..Self::default()
        }
    }
}

impl fmt::Debug for ConvertOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConvertOptions")
            .field("dtype", &self.dtype.is_some())
            .field("dequantise", &self.dequantise)
            .field("filter", &self.filter.is_some())
            .field("rename", &self.rename.is_some())
            .field("reshard", &self.reshard)
            .finish()
    }
}
