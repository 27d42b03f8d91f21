//! What one rank of a tensor-parallel model needs.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::var_builder::{Shard, ShardedSafeTensors};
use safeshard::candle::{Weights, load_with};
use safeshard::{DimRange, Io, Technique};

use super::common::{GIB, owned, shapes, tensors, threads};
use crate::Result;
use crate::data::{Dataset, files};
use crate::job::{Cache, Contender, Job, Opens, Prepared, Target};

pub(super) const DIM_0: Job = Job {
    name: "slice-dim-0",
    title: "A rank's slice, dimension 0",
    about: "Rank 3 of 8 loads its rows of every matrix of the Llama: 0.26 GiB in runs of some \
            hundred KiB. Opening the file is included. Python's slices are views of a mapping, so \
            they are followed by `clone()`.",
    data: Dataset::Llama,
    cache: Cache::Warm,
    touch: GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours(
            "safeshard-2",
            "safeshard `sharded_var_builder`, 2 threads",
            |path| safeshard(path, 0, Io::default()),
        ),
        Contender::ours(
            "safeshard-mapped-2",
            "the same, mapped as the rivals are",
            |path| safeshard(path, 0, mapped()),
        ),
        Contender::ours(
            "at-once-2",
            "safeshard `load_with`, all parts at once, 2 threads",
            |path| at_once(path, 0, Io::default()),
        ),
        Contender::ours(
            "at-once-mapped-2",
            "the same, mapped as the rivals are",
            |path| at_once(path, 0, mapped()),
        ),
        Contender::rival(
            "pages-one-by-one",
            "the same, faulting pages one by one",
            |path| {
                Technique::PagesAtOnce.switch_off();
                safeshard(path, 0, Io::default())
            },
        ),
        Contender::rival("candle", "candle `ShardedSafeTensors`", |path| {
            candle(path, 0)
        }),
        Contender::python("python", "Python `get_slice` + `clone`", "slice_dim_0", &[]),
    ],
    targets: TARGETS,
};

pub(super) const DIM_1: Job = Job {
    name: "slice-dim-1",
    title: "A rank's slice, dimension 1",
    about: "The same with columns: runs of 384 or 1152 bytes.",
    contenders: &[
        Contender::ours(
            "safeshard-2",
            "safeshard `sharded_var_builder`, 2 threads",
            |path| safeshard(path, 1, Io::default()),
        ),
        Contender::ours(
            "safeshard-mapped-2",
            "the same, mapped as the rivals are",
            |path| safeshard(path, 1, mapped()),
        ),
        Contender::ours(
            "at-once-2",
            "safeshard `load_with`, all parts at once, 2 threads",
            |path| at_once(path, 1, Io::default()),
        ),
        Contender::ours(
            "at-once-mapped-2",
            "the same, mapped as the rivals are",
            |path| at_once(path, 1, mapped()),
        ),
        Contender::rival("candle", "candle `ShardedSafeTensors`", |path| {
            candle(path, 1)
        }),
        Contender::python("python", "Python `get_slice` + `clone`", "slice_dim_1", &[]),
    ],
    ..DIM_0
};

pub(super) const MIDDLE: Job = Job {
    name: "slice-middle",
    title: "A rank's slice, the middle one of three dimensions",
    about: "The same with the experts of a layer in one tensor of three dimensions: 32 runs of \
            576 KiB a tensor, 72 MiB in all.",
    data: Dataset::Experts,
    ..DIM_1
};

const TARGETS: &[Target] = &[
    Target::time("safeshard-2", "candle", 0.10, 0.05),
    Target::time("safeshard-2", "python", 0.90, 0.50),
    Target::time("at-once-2", "candle", 0.10, 0.05),
    Target::time("at-once-2", "python", 0.90, 0.50),
    Target::time("at-once-mapped-2", "candle", 0.10, 0.05),
    Target::time("at-once-mapped-2", "python", 0.90, 0.50),
    Target::memory("safeshard-2"),
    Target::memory("at-once-2"),
];

fn shard(dim: usize) -> Shard {
    Shard {
        dim,
        rank: 3,
        world_size: 8,
    }
}

/// What there is to slice.
fn matrices(path: &Path) -> Result<Vec<(String, Vec<usize>)>> {
    let mut matrices = shapes(&files(path)?)?;
    matrices.retain(|(_, shape)| shape.len() > 1);
    Ok(matrices)
}

fn mapped() -> Io {
    // SAFETY: nobody writes to the generated files once they have their name.
    unsafe { Io::mmap() }
}

fn safeshard(path: &Path, dim: usize, io: Io) -> Result<Prepared> {
    let (path, matrices) = (owned(path), matrices(path)?);
    Ok(Box::new(move || {
        let mut options = threads(2);
        options.open.io = io;
        let weights = Weights::open_with(path, &options)?;
        let vb = weights.sharded_var_builder(DType::BF16, &Device::Cpu);
        let mut loaded = HashMap::new();
        for (name, shape) in matrices {
            let tensor = vb.get_with_hints(shape, &name, shard(dim))?;
            loaded.insert(name, tensor);
        }
        Ok(tensors(loaded, vb))
    }))
}

/// What whoever knows the names and shapes of a whole model can do.
fn at_once(path: &Path, dim: usize, io: Io) -> Result<Prepared> {
    let (path, matrices) = (owned(path), matrices(path)?);
    let names: HashSet<_> = matrices.into_iter().map(|(name, _)| name).collect();
    let Shard {
        rank, world_size, ..
    } = shard(dim);
    let (rank, ranks) = (rank as u64, world_size as u64);
    Ok(Box::new(move || {
        let mut options = threads(2);
        options.open.io = io;
        options.filter = Some(Arc::new(move |name| names.contains(name)));
        options.part = Some(Arc::new(move |_, shape| {
            let mut part: Vec<_> = shape.iter().map(|&size| DimRange::all(size)).collect();
            part[dim] = DimRange::from(shape[dim] * rank / ranks..shape[dim] * (rank + 1) / ranks);
            part
        }));
        let (loaded, _) = load_with(path, &Device::Cpu, &options)?;
        Ok(tensors(loaded, ()))
    }))
}

fn candle(path: &Path, dim: usize) -> Result<Prepared> {
    let (files, matrices) = (files(path)?, matrices(path)?);
    Ok(Box::new(move || {
        // SAFETY: nobody writes to the generated files once they have their name.
        let vb = unsafe { ShardedSafeTensors::var_builder(&files, DType::BF16, &Device::Cpu) }?;
        let mut loaded = HashMap::new();
        for (name, shape) in matrices {
            let tensor = vb.get_with_hints(shape, &name, shard(dim))?;
            loaded.insert(name, tensor);
        }
        Ok(tensors(loaded, vb))
    }))
}
