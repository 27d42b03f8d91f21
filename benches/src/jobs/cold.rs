//! A file that has to come from the disk.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use candle_core::Device;
use rustix::fs::OFlags;
use safeshard::candle::load;

use super::common::{GIB, arena, owned, read_into_arena, tensors};
use super::load_warm::candle_mmap;
use crate::Result;
use crate::data::Dataset;
use crate::job::{Cache, Contender, Job, Opens, Prepared, Target};

pub(super) const JOB: Job = Job {
    name: "cold",
    title: "All tensors into candle, from the disk",
    about: "The Llama of 2.1 GiB when the page cache of this machine holds none of it; what is below \
            the disk may still cache. candle's loader takes the tensors in the order of its map. \
            The device's own rate is measured by 8 threads with direct reads of 1 MiB.",
    data: Dataset::Llama,
    cache: Cache::Cold,
    touch: 5 * GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours("safeshard", "safeshard", safeshard),
        Contender::rival(
            "candle-mmap",
            "candle `MmapedSafetensors`, map order",
            candle_mmap,
        ),
        Contender::floor("device", "floor: direct reads, 8 × 1 MiB", device),
    ],
    targets: &[
        Target::time("safeshard", "candle-mmap", 0.75, 0.55),
        Target::time("safeshard", "device", 1.40, 1.10),
        Target::memory("safeshard"),
    ],
};

fn safeshard(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || Ok(tensors(load(path, &Device::Cpu)?, ()))))
}

fn device(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags(OFlags::DIRECT.bits() as i32);
        Ok(arena(read_into_arena(&options.open(path)?, 8, 1 << 20)?))
    }))
}
