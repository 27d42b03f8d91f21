//! The rest of a commit: what follows it, and what the next save does about one that was cut off. See
//! [`commit`](super).

use std::iter;
use std::path::Path;

use super::folder_changes;
use super::replaced_files::named_in;
use crate::checkpoint::file_names::index_of;
use crate::checkpoint::journal::{Journal, Staged, Stand};
use crate::checkpoint::locate::Listing;
use crate::error::{Code, Error, Result};
use crate::io::durability::Durability;
use crate::io::entry::{Entry, Presence};
use crate::io::publish::Publish;

/// Finishes or undoes what saves left in a folder that died. Errors are told with the single file of the
/// checkpoint that each is about.
///
/// # Errors
/// `io` where the folder cannot be listed.
pub(super) fn recover(folder: &Path) -> Result<Vec<(String, Error)>> {
    let listing = Listing::read(folder)?;
    let singles = listing.names().filter_map(Journal::single_of);
    let failed = singles.filter_map(|single| {
        let recovered = recover_one(folder, single);
        recovered.err().map(|error| (single.to_owned(), error))
    });
    Ok(failed.collect())
}

fn recover_one(folder: &Path, single: &str) -> Result<()> {
    let Some(mut journal) = Journal::read(folder, single)? else {
        return Ok(());
    };
    match journal.stand(folder)? {
        Stand::Pending => {
            // Unless somebody made the shards a checkpoint by hand.
            let adopted = named_in(folder, iter::empty())?;
            let Journal { new, along, .. } = &journal;
            let new = new.iter().cloned();
            let new = new.filter(|entry| !adopted.contains(&entry.name.to_lowercase()));
            take_back(folder, &Vec::from_iter(new), along, Durability::Durable)?;
            folder_changes::remove_file(&folder.join(Journal::name(single)))?;
            for staged in journal.staged() {
                folder_changes::remove(&staged.as_stage(), folder)?;
            }
            Ok(())
        }
        Stand::Committed => {
            // Unless somebody wrote an index that counts on them, to go back to them for instance.
            let ours = journal.stand_in.iter().map(|staged| &staged.entry);
            let ours = ours.chain(&journal.superseded).chain([&journal.main.entry]);
            let adopted = named_in(folder, ours)?;
            let superseded = &mut journal.superseded;
            superseded.retain(|entry| !adopted.contains(&entry.name.to_lowercase()));
            let finished = finish(folder, single, &journal, Durability::Durable);
            finished.map_err(|error| match error.code() {
                Code::Io => error.help(
                    "an earlier save replaced it and could not remove it: remove it, and save again",
                ),
                _ => error,
            })
        }
        Stand::Void => folder_changes::remove_file(&folder.join(Journal::name(single))),
    }
}

/// Undoes what was done before the commit: an index goes after all that it leads past.
pub(super) fn take_back(
    folder: &Path,
    new: &[Entry],
    along: &[Staged],
    durability: Durability,
) -> Result<()> {
    let along = along.iter().map(|staged| &staged.entry);
    for entry in along.chain(new).rev() {
        if index_of(&entry.name).is_some() {
            folder_changes::sync(folder, durability)?;
        }
        folder_changes::remove(entry, folder)?;
    }
    folder_changes::sync(folder, durability)
}

/// What is left to do after the commit.
///
/// # Errors
/// `io`, with what could not be removed, which the journal stays for; `old-checkpoint-left` where some
/// reader takes that for the checkpoint.
pub(super) fn finish(
    folder: &Path,
    single: &str,
    journal: &Journal,
    durability: Durability,
) -> Result<()> {
    for staged in &journal.along {
        if staged.is_staged(folder)? {
            match folder_changes::publish(folder, staged, Publish::NoReplace) {
                // Somebody else's by now.
                Err(error) if folder_changes::is_taken(&error) => {
                    folder_changes::remove(&staged.as_stage(), folder)?;
                }
                published => published.map_err(|error| {
                    error.recode(Code::SideFileMissing).help(
                        "the new checkpoint is in its place without this file: make room for it, and \
                         save again",
                    )
                })?,
            }
        }
    }
    let is_index = |entry: &&Entry| index_of(&entry.name).is_some();
    let (indexes, files): (Vec<_>, Vec<_>) = journal.superseded.iter().partition(is_index);
    if let Some(stand_in) = &journal.stand_in {
        let replaced = indexes
            .iter()
            .find(|index| index.name == stand_in.entry.name);
        if let Some(index) = replaced {
            let stands_in = stand_in_for(index, stand_in, folder);
            stands_in.map_err(|error| misleading(index, error))?;
        }
    }
    for index in &indexes {
        folder_changes::remove(index, folder).map_err(|error| misleading(index, error))?;
    }
    if !indexes.is_empty() {
        folder_changes::sync(folder, durability)?;
    }
    for file in &files {
        let removed = folder_changes::remove(file, folder);
        removed.map_err(|error| match file.name == single {
            true => misleading(file, error),
            false => error,
        })?;
    }
    if let Some(stand_in) = &journal.stand_in {
        folder_changes::sync(folder, durability)?;
        folder_changes::remove(&stand_in.entry, folder)?;
        folder_changes::remove(&stand_in.as_stage(), folder)?;
    }
    folder_changes::sync(folder, durability)?;
    folder_changes::remove_file(&folder.join(Journal::name(single)))
}

/// Puts the index that stands in into the place of the old one, if that is still there and this not yet.
fn stand_in_for(index: &Entry, stand_in: &Staged, folder: &Path) -> Result<()> {
    match index.presence(folder)? == Presence::Same && stand_in.is_staged(folder)? {
        true => folder_changes::publish(folder, stand_in, Publish::Replace),
        false => Ok(()),
    }
}

/// The error of a file of the old checkpoint that some reader takes for the checkpoint.
fn misleading(file: &Entry, why: Error) -> Error {
    let reader = match index_of(&file.name) {
        Some(_) => "huggingface_hub",
        None => "transformers",
    };
    why.recode(Code::OldCheckpointLeft).help(format!(
        "the new checkpoint is in its place, but {reader} still reads this file of the old one: remove it"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::super::testing::*;
    use super::*;
    use crate::checkpoint::journal::Version;
    use crate::error::Code;
    use crate::io::durability::Durability;
    use crate::io::lock::LOCK;

    const JOURNAL: &str = ".model.safetensors.commit";
    const OTHER_JOURNAL: &str = ".other.safetensors.commit";

    fn recover(world: &World) {
        world.open(plain()).unwrap();
    }

    #[test]
    fn shards_that_somebody_made_a_checkpoint_stay() {
        let (pending, _) = around_commit(&World::new(Old::Nothing), New::Shards);
        fs::remove_file(pending.at(INDEX)).unwrap();
        pending.write(INDEX, index_of_shards(&canonical(2)));
        assert_eq!(ours(&pending.folder(), None), Some(NEW));
        recover(&pending);
        assert_eq!(ours(&pending.folder(), None), Some(NEW));
        assert_eq!(pending.names().len(), 3);
    }

    #[rstest]
    #[case::before_the_commit(Old::Single, New::Shards, true)]
    #[case::after_it(Old::Single, New::Shards, false)]
    #[case::before_that_of_a_single_file(Old::Same, New::Single, true)]
    #[case::after_that_of_a_single_file(Old::Same, New::Single, false)]
    fn what_somebody_saved_since_is_not_removed(
        #[case] old: Old,
        #[case] new: New,
        #[case] before: bool,
        #[values(New::Single, New::Shards)] theirs: New,
    ) {
        let (pending, committed) = around_commit(&World::new(old), new);
        let world = if before { pending } else { committed };
        // In place and without a lock, as others do it; they leave what is in their way, or not.
        match theirs {
            New::Single => world.single(SINGLE, STALE),
            New::Shards => {
                world.shards(INDEX, &canonical(2), STALE);
                let _absent = fs::remove_file(world.at(SINGLE));
            }
        }
        let read = |name: &str| fs::read(world.at(name)).unwrap();
        let files: Vec<_> = match theirs {
            New::Single => vec![SINGLE.to_owned()],
            New::Shards => canonical(2).into_iter().chain([INDEX.to_owned()]).collect(),
        };
        let bytes: Vec<_> = files.iter().map(|name| read(name)).collect();
        recover(&world);
        let still: Vec<_> = files.iter().map(|name| read(name)).collect();
        assert_eq!(still, bytes);
        assert!(!world.names().contains(JOURNAL));
        // And a save afterwards replaces all of it.
        world.save(new).unwrap();
        assert_eq!(ours(&world.folder(), None), Some(NEW));
    }

    #[test]
    fn saves_of_other_checkpoints_are_finished_or_undone_too() {
        for committed in [false, true] {
            let world = World::new(Old::Nothing);
            world.single("model.fp16.safetensors", OLD);
            let (_, states) = states_of(&world, || {
                save(
                    &world.folder(),
                    fp16(),
                    New::Shards,
                    NEW,
                    Durability::Cached,
                )
                .unwrap()
            });
            let value = if committed { NEW } else { OLD };
            let in_between = |state: &&World| {
                let hidden = state
                    .names()
                    .iter()
                    .filter(|name| name.starts_with('.'))
                    .count();
                hidden > 0 && ours(&state.folder(), Some("fp16")) == Some(value)
            };
            let state = states.iter().rfind(in_between).unwrap();
            recover(state);
            assert_eq!(ours(&state.folder(), Some("fp16")), Some(value));
            assert_eq!(state.names().len(), if committed { 3 } else { 1 });
        }
    }

    #[test]
    fn a_broken_journal_is_an_error_and_removes_nothing() {
        let (pending, committed) = around_commit(&World::new(Old::Single), New::Shards);
        for world in [pending, committed] {
            world.write(JOURNAL, "{");
            // Of the save that died.
            fs::remove_file(world.at(LOCK)).unwrap();
            let names = world.names();
            let error = world.save(New::Single).unwrap_err();
            assert_eq!(error.code(), Code::BrokenJournal);
            let path = world.at(JOURNAL).canonicalize().unwrap();
            assert_eq!(error.path(), Some(&*path));
            assert_eq!(world.names(), names);
        }
    }

    #[test]
    fn a_broken_journal_of_another_checkpoint_is_left_alone() {
        let world = World::new(Old::Same);
        world.write(OTHER_JOURNAL, "{");
        let stage = ".other.safetensors.0123456789abcdef.partial";
        world.write(stage, "");
        world.save(New::Single).unwrap();
        let left = [OTHER_JOURNAL, stage, SINGLE].map(str::to_owned);
        assert_eq!(world.names(), left.into());
    }

    #[test]
    fn a_journal_cannot_remove_what_it_should_not() {
        let world = World::new(Old::Same);
        let victim = world.root().join("victim.safetensors");
        fs::write(&victim, "").unwrap();
        symlink("..", world.at("out")).unwrap();
        let stage = format!(".{INDEX}.0123456789abcdef.partial");
        world.write(&stage, "index");
        let entry = |name: &str, of: &Path| {
            let (folder, of) = (of.parent().unwrap(), of.file_name().unwrap());
            let entry = Entry::at(folder, of.to_str().unwrap()).unwrap();
            entry.unwrap().renamed_to(name.to_owned())
        };
        let first = &canonical(2)[0];
        // Pending, so that what is called new would go; but the index names the one, and a link
        // leads to the other.
        let journal = Journal {
            version: Version::Two,
            main: Staged {
                entry: entry(INDEX, &world.at(&stage)),
                stage,
            },
            new: vec![
                entry(first, &world.at(first)),
                entry("out/victim.safetensors", &victim),
            ],
            along: vec![],
            stand_in: None,
            superseded: vec![],
            boot: None,
        };
        world.write(JOURNAL, journal.to_bytes());
        recover(&world);
        assert!(victim.exists());
        assert_eq!(ours(&world.folder(), None), Some(OLD));
        assert_eq!(world.names().len(), 4);
    }
}
