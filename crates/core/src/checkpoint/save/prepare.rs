//! Everything that a save decides before it touches the disk.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::dialect::{self, IndexContents, Layout};
use super::shards::{self, Sized};
use super::ties::{self, Resolved};
use super::{SaveOptions, SaveReport, SaveTensor, SavedFile};
use crate::format::write::NewHeader;
use crate::{Code, Error, Result};

/// Tensors that can be saved, and what is stored of them.
pub(super) struct Prepared<'p> {
    pub(super) options: &'p SaveOptions,
    tensors: &'p [SaveTensor<'p>],
    /// Positions of those that are stored, in the order given.
    stored: Vec<usize>,
    /// Names of the others, and what they stand for; more of them than tensors where the options say
    /// so.
    aliases: Vec<(String, String)>,
    /// Bytes of each tensor.
    sizes: Vec<u64>,
    /// Bytes of all that are stored.
    pub(super) total_size: u64,
}

/// A file that is to be written.
pub(super) struct NewFile {
    pub(super) header: NewHeader,
    /// Positions of its tensors among all of them, in the order given.
    tensors: Vec<usize>,
}

impl<'p> Prepared<'p> {
    /// Checks the tensors, each for itself and their names, and resolves ties.
    pub(super) fn new(tensors: &'p [SaveTensor<'p>], options: &'p SaveOptions) -> Result<Self> {
        let sizes = sizes(tensors)?;
        let Resolved {
            stored,
            mut aliases,
        } = ties::resolve(tensors, options.ties)?;
        aliases.extend(more_aliases(tensors, &aliases, &options.aliases));
        let stored_sizes = stored.iter().filter_map(|&at| sizes.get(at));
        let total_size = stored_sizes.fold(0, |sum: u64, size| sum.saturating_add(*size));
        Ok(Self {
            options,
            tensors,
            stored,
            aliases,
            sizes,
            total_size,
        })
    }

    /// All tensors in one file.
    pub(super) fn one_file(&self) -> Result<NewFile> {
        self.file(self.stored.clone(), Layout::Single)
    }

    /// One file, or as many shards as the options want.
    pub(super) fn files(&self) -> Result<Vec<NewFile>> {
        let shards = self.shards()?;
        let layout = match shards.as_slice() {
            [_] => Layout::Single,
            _ => Layout::Sharded,
        };
        let files = shards.into_iter().map(|shard| self.file(shard, layout));
        files.collect()
    }

    /// Positions of the tensors of each file.
    pub(super) fn shards(&self) -> Result<Vec<Vec<usize>>> {
        let sized = |&at: &usize| {
            let (tensor, &bytes) = self.tensors.get(at).zip(self.sizes.get(at))?;
            let name = tensor.name.as_str();
            Some(Sized { name, bytes })
        };
        let sized: Vec<_> = self.stored.iter().filter_map(sized).collect();
        let shards = shards::plan(&sized, self.options.max_shard_size, &self.options.sharding)?;
        let positions = |shard: Vec<usize>| {
            let positions = shard.into_iter();
            positions
                .filter_map(|at| self.stored.get(at).copied())
                .collect()
        };
        Ok(shards.into_iter().map(positions).collect())
    }

    fn file(&self, tensors: Vec<usize>, layout: Layout) -> Result<NewFile> {
        let options = self.options;
        let metadata =
            dialect::header_metadata(options.dialect, &options.metadata, &self.aliases, layout)?;
        let described: Vec<_> = self.at(&tensors).map(SaveTensor::described).collect();
        Ok(NewFile {
            header: NewHeader::new(&described, &metadata, options.alignment)?,
            tensors,
        })
    }

    /// The tensors of a file, in the order of their data.
    pub(super) fn in_order(&self, file: &NewFile) -> impl Iterator<Item = &'p SaveTensor<'p>> {
        let order = file.header.order().iter();
        order.filter_map(|&at| self.tensors.get(*file.tensors.get(at)?))
    }

    /// The index of files that have these names.
    pub(super) fn index(&self, files: &[NewFile], names: &[String]) -> Result<Vec<u8>> {
        let shards = files.iter().zip(names).map(|(file, name)| {
            let tensors = self.at(&file.tensors).map(|tensor| tensor.name.as_str());
            (name.clone(), tensors.collect())
        });
        let contents = IndexContents {
            total_size: self.total_size,
            shards: shards.collect(),
            metadata: &self.options.metadata,
            extra: &self.options.index_metadata,
            aliases: &self.aliases,
        };
        dialect::index_bytes(self.options.dialect, &contents)
    }

    /// What is to be said when the files are there under these names.
    pub(super) fn report(&self, files: &[NewFile], names: Vec<String>) -> SaveReport {
        let materialised = self
            .at(&self.stored)
            .filter(|tensor| tensor.data.place().is_none() && tensor.data.is_materialised());
        let files = names.into_iter().zip(files).map(|(name, file)| SavedFile {
            name,
            bytes: file.header.file_len(),
        });
        SaveReport {
            files: files.collect(),
            total_size: self.total_size,
            aliases: self.aliases.iter().cloned().collect(),
            materialised: materialised.map(|tensor| tensor.name.clone()).collect(),
            ..SaveReport::default()
        }
    }

    fn at(&self, positions: &[usize]) -> impl Iterator<Item = &'p SaveTensor<'p>> {
        positions.iter().filter_map(|&at| self.tensors.get(at))
    }
}

/// Of the aliases that the options want, those that mean something: whose name is none yet, and whose
/// tensor is saved, perhaps under another name itself by now.
fn more_aliases(
    tensors: &[SaveTensor<'_>],
    tied: &[(String, String)],
    wanted: &[(String, String)],
) -> Vec<(String, String)> {
    let stored = tensors.iter().map(|tensor| (&*tensor.name, &*tensor.name));
    let tied = tied.iter().map(|(dropped, kept)| (&**dropped, &**kept));
    let kept_of: HashMap<&str, &str> = stored.chain(tied).collect();
    let mut seen = HashSet::new();
    let more = wanted.iter().filter_map(|(name, of)| {
        let kept = kept_of.get(&**of)?;
        let is_new = !kept_of.contains_key(&**name) && seen.insert(name);
        is_new.then(|| (name.clone(), (*kept).to_owned()))
    });
    more.collect()
}

/// Bytes of each tensor, as its dtype and shape say; all that is wrong about them comes at once.
fn sizes(tensors: &[SaveTensor<'_>]) -> Result<Vec<u64>> {
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut problems = Vec::new();
    for tensor in tensors {
        match size(tensor) {
            Ok(size) => sizes.push(size),
            Err(problem) => problems.push(problem.in_tensor(&tensor.name)),
        }
    }
    match problems.is_empty() {
        true => Ok(sizes),
        false => Err(Error::all(problems)),
    }
}

fn size(tensor: &SaveTensor<'_>) -> Result<u64> {
    let expected = tensor.described().byte_len()?;
    match tensor.data.byte_len() {
        Some(found) if found < expected => Err(wrong_size(tensor, Code::TensorShort, found)),
        Some(found) if found > expected => Err(wrong_size(tensor, Code::TensorLong, found)),
        _ => Ok(expected),
    }
}

/// The error of data that are not as many bytes as they must be.
pub(super) fn wrong_size(tensor: &SaveTensor<'_>, code: Code, found: impl fmt::Display) -> Error {
    let (dtype, shape) = (tensor.dtype, &tensor.shape);
    let bytes = dtype.byte_len(shape).unwrap_or_default();
    Error::new(code)
        .expected(format_args!("{bytes} bytes for {dtype} {shape:?}"))
        .found(found)
}
