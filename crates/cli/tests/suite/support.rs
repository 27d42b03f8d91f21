//! Runs the binary, and makes files for it with the `safetensors` crate or by hand.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

/// The binary.
pub(crate) const SAFESHARD: &str = env!("CARGO_BIN_EXE_safeshard");

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap()
}

/// A small sharded checkpoint that transformers wrote.
pub(crate) fn bert() -> PathBuf {
    root().join("examples/data/tiny-bert")
}

/// A copy of it that may be changed.
pub(crate) fn bert_in(folder: &Path) -> PathBuf {
    let copy = folder.join("bert");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(bert()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

/// What a run ended with.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Run {
    /// It must have ended with this code.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Its output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// Runs the binary.
#[track_caller]
pub(crate) fn safeshard<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    Command::new(SAFESHARD).args(args).output().unwrap().into()
}

/// Runs a command line of a shell, in which the binary is `safeshard`.
#[track_caller]
pub(crate) fn shell(folder: &Path, line: &str) -> Run {
    let bin = Path::new(SAFESHARD).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("LC_ALL", "C.UTF-8")
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .output();
    output.unwrap().into()
}

/// Runs a line on a terminal; what it shows, line ends as terminals have them.
#[track_caller]
pub(crate) fn on_terminal(folder: &Path, line: &str) -> String {
    assert!(!line.contains('\''), "the line is quoted");
    let line = format!("script -qec '{line}' /dev/null < /dev/null");
    shell(folder, &line).stdout
}

/// A tensor to be written.
pub(crate) type Tensor<'t> = (&'t str, Dtype, Vec<usize>, Vec<u8>);

/// Some `F32` elements.
pub(crate) fn floats<'t>(name: &'t str, values: &[f32]) -> Tensor<'t> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    (name, Dtype::F32, vec![values.len()], bytes.collect())
}

/// Writes a file with the `safetensors` crate.
pub(crate) fn write(path: &Path, tensors: &[Tensor<'_>]) {
    write_with(path, tensors, &[]);
}

/// As [`write`], with metadata.
pub(crate) fn write_with(path: &Path, tensors: &[Tensor<'_>], metadata: &[(&str, &str)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    let metadata: HashMap<_, _> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

/// Writes a file with this header and this data, whether or not they fit together.
pub(crate) fn write_by_hand(path: &Path, header: &str, data: &[u8]) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    fs::write(path, file).unwrap();
}

/// The names in a folder, hidden ones too.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}
