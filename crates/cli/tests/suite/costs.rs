//! What commands take grows with what they look at and no faster: counted in instructions. What the
//! library does for them, its own tests count.

use std::path::Path;
use std::process::Command;
use std::{fs, iter};

use rstest::rstest;
use tempfile::tempdir;

use crate::support::*;

/// Runs a command in a folder with so many shards, tensors or keys, and returns its instructions.
fn instructions(command: &str, count: usize, make: fn(&Path, usize)) -> u64 {
    let folder = tempdir().unwrap();
    make(folder.path(), count);
    let line =
        format!("valgrind --tool=callgrind --callgrind-out-file=count safeshard {command} > out");
    shell(folder.path(), &line).ended(0);
    let count = fs::read_to_string(folder.path().join("count")).unwrap();
    let total = count.lines().find_map(|line| line.strip_prefix("totals: "));
    total.unwrap().parse().unwrap()
}

fn tensors(folder: &Path, count: usize) {
    let names: Vec<_> = (0..count).map(|at| format!("layer.{at}.weight")).collect();
    let tensors: Vec<_> = names.iter().map(|name| floats(name, &[1.0])).collect();
    write(&folder.join("model.safetensors"), &tensors);
}

fn shards(folder: &Path, count: usize) {
    for at in 1..=count {
        let file = format!("model-{at:05}-of-{count:05}.safetensors");
        let metadata = [("format", "pt"), ("of", &*at.to_string())];
        write_with(
            &folder.join(file),
            &[floats(&format!("t{at}"), &[1.0])],
            &metadata,
        );
    }
    shell(folder, "safeshard index . --write").ended(0);
}

fn keys(folder: &Path, count: usize) {
    let keys: Vec<_> = (0..count).map(|at| format!("key-{at}")).collect();
    let metadata: Vec<_> = keys
        .iter()
        .map(String::as_str)
        .zip(iter::repeat("v"))
        .collect();
    write_with(
        &folder.join("model.safetensors"),
        &[floats("a", &[1.0])],
        &metadata,
    );
}

#[rstest]
#[case::table("inspect .", tensors)]
#[case::tree("inspect . --tree", tensors)]
#[case::json("inspect . --json", tensors)]
#[case::of_shards("inspect .", shards)]
#[case::of_metadata("inspect .", keys)]
#[case::metadata("meta .", keys)]
#[case::index("index . --check", shards)]
#[case::patterns("convert . to --include 5 --rename weight=w --no-sync", tensors)]
fn commands_take_as_much_more_as_there_is_more(
    #[case] command: &str,
    #[case] make: fn(&Path, usize),
) {
    let valgrind = Command::new("valgrind").arg("--version").output();
    if !valgrind.is_ok_and(|output| output.status.success()) {
        eprintln!("WARNING: NOT TESTED: instructions: there is no valgrind");
        return;
    }
    let counts = [50, 100, 200].map(|count| instructions(command, count, make));
    println!("{command}: {counts:?}");
    let [once, twice, four_times] = counts;
    let (first, second) = (twice.saturating_sub(once), four_times.saturating_sub(twice));
    // Twice, and a little more where something is sorted.
    assert!(
        second as f64 <= 2.3 * first as f64 + 100_000.0,
        "{counts:?}"
    );
}
