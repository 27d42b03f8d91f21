//! Where a checkpoint is saved: the folder, and how its new files are to be called.

use std::fs;
use std::path::{Path, PathBuf};

use super::owned::Owned;
use super::recover::recover;
use super::shards::Names;
use crate::checkpoint::locate::cache_snapshot;
use crate::io::lock::{FolderLock, sweep};
use crate::io::publish::Mode;
use crate::io::source::open_error;
use crate::{Cancel, Code, Error, Result};

/// A folder that a checkpoint is being saved into. Nobody else saves into it meanwhile.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(super) folder: PathBuf,
    /// Folders in which the folder, or one on the way to it, was made.
    pub(super) parents: Vec<PathBuf>,
    pub(super) names: Names,
    pub(super) owned: Owned,
    _lock: FolderLock,
}

impl Destination {
    /// Makes the folder if it is not there, waits for other saves, finishes or undoes what one of them
    /// left when it died, and finds out what the checkpoint of these names owns.
    ///
    /// # Errors
    /// `io`; `cancelled`; `broken-journal`; `cache-repository`; `not-a-regular-file` where a file of
    /// the checkpoint would have to replace something else.
    pub(crate) fn open(folder: &Path, names: Names, cancel: Option<&Cancel>) -> Result<Self> {
        let (folder, parents) = make(folder)?;
        if cache_snapshot(&folder).is_some() {
            return Err(Error::new(Code::CacheRepository).at_path(folder));
        }
        let lock = FolderLock::acquire(&folder, cancel)?;
        recover(&folder, &names.single(), &lock)?;
        sweep(&folder, &lock);
        let owned = Owned::of(&folder, &names)?;
        Ok(Self {
            folder,
            parents,
            names,
            owned,
            _lock: lock,
        })
    }

    /// The folder, without links, so that it stays the same one until the end.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a single file is to be called.
    ///
    /// # Errors
    /// `indexed-single`: no single file can be saved here.
    pub(crate) fn single_name(&self) -> Result<String> {
        self.owned.check_single(&self.folder)?;
        Ok(self.names.single())
    }

    /// What an index is to be called.
    pub(crate) fn index_name(&self) -> String {
        self.names.index()
    }

    /// What so many shards are to be called: as Hugging Face calls them, if these names are free; or
    /// by the first generation of names of which all are.
    ///
    /// # Errors
    /// `io`.
    pub(crate) fn shard_names(&self, count: usize) -> Result<Vec<String>> {
        let mut generation = 1;
        loop {
            let names = (1..=count).map(|number| self.names.shard(number, count, generation));
            let names: Vec<_> = names.collect();
            let mut all_free = true;
            for name in &names {
                all_free = all_free && self.owned.is_free(&self.folder, name)?;
            }
            if all_free {
                return Ok(names);
            }
            generation += 1;
        }
    }

    /// Who may read and write a new file of this name: as with the file that it replaces; if there is
    /// none, as with the tensors of the checkpoint that is replaced.
    ///
    /// # Errors
    /// `io`; `not-a-regular-file`.
    pub(crate) fn mode_for(&self, name: &str) -> Result<Mode> {
        match Mode::at(&self.folder.join(name))? {
            Mode::New => self.owned.mode(&self.folder),
            kept => Ok(kept),
        }
    }
}

/// Makes the folder, and says in which folders something was made for that.
fn make(folder: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let or_here = |path: &Path| match path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => path.to_path_buf(),
    };
    let real = |path: &Path| {
        let real = fs::canonicalize(or_here(path));
        real.map_err(|error| open_error(error).at_path(path))
    };
    let on_the_way = folder.ancestors();
    let missing: Vec<_> = on_the_way
        .take_while(|path| !or_here(path).exists())
        .collect();
    let made = fs::create_dir_all(or_here(folder));
    made.map_err(|error| Error::io(Code::Io, error).at_path(folder))?;
    let parents = missing.iter().filter_map(|made| made.parent());
    Ok((real(folder)?, parents.map(real).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::tempdir;

    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_folder_is_made_with_all_on_the_way() {
        let root = tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let open = |path: &str| Destination::open(&root.join(path), plain(), None).unwrap();
        let to = open("a/b");
        assert_eq!(to.folder(), root.join("a/b"));
        assert_eq!(to.parents, [root.join("a"), root.clone()]);
        drop(to);
        assert_eq!(open("a/c/../d").folder(), root.join("a/d"));
        // A link to a folder is followed once and for all.
        symlink("a/b", root.join("link")).unwrap();
        let to = open("link");
        assert_eq!(to.folder(), root.join("a/b"));
        assert!(to.parents.is_empty());
    }

    #[test]
    fn a_file_is_no_folder() {
        let root = tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("file"), "").unwrap();
        symlink("nowhere", at("link")).unwrap();
        for path in [at("file"), at("file/x"), at("link")] {
            let error = Destination::open(&path, plain(), None).unwrap_err();
            assert_eq!(error.code(), Code::Io, "{error}");
            assert_eq!(error.path(), Some(&*path));
        }
    }

    #[test]
    fn a_repository_of_the_cache_is_refused_and_its_snapshot_is_not() {
        let world = World::empty();
        world.write("refs/main", "0123abcd");
        world.write("snapshots/0123abcd/config.json", "{}");
        let error = world.open(plain()).unwrap_err();
        assert_eq!(error.code(), Code::CacheRepository);
        let snapshot = world.at("snapshots/0123abcd");
        save(
            &snapshot,
            plain(),
            New::Shards,
            NEW,
            crate::Durability::Cached,
        )
        .unwrap();
        assert_eq!(ours(&world.folder(), None), Some(NEW));
    }

    #[test]
    fn shards_get_the_usual_names_or_those_of_a_generation_that_is_free() {
        let world = World::new(Old::Same);
        let names = |count| world.open(plain()).unwrap().shard_names(count).unwrap();
        assert_eq!(names(3), canonical(3));
        let generation = |generation| [1, 2].map(|number| plain().shard(number, 2, generation));
        assert_eq!(names(2), generation(2));
        // One taken name makes them all unfit.
        world.write(&generation(2)[1], "");
        assert_eq!(names(2), generation(3));
        assert_eq!(
            World::new(Old::Gone)
                .open(plain())
                .unwrap()
                .shard_names(2)
                .unwrap(),
            generation(2)
        );
        let to = world.open(fp16()).unwrap();
        assert_eq!(
            to.shard_names(1).unwrap(),
            ["model.fp16-00001-of-00001.safetensors"]
        );
        assert_eq!(to.index_name(), "model.safetensors.index.fp16.json");
        assert_eq!(to.single_name().unwrap(), "model.fp16.safetensors");
    }

    #[test]
    fn a_new_file_may_be_read_by_those_who_could_read_the_old_one() {
        let world = World::new(Old::LinkedShards);
        let chmod = |name: &str, mode| {
            let permissions = Permissions::from_mode(mode);
            fs::set_permissions(world.at(name), permissions).unwrap();
        };
        chmod(&canonical(2)[0], 0o600);
        chmod(INDEX, 0o644);
        let to = world.open(plain()).unwrap();
        assert_eq!(to.mode_for(INDEX).unwrap(), Mode::Kept(0o644));
        assert_eq!(to.mode_for(SINGLE).unwrap(), Mode::Kept(0o600));
        assert_eq!(to.mode_for("new.safetensors").unwrap(), Mode::Kept(0o600));
        let to = World::empty().open(plain()).unwrap();
        assert_eq!(to.mode_for(SINGLE).unwrap(), Mode::New);
    }
}
