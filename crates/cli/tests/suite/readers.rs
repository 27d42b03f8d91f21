//! Whoever reads while metadata are changed finds the old or the new, and whoever counts finds calls in
//! proportion to the files.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use safeshard_core::{Checkpoint, MetadataChange, OpenOptions, ReadOptions, change_metadata};
use tempfile::tempdir;

use crate::strace;
use crate::support::*;

/// Two values that differ in length and at every place of the file, as the second is escaped there.
fn values() -> [String; 2] {
    ["A".repeat(3600), "\"".repeat(1750) + "BB"]
}

/// Opens a file again and again, and says how often: every value must be one of those that are set.
const PYTHON: &str = r#"
import sys
from safetensors import safe_open
path, opens = sys.argv[1], int(sys.argv[2])
values = {"A" * 3600, '"' * 1750 + "BB"}
for _ in range(opens):
    with safe_open(path, "np") as file:
        assert file.metadata()["k"] in values, file.metadata()
print(opens)
"#;

/// `SAFESHARD_OPENS` says how often the file is opened by Python, as often as by this library.
#[test]
fn no_reader_ever_finds_a_header_that_is_half_changed() {
    let opens = env::var("SAFESHARD_OPENS").unwrap_or_else(|_| "4000".to_owned());
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let [first, second] = values();
    write_with(&path, &[floats("a", &[1.0])], &[("k", &first)]);
    let python = env::var_os("SAFESHARD_PYTHON")
        .expect("SAFESHARD_PYTHON is not set: run the tests with `cargo xtask test`");
    let reader = Command::new(python)
        .args([
            "-c".as_ref(),
            PYTHON.as_ref(),
            path.as_os_str(),
            opens.as_ref(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let done = AtomicBool::new(false);
    let (mut writes, mut ours) = (0, 0);
    thread::scope(|scope| {
        let write = scope.spawn(|| {
            let mut writes = 0;
            while !done.load(Ordering::Relaxed) {
                let value = [&second, &first][writes % 2].clone();
                let change = MetadataChange::Set("k".to_owned(), value);
                change_metadata(
                    &path,
                    &[change],
                    &OpenOptions::default(),
                    &ReadOptions::default(),
                )
                .unwrap();
                writes += 1;
            }
            writes
        });
        let read = scope.spawn(|| {
            let mut opened = 0;
            while !done.load(Ordering::Relaxed) {
                let checkpoint = Checkpoint::open(&path).unwrap();
                let value = checkpoint.metadata_value("k").unwrap();
                assert!(value == first || value == second);
                opened += 1;
            }
            opened
        });
        let output = reader.wait_with_output().unwrap();
        done.store(true, Ordering::Relaxed);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), opens);
        (writes, ours) = (write.join().unwrap(), read.join().unwrap());
    });
    println!(
        "{opens} opens by Python and {ours} by us during {writes} writes: none torn, none failed"
    );
    assert!(writes > 10 && ours > 10);
}

/// How many system calls re-sharding so many shards in place takes.
fn calls(shards: usize) -> usize {
    let folder = tempdir().unwrap();
    let mut map = serde_json::Map::new();
    for number in 1..=shards {
        let file = format!("model-{number:05}-of-{shards:05}.safetensors");
        let name = format!("t{number}");
        write(&folder.path().join(&file), &[floats(&name, &[1.0])]);
        map.insert(name, file.into());
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    let index_path = folder.path().join("model.safetensors.index.json");
    fs::write(index_path, index.to_string()).unwrap();
    let line =
        format!("strace -f -qq -o trace {SAFESHARD} reshard . . --no-sync --quiet --threads 1");
    shell(folder.path(), &line).ended(0);
    let trace = fs::read_to_string(folder.path().join("trace")).unwrap();
    assert_eq!(
        Checkpoint::open(Path::new(folder.path()))
            .unwrap()
            .files()
            .len(),
        shards
    );
    // A call in which another thread makes one has two lines.
    let calls = trace.lines().filter(|line| !line.contains(" resumed>"));
    calls.count()
}

#[test]
fn a_save_of_shards_in_place_makes_calls_in_proportion_to_them() {
    if !strace::works("the number of calls") {
        return;
    }
    let [few, more, many] = [50, 100, 200].map(calls);
    println!("system calls for 50, 100 and 200 shards: {few}, {more}, {many}");
    assert!(
        many - more <= 2 * (more - few) + 100,
        "{few}, {more}, {many}"
    );
    assert!(
        (many - more) / 100 < 120,
        "{few}, {more}, {many}: calls a shard"
    );
}
