//! What torch wrote, in every container, is what torch reads in it: bit for bit, under the same names.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::PathBuf;

use safeshard_core::{
    Checkpoint, ConvertOptions, OpenOptions, Result, VerifyLevel, VerifyOptions, convert, verify,
};
use safeshard_import::{Checksums, ImportOptions, open_with};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What torch finds in a file; see `tests/python/make_torch.py`.
#[derive(Deserialize)]
struct Expected {
    file: String,
    key: Option<String>,
    refused: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(default)]
    tensors: BTreeMap<String, Tensor>,
    #[serde(default)]
    tied: Vec<Vec<String>>,
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    sha256: String,
}

fn folder() -> PathBuf {
    let folder = env::var_os("SAFESHARD_FIXTURES");
    let folder =
        folder.expect("SAFESHARD_FIXTURES is not set: run the tests with `cargo xtask test`");
    PathBuf::from(folder).join("torch")
}

fn all() -> Vec<Expected> {
    let text = fs::read(folder().join("expected.json")).unwrap();
    let all: Vec<Expected> = serde_json::from_slice(&text).unwrap();
    assert!(all.len() > 100, "{} files", all.len());
    all
}

impl Expected {
    fn open(&self, checksums: Checksums) -> Result<Checkpoint> {
        let import = ImportOptions {
            key: self.key.clone(),
            checksums,
            ..ImportOptions::default()
        };
        open_with(folder().join(&self.file), &OpenOptions::default(), &import)
    }

    /// Says what differs.
    fn compare(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let mut wrong = Vec::new();
        let names: BTreeSet<_> = checkpoint.names().into_iter().collect();
        let expected: BTreeSet<_> = self.tensors.keys().map(String::as_str).collect();
        if names != expected {
            wrong.push(format!("names {names:?}, not {expected:?}"));
        }
        for (name, tensor) in &self.tensors {
            let Ok(info) = checkpoint.info(name) else {
                continue;
            };
            let found = (info.dtype.name(), info.shape);
            if found != (&*tensor.dtype, &*tensor.shape) {
                wrong.push(format!("{name}: {found:?}"));
            }
            match checkpoint.read(name) {
                Ok(bytes) if digest(&bytes) == tensor.sha256 => {}
                Ok(bytes) => wrong.push(format!(
                    "{name}: other bytes, such as {:?}",
                    bytes.first_chunk::<16>()
                )),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (dropped, kept) in checkpoint.aliases() {
            groups
                .entry(kept)
                .or_insert_with(|| vec![kept])
                .push(dropped);
        }
        let tied: Vec<_> = groups.into_values().collect();
        if tied != self.tied {
            wrong.push(format!("tied {tied:?}, not {:?}", self.tied));
        }
        wrong
    }
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fails with everything that is wrong of any of the files.
#[track_caller]
fn each(check: impl Fn(&Expected) -> Vec<String>) {
    let all = all();
    let wrong = all.iter().flat_map(|expected| {
        let place = format!("{} {:?}", expected.file, expected.key);
        let wrong = check(expected).into_iter();
        wrong.map(move |wrong| format!("{place}: {wrong}"))
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn tensors_are_what_torch_says() {
    each(
        |expected| match (expected.open(Checksums::Verify), &expected.refused) {
            (Ok(checkpoint), None) => {
                let mut wrong = expected.compare(&checkpoint);
                let warnings = checkpoint.warnings().iter();
                let warnings: BTreeSet<_> = warnings
                    .map(|warning| warning.problem.code().as_str())
                    .collect();
                if !warnings.iter().eq(&expected.warnings) {
                    wrong.push(format!("warnings {warnings:?}"));
                }
                wrong
            }
            (Err(error), Some(code)) if error.code().as_str() == code => Vec::new(),
            (Ok(_), Some(code)) => vec![format!("opened, and not refused by {code}")],
            (Err(error), _) => vec![format!("{error:?}")],
        },
    );
}

#[test]
fn tensors_are_the_same_without_checksums() {
    each(
        |expected| match (expected.open(Checksums::Skip), &expected.refused) {
            (Ok(checkpoint), None) => expected.compare(&checkpoint),
            (opened, refused) => match opened.is_err() == refused.is_some() {
                true => Vec::new(),
                false => vec!["opened otherwise".to_owned()],
            },
        },
    );
}

#[test]
fn converted_they_are_safetensors_with_the_same_tensors() {
    let to = tempfile::tempdir().unwrap();
    each(|expected| {
        let Ok(checkpoint) = expected.open(Checksums::Verify) else {
            return Vec::new();
        };
        let path = to.path().join("out.safetensors");
        convert(&checkpoint, &path, &ConvertOptions::default()).unwrap();
        let found = verify(
            &path,
            &VerifyOptions {
                level: VerifyLevel::Content,
                ..VerifyOptions::default()
            },
        );
        let mut wrong = expected.compare(&Checkpoint::open(&path).unwrap());
        if !found.unwrap().is_accepted() && !expected.file.starts_with("dtypes") {
            wrong.push("refused by verify".to_owned());
        }
        wrong
    });
}

#[test]
fn parts_are_parts_of_the_whole() {
    each(|expected| {
        let Ok(checkpoint) = expected.open(Checksums::Verify) else {
            return Vec::new();
        };
        let mut wrong = Vec::new();
        for tensor in checkpoint.tensors() {
            let [rows, ..] = *tensor.shape else { continue };
            if tensor.dtype.name() == "F4" || rows < 2 {
                continue;
            }
            let whole = checkpoint.read(tensor.name).unwrap();
            let part = checkpoint
                .read_slice(tensor.name, &[(1..rows).into()])
                .unwrap();
            let row = whole.len() / rows as usize;
            if part != whole[row..] {
                wrong.push(format!("{}: all but the first row", tensor.name));
            }
        }
        wrong
    });
}
