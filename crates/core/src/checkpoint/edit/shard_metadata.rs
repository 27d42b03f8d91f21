//! Changing the metadata in the headers of all shards, as one commit.

use std::path::Path;

use super::metadata::{MetadataChange, MetadataWrite, NewStart, change_metadata};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::commit::NewFiles;
use crate::checkpoint::commit::locked_folder::{Contents, stage_contents};
use crate::checkpoint::commit::losses::Losses;
use crate::checkpoint::commit::target_folder::TargetFolder;
use crate::checkpoint::dialect::{IndexContents, index_bytes};
use crate::checkpoint::file_names::{FileName, Names};
use crate::checkpoint::index::Index;
use crate::checkpoint::names::natural_order;
use crate::checkpoint::open::OpenOptions;
use crate::checkpoint::shard_file::ShardFile;
use crate::error::{Code, Error, Result};
use crate::io::durability::Durability;
use crate::io::engine::ReadOptions;
use crate::io::rights::Rights;
use crate::io::source::FileSource;

/// Changes the metadata in the header of every shard of the checkpoint at a path, which is where transformers
/// and accelerate look for `format`, in one step: whoever reads finds all of the old headers or all of the new
/// ones. What the index says of itself stays, and so do tensors that it does not list. Of a single file, it is
/// [`change_metadata`].
///
/// All shards are written anew, by the system where it can copy, under names that are free, and so need their
/// size once more on the disk meanwhile.
///
/// # Errors
/// As [`change_metadata`]; `index-missing` for several files without an index; `would-be-lost` where a single
/// file, or a shard of another index, would go with the old shards.
///
/// ```
/// use safeshard_core::{
///     Checkpoint, Dtype, MetadataChange, OpenOptions, ReadOptions, SaveOptions, SaveTensor,
///     change_shard_metadata, save,
/// };
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// let options = SaveOptions {
///     max_shard_size: "1 B".parse()?,
///     ..SaveOptions::default()
/// };
/// let tensor = |name| SaveTensor::new(name, Dtype::U8, [1], &[7][..]);
/// save(vec![tensor("a"), tensor("b")], folder, &options)?;
/// let author = MetadataChange::Set("author".into(), "me".into());
/// change_shard_metadata(folder, &[author], &OpenOptions::default(), &ReadOptions::default())?;
/// let checkpoint = Checkpoint::open(folder)?;
/// let mut shards = checkpoint.files().iter();
/// assert!(shards.all(|shard| shard.header().metadata_value("author") == Some("me")));
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn change_shard_metadata(
    path: impl AsRef<Path>,
    changes: &[MetadataChange],
    open: &OpenOptions,
    read: &ReadOptions,
) -> Result<MetadataWrite> {
    let path = path.as_ref();
    // Whatever its dtype: no tensor is touched.
    let open = open.keeping_unknown();
    let before = Checkpoint::open_with(path, &open)?;
    let Some(index) = before.index() else {
        return match before.files() {
            [_] => change_metadata(path, changes, &open, read),
            _ => Err(Error::new(Code::IndexMissing)),
        };
    };
    let folder = index.path().parent().unwrap_or(Path::new(""));
    // What the index does not list goes from the old shards into the new ones.
    let cancel = read.cancel.as_ref();
    let to = TargetFolder::open(
        folder,
        names_of(index)?,
        Losses::Accept,
        Rights::New,
        cancel,
    )?;
    // Under the lock, once more: another save may just have ended.
    let checkpoint = Checkpoint::open_with(index.path(), &open)?;
    let Some(index) = checkpoint.index() else {
        return Err(Error::new(Code::FileChanged).at_path(path));
    };
    let mut shards: Vec<_> = checkpoint.files().iter().enumerate().collect();
    // As they are numbered; an index may name them in another order.
    shards.sort_by(|(_, a), (_, b)| natural_order(a.name(), b.name()));
    let mut differs = false;
    for (_, shard) in &shards {
        differs = differs || NewStart::of(&source_of(shard)?, changes, &open)?.is_some();
    }
    if !differs {
        return Ok(MetadataWrite::Nothing);
    }
    let old: Vec<_> = shards.iter().map(|(_, shard)| shard.name()).collect();
    to.check_goes(&old)?;
    let names = to.shard_names(shards.len())?;
    let mut stages = Vec::with_capacity(shards.len());
    for ((_, shard), name) in shards.iter().zip(&names) {
        let source = source_of(shard)?;
        let start = NewStart::of(&source, changes, &open)?;
        let contents = match &start {
            Some(start) => start.before(&source),
            None => Contents::Rest(&[], &source, 0),
        };
        let rights = to.rights_for(name)?;
        stages.push(stage_contents(to.folder(), name, &rights, contents, read)?);
    }
    let shards = shards.iter().zip(&names);
    let listed = shards.map(|((at, shard), name)| {
        let listed = shard
            .names()
            .filter(|tensor| checkpoint.serves(*at, tensor));
        (name.clone(), listed.collect())
    });
    let bytes = index_with(&checkpoint, index, listed.collect())?;
    let durability = Durability::Durable;
    let new = NewFiles {
        main: to.stage(&to.index_name(), &bytes, durability)?,
        shards: stages,
        along: Vec::new(),
    };
    to.commit(new, durability)?;
    Ok(MetadataWrite::Replaced)
}

fn names_of(index: &Index) -> Result<Names> {
    let name = index.path().file_name().and_then(|name| name.to_str());
    let parsed = name.and_then(FileName::parse);
    let parsed = parsed.ok_or_else(|| Error::new(Code::CheckpointName).at_path(index.path()))?;
    parsed.names.checked()
}

fn source_of(shard: &ShardFile) -> Result<FileSource> {
    match shard.path() {
        Some(path) => FileSource::open(path),
        None => Err(Error::new(Code::NotRegularFile).found(shard.name())),
    }
}

/// The index with other names of files.
fn index_with(
    checkpoint: &Checkpoint,
    index: &Index,
    shards: Vec<(String, Vec<&str>)>,
) -> Result<Vec<u8>> {
    let (mut total_size, mut extra) = (checkpoint.totals().bytes, Vec::new());
    for (key, value) in index.metadata() {
        match (key.as_str(), value.as_u64()) {
            ("total_size", Some(bytes)) => total_size = bytes,
            _ => extra.push((key.clone(), value.clone())),
        }
    }
    let contents = IndexContents {
        total_size,
        shards,
        metadata: &[],
        extra: &extra,
        aliases: &[],
    };
    index_bytes(index.dialect, &contents)
}
