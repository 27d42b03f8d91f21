//! Every state of a folder between the old checkpoint and the new one, seen by every kind of reader;
//! and what the next save makes of each.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::rc::Rc;

use rstest::rstest;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::super::change::watch::{Failing, Watch, watched};
use super::super::shards::Names;
use super::*;
use crate::Checkpoint;

/// The values of all tensors of a checkpoint tell which one it is.
const OLD: u8 = 1;
const NEW: u8 = 2;
const STALE: u8 = 3;
const BROKEN: u8 = 4;

const TENSORS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What is in the folder before.
#[derive(Clone, Copy, Debug)]
enum Old {
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
    /// An index that no longer has all it names: only under names that the new shards would get.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum New {
    Single,
    Shards,
}

/// A folder with all that links in it lead to.
struct World(TempDir);

impl World {
    fn new(old: Old) -> Self {
        let world = Self(tempdir().unwrap());
        fs::create_dir_all(world.folder()).unwrap();
        let single = |value| world.write(SINGLE, &TENSORS, value);
        match old {
            Old::Nothing => {}
            Old::Single => single(OLD),
            Old::Same => world.shards(INDEX, &canonical(2)),
            Old::Other => world.shards(INDEX, &canonical(3)),
            Old::Both => {
                single(STALE);
                world.shards(INDEX, &canonical(2));
            }
            Old::Indexed => world.shards(INDEX, &[SINGLE.to_owned()]),
            Old::LinkedSingle => {
                single(OLD);
                world.link_all();
            }
            Old::LinkedShards => {
                world.shards(INDEX, &canonical(2));
                world.link_all();
            }
            Old::Below => world.shards(
                INDEX,
                &["x/a.safetensors".into(), "x/y/b.safetensors".into()],
            ),
            Old::Gone => {
                world.shards(INDEX, &canonical(2));
                canonical(2)
                    .iter()
                    .for_each(|name| fs::remove_file(world.at(name)).unwrap());
            }
        }
        world
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("folder")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn write(&self, name: &str, tensors: &[&str], value: u8) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), file(tensors, value)).unwrap();
    }

    /// Shards of these names, and an index.
    fn shards(&self, index: &str, names: &[String]) {
        for (name, tensors) in names
            .iter()
            .zip(TENSORS.chunks(TENSORS.len() / names.len()))
        {
            self.write(name, tensors, OLD);
        }
        fs::write(self.at(index), index_of_shards(names)).unwrap();
    }

    /// Moves every file into a folder of blobs, and leaves a link.
    fn link_all(&self) {
        let blobs = self.0.path().join("blobs");
        fs::create_dir(&blobs).unwrap();
        for (number, name) in names_in(&self.folder()).iter().enumerate() {
            let blob = format!("blob-{number}");
            fs::rename(self.at(name), blobs.join(&blob)).unwrap();
            symlink(Path::new("../blobs").join(blob), self.at(name)).unwrap();
        }
    }

    fn save(&self, new: New, durability: Durability) -> Result<Removed> {
        save(&self.folder(), plain(), new, durability)
    }

    /// Another folder in the same state, times included.
    fn copy(&self) -> Self {
        let copy = Self(tempdir().unwrap());
        copy_tree(self.0.path(), copy.0.path());
        copy
    }
}

fn plain() -> Names {
    Names::new("model", None).unwrap()
}

fn canonical(count: usize) -> Vec<String> {
    (1..=count)
        .map(|number| plain().shard(number, count, 1))
        .collect()
}

fn file(tensors: &[&str], value: u8) -> Vec<u8> {
    let bytes = [value];
    let view = || TensorView::new(Dtype::U8, vec![1], &bytes).unwrap();
    safetensors::serialize(tensors.iter().map(|name| (name.to_string(), view())), None).unwrap()
}

fn index_of_shards(names: &[String]) -> String {
    let shards = names
        .iter()
        .zip(TENSORS.chunks(TENSORS.len() / names.len()));
    let map = shards.flat_map(|(name, tensors)| {
        tensors
            .iter()
            .map(move |tensor| (tensor.to_string(), json!(name)))
    });
    let map: serde_json::Map<String, Value> = map.collect();
    json!({"metadata": {}, "weight_map": map}).to_string()
}

fn save(folder: &Path, names: Names, new: New, durability: Durability) -> Result<Removed> {
    let to = Destination::open(folder, names, None)?;
    let stage = |name: &str, bytes: &[u8]| {
        let mode = to.mode_for(name)?;
        let (stage, mut file) = Stage::create(to.folder(), name, mode)?;
        std::io::Write::write_all(&mut file, bytes).unwrap();
        Ok(stage)
    };
    let (shards, main) = match new {
        New::Single => (vec![], stage(&to.single_name()?, &file(&TENSORS, NEW))?),
        New::Shards => {
            let names = to.shard_names(2)?;
            let shards = names.iter().zip(TENSORS.chunks(3));
            let shards = shards.map(|(name, tensors)| stage(name, &file(tensors, NEW)));
            let shards = shards.collect::<Result<_>>()?;
            (
                shards,
                stage(&to.index_name(), index_of_shards(&names).as_bytes())?,
            )
        }
    };
    to.commit(shards, main, durability)
}

/// All files and links below a folder, by their place.
fn names_in(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => names.extend(
                names_in(&entry.path())
                    .iter()
                    .map(|below| format!("{name}/{below}")),
            ),
            false => drop(names.insert(name)),
        }
    }
    names
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

// ---- readers

/// The value of all tensors in these files; `BROKEN` if some are missing or they are of two checkpoints,
/// and none if a file is missing, which a reader would say.
fn value_in(files: &[PathBuf]) -> Option<u8> {
    let mut values = BTreeMap::new();
    for file in files {
        let bytes = fs::read(file).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        for (name, tensor) in tensors.tensors() {
            values.insert(name, tensor.data()[0]);
        }
    }
    let whole = values.len() == TENSORS.len();
    let distinct: BTreeSet<_> = values.into_values().collect();
    match distinct.first() {
        Some(&value) if whole && distinct.len() == 1 => Some(value),
        _ => Some(BROKEN),
    }
}

fn value_by_index(folder: &Path) -> Option<u8> {
    let index: Value = serde_json::from_slice(&fs::read(folder.join(INDEX)).ok()?).unwrap();
    let shards = index["weight_map"].as_object().unwrap().values();
    let shards: BTreeSet<_> = shards
        .map(|shard| folder.join(shard.as_str().unwrap()))
        .collect();
    value_in(&Vec::from_iter(shards))
}

/// transformers and accelerate: the single file, then the index.
fn single_first(folder: &Path) -> Option<u8> {
    let single = folder.join(SINGLE);
    match single.is_file() {
        true => value_in(&[single]),
        false => value_by_index(folder),
    }
}

/// huggingface_hub: the index, then the only safetensors file.
fn index_first(folder: &Path) -> Option<u8> {
    if folder.join(INDEX).is_file() {
        return value_by_index(folder);
    }
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_file = |path: &PathBuf| path.extension().is_some_and(|end| end == "safetensors");
    let files: Vec<_> = names.filter(is_file).collect();
    (files.len() == 1).then(|| value_in(&files))?
}

fn ours(folder: &Path) -> Option<u8> {
    value_of(Checkpoint::open(folder).ok()?)
}

fn value_of(checkpoint: Checkpoint) -> Option<u8> {
    let values: Option<BTreeSet<_>> = TENSORS
        .iter()
        .map(|name| checkpoint.read(name).ok())
        .collect();
    Some(
        match Vec::from_iter(values.into_iter().flatten()).as_slice() {
            [value] => value[0],
            _ => BROKEN,
        },
    )
}

/// What each of them finds.
fn views(folder: &Path) -> [Option<u8>; 3] {
    [ours(folder), single_first(folder), index_first(folder)]
}

// ---- every state in between

/// Keeps a copy of the world after every change.
struct Recorder {
    from: PathBuf,
    states: Rc<RefCell<Vec<World>>>,
}

impl Watch for Recorder {
    fn before(&mut self) -> Result<()> {
        Ok(())
    }

    fn after(&mut self) {
        let copy = World(tempdir().unwrap());
        copy_tree(&self.from, copy.0.path());
        self.states.borrow_mut().push(copy);
    }
}

/// The states that a piece of work on a world goes through.
fn states_of<T>(world: &World, work: impl FnOnce() -> T) -> (T, Vec<World>) {
    let states = Rc::default();
    let recorder = Recorder {
        from: world.0.path().to_path_buf(),
        states: Rc::clone(&states),
    };
    let result = watched(recorder, work);
    (result, states.take())
}

#[rstest]
fn every_reader_finds_one_of_two_checkpoints_at_every_instant(
    #[values(
        Old::Nothing,
        Old::Single,
        Old::Same,
        Old::Other,
        Old::Both,
        Old::Indexed,
        Old::LinkedSingle,
        Old::LinkedShards,
        Old::Below,
        Old::Gone
    )]
    old: Old,
    #[values(New::Single, New::Shards)] new: New,
) {
    let world = World::new(old);
    let (before, names_before) = (views(&world.folder()), names_in(&world.folder()));
    let (removed, states) = states_of(&world, || world.save(new, Durability::Cached).unwrap());
    assert!(removed.left_behind.is_empty());
    let names_after = names_in(&world.folder());
    assert_eq!(views(&world.folder()), [Some(NEW); 3]);
    assert_eq!(
        names_after.len(),
        if new == New::Single { 1 } else { 3 },
        "{names_after:?}"
    );

    let mut last = before;
    for (number, state) in states.iter().enumerate() {
        let folder = state.folder();
        let now = views(&folder);
        let shown = || format!("state {number}: {:?}", names_in(&folder));
        for (reader, now) in now.into_iter().enumerate() {
            // The old one until the new one, and never back.
            let allowed =
                now == Some(NEW) || now == before[reader] && last[reader] == before[reader];
            assert!(allowed, "reader {reader} finds {now:?}; {}", shown());
        }
        last = now;

        // The process dies here, and the next save begins; it may die as well.
        let committed = now[0] == Some(NEW);
        let recovered = state.copy();
        let (_, again) = states_of(&recovered, || recover(&recovered));
        for state in again.iter().chain([&recovered]) {
            let folder = state.folder();
            for (reader, now) in views(&folder).into_iter().enumerate() {
                let allowed = now == Some(NEW) && committed || now == before[reader];
                assert!(allowed, "reader {reader} finds {now:?} after {}", shown());
            }
            recover(state);
            let (views_at_end, names_at_end) = match committed {
                true => ([Some(NEW); 3], &names_after),
                false => (before, &names_before),
            };
            assert_eq!(views(&folder), views_at_end, "{}", shown());
            assert_eq!(&names_in(&folder), names_at_end, "{}", shown());
        }
    }
}

/// What a save does before it begins.
fn recover(world: &World) {
    Destination::open(&world.folder(), plain(), None).unwrap();
}

#[rstest]
#[case::once(|number, at| number == at)]
#[case::from_then_on(|number, at| number >= at)]
fn every_failure_leaves_the_old_or_the_new(
    #[case] fails: fn(usize, usize) -> bool,
    #[values(
        Old::Nothing,
        Old::Single,
        Old::Same,
        Old::Both,
        Old::Indexed,
        Old::LinkedShards,
        Old::Below
    )]
    old: Old,
    #[values(New::Single, New::Shards)] new: New,
) {
    for at in 1.. {
        let world = World::new(old);
        let (before, names_before) = (views(&world.folder()), names_in(&world.folder()));
        let count = Rc::new(RefCell::new(0));
        let counted = Rc::clone(&count);
        let failing = Failing(
            move |number| {
                *counted.borrow_mut() = number;
                fails(number, at)
            },
            0,
        );
        let result = watched(failing, || world.save(new, Durability::Durable));
        let shown = format!("failing at {at}: {:?}", names_in(&world.folder()));
        if *count.borrow() < at {
            result.unwrap();
            break;
        }
        let now = views(&world.folder());
        match result {
            Ok(removed) => {
                assert!(!removed.left_behind.is_empty(), "{shown}");
                assert_eq!(now[0], Some(NEW), "{shown}");
            }
            Err(error) if now[0] == Some(NEW) => {
                assert!(error.advice().contains("in its place"), "{error}");
            }
            Err(_) => {
                assert_eq!(now, before, "{shown}");
                if fails(at, at) && !fails(at + 1, at) {
                    assert_eq!(names_in(&world.folder()), names_before, "{shown}");
                }
            }
        }
        for (reader, now) in now.into_iter().enumerate() {
            assert!(
                now == Some(NEW) || now == before[reader],
                "reader {reader}; {shown}"
            );
        }
        // The next save finds a way on from there.
        let removed = world.save(new, Durability::Cached).unwrap();
        assert_eq!(removed.left_behind, Vec::<PathBuf>::new(), "{shown}");
        assert_eq!(views(&world.folder()), [Some(NEW); 3], "{shown}");
        assert_eq!(
            names_in(&world.folder()).len(),
            if new == New::Single { 1 } else { 3 },
            "{shown}"
        );
    }
}
