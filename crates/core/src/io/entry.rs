//! Entries of a folder, looked at and removed as what they are: no link is followed.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{Code, Error, Result};

/// A file, or a link, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its place below a folder; `/` separates.
    pub(crate) name: String,
    pub(crate) mark: Mark,
}

/// What tells an entry from another one that took its name. Renaming keeps it, and so do copies that
/// keep times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) len: u64,
    /// Seconds and nanoseconds.
    pub(crate) modified: (i64, i64),
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
            Some(now) if Mark::of(&now) == Some(self.mark) => Presence::Same,
            Some(_) => Presence::Other,
            None => Presence::Gone,
        })
    }

    /// Removes it if it is still there. Says what was found.
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
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
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
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    use tempfile::tempdir;

    use super::*;

    #[test]
    fn an_entry_is_known_by_length_and_time_and_keeps_them_when_renamed() {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "1234").unwrap();
        let a = Entry::at(folder.path(), "a").unwrap().unwrap();
        assert_eq!(a.presence(folder.path()).unwrap(), Presence::Same);
        fs::rename(at("a"), at("b")).unwrap();
        assert_eq!(a.presence(folder.path()).unwrap(), Presence::Gone);
        let b = Entry::at(folder.path(), "b").unwrap().unwrap();
        assert_eq!(a.mark, b.mark);

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
