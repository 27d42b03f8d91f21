//! Checkpoints whose every tensor tells which save wrote it, and folders to save them in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use safeshard_core::{
    Cancel, Checkpoint, Code, Dtype, Durability, Error, Result, SaveOptions, SaveReport,
    SaveTensor, ShardFile, Sharding, TensorData, Ties, WriteBytes, save,
};
use tempfile::TempDir;

use super::INDEX;
use super::journals::{Age, is_journal, name_copies, name_files, timeless};
use super::strace::Stages;
use super::tensors::SINGLE;

/// As in the model of `tests/python/load_folders.py`; of one element each.
const TENSORS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

pub const OTHER_VARIANT: &str = "model.fp16-00001-of-00002.safetensors";

/// What no save may touch, however much it looks like something of its own.
const FOREIGN: [(&str, &str); 5] = [
    ("config.json", "{}"),
    (OTHER_VARIANT, "another variant"),
    ("model.safetensors.bak", "a copy"),
    (".model.safetensors.partial", "a download"),
    ("onnx/model.safetensors", "another folder"),
];

/// How a checkpoint is cut into files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Single,
    Shards(usize),
}

impl Layout {
    /// The file whose appearance makes a checkpoint of this layout the one that is opened.
    pub fn main(self) -> &'static str {
        match self {
            Self::Single => SINGLE,
            Self::Shards(_) => INDEX,
        }
    }

    fn sharding(self) -> Sharding {
        let Self::Shards(count) = self else {
            return Sharding::default();
        };
        let names = TENSORS.map(str::to_owned);
        let shards = names.chunks(TENSORS.len().div_ceil(count));
        Sharding::Explicit(shards.map(<[String]>::to_vec).collect())
    }
}

/// What a save is given the path of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Folder,
    /// The single file.
    File,
}

impl Target {
    /// The path, in the folder of a [`Scene`].
    pub fn path(self, root: &Path) -> PathBuf {
        match self {
            Self::Folder => model_in(root),
            Self::File => model_in(root).join(SINGLE),
        }
    }
}

/// What the save of this number writes: the number, into every tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation(pub u8);

impl Generation {
    pub fn save(
        self,
        path: impl AsRef<Path>,
        layout: Layout,
        durability: Durability,
    ) -> Result<SaveReport> {
        save(tensors(&self.bytes()), path, &options(layout, durability))
    }

    /// Saves, and calls `before` when the bytes of the last tensor are needed.
    pub fn save_after(
        self,
        path: impl AsRef<Path>,
        layout: Layout,
        cancel: Option<Cancel>,
        before: impl Fn() -> Result<()> + Send + Sync,
    ) -> Result<SaveReport> {
        let bytes = self.bytes();
        let mut tensors = tensors(&bytes);
        let bytes = &bytes;
        tensors.last_mut().unwrap().data = Box::new(Late { bytes, before });
        let options = SaveOptions {
            cancel,
            ..options(layout, Durability::Cached)
        };
        save(tensors, path, &options)
    }

    /// The error of a save whose last tensor cannot be had: `cancelled`.
    #[track_caller]
    pub fn fail_to_save(self, path: impl AsRef<Path>, layout: Layout) -> Error {
        let lost = || Err(Error::new(Code::Cancelled));
        self.save_after(path, layout, None, lost).unwrap_err()
    }

    /// The one that an opened checkpoint is, all of it.
    ///
    /// # Errors
    /// Those of reading.
    #[track_caller]
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let mut names: Vec<_> = checkpoint.names();
        names.sort_unstable();
        assert_eq!(names, TENSORS);
        let mut found = BTreeSet::new();
        for name in names {
            let bytes = checkpoint.read(name)?;
            let value = f32::from_le_bytes(bytes[..].try_into().unwrap());
            let generation = Self(value as u8);
            assert_eq!(bytes, generation.bytes(), "{name} holds {value}");
            found.insert(generation.0);
        }
        assert_eq!(found.len(), 1, "a mix of the generations {found:?}");
        Ok(Self(found.pop_first().unwrap()))
    }

    fn bytes(self) -> [u8; 4] {
        f32::from(self.0).to_le_bytes()
    }
}

fn tensors(bytes: &[u8]) -> Vec<SaveTensor<'_>> {
    let tensors = TENSORS.iter();
    tensors
        .map(|name| SaveTensor::new(*name, Dtype::F32, [1], bytes))
        .collect()
}

fn options(layout: Layout, durability: Durability) -> SaveOptions {
    SaveOptions {
        sharding: layout.sharding(),
        // All of them are the same bytes.
        ties: Ties::Duplicate,
        durability,
        // In the thread of the caller, so that every run makes the same calls in the same order.
        threads: Some(1.try_into().unwrap()),
        ..SaveOptions::default()
    }
}

struct Late<'t, F> {
    bytes: &'t [u8],
    before: F,
}

impl<F: Fn() -> Result<()> + Send + Sync> TensorData for Late<'_, F> {
    fn byte_len(&self) -> Option<u64> {
        Some(self.bytes.len() as u64)
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        (self.before)()?;
        self.bytes.write_range(range, write)
    }
}

/// The generation that is there, whole; `None` where there is no checkpoint.
#[track_caller]
pub fn generation_at(path: &Path) -> Option<Generation> {
    match Checkpoint::open(path) {
        Ok(checkpoint) => Some(Generation::of(&checkpoint).unwrap()),
        Err(error) => {
            // Shards of a save that did not come to its index, and those of another variant.
            let none = [Code::NoCheckpoint, Code::IndexMissing, Code::NotFound];
            assert!(none.contains(&error.code()), "{error}");
            None
        }
    }
}

/// A folder `model` in a folder of its own, which has room for what a test writes beside it.
pub struct Scene {
    root: PathBuf,
    _removed_afterwards: Option<TempDir>,
}

impl Scene {
    /// With files that are nobody's business, and a checkpoint of the first generation.
    pub fn new(old: Option<Layout>) -> Self {
        let scene = Self::empty();
        for (name, contents) in FOREIGN {
            write(&scene.model().join(name), contents);
        }
        if let Some(layout) = old {
            scene.save(Generation(1), layout);
        }
        scene
    }

    /// Without even the folder.
    pub fn empty() -> Self {
        Self::in_folder(tempfile::tempdir())
    }

    /// In memory, where that is possible: thousands of saves take too long where each of them waits
    /// for a disk.
    pub fn empty_in_memory() -> Self {
        Self::in_folder(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()))
    }

    fn in_folder(folder: io::Result<TempDir>) -> Self {
        let folder = folder.unwrap();
        Self {
            root: folder.path().to_path_buf(),
            _removed_afterwards: Some(folder),
        }
    }

    /// In a child, the one that the parent has made.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            _removed_afterwards: None,
        }
    }

    /// Another with the same files, which are as old; stages have the names of [`Scene::files`].
    pub fn again(&self) -> Self {
        let again = Self::empty_in_memory();
        let stages = Stages::of(&self.root);
        copy(&self.model(), &again.model(), &stages);
        let renamed = |name: &str| stages.places_in(name);
        name_copies(&self.model(), &again.model(), renamed);
        again
    }

    /// Puts files of [`Scene::files`] into the folder.
    pub fn put(&self, files: &BTreeMap<String, (Vec<u8>, Age)>) {
        for (name, (bytes, age)) in files {
            let path = self.model().join(name);
            write(&path, bytes);
            let age = Duration::from_secs(*age as u64);
            set_modified(&path, SystemTime::UNIX_EPOCH + age);
        }
        name_files(&self.model());
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn model(&self) -> PathBuf {
        model_in(self.root())
    }

    pub fn generation(&self) -> Option<Generation> {
        generation_at(&self.model())
    }

    pub fn files(&self) -> Files {
        files(&self.model(), &Stages::of(&self.root))
    }

    /// Whether there is no file but the checkpoint's.
    pub fn is_bare(&self) -> bool {
        !self.model().join(FOREIGN[0].0).exists()
    }

    /// Checks that the files of the two are the same.
    #[track_caller]
    pub fn holds_the_same_as(&self, other: &Self) {
        let (these, those) = (self.files(), other.files());
        let names: BTreeSet<_> = these.keys().chain(those.keys()).collect();
        let mut differ = names.into_iter();
        assert_eq!(
            differ.find(|name| these.get(*name) != those.get(*name)),
            None
        );
    }

    /// Whether a save is under way, or died on its way.
    pub fn has_journal(&self) -> bool {
        self.model().join(".model.safetensors.commit").exists()
    }

    /// Saves, which must succeed and leave the folder as if nothing else had ever been saved there.
    #[track_caller]
    pub fn save(&self, generation: Generation, layout: Layout) {
        self.save_to(&self.model(), generation, layout);
    }

    /// The same by the path of the folder or of the single file.
    #[track_caller]
    pub fn save_to(&self, path: &Path, generation: Generation, layout: Layout) {
        let report = generation.save(path, layout, Durability::Cached);
        self.holds_only(generation, layout, &report.unwrap());
    }

    /// Checks that the folder holds what the save reports and what is nobody's business, no more.
    #[track_caller]
    pub fn holds_only(&self, generation: Generation, layout: Layout, report: &SaveReport) {
        assert!(report.left_behind.is_empty(), "{:?}", report.left_behind);
        let mut saved: BTreeSet<_> = report.files.iter().map(|file| &*file.name).collect();
        saved.extend(report.index.as_deref());
        self.holds_only_files(generation, layout, &saved);
    }

    /// The same without a report: the files are those that the checkpoint itself names.
    #[track_caller]
    pub fn holds_only_whole(&self, generation: Generation, layout: Layout) {
        let checkpoint = Checkpoint::open(self.model()).unwrap();
        let mut saved: BTreeSet<_> = checkpoint.files().iter().map(ShardFile::name).collect();
        let index = checkpoint
            .index()
            .map(|index| index.path().file_name().unwrap());
        saved.extend(index.map(|name| name.to_str().unwrap()));
        self.holds_only_files(generation, layout, &saved);
    }

    #[track_caller]
    fn holds_only_files(&self, generation: Generation, layout: Layout, saved: &BTreeSet<&str>) {
        assert_eq!(self.generation(), Some(generation));
        match layout {
            Layout::Single => assert_eq!(*saved, BTreeSet::from([SINGLE])),
            Layout::Shards(count) => {
                assert!(
                    saved.len() == count + 1 && saved.contains(INDEX),
                    "{saved:?}"
                );
            }
        }
        let files = self.files();
        let mut left: BTreeSet<_> = files.keys().map(String::as_str).collect();
        left.retain(|name| !saved.contains(name) && !is_foreign(name));
        assert!(left.is_empty(), "left in the folder: {left:?}");
        assert!(saved.iter().all(|name| files.contains_key(*name)));
        self.foreign_is_untouched();
    }

    #[track_caller]
    pub fn foreign_is_untouched(&self) {
        let files = self.files();
        if self.is_bare() {
            return assert!(!files.keys().any(|name| is_foreign(name)));
        }
        for (name, contents) in FOREIGN {
            assert_eq!(files.get(name).unwrap(), contents.as_bytes(), "{name}");
        }
    }
}

/// Where a child that was given the folder of a [`Scene`] finds the checkpoint.
pub fn model_in(root: &Path) -> PathBuf {
    root.join("model")
}

fn is_foreign(name: &str) -> bool {
    FOREIGN.iter().any(|(foreign, _)| *foreign == name)
}

/// The files below a folder by path, with their bytes. What differs from run to run is replaced: what
/// is random in the name of a stage, and times in a journal.
pub type Files = BTreeMap<String, Vec<u8>>;

fn files(folder: &Path, stages: &Stages) -> Files {
    let mut files = Files::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return files;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            let below = self::files(&path, stages).into_iter();
            files.extend(below.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            let bytes = fs::read(&path).unwrap();
            let bytes = match str::from_utf8(&bytes) {
                Ok(text) if is_journal(name) => timeless(&stages.places_in(text)).into(),
                _ => bytes,
            };
            files.insert(stages.places_in(name), bytes);
        }
    }
    files
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn set_modified(path: &Path, time: SystemTime) {
    let file = File::options().append(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

fn copy(from: &Path, to: &Path, stages: &Stages) {
    let Ok(entries) = fs::read_dir(from) else {
        return;
    };
    fs::create_dir_all(to).unwrap();
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let target = to.join(stages.places_in(name));
        if path.is_dir() {
            copy(&path, &target, stages);
            continue;
        }
        match is_journal(name) {
            true => write(
                &target,
                stages.places_in(&fs::read_to_string(&path).unwrap()),
            ),
            false => drop(fs::copy(&path, &target).unwrap()),
        }
        set_modified(&target, path.metadata().unwrap().modified().unwrap());
    }
}
