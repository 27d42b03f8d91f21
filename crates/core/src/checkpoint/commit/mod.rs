//! The commit: how a checkpoint takes the place of another one, such that at every instant every
//! reader finds one of the two, whole. The only way in which anything here is replaced: one file is the
//! commit that has nothing else to do.
//!
//! `S` is the single file, `I` the index, `J` the [journal](super::journal), `B` an index that
//! [stands in](stand_in_index): it names nothing but `S`. What is said of transformers goes for
//! accelerate too. The folder is [locked](locked_folder), and what a dead save left is finished or undone;
//! everything new is staged, written and brought to the disk before anything else changes. Then:
//!
//! | | to shards | who reads what now |
//! |-|-----------|--------------------|
//! | 1 | `J` is written | all: old |
//! | 2 | `B` gets its name, if there is no index | all: old; huggingface_hub through `B` |
//! | 3 | the shards get names that are free | all: old |
//! | 4 | `I` takes the place of the old index, or of `B`: **the commit** | transformers: old `S`, if there is one; all others: new |
//! | 5 | files that go along; `S` goes, then the old shards, then `J` | all: new |
//!
//! | | to a single file | who reads what now |
//! |-|------------------|--------------------|
//! | 1 | `J` is written, unless nothing but `S` will change | all: old |
//! | 2 | `S` gets its name: **the commit** | huggingface_hub: old, through the old index; all others: new |
//! | 3 | `B` takes the place of the old index | all: new |
//! | 4 | files that go along; the old shards go, then `B`, then `J` | all: new |
//!
//! Why so:
//! - Several files cannot change at once, so one rename must make the difference, and the files that it
//!   brings to life must be there before. No new shard has a name that the old index names, or
//!   the old checkpoint would change under its readers; hence generations of names.
//! - transformers looks for `S` first, huggingface_hub for `I` first, so both may be there at once, but
//!   never `I` without its shards. Without `I` huggingface_hub takes whatever safetensors file is alone
//!   in the folder, and none if there are several; hence `B`.
//! - Two checkpoints in one folder look as if somebody had left a stale one. Our own reader asks the
//!   journal, which is there all the while: as long as the file that makes the commit is staged, the
//!   old one counts; when it has its name, the new one does.
//! - On the way to the disk, nothing may overtake: the folder is synced between these steps, so that
//!   an index is never there before or after its shards, whatever the power does.
//!
//! **What goes along** (configuration, tokenizer) has other names than anything that is there. Beside old
//! weights it does not appear: it gets its names when the new ones count. Where there was no checkpoint
//! it comes first, so that no weights are ever there without it.
//!
//! **A failure** before the commit undoes 3, 2, 1 and leaves the old checkpoint. After it the new one
//! is there, and what cannot be removed is reported and left to the next save, with the journal. **A
//! process that dies** leaves the journal as well, and the next save into the folder begins by undoing or
//! finishing what it says. Both can be interrupted and done again. Finished is only what is all there:
//! a new checkpoint of which something is gone supersedes nothing. Removed is only what the journal
//! names and what still is that very file, so nobody loses one that came later. What is at `main`'s name is
//! looked at once more before the commit, and left if it came meanwhile.
//!
//! Two saves into one folder wait for each other. Where the file system has no locks, that is up to the
//! caller.

use std::path::{Path, PathBuf};

use crate::checkpoint::file_names::index_of;
use crate::checkpoint::journal::{Journal, Staged, Stand, Version};
use crate::error::{Code, Error, Result};
use crate::io::durability::{Durability, boot};
use crate::io::entry::{Entry, Presence};
use crate::io::publish::{Publish, Stage};
use crate::io::rights::Rights;
use recovery::{finish, take_back};

mod folder_changes;
pub(in crate::checkpoint) mod locked_folder;
pub(in crate::checkpoint) mod losses;
mod recovery;
mod replaced_files;
mod stand_in_index;
pub(in crate::checkpoint) mod target_folder;
#[cfg(test)]
pub(in crate::checkpoint) mod testing;
#[cfg(test)]
mod tests;

/// What is to be committed, all of it staged and written, the files closed; for `Durable` on the disk.
#[derive(Debug)]
pub(in crate::checkpoint) struct NewFiles {
    /// What makes the difference: the index, or the single file.
    pub(in crate::checkpoint) main: Stage,
    /// What `main` is nothing without: the shards.
    pub(in crate::checkpoint) shards: Vec<Stage>,
    /// What belongs to them and is no weights.
    pub(in crate::checkpoint) along: Vec<Stage>,
}

/// What becomes of what was there before.
#[derive(Debug, Default)]
struct Replaces {
    /// What has the name of `main`.
    main: Option<Entry>,
    /// What is of no use afterwards.
    superseded: Vec<Entry>,
}

/// What became of the checkpoint before.
#[derive(Debug, Default)]
pub(in crate::checkpoint) struct Removed {
    /// What is still there of it. Readers do not take it for the checkpoint; the next save removes it,
    /// unless it is part of another checkpoint.
    pub(in crate::checkpoint) left_behind: Vec<PathBuf>,
}

/// A commit, step by step.
struct Commit<'f> {
    folder: &'f Path,
    /// The single file of the checkpoint, which it is known by.
    single: String,
    durability: Durability,
    journal: Journal,
    /// The journal as it lies in the folder, if it does.
    announced: Option<Entry>,
    /// What is there under `main`'s name.
    replaced: Option<Entry>,
    /// All that is staged, so that what gets no name is removed.
    stages: Vec<Stage>,
}

impl<'f> Commit<'f> {
    /// Nothing changes yet. `before` comes into the folder before the shards, in the name of an index;
    /// `stand_in` after the commit.
    fn new(
        folder: &'f Path,
        single: String,
        new: NewFiles,
        replaces: Replaces,
        [before, stand_in]: [Option<Stage>; 2],
        durability: Durability,
    ) -> Result<Self> {
        let shards: Vec<_> = before.into_iter().chain(new.shards).collect();
        let entries = shards.iter().map(|stage| Ok(staged(stage)?.entry));
        let journal = Journal {
            version: Version::Two,
            main: staged(&new.main)?,
            new: entries.collect::<Result<_>>()?,
            along: new.along.iter().map(staged).collect::<Result<_>>()?,
            stand_in: stand_in.as_ref().map(staged).transpose()?,
            superseded: replaces.superseded,
            boot: (durability == Durability::Cached).then(boot),
        };
        // The order in which the shards get their names.
        let mut stages = shards;
        stages.extend(new.along);
        stages.extend(stand_in);
        stages.push(new.main);
        Ok(Self {
            folder,
            single,
            durability,
            journal,
            announced: None,
            replaced: replaces.main,
            stages,
        })
    }

    /// Makes the new checkpoint the one that counts, and removes the old one. `parents` are folders in
    /// which something was made for it.
    ///
    /// # Errors
    /// `io`; `file-changed` where somebody put a file into the place of `main` meanwhile. The old
    /// checkpoint is still there, unless the error says otherwise.
    fn run(mut self, rights: &Rights, parents: &[PathBuf]) -> Result<()> {
        let ready = self.announce(rights).and_then(|()| self.bring());
        if let Err(error) = ready.and_then(|()| self.switch()) {
            self.undo();
            return Err(error);
        }
        self.stages.drain(..).for_each(Stage::leave);
        self.secure(parents)?;
        match self.announced {
            Some(_) => match finish(self.folder, &self.single, &self.journal, self.durability) {
                // What is left behind misleads nobody, and the next save tries again.
                Err(error) if error.code() == Code::Io => Ok(()),
                finished => finished,
            },
            None => Ok(()),
        }
    }

    /// Writes the journal, unless the commit is a single rename.
    fn announce(&mut self, rights: &Rights) -> Result<()> {
        let Journal {
            new,
            along,
            superseded,
            ..
        } = &self.journal;
        if new.is_empty() && along.is_empty() && superseded.is_empty() {
            return Ok(());
        }
        let name = Journal::name(&self.single);
        let bytes = self.journal.to_bytes();
        let stage = folder_changes::stage(self.folder, &name, rights, &bytes, self.durability)?;
        let journal = staged(&stage)?;
        // Where there is one, another save is at work: there are no locks here.
        folder_changes::publish(self.folder, &journal, Publish::NoReplace)?;
        stage.leave();
        self.announced = Some(journal.entry);
        self.sync()
    }

    /// Gives everything but `main` its name.
    fn bring(&self) -> Result<()> {
        let mut brought = Vec::new();
        // No weights without what belongs to them; and nothing new beside old ones.
        if self.replaced.is_none() && self.journal.superseded.is_empty() {
            brought.extend(self.journal.along.iter().cloned());
        }
        let shards = self.journal.new.iter().zip(&self.stages);
        brought.extend(shards.map(|(entry, stage)| Staged {
            entry: entry.clone(),
            stage: stage.name().to_owned(),
        }));
        if brought.is_empty() {
            return Ok(());
        }
        for file in &brought {
            let published = folder_changes::publish(self.folder, file, Publish::NoReplace);
            published.map_err(|error| match folder_changes::is_taken(&error) {
                true => came_meanwhile(&self.folder.join(&file.entry.name)),
                false => error,
            })?;
            if index_of(&file.entry.name).is_some() {
                // The index that stands in first, then what it leads past.
                self.sync()?;
            }
        }
        self.sync()
    }

    /// Commits, if what is replaced is still what it was.
    fn switch(&self) -> Result<()> {
        let main = &self.journal.main;
        let name = &main.entry.name;
        let stands_in = self.journal.new.iter().find(|entry| entry.name == *name);
        let expected = stands_in.or(self.replaced.as_ref());
        let found = match expected {
            Some(entry) => entry.presence(self.folder)?,
            None => match Entry::at(self.folder, name)? {
                Some(_) => Presence::Other,
                None => Presence::Gone,
            },
        };
        let how = match found {
            Presence::Same => Publish::Replace,
            // Whoever removed it meanwhile does not want it.
            Presence::Gone => Publish::NoReplace,
            Presence::Other => return Err(came_meanwhile(&self.folder.join(name))),
        };
        match folder_changes::publish(self.folder, main, how) {
            // Over a network, an answer can be lost.
            Err(error) if !main.entry.is_there(self.folder).unwrap_or_default() => Err(error),
            _ => Ok(()),
        }
    }

    /// Brings the commit to the disk.
    fn secure(&self, parents: &[PathBuf]) -> Result<()> {
        // So that a new folder is not lost with all that is in it.
        let mut folders = parents.iter();
        let synced = self.sync().and_then(|()| {
            folders.try_for_each(|folder| folder_changes::sync(folder, self.durability))
        });
        synced.map_err(not_yet_safe)
    }

    /// Takes everything back, as the next save would.
    fn undo(mut self) {
        if self.try_undo().is_err() {
            // The next save does, if it finds all that it needs for it.
            self.stages.drain(..).for_each(Stage::leave);
        }
    }

    fn try_undo(&mut self) -> Result<()> {
        let Some(journal) = self.announced.take() else {
            // Nothing has changed.
            return Ok(());
        };
        // Only if it is certain that nothing was committed.
        if self.journal.stand(self.folder)? != Stand::Pending {
            return Ok(());
        }
        let Journal { new, along, .. } = &self.journal;
        take_back(self.folder, new, along, self.durability)?;
        folder_changes::remove(&journal, self.folder)?;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        folder_changes::sync(self.folder, self.durability)
    }
}

/// The error of a place in which somebody put a file while the save was at work.
fn came_meanwhile(path: &Path) -> Error {
    Error::new(Code::FileChanged)
        .at_path(path)
        .expected("what was there when the save began")
        .found("another file, which came or was changed meanwhile")
        .help("nothing was replaced: look whose it is, and save again")
}

/// The error of a commit that is made but may not be on the disk.
fn not_yet_safe(error: Error) -> Error {
    error.help(
        "the new checkpoint is in its place, and readers find it, but a power failure may still \
         bring the old one back; save again",
    )
}

/// What a journal says of a stage.
fn staged(stage: &Stage) -> Result<Staged> {
    Ok(Staged {
        entry: stage.entry()?,
        stage: stage.name().to_owned(),
    })
}
