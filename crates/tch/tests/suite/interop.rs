//! What Python's writers left, bit for bit, and what torch says is in it.

use std::path::PathBuf;

use safeshard_tch::{LoadOptions, Unsupported, load_with, map_with};

use crate::support::{CPU, bytes, expectations, python};

/// Digests by the oracle, so that only torch and we look at the bytes.
const DIGESTS: &str = "
import hashlib, sys
for path in sys.argv[1:]:
    print(hashlib.sha256(open(path, 'rb').read()).hexdigest())
";

#[test]
fn every_fixture_is_loaded_and_mapped_as_its_writer_says() {
    let all = expectations();
    assert!(all.len() >= 15, "only {} fixtures", all.len());
    let folder = tempfile::tempdir().unwrap();
    let (mut files, mut sums) = (Vec::new(), Vec::new());
    for (at, expected) in all {
        let path = at.join(expected["path"].as_str().unwrap());
        let mut options = LoadOptions {
            unsupported: Unsupported::Skip,
            ..LoadOptions::default()
        };
        options.open.variant = expected["variant"].as_str().map(str::to_owned);
        let (tensors, report) = load_with(&path, CPU, &options).unwrap();
        // SAFETY: nobody writes to fixtures.
        let (mapped, _) = unsafe { map_with(&path, &options) }.unwrap();

        let stored = expected["tensors"].as_object().unwrap();
        for (name, tensor) in stored {
            let Some(loaded) = tensors.get(name) else {
                assert!(report.skipped.iter().any(|(skipped, _)| skipped == name));
                continue;
            };
            assert_eq!(bytes(loaded), bytes(&mapped[name]));
            let file = folder.path().join(format!("{}", files.len()));
            std::fs::write(&file, bytes(loaded)).unwrap();
            files.push(file);
            sums.push(tensor["sha256"].as_str().unwrap().to_owned());
            let dims = tensor["shape"].as_array().unwrap();
            let mut dims: Vec<_> = dims.iter().map(|dim| dim.as_i64().unwrap()).collect();
            if tensor["dtype"] == "F4" {
                *dims.last_mut().unwrap() /= 2;
            }
            assert_eq!(loaded.size(), dims, "{}: {name}", path.display());
        }
        let aliases = expected["aliases"].as_object().unwrap();
        for (alias, kept) in aliases {
            let kept = &tensors[kept.as_str().unwrap()];
            assert_eq!(tensors[alias].data_ptr(), kept.data_ptr());
        }
        assert_eq!(
            tensors.len() + report.skipped.len(),
            stored.len() + aliases.len()
        );
    }
    assert!(sums.len() > 100);
    for (files, sums) in files.chunks(500).zip(sums.chunks(500)) {
        let files: Vec<_> = files.iter().map(PathBuf::as_path).collect();
        assert!(python(DIGESTS, &files).lines().eq(sums));
    }
}

#[test]
fn python_loads_what_is_saved_strictly() {
    let folder = tempfile::tempdir().unwrap();
    let vars = tch::nn::VarStore::new(CPU);
    let root = vars.root();
    let _layer = tch::nn::linear(&root / "encoder" / "0", 3, 4, Default::default());
    let _norm = tch::nn::layer_norm(&root / "norm", vec![4], Default::default());
    use safeshard_tch::VarStoreExt;
    let options = safeshard_tch::SaveOptions {
        max_shard_size: "60B".parse().unwrap(),
        ..crate::support::cached()
    };
    let report = vars.save_checkpoint(folder.path(), &options).unwrap();
    assert!(report.files.len() > 1);
    let code = "
import glob, json, sys, torch
from safetensors.torch import load_file
folder = sys.argv[1]
index = json.load(open(folder + '/model.safetensors.index.json'))
weights = {}
for file in sorted(set(index['weight_map'].values())):
    weights |= load_file(folder + '/' + file)
model = torch.nn.ModuleDict({
    'encoder': torch.nn.ModuleList([torch.nn.Linear(3, 4)]),
    'norm': torch.nn.LayerNorm(4),
})
model.load_state_dict(weights, strict=True)
print('loaded', len(weights))
";
    assert_eq!(python(code, &[folder.path()]), "loaded 4\n");
}
