//! Everything at once, or one tensor, or part of one.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use safeshard_core::{
    Dtype, IntoCheckpoint, LoadOptions, LoadReport, Planned, Result, Support, TypedVec,
};

use crate::Weights;
use crate::progress::Meter;

/// Memory of the host through which tensors for other devices pass at a time.
const HOST_BYTES: u64 = 64 << 20;

/// All tensors of a checkpoint, as they are stored: of one at a path (a file, an index or a folder), or of one
/// that is open already.
///
/// Each byte is copied once, from the file into the tensor's own memory, by a few threads; for N
/// bytes of tensors the peak is N and less than 64 MiB. For a device other than the CPU at most
/// 64 MiB of the host's memory are used at a time, or one tensor. Tied tensors that were stored once
/// share one tensor under both names.
///
/// # Errors
/// As [`Checkpoint::open`](safeshard_core::Checkpoint::open); `unsupported-dtype`, naming every
/// tensor that candle has no dtype for and what would load it; or what reading meets. Then nothing
/// is handed out.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// let w = Tensor::arange(0f32, 6., &Device::Cpu)?.reshape((2, 3))?;
/// w.save_safetensors("w", &path)?;
///
/// let tensors = safeshard_candle::load(&path, &Device::Cpu)?;
/// assert_eq!(tensors["w"].to_vec2::<f32>()?, w.to_vec2::<f32>()?);
/// let column = safeshard_candle::slice(&path, "w", &[0..2, 1..2], &Device::Cpu)?;
/// assert_eq!(column.to_vec2::<f32>()?, [[1.], [4.]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn load(checkpoint: impl IntoCheckpoint, device: &Device) -> Result<HashMap<String, Tensor>> {
    let (tensors, _) = load_with(checkpoint, device, &LoadOptions::default())?;
    Ok(tensors)
}

/// As [`load`], with options: which tensors, under which names, in which dtype, and what to do with
/// those that candle cannot hold. The report says what was cast, skipped, and which names share a
/// tensor.
///
/// # Errors
/// As [`load`]; `unsupported-cast`, `name-collision`, `cancelled`.
///
/// ```
/// use candle_core::{DType, Device};
/// use safeshard_candle::{LoadOptions, Unsupported, floats_as, load_with};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// # let w = candle_core::Tensor::zeros(2, DType::BF16, &Device::Cpu).unwrap();
/// # w.save_safetensors("model.w", &path).unwrap();
/// let options = LoadOptions {
///     rename: Some(std::sync::Arc::new(|name| name.replace("model.", ""))),
///     unsupported: Unsupported::Skip,
///     ..floats_as(DType::F32)
/// };
/// let (tensors, report) = load_with(&path, &Device::Cpu, &options)?;
/// assert_eq!(tensors["w"].dtype(), DType::F32);
/// println!("{report}"); // 1 tensors loaded; 1 cast
/// # Ok::<(), safeshard_candle::Error>(())
/// ```
pub fn load_with(
    checkpoint: impl IntoCheckpoint,
    device: &Device,
    options: &LoadOptions,
) -> Result<(HashMap<String, Tensor>, LoadReport)> {
    Weights::open_with(checkpoint, options)?.load(device)
}

/// One tensor of a checkpoint, as it is stored. Of shards with an index at a path, only the one that holds it is
/// opened. For more than one tensor, open a [`Checkpoint`](safeshard_core::Checkpoint) or keep a [`Weights`].
///
/// # Errors
/// As [`Weights::open`] and [`Weights::tensor`].
pub fn tensor(checkpoint: impl IntoCheckpoint, name: &str, device: &Device) -> Result<Tensor> {
    slice(checkpoint, name, &[], device)
}

/// Part of one tensor of a checkpoint: one range a dimension, from the first one on; the
/// dimensions behind the last range are taken whole. Reads only the bytes of the part, and small
/// gaps between them. Of shards with an index at a path, only the one that holds the tensor is opened.
///
/// # Errors
/// As [`Weights::open`] and [`Weights::slice`].
pub fn slice(
    checkpoint: impl IntoCheckpoint,
    name: &str,
    ranges: &[Range<usize>],
    device: &Device,
) -> Result<Tensor> {
    let checkpoint = checkpoint.into_checkpoint_of(name)?;
    Weights::open(checkpoint)?.slice(name, ranges, None, device)
}

/// An ordinary candle `VarBuilder` for a checkpoint, at a path or open already; [`Weights::var_builder`] is the
/// same with options and a report.
///
/// - Floats are cast to the builder's `dtype` while they are read. Integers are never cast: asked
///   for by a builder of a float dtype they come as they are stored, asked for in an integer dtype
///   (`get_with_hints_dtype`) in that one or not at all. What candle has no dtype for fails alone,
///   with the rule that would load it.
/// - The shape is compared before anything is read.
/// - A background thread reads on, up to 48 MiB, while the model is built: layer by layer, each in the
///   order in which the model asked for the first one. It ends with the last clone of the builder. What
///   it could not read fails where it is asked for.
/// - Tied tensors that were stored once are read once.
/// - Errors of `get` are this crate's, with their message and as `candle_core::Error`.
///
/// candle's `to_dtype` does not reach `get_unchecked`, whatever the backend: take a second builder
/// from the [`Weights`] instead. For other names, use
/// [`LoadOptions::rename`](safeshard_core::LoadOptions::rename): candle's `rename_f` doubles the
/// prefix of a builder that has one.
///
/// # Errors
/// As [`Weights::open`].
///
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// # let w = Tensor::zeros((2, 3), DType::BF16, &Device::Cpu).unwrap();
/// # w.save_safetensors("proj.weight", path).unwrap();
/// # let path = folder.path();
/// let vb = safeshard_candle::var_builder(path, DType::F32, &Device::Cpu)?;
/// let layer = candle_nn::linear_no_bias(3, 2, vb.pp("proj")).unwrap();
/// assert_eq!(layer.weight().dtype(), DType::F32);
/// # Ok::<(), safeshard_candle::Error>(())
/// ```
pub fn var_builder(
    checkpoint: impl IntoCheckpoint,
    dtype: DType,
    device: &Device,
) -> Result<VarBuilder<'static>> {
    Ok(Weights::open(checkpoint)?.var_builder(dtype, device))
}

/// Loads everything the options ask for, and makes of each tensor what `make` says.
pub(crate) fn load_all<T: Clone>(
    weights: &Weights,
    device: &Device,
    support: impl Fn(Dtype) -> Support,
    make: impl Fn(&Planned, TypedVec, &Device) -> Result<T>,
) -> Result<(HashMap<String, T>, LoadReport)> {
    // For the CPU the elements that are read are the tensors: they are wanted all at once.
    let most = if device.is_cpu() {
        u64::MAX
    } else {
        HOST_BYTES
    };
    load_in_batches(weights, device, most, support, make)
}

fn load_in_batches<T: Clone>(
    weights: &Weights,
    device: &Device,
    most: u64,
    support: impl Fn(Dtype) -> Support,
    make: impl Fn(&Planned, TypedVec, &Device) -> Result<T>,
) -> Result<(HashMap<String, T>, LoadReport)> {
    let mut plan = weights.checkpoint().plan(weights.options(), support)?;
    let sizes = plan.tensors.iter().map(|planned| planned.byte_len);
    if sizes.fold(0, u64::saturating_add) > most {
        let order = weights.in_file_order().zip(0..);
        let order = order.collect::<HashMap<_, usize>>();
        plan.tensors
            .sort_by_key(|planned| order.get(planned.stored.as_str()));
    }
    let meter = Meter::new(
        weights,
        plan.tensors.iter().map(|planned| planned.stored.as_str()),
    );
    let mut all = Vec::with_capacity(plan.tensors.len());
    for batch in batches(&plan.tensors, most) {
        let elements = weights.read(batch, &meter.options())?;
        for (planned, elements) in batch.iter().zip(elements) {
            all.push(make(planned, elements, device)?);
        }
    }
    Ok((plan.named(all, T::clone), plan.report))
}

/// Neighbours that together have at most `most` bytes, or are a single tensor.
fn batches(mut tensors: &[Planned], most: u64) -> impl Iterator<Item = &[Planned]> {
    std::iter::from_fn(move || {
        let mut bytes = 0_u64;
        let fitting = tensors.iter().take_while(|planned| {
            bytes = bytes.saturating_add(planned.byte_len);
            bytes <= most
        });
        let (batch, rest) = tensors.split_at_checked(fitting.count().max(1))?;
        tensors = rest;
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support;
    use crate::tensor::tensor;
    use candle_core::Tensor;
    use std::sync::{Arc, Mutex};

    #[test]
    fn batches_give_what_one_read_gives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = (0..10_usize).map(|i| {
            let tensor = Tensor::full(i as f32, i * 3, &Device::Cpu).unwrap();
            (format!("t{i}"), tensor)
        });
        candle_core::safetensors::save(&tensors.collect(), &path).unwrap();

        let calls = Arc::new(Mutex::new(Vec::new()));
        let mut options = LoadOptions::default();
        let seen = Arc::clone(&calls);
        options.read.progress = Some(Arc::new(move |progress| {
            seen.lock().unwrap().push((progress.done, progress.total));
        }));
        let weights = Weights::open_with(&path, &options).unwrap();
        for most in [0, 12, 100, 1 << 20] {
            calls.lock().unwrap().clear();
            let (loaded, report) =
                load_in_batches(&weights, &Device::Cpu, most, support, tensor).unwrap();
            assert_eq!(report.loaded.len(), 10);
            for i in 0..10_usize {
                let expected = vec![i as f32; i * 3];
                assert_eq!(loaded[&format!("t{i}")].to_vec1::<f32>().unwrap(), expected);
            }
            let calls = calls.lock().unwrap();
            assert!(calls.is_sorted());
            assert_eq!(calls.last(), Some(&(540, 540)), "batches of {most} bytes");
        }
    }
}
