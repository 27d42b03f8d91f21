//! What Python's writers left, bit for bit, as candle tensors.

use candle_core::Device;
use safeshard_candle::{LoadOptions, Support, Unsupported, Weights, support};
use safeshard_core::Dtype;
use sha2::{Digest, Sha256};

use crate::support::{bytes, expectations};

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
