//! Everything at once, or one tensor, or part of one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use safeshard_core::{
    Checkpoint, Code, DimRange, Error, IntoCheckpoint, LoadOptions, LoadReport, Planned, Progress,
    ReadOptions, Result, Unsupported,
};
use tch::{Device, Tensor};

use crate::blob::{Block, Room};
use crate::dtype::{framework, support};

/// Memory of the host through which tensors for other devices pass, unless one is larger.
const HOST_BYTES: usize = 64 << 20;

/// All tensors of a checkpoint, as they are stored: of one at a path (a file, an index or a folder), or of one
/// that is open already.
///
/// Each byte is copied once, from the file into the tensor's own uninitialised memory, by a few
/// threads; for N bytes of tensors the peak is N and little more. For another device 64 MiB of the host's
/// memory are used, or as much as the largest tensor needs; for a GPU they are pinned. Tied tensors that
/// were stored once are one tensor under both names.
///
/// # Errors
/// As [`Checkpoint::open`]; `unsupported-dtype`, naming every tensor that libtorch cannot
/// [hold](crate::support); `cast-value` where a `BOOL` is neither 0 nor 1, which is looked for in every byte
/// of such tensors; or what reading meets. Then nothing is handed out.
///
/// ```
/// use tch::{Device, Kind, Tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// let w = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
/// safeshard_tch::save([("w", &w)], &path)?;
///
/// let tensors = safeshard_tch::load(&path, Device::Cpu)?;
/// assert_eq!(tensors["w"], w);
/// let column = safeshard_tch::slice(&path, "w", &[0..2, 1..2], Device::Cpu)?;
/// assert_eq!(column, w.narrow(1, 1, 1));
/// # Ok::<(), safeshard_tch::Error>(())
/// ```
pub fn load(checkpoint: impl IntoCheckpoint, device: Device) -> Result<HashMap<String, Tensor>> {
    let (tensors, _) = load_with(checkpoint, device, &LoadOptions::default())?;
    Ok(tensors)
}

/// As [`load`], with options: which tensors, under which names, in which dtype, and how they are read. The
/// report says what was cast, skipped, and which names share a tensor.
///
/// # Errors
/// As [`load`]; `unsupported-cast`, `name-collision`, `cancelled`.
///
/// ```
/// use std::sync::Arc;
/// use safeshard_tch::{LoadOptions, floats_as, load_with};
/// use tch::{Device, Kind, Tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// # let w = Tensor::zeros([2], (Kind::BFloat16, Device::Cpu));
/// # safeshard_tch::save([("model.w", &w)], &path)?;
/// let options = LoadOptions {
///     rename: Some(Arc::new(|name| name.replace("model.", ""))),
///     ..floats_as(Kind::Float)
/// };
/// let (tensors, report) = load_with(&path, Device::Cpu, &options)?;
/// assert_eq!(tensors["w"].kind(), Kind::Float);
/// println!("{report}"); // 1 tensors loaded; 1 cast
/// # Ok::<(), safeshard_tch::Error>(())
/// ```
pub fn load_with(
    checkpoint: impl IntoCheckpoint,
    device: Device,
    options: &LoadOptions,
) -> Result<(HashMap<String, Tensor>, LoadReport)> {
    let checkpoint = checkpoint.into_checkpoint(&options.open)?;
    let plan = checkpoint.plan(options, support)?;
    let tensors = read(&checkpoint, &plan.tensors, device, &options.read)?;
    Ok((plan.named(tensors, Tensor::shallow_clone), plan.report))
}

/// One tensor of a checkpoint, in memory of its own, as it is stored. One copy. Of shards with an index at a path,
/// only the one that holds it is opened. For more than one tensor, open a [`Checkpoint`].
///
/// # Errors
/// As [`Checkpoint::open`]; `tensor-missing`, `unsupported-dtype`, `cast-value` where a `BOOL` is neither 0 nor 1,
/// or what reading meets.
pub fn tensor(checkpoint: impl IntoCheckpoint, name: &str, device: Device) -> Result<Tensor> {
    slice(checkpoint, name, &[], device)
}

/// Part of one tensor of a checkpoint: one range a dimension, from the first one on; the dimensions behind the last
/// range are taken whole. Only the bytes of the part are read, and small gaps between them. Ranges count
/// elements as the file does, also of `F4`.
///
/// # Errors
/// As [`tensor`]; `slice-rank`, `slice-range`, `slice-reversed`, `slice-sub-byte`.
pub fn slice(
    checkpoint: impl IntoCheckpoint,
    name: &str,
    ranges: &[Range<usize>],
    device: Device,
) -> Result<Tensor> {
    let checkpoint = checkpoint.into_checkpoint_of(name)?;
    let ranges: Vec<_> = ranges.iter().cloned().map(DimRange::from).collect();
    let planned = checkpoint.plan_one(name, &ranges, None, Unsupported::Refuse, support)?;
    let mut read = read(&checkpoint, &[planned], device, &ReadOptions::default())?;
    read.pop()
        .ok_or_else(|| Error::new(Code::TensorMissing).in_tensor(name))
}

/// Reads what was planned, in its order.
pub(crate) fn read(
    checkpoint: &Checkpoint,
    plan: &[Planned],
    device: Device,
    options: &ReadOptions,
) -> Result<Vec<Tensor>> {
    match device {
        Device::Cpu => {
            let rooms = plan.iter().map(Room::new).collect::<Result<_>>()?;
            fill(checkpoint, plan, rooms, options)
        }
        _ => read_by_way_of_host(checkpoint, plan, device, options, HOST_BYTES),
    }
}

/// Reads as many tensors at a time as a block of the host's memory holds, and copies them to a device.
fn read_by_way_of_host(
    checkpoint: &Checkpoint,
    plan: &[Planned],
    device: Device,
    options: &ReadOptions,
    host_bytes: usize,
) -> Result<Vec<Tensor>> {
    // Each tensor has at most a little space before it, so the largest one fits alone.
    let largest = plan.iter().map(|planned| planned.byte_len).max();
    let largest =
        usize::try_from(largest.unwrap_or_default()).map_err(|_| Error::new(Code::LimitMemory))?;
    let mut block = Block::new(largest.max(host_bytes), device)?;
    let stored = |planned: &Planned| checkpoint.info(&planned.stored).map(|info| info.byte_len());
    let total = plan.iter().map(stored).sum::<Result<u64>>()?;

    let mut tensors = Vec::with_capacity(plan.len());
    let (mut rest, mut done) = (plan, 0);
    while !rest.is_empty() {
        let mut rooms = Vec::new();
        for planned in rest {
            match block.room(planned)? {
                Some(room) => rooms.push(room),
                None => break,
            }
        }
        let (batch, behind) = rest.split_at(rooms.len());
        let options = part_of(options, done, total);
        for (planned, tensor) in batch.iter().zip(fill(checkpoint, batch, rooms, &options)?) {
            let moved = match device {
                // Where it is already; the block is used again.
                Device::Cpu => Ok(tensor.copy()),
                device => tensor.f_to_device(device),
            };
            tensors.push(moved.map_err(|error| framework(&error).in_tensor(&planned.name))?);
        }
        done += batch.iter().map(stored).sum::<Result<u64>>()?;
        rest = behind;
        block.clear()?;
    }
    Ok(tensors)
}

/// Options for a read that is part of a larger one: progress is told of the whole.
fn part_of(options: &ReadOptions, before: u64, total: u64) -> ReadOptions {
    let whole = options.progress.clone();
    ReadOptions {
        progress: whole.map(|whole| -> Arc<dyn Fn(Progress) + Send + Sync> {
            Arc::new(move |part| whole(Progress::new(before + part.done, total)))
        }),
        ..options.clone()
    }
}

fn fill(
    checkpoint: &Checkpoint,
    plan: &[Planned],
    rooms: Vec<Room>,
    options: &ReadOptions,
) -> Result<Vec<Tensor>> {
    let parts = plan.iter().zip(rooms);
    let parts = parts.map(|(planned, room)| planned.fill(room)).collect();
    let filled = checkpoint.fill(parts, options)?.into_iter().zip(plan);
    filled
        .map(|(tensor, planned)| tensor.map_err(|error| error.in_tensor(&planned.name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tch::Kind;

    /// As on the way to a device that there may not be here.
    #[test]
    fn what_passes_through_a_small_block_is_what_one_read_gives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = (0..10).map(|i| {
            let tensor = Tensor::arange(i * 30, (Kind::Float, Device::Cpu)) + i;
            (format!("t{i}"), tensor)
        });
        crate::save(tensors, &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let plan = checkpoint.plan(&LoadOptions::default(), support).unwrap();
        let expected = read(
            &checkpoint,
            &plan.tensors,
            Device::Cpu,
            &ReadOptions::default(),
        );
        let expected = expected.unwrap();
        for host_bytes in [0, 2000, 1 << 20] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let progress = Arc::clone(&seen);
            let options = ReadOptions {
                progress: Some(Arc::new(move |at| progress.lock().unwrap().push(at))),
                ..ReadOptions::default()
            };
            let plan = &plan.tensors;
            let tensors = read_by_way_of_host(&checkpoint, plan, Device::Cpu, &options, host_bytes);
            assert_eq!(tensors.unwrap(), expected, "{host_bytes}");
            let seen = seen.lock().unwrap();
            assert!(seen.is_sorted_by_key(|progress| progress.done));
            let last = seen.last().unwrap();
            assert_eq!((last.done, last.total), (5400, 5400));
        }
    }
}
