//! Files written by the reference implementation, and bytes of tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use safeshard_tch::{Dtype, Io, LoadOptions, SaveOptions, dtype_of};
use safetensors::tensor::TensorView;
use serde_json::Value;
use tch::Tensor;

pub(crate) use safetensors::Dtype as Stored;

pub(crate) const CPU: tch::Device = tch::Device::Cpu;

/// Bytes that any dtype can have and that differ from place to place; `BOOL`s are 0 and 1.
pub(crate) fn pattern(dtype: Stored, len: usize) -> Vec<u8> {
    let bytes = (0..len).map(|i| (i * 37 + 11) as u8);
    match dtype {
        Stored::BOOL => bytes.map(|byte| byte % 2).collect(),
        _ => bytes.collect(),
    }
}

/// Elements that differ from tensor to tensor and from place to place.
pub(crate) fn numbers(name: &str, len: usize) -> Vec<u8> {
    let seed = name.bytes().map(f32::from).sum::<f32>();
    (0..len)
        .flat_map(|i| (seed + i as f32).to_le_bytes())
        .collect()
}

/// Writes one tensor a file entry, by the reference.
pub(crate) fn write(path: impl AsRef<Path>, tensors: &[(&str, Stored, &[usize], &[u8])]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            TensorView::new(*dtype, shape.to_vec(), bytes).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Some tensors of `F32` with numbers that differ.
pub(crate) fn write_floats(path: impl AsRef<Path>, tensors: &[(&str, &[usize])]) {
    let bytes: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| numbers(name, shape.iter().product()))
        .collect();
    let tensors = tensors.iter().zip(&bytes);
    let tensors: Vec<_> = tensors
        .map(|((name, shape), bytes)| (*name, Stored::F32, *shape, &bytes[..]))
        .collect();
    write(path, &tensors);
}

/// A file of one tensor whose header is spelled by hand, so that its data begins at any byte.
pub(crate) fn write_at(path: &Path, dtype: &str, shape: &[usize], bytes: &[u8], offset: usize) {
    let json = serde_json::json!({
        "w": {"dtype": dtype, "shape": shape, "data_offsets": [0, bytes.len()]},
    });
    let mut json = json.to_string();
    while (8 + json.len()) % 8 != offset {
        json.push(' ');
    }
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.extend_from_slice(bytes);
    std::fs::write(path, file).unwrap();
}

/// An index and its shards.
pub(crate) fn write_shards(folder: &Path, shards: &[&[(&str, &[usize])]]) {
    let mut map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_floats(folder.join(&file), shard);
        map.extend(shard.iter().map(|(name, _)| (*name, file.clone())));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
}

/// The bytes of a contiguous tensor on the CPU, as a file would hold them.
pub(crate) fn bytes(tensor: &Tensor) -> Vec<u8> {
    assert!(tensor.is_contiguous() && tensor.device() == CPU);
    // What has no elements may have no address.
    if tensor.numel() == 0 {
        return Vec::new();
    }
    let size = dtype_of(tensor).unwrap().size().unwrap_or(1) as usize;
    // SAFETY: a contiguous tensor has its elements from `data_ptr` on, and nobody writes to them now.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), tensor.numel() * size) }
        .to_vec()
}

/// A tensor of any dtype with these bytes, which tch alone cannot always make.
pub(crate) fn tensor(dtype: Stored, shape: &[usize], bytes: &[u8]) -> Tensor {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one.safetensors");
    write(&path, &[("w", dtype, shape, bytes)]);
    safeshard_tch::tensor(&path, "w", CPU).unwrap()
}

/// What is in a file, by the reference.
pub(crate) fn stored(path: impl AsRef<Path>, name: &str) -> (Stored, Vec<usize>, Vec<u8>) {
    let file = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let view = file.tensor(name).unwrap();
    (view.dtype(), view.shape().to_vec(), view.data().to_vec())
}

pub(crate) fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&size| size as usize).collect()
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(&tensor.to_kind(tch::Kind::Float).flatten(0, -1)).unwrap()
}

/// Options under which the files are mapped.
pub(crate) fn mapped() -> LoadOptions {
    let mut options = LoadOptions::default();
    // SAFETY: tests replace files and never write to them.
    options.open.io = unsafe { Io::mmap() };
    options
}

/// Saving without waiting for the disk.
pub(crate) fn cached() -> SaveOptions {
    SaveOptions {
        durability: safeshard_core::Durability::Cached,
        ..SaveOptions::default()
    }
}

pub(crate) fn name(dtype: Stored) -> Dtype {
    Dtype::from_name(&dtype.to_string()).unwrap()
}

/// What Python's writers left.
pub(crate) fn fixtures() -> PathBuf {
    let folder = std::env::var_os("SAFESHARD_FIXTURES");
    Path::new(&folder.expect("SAFESHARD_FIXTURES is not set: run `cargo xtask test`"))
        .join("interop")
}

/// The folders of [`fixtures`] and the files that say what they hold: one for each variant.
pub(crate) fn expectations() -> Vec<(PathBuf, Value)> {
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

/// Runs Python code with these arguments; returns what it prints.
pub(crate) fn python(code: &str, args: &[&Path]) -> String {
    let python = std::env::var_os("SAFESHARD_PYTHON");
    let python = python.expect("SAFESHARD_PYTHON is not set: run `cargo xtask test`");
    let output = Command::new(python)
        .arg("-c")
        .arg(code)
        .args(args)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}
