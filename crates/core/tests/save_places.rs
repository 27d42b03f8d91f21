//! Where a save goes: links, pipes, folders and modes at the destination, and other saves there.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rstest::rstest;
use rustix::fs::{CWD, FileType, mknodat};
use safeshard_core::{Cancel, Checkpoint, Code, Kind, SaveOptions, SaveReport, SaveTensor, save};
use support::tensors::{SINGLE, cached, contents, made, mode, names, shards_of, vector, vectors};
use support::{Folder, INDEX, refused};

// ---- what is there

#[test]
fn a_link_at_the_destination_is_replaced_and_not_written_through() {
    let folder = Folder::new();
    let blob = folder.join("blob");
    fs::write(&blob, "precious").unwrap();
    fs::create_dir(folder.join("model")).unwrap();
    for name in ["x.safetensors", "model/model.safetensors"] {
        symlink(&blob, folder.join(name)).unwrap();
    }
    save(vectors(&[&[1]]), folder.join("x.safetensors"), &cached()).unwrap();
    save(vectors(&[&[1]]), folder.join("model"), &cached()).unwrap();
    for name in ["x.safetensors", "model/model.safetensors"] {
        let path = folder.join(name);
        assert!(!path.is_symlink());
        assert_eq!(Checkpoint::open(&path).unwrap().read("a").unwrap(), [1]);
    }
    assert_eq!(fs::read(&blob).unwrap(), b"precious");
}

#[test]
fn what_is_no_file_is_refused_before_anything_is_written() {
    let folder = Folder::new();
    let fifo = folder.join("fifo.safetensors");
    mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
    let subfolder = folder.join("folder.safetensors");
    fs::create_dir(&subfolder).unwrap();
    symlink("folder.safetensors", folder.join("link.safetensors")).unwrap();
    let untouched = || made("w", |_| panic!("asked for its data"));
    for name in ["fifo.safetensors", "folder.safetensors", "link.safetensors"] {
        let path = folder.join(name);
        let error = refused(
            save(vec![untouched()], &path, &cached()),
            Code::NotRegularFile,
        );
        assert_eq!(error.path(), Some(&*path));
    }
    for name in [SINGLE, INDEX] {
        let folder = Folder::new();
        mknodat(CWD, folder.join(name), FileType::Fifo, 0o600.into(), 0).unwrap();
        let tensors = vec![untouched(), vector("z", &[1])];
        refused(
            save(tensors, folder.path(), &shards_of(1)),
            Code::NotRegularFile,
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn the_folder_of_a_file_must_be_there_and_any_other_is_made() {
    let folder = Folder::new();
    let path = folder.join("absent/x.safetensors");
    let error = refused(save(vectors(&[&[1]]), &path, &cached()), Code::NotFound);
    assert_eq!(error.path(), Some(&*path));
    save(vectors(&[&[1]]), folder.join("deep/down"), &cached()).unwrap();
    assert_eq!(names(&folder.join("deep/down")), [SINGLE]);
    let file = folder.join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(
        save(vectors(&[&[1]]), &file, &cached()).unwrap_err().kind(),
        Kind::Io
    );
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[test]
fn a_bare_name_is_a_file_in_the_working_folder() {
    if support::child_folder().is_some() {
        save(vectors(&[&[1]]), "x.safetensors", &SaveOptions::default()).unwrap();
        save(vectors(&[&[2]]), "y", &SaveOptions::default()).unwrap();
        let error = save(vectors(&[&[3]]), "../x.txt/y.safetensors", &cached()).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        return;
    }
    let folder = Folder::new();
    support::child(
        &["env", "-C", folder.path().to_str().unwrap()],
        folder.path(),
    );
    assert_eq!(names(folder.path()), ["x.safetensors", "y"]);
    assert_eq!(names(&folder.join("y")), [SINGLE]);
}

#[rstest]
#[case::usual("022", 0o644)]
#[case::private("077", 0o600)]
#[case::group("027", 0o640)]
#[case::none("000", 0o666)]
fn the_mode_of_a_new_file_is_what_the_umask_leaves(#[case] umask: &str, #[case] expected: u32) {
    if let Some(folder) = support::child_folder() {
        save(vectors(&[&[1], &[2]]), &folder, &shards_of(1)).unwrap();
        save(vectors(&[&[1]]), folder.join("x.safetensors"), &cached()).unwrap();
        return;
    }
    let folder = Folder::new();
    let script = format!("umask {umask}; exec \"$@\"");
    support::child(&["sh", "-c", &script, "sh"], folder.path());
    assert_eq!(names(folder.path()).len(), 4);
    for name in names(folder.path()) {
        assert_eq!(mode(folder.join(&name)), expected, "{name}");
    }
}

#[test]
fn what_was_private_stays_private() {
    let folder = Folder::new();
    let path = folder.join("x.safetensors");
    save(vectors(&[&[1]]), &path, &cached()).unwrap();
    save(vectors(&[&[1]]), folder.join("model"), &cached()).unwrap();
    for mode_before in [0o600, 0o640, 0o644, 0o444] {
        for file in [path.clone(), folder.join("model").join(SINGLE)] {
            fs::set_permissions(file, Permissions::from_mode(mode_before)).unwrap();
        }
        save(vectors(&[&[1]]), &path, &cached()).unwrap();
        save(vectors(&[&[1]]), folder.join("model"), &cached()).unwrap();
        assert_eq!(mode(&path), mode_before);
        assert_eq!(mode(folder.join("model").join(SINGLE)), mode_before);
    }
    let private = Permissions::from_mode(0o600);
    fs::set_permissions(folder.join("model").join(SINGLE), private).unwrap();
    save(vectors(&[&[1], &[2]]), folder.join("model"), &shards_of(1)).unwrap();
    for name in names(&folder.join("model"))
        .iter()
        .filter(|name| *name != INDEX)
    {
        assert_eq!(mode(folder.join("model").join(name)), 0o600, "{name}");
    }
}

#[test]
fn more_shards_than_a_process_may_open_files_are_saved() {
    const SHARDS: usize = 100;
    if let Some(folder) = support::child_folder() {
        let bytes = [7; SHARDS];
        let tensors = bytes.chunks(1).enumerate();
        let tensors = tensors.map(|(at, bytes)| vector(&format!("t{at}"), bytes));
        save(tensors.collect(), folder, &shards_of(1)).unwrap();
        return;
    }
    let folder = Folder::new();
    support::child(
        &["sh", "-c", "ulimit -n 40; exec \"$@\"", "sh"],
        folder.path(),
    );
    assert_eq!(folder.open().unwrap().files().len(), SHARDS);
}

#[test]
fn nothing_but_the_file_is_touched() {
    let folder = Folder::new();
    save(vectors(&[&[1], &[2]]), folder.path(), &shards_of(1)).unwrap();
    let before = contents(folder.path());
    save(vectors(&[&[3]]), folder.join(SINGLE), &cached()).unwrap();
    let mut after = contents(folder.path());
    assert!(after.remove(SINGLE).is_some());
    assert_eq!(after, before);
}
// ---- several saves at once

/// Data of four bytes that first say where they are asked for, then wait for an answer.
fn waiting(asked: Sender<()>, answer: Receiver<()>) -> SaveTensor<'static> {
    let ends = Mutex::new((asked, answer));
    made("w", move |write| {
        let ends = ends.lock().unwrap();
        ends.0.send(()).unwrap();
        let answer = ends.1.recv_timeout(Duration::from_secs(60));
        answer.expect("the other save to be done meanwhile");
        write(&[1, 2, 3, 4])
    })
}

#[test]
fn files_of_one_folder_do_not_wait_for_each_other() {
    let folder = Folder::new();
    let (asked, is_asked) = channel();
    let (answer, answered) = channel();
    thread::scope(|scope| {
        let path = folder.join("slow.safetensors");
        let slow = scope.spawn(move || save(vec![waiting(asked, answered)], path, &cached()));
        is_asked.recv().unwrap();
        save(vectors(&[&[1]]), folder.join("x.safetensors"), &cached()).unwrap();
        // Nor does a checkpoint, and it leaves the stage alone.
        save(vectors(&[&[1]]), folder.path(), &cached()).unwrap();
        answer.send(()).unwrap();
        slow.join().unwrap().unwrap();
    });
    assert_eq!(
        names(folder.path()),
        [SINGLE, "slow.safetensors", "x.safetensors"]
    );
}

#[test]
fn checkpoints_of_one_folder_wait_for_each_other() {
    let folder = Folder::new();
    let path = folder.path();
    let (asked, is_asked) = channel();
    let (answer, answered) = channel();
    thread::scope(|scope| {
        let slow = scope.spawn(move || save(vec![waiting(asked, answered)], path, &cached()));
        is_asked.recv().unwrap();
        let cancel = Cancel::default();
        let options = SaveOptions {
            cancel: Some(cancel.clone()),
            ..cached()
        };
        let second = scope.spawn(move || save(vectors(&[&[1]]), path, &options));
        thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        cancel.cancel();
        refused::<SaveReport>(second.join().unwrap(), Code::Cancelled);
        answer.send(()).unwrap();
        slow.join().unwrap().unwrap();
    });
    assert_eq!(folder.open().unwrap().read("w").unwrap(), [1, 2, 3, 4]);
}

#[rstest]
fn what_a_killed_save_has_staged_goes_with_the_next(#[values(SINGLE, "")] path: &str) {
    let folder = Folder::new();
    folder.write(".model.safetensors.0123456789abcdef.partial", "half");
    save(vectors(&[&[1]]), folder.join(path), &cached()).unwrap();
    assert_eq!(names(folder.path()), [SINGLE]);
}
