//! What Python's writers left, bit for bit, as candle tensors.

use std::path::{Path, PathBuf};

use candle_core::Device;
use safeshard_candle::{LoadOptions, Support, Unsupported, Weights, support};
use safeshard_core::Dtype;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::bytes;

fn fixtures() -> PathBuf {
    let folder = std::env::var_os("SAFESHARD_FIXTURES");
    Path::new(&folder.expect("SAFESHARD_FIXTURES is not set: run `cargo xtask test`"))
        .join("interop")
}

/// The files that say what a folder holds: one for each variant.
fn expectations() -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(fixtures()).unwrap() {
        let folder = folder.unwrap().path();
        for file in std::fs::read_dir(&folder).unwrap() {
            let file = file.unwrap().path();
            let name = file.file_name().unwrap().to_str().unwrap();
            if name.starts_with("expected") && name.ends_with(".json") {
                let text = std::fs::read_to_string(&file).unwrap();
                found.push((folder.clone(), serde_json::from_str(&text).unwrap()));
            }
        }
    }
    found
}

#[test]
fn every_fixture_is_loaded_as_its_writer_says() {
    let all = expectations();
    assert!(all.len() >= 15, "only {} fixtures", all.len());
    for (folder, expected) in all {
        let path = folder.join(expected["path"].as_str().unwrap());
        let mut options = LoadOptions {
            unsupported: Unsupported::Skip,
            ..LoadOptions::default()
        };
        options.open.variant = expected["variant"].as_str().map(str::to_owned);
        let weights = Weights::open_with(&path, &options).unwrap();
        let (tensors, report) = weights.load(&Device::Cpu).unwrap();

        let stored = expected["tensors"].as_object().unwrap();
        for (name, tensor) in stored {
            let dtype = Dtype::from_name(tensor["dtype"].as_str().unwrap()).unwrap();
            let Some(loaded) = tensors.get(name) else {
                assert_ne!(
                    support(dtype),
                    Support::Native,
                    "{}: {name}",
                    path.display()
                );
                assert!(report.skipped.iter().any(|(skipped, _)| skipped == name));
                continue;
            };
            let sum: String = Sha256::digest(bytes(loaded))
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(sum, tensor["sha256"], "{}: {name}", path.display());
            let shape = tensor["shape"].as_array().unwrap();
            let shape = shape.iter().map(|dim| dim.as_u64().unwrap() as usize);
            assert!(
                shape.eq(loaded.dims().iter().copied()),
                "{}: {name}",
                path.display()
            );
        }
        let aliases = expected["aliases"].as_object().unwrap();
        for (alias, kept) in aliases {
            assert_eq!(
                bytes(&tensors[alias]),
                bytes(&tensors[kept.as_str().unwrap()])
            );
        }
        assert_eq!(
            tensors.len() + report.skipped.len(),
            stored.len() + aliases.len()
        );
    }
}
