//! What one rank of a tensor-parallel model needs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use candle_core::{DType, Device, Tensor};
use candle_nn::var_builder::{Shard, ShardedSafeTensors};
use memmap2::{Advice, Mmap};
use safeshard::candle::{Weights, load_with};
use safeshard::{Checkpoint, DimRange, Io, OpenOptions, Technique};

use super::common::{GIB, owned, shapes, tensors, threads};
use crate::data::{Dataset, files};
use crate::job::{Cache, Contender, Job, Opens, Prepared, Target};
use crate::{Result, memory};

pub(super) const DIM_0: Job = Job {
    name: "slice-dim-0",
    title: "A rank's slice, dimension 0",
    about: "Rank 3 of 8 loads its rows of every matrix of the Llama: 0.26 GiB in runs of some \
            hundred KiB. Opening the file is included. Python's slices are views of a mapping, so \
            they are followed by `clone()`. The floor is no loader: two threads copy the runs out of a \
            mapping that has all its pages before the clock starts.",
    data: Dataset::Llama,
    cache: Cache::Warm,
    touch: GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &contenders::<0>("slice_dim_0"),
    targets: TARGETS,
};

pub(super) const DIM_1: Job = Job {
    name: "slice-dim-1",
    title: "A rank's slice, dimension 1",
    about: "The same with columns: runs of 384 or 1152 bytes. Reading them means that the kernel copies \
            whole rows, all of the 2.1 GiB: a call for each run takes as long as copying what lies \
            between two. Rivals map the file, and touch the runs only; mapped, so do we.",
    contenders: &contenders::<1>("slice_dim_1"),
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
    Target::time("safeshard-mapped-2", "candle", 0.10, 0.05),
    Target::time("safeshard-mapped-2", "python", 0.90, 0.50),
    Target::time("at-once-2", "candle", 0.10, 0.05),
    Target::time("at-once-2", "python", 0.90, 0.50),
    Target::time("at-once-mapped-2", "candle", 0.10, 0.05),
    Target::time("at-once-mapped-2", "python", 0.90, 0.50),
    Target::memory("safeshard-2"),
    Target::memory("at-once-2"),
];

/// Those that slice that dimension; `python` is the function that does.
const fn contenders<const DIM: usize>(python: &'static str) -> [Contender; 9] {
    [
        Contender::ours(
            "safeshard-2",
            "safeshard `sharded_var_builder`, 2 threads",
            |path| safeshard(path, DIM, Io::default()),
        ),
        Contender::ours(
            "safeshard-mapped-2",
            "safeshard `sharded_var_builder`, mapped as rivals are",
            |path| safeshard(path, DIM, mapped()),
        ),
        Contender::ours(
            "at-once-2",
            "safeshard `load_with`, all parts at once, 2 threads",
            |path| at_once(path, DIM, Io::default()),
        ),
        Contender::ours(
            "at-once-mapped-2",
            "safeshard `load_with`, mapped as rivals are",
            |path| at_once(path, DIM, mapped()),
        ),
        Contender::rival(
            "one-by-one",
            "safeshard `Weights::slice` of each, nothing read ahead",
            |path| one_by_one(path, DIM),
        ),
        Contender::rival(
            "pages-one-by-one",
            "the same, faulting pages one by one",
            |path| {
                Technique::PagesAtOnce.switch_off();
                one_by_one(path, DIM)
            },
        ),
        Contender::rival("candle", "candle `ShardedSafeTensors`", |path| {
            candle(path, DIM)
        }),
        Contender::python("python", "Python `get_slice` + `clone`", python, &[]),
        Contender::floor("floor", "floor: `memcpy` of the runs, 2 threads", |path| {
            floor(path, DIM)
        }),
    ]
}

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

fn one_by_one(path: &Path, dim: usize) -> Result<Prepared> {
    let (path, matrices) = (owned(path), matrices(path)?);
    Ok(Box::new(move || {
        let weights = Weights::open_with(path, &threads(2))?;
        let mut loaded = HashMap::new();
        for (name, shape) in matrices {
            let shape: Vec<_> = shape.into_iter().map(|size| size as u64).collect();
            let ranges = ranges(&shape, dim).into_iter();
            let ranges: Vec<_> = ranges.map(|r| r.start as usize..r.stop as usize).collect();
            let tensor = weights.slice(&name, &ranges, Some(DType::BF16), &Device::Cpu)?;
            loaded.insert(name, tensor);
        }
        Ok(tensors(loaded, weights))
    }))
}

/// What whoever knows the names and shapes of a whole model can do.
fn at_once(path: &Path, dim: usize, io: Io) -> Result<Prepared> {
    let (path, matrices) = (owned(path), matrices(path)?);
    let names: HashSet<_> = matrices.into_iter().map(|(name, _)| name).collect();
    Ok(Box::new(move || {
        let mut options = threads(2);
        options.open.io = io;
        options.filter = Some(Arc::new(move |name| names.contains(name)));
        options.part = Some(Arc::new(move |_, shape| ranges(shape, dim)));
        let (loaded, _) = load_with(path, &Device::Cpu, &options)?;
        Ok(tensors(loaded, ()))
    }))
}

/// The least that anybody must do who has the whole file in memory already.
fn floor(path: &Path, dim: usize) -> Result<Prepared> {
    let files = files(path)?;
    let checkpoint = Checkpoint::open_files(&files, &OpenOptions::default())?;
    let [file] = checkpoint.files() else {
        return Err("the floor copies out of one file".into());
    };
    let mut parts = Vec::new();
    for (name, shape) in matrices(path)? {
        let info = checkpoint.info(&name)?;
        let slice = safeshard::Slice::new(info.dtype, info.shape, &ranges(info.shape, dim))?;
        let start = file.header().data_start() + info.start;
        let runs = slice.runs();
        let runs = runs.map(|run| (start + run.start) as usize..(start + run.end) as usize);
        let mut dims = shape;
        dims[dim] = slice.shape()[dim] as usize;
        parts.push((name, dims, runs.collect::<Vec<_>>()));
    }
    // SAFETY: nobody writes to the generated files once they have their name.
    let map = unsafe { Mmap::map(&File::open(&files[0])?) }?;
    map.advise(Advice::PopulateRead)?;
    Ok(Box::new(move || {
        let len = |runs: &[Range<usize>]| runs.iter().map(Range::len).sum::<usize>();
        let total: usize = parts.iter().map(|(_, _, runs)| len(runs)).sum();
        let mut arena = memory::arena(total as u64)?;
        let mut rest = &mut arena[..];
        let mut jobs = Vec::new();
        for (_, _, runs) in &parts {
            let (memory, behind) = rest.split_at_mut(len(runs));
            jobs.push((memory, runs));
            rest = behind;
        }
        let jobs = Mutex::new(jobs.into_iter());
        let copy = || {
            while let Some((mut memory, runs)) = jobs.lock().ok().and_then(|mut jobs| jobs.next()) {
                for run in runs {
                    let (part, behind) = memory.split_at_mut(run.len());
                    part.copy_from_slice(&map[run.clone()]);
                    memory = behind;
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(copy);
            copy();
        });
        Ok(Box::new(move || {
            let (mut loaded, mut start) = (HashMap::new(), 0);
            for (name, dims, runs) in parts {
                let bytes = &arena[start..start + len(&runs)];
                let tensor = Tensor::from_raw_buffer(bytes, DType::BF16, &dims, &Device::Cpu)?;
                start += bytes.len();
                loaded.insert(name, tensor);
            }
            tensors(loaded, map)()
        }))
    }))
}

/// Which part of a tensor of that shape belongs to the rank.
fn ranges(shape: &[u64], dim: usize) -> Vec<DimRange> {
    let Shard {
        rank, world_size, ..
    } = shard(dim);
    let (rank, ranks) = (rank as u64, world_size as u64);
    let mut ranges: Vec<_> = shape.iter().map(|&size| DimRange::all(size)).collect();
    ranges[dim] = DimRange::from(shape[dim] * rank / ranks..shape[dim] * (rank + 1) / ranks);
    ranges
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
