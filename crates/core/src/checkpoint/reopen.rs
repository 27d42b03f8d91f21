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
use crate::error::{Code, Result};
use crate::io::folder::FolderFile;

/// Attempts before it is given up.
const ATTEMPTS: u64 = 100;

/// The longest pause between two attempts. With it, all of them take about a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// What an attempt to open a checkpoint rests on.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The names in the folder.
    pub(super) listing: Option<Listing>,
    /// The index, open.
    pub(super) index: Option<FolderFile>,
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
            (None, Err(_)) if last || seen.listing.is_none_or(|it| it.still_holds()) => {
                return result;
            }
            (None, Err(_)) => {}
        }
        thread::sleep(LONGEST_PAUSE.min(Duration::from_millis(earlier)));
        earlier += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tempfile::tempdir;

    use super::*;
    use crate::error::Error;

    fn checkpoint() -> Checkpoint {
        let mut bytes = 2u64.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        Checkpoint::from_bytes(bytes).unwrap()
    }

    /// Runs attempts, and says how many it took.
    fn attempts(
        mut attempt: impl FnMut(u32, &mut Seen) -> Result<Checkpoint>,
    ) -> (Result<Checkpoint>, u32) {
        let mut count = 0;
        let result = settled(|seen| {
            count += 1;
            attempt(count, seen)
        });
        (result, count)
    }

    /// Another file takes its place, as alike as can be.
    fn replace(path: &Path) {
        let other = path.with_extension("other");
        fs::copy(path, &other).unwrap();
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        let file = fs::File::options().append(true).open(&other).unwrap();
        file.set_modified(modified).unwrap();
        fs::rename(other, path).unwrap();
    }

    #[test]
    fn what_was_opened_while_the_index_was_replaced_does_not_count() {
        let folder = tempdir().unwrap();
        let index = folder.path().join("index");
        fs::write(&index, "index").unwrap();
        let (result, count) = attempts(|count, seen| {
            seen.index = Some(FolderFile::at(&index)?);
            match count {
                1 => replace(&index),
                2 => fs::write(&index, "in place").unwrap(),
                // Twice: the second one may get the number that the first one gave back.
                3 => (replace(&index), replace(&index)).0,
                _ => return Ok(checkpoint()),
            }
            match count {
                2 => Err(Error::new(Code::ShardMissing)),
                _ => Ok(checkpoint()),
            }
        });
        result.unwrap();
        assert_eq!(count, 4);
    }

    #[test]
    fn an_index_that_never_holds_still_is_an_error() {
        let folder = tempdir().unwrap();
        let index = folder.path().join("index");
        fs::write(&index, "index").unwrap();
        let (result, count) = attempts(|_, seen| {
            seen.index = Some(FolderFile::at(&index)?);
            replace(&index);
            Ok(checkpoint())
        });
        let error = result.unwrap_err();
        assert_eq!(error.code(), Code::FileChanged);
        assert_eq!(error.path(), Some(&*index));
        assert_eq!(u64::from(count), ATTEMPTS);
    }

    #[test]
    fn an_error_is_returned_at_once_where_nothing_changed() {
        let folder = tempdir().unwrap();
        let index = folder.path().join("index");
        fs::write(&index, "index").unwrap();
        let failed = || Err(Error::new(Code::ShardMissing));
        let (result, count) = attempts(|_, _| failed());
        assert_eq!((result.unwrap_err().code(), count), (Code::ShardMissing, 1));
        let (result, count) = attempts(|_, seen| {
            seen.listing = Some(Listing::read(folder.path())?);
            failed()
        });
        assert_eq!((result.unwrap_err().code(), count), (Code::ShardMissing, 1));
        // The index holds still, and the error is about what it names.
        let (result, count) = attempts(|_, seen| {
            seen.listing = Some(Listing::read(folder.path())?);
            seen.index = Some(FolderFile::at(&index)?);
            fs::write(folder.path().join("another"), "").unwrap();
            failed()
        });
        assert_eq!((result.unwrap_err().code(), count), (Code::ShardMissing, 1));
    }

    #[test]
    fn an_error_counts_only_if_the_folder_holds_what_it_held() {
        let folder = tempdir().unwrap();
        let name = |count: u32| folder.path().join(count.to_string());
        let (result, count) = attempts(|count, seen| {
            seen.listing = Some(Listing::read(folder.path())?);
            match count {
                1 => fs::write(name(1), "").unwrap(),
                2 => fs::rename(name(1), name(2)).unwrap(),
                _ => return Ok(checkpoint()),
            }
            Err(Error::new(Code::NoCheckpoint))
        });
        result.unwrap();
        assert_eq!(count, 3);
        // What never holds still gives its last error.
        let (result, count) = attempts(|count, seen| {
            seen.listing = Some(Listing::read(folder.path())?);
            fs::write(name(10 + count), "").unwrap();
            Err(Error::new(Code::NoCheckpoint))
        });
        assert_eq!(result.unwrap_err().code(), Code::NoCheckpoint);
        assert_eq!(u64::from(count), ATTEMPTS);
    }

    #[test]
    fn names_that_went_and_came_again_are_a_change() {
        let folder = tempdir().unwrap();
        let (name, other) = (folder.path().join("name"), folder.path().join("other"));
        fs::write(&name, "").unwrap();
        let (result, count) = attempts(|count, seen| {
            seen.listing = Some(Listing::read(folder.path())?);
            if count > 1 {
                return Ok(checkpoint());
            }
            // File systems count time in steps.
            thread::sleep(Duration::from_millis(30));
            fs::rename(&name, &other).unwrap();
            fs::rename(&other, &name).unwrap();
            Err(Error::new(Code::AmbiguousCheckpoint))
        });
        result.unwrap();
        assert_eq!(count, 2);
    }

    #[test]
    fn one_file_is_a_whole_checkpoint() {
        let folder = tempdir().unwrap();
        let (result, count) = attempts(|_, seen| {
            seen.listing = Some(Listing::read(folder.path())?);
            fs::write(folder.path().join("another"), "").unwrap();
            Ok(checkpoint())
        });
        result.unwrap();
        assert_eq!(count, 1);
    }
}
