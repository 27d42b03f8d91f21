//! A checkpoint over tensors that are there already.

use std::path::Path;

use candle_core::Device;
use safeshard::candle::{Weights, load};

use super::common::{GIB, owned, tensors, threads};
use super::load_warm;
use crate::Result;
use crate::data::Dataset;
use crate::job::{Contender, Job, Prepared, Target};

pub(super) const JOB: Job = Job {
    name: "load-into",
    title: "All tensors again, over those of another model",
    about: "The tensors of the Llama are in memory already and are read again over them with \
            `Weights::load_into`, beside a fresh load with 2 threads. The first load, and what it \
            took to touch its memory, is before the clock starts.",
    data: Dataset::Llama,
    touch: 5 * GIB,
    contenders: &[
        Contender::ours("load-into", "safeshard `load_into`, 2 threads", again),
        Contender::rival("fresh", "safeshard, fresh, 2 threads", fresh),
    ],
    targets: &[Target::time("load-into", "fresh", 0.80, 0.65)],
    ..load_warm::ONE_FILE
};

fn again(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    let loaded = load(&path, &Device::Cpu)?;
    // Nothing of the first load must be what is found in the end.
    for tensor in loaded.values() {
        tensor.zero_set()?;
    }
    Ok(Box::new(move || {
        Weights::open_with(path, &threads(2))?.load_into(&loaded)?;
        Ok(tensors(loaded, ()))
    }))
}

fn fresh(path: &Path) -> Result<Prepared> {
    load_warm::two_threads(path)
}
