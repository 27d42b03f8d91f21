//! Keeps saves out of each other's way: the lock of a folder, and removing what dead ones left in it.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::publish::{JOURNAL_END, has_no_locks, is_stage_name};
use super::source::{describe, open_error};
use crate::error::{Code, Error, Result};
use crate::io::workers::Cancel;

/// The file in a folder that whoever saves into it has locked.
pub(crate) const LOCK: &str = ".safeshard.lock";

/// How often a lock that somebody else holds is tried again.
const PATIENCE: Duration = Duration::from_millis(10);

/// After this, whoever waits is told; and a lock that may not be opened is given up.
const LONG: Duration = Duration::from_secs(1);

/// Keeps other saves out of a folder as long as it lives.
///
/// It is a hidden file that only those may open who may write to the folder: a lock on the folder itself
/// could be held by anybody who may read it, for ever. It is removed when the lock is given back, and one
/// that a dead process left is taken over.
#[derive(Debug)]
pub(crate) struct FolderLock {
    /// `None` where the file system has no locks.
    file: Option<File>,
    path: PathBuf,
}

impl FolderLock {
    /// Waits until nobody else has the lock. Where the file system has no locks, goes on without.
    ///
    /// # Errors
    /// `cancelled`; `not-found` where there is no such folder; `io` where no file can be made or opened
    /// in it.
    pub(crate) fn acquire(folder: &Path, cancel: Option<&Cancel>) -> Result<Self> {
        let path = folder.join(LOCK);
        let begin = Instant::now();
        let mut told = false;
        loop {
            match open(folder, &path) {
                Ok(file) => match file.try_lock() {
                    Ok(()) if is_at(&file, &path) => {
                        let file = Some(file);
                        return Ok(Self { file, path });
                    }
                    // Given back, and the file removed, since it was opened.
                    Ok(()) => continue,
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error))
                        if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                        let file = None;
                        return Ok(Self { file, path });
                    }
                    Err(TryLockError::Error(error)) => {
                        return Err(Error::io(Code::Io, error).at_path(path));
                    }
                },
                // Whoever makes one gives the others their rights a moment later.
                Err(error) if is_denied(&error) && begin.elapsed() < LONG => {}
                Err(error) if is_denied(&error) => {
                    return Err(error.help(
                        "another user saves here; if nobody does any more, remove this file",
                    ));
                }
                Err(error) => return Err(error),
            }
            if let Some(cancel) = cancel {
                if cancel.is_cancelled() {
                    return Err(Error::new(Code::Cancelled).at_path(folder));
                }
                if !told && begin.elapsed() >= LONG {
                    cancel.waits_for(folder);
                    told = true;
                }
            }
            thread::sleep(PATIENCE);
        }
    }

    /// Whether others are really kept out.
    pub(crate) fn held(&self) -> bool {
        self.file.is_some()
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Before it is unlocked: whoever waits for it looks whether it is still there.
        let _left_to_the_next = fs::remove_file(&self.path);
    }
}

/// The lock's file, made if need be.
fn open(folder: &Path, path: &Path) -> Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(flags);
    let made = options.clone().create_new(true).open(path);
    let opened = match made {
        Ok(file) => {
            share(&file, folder);
            return Ok(file);
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    };
    let file = match opened {
        // Removed in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder.is_dir() => {
            return open(folder, path);
        }
        opened => opened.map_err(|error| open_error(error).at_path(path))?,
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(metadata) => Err(Error::new(Code::NotRegularFile)
            .at_path(path)
            .found(describe(&metadata))),
        Err(error) => Err(Error::io(Code::Io, error).at_path(path)),
    }
}

/// Lets those open the lock who may write to the folder, and nobody else.
fn share(lock: &File, folder: &Path) {
    let (Ok(folder), Ok(now)) = (fs::metadata(folder), lock.metadata()) else {
        return;
    };
    let has_group = now.gid() == folder.gid() || fchown(lock, None, Some(folder.gid())).is_ok();
    let writers = folder.mode() & if has_group { 0o222 } else { 0o202 };
    let _only_for_its_owner =
        lock.set_permissions(Permissions::from_mode(writers | writers << 1 | 0o600));
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

fn is_denied(error: &Error) -> bool {
    let io = error.io_error();
    io.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Removes the stages that nobody writes to any more. Whatever cannot be removed stays.
///
/// Nothing is removed without the lock, nor while the folder holds a journal of any checkpoint: what
/// a journal says may hang on whether a stage is still there.
pub(crate) fn sweep(folder: &Path, lock: &FolderLock) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let (mut stages, mut journals) = (Vec::new(), false);
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        journals |= name.starts_with('.') && name.ends_with(JOURNAL_END);
        if is_stage_name(&name) {
            stages.push(folder.join(name));
        }
    }
    if lock.held() && !journals {
        for stage in stages {
            let _left_for_the_next = remove_abandoned(&stage);
        }
    }
}

fn remove_abandoned(stage: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
        .open(stage)?;
    if file.metadata()?.is_file() && file.try_lock().is_ok() {
        fs::remove_file(stage)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::{TempDir, tempdir};

    use super::super::publish::Stage;
    use super::super::rights::Rights;
    use super::*;

    const NAME: &str = "model.safetensors";

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_one_holds_a_folder() {
        let folder = tempdir().unwrap();
        let lock = FolderLock::acquire(folder.path(), None).unwrap();
        assert!(lock.held());
        let cancel = Cancel::default();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| FolderLock::acquire(folder.path(), Some(&cancel)));
            thread::sleep(2 * PATIENCE);
            assert!(!waiting.is_finished());
            cancel.cancel();
            let error = waiting.join().unwrap().unwrap_err();
            assert_eq!(error.code(), Code::Cancelled);
            let waiting = scope.spawn(|| FolderLock::acquire(folder.path(), None));
            drop(lock);
            assert!(waiting.join().unwrap().unwrap().held());
        });
        assert!(names(&folder).is_empty());
    }

    #[test]
    fn an_absent_folder_cannot_be_locked() {
        let error = FolderLock::acquire(Path::new("/nonexistent/folder"), None).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    }

    #[test]
    fn abandoned_stages_are_swept_and_nothing_else() {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let abandoned = ".model.safetensors.0123456789abcdef.partial";
        let link = ".model.safetensors.0123456789abcde0.partial";
        let subfolder = ".model.safetensors.0123456789abcde1.partial";
        let others = [NAME, ".model.safetensors.partial", ".download.partial"];
        for name in others.into_iter().chain([abandoned]) {
            fs::write(at(name), "").unwrap();
        }
        symlink(NAME, at(link)).unwrap();
        fs::create_dir(at(subfolder)).unwrap();
        let (alive, file) = Stage::create(folder.path(), NAME, &Rights::New).unwrap();
        let before = names(&folder);

        let unlocked = FolderLock {
            file: None,
            path: at("no lock"),
        };
        sweep(folder.path(), &unlocked);
        assert_eq!(names(&folder), before, "without a lock");
        let lock = FolderLock::acquire(folder.path(), None).unwrap();
        fs::write(at(".other.safetensors.commit"), "").unwrap();
        sweep(folder.path(), &lock);
        assert!(at(abandoned).exists(), "while there is a journal");
        fs::remove_file(at(".other.safetensors.commit")).unwrap();

        sweep(folder.path(), &lock);
        let left = before.into_iter().filter(|name| name != abandoned);
        let mut left: Vec<_> = left.chain([LOCK.to_owned()]).collect();
        left.sort();
        assert_eq!(names(&folder), left);
        assert!(alive.path().exists());
        // As if its process had died: without removing it.
        drop(file);
        sweep(folder.path(), &lock);
        assert!(!alive.path().exists());
    }
}
