//! The index that shards without one need, or one that is right again: made from their headers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::commit::locked_folder::{Contents, LockedFolder, Target};
use crate::checkpoint::dialect::{Dialect, IndexContents, index_bytes};
use crate::checkpoint::file_names::{FileName, Names, Place, Role, index_of};
use crate::checkpoint::index::Index;
use crate::checkpoint::locate::Listing;
use crate::checkpoint::names::{natural_order, sample};
use crate::checkpoint::open::OpenOptions;
use crate::error::{Code, Error, Result};
use crate::io::engine::ReadOptions;
use crate::io::folder::FolderFile;
use crate::io::rights::Rights;
use crate::io::source::read_vec;
use crate::io::workers::Cancel;

/// An index that was made from headers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
///
/// Complete.
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
/// already, the name, the dialect and the metadata stay, as far as they are still right. The new one
/// takes its place when it is on the disk. Saves into the folder are waited for, unless `cancel` ends that.
///
/// # Errors
/// `no-checkpoint`; `ambiguous-checkpoint` where the folder has several sets of shards, several indexes,
/// or a single file beside the shards; `shard-missing` where a number is missing;
/// `duplicate-across-files`; whatever is wrong with a header; `io`, `cancelled`, `file-changed`;
/// `broken-journal` where a save that died in the folder left something that cannot be understood.
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
/// let report = write_index(folder, &OpenOptions::default(), None)?;
/// assert_eq!(report.path, folder.join("model.safetensors.index.json"));
/// assert_eq!(Checkpoint::open(folder)?.names(), ["a", "b"]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn write_index(
    folder: impl AsRef<Path>,
    options: &OpenOptions,
    cancel: Option<&Cancel>,
) -> Result<IndexReport> {
    let folder = folder.as_ref();
    let locked = LockedFolder::open(folder, cancel)?;
    let listing = Listing::read(folder)?;
    let set = ShardSet::of(&listing).map_err(|error| error.at_path(folder))?;
    let path = folder.join(&set.index);
    let mut target = Target::at(&path)?;
    let paths: Vec<_> = set.files.iter().map(|name| folder.join(name)).collect();
    let checkpoint = Checkpoint::open_files(&paths, options)?;
    let old = Old::at(&path, options)?;
    let shards = set.files.into_iter().zip(checkpoint.files());
    let shards = shards.map(|(name, file)| (name, file.names().collect::<Vec<_>>()));
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
    if let (Rights::New, Some(shard)) = (&target.rights, paths.first()) {
        target.rights = Rights::at(shard)?.without_notes();
    }
    locked.replace_file(target, Contents::Bytes(&bytes), &ReadOptions::default())?;
    Ok(report(outcome))
}

/// The files that an index is to name.
struct ShardSet {
    files: Vec<String>,
    /// The name of the index.
    index: String,
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
        let mut sets: BTreeMap<Set, Vec<(usize, &str)>> = BTreeMap::new();
        for name in listing.safetensors() {
            if let Some(FileName { names, role }) = FileName::parse(name)
                && let Role::Shard(Place {
                    generation,
                    of,
                    number,
                }) = role
            {
                let set = Set {
                    names,
                    generation,
                    of,
                };
                sets.entry(set).or_default().push((number, name));
            }
        }
        let (names, mut files) = match sets.len() {
            0 => (
                Names::new("model", None)?,
                listing.safetensors().collect::<Vec<_>>(),
            ),
            1 => {
                let Some((set, files)) = sets.pop_first() else {
                    return Err(Error::new(Code::NoCheckpoint));
                };
                let missing = set.missing(&files);
                if !missing.is_empty() {
                    let error = Error::new(Code::ShardMissing);
                    return Err(error.found(sample(missing.iter().map(String::as_str))));
                }
                let names = set.names.checked()?;
                (names, files.into_iter().map(|(_, name)| name).collect())
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
        Ok(Self { files, index })
    }
}

/// Files that are numbered as one checkpoint's.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Set {
    names: Names,
    generation: u32,
    of: usize,
}

impl Set {
    /// The names of those that are not among the files; of very many, some.
    fn missing(&self, files: &[(usize, &str)]) -> Vec<String> {
        const NAMED: usize = 1000;
        let there: BTreeSet<usize> = files.iter().map(|(number, _)| *number).collect();
        let missing = (1..=self.of).filter(|number| !there.contains(number));
        let missing = missing.take(NAMED).map(|number| {
            self.names.shard(Place {
                generation: self.generation,
                of: self.of,
                number,
            })
        });
        missing.collect()
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
        let file = match FolderFile::at(path) {
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
        let len = file.source.len();
        let bytes = match len <= options.limits.index_bytes {
            true => read_vec(&*file.source, 0, len)?,
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
