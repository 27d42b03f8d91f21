//! What the checkpoint that a save replaces owns: exactly the files that go when the new one is there.
//!
//! Those are its single file, its index in any spelling, and the shards that the index names. Nothing
//! is ever taken for its own because of how it is called.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use serde_json::Value;

use super::shards::Names;
use crate::checkpoint::index::Index;
use crate::checkpoint::locate::{Listing, STEMS, index_of};
use crate::io::entry::{Entry, is_free};
use crate::io::publish::Mode;
use crate::io::source::{FileSource, ReadAt, read_vec};
use crate::{Code, Error, Kind, Limits, Result};

/// The files of a checkpoint that is to be replaced.
#[derive(Debug, Default)]
pub(super) struct Owned {
    single: Option<Entry>,
    /// Different spellings, of which each reader knows some.
    indexes: Vec<Entry>,
    shards: Vec<Entry>,
    /// Files that it names and others too.
    shared: BTreeSet<String>,
    /// An index that names the single file and others beside it.
    counts_single: Option<String>,
    /// What any index of the folder names, in small letters.
    named: HashSet<String>,
}

impl Owned {
    /// What the checkpoint in `folder` owns that has these names.
    ///
    /// A broken or hostile index owns nothing but itself: what it would have named stays.
    ///
    /// # Errors
    /// `not-a-regular-file` where the single file or the index is something that a save must not
    /// replace; `io`; `limit-index` for an index of another checkpoint that is too large to be read.
    pub(super) fn of(folder: &Path, names: &Names) -> Result<Self> {
        let listing = Listing::read(folder)?;
        let single = names.single();
        for name in [&single, &names.index()] {
            Mode::at(&folder.join(name))?;
        }
        let mut owned = Self::default();
        let mut ours = BTreeSet::new();
        let mut theirs = HashSet::new();
        for (name, of) in listing
            .names()
            .filter_map(|name| Some((name, index_of(name)?)))
        {
            let path = folder.join(name);
            if of != single {
                theirs.extend(named_by_another(&path)?);
                continue;
            }
            // A folder or device of this name is no index.
            let Some(index) = Entry::at(folder, name)? else {
                continue;
            };
            let shards = named_by(&path)?;
            if shards.len() > 1 && shards.contains(&single) {
                owned.counts_single = Some(index.name.clone());
            }
            owned.indexes.push(index);
            ours.extend(shards);
        }
        ours.insert(single.clone());
        for name in &ours {
            if theirs.contains(&name.to_lowercase()) || is_of_another(name, &single) {
                owned.shared.insert(name.clone());
            } else if let Some(entry) = Entry::at(folder, name)? {
                match *name == single {
                    true => owned.single = Some(entry),
                    false => owned.shards.push(entry),
                }
            }
        }
        owned.named = theirs;
        owned
            .named
            .extend(ours.iter().map(|name| name.to_lowercase()));
        Ok(owned)
    }

    /// What goes when `main`, the index or the single file, has its name. In the order in which it has
    /// to go: an index before what it names.
    pub(super) fn superseded_by(&self, main: &str) -> Vec<Entry> {
        let entries = self.indexes.iter().chain(&self.single).chain(&self.shards);
        entries
            .filter(|entry| entry.name != main)
            .cloned()
            .collect()
    }

    /// What stays although the checkpoint named it, because others do too.
    pub(super) fn shared(&self, main: &str) -> impl Iterator<Item = &str> {
        let shared = self.shared.iter().map(String::as_str);
        shared.filter(move |name| *name != main)
    }

    /// Whether a new shard may have this name: nothing has it, and no index names it, which would
    /// count the shard as its own at once.
    ///
    /// # Errors
    /// `io`.
    pub(super) fn is_free(&self, folder: &Path, name: &str) -> Result<bool> {
        Ok(!self.named.contains(&name.to_lowercase()) && is_free(folder, name)?)
    }

    /// That a single file may take the place of the checkpoint.
    ///
    /// # Errors
    /// `indexed-single`: until the index is gone, it would count the new file among the old shards.
    pub(super) fn check_single(&self, folder: &Path) -> Result<()> {
        match &self.counts_single {
            None => Ok(()),
            Some(index) => Err(Error::new(Code::IndexedSingle).at_path(folder.join(index))),
        }
    }

    /// Who may read the files with tensors: those who may read all of the old ones.
    ///
    /// # Errors
    /// As [`Mode::at`].
    pub(super) fn mode(&self, folder: &Path) -> Result<Mode> {
        let mut mode = Mode::New;
        for entry in self.single.iter().chain(&self.shards) {
            mode = match (mode, Mode::at(&folder.join(&entry.name))?) {
                (Mode::Kept(mode), Mode::Kept(another)) => Mode::Kept(mode & another),
                (mode, Mode::New) => mode,
                (Mode::New, another) => another,
            };
        }
        Ok(mode)
    }
}

/// What the indexes of a folder name, in small letters.
///
/// # Errors
/// As [`Owned::of`].
pub(super) fn named_in(folder: &Path) -> Result<HashSet<String>> {
    let listing = Listing::read(folder)?;
    let indexes = listing.names().filter(|name| index_of(name).is_some());
    let mut named = HashSet::new();
    for index in indexes {
        named.extend(named_by_another(&folder.join(index))?);
    }
    Ok(named)
}

/// Whether a name is that of the single file of another checkpoint, which an index may name but not
/// own.
fn is_of_another(name: &str, single: &str) -> bool {
    let stem = name.strip_suffix(".safetensors");
    name != single && stem.is_some_and(|stem| STEMS.contains(&stem))
}

/// The shards that an index names; none if it is broken.
fn named_by(index: &Path) -> Result<BTreeSet<String>> {
    match Index::open(index, &Limits::default()) {
        Ok(index) => Ok(index.shards().map(str::to_owned).collect()),
        Err(error) if is_failure(&error) => Err(error),
        Err(_) => Ok(BTreeSet::new()),
    }
}

/// Whatever somebody's index may name, in small letters: some readers take more than we do.
fn named_by_another(index: &Path) -> Result<Vec<String>> {
    let names: Vec<String> = match Index::open(index, &Limits::default()) {
        Ok(index) => index.shards().map(str::to_lowercase).collect(),
        Err(error) if is_failure(&error) || error.code() == Code::LimitIndex => return Err(error),
        Err(error) if error.kind() == Kind::Io => Vec::new(),
        Err(_) => {
            let file = FileSource::open(index)?;
            let json = read_vec(&file, 0, file.len())?;
            let index: Value = serde_json::from_slice(&json).unwrap_or_default();
            let map = index.get("weight_map").and_then(Value::as_object);
            let names = map.into_iter().flat_map(|map| map.values());
            let names = names.filter_map(Value::as_str);
            // However the name leads there.
            let last = |name: &str| name.rsplit('/').next().map(str::to_lowercase);
            names.filter_map(last).collect()
        }
    };
    Ok(names)
}

/// Whether a file could not be read, which says nothing about what is in it.
pub(super) fn is_failure(error: &Error) -> bool {
    matches!(error.code(), Code::Io | Code::FileChanged)
}
