//! Tensors, files and rights that nobody asked to give up, and locks that nobody can hold against a save.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rstest::rstest;
use tempfile::{TempDir, tempdir};

use crate::support::*;

const INDEX: &str = "model.safetensors.index.json";

/// Two shards, `a` and `b` in the first, `c` in the second.
fn shards() -> TempDir {
    let folder = tempdir().unwrap();
    let at = |number| {
        folder
            .path()
            .join(format!("model-0000{number}-of-00002.safetensors"))
    };
    write(&at(1), &[floats("a", &[1.0]), floats("b", &[2.0])]);
    write(&at(2), &[floats("c", &[3.0])]);
    let map = r#"{"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors"}"#;
    let index = format!(r#"{{"metadata": {{"total_size": 12}}, "weight_map": {map}}}"#);
    fs::write(folder.path().join(INDEX), index).unwrap();
    folder
}

fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let names = names(folder).into_iter();
    names
        .map(|name| (name.clone(), fs::read(folder.join(name)).unwrap()))
        .collect()
}

#[rstest]
#[case::one_tensor_of_a_shard("convert . model-00001-of-00002.safetensors --include ^a$", "b")]
#[case::another_shards("convert . model-00002-of-00002.safetensors --include ^a$", "c")]
#[case::of_another_checkpoint("reshard other.safetensors model-00001-of-00002.safetensors", "a, b")]
fn a_shard_that_an_index_counts_on_is_not_replaced_by_less(#[case] args: &str, #[case] lost: &str) {
    let folder = shards();
    write(
        &folder.path().join("other.safetensors"),
        &[floats("z", &[9.0])],
    );
    let before = contents(folder.path());
    let run = shell(folder.path(), &format!("safeshard {args}")).ended(2);
    let found =
        format!(": {lost} that `{INDEX}` places there; move them first, or pass `--accept-loss`");
    assert!(run.stderr.contains(&found), "{}", run.stderr);
    assert_eq!(contents(folder.path()), before);
    shell(folder.path(), &format!("safeshard {args} --accept-loss")).ended(0);
    assert_ne!(contents(folder.path()), before);
}

#[test]
fn a_shard_may_be_replaced_by_one_that_has_all_that_is_placed_there() {
    let folder = shards();
    let shard = "model-00001-of-00002.safetensors";
    shell(
        folder.path(),
        &format!("safeshard convert {shard} {shard} --dtype F16"),
    )
    .ended(0);
    shell(folder.path(), "safeshard verify .").ended(0);
}

/// Another index names the single file, and more in it than the new one has.
#[test]
fn the_single_file_of_another_checkpoint_is_not_replaced_by_less() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(
        &at("model.safetensors"),
        &[floats("a", &[1.0]), floats("b", &[2.0])],
    );
    let new = tempdir().unwrap();
    write(
        &new.path().join("model.safetensors"),
        &[floats("a", &[5.0])],
    );
    let new = new.path().display();
    let index =
        r#"{"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}"#;
    fs::write(at("model.safetensors.index.fp16.json"), index).unwrap();
    let before = contents(folder.path());
    for to in [".", "model.safetensors"] {
        let run = shell(folder.path(), &format!("safeshard reshard {new} {to}")).ended(2);
        assert!(
            run.stderr.contains("error[would-be-lost]"),
            "{}",
            run.stderr
        );
        assert_eq!(contents(folder.path()), before);
    }
}

/// An index counts on files in folders below it, too.
#[test]
fn what_an_index_above_counts_on_stays() {
    let folder = tempdir().unwrap();
    let below = folder.path().join("unet");
    fs::create_dir(&below).unwrap();
    write(
        &below.join("model.safetensors"),
        &[floats("a", &[1.0]), floats("b", &[2.0])],
    );
    let index = r#"{"metadata": {}, "weight_map": {"a": "unet/model.safetensors", "b": "unet/model.safetensors"}}"#;
    fs::write(folder.path().join(INDEX), index).unwrap();
    let new = tempdir().unwrap();
    write(
        &new.path().join("model.safetensors"),
        &[floats("a", &[5.0])],
    );
    let new = new.path().display();
    let before = contents(&below);
    for to in ["unet", "unet/model.safetensors"] {
        let run = shell(folder.path(), &format!("safeshard reshard {new} {to}")).ended(2);
        assert!(
            run.stderr.contains("error[would-be-lost]"),
            "{}",
            run.stderr
        );
        assert_eq!(contents(&below), before);
    }
}

#[rstest]
#[case::a_model("model-00001-of-00002.safetensors")]
#[case::an_index(INDEX)]
#[case::any_text("README.md")]
fn a_manifest_replaces_manifests_only(#[case] output: &str) {
    let folder = shards();
    fs::write(folder.path().join("README.md"), "# A model\n\nof mine\n").unwrap();
    let before = contents(folder.path());
    let run = shell(
        folder.path(),
        &format!("safeshard digest . --output {output}"),
    )
    .ended(2);
    assert!(
        run.stderr.contains("error[not-a-manifest]"),
        "{}",
        run.stderr
    );
    assert_eq!(contents(folder.path()), before);
    for _ in 0..2 {
        shell(
            folder.path(),
            "safeshard digest . --output SUMS && sha256sum -c SUMS",
        )
        .ended(0);
    }
}

#[test]
fn what_dead_writers_left_is_removed_whatever_it_was_to_be() {
    let folder = shards();
    let before = names(folder.path());
    let stages = [
        ".SUMS.safetensors.0123456789abcdef.partial",
        ".model.safetensors.index.json.0123456789abcdef.partial",
        ".config.json.safetensors.0123456789abcdef.partial",
        ".safeshard.lock",
    ];
    let commands = [
        "meta . set a=b",
        "index . --write",
        "digest . --output SUMS",
    ];
    for command in commands {
        for stage in stages {
            fs::write(folder.path().join(stage), "").unwrap();
        }
        shell(
            folder.path(),
            &format!("safeshard {command}; rm -f SUMS; safeshard meta . unset a"),
        );
        assert_eq!(names(folder.path()), before, "{command}");
    }
}

/// The kernel lets whoever may read a folder lock it.
#[test]
fn whoever_can_only_read_the_folder_cannot_stop_a_save() {
    let folder = shards();
    let lock = File::open(folder.path()).unwrap();
    lock.lock().unwrap();
    shell(folder.path(), "safeshard meta . set a=b").ended(0);
    shell(folder.path(), "safeshard reshard . . --single").ended(0);
}

#[rstest]
#[case("meta . set a=b")]
#[case("index . --write")]
#[case("digest . --output SUMS")]
#[case("reshard . . --single")]
#[case("convert . model-00001-of-00002.safetensors --accept-loss")]
fn waiting_for_another_save_is_told_and_ends_with_the_first_signal(#[case] args: &str) {
    let folder = shards();
    let before = contents(folder.path());
    let path = folder.path().join(".safeshard.lock");
    let lock = File::create(&path).unwrap();
    lock.lock().unwrap();
    let mut child = Command::new(SAFESHARD)
        .args(args.split(' '))
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(child.try_wait().unwrap(), None, "it did not wait");
    shell(folder.path(), &format!("kill -INT {}", child.id())).ended(0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(
        said.starts_with("waiting for another save into "),
        "{said:?}"
    );
    fs::remove_file(path).unwrap();
    assert_eq!(contents(folder.path()), before);
}

/// Whether a user of these groups may read a file.
fn may_read(path: &Path, user: u32, group: u32) -> bool {
    let mut cat = Command::new("cat");
    cat.arg(path)
        .uid(user)
        .gid(group)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    cat.status().unwrap().success()
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !is_root {
        eprintln!("WARNING: NOT TESTED: only root can be other users");
    }
    is_root
}

/// A member of `users` saves over a file that only the group `secret` may read.
#[rstest]
fn nobody_can_read_the_new_file_who_could_not_read_the_old_one(
    #[values(true, false)] is_member: bool,
    #[values(
        "meta model.safetensors set k=v",
        "reshard . .",
        "convert . . --dtype F16"
    )]
    args: &str,
) {
    const ALICE: u32 = 1234;
    const SECRET: u32 = 5678;
    const USERS: u32 = 100;
    if !is_root() {
        return;
    }
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_with(&path, &[floats("a", &[1.0])], &[("k", "old")]);
    let line = "chmod 777 . && chown 1234:5678 model.safetensors && chmod 640 model.safetensors";
    shell(folder.path(), line).ended(0);
    let binary = folder.path().join("safeshard");
    fs::copy(SAFESHARD, &binary).unwrap();
    assert!(!may_read(&path, 9, USERS) && may_read(&path, 9, SECRET));
    // Whoever is no member of the group cannot keep it.
    let groups = if is_member { "5678" } else { "100" };
    let line =
        format!("setpriv --reuid {ALICE} --regid {USERS} --groups {groups} ./safeshard {args}");
    shell(folder.path(), &line).ended(0);
    assert!(!may_read(&path, 9, USERS), "its group may read it now");
    assert_eq!(may_read(&path, 9, SECRET), is_member);
    assert!(may_read(&path, ALICE, USERS));
}

#[test]
fn a_file_that_others_may_not_lock_is_no_way_round() {
    use std::os::unix::fs::PermissionsExt;
    if !is_root() {
        return;
    }
    let folder = shards();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join(".safeshard.lock");
    let mut child = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "inject=fsync:delay_enter=3000000:when=1",
        ])
        .arg(SAFESHARD)
        .args(["meta", ".", "set", "a=b"])
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    while !path.exists() {
        assert_eq!(child.try_wait().unwrap(), None);
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(50));
    assert!(
        !may_read(&path, 9, 9),
        "a reader of the folder may open the lock"
    );
    assert!(child.wait().unwrap().success());
}
