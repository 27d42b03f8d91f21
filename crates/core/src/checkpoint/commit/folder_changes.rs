//! What a commit does to a folder, one change at a time. Whatever it does, it does here, so that tests
//! can look at every state in between, and let every change fail.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::checkpoint::journal::Staged;
use crate::error::{Code, Error, Result};
use crate::io::durability::Durability;
use crate::io::entry::{Entry, Presence};
use crate::io::publish::{Publish, Stage, rename, swapped, sync_folder};
use crate::io::rights::Rights;

/// A stage with these bytes.
pub(super) fn stage(
    folder: &Path,
    name: &str,
    rights: &Rights,
    bytes: &[u8],
    durability: Durability,
) -> Result<Stage> {
    change(|| {
        let (stage, mut file) = Stage::create(folder, name, rights)?;
        let written = file.write_all(bytes).and_then(|()| match durability {
            Durability::Durable => file.sync_all(),
            Durability::Cached => Ok(()),
        });
        written.map_err(|error| Error::io(Code::Io, error).at_path(stage.target()))?;
        Ok(stage)
    })
}

/// Gives a stage its name, if that very file is still there.
pub(super) fn publish(folder: &Path, staged: &Staged, how: Publish) -> Result<()> {
    let target = folder.join(&staged.entry.name);
    change(|| match staged.as_stage().presence(folder)? {
        Presence::Same => rename(&folder.join(&staged.stage), &target, how),
        Presence::Other | Presence::Gone => Err(swapped(&target)),
    })
}

/// Whether a stage could not get its name because something has it.
pub(super) fn is_taken(error: &Error) -> bool {
    let io = error.io_error();
    io.is_some_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
}

/// Removes what is still there as it was.
pub(super) fn remove(entry: &Entry, folder: &Path) -> Result<Presence> {
    change(|| entry.remove(folder))
}

/// Removes a file, if there is one.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    change(|| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(Code::Io, error).at_path(path))
        }
        _ => Ok(()),
    })
}

/// For `Durable`, brings the names in a folder to the disk.
pub(super) fn sync(folder: &Path, durability: Durability) -> Result<()> {
    match durability {
        Durability::Durable => change(|| sync_folder(folder)),
        Durability::Cached => Ok(()),
    }
}

fn change<T>(make: impl FnOnce() -> Result<T>) -> Result<T> {
    #[cfg(test)]
    watch::before()?;
    let made = make();
    #[cfg(test)]
    watch::after();
    made
}

/// Looks on, and makes changes fail.
#[cfg(test)]
pub(super) mod watch {
    use std::cell::RefCell;

    use crate::error::{Code, Error, Result};

    /// What to do before a change, which may fail it, and after it.
    pub(crate) trait Watch {
        fn before(&mut self) -> Result<()>;
        fn after(&mut self);
    }

    thread_local! {
        static WATCH: RefCell<Option<Box<dyn Watch>>> = const { RefCell::new(None) };
    }

    /// Runs `work` on this thread with somebody looking on.
    pub(crate) fn watched<T>(watch: impl Watch + 'static, work: impl FnOnce() -> T) -> T {
        WATCH.set(Some(Box::new(watch)));
        let result = work();
        WATCH.take();
        result
    }

    pub(super) fn before() -> Result<()> {
        WATCH.with_borrow_mut(|watch| watch.as_mut().map_or(Ok(()), |watch| watch.before()))
    }

    pub(super) fn after() {
        WATCH.with_borrow_mut(|watch| watch.iter_mut().for_each(|watch| watch.after()));
    }

    /// Lets those changes fail whose number, from 1 on, this says.
    pub(crate) struct Failing<F> {
        fails: F,
        number: usize,
    }

    impl<F: FnMut(usize) -> bool> Failing<F> {
        pub(crate) fn new(fails: F) -> Self {
            Self { fails, number: 0 }
        }
    }

    impl<F: FnMut(usize) -> bool> Watch for Failing<F> {
        fn before(&mut self) -> Result<()> {
            self.number += 1;
            match (self.fails)(self.number) {
                true => Err(Error::new(Code::Io).found("a failure made by the test")),
                false => Ok(()),
            }
        }

        fn after(&mut self) {}
    }
}
