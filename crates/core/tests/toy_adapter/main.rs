//! What a new framework's adapter is: `adapter.rs` has all of one, in at most 200 lines, and this what it can do.

mod adapter;
mod framework;

use std::collections::HashMap;
use std::sync::Arc;

use adapter::{load, load_with, save, slice, tensor_to_save};
use framework::{Storage, Tensor};
use safeshard_core::{Checkpoint, Code, DimRange, Dtype, LoadOptions, SaveOptions, SaveTensor};

impl AsRef<Self> for Tensor {
    fn as_ref(&self) -> &Self {
        self
    }
}

fn floats(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let elements = (0..count).map(|at| at as f32 / 4.).collect();
    Tensor::new(Storage::F32(Arc::new(elements)), shape.to_vec())
}

fn tensors() -> HashMap<&'static str, Tensor> {
    let w = floats(&[30, 20]);
    let steps = Storage::I64(Arc::new(vec![7, -1]));
    HashMap::from([
        ("strided", w.transposed().narrow(0, 3..9)),
        ("tied", w.clone()),
        ("part", w.narrow(0, 5..10)),
        ("w", w),
        ("steps", Tensor::new(steps, vec![2])),
        ("none", floats(&[0, 3])),
    ])
}

fn check(loaded: &HashMap<String, Tensor>) {
    let expected = tensors();
    assert_eq!(loaded.len(), expected.len());
    for (name, tensor) in expected {
        assert_eq!(loaded[name].shape, tensor.shape, "{name}");
        assert_eq!(loaded[name].to_bytes(), tensor.to_bytes(), "{name}");
    }
}

#[test]
fn what_is_saved_is_loaded_in_shards_too_and_what_is_tied_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        max_shard_size: "1KB".parse().unwrap(),
        ..SaveOptions::default()
    };
    let report = save(tensors(), folder.path(), &options).unwrap();
    assert!(report.files.len() > 1);
    assert_eq!(report.materialised, ["strided"]);
    let loaded = load(folder.path()).unwrap();
    check(&loaded);
    let (Storage::F32(w), Storage::F32(tied)) = (&loaded["w"].storage, &loaded["tied"].storage)
    else {
        panic!("{loaded:?}");
    };
    assert!(Arc::ptr_eq(w, tied));
}

#[test]
fn tensors_pass_in_memory_without_a_file() {
    let saved = tensors()
        .into_iter()
        .map(|(name, tensor)| tensor_to_save(name, &tensor));
    let checkpoint = Checkpoint::from_tensors(saved.collect()).unwrap();
    check(&load(&checkpoint).unwrap());
    let column = slice(&checkpoint, "strided", &[0..6, 4..5]).unwrap();
    assert_eq!(
        column.to_bytes(),
        tensors()["strided"].narrow(1, 4..5).to_bytes()
    );
}

#[test]
fn options_count_as_with_every_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let half: Vec<u8> = [0x3c00u16, 0x4000]
        .iter()
        .flat_map(|bits| bits.to_le_bytes())
        .collect();
    let half = SaveTensor::new("half", Dtype::F16, [2], half);
    safeshard_core::save(vec![half], &path, &SaveOptions::default()).unwrap();
    assert_eq!(load(&path).unwrap_err().code(), Code::UnsupportedDtype);
    let options = LoadOptions {
        part: Some(Arc::new(|_, _| vec![DimRange::from(1u64..2)])),
        rename: Some(Arc::new(|name| format!("model.{name}"))),
        ..LoadOptions::floats_as(Dtype::F32)
    };
    let (loaded, report) = load_with(&path, &options).unwrap();
    assert_eq!(
        loaded["model.half"].storage,
        Storage::F32(Arc::new(vec![2.]))
    );
    assert_eq!(
        (report.cast.len(), report.loaded),
        (1, vec!["model.half".to_owned()])
    );
}

/// Its size is a promise.
#[test]
fn an_adapter_is_at_most_200_lines() {
    let lines = include_str!("adapter.rs").lines().count();
    assert!(lines <= 200, "{lines}");
}

#[cfg(feature = "contract")]
#[test]
fn its_tensors_keep_the_contract() {
    for (_, tensor) in tensors() {
        let saved = tensor_to_save("w", &tensor);
        safeshard_core::contract::check_data(&*saved.data, &tensor.to_bytes());
    }
}
