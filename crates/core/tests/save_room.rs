//! Saving where there is too little room, or where nobody may write: an error that says where, the old
//! checkpoint as it was, and nothing left behind.

mod support;

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rstest::rstest;
use rustix::io::Errno;
use safeshard_core::{Code, Durability, SaveOptions, ShardSize, save, write_to};
use support::generations::{Generation, Layout, Scene};
use support::tensors::{vector, vectors};
use support::trace;

const OLD: Generation = Generation(1);
const NEW: Generation = Generation(2);

#[rstest]
fn a_disk_that_is_too_small_is_told_and_nothing_stays_of_the_save(
    #[values(Layout::Single, Layout::Shards(3))] layout: Layout,
    #[values(Room::Reserved, Room::NotReserved)] room: Room,
) {
    if let Some(root) = support::child_folder() {
        return does_not_fit(&root, layout);
    }
    let scene = Scene::empty();
    fs::create_dir(scene.model()).unwrap();
    let log = scene.root().join("fallocate.log");
    let strace = match room {
        Room::Reserved => vec![],
        Room::NotReserved if !trace::works("a disk that fills up as it is written to") => return,
        Room::NotReserved => vec![
            "strace",
            "-f",
            "-o",
            log.to_str().unwrap(),
            "-e",
            "inject=fallocate:error=EOPNOTSUPP",
        ],
    };
    child_behind_mount("mount -t tmpfs -o size=512k none", &scene, &strace);
}

/// Whether the file system knows beforehand that a file will not fit.
#[derive(Clone, Copy, Debug)]
enum Room {
    Reserved,
    NotReserved,
}

/// In the child, on half a megabyte.
fn does_not_fit(root: &Path, layout: Layout) {
    let scene = Scene::at(root);
    let model = scene.model();
    scene.save(OLD, layout);
    let before = scene.files();
    let bytes = [1, 2, 3].map(|byte| vec![byte; 300_000]);
    let max_shard_size = match layout {
        Layout::Single => ShardSize::UNLIMITED,
        Layout::Shards(_) => "300000".parse().unwrap(),
    };
    for threads in [1, 3] {
        let options = SaveOptions {
            max_shard_size,
            threads: Some(threads.try_into().unwrap()),
            ..SaveOptions::default()
        };
        let tensors = vectors(&bytes.each_ref().map(Vec::as_slice));
        let error = save(tensors, &model, &options).unwrap_err();
        let errno = error.io_error().unwrap().raw_os_error();
        assert_eq!(errno, Some(Errno::NOSPC.raw_os_error()), "{error}");
        assert!(error.path().unwrap().starts_with(&model), "{error}");
        assert!(scene.files() == before);
        assert_eq!(scene.generation(), Some(OLD));
    }
    scene.save(NEW, layout);
}

#[test]
fn a_file_system_that_is_mounted_read_only_is_told() {
    if let Some(root) = support::child_folder() {
        return is_refused(&root);
    }
    let scene = Scene::new(Some(Layout::Shards(2)));
    let bind = "bind() { mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"; }; bind";
    child_behind_mount(bind, &scene, &[]);
    scene.holds_only_whole(OLD, Layout::Shards(2));
}

#[test]
fn a_folder_that_may_not_be_written_is_told() {
    if let Some(root) = support::child_folder() {
        return is_refused(&root);
    }
    let scene = Scene::new(Some(Layout::Shards(2)));
    let mode = |mode| fs::set_permissions(scene.model(), Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let probe = scene.model().join("probe");
    let may_not_write = |launcher: &[&str]| {
        let words = [launcher, &["touch", probe.to_str().unwrap()]].concat();
        let touched = Command::new(words[0]).args(&words[1..]).output();
        let _not_there = fs::remove_file(&probe);
        touched.is_ok_and(|output| !output.status.success())
    };
    // Modes bind root only once it has given up its privileges.
    let unprivileged = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"];
    match [&[], &unprivileged[..]]
        .into_iter()
        .find(|launcher| may_not_write(launcher))
    {
        Some(launcher) => support::child(launcher, scene.root()),
        None => {
            eprintln!("WARNING: NOT TESTED: folders that may not be written: none is safe here");
        }
    }
    mode(0o755);
    scene.holds_only_whole(OLD, Layout::Shards(2));
}

/// In the child, which may not write to the folder.
fn is_refused(root: &Path) {
    let scene = Scene::at(root);
    for (path, layout) in [
        (scene.model(), Layout::Single),
        (scene.model(), Layout::Shards(3)),
        (scene.model().join("other.safetensors"), Layout::Single),
        (scene.model().join("new"), Layout::Single),
    ] {
        let error = NEW.save(&path, layout, Durability::Durable).unwrap_err();
        assert_eq!(error.code(), Code::Io, "{error}");
        assert!(error.path().unwrap().starts_with(scene.model()), "{error}");
        let kind = error.io_error().unwrap().kind();
        let kinds = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem];
        assert!(kinds.contains(&kind), "{error}");
    }
    scene.holds_only_whole(OLD, Layout::Shards(2));
}

/// Runs the test that calls this as a child that sees the scene's folder after this command, which
/// is told the folder, in a mount namespace of its own.
#[track_caller]
fn child_behind_mount(mount: &str, scene: &Scene, launcher: &[&str]) {
    let script = format!("{mount} \"$1\" && shift && exec \"$@\"");
    let model = scene.model();
    let model = model.to_str().unwrap();
    let mut words = vec![
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
        "sh",
        model,
    ];
    let probe = Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("WARNING: NOT TESTED: `{mount}`: this machine lets nobody mount");
        return;
    }
    words.extend(launcher);
    support::child(&words, scene.root());
}

#[rstest]
fn a_writer_that_is_full_is_told(#[values(1, 100, 10_000_000)] len: usize) {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        eprintln!("WARNING: NOT TESTED: there is no /dev/full");
        return;
    };
    let bytes = vec![7; len];
    let tensors = vec![vector("a", &bytes)];
    let error = write_to(tensors, full, &SaveOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::Io);
    let errno = error.io_error().unwrap().raw_os_error();
    assert_eq!(errno, Some(Errno::NOSPC.raw_os_error()));
}

/// Takes a few bytes at a time and is interrupted in between.
struct Stingy {
    taken: Vec<u8>,
    calls: usize,
    room: usize,
}

impl Write for Stingy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(2) {
            return Err(ErrorKind::Interrupted.into());
        }
        let len = bytes
            .len()
            .min(1 + self.calls % 7)
            .min(self.room - self.taken.len());
        self.taken.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_takes_little_gets_everything_and_one_that_takes_nothing_is_told() {
    let bytes: Vec<u8> = (0..=255).collect();
    let tensors = || vec![vector("a", &bytes)];
    let mut whole = Vec::new();
    write_to(tensors(), &mut whole, &SaveOptions::default()).unwrap();
    for room in [whole.len(), whole.len() - 1, 0] {
        let mut stingy = Stingy {
            taken: Vec::new(),
            calls: 0,
            room,
        };
        let written = write_to(tensors(), &mut stingy, &SaveOptions::default());
        assert_eq!(stingy.taken, whole[..room]);
        match written {
            Ok(()) => assert_eq!(room, whole.len()),
            Err(error) => {
                assert!(room < whole.len());
                assert_eq!(error.io_error().unwrap().kind(), ErrorKind::WriteZero);
            }
        }
    }
}
