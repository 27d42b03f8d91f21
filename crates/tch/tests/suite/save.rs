//! Saving: from the tensors' own memory, ties found, shards as anybody else writes them.

use std::collections::HashMap;

use safeshard_core::Ties;
use safeshard_tch::{SaveOptions, load, save_with};
use tch::{Kind, Tensor};

use crate::support::{CPU, Stored, bytes, cached, numbers, stored};

#[test]
fn a_save_is_what_the_reference_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let w = Tensor::arange(6, (Kind::Float, CPU)).view([2, 3]);
    let grad = w.copy().set_requires_grad(true);
    let tensors = [("w", &w), ("trainable", &grad)];
    let report = save_with(tensors, &path, &cached()).unwrap();
    assert!(report.materialised.is_empty());
    let expected: Vec<_> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    for name in ["w", "trainable"] {
        assert_eq!(
            stored(&path, name),
            (Stored::F32, vec![2, 3], expected.clone())
        );
    }
}

#[test]
fn slices_of_one_storage_are_stored_each_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let fused = Tensor::arange(30, (Kind::Float, CPU)).view([6, 5]);
    let parts = HashMap::from([
        ("q", fused.narrow(0, 0, 2)),
        ("k", fused.narrow(0, 2, 2)),
        ("v", fused.narrow(0, 4, 2)),
        ("overlap", fused.narrow(0, 1, 2)),
        ("q.tied", fused.narrow(0, 0, 2)),
        ("q.flat", fused.narrow(0, 0, 2).view([10])),
    ]);
    let report = save_with(&parts, &path, &cached()).unwrap();
    assert!(report.materialised.is_empty());
    assert_eq!(report.aliases.len(), 1, "{:?}", report.aliases);
    assert_eq!(report.aliases["q.tied"], "q");
    assert_eq!(report.total_size, 5 * 10 * 4);
    let loaded = load(&path, CPU).unwrap();
    for (name, part) in &parts {
        assert_eq!(&loaded[*name], part, "{name}");
    }
    let twice = SaveOptions {
        ties: Ties::Duplicate,
        ..cached()
    };
    let report = save_with(&parts, &path, &twice).unwrap();
    assert_eq!(report.total_size, 6 * 10 * 4);
}

#[test]
fn shards_and_index_are_those_of_the_cores_save_of_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
    let options = SaveOptions {
        max_shard_size: "100KB".parse().unwrap(),
        ..cached()
    };
    let names: Vec<_> = (0..12).map(|i| format!("layer.{i}.weight")).collect();
    let values: Vec<_> = names.iter().map(|name| numbers(name, 10_000)).collect();
    let tensors = names.iter().zip(&values).map(|(name, values)| {
        let values = values
            .chunks(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        (
            name,
            Tensor::from_slice(&values.collect::<Vec<_>>()).view([100, 100]),
        )
    });
    let tensors: HashMap<_, _> = tensors.collect();
    let report = save_with(&tensors, &ours, &options).unwrap();
    assert_eq!(report.files.len(), 6);
    let tensors = names.iter().zip(&values).map(|(name, values)| {
        let dtype = safeshard_tch::Dtype::F32;
        safeshard_core::SaveTensor::new(name, dtype, [100, 100], &values[..])
    });
    let same = safeshard_core::save(tensors.collect(), &plain, &options).unwrap();
    assert_eq!(report, same);
    for entry in std::fs::read_dir(&plain).unwrap() {
        let name = entry.unwrap().file_name();
        let read = |folder: &std::path::Path| std::fs::read(folder.join(&name)).unwrap();
        assert!(read(&ours) == read(&plain), "{}", name.display());
    }
}

#[test]
fn large_views_with_strides_are_gathered_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // More than two pieces, and dimensions of one before those that are cut.
    let cube = Tensor::arange(5 << 20, (Kind::Float, CPU)).view([1, 1 << 10, 5 << 10]);
    let turned = cube.permute([0, 2, 1]);
    let report = save_with([("turned", &turned)], &path, &cached()).unwrap();
    assert_eq!(report.materialised, ["turned"]);
    let loaded = load(&path, CPU).unwrap();
    assert_eq!(bytes(&loaded["turned"]), bytes(&turned.contiguous()));
}

#[test]
fn what_becomes_of_a_tensor_during_a_save_does_not_take_its_memory_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut w = Tensor::arange(1000, (Kind::Float, CPU));
    let expected = bytes(&w);
    let to_save = safeshard_tch::tensor_to_save("w", &w).unwrap();
    w.set_data(&Tensor::zeros([3], (Kind::Float, CPU)));
    drop(w);
    safeshard_core::save(vec![to_save], &path, &cached()).unwrap();
    assert_eq!(stored(&path, "w").2, expected);
}
