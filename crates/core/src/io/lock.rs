//! Keeps saves out of each other's way: the lock of a folder, and removing what dead ones left in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

use super::publish::{JOURNAL_END, is_stage_name, open_folder};
use crate::{Cancel, Code, Error, Result};

/// How often a lock that somebody else holds is tried again.
const PATIENCE: Duration = Duration::from_millis(10);

/// Keeps other saves out of a folder as long as it lives.
///
/// The folder itself is locked: nothing stays behind in it, and the lock of a process that dies is
/// gone with it.
#[derive(Debug)]
pub(crate) struct FolderLock(Option<File>);

impl FolderLock {
    /// Waits until nobody else has the lock. Where the file system has no locks, goes on without.
    ///
    /// # Errors
    /// `cancelled`; `not-found` or `io` where the folder cannot be opened.
    pub(crate) fn acquire(folder: &Path, cancel: Option<&Cancel>) -> Result<Self> {
        let file = open_folder(folder)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(Some(file))),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(TryLockError::Error(_no_locks_here)) => return Ok(Self(None)),
            }
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Err(Error::new(Code::Cancelled).at_path(folder));
            }
            thread::sleep(PATIENCE);
        }
    }

    /// Whether others are really kept out.
    pub(crate) fn held(&self) -> bool {
        self.0.is_some()
    }
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

    use super::super::publish::{Mode, Stage};
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
        let (alive, file) = Stage::create(folder.path(), NAME, Mode::New).unwrap();
        let before = names(&folder);

        sweep(folder.path(), &FolderLock(None));
        assert_eq!(names(&folder), before, "without a lock");
        let lock = FolderLock::acquire(folder.path(), None).unwrap();
        fs::write(at(".other.safetensors.commit"), "").unwrap();
        sweep(folder.path(), &lock);
        assert!(at(abandoned).exists(), "while there is a journal");
        fs::remove_file(at(".other.safetensors.commit")).unwrap();

        sweep(folder.path(), &lock);
        let left: Vec<_> = before
            .into_iter()
            .filter(|name| name != abandoned)
            .collect();
        assert_eq!(names(&folder), left);
        assert!(alive.path().exists());
        // As if its process had died: without removing it.
        drop(file);
        sweep(folder.path(), &lock);
        assert!(!alive.path().exists());
    }
}
