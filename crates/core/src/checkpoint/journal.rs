//! The journal of a save: a hidden file that says what the save is about to change.
//!
//! It is there from before the first change that a reader can see until after the last one, so that
//! whoever finds it knows which of the files of the folder are the checkpoint, and the next save can
//! finish or undo what this one left; see [`commit`](super::commit). For `model.safetensors`, or the
//! index in its place, it is called `.model.safetensors.commit`:
//!
//! ```json
//! {
//!   "version": "2",
//!   "main": {"entry": {"name": "model.safetensors.index.json", "mark": …}, "stage": ".model….partial"},
//!   "new": [{"name": "model-00001-of-00002.safetensors", "mark": …}, …],
//!   "along": [{"entry": {"name": "config.json", "mark": …}, "stage": ".config….partial"}],
//!   "stand_in": null,
//!   "superseded": [{"name": "model.safetensors", "mark":
//!     {"len": 8104, "inode": 3, "born": 17…, "modified": 17…, "changed": 17…}}],
//!   "boot": null
//! }
//! ```
//!
//! A mark is the length, the inode, and when the file was made, written and changed, in nanoseconds since
//! 1970; what is not known is `null`. What has the name but is not that very file is another one: of somebody who wrote here after
//! the save was killed, or of a copy of the folder. It is never removed, and what hangs on it does not
//! hold. `boot` is that of a save that did not wait for the disk: once the machine was started again,
//! nobody knows what of it is left.
//!
//! A journal is not trusted: whoever made the folder may have made it. It can name only safetensors
//! files below its folder, the indexes of its own checkpoint, and files that went along; it says nothing
//! of a file whose inode and time of birth it does not know; and it can only choose between files
//! that a reader would have considered without it.

use std::fmt::Display;
use std::fs;
use std::iter;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::file_names::{FileName, index_of};
use crate::checkpoint::shard_name::ShardName;
use crate::error::{Code, Error, Result};
use crate::io::durability::boot;
use crate::io::entry::{Entry, Presence};
use crate::io::publish::{JOURNAL_END, is_stage_name};
use crate::io::source::{FileSource, ReadAt, open_error, read_vec};

/// The longest journal that is read, in bytes: a hundred thousand shards that take the place of as many.
const LONGEST: u64 = 64 << 20;

/// What a save is about to change.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    pub(super) version: Version,
    /// The file whose renaming is the commit: the index, or the single file.
    pub(super) main: Staged,
    /// The files that get their names before `main`, and are nothing without it.
    pub(super) new: Vec<Entry>,
    /// Files that are no weights and belong to them.
    pub(super) along: Vec<Staged>,
    /// The index that stands in for the old one while there are old shards, when `main` is a single file.
    pub(super) stand_in: Option<Staged>,
    /// The files that are of no use once `main` has its name.
    pub(super) superseded: Vec<Entry>,
    /// Of a save that does not wait for the disk.
    pub(super) boot: Option<String>,
}

/// The only one that is understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Version {
    #[default]
    #[serde(rename = "2")]
    Two,
}

/// A file as it will be found under its name, and what it is called until then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Staged {
    pub(super) entry: Entry,
    pub(super) stage: String,
}

/// How far the save came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// The old checkpoint is the one that counts.
    Pending,
    /// The new one is, and all of it is there as the save left it.
    Committed,
    /// Somebody else changed the folder since; the journal says nothing any more.
    Void,
}

impl Staged {
    /// Whether it has not got its name yet.
    ///
    /// # Errors
    /// `io`.
    pub(super) fn is_staged(&self, folder: &Path) -> Result<bool> {
        self.as_stage().is_there(folder)
    }

    /// The stage.
    pub(super) fn as_stage(&self) -> Entry {
        Entry {
            name: self.stage.clone(),
            mark: self.entry.mark,
        }
    }
}

impl Journal {
    /// The name of the journal of the checkpoint whose single file is, or would be, `single`.
    pub(crate) fn name(single: &str) -> String {
        format!(".{single}{JOURNAL_END}")
    }

    /// The single file of the checkpoint, if `name` is that of a journal.
    pub(crate) fn single_of(name: &str) -> Option<&str> {
        let single = name.strip_prefix('.')?.strip_suffix(JOURNAL_END)?;
        single.ends_with(".safetensors").then_some(single)
    }

    /// The journal in `folder` of the checkpoint of `single`, if there is one.
    ///
    /// # Errors
    /// `broken-journal`, `io`, with its path.
    pub(crate) fn read(folder: &Path, single: &str) -> Result<Option<Self>> {
        let path = folder.join(Self::name(single));
        let bytes = match read_unlinked(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.code() == Code::NotFound => return Ok(None),
            Err(error) => return Err(error.at_path(&path)),
        };
        let journal = Self::parse(&bytes, single);
        journal.map(Some).map_err(|error| error.at_path(&path))
    }

    fn parse(bytes: &[u8], single: &str) -> Result<Self> {
        // First, as another version may have other fields.
        serde_json::from_slice::<Versioned>(bytes).map_err(broken)?;
        let journal: Self = serde_json::from_slice(bytes).map_err(broken)?;
        journal.check(single)?;
        Ok(journal)
    }

    /// That it names nothing but what a save of this checkpoint may change.
    fn check(&self, single: &str) -> Result<()> {
        let is_index = |name: &str| index_of(name).as_deref() == Some(single);
        let main = &self.main.entry.name;
        if main != single && !is_index(main) {
            return Err(broken(format_args!("{main:?} as the main file")));
        }
        for Staged { stage, .. } in self.staged() {
            if !is_stage_name(stage) || stage.contains('/') {
                return Err(broken(format_args!("{stage:?} as a stage")));
            }
        }
        for Staged { entry, .. } in &self.along {
            let leads_elsewhere = entry.name.contains(['/', '\0']) || entry.name.starts_with('.');
            if leads_elsewhere || FileName::parse(&entry.name).is_some() {
                return Err(broken(format_args!("{:?} that goes along", entry.name)));
            }
        }
        let stand_in = self.stand_in.iter().map(|staged| &staged.entry.name);
        if let Some(name) = stand_in.into_iter().find(|name| !is_index(name)) {
            return Err(broken(format_args!("{name:?} that stands in")));
        }
        for Entry { name, .. } in self.new.iter().chain(&self.superseded) {
            if !is_index(name) {
                ShardName::parse(name).map_err(|error| error.recode(Code::BrokenJournal))?;
            }
        }
        Ok(())
    }

    /// What has other names until the new checkpoint counts.
    pub(super) fn staged(&self) -> impl Iterator<Item = &Staged> {
        iter::once(&self.main)
            .chain(&self.along)
            .chain(&self.stand_in)
    }

    /// What [`Journal::read`] reads.
    pub(in crate::checkpoint) fn to_bytes(&self) -> Vec<u8> {
        // Nothing in it can fail to be written: no map, and no name that is not text.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// How far the save came.
    ///
    /// # Errors
    /// `io`.
    pub(crate) fn stand(&self, folder: &Path) -> Result<Stand> {
        // In this order: without a lock, the one may become the other in between, but never back.
        if self.main.as_stage().presence(folder)? == Presence::Same {
            return Ok(Stand::Pending);
        }
        if self.boot.as_ref().is_some_and(|then| *then != boot()) {
            return Ok(Stand::Void);
        }
        let main = &self.main.entry;
        // What stood in for `main` has given it its name.
        let brought = self.new.iter().filter(|entry| entry.name != main.name);
        for entry in brought.chain([main]) {
            if entry.presence(folder)? != Presence::Same {
                return Ok(Stand::Void);
            }
        }
        Ok(Stand::Committed)
    }

    /// Which of these files are not the checkpoint, or not any more.
    ///
    /// # Errors
    /// `io`.
    pub(crate) fn overruled(&self, folder: &Path, candidates: &[&str]) -> Result<Vec<String>> {
        let overruled = match self.stand(folder)? {
            Stand::Pending => &self.new,
            Stand::Committed => &self.superseded,
            Stand::Void => return Ok(Vec::new()),
        };
        let mut names = Vec::new();
        for entry in overruled {
            if candidates.contains(&entry.name.as_str())
                && entry.presence(folder)? != Presence::Other
            {
                names.push(entry.name.clone());
            }
        }
        Ok(names)
    }
}

/// The bytes of a regular file that is no link.
fn read_unlinked(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::symlink_metadata(path).map_err(open_error)?;
    if !metadata.is_file() {
        return Err(broken("not a regular file"));
    }
    let file = FileSource::open(path)?;
    if file.len() > LONGEST {
        let found = format_args!("{} bytes", file.len());
        return Err(broken(found).expected(format_args!("at most {LONGEST} bytes")));
    }
    read_vec(&file, 0, file.len())
}

/// What every version of a journal has.
#[derive(Deserialize)]
struct Versioned {
    #[serde(rename = "version")]
    _version: Version,
}

fn broken(found: impl Display) -> Error {
    Error::new(Code::BrokenJournal).found(found)
}

#[cfg(test)]
mod tests;
