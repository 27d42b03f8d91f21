//! Writing a checkpoint again: in other shards, or with other dtypes, other names, fewer tensors.
//!
//! What stays as it is, the system copies from file to file; what is converted goes through a small
//! buffer. The rest is a save like any other, by the rules of [`save`](super::save).

mod cast;
mod choice;
mod metadata;
mod options;
mod report;
mod side_files;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use choice::Choice;
use side_files::{Config, GoingAlong};

use super::file_names::{STEMS, index_of};
use super::locate::Listing;
use super::save::{Taken, is_file, is_single, save_with};
use super::{Checkpoint, LoadOptions, ShardFile};
use crate::checkpoint::save::{SaveOptions, ShardSize, Ties};
use crate::error::{Code, Error, Result};
use crate::io::rights::Rights;
use crate::io::workers::Cancel;

pub use options::{ConvertOptions, ReshardOptions, Shards, SideFiles};
pub use report::{MetadataLeft, ReshardReport};

/// Writes a checkpoint again in other shards: splits one file, merges shards into one, changes their
/// size. No byte of a tensor changes.
///
/// `to` is a folder, or a file that ends in `.safetensors`, as for [`save`](crate::save()), and all that
/// is promised there holds here. It may be the folder that the checkpoint is in: its files are
/// replaced in one step, and removed when the new ones are in place and on the medium. A checkpoint of
/// the same names that is in `to` already is replaced too.
///
/// Names of files, metadata, aliases and the spelling of the index are the checkpoint's, as far as the
/// new shards let them be; [`ReshardReport::metadata_left`] has the rest. In another folder, a
/// checkpoint whose name Hugging Face's libraries would not look for is called `model`.
///
/// Bytes are copied by the system, in runs as long as tensors stay neighbours, and shared where
/// the file system can do that. Memory: the headers, and 1 MiB for each writing thread where the
/// system does not copy; threads write different files.
///
/// # Errors
/// As [`save`](crate::save()); `file-changed` and `file-truncated` where a file of the checkpoint is
/// not what was opened; `ambiguous-checkpoint` where a file would be put beside shards of the same
/// name.
///
/// ```
/// use safeshard_core::{Checkpoint, ReshardOptions, Shards, reshard};
///
/// # use safeshard_core::{Dtype, SaveOptions, SaveTensor, save};
/// # let folder = tempfile::tempdir().unwrap();
/// # let (path, shards) = (folder.path().join("large"), folder.path().join("shards"));
/// # let bytes: &[u8] = &[1, 2, 3];
/// # let tensor = |name| SaveTensor::new(name, Dtype::U8, [3], bytes);
/// # let options = SaveOptions { ties: safeshard_core::Ties::Duplicate, ..Default::default() };
/// # save(vec![tensor("a"), tensor("b")], &path, &options)?;
/// let checkpoint = Checkpoint::open(&path)?;
/// let options = ReshardOptions {
///     shards: Shards::Limit("3 B".parse()?),
///     ..ReshardOptions::default()
/// };
/// let report = reshard(&checkpoint, &shards, &options)?;
/// assert_eq!(report.saved.files.len(), 2);
/// assert_eq!(Checkpoint::open(&shards)?.read("b")?, [1, 2, 3]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn reshard(
    checkpoint: &Checkpoint,
    to: impl AsRef<Path>,
    options: &ReshardOptions,
) -> Result<ReshardReport> {
    let options = ConvertOptions {
        reshard: options.clone(),
        ..ConvertOptions::default()
    };
    convert(checkpoint, to, &options)
}

/// Writes a checkpoint again with other dtypes, other names or fewer tensors, and in other shards if
/// that is wanted too: [`reshard`], with what [`ConvertOptions`] says on the way.
///
/// Names of tied tensors that were stored once are filtered and renamed like all others; where only
/// the name that was recorded is wanted, the tensor is stored under it.
///
/// Memory: besides that of [`reshard`], 3 MiB for each writing thread; a tensor is converted
/// block by block.
///
/// # Errors
/// As [`reshard`]; all tensors that cannot become what was asked for, in one error:
/// `unsupported-cast`, `quantized-weight`, `name-collision`; `quantized-config`; `nothing-left`; `cast-value`.
///
/// ```
/// use safeshard_core::{Checkpoint, ConvertOptions, Dtype, convert};
///
/// # use safeshard_core::{SaveOptions, SaveTensor, save};
/// # let folder = tempfile::tempdir().unwrap();
/// # let (path, half) = (folder.path().join("model"), folder.path().join("half"));
/// # let bytes = 1.5f32.to_le_bytes();
/// # save(vec![SaveTensor::new("w", Dtype::F32, [1], &bytes[..])], &path, &SaveOptions::default())?;
/// let checkpoint = Checkpoint::open(&path)?;
/// let report = convert(&checkpoint, &half, &ConvertOptions::floats_as(Dtype::Bf16))?;
/// assert_eq!(report.cast.len(), 1);
/// assert_eq!(Checkpoint::open(&half)?.read("w")?, [0xC0, 0x3F]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn convert(
    checkpoint: &Checkpoint,
    to: impl AsRef<Path>,
    options: &ConvertOptions,
) -> Result<ReshardReport> {
    let to = to.as_ref();
    check_alone(to)?;
    let load = LoadOptions {
        filter: options.filter.clone(),
        rename: options.rename.clone(),
        dtype: options.dtype.clone(),
        ..LoadOptions::default()
    };
    if options.dequantise.is_some() {
        check_config(checkpoint, to)?;
    }
    let mut choice = Choice::new(checkpoint, &load, options.dequantise)?;
    if choice.is_empty() && checkpoint.tensors().next().is_some() {
        return Err(Error::new(Code::NothingLeft));
    }
    choice.keeps_shards = options.reshard.shards == Shards::Keep;
    let cancel = options.reshard.cancel.as_ref();
    Cancel::check(cancel)?;
    let mut save_options = save_options(checkpoint, to, &choice, &load, &options.reshard);
    let is_single = is_file(to) || is_single(&choice, &save_options)?;
    Cancel::check(cancel)?;
    let metadata_left = metadata::keep(checkpoint, &choice, is_single, &mut save_options)?;
    let config = match options.dequantise {
        Some(_) => Config::WithoutQuantization,
        None => Config::AsItIs,
    };
    let find = |folder: &Path| match options.reshard.side_files {
        SideFiles::Leave => Ok(GoingAlong::default()),
        SideFiles::Carry => GoingAlong::find(checkpoint, folder, config),
    };
    // What cannot go along is said before anything is written; what goes is what is not there when the
    // folder is locked, and nothing of a dead save in it any more.
    let (_, not_carried) = find(&folder_of(to))?.names();
    let along = RefCell::default();
    let durability = save_options.durability;
    let taken = Taken {
        rights: rights(checkpoint)?,
        along: &|folder| {
            let found: GoingAlong = find(folder)?;
            let stages = found.stage(folder, durability);
            along.replace(found);
            stages
        },
    };
    let saved = save_with(&choice, to, &save_options, taken)?;
    let (carried, _) = along.into_inner().names();
    let mut report = ReshardReport {
        saved,
        unlisted: unlisted(checkpoint),
        metadata_left,
        carried,
        not_carried,
        ..ReshardReport::default()
    };
    for outcome in choice.outcomes() {
        report.add(&outcome);
    }
    let names = checkpoint.names().into_iter();
    let left_out = names.filter(|name| !load.is_wanted(name));
    report.left_out = left_out.map(str::to_owned).collect();
    Ok(report)
}

/// Who may read all files of the checkpoint, and so their copy.
fn rights(checkpoint: &Checkpoint) -> Result<Rights> {
    let paths = checkpoint.files().iter().filter_map(ShardFile::path);
    paths.into_iter().try_fold(Rights::New, |rights, path| {
        let more = Rights::at(path)?.without_notes().of_a_copy();
        Ok(rights.and(more))
    })
}

/// Checks that no configuration will say of weights that they are quantised when they are not any more: what
/// lies in the checkpoint's own folder stays as it is.
fn check_config(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    let says_so = checkpoint.quantization().method.is_some();
    match checkpoint.folder() {
        Some(folder) if says_so && is_same(folder, &folder_of(to)) => {
            Err(Error::new(Code::QuantizedConfig).at_path(folder.join("config.json")))
        }
        _ => Ok(()),
    }
}

/// Checks that a single file will not be taken for one of two checkpoints of the same name.
fn check_alone(to: &Path) -> Result<()> {
    let Some(name) = to
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|_| is_file(to))
    else {
        return Ok(());
    };
    let folder = folder_of(to);
    if !folder.is_dir() {
        return Ok(());
    }
    let listing = Listing::read(&folder)?;
    let mut names = listing.names();
    match names.find(|other| index_of(other).as_deref() == Some(name)) {
        None => Ok(()),
        Some(index) => Err(Error::new(Code::AmbiguousCheckpoint)
            .at_path(to)
            .found(format_args!(
                "`{index}` beside it, which would be another one of its name"
            ))
            .help("pass the folder to replace what the index names, or another name")),
    }
}

/// The folder that the files will be in.
fn folder_of(to: &Path) -> PathBuf {
    match to.parent() {
        _ if !is_file(to) => to.to_path_buf(),
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Options that save the checkpoint as it is, but for what is to change.
fn save_options(
    checkpoint: &Checkpoint,
    to: &Path,
    choice: &Choice<'_>,
    load: &LoadOptions,
    options: &ReshardOptions,
) -> SaveOptions {
    let like = SaveOptions::like_in_any_shards(checkpoint);
    let kept = choice.kept_of(&like.aliases).into_iter();
    let aliases = kept.filter_map(|(dropped, kept)| {
        let dropped = load.new_name(dropped)?;
        // Otherwise it is what the tensor is stored as.
        (dropped != kept).then(|| (dropped, kept.to_owned()))
    });
    let is_in_place = checkpoint
        .folder()
        .is_some_and(|folder| is_same(folder, to));
    let is_known = STEMS.contains(&like.stem.as_str());
    SaveOptions {
        aliases: aliases.collect(),
        stem: match is_known || is_in_place {
            true => like.stem,
            false => SaveOptions::default().stem,
        },
        max_shard_size: match options.shards {
            Shards::Limit(size) => size,
            Shards::Keep | Shards::Single => ShardSize::UNLIMITED,
        },
        dialect: options.dialect.unwrap_or(like.dialect),
        // Each was stored for itself.
        ties: Ties::Duplicate,
        losses: options.losses,
        durability: options.durability,
        threads: options.threads,
        progress: options.progress.clone(),
        cancel: options.cancel.clone(),
        ..like
    }
}

/// Whether two paths lead to one folder.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| match path.as_os_str().is_empty() {
        true => fs::canonicalize("."),
        false => fs::canonicalize(path),
    };
    matches!((real(one), real(other)), (Ok(one), Ok(other)) if one == other)
}

/// Tensors that the files hold and the checkpoint does not serve, with their files.
fn unlisted(checkpoint: &Checkpoint) -> Vec<(String, String)> {
    if checkpoint.serves_all {
        return Vec::new();
    }
    let files = checkpoint.files().iter().enumerate();
    let unlisted = files.flat_map(|(at, file)| {
        let names = file
            .names()
            .filter(move |name| !checkpoint.serves(at, name));
        names.map(|name| (file.name().to_owned(), name.to_owned()))
    });
    unlisted.collect()
}
