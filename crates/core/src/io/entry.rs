//! Entries of a folder, looked at and removed as what they are: no link is followed.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// A file, or a link, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Its place below a folder; `/` separates.
    pub(crate) name: String,
    pub(crate) mark: Mark,
}

/// What tells a file or a link from another one that took its name, or from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    pub(crate) len: u64,
    pub(crate) inode: u64,
    /// When it was made, where the system says: nobody can set that, and no copy keeps it. In
    /// nanoseconds since 1970, as all times here.
    pub(crate) born: Option<i128>,
    /// When its contents changed last.
    pub(crate) modified: i128,
    /// When anything about it changed last, which nobody can set; `None` where it is still to be
    /// renamed.
    pub(crate) changed: Option<i128>,
}

/// What is where an entry was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Same,
    /// Something else.
    Other,
    Gone,
}

impl Entry {
    /// The file or link of this name below `folder`; `None` where there is none, or where a link leads
    /// out of the folder on the way to it.
    ///
    /// # Errors
    /// `io`, with the path.
    pub(crate) fn at(folder: &Path, name: &str) -> Result<Option<Self>> {
        Ok(below(folder, name)?.and_then(|found| {
            let mark = Mark::of(&found)?;
            let name = name.to_owned();
            Some(Self { name, mark })
        }))
    }

    /// What is there now.
    ///
    /// # Errors
    /// As [`Entry::at`].
    pub(crate) fn presence(&self, folder: &Path) -> Result<Presence> {
        Ok(match below(folder, &self.name)? {
            Some(now) if Mark::of(&now).is_some_and(|now| self.mark.is_same(&now)) => {
                Presence::Same
            }
            Some(_) => Presence::Other,
            None => Presence::Gone,
        })
    }

    /// Whether it is there, however its contents and times may have changed since.
    ///
    /// # Errors
    /// As [`Entry::at`].
    pub(crate) fn is_there(&self, folder: &Path) -> Result<bool> {
        let now = below(folder, &self.name)?.as_ref().and_then(Mark::of);
        Ok(now.is_some_and(|now| self.mark.is_same_file(&now)))
    }

    /// The same file as it will be found under the name that it is going to get.
    pub(crate) fn renamed_to(self, name: String) -> Self {
        let mark = Mark {
            changed: None,
            ..self.mark
        };
        Self { name, mark }
    }

    /// Removes it if it is still there and the same. Says what was found.
    ///
    /// # Errors
    /// As [`Entry::at`].
    pub(crate) fn remove(&self, folder: &Path) -> Result<Presence> {
        let presence = self.presence(folder)?;
        if presence == Presence::Same {
            let path = folder.join(&self.name);
            fs::remove_file(&path).map_err(|error| Error::io(Code::Io, error).at_path(&path))?;
        }
        Ok(presence)
    }
}

impl Mark {
    /// Of a file or a link; nothing else has one.
    fn of(metadata: &Metadata) -> Option<Self> {
        (metadata.is_file() || metadata.is_symlink()).then(|| Self {
            len: metadata.len(),
            inode: metadata.ino(),
            born: born(metadata),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: Some(nanoseconds(metadata.ctime(), metadata.ctime_nsec())),
        })
    }

    /// Whether nothing was replaced, written or changed since.
    fn is_same(&self, now: &Self) -> bool {
        let is_changed =
            matches!((self.changed, now.changed), (Some(one), Some(other)) if one != other);
        self.len == now.len
            && self.modified == now.modified
            && self.is_same_file(now)
            && !is_changed
    }

    /// Whether it is the same file, whatever was written to it. Numbers of inodes are used again, times of
    /// birth are not; where there are none, only a file that nobody wrote to is known again.
    fn is_same_file(&self, now: &Self) -> bool {
        let is_known = match (self.born, now.born) {
            (Some(one), Some(other)) => one == other,
            _ => self.len == now.len && self.modified == now.modified,
        };
        self.inode == now.inode && is_known
    }
}

fn born(metadata: &Metadata) -> Option<i128> {
    let since = metadata.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    i128::try_from(since.as_nanos()).ok()
}

fn nanoseconds(seconds: i64, more: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(more)
}

/// Whether nothing has this name in `folder`, not even in another case where that is the same.
///
/// # Errors
/// `io`, with the path.
pub(crate) fn is_free(folder: &Path, name: &str) -> Result<bool> {
    Ok(look(&folder.join(name))?.is_none())
}

/// What is below `folder`, unless a link leads out of it on the way.
fn below(folder: &Path, name: &str) -> Result<Option<Metadata>> {
    let mut path = folder.to_path_buf();
    let mut parts = name.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        let found = look(&path)?;
        if parts.peek().is_none() {
            return Ok(found);
        }
        if !found.is_some_and(|found| found.is_dir()) {
            break;
        }
    }
    Ok(None)
}

fn look(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(Code::Io, error).at_path(path)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;
    use std::time::{Duration, SystemTime};

    use tempfile::tempdir;

    use super::*;

    #[test]
    fn an_entry_that_is_to_be_renamed_is_known_again_until_it_is_written_to() {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "1234").unwrap();
        let a = Entry::at(folder.path(), "a").unwrap().unwrap();
        assert_eq!(a.presence(folder.path()).unwrap(), Presence::Same);
        let b = a.clone().renamed_to("b".to_owned());
        fs::rename(at("a"), at("b")).unwrap();
        assert_eq!(a.presence(folder.path()).unwrap(), Presence::Gone);
        assert_eq!(b.presence(folder.path()).unwrap(), Presence::Same);

        fs::write(at("a"), "12345").unwrap();
        assert_eq!(a.presence(folder.path()).unwrap(), Presence::Other);
        fs::write(at("a"), "4321").unwrap();
        let later = SystemTime::now() + Duration::from_secs(1);
        File::options()
            .append(true)
            .open(at("a"))
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert_eq!(a.presence(folder.path()).unwrap(), Presence::Other);
        assert_eq!(a.remove(folder.path()).unwrap(), Presence::Other);
        assert!(at("a").exists());
        assert_eq!(b.remove(folder.path()).unwrap(), Presence::Same);
        assert!(!at("b").exists());
        assert_eq!(b.remove(folder.path()).unwrap(), Presence::Gone);
    }

    #[test]
    fn what_was_touched_copied_or_written_to_is_not_the_same() {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (there, name) = (folder.path(), "a");
        let changes: [&dyn Fn(); 4] = [
            // The time put back, as `touch -r` and `cp --preserve` do.
            &|| {
                let modified = fs::metadata(at(name)).unwrap().modified().unwrap();
                fs::write(at(name), "4321").unwrap();
                let file = File::options().append(true).open(at(name)).unwrap();
                file.set_modified(modified).unwrap();
            },
            &|| {
                let file = File::options().append(true).open(at(name)).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            },
            &|| fs::set_permissions(at(name), Permissions::from_mode(0o600)).unwrap(),
            &|| {
                let modified = fs::metadata(at(name)).unwrap().modified().unwrap();
                fs::copy(at(name), at("copy")).unwrap();
                let file = File::options().append(true).open(at("copy")).unwrap();
                file.set_modified(modified).unwrap();
                fs::rename(at("copy"), at(name)).unwrap();
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            fs::write(at(name), "1234").unwrap();
            let entry = Entry::at(there, name).unwrap().unwrap();
            // File systems count time in steps.
            thread::sleep(Duration::from_millis(20));
            change();
            assert_eq!(entry.presence(there).unwrap(), Presence::Other, "{number}");
            // Still that file, but for the copy.
            assert_eq!(entry.is_there(there).unwrap(), number < 3, "{number}");
        }
    }

    #[test]
    fn a_link_is_an_entry_of_its_own() {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("blob"), "1234").unwrap();
        symlink("blob", at("link")).unwrap();
        let link = Entry::at(folder.path(), "link").unwrap().unwrap();
        assert_eq!(link.remove(folder.path()).unwrap(), Presence::Same);
        assert!(at("blob").exists() && !at("link").is_symlink());
        symlink("nowhere", at("link")).unwrap();
        assert!(Entry::at(folder.path(), "link").unwrap().is_some());
        assert!(!is_free(folder.path(), "link").unwrap());
    }

    #[test]
    fn no_link_is_followed_into_another_folder() {
        let (folder, elsewhere) = (tempdir().unwrap(), tempdir().unwrap());
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("real/deep")).unwrap();
        for path in [at("real/deep/x"), elsewhere.path().join("x")] {
            fs::write(path, "1234").unwrap();
        }
        symlink(elsewhere.path(), at("linked")).unwrap();
        symlink(elsewhere.path(), at("real/linked")).unwrap();
        let entry = |name| Entry::at(folder.path(), name).unwrap();
        assert_eq!(entry("linked/x"), None);
        assert_eq!(entry("real/linked/x"), None);
        assert_eq!(entry("real/deep/x/y"), None);
        assert_eq!(entry("real"), None, "a folder");
        let x = entry("real/deep/x").unwrap();
        // The folder becomes a link afterwards.
        fs::rename(at("real/deep"), at("real/moved")).unwrap();
        symlink("moved", at("real/deep")).unwrap();
        assert_eq!(x.remove(folder.path()).unwrap(), Presence::Gone);
        assert!(at("real/moved/x").exists());
    }

    #[test]
    fn what_cannot_be_looked_at_is_an_error() {
        let folder = tempdir().unwrap();
        let long = "x".repeat(300);
        let error = Entry::at(folder.path(), &long).unwrap_err();
        assert_eq!(error.code(), Code::Io);
        assert_eq!(error.path(), Some(&*folder.path().join(&long)));
    }
}
