//! How a file gets its name: staged under another one in the same folder, written, then renamed.
//! The only place that renames.
//!
//! Whoever stops half-way leaves at most a stage, whose name says that it is one. The next save of a
//! checkpoint into the folder removes it, once nobody writes to it any more.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::mem;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::entry::Entry;
use super::rights::Rights;
use super::source::open_error;
use crate::error::{Code, Error, Result};

/// What the name of every stage has: a checkpoint's files have it anyway.
const MARK: &str = ".safetensors";

/// The end of the names of stages.
const STAGE_END: &str = ".partial";

/// What tells the stages of one file apart: hexadecimal digits.
const UNIQUE: usize = 16;

/// The longest name of a file, in bytes, on every file system that matters.
const LONGEST_NAME: usize = 255;

/// The end of the names of journals; see [`sweep`](super::lock::sweep).
pub(crate) const JOURNAL_END: &str = ".commit";

/// A file that does not have its name yet. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Stage {
    path: PathBuf,
    target: PathBuf,
    /// Device and inode, so that nothing else is published under its name.
    identity: (u64, u64),
}

/// What to do with a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publish {
    /// Replace it. A link is replaced itself, and what it leads to stays as it is.
    Replace,
    /// Leave it and fail.
    NoReplace,
}

impl Stage {
    /// A new, empty file in `folder` that is to be called `name`, and a descriptor to write to it.
    /// As long as the descriptor is open, the stage is not swept.
    ///
    /// # Errors
    /// `not-found` where there is no such folder; `io`. Both name the final path.
    pub(crate) fn create(folder: &Path, name: &str, rights: &Rights) -> Result<(Self, File)> {
        let target = folder.join(name);
        loop {
            let path = folder.join(stage_name(name));
            let file = match open_new(&path, rights.at_first()) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(open_error(error).at_path(target)),
            };
            let metadata = file.metadata();
            let metadata = metadata.map_err(|error| Error::io(Code::Io, error).at_path(&target))?;
            let stage = Self {
                path,
                target: target.clone(),
                identity: identity(&metadata),
            };
            let failed = |error| Error::io(Code::Io, error).at_path(&target);
            if was_swept(&file).map_err(failed)? {
                continue;
            }
            rights.give_to(&file);
            return Ok((stage, file));
        }
    }

    /// Where it is now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it will be.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Its name until then.
    pub(crate) fn name(&self) -> &str {
        let name = self.path.file_name().and_then(OsStr::to_str);
        name.unwrap_or_default()
    }

    /// What it is called in the end.
    pub(crate) fn final_name(&self) -> &str {
        let name = self.target.file_name().and_then(OsStr::to_str);
        name.unwrap_or_default()
    }

    /// The file as it will be found under its final name.
    ///
    /// # Errors
    /// `io`; `file-changed` where something else is in its place, or nothing: whoever may write to the
    /// folder may have put a link there, or another file.
    pub(crate) fn entry(&self) -> Result<Entry> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let now = match fs::symlink_metadata(&self.path) {
            // Whatever was in its place may be swept by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(swapped(&self.target));
            }
            now => now.map_err(|error| Error::io(Code::Io, error).at_path(&self.target))?,
        };
        match Entry::at(folder, self.name())? {
            Some(entry) if now.is_file() && identity(&now) == self.identity => {
                Ok(entry.renamed_to(self.final_name().to_owned()))
            }
            _ => Err(swapped(&self.target)),
        }
    }

    /// Leaves it where it is: it got its name, or somebody else knows of it.
    pub(crate) fn leave(self) {
        mem::forget(self);
    }
}

/// The error of a stage that is not what was staged.
pub(crate) fn swapped(target: &Path) -> Error {
    Error::new(Code::FileChanged)
        .at_path(target)
        .expected("the file that was staged for it")
        .found("something else in its place, or nothing")
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _left_for_the_sweep = fs::remove_file(&self.path);
    }
}

/// Renames a file in its folder. Whoever opens the new name finds what was there before or this file,
/// whole.
///
/// # Errors
/// `io`, with the new path.
pub(crate) fn rename(from: &Path, to: &Path, how: Publish) -> Result<()> {
    let renamed = match how {
        Publish::Replace => fs::rename(from, to),
        Publish::NoReplace => rename_to_new(from, to),
    };
    renamed.map_err(|error| Error::io(Code::Io, error).at_path(to))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Brings the names of a folder to the disk. Where the system cannot do that for folders, it needs
/// no telling or there is no way, and the call succeeds.
///
/// # Errors
/// `io` where the disk failed.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    let synced = open_folder(folder)?.sync_all();
    match synced {
        Err(error) if !cannot_sync(&error) => Err(Error::io(Code::Io, error).at_path(folder)),
        _ => Ok(()),
    }
}

fn cannot_sync(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    errno.is_some_and(|errno| is_unsupported(errno) || errno == Errno::BADF)
}

/// Whether a call failed because the file system or the kernel does not have it.
pub(super) fn is_unsupported(errno: Errno) -> bool {
    // The last two are one and the same on Linux.
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP].contains(&errno)
}

/// Whether a name is that of a stage of ours.
pub(crate) fn is_stage_name(name: &str) -> bool {
    let parts = || {
        let (of, unique) = name
            .strip_prefix('.')?
            .strip_suffix(STAGE_END)?
            .rsplit_once('.')?;
        Some((of, unique))
    };
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    parts().is_some_and(|(of, unique)| {
        of.contains(MARK) && unique.len() == UNIQUE && unique.bytes().all(is_digit)
    })
}

/// Locks a new stage against the sweep, which may have come first: it looks at names, and the lock
/// can only follow the name.
fn was_swept(file: &File) -> io::Result<bool> {
    loop {
        return match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {
                continue;
            }
            // Nothing is swept either.
            Err(TryLockError::Error(error)) if has_no_locks(&error) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(file.metadata()?.nlink() == 0),
        };
    }
}

/// Whether a file could not be locked because files cannot be locked there.
pub(super) fn has_no_locks(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    errno.is_some_and(|errno| is_unsupported(errno) || errno == Errno::NOLCK)
}

fn stage_name(of: &str) -> String {
    let of = match of.contains(MARK) {
        true => Cow::from(of),
        false => Cow::from(format!("{of}{MARK}")),
    };
    let room = LONGEST_NAME - ".".len() - ".".len() - UNIQUE - STAGE_END.len();
    // Of a long name the end, which says what kind of file it is.
    let cut = of.len().saturating_sub(room);
    let cut = (cut..=of.len()).find(|&at| of.is_char_boundary(at));
    let of = cut.and_then(|at| of.get(at..)).unwrap_or_default();
    // The standard library's keys are from the system's random numbers, and never the same twice.
    let unique = RandomState::new().hash_one(of);
    format!(".{of}.{unique:016x}{STAGE_END}")
}

fn open_new(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

fn open_folder(folder: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECTORY.bits() as i32)
        .open(folder)
        .map_err(|error| open_error(error).at_path(folder))
}

/// Renames, unless there is something of that name.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(errno) if is_unsupported(errno) => {}
        renamed => return renamed.map_err(io::Error::from),
    }
    match fs::hard_link(from, to) {
        Ok(()) => {
            let _left_for_the_sweep = fs::remove_file(from);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // No links either. The lock of the folder keeps others from taking the name in between.
        Err(_) => match fs::symlink_metadata(to) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use tempfile::{TempDir, tempdir};

    use super::*;

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn stage(folder: &TempDir, name: &str, bytes: &str) -> Stage {
        let (stage, file) = Stage::create(folder.path(), name, &Rights::New).unwrap();
        io::Write::write_all(&mut &file, bytes.as_bytes()).unwrap();
        stage
    }

    const NAME: &str = "model.safetensors";

    fn publish(stage: Stage, how: Publish) -> Result<()> {
        rename(stage.path(), stage.target(), how)
    }

    fn mode_at(path: &Path) -> Option<u32> {
        match Rights::at(path).unwrap() {
            Rights::Kept(kept) => Some(kept.mode),
            _ => None,
        }
    }

    #[test]
    fn a_stage_is_hidden_until_it_is_published_and_gone_when_dropped() {
        let folder = tempdir().unwrap();
        let staged = stage(&folder, NAME, "new");
        let [name] = names(&folder).try_into().unwrap();
        assert!(is_stage_name(&name) && name.starts_with(".model.safetensors."));
        assert_eq!(staged.path(), folder.path().join(&name));
        drop(staged);
        assert!(names(&folder).is_empty());
        publish(stage(&folder, NAME, "new"), Publish::NoReplace).unwrap();
        assert_eq!(names(&folder), [NAME]);
        assert_eq!(fs::read(folder.path().join(NAME)).unwrap(), b"new");
    }

    #[test]
    fn what_is_there_is_replaced_only_where_that_is_asked_for() {
        let folder = tempdir().unwrap();
        let path = folder.path().join(NAME);
        fs::write(&path, "old").unwrap();
        let error = publish(stage(&folder, NAME, "new"), Publish::NoReplace).unwrap_err();
        assert_eq!(error.code(), Code::Io);
        assert_eq!(error.path(), Some(&*path));
        assert_eq!(
            error.io_error().unwrap().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        publish(stage(&folder, NAME, "new"), Publish::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(&folder), [NAME]);
    }

    #[test]
    fn a_link_is_replaced_and_what_it_leads_to_is_not() {
        let folder = tempdir().unwrap();
        let (blob, link) = (folder.path().join("blob"), folder.path().join(NAME));
        fs::write(&blob, "old").unwrap();
        fs::set_permissions(&blob, Permissions::from_mode(0o640)).unwrap();
        symlink("blob", &link).unwrap();
        assert_eq!(mode_at(&link), Some(0o640));
        publish(stage(&folder, NAME, "new"), Publish::Replace).unwrap();
        assert!(!link.is_symlink());
        assert_eq!(fs::read(&link).unwrap(), b"new");
        assert_eq!(fs::read(&blob).unwrap(), b"old");
    }

    #[test]
    fn links_to_nowhere_and_round_about_are_replaced() {
        let folder = tempdir().unwrap();
        let link = folder.path().join(NAME);
        for to in ["nothing", NAME] {
            symlink(to, &link).unwrap();
            assert_eq!(mode_at(&link), None);
            publish(stage(&folder, NAME, "new"), Publish::Replace).unwrap();
            assert_eq!(names(&folder), [NAME]);
            fs::remove_file(&link).unwrap();
        }
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        symlink("folder", at("link")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
        for name in ["folder", "link", "socket", "fifo"] {
            let error = Rights::at(&at(name)).unwrap_err();
            assert_eq!(error.code(), Code::NotRegularFile, "{name}");
            assert_eq!(error.path(), Some(&*at(name)));
        }
        assert_eq!(
            Rights::at(Path::new("/dev/null")).unwrap_err().finding(),
            Some("a device")
        );
    }

    #[test]
    fn an_absent_folder_is_named() {
        let folder = Path::new("/nonexistent/folder");
        let error = Stage::create(folder, NAME, &Rights::New).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert_eq!(error.path(), Some(&*folder.join(NAME)));
    }

    #[test]
    fn the_longest_names_can_be_staged() {
        let folder = tempdir().unwrap();
        for len in [200, 217, 218, 219, 220, 242, 243] {
            for letter in ["x", "é"] {
                let stem = letter.repeat(len / letter.len());
                let name = format!("{stem}.safetensors");
                publish(stage(&folder, &name, ""), Publish::NoReplace).unwrap();
                fs::remove_file(folder.path().join(name)).unwrap();
            }
        }
        assert!(names(&folder).is_empty());
        assert!(is_stage_name(&stage_name(&format!(
            "{}.safetensors",
            "x".repeat(243)
        ))));
    }

    #[test]
    fn names_of_stages() {
        for name in [
            ".model.safetensors.0123456789abcdef.partial",
            ".model.safetensors.index.fp16.json.0000000000000000.partial",
            "..model.safetensors.commit.0123456789abcdef.partial",
        ] {
            assert!(is_stage_name(name), "{name}");
        }
        for name in [
            "model.safetensors.0123456789abcdef.partial",
            ".model.bin.0123456789abcdef.partial",
            ".model.safetensors.partial",
            ".model.safetensors.123456789abcdef.partial",
            ".model.safetensors.0123456789ABCDEF.partial",
            ".model.safetensors.0123456789abcdef",
            ".0123456789abcdef.partial",
            ".partial",
            "",
        ] {
            assert!(!is_stage_name(name), "{name}");
        }
    }

    #[test]
    fn a_folder_is_synced_and_a_file_is_none() {
        let folder = tempdir().unwrap();
        sync_folder(folder.path()).unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(sync_folder(&file).unwrap_err().code(), Code::NotFound);
    }
}
