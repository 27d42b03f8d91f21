//! What comes after a save that was killed: other commands, and what a person does in between. Each of
//! these once lost a checkpoint, mixed two of them, or removed somebody's file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rstest::rstest;
use tempfile::{TempDir, tempdir};

use crate::strace;
use crate::support::*;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const OLD: f32 = 1.0;
const NEW: f32 = 2.0;

/// What was there before the save.
#[derive(Clone, Copy, Debug)]
enum Old {
    Single,
    Shards,
}

/// Three tensors, all of this value: one file, or a shard for each with an index.
fn checkpoint(folder: &Path, kind: Old, value: f32) {
    fs::create_dir_all(folder).unwrap();
    let tensors = ["t0", "t1", "t2"].map(|name| floats(name, &[value]));
    match kind {
        Old::Single => write(&folder.join(SINGLE), &tensors),
        Old::Shards => {
            let shard = |number| format!("model-{number:05}-of-00003.safetensors");
            let mut map = serde_json::Map::new();
            for (number, tensor) in (1..).zip(&tensors) {
                write(&folder.join(shard(number)), std::slice::from_ref(tensor));
                map.insert(tensor.0.to_owned(), shard(number).into());
            }
            let index = serde_json::json!({"metadata": {}, "weight_map": map});
            fs::write(folder.join(INDEX), index.to_string()).unwrap();
        }
    }
}

/// A folder `m` with an old checkpoint, over which a save of another one was killed at a call.
fn killed(old: Old, args: &str, at: &str) -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let (m, new) = (folder.path().join("m"), folder.path().join("new"));
    checkpoint(&m, old, OLD);
    checkpoint(&new, Old::Shards, NEW);
    fs::create_dir(folder.path().join("x")).unwrap();
    write(
        &folder.path().join("x/adapter_model.safetensors"),
        &[floats("q", &[3.0])],
    );
    let args = format!("reshard new m --threads 1 {args}");
    assert!(
        !runs_until(folder.path(), &args, at),
        "{at} did not kill it"
    );
    (folder, m)
}

/// Runs a command that is killed on its way into the call of this name and number; whether it came to its
/// end.
fn runs_until(folder: &Path, args: &str, at: &str) -> bool {
    let (call, number) = at.split_once(' ').unwrap();
    let inject = format!("inject={call}:signal=KILL:when={number}");
    let trace = format!("trace={call}");
    let words = ["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let command = Command::new("strace")
        .args(words)
        .arg(SAFESHARD)
        .args(args.split_whitespace())
        .current_dir(folder)
        .output();
    command.unwrap().status.success()
}

/// What is in a file: the value of all its tensors, and their names.
fn in_file(path: &Path) -> Vec<(String, f32)> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, tensor)| (name, f32::from_le_bytes(tensor.data().try_into().unwrap())))
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

fn whole(value: f32) -> Vec<(String, f32)> {
    ["t0", "t1", "t2"]
        .map(|name| (name.to_owned(), value))
        .into()
}

/// As transformers reads a folder: the single file first.
fn by_transformers(folder: &Path) -> Vec<(String, f32)> {
    match folder.join(SINGLE).exists() {
        true => in_file(&folder.join(SINGLE)),
        false => by_index(folder),
    }
}

fn by_index(folder: &Path) -> Vec<(String, f32)> {
    let index = fs::read_to_string(folder.join(INDEX)).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let tensor = |(name, file): (&String, &serde_json::Value)| {
        let tensors = in_file(&folder.join(file.as_str().unwrap()));
        tensors.into_iter().find(|(of, _)| of == name).unwrap()
    };
    map.iter().map(tensor).collect()
}

/// As huggingface_hub does: the index first.
fn by_hub(folder: &Path) -> Vec<(String, f32)> {
    match folder.join(INDEX).exists() {
        true => by_index(folder),
        false => by_transformers(folder),
    }
}

fn ours(folder: &Path) -> Vec<(String, f32)> {
    let checkpoint = safeshard_core::Checkpoint::open(folder).unwrap();
    let read = |name: &str| {
        let bytes = checkpoint.read(name).unwrap();
        (
            name.to_owned(),
            f32::from_le_bytes(bytes.try_into().unwrap()),
        )
    };
    checkpoint.names().into_iter().map(read).collect()
}

#[rstest]
#[case::committed(Old::Shards, "--single", "rename 1")]
#[case::being_tidied_up(Old::Shards, "--single", "unlink 1")]
#[case::committed_to_shards(Old::Single, "", "unlink 1")]
#[case::before_the_commit(Old::Single, "", "rename 1")]
fn an_edit_first_finishes_or_undoes_the_save(
    #[case] old: Old,
    #[case] args: &str,
    #[case] at: &str,
    #[values(
        "meta m set format=zz",
        "meta m set format=a-rather-longer-value-than-there-was-before",
        "meta m unset format",
        "digest m --output m/SUMS",
        "reshard x/adapter_model.safetensors m/adapter_model.safetensors"
    )]
    edit: &str,
) {
    if !strace::works("what follows a killed save") {
        return;
    }
    let (folder, m) = killed(old, args, at);
    let found = ours(&m);
    assert!(found == whole(OLD) || found == whole(NEW));
    shell(folder.path(), &format!("safeshard {edit}")).ended(0);
    assert_eq!(ours(&m), found);
    assert_eq!(by_transformers(&m), found);
    // Whose rule looks at all files where there is no index.
    let _another = fs::remove_file(m.join("adapter_model.safetensors"));
    assert_eq!(by_hub(&m), found);
    let hidden = names(&m).into_iter().find(|name| name.starts_with('.'));
    assert_eq!(hidden, None);
}

#[test]
fn the_old_file_stays_where_the_new_shards_were_removed() {
    if !strace::works("what follows a killed save") {
        return;
    }
    let (folder, m) = killed(Old::Single, "", "unlink 1");
    for number in 1..=3 {
        fs::remove_file(m.join(format!("model-{number:05}-of-00003.safetensors"))).unwrap();
    }
    assert_eq!(ours(&m), whole(OLD), "what can be opened counts");
    let save = "reshard x/adapter_model.safetensors m/adapter_model.safetensors";
    shell(folder.path(), &format!("safeshard {save}")).ended(0);
    assert_eq!(in_file(&m.join(SINGLE)), whole(OLD));
    assert_eq!(ours(&m), whole(OLD));
}

#[rstest]
fn an_index_that_somebody_wrote_since_stays(#[values("rename 1", "unlink 1")] at: &str) {
    if !strace::works("what follows a killed save") {
        return;
    }
    let (folder, m) = killed(Old::Shards, "--single", at);
    let map =
        r#"{"t0": "model.safetensors", "t1": "model.safetensors", "t2": "model.safetensors"}"#;
    let index = format!(r#"{{"metadata": {{"notes": "hours of work"}}, "weight_map": {map}}}"#);
    // As an editor writes it: another file.
    fs::remove_file(m.join(INDEX)).unwrap();
    fs::write(m.join(INDEX), &index).unwrap();
    let save = "reshard x/adapter_model.safetensors m/adapter_model.safetensors";
    shell(folder.path(), &format!("safeshard {save}")).ended(0);
    assert_eq!(fs::read_to_string(m.join(INDEX)).unwrap(), index);
    assert_eq!(ours(&m), whole(NEW));
}

#[test]
fn old_shards_that_an_index_of_somebodys_own_counts_on_stay() {
    if !strace::works("what follows a killed save") {
        return;
    }
    let (folder, m) = killed(Old::Shards, "--single", "unlink 1");
    let shards = ["t0", "t1", "t2"].into_iter().zip(1..);
    let map: serde_json::Map<String, serde_json::Value> = shards
        .map(|(name, number)| {
            (
                name.into(),
                format!("model-{number:05}-of-00003.safetensors").into(),
            )
        })
        .collect();
    let index = serde_json::json!({"metadata": {"mine": true}, "weight_map": map}).to_string();
    fs::remove_file(m.join(INDEX)).unwrap();
    fs::write(m.join(INDEX), &index).unwrap();
    let save = "reshard x/adapter_model.safetensors m/adapter_model.safetensors";
    shell(folder.path(), &format!("safeshard {save}")).ended(0);
    assert_eq!(fs::read_to_string(m.join(INDEX)).unwrap(), index);
    assert_eq!(by_hub(&m), whole(OLD));
    assert_eq!(by_transformers(&m), whole(NEW));
}

#[rstest]
#[case::to_shards(Old::Single, "", "unlink 1")]
#[case::to_a_single_file(Old::Shards, "--single", "rename 1")]
fn nothing_is_removed_from_a_copy_of_the_folder(
    #[case] old: Old,
    #[case] args: &str,
    #[case] at: &str,
    #[values("cp -r m copy", "cp -a m copy", "touch m/* && mv m copy")] copy: &str,
) {
    if !strace::works("what follows a killed save") {
        return;
    }
    let (folder, _) = killed(old, args, at);
    let copied = folder.path().join("copy");
    shell(folder.path(), copy).ended(0);
    let before: Vec<_> = names(&copied)
        .into_iter()
        .filter(|name| !name.starts_with('.'))
        .collect();
    let (transformers, hub) = (by_transformers(&copied), by_hub(&copied));
    let save = "reshard x/adapter_model.safetensors copy/adapter_model.safetensors";
    shell(folder.path(), &format!("safeshard {save}")).ended(0);
    for name in before {
        assert!(copied.join(&name).exists(), "{name} is gone");
    }
    assert_eq!(by_transformers(&copied), transformers);
    assert_eq!(by_hub(&copied), hub);
    for found in [transformers, hub] {
        assert!(found == whole(OLD) || found == whole(NEW));
    }
    // Which of the two counts, nobody can tell; whoever reads has to say.
    shell(folder.path(), "safeshard inspect copy").ended(2);
}

/// Side files that the old folder lacks, killed at every place.
#[test]
fn what_goes_along_is_never_beside_old_weights_and_comes_with_the_new() {
    if !strace::works("what follows a killed save") {
        return;
    }
    let along = "generation_config.json";
    let (mut without, mut with) = (0, 0);
    for call in ["rename", "unlink", "fsync", "renameat2"] {
        for number in 1.. {
            let folder = tempdir().unwrap();
            let (m, new) = (folder.path().join("m"), folder.path().join("new"));
            checkpoint(&m, Old::Single, OLD);
            checkpoint(&new, Old::Shards, NEW);
            fs::write(new.join(along), "{}").unwrap();
            fs::write(m.join("config.json"), "mine").unwrap();
            let args = "reshard new m --with-files --threads 1";
            let is_done = runs_until(folder.path(), args, &format!("{call} {number}"));
            let found = ours(&m);
            if found == whole(OLD) {
                assert!(!m.join(along).exists(), "{call} {number}");
            }
            // The next save of anything in the folder finishes or undoes all of it.
            write(&folder.path().join("q.safetensors"), &[floats("q", &[3.0])]);
            let save = "safeshard reshard q.safetensors m/q.safetensors";
            shell(folder.path(), save).ended(0);
            assert_eq!(ours(&m), found);
            assert_eq!(
                m.join(along).exists(),
                found == whole(NEW),
                "{call} {number}"
            );
            assert_eq!(fs::read_to_string(m.join("config.json")).unwrap(), "mine");
            match found == whole(NEW) {
                true => with += 1,
                false => without += 1,
            }
            if is_done {
                break;
            }
        }
    }
    assert!(with > 5 && without > 5, "{with} {without}");
}

#[test]
fn links_that_lead_elsewhere_and_what_is_no_file_do_not_go_along() {
    let folder = tempdir().unwrap();
    let new = folder.path().join("new");
    checkpoint(&new, Old::Shards, NEW);
    fs::write(folder.path().join("secret"), "secret").unwrap();
    symlink("../secret", new.join("vocab.txt")).unwrap();
    let run = shell(folder.path(), "safeshard reshard new to --with-files").ended(2);
    assert!(run.stderr.contains("vocab.txt"), "{}", run.stderr);
    assert!(!folder.path().join("to").exists(), "nothing was written");
    fs::remove_file(new.join("vocab.txt")).unwrap();
    shell(folder.path(), "mkfifo new/pipe").ended(0);
    let run = shell(folder.path(), "safeshard reshard new to --with-files").ended(2);
    assert!(run.stderr.contains("pipe"), "{}", run.stderr);
    fs::remove_file(new.join("pipe")).unwrap();
    // A link within the folder is one of its files.
    fs::write(new.join("merges.txt"), "merges").unwrap();
    symlink("merges.txt", new.join("vocab.txt")).unwrap();
    shell(folder.path(), "chmod 600 new/merges.txt new/*.safetensors").ended(0);
    shell(
        folder.path(),
        "umask 022; safeshard reshard new to --with-files",
    )
    .ended(0);
    let modes = shell(folder.path(), "stat -c '%a %n' to/* | grep -v index")
        .ended(0)
        .stdout;
    assert!(
        modes.lines().all(|line| line.starts_with("600 ")),
        "{modes}"
    );
    assert_eq!(modes.lines().count(), 5, "{modes}");
}
