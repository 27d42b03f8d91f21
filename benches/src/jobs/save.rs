//! Saving what is in memory.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safeshard::candle::{load, save_with};
use safeshard::{
    Checkpoint, Dtype, Durability, OpenOptions, SaveOptions, SaveTensor, ShardSize, Sharding,
};
use safetensors::tensor::{Dtype as ReferenceDtype, View};

use super::common::{GIB, owned};
use crate::Result;
use crate::data::{Dataset, files};
use crate::digest::Digest;
use crate::job::{Cache, Contender, Job, Opens, Prepared, Product, Target};

pub(super) const ONE_FILE: Job = Job {
    name: "save",
    title: "Saving one file",
    about: "The Llama of 2.1 GiB from memory into one new file, in the page cache when it returns. \
            The reference writes borrowed slices, as safeshard does; candle's `save` and \
            safeshard's adapter write candle's tensors.",
    data: Dataset::Llama,
    cache: Cache::Warm,
    touch: 3 * GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::save`", |path| {
            ours(path, Durability::Cached)
        }),
        Contender::ours(
            "safeshard-candle",
            "`safeshard::candle::save`",
            ours_of_candle,
        ),
        Contender::rival("reference", "`safetensors::serialize_to_file`", |path| {
            reference(path, Durability::Cached)
        }),
        Contender::rival("candle", "`candle_core::safetensors::save`", candle),
    ],
    targets: &[
        Target::time("safeshard", "reference", 1.05, 1.00),
        Target::time("safeshard-candle", "candle", 0.60, 0.52),
        Target::extra_memory("safeshard", 4.0, 1.0),
        Target::extra_memory("safeshard-candle", 4.0, 1.0),
    ],
};

pub(super) const SHARDS: Job = Job {
    name: "save-shards",
    title: "Saving four shards",
    about: "The same tensors into four shards and an index, with 2 threads; the reference writes the \
            same four files one after the other.",
    data: Dataset::LlamaShards,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::save`, 2 threads", |path| {
            ours(path, Durability::Cached)
        }),
        Contender::rival(
            "reference",
            "`safetensors::serialize_to_file`, four times",
            |path| reference(path, Durability::Cached),
        ),
    ],
    targets: &[
        Target::time("safeshard", "reference", 0.60, 0.55),
        Target::extra_memory("safeshard", 4.0, 1.0),
    ],
    ..ONE_FILE
};

pub(super) const DURABLE: Job = Job {
    name: "save-durable",
    title: "Saving one file, on the disk when it returns",
    about: "One file again, but the data is on the disk when the call returns: the reference's file \
            is synced after it is written.",
    data: Dataset::Llama,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::save`, durable", |path| {
            ours(path, Durability::Durable)
        }),
        Contender::rival(
            "reference",
            "`safetensors::serialize_to_file` + `fsync`",
            |path| reference(path, Durability::Durable),
        ),
    ],
    targets: &[
        Target::time("safeshard", "reference", 0.85, 0.70),
        Target::extra_memory("safeshard", 64.0, 32.0),
    ],
    ..ONE_FILE
};

/// A tensor in memory, as the format names it.
struct Raw {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// The tensors of each file, in memory.
fn shards(path: &Path) -> Result<Vec<Vec<Raw>>> {
    let read = |file: &PathBuf| -> Result<Vec<Raw>> {
        let checkpoint = Checkpoint::open_files(&[file], &OpenOptions::default())?;
        let tensors = checkpoint.tensors().map(|tensor| {
            Ok(Raw {
                name: tensor.name.to_owned(),
                dtype: tensor.dtype,
                shape: tensor.shape.iter().map(|&dim| dim as usize).collect(),
                bytes: checkpoint.read(tensor.name)?,
            })
        });
        tensors.collect()
    };
    files(path)?.iter().map(read).collect()
}

fn ours(path: &Path, durability: Durability) -> Result<Prepared> {
    let shards = shards(path)?;
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        let names = |shard: &Vec<Raw>| shard.iter().map(|raw| raw.name.clone()).collect();
        let options = SaveOptions {
            sharding: Sharding::Explicit(shards.iter().map(names).collect()),
            ..options(durability)
        };
        let tensors = shards.iter().flatten().map(|raw| {
            let shape: Vec<_> = raw.shape.iter().map(|&dim| dim as u64).collect();
            SaveTensor::new(&raw.name, raw.dtype, shape, &raw.bytes[..])
        });
        safeshard::save(tensors.collect(), &folder, &options)?;
        Ok(saved(folder, shards))
    }))
}

fn ours_of_candle(path: &Path) -> Result<Prepared> {
    let tensors = load(path, &Device::Cpu)?;
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        save_with(&tensors, &folder, &options(Durability::Cached))?;
        Ok(saved(folder, tensors))
    }))
}

fn options(durability: Durability) -> SaveOptions {
    SaveOptions {
        max_shard_size: ShardSize::UNLIMITED,
        durability,
        threads: NonZero::new(2),
        ..SaveOptions::default()
    }
}

fn reference(path: &Path, durability: Durability) -> Result<Prepared> {
    let shards = shards(path)?;
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        for (number, shard) in shards.iter().enumerate() {
            let file = folder.join(format!("{number}.safetensors"));
            let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            let views = shard.iter().map(|raw| (&raw.name, raw));
            safetensors::serialize_to_file(views, Some(metadata), &file)?;
            if durability == Durability::Durable {
                File::open(&file)?.sync_all()?;
            }
        }
        if durability == Durability::Durable {
            File::open(&folder)?.sync_all()?;
        }
        Ok(saved(folder, shards))
    }))
}

fn candle(path: &Path) -> Result<Prepared> {
    let tensors: HashMap<String, Tensor> = load(path, &Device::Cpu)?;
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
        Ok(saved(folder, tensors))
    }))
}

impl View for &Raw {
    fn dtype(&self) -> ReferenceDtype {
        // The data has no others.
        match self.dtype {
            Dtype::Bf16 => ReferenceDtype::BF16,
            _ => ReferenceDtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Where to save: an empty folder on the data's disk, which has nothing left to write.
pub(super) fn fresh_folder(path: &Path) -> Result<PathBuf> {
    let folder = owned(path).with_file_name("saved");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir(&folder)?;
    rustix::fs::sync();
    Ok(folder)
}

/// What lies in the folder now; `owner` is what was saved.
pub(super) fn saved<T: 'static>(folder: PathBuf, owner: T) -> Product {
    Box::new(move || {
        drop(owner);
        Digest::of_files(&files(&folder)?)
    })
}
