//! Many files seen as one set of tensors.

mod capped;
mod check;
mod commit;
mod dialect;
mod diff;
#[cfg(feature = "digest")]
mod digest;
mod edit;
mod file_names;
mod from_tensors;
mod index;
mod into_checkpoint;
mod journal;
mod load;
mod locate;
mod names;
mod open;
mod owners;
mod quantized;
mod read;
mod reopen;
mod report;
mod reshard;
mod save;
mod scattered;
mod shard_file;
mod shard_name;
mod unusual;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use owners::Owners;

use crate::error::{Code, Error, Finding, Result};
use crate::format::header::{TensorInfo, UnsupportedTensor};
use crate::io::extent::Extent;
use crate::io::folder::{Folder, Place};
use crate::io::source::{MemorySource, ReadAt};

pub use check::{Verification, VerifyLevel, VerifyOptions, verify, verify_opened};
pub use commit::locked_folder::NotRecovered;
pub use commit::losses::Losses;
pub use dialect::Dialect;
pub use diff::{Change, Changed, DiffOptions, Difference, DtypeChange, Tolerance, diff};
#[cfg(feature = "digest")]
pub use digest::{
    Algorithm, Digest, DigestOf, DigestOptions, Manifest, ManifestEntry, verify_digests,
};
pub use edit::metadata::{MetadataChange, MetadataWrite, change_metadata};
pub use edit::shard_metadata::change_shard_metadata;
pub use edit::write_index::{IndexOutcome, IndexReport, write_index};
pub use from_tensors::ForeignFile;
pub use index::Index;
pub use into_checkpoint::IntoCheckpoint;
pub use load::{
    DtypeRule, Filter, LoadOptions, PartRule, Plan, Planned, Rename, Support, Unsupported,
};
pub use locate::Prefer;
pub use names::natural_order;
pub use open::{Io, OpenOptions};
pub use quantized::{Companion, Quantization, QuantizedTensor, Role, Scheme};
pub use read::Fill;
pub use report::{CastRecord, LoadReport, Mismatch};
pub use reshard::{
    ConvertOptions, MetadataLeft, ReshardOptions, ReshardReport, Shards, SideFiles, convert,
    reshard,
};
pub use save::{
    SaveOptions, SaveReport, SaveTensor, SavedFile, ShardSize, Sharding, Ties, save, write_to,
};
pub use shard_file::ShardFile;

/// A set of named tensors in one file, or in shards with an index.
///
/// Opening reads headers only and checks everything: that every shard is there, is as long as its
/// header says, and holds the tensors that the index places in it. All problems come in one error.
/// Afterwards any part of any tensor can be read, from any thread. The index decides where a tensor
/// is; whatever else the shards hold is not served and is listed in [`Checkpoint::warnings`].
///
/// At most 24 files are open at a time, however many shards there are. Clones are cheap and share everything.
///
/// ```
/// use safeshard_core::{Checkpoint, Dtype};
///
/// # let json = br#"{"w":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}}"#;
/// # let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
/// # bytes.extend_from_slice(json);
/// # bytes.extend_from_slice(&[1, 2, 3, 4]);
/// # let folder = tempfile::tempdir().unwrap();
/// # std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
/// # let path = folder.path();
/// let checkpoint = Checkpoint::open(path)?; // a file, an index, or a folder
/// for tensor in checkpoint.tensors() {
///     println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
/// }
/// assert_eq!(checkpoint.info("w")?.dtype, Dtype::U8);
/// assert_eq!(checkpoint.read("w")?, [1, 2, 3, 4]);
/// assert_eq!(checkpoint.read_slice("w", &[(0u64..2).into(), (1u64..2).into()])?, [2, 4]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Checkpoint {
    path: Option<Arc<Path>>,
    /// Where its index is, or else its first file.
    folder: Option<Arc<dyn Folder>>,
    kind: CheckpointKind,
    files: Arc<[ShardFile]>,
    /// Which file serves a tensor; `None` where there is only one file.
    owners: Option<Arc<Owners>>,
    /// Whether its files hold no tensor but those that it serves: then nobody is asked.
    serves_all: bool,
    index: Option<Arc<Index>>,
    aliases: Arc<BTreeMap<String, String>>,
    warnings: Arc<Vec<Finding>>,
    /// Positions of stored tensors (file, tensor in its header) in natural order of their names.
    order: Arc<OnceLock<Vec<(u32, u32)>>>,
    /// Found when it is first asked for.
    quantization: Arc<OnceLock<Quantization>>,
}

/// What a checkpoint was opened from.
///
/// Complete: one file or several, with an index or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckpointKind {
    /// One file.
    File,
    /// Shards with an index.
    Index,
    /// A list of files, without an index.
    Files,
}

/// Sums over the stored tensors of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// How many tensors there are, each alias counted with the one it stands for.
    pub tensors: u64,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Checkpoint {
    /// Opens what is at `path`: a safetensors file, an index, a folder with either of them, or a
    /// repository in the Hugging Face cache. Links are followed. A path such as `hf://org/name` is a place
    /// with a scheme, which [`OpenOptions::resolver`] has to know.
    ///
    /// Reads headers only: one or two reads a file. If a checkpoint is saved in its place meanwhile, the
    /// one or the other is opened, never a mixture.
    ///
    /// # Errors
    /// Everything that makes the checkpoint unusable, in one error; see [`Error::problems`].
    /// `file-changed` if it was replaced again and again for a second.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// As [`Checkpoint::open`], with options.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        open::open(path.as_ref(), options)
    }

    /// Opens what is at a place: in memory, or wherever somebody's [`Folder`] leads. A repository in the
    /// Hugging Face cache is found by its path alone.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_place(place: &Place, options: &OpenOptions) -> Result<Self> {
        open::open_place(place, options)
    }

    /// Opens a list of files as one checkpoint, without an index. No name may be in two of them.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; `duplicate-across-files`.
    pub fn open_files(paths: &[impl AsRef<Path>], options: &OpenOptions) -> Result<Self> {
        let paths: Vec<_> = paths
            .iter()
            .map(|path| path.as_ref().to_path_buf())
            .collect();
        open::open_files(&paths, options)
    }

    /// Opens named sources of any kind as one checkpoint, without an index.
    ///
    /// # Errors
    /// As [`Checkpoint::open_files`].
    pub fn from_sources(
        sources: Vec<(String, Arc<dyn ReadAt>)>,
        options: &OpenOptions,
    ) -> Result<Self> {
        open::open_sources(sources, options)
    }

    /// Opens the bytes of one file, whoever owns them: a `Vec<u8>`, an `Arc<[u8]>`, a mapping. They are
    /// not copied.
    ///
    /// # Errors
    /// As [`Header::parse`](crate::Header::parse).
    pub fn from_bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        open::open_bytes(MemorySource::new(bytes), &OpenOptions::default())
    }

    fn new(
        kind: CheckpointKind,
        files: Vec<ShardFile>,
        owners: Option<Owners>,
        index: Option<Index>,
    ) -> Self {
        // Each name that an owner is known of is in that file.
        let stored = files.iter().map(|file| file.header.len());
        let serves_all = owners
            .as_ref()
            .is_none_or(|owners| owners.len() == stored.sum::<usize>());
        let mut checkpoint = Self {
            path: None,
            folder: None,
            kind,
            files: files.into(),
            owners: owners.map(Arc::new),
            serves_all,
            index: index.map(Arc::new),
            aliases: Arc::default(),
            warnings: Arc::default(),
            order: Arc::default(),
            quantization: Arc::default(),
        };
        checkpoint.aliases = Arc::new(checkpoint.recorded_aliases());
        checkpoint
    }

    /// Notes what is unusual about it, while it is being opened: nobody shares it yet.
    fn warn(&mut self, of: impl IntoIterator<Item = Error>) {
        if let Some(warnings) = Arc::get_mut(&mut self.warnings) {
            warnings.extend(of.into_iter().map(Finding::warning));
        }
    }

    /// Where it was opened, if it was opened by one path, or one place with a scheme.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What it was opened from.
    pub fn kind(&self) -> CheckpointKind {
        self.kind
    }

    /// The folder on a disk that its index is in, or else its first file.
    fn folder(&self) -> Option<&Path> {
        self.folder.as_ref()?.local()
    }

    /// Its files, in the order of the index or of the list.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

    /// Its index.
    pub fn index(&self) -> Option<&Index> {
        self.index.as_deref()
    }

    /// What is unusual about it but stops nothing: tensors and files that are not served, a wrong
    /// `total_size`, odd metadata.
    pub fn warnings(&self) -> &[Finding] {
        &self.warnings
    }

    /// The tensors it holds, each once, in natural order of their names (`layer.2` before
    /// `layer.10`).
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        let order = self.order().iter();
        order.filter_map(|&(file, position)| self.at(file, position))
    }

    /// Tensors of unknown dtype, which can be named but not read; none unless
    /// [`UnknownDtype::Keep`](crate::UnknownDtype::Keep) was asked for.
    pub fn unsupported(&self) -> impl Iterator<Item = UnsupportedTensor<'_>> {
        let files = self.files.iter().enumerate();
        files.flat_map(move |(file, shard)| {
            let tensors = shard.header.unsupported();
            tensors.filter(move |tensor| self.serves(file, tensor.name))
        })
    }

    /// The names it answers to, aliases included, in natural order.
    pub fn names(&self) -> Vec<&str> {
        let stored = self.tensors().map(|tensor| tensor.name);
        let mut names: Vec<_> = stored
            .chain(self.aliases.keys().map(String::as_str))
            .collect();
        if !self.aliases.is_empty() {
            // The stored ones are in order, and are only merged with the others.
            names.sort_by(|a, b| natural_order(a, b));
        }
        names
    }

    /// Names of tied tensors that were stored once, by the name that was kept: `dropped -> kept`,
    /// as huggingface_hub records them.
    pub fn aliases(&self) -> &BTreeMap<String, String> {
        &self.aliases
    }

    /// Whether it answers to that name.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Dtype, shape and place of a tensor. For an alias, those of the tensor that was kept, under
    /// its own name.
    ///
    /// # Errors
    /// `tensor-missing`, with the reason and the name that was probably meant; `unknown-dtype`.
    pub fn info(&self, name: &str) -> Result<TensorInfo<'_>> {
        let (file, position) = self.find(name).ok_or_else(|| self.missing(name))?;
        self.at(file, position)
            .ok_or_else(|| self.unknown_dtype(name))
    }

    /// The file that serves a tensor.
    pub fn file_of(&self, name: &str) -> Option<&ShardFile> {
        let (file, _) = self.find(name)?;
        self.files.get(file as usize)
    }

    /// Where the bytes of a tensor lie: in a file behind its header, or wherever else. Reads nothing.
    ///
    /// # Errors
    /// As [`Checkpoint::info`].
    ///
    /// ```
    /// use safeshard_core::{Checkpoint, Dtype, SaveTensor, write_to};
    ///
    /// let mut file = Vec::new();
    /// write_to(vec![SaveTensor::new("w", Dtype::U8, [2], vec![7, 8])], &mut file, &Default::default())?;
    /// let end = file.len() as u64;
    /// let checkpoint = Checkpoint::from_bytes(file)?;
    /// let extent = checkpoint.extent("w")?;
    /// assert_eq!(extent.range(), end - 2..end);
    /// assert_eq!(extent.bytes(), Some(&[7, 8][..]));
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn extent(&self, name: &str) -> Result<Extent<'_>> {
        let info = self.info(name)?;
        let file = self.file_of(name).ok_or_else(|| self.missing(name))?;
        Ok(file.extent(&info))
    }

    /// A value of `__metadata__`, such as `format`: of the first file that has the key.
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        self.files
            .iter()
            .find_map(|file| file.header.metadata_value(key))
    }

    /// Sums over its tensors.
    pub fn totals(&self) -> Totals {
        self.places()
            .filter_map(|(file, position)| self.at(file, position))
            .fold(Totals::default(), |sum, tensor| Totals {
                tensors: sum.tensors + 1,
                parameters: sum.parameters.saturating_add(tensor.elements()),
                bytes: sum.bytes.saturating_add(tensor.byte_len()),
            })
    }

    /// The file that serves a stored tensor.
    fn owner(&self, name: &str) -> Option<usize> {
        match &self.owners {
            Some(owners) => owners.get(name).map(|owner| owner.file as usize),
            None => Some(0),
        }
    }

    /// Whether a tensor that this file holds is the one that is served.
    fn serves(&self, file: usize, name: &str) -> bool {
        self.serves_all || self.owner(name) == Some(file)
    }

    /// A stored tensor's place in the order of the index.
    fn rank(&self, name: &str) -> Option<u32> {
        self.owners.as_ref()?.get(name).map(|owner| owner.rank)
    }

    /// File and position of a tensor, by its name or an alias.
    fn find(&self, name: &str) -> Option<(u32, u32)> {
        let stored = |name: &str| {
            let file = self.owner(name)?;
            let position = self.files.get(file)?.header.position(name)?;
            Some((file as u32, position as u32))
        };
        stored(name).or_else(|| stored(self.aliases.get(name)?))
    }

    fn at(&self, file: u32, position: u32) -> Option<TensorInfo<'_>> {
        let file = self.files.get(file as usize)?;
        file.header.tensor_at(position as usize)
    }

    /// Files and positions of all stored tensors, in the order of the files.
    fn places(&self) -> impl Iterator<Item = (u32, u32)> {
        let files = self.files.iter().enumerate();
        files.flat_map(move |(file, shard)| {
            let positions = 0..shard.header.len();
            let served = positions.filter(move |&at| {
                let tensor = shard.header.tensor_at(at);
                tensor.is_some_and(|tensor| self.serves(file, tensor.name))
            });
            served.map(move |at| (file as u32, at as u32))
        })
    }

    fn order(&self) -> &[(u32, u32)] {
        self.order.get_or_init(|| self.in_natural_order())
    }

    /// Files and positions of all stored tensors, in natural order of their names, for those who need them
    /// once.
    fn in_natural_order(&self) -> Vec<(u32, u32)> {
        let name = |(file, at)| Some((self.at(file, at)?.name, (file, at)));
        let count = self.files.iter().map(|file| file.header.len()).sum();
        let mut tensors = Vec::with_capacity(count);
        tensors.extend(self.places().filter_map(name));
        tensors.sort_unstable_by(|(a, _), (b, _)| natural_order(a, b));
        // Not in their place, which is three times as large.
        let mut order = Vec::with_capacity(tensors.len());
        order.extend(tensors.iter().map(|&(_, place)| place));
        order
    }

    /// Metadata that says `dropped: kept`, where `kept` is a tensor and `dropped` is none.
    ///
    /// huggingface_hub writes it into the header of a single file, and into the index of shards.
    fn recorded_aliases(&self) -> BTreeMap<String, String> {
        match (&self.index, &*self.files) {
            (Some(index), _) => {
                let aliases = index.aliases.iter();
                let served = aliases.filter(|(_, kept)| self.find(kept).is_some());
                served
                    .map(|(dropped, kept)| (dropped.clone(), kept.clone()))
                    .collect()
            }
            (None, [file]) => {
                let is_alias = |(dropped, kept): &(&str, &str)| {
                    file.header.position(kept).is_some() && file.header.position(dropped).is_none()
                };
                let aliases = file.header.metadata().filter(is_alias);
                aliases
                    .map(|(dropped, kept)| (dropped.to_owned(), kept.to_owned()))
                    .collect()
            }
            (None, _) => BTreeMap::new(),
        }
    }

    /// Why there is no such tensor, and which one may have been meant.
    fn missing(&self, name: &str) -> Error {
        let mut error = Error::new(Code::TensorMissing).in_tensor(name);
        if let Some(path) = &self.path {
            error = error.at_path(path);
        }
        let unlisted = self
            .files
            .iter()
            .find(|file| file.header.position(name).is_some());
        if let Some(file) = unlisted {
            return error.found(format_args!(
                "one in `{}`, but the index does not place it there",
                file.name
            ));
        }
        if self.index.is_some() {
            error = error.found("nothing of this name in the index");
        }
        match names::closest(name, self.names().into_iter()) {
            Some(closest) => error.help(format!("did you mean `{closest}`?")),
            None => error,
        }
    }

    fn unknown_dtype(&self, name: &str) -> Error {
        let error = Error::new(Code::UnknownDtype).in_tensor(name);
        let found = self.find(name).and_then(|(file, position)| {
            let file = self.files.get(file as usize)?;
            file.header.unsupported_at(position as usize)
        });
        match found {
            Some(tensor) => error.found(format_args!("`{}`", tensor.dtype)),
            None => error,
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("kind", &self.kind)
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}
