//! One tensor out of many shards.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Device;
use safeshard::candle::tensor;

use super::common::{map, owned, tensors};
use crate::Result;
use crate::data::{Dataset, files};
use crate::job::{Cache, Contender, Job, Measure, Opens, Prepared, Target};

pub(super) const JOB: Job = Job {
    name: "one-of-100",
    title: "One tensor out of 100 shards",
    about: "100 shards with 20 tensors of 0.5 MiB each, and an index: loading one tensor by \
            its name. candle is given the list of shards and opens them all.",
    data: Dataset::HundredShards,
    cache: Cache::Warm,
    touch: 256 << 20,
    samples_times: 3,
    opens: Opens::Counted,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::candle::tensor`", safeshard),
        Contender::rival(
            "candle-mmap",
            "candle `MmapedSafetensors::multi` + `load`",
            candle_mmap,
        ),
    ],
    targets: &[
        Target::time("safeshard", "candle-mmap", 0.25, 0.15),
        Target {
            ours: "safeshard",
            measure: Measure::FilesOpened,
            must: 2.0,
            goal: 2.0,
        },
    ],
};

/// In the middle: shard 51.
const NAME: &str = "model.layers.10.mlp.experts.7.down_proj.weight";

fn safeshard(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let tensor = tensor(path, NAME, &Device::Cpu)?;
        Ok(tensors(HashMap::from([(NAME.to_owned(), tensor)]), ()))
    }))
}

fn candle_mmap(path: &Path) -> Result<Prepared> {
    let files = files(path)?;
    Ok(Box::new(move || {
        let mapped = map(&files)?;
        let tensor = mapped.load(NAME, &Device::Cpu)?;
        Ok(tensors(HashMap::from([(NAME.to_owned(), tensor)]), mapped))
    }))
}
