//! What tells the bytes of a source from others that had its name before, or will have it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use crate::error::{Code, Error, Result};

/// Which of the bytes that a name may lead to, one after the other, those of a source are: an ETag, a
/// commit; of a local file, what the system knows of it.
#[derive(Clone, Debug)]
pub struct Version(Kind);

#[derive(Clone, Debug)]
enum Kind {
    File(Identity),
    Text(String),
}

impl Version {
    /// A version that is told by its text alone.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Kind::Text(text.into()))
    }

    /// Its text; `None` for a local file, which has none that would say something elsewhere.
    pub fn as_str(&self) -> Option<&str> {
        match &self.0 {
            Kind::File(_) => None,
            Kind::Text(text) => Some(text),
        }
    }

    /// Whether both are of the same bytes.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Kind::File(one), Kind::File(other)) => one.is_same(other),
            (Kind::Text(one), Kind::Text(other)) => one == other,
            _ => false,
        }
    }

    /// Fails with `file-changed` where these are not the bytes that were opened.
    pub(crate) fn check(&self, now: &Self) -> Result<()> {
        match (&self.0, &now.0) {
            (Kind::File(opened), Kind::File(now)) => opened.check_same(now),
            _ if self.is_same(now) => Ok(()),
            (opened, now) => Err(Error::new(Code::FileChanged)
                .expected(opened.describe())
                .found(now.describe())),
        }
    }
}

impl Kind {
    fn describe(&self) -> String {
        match self {
            Self::File(identity) => format!("a file of {} bytes", identity.len),
            Self::Text(text) => format!("version {text:?}"),
        }
    }
}

impl From<Identity> for Version {
    fn from(identity: Identity) -> Self {
        Self(Kind::File(identity))
    }
}

/// What tells a file from another one that took its place, or from itself after a write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) len: u64,
    device: u64,
    inode: u64,
    modified: (i64, i64),
    /// Which nobody can put back; and how many names it has, since that changes the time too.
    changed: (i64, i64),
    links: u64,
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
        }
    }

    /// Whether nothing was written to it: where only its names became more or fewer, as when a save
    /// replaces it, its bytes are the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let file = |it: &Self| (it.len, it.device, it.inode, it.modified);
        file(self) == file(other) && (self.changed == other.changed || self.links != other.links)
    }

    pub(crate) fn check_same(&self, now: &Self) -> Result<()> {
        if self.is_same(now) {
            return Ok(());
        }
        Err(Error::new(Code::FileChanged)
            .expected(format_args!("the {} bytes that were opened", self.len))
            .found(format_args!("{} bytes, changed or replaced since", now.len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            Version::from(Identity::of(&path.metadata().unwrap()))
        };
        let versions = [
            Version::new("\"etag\""),
            Version::new("0123"),
            file("a", "1"),
            file("b", "1"),
            file("c", "22"),
        ];
        for (at, one) in versions.iter().enumerate() {
            for (other_at, other) in versions.iter().enumerate() {
                assert_eq!(one.is_same(other), at == other_at, "{one:?}, {other:?}");
                let code = one.check(other).err().map(|error| error.code());
                let expected = (at != other_at).then_some(Code::FileChanged);
                assert_eq!(code, expected, "{one:?}, {other:?}");
            }
        }
        let error = versions[0].check(&versions[1]).unwrap_err().to_string();
        assert!(error.contains("etag") && error.contains("0123"), "{error}");
        assert_eq!(
            versions.map(|it| it.as_str().is_some()),
            [true, true, false, false, false]
        );
    }
}
