//! Opening while somebody saves: a result counts only if what it rests on is still there.
//!
//! A save replaces a checkpoint by one rename. But whoever opens one looks at a folder, then at an
//! index, then at the shards that the index names, and a save may come in between: what the folder
//! held is gone, or, since names are used again by the save after the next, a shard is that of a
//! younger checkpoint than the index. So at the end the first thing is looked at again, and if it is
//! not what it was, everything is done again.

use std::thread;
use std::time::Duration;

use super::Checkpoint;
use super::locate::Listing;
use crate::io::source::FileSource;
use crate::{Code, Result};

/// Attempts before it is given up.
const ATTEMPTS: u64 = 100;

/// The longest pause between two attempts. With it, all of them take about a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// What an attempt to open a checkpoint rests on.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The names in the folder.
    pub(super) listing: Option<Listing>,
    /// The index. It stays open, so that no other file can be taken for it: nothing else tells it for
    /// certain from one that came later.
    pub(super) index: Option<FileSource>,
}

/// Attempts it until what it rests on is at the end what it was at the beginning. An error that would
/// come again is returned at once.
///
/// # Errors
/// Those of the attempt; `file-changed` where the index was replaced in every attempt.
pub(super) fn settled(
    mut attempt: impl FnMut(&mut Seen) -> Result<Checkpoint>,
) -> Result<Checkpoint> {
    let mut earlier = 0;
    loop {
        let last = earlier + 1 == ATTEMPTS;
        let mut seen = Seen::default();
        let result = attempt(&mut seen);
        match (seen.index, &result) {
            (Some(index), _) => match index.check_in_place() {
                Ok(()) => return result,
                Err(error) if last || error.code() != Code::FileChanged => return Err(error),
                Err(_) => {}
            },
            // One file is a whole checkpoint, whatever became of its name.
            (None, Ok(_)) => return result,
            (None, Err(_)) if last || seen.listing.is_none_or(still_holds) => return result,
            (None, Err(_)) => {}
        }
        thread::sleep(LONGEST_PAUSE.min(Duration::from_millis(earlier)));
        earlier += 1;
    }
}

/// Whether the folder holds what it held.
fn still_holds(listing: Listing) -> bool {
    Listing::read(listing.folder()).is_ok_and(|now| now == listing)
}
