//! Tensors and options for tests of saving, and what became of a folder.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use safeshard_core::{Dtype, Durability, Result, SaveOptions, SaveTensor, TensorData, WriteBytes};

pub const MIB: usize = 1 << 20;
pub const SINGLE: &str = "model.safetensors";

/// A `U8` tensor of one dimension.
pub fn vector<'b>(name: &str, bytes: &'b [u8]) -> SaveTensor<'b> {
    SaveTensor::new(name, Dtype::U8, [bytes.len() as u64], bytes)
}

/// `U8` tensors `a`, `b`, `c`, ... of so many bytes each.
pub fn vectors<'b>(bytes: &[&'b [u8]]) -> Vec<SaveTensor<'b>> {
    let names = ('a'..).map(|name| name.to_string());
    let tensors = names.zip(bytes);
    tensors.map(|(name, bytes)| vector(&name, bytes)).collect()
}

pub fn cached() -> SaveOptions {
    SaveOptions {
        durability: Durability::Cached,
        ..SaveOptions::default()
    }
}

/// Options by which tensors of together more than `bytes` are shards.
pub fn shards_of(bytes: u64) -> SaveOptions {
    SaveOptions {
        max_shard_size: bytes.to_string().parse().unwrap(),
        ..cached()
    }
}

/// Bytes in which every block differs from every other.
pub fn noise(len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

/// Names and contents of everything in a folder.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap_or_default())
        })
        .collect()
}

pub fn names(folder: &Path) -> Vec<String> {
    contents(folder).into_keys().collect()
}

pub fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Data that is whatever the function gives, of a length that is not known before.
pub struct Data<F>(F);

impl<F> TensorData for Data<F>
where
    F: Fn(&mut WriteBytes<'_>) -> Result<()> + Send + Sync,
{
    fn byte_len(&self) -> Option<u64> {
        None
    }

    fn is_materialised(&self) -> bool {
        true
    }

    fn write_range(&self, _all: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        (self.0)(write)
    }
}

/// A `U8` tensor `name` of four elements, whose data come from this function.
pub fn made<F>(name: &str, data: F) -> SaveTensor<'static>
where
    F: Fn(&mut WriteBytes<'_>) -> Result<()> + Send + Sync + 'static,
{
    SaveTensor::new(name, Dtype::U8, [4], Data(data))
}
