//! All tensors of a model into candle.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::Device;
use safeshard::candle::load_with;

use super::common::{GIB, arena, map, owned, read_into_arena, tensors, threads};
use crate::Result;
use crate::data::{Dataset, files};
use crate::job::{Cache, Contender, Job, Opens, Prepared, Target};

pub(super) const ONE_FILE: Job = Job {
    name: "load-warm",
    title: "All tensors into candle, one file",
    about: "Every tensor of a Llama of 2.1 GiB as a candle tensor in memory of its own. \
            `MmapedSafetensors` copies out of a mapping, `candle_core::safetensors::load` out of a \
            whole file in memory. Python's `load_file` only maps the file, so it is followed by \
            `clone()`. The floor is no loader: two threads read the file into one piece of fresh \
            memory.",
    data: Dataset::Llama,
    cache: Cache::Warm,
    touch: 5 * GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours("safeshard-2", "safeshard, 2 threads", two_threads),
        Contender::ours("safeshard-1", "safeshard, 1 thread", one_thread),
        Contender::rival(
            "candle-mmap",
            "candle `MmapedSafetensors`, every tensor",
            candle_mmap,
        ),
        Contender::rival(
            "candle-load",
            "`candle_core::safetensors::load`",
            candle_load,
        ),
        Contender::python(
            "python",
            "Python `load_file` + `clone`",
            "load_and_clone",
            &[],
        ),
        Contender::python(
            "python-thp",
            "the same with torch's huge pages",
            "load_and_clone",
            &[("THP_MEM_ALLOC_ENABLE", "1")],
        ),
        Contender::floor("floor", "floor: `pread` into 2 MiB pages, 2 threads", floor),
    ],
    targets: &[
        Target::time("safeshard-2", "candle-mmap", 0.39, 0.33),
        Target::time("safeshard-2", "candle-load", 0.17, 0.14),
        Target::time("safeshard-2", "floor", 1.25, 1.10),
        Target::time("safeshard-1", "candle-mmap", 0.70, 0.62),
        Target::memory("safeshard-2"),
    ],
};

pub(super) const SHARDS: Job = Job {
    name: "load-warm-shards",
    title: "All tensors into candle, four shards",
    about: "The same tensors in four shards. safeshard opens the folder and follows the index; \
            candle is given the list of shards.",
    data: Dataset::LlamaShards,
    touch: 3 * GIB,
    contenders: &[
        Contender::ours("safeshard-2", "safeshard, 2 threads", two_threads),
        Contender::rival(
            "candle-mmap",
            "candle `MmapedSafetensors::multi`",
            candle_mmap,
        ),
    ],
    targets: &[
        Target::time("safeshard-2", "candle-mmap", 0.39, 0.33),
        Target::memory("safeshard-2"),
    ],
    ..ONE_FILE
};

pub(super) fn two_threads(path: &Path) -> Result<Prepared> {
    safeshard(path, 2)
}

fn one_thread(path: &Path) -> Result<Prepared> {
    safeshard(path, 1)
}

fn safeshard(path: &Path, count: usize) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let (loaded, _report) = load_with(path, &Device::Cpu, &threads(count))?;
        Ok(tensors(loaded, ()))
    }))
}

/// In the order that its map gives, as every caller does it.
pub(super) fn candle_mmap(path: &Path) -> Result<Prepared> {
    let files = files(path)?;
    Ok(Box::new(move || {
        let mapped = map(&files)?;
        let mut loaded = HashMap::new();
        for (name, _) in mapped.tensors() {
            let tensor = mapped.load(&name, &Device::Cpu)?;
            loaded.insert(name, tensor);
        }
        Ok(tensors(loaded, mapped))
    }))
}

fn candle_load(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let loaded = candle_core::safetensors::load(path, &Device::Cpu)?;
        Ok(tensors(loaded, ()))
    }))
}

fn floor(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        Ok(arena(read_into_arena(&File::open(path)?, 2, 8 << 20)?))
    }))
}
