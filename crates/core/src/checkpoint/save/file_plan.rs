//! Everything that a save decides before it touches the disk.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::sharding::{self, Sized};
use super::tensors::{Item, Tensors};
use super::ties::{self, Positions, Resolved};
use super::{SaveOptions, SaveReport, SavedFile};
use crate::checkpoint::capped::Capped;
use crate::checkpoint::dialect::{self, Dialect, IndexContents, Layout, NameList};
use crate::error::{Code, Error, Result};
use crate::format::write::{NewHeader, NewTensor};

/// Tensors that can be saved, and what is stored of them. Positions of tensors fit 32 bits, as was
/// checked.
pub(super) struct FilePlan<'p> {
    pub(super) options: &'p SaveOptions,
    tensors: &'p dyn Tensors,
    /// Those that are stored, in the order given.
    stored: Positions,
    /// Names of the others, and what they stand for; more of them than tensors where the options say
    /// so.
    aliases: Vec<(String, String)>,
    /// Bytes of all that are stored.
    pub(super) total_size: u64,
}

/// A file that is to be written.
pub(super) struct NewFile {
    pub(super) header: NewHeader,
    /// Positions of its tensors among all of them, in the order given.
    tensors: Vec<u32>,
}

impl<'p> FilePlan<'p> {
    /// Checks the tensors, each for itself and their names, and resolves ties.
    pub(super) fn new(tensors: &'p dyn Tensors, options: &'p SaveOptions) -> Result<Self> {
        check_sizes(tensors)?;
        let Resolved {
            stored,
            mut aliases,
        } = ties::resolve(tensors, options.ties)?;
        aliases.extend(more_aliases(tensors, &aliases, &options.aliases));
        let mut prepared = Self {
            options,
            tensors,
            stored,
            aliases,
            total_size: 0,
        };
        let sizes = prepared.sized().map(|sized| sized.bytes);
        prepared.total_size = sizes.fold(0, u64::saturating_add);
        Ok(prepared)
    }

    /// All tensors in one file.
    pub(super) fn one_file(&self) -> Result<NewFile> {
        self.file(self.stored.iter().collect(), Layout::Single)
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
    pub(super) fn shards(&self) -> Result<Vec<Vec<u32>>> {
        if let Some(shards) = self.tensors.shards() {
            return Ok(shards);
        }
        let sized: Vec<_> = self.sized().collect();
        let options = self.options;
        let shards = sharding::plan(&sized, options.max_shard_size, &options.sharding)?;
        let positions = |shard: &Vec<usize>| {
            let positions = shard.iter();
            positions.filter_map(|&at| self.stored.get(at)).collect()
        };
        Ok(shards.iter().map(positions).collect())
    }

    /// Those that are stored, as the planner sees them.
    fn sized(&self) -> impl Iterator<Item = Sized<'p>> {
        self.described().map(|tensor| Sized {
            name: tensor.name,
            // It was found out once that there is such a number.
            bytes: tensor.byte_len().unwrap_or_default(),
        })
    }

    fn file(&self, tensors: Vec<u32>, layout: Layout) -> Result<NewFile> {
        let options = self.options;
        let metadata =
            dialect::header_metadata(options.dialect, &options.metadata, &self.aliases, layout)?;
        let described = |at| self.tensors.described(*tensors.get(at)? as usize);
        let header = NewHeader::new(tensors.len(), described, &metadata, options.alignment)?;
        Ok(NewFile { header, tensors })
    }

    /// The tensors of a file, in the order of their data.
    pub(super) fn in_order<'f>(&'f self, file: &'f NewFile) -> InOrder<'f> {
        InOrder {
            tensors: self.tensors,
            file,
        }
    }

    /// The index of files that have these names.
    pub(super) fn index(&self, files: &[NewFile], names: &[String]) -> Result<Vec<u8>> {
        let tensors = self.tensors;
        let shards = files.iter().zip(names).map(|(file, name)| {
            (
                name.clone(),
                NamesOf {
                    tensors,
                    file,
                    // Sorted, where the index is.
                    in_data_order: self.options.dialect == Dialect::Transformers,
                },
            )
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
        let stored = self.stored.iter();
        let items = stored.filter_map(|at| Item::of(self.tensors, at as usize));
        let materialised = items.filter(|item| {
            let data = &item.data;
            data.place().is_none() && data.is_materialised()
        });
        let files = names.into_iter().zip(files).map(|(name, file)| SavedFile {
            name,
            bytes: file.header.file_len(),
        });
        SaveReport {
            files: files.collect(),
            total_size: self.total_size,
            aliases: self.aliases.iter().cloned().collect(),
            materialised: materialised
                .map(|item| item.tensor.name.to_owned())
                .collect(),
            ..SaveReport::default()
        }
    }

    /// The names of all that are stored.
    pub(super) fn names(&self) -> impl Iterator<Item = &'p str> + Clone {
        self.described().map(|tensor| tensor.name)
    }

    fn described(&self) -> impl Iterator<Item = NewTensor<'p>> + Clone {
        let (tensors, stored) = (self.tensors, self.stored.iter());
        stored.filter_map(move |at| tensors.described(at as usize))
    }
}

/// The tensors of a file, in the order of their data.
#[derive(Clone, Copy)]
pub(super) struct InOrder<'f> {
    tensors: &'f dyn Tensors,
    file: &'f NewFile,
}

impl<'f> InOrder<'f> {
    /// What the file begins with.
    pub(super) fn header(&self) -> &'f NewHeader {
        &self.file.header
    }

    /// The one at this place in the file.
    pub(super) fn get(&self, at: usize) -> Option<Item<'f>> {
        let at = *self.file.header.order().get(at)?;
        Item::of(self.tensors, *self.file.tensors.get(at as usize)? as usize)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Item<'f>> {
        (0..self.file.tensors.len()).filter_map(move |at| self.get(at))
    }
}

/// The names of a file's tensors, for an index.
struct NamesOf<'f> {
    tensors: &'f dyn Tensors,
    file: &'f NewFile,
    in_data_order: bool,
}

impl NameList for NamesOf<'_> {
    fn len(&self) -> usize {
        self.file.tensors.len()
    }

    fn name(&self, at: usize) -> Option<&str> {
        let at = match self.in_data_order {
            true => *self.file.header.order().get(at)? as usize,
            false => at,
        };
        let at = *self.file.tensors.get(at)?;
        Some(self.tensors.described(at as usize)?.name)
    }
}

/// Of the aliases that the options want, those that mean something: whose name is none yet, and whose
/// tensor is saved, perhaps under another name itself by now.
fn more_aliases(
    tensors: &dyn Tensors,
    tied: &[(String, String)],
    wanted: &[(String, String)],
) -> Vec<(String, String)> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let of_interest = wanted.iter().flat_map(|(name, of)| [&**name, &**of]);
    let of_interest: HashSet<&str> = of_interest.collect();
    let stored = (0..tensors.len()).filter_map(|at| Some(tensors.described(at)?.name));
    let stored = stored.filter(|name| of_interest.contains(name));
    let tied = tied.iter().map(|(dropped, kept)| (&**dropped, &**kept));
    let kept_of: HashMap<&str, &str> = stored.map(|name| (name, name)).chain(tied).collect();
    let mut seen = HashSet::new();
    let more = wanted.iter().filter_map(|(name, of)| {
        let kept = kept_of.get(&**of)?;
        let is_new = !kept_of.contains_key(&**name) && seen.insert(name);
        is_new.then(|| (name.clone(), (*kept).to_owned()))
    });
    more.collect()
}

/// Checks that each tensor's data are as many bytes as its dtype and shape say, as far as that is
/// known; much of what is wrong about them comes at once.
fn check_sizes(tensors: &dyn Tensors) -> Result<()> {
    let mut problems = Capped::default();
    for item in (0..tensors.len()).filter_map(|at| Item::of(tensors, at)) {
        if let Err(problem) = check_size(&item) {
            problems.push(|| problem.in_tensor(item.tensor.name));
        }
    }
    problems.into_result()
}

fn check_size(item: &Item<'_>) -> Result<()> {
    let expected = item.tensor.byte_len()?;
    match item.data.byte_len() {
        Some(found) if found < expected => Err(wrong_size(&item.tensor, Code::TensorShort, found)),
        Some(found) if found > expected => Err(wrong_size(&item.tensor, Code::TensorLong, found)),
        _ => Ok(()),
    }
}

/// The error of data that are not as many bytes as they must be.
pub(super) fn wrong_size(tensor: &NewTensor<'_>, code: Code, found: impl fmt::Display) -> Error {
    let (dtype, shape) = (tensor.dtype, tensor.shape);
    let bytes = dtype.byte_len(shape).unwrap_or_default();
    Error::new(code)
        .expected(format_args!("{bytes} bytes for {dtype} {shape:?}"))
        .found(found)
}
