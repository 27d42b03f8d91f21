//! What the checkpoint that a save replaces owns: exactly the files that go when the new one is there.
//!
//! Those are its single file, its index in any spelling, and the shards that the index names. Nothing
//! is ever taken for its own because of how it is called.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use super::losses::{Losses, indexes_above, lost};
use crate::checkpoint::file_names::{END, Names, STEMS, index_of};
use crate::checkpoint::index::Index;
use crate::checkpoint::locate::Listing;
use crate::checkpoint::open::read_header;
use crate::checkpoint::shard_name::ShardName;
use crate::error::{Code, Error, Kind, Result};
use crate::format::header::{Header, HeaderOptions, Profile, UnknownDtype};
use crate::format::json::Cursor;
use crate::format::skip::{Keys, Repeats};
use crate::io::entry::{Entry, Presence, is_free};
use crate::io::rights::Rights;
use crate::io::source::{FileSource, ReadAt, read_vec};
use crate::limits::Limits;

/// The files of a checkpoint that is to be replaced.
#[derive(Debug)]
pub(super) struct ReplacedFiles {
    single: Option<Entry>,
    /// Different spellings, of which each reader knows some.
    indexes: Vec<Entry>,
    shards: Vec<Entry>,
    /// Files that it names and others too.
    shared: BTreeSet<String>,
    /// An index that names the single file, and perhaps others beside it.
    counts_single: Option<(String, Index)>,
    /// What any index of the folder names, in small letters.
    named: HashSet<String>,
    /// Who may read all of the files with tensors.
    rights: Rights,
}

impl ReplacedFiles {
    /// What the checkpoint in `folder` owns that has these names.
    ///
    /// A broken or hostile index owns nothing but itself: what it would have named stays.
    ///
    /// Cost: its indexes and the headers of its files are read, and those indexes of other checkpoints.
    ///
    /// # Errors
    /// `not-a-regular-file` where the single file or the index is something that a save must not
    /// replace; `would-be-lost` where its files hold tensors that none of its indexes lists, unless
    /// losses are accepted; `io`; `limit-index` for an index of another checkpoint that is too large to
    /// be read.
    pub(super) fn of(folder: &Path, names: &Names, losses: Losses) -> Result<Self> {
        let listing = Listing::read(folder)?;
        let single = names.single();
        for name in [&single, &names.index()] {
            Rights::at(&folder.join(name))?;
        }
        let (mut indexes, mut parsed) = (Vec::new(), Vec::new());
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
            if let Some(index) = Entry::at(folder, name)? {
                indexes.push(index);
                parsed.extend(parsed_index(&path)?);
            }
        }
        for (path, below) in indexes_above(folder) {
            let index = parsed_index(&path)?;
            let named = index.iter().flat_map(Index::shards);
            let here = named.filter_map(|name| name.strip_prefix(&below));
            theirs.extend(here.map(str::to_lowercase));
        }
        let named = parsed.iter().flat_map(Index::shards);
        let ours: BTreeSet<&str> = named.chain([single.as_str()]).collect();
        let mut replaced = Self {
            single: None,
            indexes,
            shards: Vec::new(),
            shared: BTreeSet::new(),
            counts_single: None,
            named: ours.iter().map(|name| name.to_lowercase()).collect(),
            rights: Rights::New,
        };
        for &name in &ours {
            if theirs.contains(&name.to_lowercase()) || is_of_another(name, &single) {
                replaced.shared.insert(name.to_owned());
                continue;
            }
            let Some(entry) = Entry::at(folder, name)? else {
                continue;
            };
            let rights = Rights::at(&folder.join(name))?.without_notes();
            replaced.rights = replaced.rights.and(rights);
            if losses == Losses::Refuse && !parsed.is_empty() {
                check_listed(folder, name, &parsed)?;
            }
            match name == single {
                true => replaced.single = Some(entry),
                false => replaced.shards.push(entry),
            }
        }
        let counts = parsed
            .into_iter()
            .find(|index| index.shards().any(|shard| shard == single));
        replaced.counts_single = counts.map(|index| (index.name.clone(), index));
        replaced.named.extend(theirs);
        Ok(replaced)
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

    /// That a single file of these tensors may take the place of the checkpoint.
    ///
    /// # Errors
    /// `indexed-single`: until the index is gone, it would count the new file among the old shards, or
    /// say that other tensors are in it than there are.
    pub(super) fn check_single<'t>(
        &self,
        folder: &Path,
        tensors: impl IntoIterator<Item = &'t str>,
    ) -> Result<()> {
        let Some((name, index)) = &self.counts_single else {
            return Ok(());
        };
        let tensors: HashSet<&str> = tensors.into_iter().collect();
        let is_the_same = index.shards().len() == 1
            && tensors.len() == index.weight_map.len()
            && tensors.iter().all(|name| index.weight_map.contains(name));
        match is_the_same {
            true => Ok(()),
            false => Err(Error::new(Code::IndexedSingle).at_path(folder.join(name))),
        }
    }

    /// Who may read the new files with tensors: those who may read all of the old ones.
    pub(super) fn rights(&self) -> &Rights {
        &self.rights
    }
}

/// That every tensor of a file is one that the indexes list there.
fn check_listed(folder: &Path, name: &str, indexes: &[Index]) -> Result<()> {
    let path = folder.join(name);
    let Some(header) = header_of(&path)? else {
        // Nobody can read a tensor from it.
        return Ok(());
    };
    let is_named = |index: &&Index| index.shards().any(|shard| shard == name);
    let of_this = indexes.iter().filter(is_named).count() > 0;
    let is_listed = |tensor: &str| {
        indexes.iter().any(|index| {
            let owner = index.weight_map.get(tensor);
            let shard = owner.and_then(|owner| index.shards.get(owner.file as usize));
            // Of a single file that no index names, a tensor of the same name is another version.
            shard.is_some_and(|shard| !of_this || shard.as_str() == name)
        })
    };
    let stored = header.tensors().map(|tensor| tensor.name);
    let stored = stored.chain(header.unsupported().map(|tensor| tensor.name));
    lost(
        &path,
        stored.filter(|tensor| !is_listed(tensor)),
        "that its index does not list",
    )
}

/// The header of a file; `None` where it has none that can be understood.
///
/// # Errors
/// `io`, `file-changed`.
pub(super) fn header_of(path: &Path) -> Result<Option<Header>> {
    let options = HeaderOptions {
        profile: Profile::Reference,
        limits: Limits::default(),
        unknown_dtype: UnknownDtype::Keep,
    };
    match FileSource::open(path).and_then(|file| read_header(&file, &options)) {
        Ok(header) => Ok(Some(header)),
        Err(error) if is_failure(&error) => Err(error.at_path(path)),
        Err(_) => Ok(None),
    }
}

/// What the indexes of a folder name, in small letters, but for these indexes.
///
/// # Errors
/// As [`ReplacedFiles::of`].
pub(super) fn named_in<'e>(
    folder: &Path,
    but_for: impl Iterator<Item = &'e Entry> + Clone,
) -> Result<HashSet<String>> {
    let listing = Listing::read(folder)?;
    let mut named = HashSet::new();
    for index in listing.names().filter(|name| index_of(name).is_some()) {
        let mut known = but_for.clone().filter(|entry| entry.name == index);
        let is_known = known.try_fold(false, |is_known, entry| {
            Ok(is_known || entry.presence(folder)? == Presence::Same)
        });
        if !is_known? {
            named.extend(named_by_another(&folder.join(index))?);
        }
    }
    Ok(named)
}

/// Whether a name is that of the single file of another checkpoint, which an index may name but not
/// own.
fn is_of_another(name: &str, single: &str) -> bool {
    let stem = name.strip_suffix(END);
    name != single && stem.is_some_and(|stem| STEMS.contains(&stem))
}

/// An index; none if it is broken.
pub(super) fn parsed_index(path: &Path) -> Result<Option<Index>> {
    match Index::open(path, &Limits::default()) {
        Ok(index) => Ok(Some(index)),
        Err(error) if is_failure(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whatever somebody's index may name, in small letters: some readers take more than we do.
fn named_by_another(path: &Path) -> Result<HashSet<String>> {
    match Index::open(path, &Limits::default()) {
        Ok(index) => Ok(index.shards().map(str::to_lowercase).collect()),
        Err(error) if is_failure(&error) || error.code() == Code::LimitIndex => Err(error),
        Err(error) if error.kind() == Kind::Io => Ok(HashSet::new()),
        Err(_) => {
            let file = FileSource::open(path)?;
            let json = read_vec(&file, 0, file.len())?;
            let mut named = HashSet::new();
            let mut cursor = Cursor::new(
                str::from_utf8(&json).unwrap_or_default(),
                0,
                Code::IndexSyntax,
            );
            // Up to where it is broken.
            let _broken = names_in_map(&mut cursor, &mut named);
            Ok(named)
        }
    }
}

/// Every file that the weight map names, however the name leads there.
fn names_in_map(json: &mut Cursor<'_>, named: &mut HashSet<String>) -> Result<()> {
    let mut keys = Keys::new(Repeats::Allow, 0);
    let mut skip = |json: &mut Cursor<'_>| json.skip_value(0, &mut keys, u64::MAX);
    json.expect(b'{')?;
    let mut first = true;
    while let Some((key, _)) = json.next_key(&mut first)? {
        if key != "weight_map" || json.peek() != Some(b'{') {
            skip(json)?;
            continue;
        }
        json.expect(b'{')?;
        let mut first = true;
        while json.next_key(&mut first)?.is_some() {
            if json.peek() != Some(b'"') {
                skip(json)?;
                continue;
            }
            let name = json.string()?;
            let last = name.rsplit('/').next().unwrap_or_default();
            if ShardName::parse(last).is_ok() {
                named.insert(last.to_lowercase());
            }
        }
    }
    Ok(())
}

/// Whether a file could not be read, which says nothing about what is in it.
pub(super) fn is_failure(error: &Error) -> bool {
    matches!(error.code(), Code::Io | Code::FileChanged)
}

#[cfg(test)]
mod tests;
