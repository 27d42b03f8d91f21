//! Saving: tensors become one file, or shards with an index, such that every reader finds the old
//! checkpoint or the new one at every instant.

mod file_plan;
pub(super) mod from_checkpoint;
mod options;
#[cfg(test)]
mod oracle;
mod shard_size;
mod sharding;
pub(super) mod tensors;
pub(super) mod ties;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use file_plan::{FilePlan, NewFile};
use tensors::Tensors;
use write::{Output, is_in_file, write_file};

use super::commit::NewFiles;
use super::commit::locked_folder::{LockedFolder, NotRecovered, Target};
use super::commit::losses::check_target;
use super::commit::target_folder::TargetFolder;
use super::file_names::{Names, Place};
use crate::checkpoint::names::natural_order;
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::format::write::NewTensor;
use crate::io::data::TensorData;
use crate::io::publish::Stage;
use crate::io::rights::Rights;
use crate::io::sink::{Origin, Sink};
use crate::io::workers::Workers;

pub use options::{SaveOptions, Sharding, Ties};
pub use shard_size::ShardSize;

/// A tensor that is to be saved.
pub struct SaveTensor<'t> {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; none for a scalar.
    pub shape: Vec<u64>,
    /// Its bytes: little-endian, row-major.
    pub data: Box<dyn TensorData + 't>,
}

impl<'t> SaveTensor<'t> {
    /// A tensor of these bytes.
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: impl Into<Vec<u64>>,
        data: impl TensorData + 't,
    ) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.into(),
            data: Box::new(data),
        }
    }

    /// Tensors in natural order of their names (`layer.2` before `layer.10`), for those who have them in
    /// no order of their own.
    ///
    /// # Errors
    /// All that there are, in one.
    pub fn in_natural_order(tensors: impl IntoIterator<Item = Result<Self>>) -> Result<Vec<Self>> {
        let (mut in_order, mut problems) = (Vec::new(), Vec::new());
        for tensor in tensors {
            match tensor {
                Ok(tensor) => in_order.push(tensor),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(Error::all(problems));
        }
        in_order.sort_by(|a, b| natural_order(&a.name, &b.name));
        Ok(in_order)
    }

    /// As a header describes it.
    pub(super) fn described(&self) -> NewTensor<'_> {
        NewTensor {
            name: &self.name,
            dtype: self.dtype,
            shape: &self.shape,
        }
    }
}

impl fmt::Debug for SaveTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaveTensor")
            .field("name", &self.name)
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// What a save wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveReport {
    /// The files with tensors, in the order of their numbers.
    pub files: Vec<SavedFile>,
    /// The name of the index, if there is one.
    pub index: Option<String>,
    /// Bytes of all tensors that were stored.
    pub total_size: u64,
    /// Names that were recorded instead of being stored, and the tensor that each stands for: of tied
    /// tensors, and [`SaveOptions::aliases`].
    pub aliases: BTreeMap<String, String>,
    /// Tensors whose bytes had to be made by copying, because they do not lie in memory as a file
    /// holds them.
    pub materialised: Vec<String>,
    /// Files of the checkpoint before that are still there, and that no reader takes for it. The next save
    /// tries again to remove them.
    pub left_behind: Vec<PathBuf>,
    /// Saves of other checkpoints in the folder that died there, and could be neither finished nor undone.
    pub not_recovered: Vec<NotRecovered>,
}

/// A file that was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavedFile {
    /// Its name in the folder.
    pub name: String,
    /// Its length, header included.
    pub bytes: u64,
}

/// Saves tensors as one checkpoint.
///
/// A path that ends in `.safetensors` is that one file, whatever its size; its folder must exist. Any
/// other path is a folder, which is made if need be: it gets one file, or shards with an index where
/// the tensors are more than [`SaveOptions::max_shard_size`].
///
/// - At every instant, whoever reads `path` finds what was there before or what is saved now, whole:
///   after a failure, a kill or a power failure too. When the call returns, every reader finds what is
///   saved now, and everything is on the disk, unless [`Durability::Cached`](crate::Durability::Cached) was asked for.
/// - In a folder, the checkpoint of the same stem and variant is replaced, and exactly its files are
///   removed. With the path of a file, nothing but that file is replaced.
/// - A tensor that is not part of what is replaced is not lost: see [`SaveOptions::losses`]. Nor is a
///   file that comes into the place of a new one while it is written.
/// - Where a file is replaced, the new one has its mode, owner, group, access control list and
///   attributes, as far as the system lets us, and otherwise fewer rights, never more; a link is
///   replaced itself and never written through.
/// - The same tensors and options give the same bytes, however many threads write them.
/// - Tensors may be read from the very files that are replaced; see
///   [`Checkpoint::save_tensors`](crate::Checkpoint::save_tensors).
///
/// Memory: the headers, and for each writing thread 64 KiB, or 16 MiB where files of 16 MiB and more
/// are to be durable. A tensor that lies in memory as a file holds it is not copied; one that lies in a
/// file is copied by the system.
///
/// # Errors
/// What was there before stays, except where the last things fail, to bring the new names to the
/// disk and to remove what a reader would take for the checkpoint (`old-checkpoint-left`): then what
/// is saved now is there, and the error says so. Before anything is on disk: `would-be-lost`, `name-collision`, `reserved-name`,
/// `shape-overflow`, `sub-byte-remainder`, `tied-tensors`, `shard-list`, `checkpoint-name`,
/// `metadata-clash`; `tensor-short` and `tensor-long` where a tensor's data are known not to be as many
/// bytes as its dtype and shape say; `not-a-regular-file` where something is in the way that must not
/// be replaced. Later: `file-changed` where somebody put a file into the place of a new one; `tensor-short`, `tensor-long`, whatever else a tensor's data answer, `io` with
/// the file, `cancelled`; `broken-journal` where a save that died left something that cannot be
/// understood.
///
/// ```
/// use safeshard_core::{Checkpoint, Dtype, SaveOptions, SaveTensor, save};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model");
/// let scale: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
/// let step = 7i64.to_le_bytes();
/// let tensors = vec![
///     SaveTensor::new("scale", Dtype::F32, [2], scale.as_slice()),
///     SaveTensor::new("step", Dtype::I64, [], step.as_slice()),
/// ];
/// let report = save(tensors, &path, &SaveOptions::default())?;
/// assert_eq!(report.files[0].name, "model.safetensors");
/// assert_eq!(report.total_size, 2 * 4 + 8);
/// assert_eq!(Checkpoint::open(&path)?.read("scale")?, scale);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn save(
    tensors: Vec<SaveTensor<'_>>,
    path: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<SaveReport> {
    save_with(&tensors, path.as_ref(), options, Taken::default())
}

/// What a save takes over from the checkpoint that it writes again.
pub(super) struct Taken<'s> {
    /// Who may read new files that replace none.
    pub(super) rights: Rights,
    /// Stages files that go along in a folder, which is locked.
    pub(super) along: &'s dyn Fn(&Path) -> Result<Vec<Stage>>,
}

impl Default for Taken<'_> {
    fn default() -> Self {
        Self {
            rights: Rights::New,
            along: &|_| Ok(Vec::new()),
        }
    }
}

pub(super) fn save_with(
    tensors: &dyn Tensors,
    path: &Path,
    options: &SaveOptions,
    taken: Taken<'_>,
) -> Result<SaveReport> {
    match is_file(path) {
        true => save_file(tensors, path, options, taken),
        false => save_folder(tensors, path, options, taken),
    }
}

/// Whether a save gets the path of a file, and not of a folder.
pub(super) fn is_file(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "safetensors")
}

/// Whether these tensors would be one file in a folder.
pub(super) fn is_single(tensors: &dyn Tensors, options: &SaveOptions) -> Result<bool> {
    let shards = FilePlan::new(tensors, options)?.shards()?;
    Ok(shards.len() == 1)
}

/// Writes tensors as one file to anything that takes bytes: the very bytes that [`save`] gives to a
/// path that ends in `.safetensors`. Nothing is sought, and nothing is synced.
///
/// Memory: the header. Tensors in memory are handed to `writer` from there, large ones in pieces of
/// 8 MiB; a small one is a write of its own, so wrap a slow writer in a [`BufWriter`](io::BufWriter).
///
/// # Errors
/// As [`save`], as far as tensors, metadata and ties are concerned; `io` with what `writer` answered;
/// `cancelled`.
///
/// ```
/// use safeshard_core::{Checkpoint, Dtype, SaveOptions, SaveTensor, write_to};
///
/// let tensor = SaveTensor::new("w", Dtype::U8, [3], &[1, 2, 3][..]);
/// let mut bytes = Vec::new();
/// write_to(vec![tensor], &mut bytes, &SaveOptions::default())?;
/// assert_eq!(Checkpoint::from_bytes(bytes)?.read("w")?, [1, 2, 3]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn write_to(
    tensors: Vec<SaveTensor<'_>>,
    mut writer: impl io::Write,
    options: &SaveOptions,
) -> Result<()> {
    let plan = FilePlan::new(&tensors, options)?;
    let file = plan.one_file()?;
    let workers = options.workers(plan.total_size);
    let failed = |error| Error::io(Code::Io, error);
    let mut sink = |bytes: &[u8]| writer.write_all(bytes).map_err(failed);
    let output = Output::Writer(&mut sink);
    write_file(output, plan.in_order(&file), &workers)?;
    writer.flush().map_err(failed)
}

/// Replaces one file and looks at nothing else in its folder but what hangs on that file.
fn save_file(
    tensors: &dyn Tensors,
    path: &Path,
    options: &SaveOptions,
    taken: Taken<'_>,
) -> Result<SaveReport> {
    let plan = FilePlan::new(tensors, options)?;
    let file = plan.one_file()?;
    let target = Target::at(path)?;
    let Target { folder, name, .. } = target;
    check_target(folder, name, options.losses, plan.names())?;
    let rights = match target.rights {
        Rights::New => taken.rights,
        kept => kept,
    };
    let workers = options.workers(plan.total_size);
    // Without the lock of the folder, so that saves of different files do not wait for each other: as
    // long as the descriptor is open, nobody sweeps the stage.
    let (main, open) = stage(&plan, &file, folder, name, &rights, &workers)?;
    let locked = LockedFolder::open(folder, options.cancel.as_ref())?;
    drop(open);
    let along = (taken.along)(folder)?;
    workers.go_on()?;
    let new = NewFiles {
        main,
        shards: Vec::new(),
        along,
    };
    let not_recovered = locked.replace(new, target.replaced, options.durability)?;
    Ok(SaveReport {
        not_recovered,
        ..plan.report(&[file], vec![name.to_owned()])
    })
}

/// Replaces the checkpoint of the options' stem and variant.
fn save_folder(
    tensors: &dyn Tensors,
    folder: &Path,
    options: &SaveOptions,
    taken: Taken<'_>,
) -> Result<SaveReport> {
    let plan = FilePlan::new(tensors, options)?;
    let files = plan.files()?;
    let names = Names::new(&options.stem, options.variant.as_deref())?;
    let of = files.len();
    // An index that cannot be written is refused before there is a folder.
    let usual = (1..=of).map(|number| {
        names.shard(Place {
            generation: 1,
            of,
            number,
        })
    });
    let usual: Vec<_> = usual.collect();
    let mut index = match of > 1 {
        true => Some(plan.index(&files, &usual)?),
        false => None,
    };

    let cancel = options.cancel.as_ref();
    let mut to = TargetFolder::open(folder, names, options.losses, taken.rights, cancel)?;
    let names = match index {
        Some(_) => to.shard_names(of)?,
        None => vec![to.single_name(plan.names())?],
    };
    if index.is_some() && names != usual {
        drop(index.take());
        index = Some(plan.index(&files, &names)?);
    }
    let rights = match (&index, names.as_slice()) {
        (None, [single]) => to.rights_for(single)?,
        _ => to.rights().clone(),
    };
    let workers = options.workers(plan.total_size);
    let jobs: Vec<_> = files.iter().zip(&names).collect();
    let mut shards = workers.each(
        jobs,
        || (),
        |(file, name), ()| {
            let (stage, _closed) = stage(&plan, file, to.folder(), name, &rights, &workers)?;
            Ok(stage)
        },
    )?;
    workers.go_on()?;
    let index_name = to.index_name();
    let main = match &index {
        Some(bytes) => to.stage(&index_name, bytes, options.durability)?,
        // A save without an index has one file.
        None => shards.remove(0),
    };
    let along = (taken.along)(to.folder())?;
    let new = NewFiles {
        main,
        shards,
        along,
    };
    let removed = to.commit(new, options.durability)?;
    Ok(SaveReport {
        index: index.map(|_| index_name),
        left_behind: removed.left_behind,
        not_recovered: std::mem::take(&mut to.not_recovered),
        ..plan.report(&files, names)
    })
}

/// Writes a file under the name of a stage.
fn stage(
    plan: &FilePlan<'_>,
    file: &NewFile,
    folder: &Path,
    name: &str,
    rights: &Rights,
    workers: &Workers<'_>,
) -> Result<(Stage, File)> {
    let (stage, descriptor) = Stage::create(folder, name, rights)?;
    let write = || {
        let len = file.header.file_len();
        let origin = match plan.in_order(file).iter().any(|item| is_in_file(&item)) {
            true => Origin::Files,
            false => Origin::Memory,
        };
        let mut sink = Sink::new(&descriptor, len, plan.options.durability, origin)?;
        write_file(Output::File(&mut sink), plan.in_order(file), workers)?;
        sink.finish()
    };
    write().map_err(|error| error.at_path(stage.target()))?;
    Ok((stage, descriptor))
}
