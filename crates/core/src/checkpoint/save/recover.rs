//! The rest of a commit: what follows it, and what the next save does about one that was cut off. See
//! [`commit`](super::commit).

use std::path::Path;

use super::journal::{Journal, Stand};
use super::owned::named_in;
use super::{Durability, bridge, change};
use crate::Result;
use crate::checkpoint::locate::{Listing, index_of};
use crate::io::entry::{Entry, Presence};
use crate::io::lock::FolderLock;
use crate::io::publish::{Mode, Publish, Stage};

/// Finishes or undoes what a save left that died: that of the checkpoint of this single file, and as
/// far as nobody else can be at it, those of others.
pub(super) fn recover(folder: &Path, single: &str, lock: &FolderLock) -> Result<()> {
    let listing = Listing::read(folder)?;
    for of in listing.names().filter_map(Journal::single_of) {
        if of == single {
            recover_one(folder, of)?;
        } else if lock.held() {
            let _not_in_our_way = recover_one(folder, of);
        }
    }
    Ok(())
}

fn recover_one(folder: &Path, single: &str) -> Result<()> {
    let Some(journal) = Journal::read(folder, single)? else {
        return Ok(());
    };
    match journal.stand(folder)? {
        Stand::Pending => {
            // Unless somebody made the shards a checkpoint by hand.
            let adopted = named_in(folder)?;
            let new = journal.new.into_iter();
            let new = new.filter(|entry| !adopted.contains(&entry.name.to_lowercase()));
            take_back(folder, &Vec::from_iter(new), Durability::Durable)?;
            change::remove_file(&folder.join(Journal::name(single)))?;
            change::remove_file(&folder.join(&journal.stage))
        }
        Stand::Committed => {
            let finished = finish(folder, single, &journal, None, Durability::Durable);
            finished.map_err(|error| {
                error.help("an earlier save replaced it and could not remove it: remove it, and save again")
            })
        }
        Stand::Void => change::remove_file(&folder.join(Journal::name(single))),
    }
}

/// Undoes what was done before the commit: a bridge goes after all that it leads past.
pub(super) fn take_back(folder: &Path, new: &[Entry], durability: Durability) -> Result<()> {
    for entry in new.iter().rev() {
        if index_of(&entry.name).is_some() {
            change::sync(folder, durability)?;
        }
        change::remove(entry, folder)?;
    }
    change::sync(folder, durability)
}

/// What is left to do after the commit.
pub(super) fn finish(
    folder: &Path,
    single: &str,
    journal: &Journal,
    bridge: Option<Stage>,
    durability: Durability,
) -> Result<()> {
    let is_index = |entry: &&Entry| index_of(&entry.name).is_some();
    let (indexes, files): (Vec<_>, Vec<_>) = journal.superseded.iter().partition(is_index);
    if journal.main.name == single {
        lead_over(folder, single, &indexes, &files, bridge, durability)?;
    }
    for index in &indexes {
        change::remove(index, folder)?;
    }
    if !indexes.is_empty() {
        change::sync(folder, durability)?;
    }
    for file in &files {
        change::remove(file, folder)?;
    }
    let bridge = folder.join(bridge::name(single));
    if journal.main.name == single && bridge::is_bridge(&bridge, single)? {
        change::sync(folder, durability)?;
        change::remove_file(&bridge)?;
    }
    change::sync(folder, durability)?;
    change::remove_file(&folder.join(Journal::name(single)))
}

/// Puts a bridge in the place of the old index, if there are old shards.
fn lead_over(
    folder: &Path,
    single: &str,
    indexes: &[&Entry],
    shards: &[&Entry],
    staged: Option<Stage>,
    durability: Durability,
) -> Result<()> {
    let name = bridge::name(single);
    let Some(index) = indexes.iter().find(|index| index.name == name) else {
        return Ok(());
    };
    if shards.is_empty() || index.presence(folder)? != Presence::Same {
        return Ok(());
    }
    let bridge = match staged {
        Some(bridge) => Some(bridge),
        // After its process died.
        None => {
            let mode = Mode::at(&folder.join(&name))?;
            let bytes = bridge::to_file(&folder.join(single), single)?;
            let stage = |bytes: Vec<u8>| change::stage(folder, &name, mode, &bytes, durability);
            bytes.map(stage).transpose()?
        }
    };
    match bridge {
        Some(mut bridge) => change::publish(&mut bridge, Publish::Replace),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::super::Durability;
    use super::super::testing::*;
    use crate::Code;

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
        let mark = |path| {
            use std::os::unix::fs::MetadataExt;
            let found = fs::symlink_metadata(path).unwrap();
            format!(
                "{} {}.{:09}",
                found.len(),
                found.mtime(),
                found.mtime_nsec()
            )
        };
        let first = &canonical(2)[0];
        // Pending, so that what is called new would go; but the index names the one, and a link
        // leads to the other.
        world.write(
            JOURNAL,
            serde_json::json!({
                "version": "1", "main": {INDEX: mark(world.at(&stage))}, "stage": stage,
                "new": {first: mark(world.at(first)), "out/victim.safetensors": mark(victim.clone())},
                "superseded": {},
            })
            .to_string(),
        );
        recover(&world);
        assert!(victim.exists());
        assert_eq!(ours(&world.folder(), None), Some(OLD));
        assert_eq!(world.names().len(), 4);
    }
}
