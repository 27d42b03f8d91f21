//! The adapter of the toy framework: all that a new framework needs, with the same entry points as the others.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::slice;
use std::sync::Arc;

use safeshard_core::{
    Code, DimRange, Dtype, Error, IntoCheckpoint, LoadOptions, LoadReport, Planned, ReadOptions,
    Result, SaveOptions, SaveReport, SaveTensor, Support, TensorData, TypedVec, Unsupported,
    WriteBytes, gather,
};

use crate::framework::{Storage, Tensor};

/// All tensors of a checkpoint, at a path or open already, wherever its tensors lie.
pub(crate) fn load(checkpoint: impl IntoCheckpoint) -> Result<HashMap<String, Tensor>> {
    Ok(load_with(checkpoint, &LoadOptions::default())?.0)
}

/// The same, with options, and what was done.
pub(crate) fn load_with(
    checkpoint: impl IntoCheckpoint,
    options: &LoadOptions,
) -> Result<(HashMap<String, Tensor>, LoadReport)> {
    let checkpoint = checkpoint.into_checkpoint(&options.open)?;
    let plan = checkpoint.plan(options, support)?;
    let read = checkpoint.read_planned(&plan.tensors, &options.read)?;
    let tensors = plan.tensors.iter().zip(read);
    let tensors = tensors.map(|(planned, elements)| tensor(planned, elements));
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    Ok((plan.named(tensors, Tensor::clone), plan.report))
}

/// Part of one tensor.
pub(crate) fn slice(
    checkpoint: impl IntoCheckpoint,
    name: &str,
    ranges: &[Range<usize>],
) -> Result<Tensor> {
    let checkpoint = checkpoint.into_checkpoint_of(name)?;
    let ranges: Vec<_> = ranges.iter().cloned().map(DimRange::from).collect();
    let planned = checkpoint.plan_one(name, &ranges, None, Unsupported::Refuse, support)?;
    let read = checkpoint.read_planned(slice::from_ref(&planned), &ReadOptions::default())?;
    let missing = || Error::new(Code::TensorMissing).in_tensor(name);
    tensor(&planned, read.into_iter().next().ok_or_else(missing)?)
}

/// Saves tensors, owned or borrowed, in a file or a folder.
pub(crate) fn save<N: AsRef<str>, T: AsRef<Tensor>>(
    tensors: impl IntoIterator<Item = (N, T)>,
    path: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<SaveReport> {
    let tensors = tensors.into_iter();
    let tensors = tensors.map(|(name, tensor)| Ok(tensor_to_save(name.as_ref(), tensor.as_ref())));
    safeshard_core::save(SaveTensor::in_natural_order(tensors)?, path, options)
}

/// A tensor for the core's `save`, or for another framework's loader.
pub(crate) fn tensor_to_save(name: &str, tensor: &Tensor) -> SaveTensor<'static> {
    let dtype = match &tensor.storage {
        Storage::F32(_) => Dtype::F32,
        Storage::I64(_) => Dtype::I64,
    };
    SaveTensor::new(name, dtype, shape(tensor), Elements(tensor.clone()))
}

/// Which dtypes the framework has, and what holds the values of others.
fn support(dtype: Dtype) -> Support {
    match dtype {
        Dtype::F32 | Dtype::I64 => Support::Native,
        Dtype::F16 | Dtype::Bf16 => Support::Widen(Dtype::F32),
        Dtype::I32 | Dtype::U8 => Support::Widen(Dtype::I64),
        _ => Support::Never,
    }
}

/// What was read, as the framework's, without a copy.
fn tensor(planned: &Planned, elements: TypedVec) -> Result<Tensor> {
    let storage = match elements {
        TypedVec::F32(elements) => Storage::F32(Arc::new(elements)),
        TypedVec::I64(elements) => Storage::I64(Arc::new(elements)),
        _ => return Err(Error::new(Code::UnsupportedDtype).in_tensor(&planned.name)),
    };
    let shape = planned.shape.iter().map(|&dim| dim as usize);
    Ok(Tensor::new(storage, shape.collect()))
}

fn shape(tensor: &Tensor) -> Vec<u64> {
    tensor.shape.iter().map(|&dim| dim as u64).collect()
}

/// The bytes of a tensor.
struct Elements(Tensor);

impl Elements {
    fn element_size(&self) -> u64 {
        match self.0.storage {
            Storage::F32(_) => 4,
            Storage::I64(_) => 8,
        }
    }
}

impl TensorData for Elements {
    fn byte_len(&self) -> Option<u64> {
        Some(shape(&self.0).iter().product::<u64>() * self.element_size())
    }

    fn place(&self) -> Option<Range<usize>> {
        if self.is_materialised() {
            return None;
        }
        let memory = match &self.0.storage {
            Storage::F32(memory) => memory.as_ptr().addr(),
            Storage::I64(memory) => memory.as_ptr().addr(),
        };
        let start = memory + self.0.offset * self.element_size() as usize;
        Some(start..start + self.byte_len()? as usize)
    }

    fn is_materialised(&self) -> bool {
        let in_order = Tensor::new(self.0.storage.clone(), self.0.shape.clone());
        self.0.strides != in_order.strides
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let copy = |ranges: &[Range<u64>], write: &mut WriteBytes<'_>| {
            let narrowed = |part: Tensor, (dim, range): (usize, &Range<u64>)| {
                part.narrow(dim, range.start as usize..range.end as usize)
            };
            let part = ranges.iter().enumerate().fold(self.0.clone(), narrowed);
            write(&part.to_bytes())
        };
        gather(&shape(&self.0), self.element_size(), range, copy, write)
    }
}
