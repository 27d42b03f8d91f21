//! Folders to save into, and how everybody reads them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use tempfile::{TempDir, tempdir};

use super::folder_changes::watch::{Watch, watched};
use super::losses::Losses;
use super::target_folder::TargetFolder;
use super::{NewFiles, Removed};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::file_names::{Names, Place};
use crate::checkpoint::journal::{Journal, Staged};
use crate::checkpoint::open::OpenOptions;
use crate::error::Result;
use crate::io::durability::Durability;
use crate::io::entry::{Entry, Presence};
use crate::io::publish::Stage;
use crate::io::rights::Rights;

/// The values of all tensors of a checkpoint tell which one it is.
pub(super) const OLD: u8 = 1;
pub(super) const NEW: u8 = 2;
pub(super) const STALE: u8 = 3;
/// What a reader loads that takes tensors of several checkpoints, or not all.
pub(super) const BROKEN: u8 = 4;

pub(super) const TENSORS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// What is in a folder before.
#[derive(Clone, Copy, Debug)]
pub(super) enum Old {
    Nothing,
    Single,
    /// As many shards as the new checkpoint has.
    Same,
    Other,
    /// Shards, and a single file that somebody left there.
    Both,
    /// An index that names the single file, as mlx writes it.
    Indexed,
    /// Links to blobs, as in the cache of Hugging Face.
    LinkedSingle,
    LinkedShards,
    /// Shards in folders of their own.
    Below,
    /// An index whose shards are gone, and would have the names of the new ones.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum New {
    Single,
    Shards,
}

impl New {
    /// How many files such a checkpoint has.
    pub(super) fn files(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Shards => 3,
        }
    }
}

/// A folder with all that links in it lead to.
pub(super) struct World(TempDir);

impl World {
    pub(super) fn empty() -> Self {
        let world = Self(tempdir().unwrap());
        fs::create_dir(world.folder()).unwrap();
        world
    }

    pub(super) fn new(old: Old) -> Self {
        let world = Self::empty();
        let below = ["x/a.safetensors", "x/y/b.safetensors"];
        match old {
            Old::Nothing => {}
            Old::Single => world.single(SINGLE, OLD),
            Old::Same => world.shards(INDEX, &canonical(2), OLD),
            Old::Other => world.shards(INDEX, &canonical(3), OLD),
            Old::Both => {
                world.single(SINGLE, STALE);
                world.shards(INDEX, &canonical(2), OLD);
            }
            Old::Indexed => world.shards(INDEX, &[SINGLE], OLD),
            Old::LinkedSingle => {
                world.single(SINGLE, OLD);
                world.link_all();
            }
            Old::LinkedShards => {
                world.shards(INDEX, &canonical(2), OLD);
                world.link_all();
            }
            Old::Below => world.shards(INDEX, &below, OLD),
            Old::Gone => {
                world.shards(INDEX, &canonical(2), OLD);
                for name in canonical(2) {
                    fs::remove_file(world.at(&name)).unwrap();
                }
            }
        }
        world
    }

    pub(super) fn root(&self) -> &Path {
        self.0.path()
    }

    /// The folder of the checkpoint.
    pub(super) fn folder(&self) -> PathBuf {
        self.0.path().join("folder")
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub(super) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), bytes).unwrap();
    }

    /// A single file.
    pub(super) fn single(&self, name: &str, value: u8) {
        self.write(name, file(&TENSORS, value));
    }

    /// Shards of these names, and an index.
    pub(super) fn shards(&self, index: &str, names: &[impl AsRef<str>], value: u8) {
        for (name, tensors) in divided(names) {
            self.write(name, file(tensors, value));
        }
        self.write(index, index_of_shards(names));
    }

    /// Moves every file into a folder of blobs, and leaves a link.
    fn link_all(&self) {
        let blobs = self.root().join("blobs");
        fs::create_dir(&blobs).unwrap();
        for (number, name) in names_in(&self.folder()).iter().enumerate() {
            let blob = format!("blob-{number}");
            fs::rename(self.at(name), blobs.join(&blob)).unwrap();
            symlink(Path::new("../blobs").join(blob), self.at(name)).unwrap();
        }
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        names_in(&self.folder())
    }

    pub(super) fn open(&self, names: Names) -> Result<TargetFolder> {
        open(&self.folder(), names)
    }

    pub(super) fn save(&self, new: New) -> Result<Removed> {
        save(&self.folder(), plain(), new, NEW, Durability::Cached)
    }

    /// Another world in the same state, as if its files were the very same.
    pub(super) fn copy_of(root: &Path) -> Self {
        let copy = Self(tempdir().unwrap());
        copy_tree(root, copy.root());
        journals_of_a_copy(&root.join("folder"), &copy.folder());
        copy
    }
}

pub(super) fn plain() -> Names {
    Names::new("model", None).unwrap()
}

pub(super) fn fp16() -> Names {
    Names::new("model", Some("fp16")).unwrap()
}

/// What Hugging Face calls so many shards.
pub(super) fn canonical(count: usize) -> Vec<String> {
    (1..=count)
        .map(|number| shard_of(&plain(), number, count, 1))
        .collect()
}

pub(super) fn shard_of(names: &Names, number: usize, of: usize, generation: u32) -> String {
    names.shard(Place {
        generation,
        of,
        number,
    })
}

pub(super) fn open(folder: &Path, names: Names) -> Result<TargetFolder> {
    TargetFolder::open(folder, names, Losses::Refuse, Rights::New, None)
}

/// The tensors of each shard.
fn divided<S: AsRef<str>>(names: &[S]) -> impl Iterator<Item = (&str, &[&'static str])> {
    let tensors = TENSORS.chunks(TENSORS.len() / names.len());
    names.iter().map(AsRef::as_ref).zip(tensors)
}

/// A file that holds these tensors, all of this value.
pub(super) fn file(tensors: &[&str], value: u8) -> Vec<u8> {
    let bytes = f32::from(value).to_le_bytes();
    let view = || TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
    let tensors = tensors.iter().map(|name| (name.to_string(), view()));
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(tensors, Some(metadata)).unwrap()
}

pub(super) fn index_of_shards(names: &[impl AsRef<str>]) -> String {
    let map = divided(names).flat_map(|(name, tensors)| {
        let entry = move |tensor: &&str| (tensor.to_string(), json!(name));
        tensors.iter().map(entry)
    });
    json!({"metadata": {}, "weight_map": Map::from_iter(map)}).to_string()
}

/// Saves a checkpoint of this value.
pub(super) fn save(
    folder: &Path,
    names: Names,
    new: New,
    value: u8,
    durability: Durability,
) -> Result<Removed> {
    let to = open(folder, names)?;
    let stage = |name: &str, bytes: &[u8]| {
        let (stage, mut file) = Stage::create(to.folder(), name, &to.rights_for(name)?)?;
        file.write_all(bytes).unwrap();
        Ok(stage)
    };
    let (shards, main) = match new {
        New::Single => {
            let name = to.single_name(TENSORS.into_iter())?;
            let main = stage(&name, &file(&TENSORS, value))?;
            (vec![], main)
        }
        New::Shards => {
            let names = to.shard_names(2)?;
            let shards = divided(&names);
            let shards = shards.map(|(name, tensors)| stage(name, &file(tensors, value)));
            let shards = shards.collect::<Result<_>>()?;
            let main = stage(&to.index_name(), index_of_shards(&names).as_bytes())?;
            (shards, main)
        }
    };
    let new = NewFiles {
        main,
        shards,
        along: Vec::new(),
    };
    to.commit(new, durability)
}

/// All files and links below a folder, by their place.
pub(super) fn names_in(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !entry.file_type().unwrap().is_dir() {
            names.insert(name);
            continue;
        }
        for below in names_in(&entry.path()) {
            names.insert(format!("{name}/{below}"));
        }
    }
    names
}

/// Lets the journals of a copied folder name the copies of those files that they named in the first.
fn journals_of_a_copy(from: &Path, to: &Path) {
    let Ok(entries) = fs::read_dir(to) else {
        return;
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    for name in names {
        let Some(single) = Journal::single_of(&name) else {
            continue;
        };
        let Ok(Some(mut journal)) = Journal::read(to, single) else {
            continue;
        };
        let copied = |entry: &mut Entry, at: &str| {
            let there = Entry {
                name: at.to_owned(),
                mark: entry.mark,
            };
            if there.presence(from).unwrap() == Presence::Same {
                let changed = entry.mark.changed;
                entry.mark = Entry::at(to, at).unwrap().unwrap().mark;
                entry.mark.changed = changed.and(entry.mark.changed);
            }
        };
        let both = |staged: &mut Staged| {
            let (name, stage) = (staged.entry.name.clone(), staged.stage.clone());
            let before = staged.entry.mark;
            copied(&mut staged.entry, &name);
            if staged.entry.mark == before {
                copied(&mut staged.entry, &stage);
            }
        };
        for entry in journal.new.iter_mut().chain(&mut journal.superseded) {
            let name = entry.name.clone();
            copied(entry, &name);
        }
        let along = journal.along.iter_mut();
        let staged = along
            .chain(&mut journal.stand_in)
            .chain([&mut journal.main]);
        staged.for_each(both);
        fs::write(to.join(&name), journal.to_bytes()).unwrap();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (metadata, to) = (entry.metadata().unwrap(), to.join(entry.file_name()));
        if metadata.is_dir() {
            copy_tree(&entry.path(), &to);
            continue;
        }
        match metadata.is_symlink() {
            true => symlink(fs::read_link(entry.path()).unwrap(), &to).unwrap(),
            false => drop(fs::copy(entry.path(), &to).unwrap()),
        }
        let modified = Timespec {
            tv_sec: metadata.mtime(),
            tv_nsec: metadata.mtime_nsec(),
        };
        let times = Timestamps {
            last_access: modified,
            last_modification: modified,
        };
        utimensat(CWD, &to, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

// ---- states in between

/// Keeps a copy of the world after every change.
struct Recorder {
    root: PathBuf,
    states: Rc<RefCell<Vec<World>>>,
}

impl Watch for Recorder {
    fn before(&mut self) -> Result<()> {
        Ok(())
    }

    fn after(&mut self) {
        self.states.borrow_mut().push(World::copy_of(&self.root));
    }
}

/// The states that a piece of work on a world goes through.
pub(super) fn states_of<T>(world: &World, work: impl FnOnce() -> T) -> (T, Vec<World>) {
    let states = Rc::default();
    let recorder = Recorder {
        root: world.root().to_path_buf(),
        states: Rc::clone(&states),
    };
    let result = watched(recorder, work);
    (result, states.take())
}

/// The last state before the commit, and the one after it.
pub(super) fn around_commit(world: &World, new: New) -> (World, World) {
    let (_, states) = states_of(world, || world.save(new).unwrap());
    let mut states = states.into_iter().peekable();
    while let Some(state) = states.next() {
        let is_new = |state: &World| ours(&state.folder(), None) == Some(NEW);
        if let Some(next) = states.next_if(is_new) {
            return (state, next);
        }
    }
    panic!("never committed");
}

// ---- readers

/// The value of all tensors in these files; none if a file cannot be read, which a reader would say.
fn value_in(files: &[PathBuf]) -> Option<u8> {
    let mut values = BTreeMap::new();
    for file in files {
        let bytes = fs::read(file).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        for (name, tensor) in tensors.tensors() {
            values.insert(name, tensor.data().to_vec());
        }
    }
    Some(only_value(&Vec::from_iter(values.into_values())))
}

/// The value that all of these tensors have.
fn only_value(tensors: &[Vec<u8>]) -> u8 {
    let values = tensors
        .iter()
        .map(|bytes| bytes.as_slice().try_into().unwrap());
    let values: Vec<f32> = values.map(f32::from_le_bytes).collect();
    match values.first() {
        Some(&value) if values == [value; TENSORS.len()] => value as u8,
        _ => BROKEN,
    }
}

fn by_index(folder: &Path, index: &str) -> Option<u8> {
    let index: Value = serde_json::from_slice(&fs::read(folder.join(index)).ok()?).unwrap();
    let shards = index["weight_map"].as_object().unwrap().values();
    let shards = shards.map(|shard| folder.join(shard.as_str().unwrap()));
    value_in(&Vec::from_iter(BTreeSet::from_iter(shards)))
}

/// transformers and accelerate: the single file, then the index.
pub(super) fn single_first(folder: &Path, names: &Names) -> Option<u8> {
    let single = folder.join(names.single());
    match single.is_file() {
        true => value_in(&[single]),
        false => by_index(folder, &names.index()),
    }
}

/// huggingface_hub: the index, then whatever safetensors file is alone.
pub(super) fn index_first(folder: &Path) -> Option<u8> {
    if folder.join(INDEX).is_file() {
        return by_index(folder, INDEX);
    }
    let files = names_in(folder).into_iter();
    let files = files.filter(|name| name.ends_with(".safetensors") && !name.contains('/'));
    match Vec::from_iter(files).as_slice() {
        [only] => value_in(&[folder.join(only)]),
        _ => None,
    }
}

/// This library.
pub(super) fn ours(folder: &Path, variant: Option<&str>) -> Option<u8> {
    ours_with(
        folder,
        &OpenOptions {
            variant: variant.map(str::to_owned),
            ..OpenOptions::default()
        },
    )
}

pub(super) fn ours_with(folder: &Path, options: &OpenOptions) -> Option<u8> {
    let checkpoint = Checkpoint::open_with(folder, options).ok()?;
    let tensors = TENSORS.iter().map(|name| checkpoint.read(name).ok());
    Some(
        tensors
            .collect::<Option<Vec<_>>>()
            .map_or(BROKEN, |tensors| only_value(&tensors)),
    )
}

/// What each of them finds.
pub(super) fn views(folder: &Path) -> [Option<u8>; 3] {
    [
        ours(folder, None),
        single_first(folder, &plain()),
        index_first(folder),
    ]
}
