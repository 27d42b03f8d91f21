//! What the tests of `reshard` and `convert` have in common.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safeshard_core::Checkpoint;
use serde_json::{Value, json};

use crate::support::*;

/// The names of two shards.
pub(crate) fn shards() -> (&'static str, &'static str) {
    (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    )
}

/// Two checkpoints must hold the same tensors.
#[track_caller]
pub(crate) fn same_tensors(one: &Path, other: &Path) {
    let [one, other] = [one, other].map(|path| Checkpoint::open(path).unwrap());
    assert_eq!(one.names(), other.names());
    for tensor in one.tensors() {
        let there = other.info(tensor.name).unwrap();
        assert_eq!((there.dtype, there.shape), (tensor.dtype, tensor.shape));
        let is_same = other.read(tensor.name).unwrap() == one.read(tensor.name).unwrap();
        assert!(is_same, "{}", tensor.name);
    }
}

/// Every reader of Python's must find in them the model that the original is.
#[track_caller]
pub(crate) fn loads_in_python(original: &Path, saved: &[PathBuf], folder: &Path) {
    let job = |saved: &PathBuf| json!({"saved": saved, "original": original, "architecture": "BertModel", "variant": null});
    run_jobs("load_saved.py", saved.iter().map(job).collect(), folder);
}

/// Torch must convert the original to the same bits.
#[track_caller]
pub(crate) fn loads_converted_in_python(original: &Path, saved: &[(PathBuf, &str)], folder: &Path) {
    let job = |(saved, dtype): &(PathBuf, &str)| json!({"saved": saved, "original": original, "dtype": dtype});
    run_jobs("load_converted.py", saved.iter().map(job).collect(), folder);
}

/// The Python that has the oracles.
pub(crate) fn python() -> OsString {
    let python = env::var_os("SAFESHARD_PYTHON");
    python.expect("SAFESHARD_PYTHON is not set: run the tests with `cargo xtask test`")
}

#[track_caller]
fn run_jobs(script: &str, jobs: Vec<Value>, folder: &Path) {
    let count = jobs.len();
    let path = folder.join("jobs.json");
    fs::write(&path, Value::from(jobs).to_string()).unwrap();
    let script = root().join("tests/python").join(script);
    let output = Command::new(python())
        .arg(script)
        .arg(path)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let done = stdout.lines().filter(|line| line.starts_with("loaded "));
    assert_eq!(done.count(), count, "{stdout}");
}

/// Runs the binary in a folder, and returns how many bytes of memory it had at the most.
#[track_caller]
pub(crate) fn peak_memory(folder: &Path, args: &str) -> usize {
    const PROGRAM: &str = "\
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)";
    let output = Command::new(python())
        .args(["-c", PROGRAM, SAFESHARD])
        .args(args.split(' '))
        .current_dir(folder)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    stdout
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}
