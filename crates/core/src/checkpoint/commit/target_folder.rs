//! Where a checkpoint is saved: the folder, and how its new files are to be called.

use std::fs;
use std::path::{Path, PathBuf};

use super::locked_folder::{LockedFolder, NotRecovered};
use super::losses::{Losses, check_target};
use super::replaced_files::ReplacedFiles;
use super::{Commit, NewFiles, Removed, Replaces, folder_changes, stand_in_index};
use crate::checkpoint::file_names::{Names, Place, index_of};
use crate::checkpoint::journal::Journal;
use crate::checkpoint::locate::cache_snapshot;
use crate::error::{Code, Error, Result};
use crate::io::durability::Durability;
use crate::io::entry::Entry;
use crate::io::publish::Stage;
use crate::io::rights::Rights;
use crate::io::source::open_error;
use crate::io::workers::Cancel;

/// A folder that a checkpoint is being saved into. Nobody else saves into it meanwhile.
#[derive(Debug)]
pub(in crate::checkpoint) struct TargetFolder {
    folder: LockedFolder,
    /// Folders in which the folder, or one on the way to it, was made.
    parents: Vec<PathBuf>,
    names: Names,
    replaced: ReplacedFiles,
    /// What has the names of the single file and of the index.
    mains: [Option<Entry>; 2],
    /// What to do about tensors that would be lost.
    losses: Losses,
    /// Who may read new files.
    rights: Rights,
    pub(in crate::checkpoint) not_recovered: Vec<NotRecovered>,
}

impl TargetFolder {
    /// Makes the folder if it is not there, waits for other saves, finishes or undoes what one of them
    /// left when it died, and finds out what the checkpoint of these names owns. Where there is none, new
    /// files get `rights`.
    ///
    /// # Errors
    /// `io`; `cancelled`; `broken-journal`; `cache-repository`; `not-a-regular-file` where a file of
    /// the checkpoint would have to replace something else; `would-be-lost`.
    pub(in crate::checkpoint) fn open(
        folder: &Path,
        names: Names,
        losses: Losses,
        rights: Rights,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        let (folder, parents) = make(folder)?;
        if cache_snapshot(&folder).is_some() {
            return Err(Error::new(Code::CacheRepository).at_path(folder));
        }
        let mut folder = LockedFolder::open(&folder, cancel)?;
        let not_recovered = folder.recovered(&names.single())?;
        let replaced = ReplacedFiles::of(folder.path(), &names, losses)?;
        let at = |name: &str| Entry::at(folder.path(), name);
        Ok(Self {
            mains: [at(&names.single())?, at(&names.index())?],
            rights: match replaced.rights() {
                Rights::New => rights,
                kept => kept.clone(),
            },
            folder,
            parents,
            names,
            replaced,
            losses,
            not_recovered,
        })
    }

    /// The folder, without links, so that it stays the same one until the end.
    pub(in crate::checkpoint) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What a single file of these tensors is to be called.
    ///
    /// # Errors
    /// `indexed-single`: no such file can be saved here; `would-be-lost` where the index of another
    /// checkpoint places more in it; `io`.
    pub(in crate::checkpoint) fn single_name<'t>(
        &self,
        tensors: impl Iterator<Item = &'t str> + Clone,
    ) -> Result<String> {
        let single = self.names.single();
        self.replaced.check_single(self.folder(), tensors.clone())?;
        // Its own index goes with it.
        if self.replaced.shared("").any(|name| name == single) {
            check_target(self.folder(), &single, self.losses, tensors)?;
        }
        Ok(single)
    }

    /// What an index is to be called.
    pub(in crate::checkpoint) fn index_name(&self) -> String {
        self.names.index()
    }

    /// What so many shards are to be called: as Hugging Face calls them, if these names are free; or
    /// by the first generation of names of which all are.
    ///
    /// # Errors
    /// `io`; `old-checkpoint-left` where a single file would have to stay, and readers would take that.
    pub(in crate::checkpoint) fn shard_names(&self, count: usize) -> Result<Vec<String>> {
        let single = self.names.single();
        if self.replaced.shared("").any(|name| name == single) && self.mains[0].is_some() {
            let error = Error::new(Code::OldCheckpointLeft).at_path(self.folder().join(&single));
            return Err(error
                .found("an index of another checkpoint that names it")
                .help(
                    "nothing was written: transformers would read this file instead of the shards; save \
                     one file, or under another name",
                ));
        }
        let mut generation = 1;
        loop {
            let names = (1..=count).map(|number| {
                self.names.shard(Place {
                    generation,
                    of: count,
                    number,
                })
            });
            let names: Vec<_> = names.collect();
            let mut all_free = true;
            for name in &names {
                all_free = all_free && self.replaced.is_free(self.folder(), name)?;
            }
            if all_free {
                return Ok(names);
            }
            generation += 1;
        }
    }

    /// That of all files with tensors only these go when an index is committed.
    ///
    /// # Errors
    /// `would-be-lost` for a single file, or a shard that only another index names.
    pub(in crate::checkpoint) fn check_goes(&self, shards: &[&str]) -> Result<()> {
        let mut goes = self.replaced.superseded_by(&self.names.index()).into_iter();
        let other = goes.find(|entry| {
            index_of(&entry.name).is_none() && !shards.contains(&entry.name.as_str())
        });
        match other {
            None => Ok(()),
            Some(entry) => Err(Error::new(Code::WouldBeLost)
                .at_path(self.folder().join(entry.name))
                .found("a file that the index does not name")
                .help("move it away first")),
        }
    }

    /// Who may read and write a new file with tensors that replaces none: those who may read those of the
    /// checkpoint that is replaced.
    pub(in crate::checkpoint) fn rights(&self) -> &Rights {
        &self.rights
    }

    /// Who may read and write a new file of this name: as with the file that it replaces.
    ///
    /// # Errors
    /// `io`; `not-a-regular-file`.
    pub(in crate::checkpoint) fn rights_for(&self, name: &str) -> Result<Rights> {
        match Rights::at(&self.folder().join(name))? {
            Rights::New => Ok(self.rights.clone()),
            kept => Ok(kept),
        }
    }

    /// Stages a small file.
    ///
    /// # Errors
    /// `io`.
    pub(in crate::checkpoint) fn stage(
        &self,
        name: &str,
        bytes: &[u8],
        durability: Durability,
    ) -> Result<Stage> {
        let rights = self.rights_for(name)?;
        folder_changes::stage(self.folder(), name, &rights, bytes, durability)
    }

    /// Replaces the checkpoint. `main` is staged as [`TargetFolder::single_name`], and then there are no
    /// shards, or as [`TargetFolder::index_name`].
    ///
    /// # Errors
    /// `io`; `file-changed`. The old checkpoint is still there, unless the error says otherwise;
    /// `old-checkpoint-left`.
    pub(in crate::checkpoint) fn commit(
        &self,
        new: NewFiles,
        durability: Durability,
    ) -> Result<Removed> {
        let main = new.main.final_name().to_owned();
        let single = self.names.single();
        let superseded = self.replaced.superseded_by(&main);
        let index = self.names.index();
        let is_shard = |entry: &Entry| index_of(&entry.name).is_none();
        let [had_single, had_index] = &self.mains;
        // Where huggingface_hub looks for an index.
        let usual = stand_in_index::name(&single);
        let has_index = match usual == index {
            true => had_index.is_some(),
            false => self.folder().join(&usual).symlink_metadata().is_ok(),
        };
        let [mut before, mut after] = [None, None];
        if main == single {
            if has_index && superseded.iter().any(is_shard) {
                after = stand_in_index::to_file(new.main.path(), &single)?;
            }
        } else if !has_index && main == usual {
            let to_single = stand_in_index::to_file(&self.folder().join(&single), &single)?;
            before = Some(to_single.unwrap_or_else(|| stand_in_index::to_nowhere(&single)));
        }
        let stage = |bytes: Option<Vec<u8>>| {
            let stage = bytes.map(|bytes| self.stage(&usual, &bytes, durability));
            stage.transpose()
        };
        let stand_ins = [stage(before)?, stage(after)?];
        let [_, stand_in] = &stand_ins;
        let stand_in = stand_in.as_ref().map(Stage::entry).transpose()?;
        let left: Vec<_> = superseded.iter().map(|entry| entry.name.clone()).collect();
        let replaces = Replaces {
            main: match main == single {
                true => had_single.clone(),
                false => had_index.clone(),
            },
            superseded,
        };
        let journal = Journal::name(&single);
        let of = single.clone();
        let commit = Commit::new(self.folder(), of, new, replaces, stand_ins, durability)?;
        commit.run(&self.rights_for(&main)?, &self.parents)?;
        for name in left
            .iter()
            .filter(|name| **name == single || index_of(name).is_some())
        {
            self.check_gone(name, stand_in.as_ref())?;
        }
        let left = left.iter().map(String::as_str);
        let left = left.chain(self.replaced.shared(&main)).chain([&*journal]);
        let left = left.map(|name| self.folder().join(name));
        Ok(Removed {
            left_behind: left
                .filter(|path| path.symlink_metadata().is_ok())
                .collect(),
        })
    }

    /// That a file which some reader would take for the checkpoint is gone, or the index that stands in.
    ///
    /// # Errors
    /// `old-checkpoint-left` where it was not removed because somebody changed it meanwhile; `io`.
    fn check_gone(&self, name: &str, stand_in: Option<&Entry>) -> Result<()> {
        let stands_in = stand_in.filter(|entry| entry.name == name);
        let stands_in = stands_in.map_or(Ok(false), |entry| entry.is_there(self.folder()))?;
        match Entry::at(self.folder(), name)? {
            Some(_) if !stands_in => Err(Error::new(Code::OldCheckpointLeft)
                .at_path(self.folder().join(name))
                .found("another file than the save was to remove")
                .help(
                    "the new checkpoint is in its place, but some readers take this file: look whose it \
                     is, and remove it",
                )),
            _ => Ok(()),
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
        let open = |path: &str| super::super::testing::open(&root.join(path), plain()).unwrap();
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
            let error = super::super::testing::open(&path, plain()).unwrap_err();
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
            crate::io::durability::Durability::Cached,
        )
        .unwrap();
        assert_eq!(ours(&world.folder(), None), Some(NEW));
    }

    #[test]
    fn shards_get_the_usual_names_or_those_of_a_generation_that_is_free() {
        let world = World::new(Old::Same);
        let names = |count| world.open(plain()).unwrap().shard_names(count).unwrap();
        assert_eq!(names(3), canonical(3));
        let generation =
            |generation| [1, 2].map(|number| shard_of(&plain(), number, 2, generation));
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
        assert_eq!(
            to.single_name(TENSORS.into_iter()).unwrap(),
            "model.fp16.safetensors"
        );
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
        let mode = |name: &str| match to.rights_for(name).unwrap() {
            Rights::Kept(kept) => kept.mode,
            rights => panic!("{rights:?}"),
        };
        assert_eq!(mode(INDEX), 0o644);
        assert_eq!(mode(SINGLE), 0o600);
        assert_eq!(mode("new.safetensors"), 0o600);
        let to = World::empty().open(plain()).unwrap();
        assert_eq!(to.rights_for(SINGLE).unwrap(), Rights::New);
    }
}
