//! What somebody does in the folder, or to the files that are copied, while a save is at work.

mod support;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rstest::rstest;
use safeshard_core::{
    Checkpoint, Code, Dtype, ReshardOptions, Result, SaveOptions, SaveTensor, TensorData,
    WriteBytes, reshard, save,
};
use support::generations::{Generation, Layout, Scene, Target};
use tempfile::tempdir;

const OLD: Generation = Generation(1);
const NEW: Generation = Generation(2);

const FOREIGN: &str = "somebody else's file";

#[derive(Clone, Copy, Debug)]
enum How {
    /// Another file takes the name.
    Rename,
    /// The file that is there is written over.
    InPlace,
}

/// Puts a file there as others do, without a lock.
fn put(path: &Path, how: How) {
    match how {
        How::InPlace => fs::write(path, FOREIGN).unwrap(),
        How::Rename => {
            let staged = path.with_extension("theirs");
            fs::write(&staged, FOREIGN).unwrap();
            fs::rename(staged, path).unwrap();
        }
    }
}

#[rstest]
fn a_file_that_comes_meanwhile_is_not_replaced(
    #[values(None, Some(Layout::Single), Some(Layout::Shards(3)))] old: Option<Layout>,
    #[values(Layout::Single, Layout::Shards(3))] new: Layout,
    #[values(How::Rename, How::InPlace)] how: How,
    #[values(Target::Folder, Target::File)] target: Target,
) {
    if matches!((target, new), (Target::File, Layout::Shards(_))) {
        return;
    }
    let scene = Scene::new(old);
    let main = scene.model().join(new.main());
    let others = |scene: &Scene| {
        let mut files = scene.files();
        files.remove(new.main());
        files
    };
    let before = others(&scene);
    let meanwhile = || {
        put(&main, how);
        Ok(())
    };
    let path = target.path(scene.root());
    let error = NEW.save_after(&path, new, None, meanwhile).unwrap_err();
    assert_eq!(error.code(), Code::FileChanged, "{error}");
    let real = |path: &Path| path.canonicalize().unwrap();
    assert_eq!(real(error.path().unwrap()), real(&main));
    assert_eq!(fs::read_to_string(&main).unwrap(), FOREIGN);
    assert_eq!(others(&scene), before, "and nothing of ours is left");
}

#[test]
fn what_is_removed_meanwhile_is_saved_all_the_same() {
    for layout in [Layout::Single, Layout::Shards(3)] {
        let scene = Scene::new(Some(layout));
        let main = scene.model().join(layout.main());
        let meanwhile = || {
            fs::remove_file(&main).unwrap();
            Ok(())
        };
        NEW.save_after(scene.model(), layout, None, meanwhile)
            .unwrap();
        scene.holds_only_whole(NEW, layout);
    }
}

/// The stage of a file that is being saved there.
fn stage_in(folder: &Path) -> PathBuf {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_stage = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        // Not the download of another program, which has no random digits.
        name.starts_with(".model.safetensors.") && name.len() > ".model.safetensors.partial".len()
    };
    entries.into_iter().find(is_stage).unwrap()
}

#[rstest]
fn what_is_put_into_the_place_of_a_stage_is_not_published(
    #[values(Target::Folder, Target::File)] target: Target,
    #[values(true, false)] is_link: bool,
) {
    let scene = Scene::new(Some(Layout::Single));
    let victim = scene.root().join("victim");
    fs::write(&victim, FOREIGN).unwrap();
    let swap = || {
        let stage = stage_in(&scene.model());
        fs::rename(&stage, scene.root().join("stolen")).unwrap();
        match is_link {
            true => symlink(&victim, &stage).unwrap(),
            false => drop(fs::copy(&victim, &stage).unwrap()),
        }
        Ok(())
    };
    let path = target.path(scene.root());
    let error = NEW
        .save_after(path, Layout::Single, None, swap)
        .unwrap_err();
    assert_eq!(error.code(), Code::FileChanged, "{error}");
    assert_eq!(scene.generation(), Some(OLD));
    assert_eq!(fs::read_to_string(victim).unwrap(), FOREIGN);
}

/// Data that do something when they are asked for.
struct Before<F>(F);

impl<F: Fn() + Send + Sync> TensorData for Before<F> {
    fn byte_len(&self) -> Option<u64> {
        Some(1)
    }

    fn write_range(&self, _all: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        self.0();
        write(&[7])
    }
}

/// Overwrites the last byte of a file, and puts its time back.
fn overwrite(path: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
    let file = File::options().append(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(fs::metadata(path).unwrap().modified().unwrap(), modified);
}

#[test]
fn a_source_that_is_written_over_is_noticed_although_its_time_is_put_back() {
    let folder = tempdir().unwrap();
    let (from, to) = (
        folder.path().join("from.safetensors"),
        folder.path().join("to"),
    );
    let bytes: &[u8] = &[1; 100];
    let tensor = SaveTensor::new("w", Dtype::U8, [100], bytes);
    save(vec![tensor], &from, &SaveOptions::default()).unwrap();

    let checkpoint = Checkpoint::open(&from).unwrap();
    overwrite(&from);
    let error = reshard(&checkpoint, &to, &ReshardOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::FileChanged, "{error}");
    assert_eq!(checkpoint.read("w").unwrap_err().code(), Code::FileChanged);

    // Between two tensors of it.
    let checkpoint = Checkpoint::open(&from).unwrap();
    let mut tensors = checkpoint.save_tensors();
    let changes = SaveTensor::new("a", Dtype::U8, [1], Before(|| overwrite(&from)));
    tensors.insert(0, changes);
    let error = save(tensors, &to, &SaveOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::FileChanged, "{error}");
    assert!(!to.join("model.safetensors").exists());
}

/// A save that replaces files which somebody still reads takes nothing away from him.
#[test]
fn names_that_come_and_go_are_no_change() {
    let scene = Scene::new(Some(Layout::Shards(3)));
    let checkpoint = Checkpoint::open(scene.model()).unwrap();
    NEW.save(
        scene.model(),
        Layout::Single,
        safeshard_core::Durability::Cached,
    )
    .unwrap();
    assert_eq!(Generation::of(&checkpoint).unwrap(), OLD);
    let checkpoint = Checkpoint::open(scene.model()).unwrap();
    fs::hard_link(
        scene.model().join("model.safetensors"),
        scene.root().join("backup"),
    )
    .unwrap();
    assert_eq!(Generation::of(&checkpoint).unwrap(), NEW);
}
