//! The index that shards without one need, or one that is right again: made from their headers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::dialect::{IndexContents, index_bytes};
use super::shards::Names;
use super::{Dialect, Durability, change, commit, recover};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::index::Index;
use crate::checkpoint::locate::{Listing, index_of};
use crate::checkpoint::names::sample;
use crate::io::lock::{FolderLock, sweep};
use crate::io::publish::{Mode, Publish};
use crate::io::source::{FileSource, ReadAt, read_vec};
use crate::{Code, Error, OpenOptions, Result, natural_order};

/// An index that was made from headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexReport {
    /// Where it is.
    pub path: PathBuf,
    /// How many files it names.
    pub shards: usize,
    /// How many tensors.
    pub tensors: usize,
    /// Bytes of the tensors.
    pub total_size: u64,
    /// What was done.
    pub outcome: IndexOutcome,
}

/// What became of the index of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexOutcome {
    /// There was none.
    Written,
    /// There was another one.
    Replaced,
    /// It said the same already.
    Unchanged,
}

/// Writes the index of the shards in a folder, from what their headers say. Only headers are read.
///
/// Shards are the files whose names are numbered (`model-00001-of-00003.safetensors`), all of them of
/// one set; where there are none, all safetensors files of the folder. Of an index that is there
/// already, the name, the spelling and the metadata stay, as far as they are still right. The new one
/// takes its place when it is on the medium.
///
/// # Errors
/// `no-checkpoint`; `ambiguous-checkpoint` where the folder has several sets of shards, several indexes,
/// or a single file beside the shards; `shard-missing` where a number is missing;
/// `duplicate-across-files`; whatever is wrong with a header; `io`.
///
/// ```
/// use safeshard_core::{Checkpoint, Dtype, OpenOptions, SaveOptions, SaveTensor, save, write_index};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// for (name, file) in [("a", "model-00001-of-00002"), ("b", "model-00002-of-00002")] {
///     let tensor = SaveTensor::new(name, Dtype::U8, [1], &[7][..]);
///     save(vec![tensor], folder.join(format!("{file}.safetensors")), &SaveOptions::default())?;
/// }
/// assert!(Checkpoint::open(folder).is_err());
/// let report = write_index(folder, &OpenOptions::default())?;
/// assert_eq!(report.path, folder.join("model.safetensors.index.json"));
/// assert_eq!(Checkpoint::open(folder)?.names(), ["a", "b"]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn write_index(folder: impl AsRef<Path>, options: &OpenOptions) -> Result<IndexReport> {
    let folder = folder.as_ref();
    let lock = FolderLock::acquire(folder, None)?;
    let listing = Listing::read(folder)?;
    let set = ShardSet::of(&listing).map_err(|error| error.at_path(folder))?;
    recover::recover(folder, &set.names.single(), &lock)?;
    let path = folder.join(&set.index);
    let paths: Vec<_> = set.files.iter().map(|name| folder.join(name)).collect();
    let checkpoint = Checkpoint::open_files(&paths, options)?;
    let old = Old::at(&path, options)?;
    let shards = set.files.into_iter().zip(checkpoint.files());
    let shards = shards.map(|(name, file)| (name, file.names().collect()));
    let unknown = checkpoint.unsupported();
    let unknown: u64 = unknown.map(|tensor| tensor.end - tensor.start).sum();
    let totals = checkpoint.totals();
    let contents = IndexContents {
        total_size: totals.bytes.saturating_add(unknown),
        shards: shards.collect(),
        metadata: &[],
        extra: &old.metadata(&checkpoint),
        aliases: &[],
    };
    let bytes = index_bytes(old.dialect, &contents)?;
    let report = |outcome| IndexReport {
        path: path.clone(),
        shards: contents.shards.len(),
        tensors: contents.shards.iter().map(|(_, names)| names.len()).sum(),
        total_size: contents.total_size,
        outcome,
    };
    let outcome = match &old.bytes {
        Some(old) if *old == bytes => return Ok(report(IndexOutcome::Unchanged)),
        Some(_) => IndexOutcome::Replaced,
        None => IndexOutcome::Written,
    };
    let mode = match (Mode::at(&path)?, paths.first()) {
        (Mode::New, Some(shard)) => Mode::at(shard)?,
        (mode, _) => mode,
    };
    let mut stage = change::stage(folder, &set.index, mode, &bytes, Durability::Durable)?;
    change::publish(&mut stage, Publish::Replace)?;
    sweep(folder, &lock);
    change::sync(folder, Durability::Durable).map_err(commit::not_yet_safe)?;
    Ok(report(outcome))
}

/// The files that an index is to name.
struct ShardSet {
    files: Vec<String>,
    /// The name of the index.
    index: String,
    names: Names,
}

impl ShardSet {
    fn of(listing: &Listing) -> Result<Self> {
        let indexes = listing.names().filter(|name| index_of(name).is_some());
        let indexes: Vec<_> = indexes.collect();
        let ambiguous = |names: &[&str]| {
            let error = Error::new(Code::AmbiguousCheckpoint);
            error.found(sample(names.iter().copied()))
        };
        if indexes.len() > 1 {
            return Err(ambiguous(&indexes));
        }
        let mut sets: BTreeMap<(&str, usize), Vec<(usize, &str)>> = BTreeMap::new();
        for name in listing.safetensors() {
            if let Some((stem, number, of)) = numbered(name) {
                sets.entry((stem, of)).or_default().push((number, name));
            }
        }
        let (stem, mut files) = match sets.len() {
            0 => ("model", listing.safetensors().collect::<Vec<_>>()),
            1 => {
                let Some(((stem, of), files)) = sets.pop_first() else {
                    return Err(Error::new(Code::NoCheckpoint));
                };
                let missing = (1..=of).filter(|at| files.iter().all(|(number, _)| number != at));
                let missing = missing.map(|at| format!("{stem}-{at:05}-of-{of:05}.safetensors"));
                let missing: Vec<_> = missing.take(of.min(MISSING)).collect();
                if !missing.is_empty() {
                    let error = Error::new(Code::ShardMissing);
                    return Err(error.found(sample(missing.iter().map(String::as_str))));
                }
                (stem, files.into_iter().map(|(_, name)| name).collect())
            }
            _ => {
                let files: Vec<_> = sets.values().filter_map(|files| files.first()).collect();
                let files: Vec<_> = files.into_iter().map(|(_, name)| *name).collect();
                return Err(ambiguous(&files));
            }
        };
        if files.is_empty() {
            return Err(Error::new(Code::NoCheckpoint).expected("shards"));
        }
        files.sort_unstable_by(|a, b| natural_order(a, b));
        let names = names_of(stem)?;
        let index = indexes
            .first()
            .map_or(names.index(), |name| (*name).to_owned());
        let single = index_of(&index).unwrap_or_else(|| names.single());
        if listing.names().any(|name| name == single) {
            return Err(ambiguous(&[&single, &index]).help(
                "whoever reads the folder takes the single file for the checkpoint, and needs no \
                 index for it: move it away first",
            ));
        }
        let files = files.into_iter().map(str::to_owned).collect();
        Ok(Self {
            files,
            index,
            names,
        })
    }
}

/// Of shards that are missing, so many are named.
const MISSING: usize = 1000;

/// Stem, number and count of `model-00001-of-00003.safetensors`.
fn numbered(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    Some((stem, number.parse().ok()?, of.parse().ok()?))
}

/// The names of a checkpoint whose shards begin so: `model`, `model.fp16`, `model-g2`.
fn names_of(stem: &str) -> Result<Names> {
    let generation = stem.rsplit_once("-g");
    let stem = match generation {
        Some((stem, number)) if number.parse::<u32>().is_ok() => stem,
        _ => stem,
    };
    match stem.split_once('.') {
        Some((stem, variant)) => Names::new(stem, Some(variant)),
        None => Names::new(stem, None),
    }
}

/// The index that was there before.
struct Old {
    bytes: Option<Vec<u8>>,
    index: Option<Index>,
    dialect: Dialect,
}

impl Old {
    fn at(path: &Path, options: &OpenOptions) -> Result<Self> {
        let file = match FileSource::open(path) {
            Ok(file) => file,
            Err(error) if error.code() == Code::NotFound => {
                return Ok(Self {
                    bytes: None,
                    index: None,
                    dialect: Dialect::default(),
                });
            }
            Err(error) => return Err(error),
        };
        // Of one that cannot be understood, nothing stays.
        let index = Index::read(&file, &options.limits, None).ok();
        let bytes = match file.len() <= options.limits.index_bytes {
            true => read_vec(&file, 0, file.len())?,
            false => Vec::new(),
        };
        Ok(Self {
            bytes: Some(bytes),
            dialect: index
                .as_ref()
                .map(|index| index.dialect)
                .unwrap_or_default(),
            index,
        })
    }

    /// Of its metadata, what is still right.
    fn metadata(&self, checkpoint: &Checkpoint) -> Vec<(String, Value)> {
        let metadata = self.index.iter().flat_map(Index::metadata);
        let kept = metadata.filter_map(|(key, value)| match key.as_str() {
            "total_size" => None,
            "total_parameters" => {
                let parameters = checkpoint.totals().parameters;
                Some((key.clone(), Value::from(parameters)))
            }
            // What stood for a tensor and is one now.
            _ if checkpoint.contains(key) => None,
            _ => Some((key.clone(), value.clone())),
        });
        kept.collect()
    }
}
