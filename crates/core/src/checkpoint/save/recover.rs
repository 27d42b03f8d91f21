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
            let new = journal.new.iter().rev();
            for entry in new.filter(|entry| !adopted.contains(&entry.name.to_lowercase())) {
                change::remove(entry, folder)?;
            }
            change::remove_file(&folder.join(Journal::name(single)))?;
            change::remove_file(&folder.join(&journal.stage))
        }
        Stand::Committed => finish(folder, single, &journal, None, Durability::Durable),
        Stand::Void => change::remove_file(&folder.join(Journal::name(single))),
    }
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
