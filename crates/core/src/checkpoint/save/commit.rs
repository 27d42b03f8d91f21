//! The commit: how a checkpoint takes the place of another one, such that at every instant every
//! reader finds one of the two, whole.
//!
//! `S` is the single file, `I` the index, `J` the [journal](super::journal), `B` a
//! [bridge](super::bridge): an index that names nothing but `S`. What is said of transformers goes for
//! accelerate too. Everything new is staged, written and brought to the medium before anything else changes. Then:
//!
//! | | to shards | who reads what now |
//! |-|-----------|--------------------|
//! | 1 | `J` is written | all: old |
//! | 2 | `B` gets its name, if there is no index | all: old; huggingface_hub through `B` |
//! | 3 | the shards get names that are free | all: old |
//! | 4 | `I` takes the place of the old index, or of `B`: **the commit** | transformers: old `S`, if there is one; all others: new |
//! | 5 | `S` goes, then the old shards, then `J` | all: new |
//!
//! | | to a single file | who reads what now |
//! |-|------------------|--------------------|
//! | 1 | `J` is written, unless nothing but `S` will change | all: old |
//! | 2 | `S` gets its name: **the commit** | huggingface_hub: old, through the old index; all others: new |
//! | 3 | `B` takes the place of the old index | all: new |
//! | 4 | the old shards go, then `B`, then `J` | all: new |
//!
//! Why so:
//! - Several files cannot change at once, so one rename must make the difference, and the files that it
//!   brings to life must be there before. No new shard has a name that the old index names, or
//!   the old checkpoint would change under its readers; hence generations of names.
//! - transformers looks for `S` first, huggingface_hub for `I` first, so both may be there at once, but
//!   never `I` without its shards. Without `I` huggingface_hub takes whatever safetensors file is alone
//!   in the folder, and none if there are several; hence bridges.
//! - Two checkpoints in one folder look as if somebody had left a stale one. Our own reader asks the
//!   journal, which is there all the while: as long as the file that makes the commit is staged, the
//!   old one counts; when it has its name, the new one does.
//! - On the way to the medium, nothing may overtake: the folder is synced between these steps, so that
//!   an index is never there before or after its shards, whatever the power does.
//!
//! **A failure** before the commit undoes 3, 2, 1 and leaves the old checkpoint. After it the new one
//! is there, and what cannot be removed is reported and left to the next save, with the journal. **A
//! process that dies** leaves the journal as well, and the next save into the folder begins by undoing or
//! finishing what it says. Both can be interrupted and done again. Removed is only what the journal
//! names and what still is what it was then, so nobody loses a file that came later.
//!
//! Two saves into one folder wait for each other. Where the file system has no locks, that is up to the
//! caller.

use std::ffi::OsStr;
use std::mem;
use std::path::{Path, PathBuf};

use super::destination::Destination;
use super::journal::{Journal, Stand};
use super::recover::{finish, take_back};
use super::{Durability, bridge, change};
use crate::checkpoint::locate::index_of;
use crate::io::entry::{Entry, Presence};
use crate::io::publish::{Publish, Stage};
use crate::{Code, Error, Result};

/// What became of the checkpoint before.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    /// What is still there of it. Readers do not take it for the checkpoint, except transformers a
    /// single file; the next save removes it, unless it is part of another checkpoint.
    pub(crate) left_behind: Vec<PathBuf>,
}

impl Destination {
    /// Replaces the checkpoint. `main` is staged as [`Destination::single_name`], and then there are no
    /// shards, or as [`Destination::index_name`]. All stages are written, and their files closed; for
    /// `Durable`, they are on the medium.
    ///
    /// # Errors
    /// `io`. The old checkpoint is still there, unless the error says otherwise.
    pub(crate) fn commit(
        self,
        shards: Vec<Stage>,
        main: Stage,
        durability: Durability,
    ) -> Result<Removed> {
        let mut underway = Underway::new(&self, shards, main, durability)?;
        let ready = underway.announce().and_then(|()| underway.bring());
        if let Err(error) = ready.and_then(|()| underway.switch()) {
            underway.undo();
            return Err(error);
        }
        underway.secure()?;
        Ok(underway.clear())
    }
}

/// A commit, step by step.
struct Underway<'d> {
    to: &'d Destination,
    durability: Durability,
    journal: Journal,
    /// The journal as it lies in the folder, if it does.
    announced: Option<Entry>,
    /// Those of the journal's `new`, in the order in which they get their names.
    new: Vec<Stage>,
    main: Stage,
    /// What comes after the commit.
    bridge: Option<Stage>,
}

impl<'d> Underway<'d> {
    /// Nothing changes yet.
    fn new(
        to: &'d Destination,
        shards: Vec<Stage>,
        main: Stage,
        durability: Durability,
    ) -> Result<Self> {
        let staged_main = staged(&main)?;
        let superseded = to.owned.superseded_by(&staged_main.name);
        let single = to.names.single();
        let index = to.folder.join(bridge::name(&single));
        let has_index = index.symlink_metadata().is_ok();
        let (new, bridge) = if staged_main.name == single {
            to.owned.check_single(&to.folder)?;
            let is_shard = |entry: &Entry| index_of(&entry.name).is_none();
            let bridge = match has_index && superseded.iter().any(is_shard) {
                true => bridge::to_file(main.path(), &single)?,
                false => None,
            };
            let bridge = bridge.map(|bytes| stage_bridge(to, &bytes, durability));
            (shards, bridge.transpose()?)
        } else {
            let mut new = Vec::with_capacity(shards.len() + 1);
            if !has_index && staged_main.name == bridge::name(&single) {
                let bridge = bridge::to_file(&to.folder.join(&single), &single)?;
                let bridge = bridge.unwrap_or_else(|| bridge::to_nowhere(&single));
                new.push(stage_bridge(to, &bridge, durability)?);
            }
            new.extend(shards);
            (new, None)
        };
        let journal = Journal {
            stage: name_of(main.path()),
            main: staged_main,
            new: new.iter().map(staged).collect::<Result<_>>()?,
            superseded,
        };
        Ok(Self {
            to,
            durability,
            journal,
            announced: None,
            new,
            main,
            bridge,
        })
    }

    /// Writes the journal, unless the commit is a single rename.
    fn announce(&mut self) -> Result<()> {
        if self.journal.new.is_empty() && self.journal.superseded.is_empty() {
            return Ok(());
        }
        let to = self.to;
        let name = Journal::name(&to.names.single());
        let mode = to.mode_for(&self.journal.main.name)?;
        let bytes = self.journal.to_bytes();
        let mut stage = change::stage(&to.folder, &name, mode, &bytes, self.durability)?;
        let announced = staged(&stage)?;
        // Where there is one, another save is at work: there are no locks here.
        change::publish(&mut stage, Publish::NoReplace)?;
        self.announced = Some(announced);
        self.sync()
    }

    /// Gives everything but `main` its name.
    fn bring(&mut self) -> Result<()> {
        if self.new.is_empty() {
            return Ok(());
        }
        for (entry, stage) in self.journal.new.iter().zip(&mut self.new) {
            change::publish(stage, Publish::NoReplace)?;
            if index_of(&entry.name).is_some() {
                // The bridge first, then what it leads past.
                change::sync(&self.to.folder, self.durability)?;
            }
        }
        self.sync()
    }

    /// Commits.
    fn switch(&mut self) -> Result<()> {
        match change::publish(&mut self.main, Publish::Replace) {
            // Over a network, an answer can be lost.
            Err(error) if !self.is_switched() => Err(error),
            _ => Ok(()),
        }
    }

    fn is_switched(&self) -> bool {
        let presence = self.journal.main.presence(&self.to.folder);
        presence.is_ok_and(|presence| presence == Presence::Same)
    }

    /// Brings the commit to the medium.
    fn secure(&self) -> Result<()> {
        let mut parents = self.to.parents.iter();
        // So that a new folder is not lost with all that is in it.
        let synced = self
            .sync()
            .and_then(|()| parents.try_for_each(|parent| change::sync(parent, self.durability)));
        synced.map_err(not_yet_safe)
    }

    /// Removes what is superseded, and tells what is still there.
    fn clear(mut self) -> Removed {
        let (to, journal) = (self.to, &self.journal);
        let folder = &to.folder;
        if self.announced.is_some() {
            let single = to.names.single();
            // What fails is left behind, and with it the journal.
            let _left_to_the_next_save = finish(
                folder,
                &single,
                journal,
                self.bridge.take(),
                self.durability,
            );
        }
        let superseded = journal.superseded.iter().map(|entry| &*entry.name);
        let left_behind = superseded.chain(to.owned.shared(&journal.main.name));
        let left_behind = left_behind.map(|name| folder.join(name));
        let left_behind = left_behind.chain([folder.join(Journal::name(&to.names.single()))]);
        Removed {
            left_behind: left_behind
                .filter(|path| path.symlink_metadata().is_ok())
                .collect(),
        }
    }

    /// Takes everything back, as the next save would.
    fn undo(mut self) {
        if self.try_undo().is_err() {
            // The next save does, if it finds all that it needs for it.
            mem::forget(self.main);
        }
    }

    fn try_undo(&mut self) -> Result<()> {
        let folder = &self.to.folder;
        let Some(journal) = self.announced.take() else {
            // Nothing has changed.
            return Ok(());
        };
        // Only if it is certain that nothing was committed.
        if self.journal.stand(folder)? != Stand::Pending {
            return Ok(());
        }
        take_back(folder, &self.journal.new, self.durability)?;
        change::remove(&journal, folder)?;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        change::sync(&self.to.folder, self.durability)
    }
}

/// The error of a commit that is made but may not be on the medium.
pub(super) fn not_yet_safe(error: Error) -> Error {
    error.help(
        "the new checkpoint is in its place, and readers find it, but a power failure may still \
         bring the old one back; save again",
    )
}

fn stage_bridge(to: &Destination, bytes: &[u8], durability: Durability) -> Result<Stage> {
    let name = bridge::name(&to.names.single());
    let mode = to.mode_for(&name)?;
    change::stage(&to.folder, &name, mode, bytes, durability)
}

/// A stage as it will be found under its final name.
fn staged(stage: &Stage) -> Result<Entry> {
    let folder = stage.path().parent().unwrap_or(Path::new(""));
    let entry = Entry::at(folder, &name_of(stage.path()))?;
    let entry = entry.ok_or_else(|| Error::new(Code::NotFound).at_path(stage.path()))?;
    Ok(Entry {
        name: name_of(stage.target()),
        mark: entry.mark,
    })
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().and_then(OsStr::to_str);
    name.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
