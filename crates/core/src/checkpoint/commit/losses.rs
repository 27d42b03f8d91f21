//! Tensors that a save would make disappear although nobody asked for that: refused before anything is
//! written.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::replaced_files::parsed_index;
use crate::checkpoint::file_names::{Names, STEMS, index_of};
use crate::checkpoint::locate::Listing;
use crate::checkpoint::names::sample;
use crate::error::{Code, Error, Result};

/// What becomes of tensors that a save would make disappear although they are not part of what it
/// replaces: those in files of the old checkpoint that its index does not list, and those that an index
/// places in a file that is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Losses {
    /// They are named in an error, and nothing is written.
    #[default]
    Refuse,
    /// They go.
    Accept,
}

/// That no index of the folder places a tensor in this file that the new one does not have.
///
/// # Errors
/// `would-be-lost` with the index; `io`.
pub(in crate::checkpoint) fn check_target<'t>(
    folder: &Path,
    name: &str,
    losses: Losses,
    tensors: impl Iterator<Item = &'t str> + Clone,
) -> Result<()> {
    let target = folder.join(name);
    if losses == Losses::Accept || !target.exists() {
        return Ok(());
    }
    let listing = Listing::read(folder)?;
    let here = listing.names().filter(|name| index_of(name).is_some());
    let here = here.map(|index| (folder.join(index), String::new()));
    for (path, below) in here.chain(indexes_above(folder)) {
        let Some(index) = parsed_index(&path)? else {
            continue;
        };
        let name = format!("{below}{name}");
        let placed = index.weight_map.iter().filter(|(_, file)| {
            let shard = index.shards.get(*file as usize);
            shard.is_some_and(|shard| shard.as_str().eq_ignore_ascii_case(&name))
        });
        let mut placed: Vec<&str> = placed.map(|(tensor, _)| tensor).collect();
        if placed.is_empty() {
            continue;
        }
        let stays: HashSet<&str> = tensors.clone().collect();
        placed.retain(|tensor| !stays.contains(tensor));
        placed.sort_unstable();
        let index = path.file_name().unwrap_or_default().display();
        let why = format!("that `{index}` places there");
        lost(&target, placed.into_iter(), &why)?;
    }
    Ok(())
}

/// Indexes in the folder above that may name files in this one, and how they name the folder.
pub(super) fn indexes_above(folder: &Path) -> Vec<(PathBuf, String)> {
    let real = fs::canonicalize(folder).unwrap_or_default();
    let (Some(above), Some(name)) = (real.parent(), real.file_name()) else {
        return Vec::new();
    };
    let below = format!("{}/", name.to_string_lossy());
    let index = |stem| above.join(Names::unchecked(stem, None).index());
    let indexes = STEMS.into_iter().map(index).filter(|index| index.is_file());
    indexes.map(|index| (index, below.clone())).collect()
}

/// The error of these tensors of a file, if there are any.
pub(super) fn lost<'t>(
    path: &Path,
    tensors: impl Iterator<Item = &'t str>,
    why: &str,
) -> Result<()> {
    let mut tensors = tensors.peekable();
    match tensors.peek() {
        None => Ok(()),
        Some(_) => Err(Error::new(Code::WouldBeLost)
            .at_path(path)
            .found(format_args!("{} {why}", sample(tensors)))),
    }
}
