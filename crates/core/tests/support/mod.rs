//! Checkpoints for tests, written by the `safetensors` crate and, where it would refuse, by hand.

// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub, unused_imports)]

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use safeshard_core::{Checkpoint, Code, Error, OpenOptions, Result};
use safetensors::Dtype as StDtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

pub mod generations;
pub mod journals;
pub mod power;
pub mod python;
pub mod strace;
pub mod tensors;
pub mod trace;

/// The bytes of a safetensors file that holds these tensors as `U8` vectors.
pub fn bytes_of(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    let tensors = tensors
        .iter()
        .map(|&(name, bytes)| (name, StDtype::U8, vec![bytes.len()], bytes));
    typed(tensors.collect())
}

/// The bytes of a safetensors file that holds these tensors.
pub fn typed(tensors: Vec<(&str, StDtype, Vec<usize>, &[u8])>) -> Vec<u8> {
    let views = tensors.into_iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(dtype, shape, bytes).unwrap();
        (name.to_owned(), view)
    });
    safetensors::serialize(views, None).unwrap()
}

/// As [`bytes_of`], with metadata.
pub fn with_metadata(tensors: &[(&str, &[u8])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let views = tensors.iter().map(|&(name, bytes)| {
        let view = TensorView::new(StDtype::U8, vec![bytes.len()], bytes).unwrap();
        (name.to_owned(), view)
    });
    let metadata: HashMap<_, _> = metadata
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

/// A file with this header and this data, whether or not they fit together.
pub fn by_hand(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// A folder that is removed afterwards.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file, and the folders that it is in.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> &Self {
        fs::remove_file(self.join(name)).unwrap();
        self
    }

    /// Writes a shard that holds these `U8` tensors.
    pub fn shard(&self, name: &str, tensors: &[(&str, &[u8])]) -> &Self {
        self.write(name, bytes_of(tensors))
    }

    /// Writes `model.safetensors.index.json` with this map.
    pub fn index(&self, map: &[(&str, &str)]) -> &Self {
        let map: serde_json::Map<String, Value> = map
            .iter()
            .map(|&(tensor, shard)| (tensor.to_owned(), json!(shard)))
            .collect();
        self.index_json(&json!({"metadata": {}, "weight_map": map}))
    }

    pub fn index_json(&self, index: &Value) -> &Self {
        self.write(INDEX, index.to_string())
    }

    pub fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(self.path())
    }

    pub fn open_with(&self, options: &OpenOptions) -> Result<Checkpoint> {
        Checkpoint::open_with(self.path(), options)
    }

    /// The error of opening, which must have this code.
    #[track_caller]
    pub fn refused(&self, code: Code) -> Error {
        refused(self.open(), code)
    }
}

/// The error, which must have this code.
#[track_caller]
pub fn refused<T>(result: Result<T>, code: Code) -> Error {
    match result {
        Ok(_) => panic!("not refused, expected {}", code.as_str()),
        Err(error) => {
            assert_eq!(error.code(), code, "{error}");
            error
        }
    }
}

pub const INDEX: &str = "model.safetensors.index.json";
pub const FIRST: &str = "model-00001-of-00002.safetensors";
pub const SECOND: &str = "model-00002-of-00002.safetensors";

/// Two shards with two tensors each, and their index: nothing wrong with it.
pub fn healthy() -> Folder {
    let folder = Folder::new();
    folder
        .shard(FIRST, &[("a", &[1, 2]), ("b", &[3])])
        .shard(SECOND, &[("c", &[4, 5, 6]), ("d", &[7])])
        .index(&[("a", FIRST), ("b", FIRST), ("c", SECOND), ("d", SECOND)]);
    folder
}

/// The codes of the warnings, in order.
pub fn warnings(checkpoint: &Checkpoint) -> Vec<Code> {
    let warnings = checkpoint.warnings().iter();
    warnings.map(|finding| finding.problem.code()).collect()
}

/// Where [`child`] says which folder the child is to work on.
const CHILD_FOLDER: &str = "SAFESHARD_TEST_FOLDER";

/// The folder that this process was started for by [`child`]; none in the process that starts one.
pub fn child_folder() -> Option<PathBuf> {
    env::var_os(CHILD_FOLDER).map(PathBuf::from)
}

/// Runs the test that calls this once more, in a process of its own behind `launcher` (such as
/// `strace -f`), where [`child_folder`] is `folder`. It must run there and pass.
#[track_caller]
pub fn child(launcher: &[&str], folder: &Path) {
    let output = child_command(launcher, folder).output().unwrap();
    assert!(
        passed(&output),
        "behind {launcher:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What [`child`] runs.
pub fn child_command(launcher: &[&str], folder: &Path) -> Command {
    let this = env::current_exe().unwrap();
    // The name of a test is that of its thread.
    let thread = thread::current();
    let mut words: Vec<&OsStr> = launcher.iter().map(OsStr::new).collect();
    words.push(this.as_os_str());
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .args(["--exact", thread.name().unwrap()])
        .args(["--nocapture", "--test-threads=1"])
        .env(CHILD_FOLDER, folder);
    command
}

/// Whether a child ran its test, and that passed.
pub fn passed(output: &Output) -> bool {
    let stdout = String::from_utf8_lossy(&output.stdout);
    output.status.success() && stdout.contains("1 passed")
}
