//! What the Python libraries wrote, read bit for bit.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use safeshard_core::{Checkpoint, CheckpointKind, Code, OpenOptions, ShardFile};
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::{refused, warnings};

fn fixtures() -> PathBuf {
    let folder = std::env::var_os("SAFESHARD_FIXTURES")
        .expect("SAFESHARD_FIXTURES is not set: run the tests with `cargo xtask test`");
    PathBuf::from(folder).join("interop")
}

/// Every description of a checkpoint: its folder and what is expected of it.
fn descriptions() -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for folder in fs::read_dir(fixtures()).unwrap() {
        let folder = folder.unwrap().path();
        for file in fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("expected") && name.ends_with(".json") {
                let expected = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                found.push((folder.clone(), expected));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().unwrap().iter();
    entries
        .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
        .collect()
}

#[test]
fn what_every_python_writer_wrote() {
    let descriptions = descriptions();
    let mut writers = BTreeSet::new();
    for (folder, expected) in &descriptions {
        println!("{}: {}", folder.display(), expected["writer"]);
        writers.insert(
            expected["writer"]
                .as_str()
                .unwrap()
                .split(' ')
                .next()
                .unwrap(),
        );
        check(folder, expected);
    }
    let all = [
        "accelerate",
        "huggingface_hub",
        "safetensors",
        "torch",
        "transformers",
    ];
    assert_eq!(writers.into_iter().collect::<Vec<_>>(), all);
    assert!(
        descriptions.len() >= 18,
        "{} checkpoints",
        descriptions.len()
    );
}

fn check(folder: &Path, expected: &Value) {
    let path = folder.join(expected["path"].as_str().unwrap());
    let options = OpenOptions {
        variant: expected["variant"].as_str().map(str::to_owned),
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::open_with(&path, &options).unwrap();
    check_files(&checkpoint, &path, expected);

    let tensors = expected["tensors"].as_object().unwrap();
    assert_eq!(checkpoint.tensors().count(), tensors.len());
    for (name, expected) in tensors {
        let info = checkpoint.info(name).unwrap();
        assert_eq!(info.dtype.name(), expected["dtype"], "{name}");
        assert_eq!(serde_json::json!(info.shape), expected["shape"], "{name}");
        assert_eq!(
            checkpoint.file_of(name).unwrap().name(),
            expected["file"],
            "{name}"
        );
        let bytes = checkpoint.read(name).unwrap();
        assert_eq!(bytes.len() as u64, info.byte_len());
        let digest = Sha256::digest(&bytes);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, expected["sha256"], "{name}");
    }

    let aliases = strings(&expected["aliases"]);
    assert_eq!(checkpoint.aliases(), &aliases);
    for (dropped, kept) in &aliases {
        assert_eq!(
            checkpoint.read(dropped).unwrap(),
            checkpoint.read(kept).unwrap()
        );
    }
    let names: BTreeSet<&str> = checkpoint.names().into_iter().collect();
    let wanted: BTreeSet<&str> = tensors
        .keys()
        .chain(aliases.keys())
        .map(String::as_str)
        .collect();
    assert_eq!(names, wanted);
    // Ties that the writer leaves to the model's code are no tensors here.
    for dropped in strings(&expected["tied"]).keys() {
        refused(checkpoint.info(dropped), Code::TensorMissing);
    }
}

fn check_files(checkpoint: &Checkpoint, path: &Path, expected: &Value) {
    let files = expected["files"].as_object().unwrap();
    let found: BTreeSet<&str> = checkpoint.files().iter().map(ShardFile::name).collect();
    assert_eq!(found, files.keys().map(String::as_str).collect());
    for file in checkpoint.files() {
        let metadata = file.header().metadata();
        let metadata: BTreeMap<_, _> = metadata
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        assert_eq!(metadata, strings(&files[file.name()]), "{}", file.name());
    }
    match expected["index"].as_str() {
        None => assert_eq!(checkpoint.kind(), CheckpointKind::File),
        Some(name) => {
            assert_eq!(checkpoint.kind(), CheckpointKind::Index);
            let index = checkpoint.index().unwrap();
            assert_eq!(index.path(), path.join(name));
            let document: Value =
                serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap();
            assert_eq!(Value::from(index.metadata().clone()), document["metadata"]);
        }
    }
    // Nothing to report but the files of the other variant, where a folder has two.
    let listed = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let listed = listed.map(|name| name.into_string().unwrap());
    let others = listed.filter(|name| name.ends_with(".safetensors") && !files.contains_key(name));
    assert_eq!(
        warnings(checkpoint),
        vec![Code::UnlistedFile; others.count()]
    );
}

#[test]
fn the_root_of_a_repository_in_the_cache() {
    let checkpoint = Checkpoint::open(fixtures().join("hf-cache/models--org--tiny")).unwrap();
    assert_eq!(checkpoint.kind(), CheckpointKind::Index);
    assert_eq!(checkpoint.files().len(), 3);
}

#[test]
fn a_variant_is_found_without_its_name_where_it_is_the_only_one() {
    for folder in ["bert-variant-fp16-sharded", "bert-variant-single"] {
        Checkpoint::open(fixtures().join(folder)).unwrap();
    }
}

#[test]
fn rank_files_of_torch_are_a_clear_error() {
    let opened = Checkpoint::open(fixtures().join("dcp-consolidated/sharded"));
    let message = refused(opened, Code::IndexMissing).to_string();
    assert!(
        message.contains("torch's distributed checkpoints"),
        "{message}"
    );
}
