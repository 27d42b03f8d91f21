//! A BF16 file as F32 tensors.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device};
use safeshard::candle::load_with;
use safeshard::{Dtype, LoadOptions};

use super::common::{GIB, map, owned, tensors, threads};
use crate::Result;
use crate::data::{Dataset, files};
use crate::job::{Cache, Contender, Job, Measure, Opens, Prepared, Target};

pub(super) const JOB: Job = Job {
    name: "cast",
    title: "A BF16 file as F32 tensors",
    about: "The Llama of 2.1 GiB as 4.1 GiB of F32 tensors. safeshard converts while it reads; with \
            candle each tensor is loaded and then converted with `to_dtype`.",
    data: Dataset::Llama,
    cache: Cache::Warm,
    touch: 5 * GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours("safeshard-2", "safeshard, 2 threads", safeshard),
        Contender::rival(
            "candle-mmap",
            "candle `MmapedSafetensors` + `to_dtype`",
            candle_mmap,
        ),
    ],
    targets: &[
        Target::time("safeshard-2", "candle-mmap", 0.36, 0.28),
        Target {
            ours: "safeshard-2",
            measure: Measure::ResidentOverPayload,
            must: 1.05,
            goal: 1.05,
        },
        Target::memory("safeshard-2"),
    ],
};

fn safeshard(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let options = LoadOptions {
            read: threads(2).read,
            ..LoadOptions::floats_as(Dtype::F32)
        };
        let (loaded, _report) = load_with(path, &Device::Cpu, &options)?;
        Ok(tensors(loaded, ()))
    }))
}

fn candle_mmap(path: &Path) -> Result<Prepared> {
    let files = files(path)?;
    Ok(Box::new(move || {
        let mapped = map(&files)?;
        let mut loaded = HashMap::new();
        for (name, _) in mapped.tensors() {
            let tensor = mapped.load(&name, &Device::Cpu)?.to_dtype(DType::F32)?;
            loaded.insert(name, tensor);
        }
        Ok(tensors(loaded, mapped))
    }))
}
