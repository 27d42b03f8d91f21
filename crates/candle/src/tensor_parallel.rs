//! Parts of tensors for the ranks of a tensor-parallel model.

use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::{Backend, Shard, VarBuilderArgs};
use safeshard_core::{Code, DimRange, Error, Result};

use crate::Weights;
use crate::outlook::Expected;
use crate::prefetch::Prefetcher;
use crate::tensor::into_candle;
use crate::weights::Want;

/// The backend of [`Weights::sharded_var_builder`]: `get_with_hints` takes a [`Shard`] and reads only
/// the bytes of that rank's part, along any dimension.
///
/// A dimension that does not divide evenly among the ranks is an error. The shape asked for may be
/// that of the part, that of the whole tensor, or `()` for one that is not compared.
/// `get_unchecked` gives whole tensors. Dtypes are treated as by
/// [`var_builder`](crate::var_builder()).
///
/// From the second layer on it reads ahead: once a rank has asked for the first half of
/// `layers.0.mlp.up`, that of the other layers is read in large batches while the model is built, in
/// two thirds of the time. Where different parts of a tensor are asked for, or one that was read is not,
/// nothing of its kind is read ahead any more. Memory: less than 64 MiB on top of what was asked for.
///
/// Parts of dimension 0 are long runs of bytes. Those of an inner dimension are short ones, and reading
/// them means to copy what lies between; out of a mapped file ([`Io::mmap`](safeshard_core::Io::mmap))
/// they come in about half of the time.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::var_builder::Shard;
/// use safeshard_candle::Weights;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// let w = Tensor::arange(0f32, 8., &Device::Cpu)?.reshape((2, 4))?;
/// w.save_safetensors("w", &path)?;
///
/// let vb = Weights::open(&path)?.sharded_var_builder(DType::F32, &Device::Cpu);
/// let second_half = Shard { dim: 1, rank: 1, world_size: 2 };
/// let part = vb.get_with_hints((2, 2), "w", second_half)?;
/// assert_eq!(part.to_vec2::<f32>()?, [[2., 3.], [6., 7.]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TensorParallel {
    weights: Weights,
    /// For the dtype of the builder.
    prefetcher: Arc<Prefetcher>,
}

pub(crate) fn builder(
    weights: &Weights,
    dtype: DType,
    device: &Device,
) -> VarBuilderArgs<'static, TensorParallel> {
    let backend = TensorParallel {
        weights: weights.clone(),
        prefetcher: Arc::new(Prefetcher::new(weights, dtype, Expected::Unknown)),
    };
    VarBuilderArgs::new_with_args(backend, dtype, device)
}

impl TensorParallel {
    fn part(
        &self,
        shape: &Shape,
        name: &str,
        shard: Shard,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let weights = &self.weights;
        let whole = weights.plan(name, &[], Want::Floats(dtype))?;
        let ranges = ranges(&whole.shape, shard).map_err(|error| error.in_tensor(name))?;
        let part = weights.plan(name, &ranges, Want::Floats(dtype))?;
        let dims = shape.dims();
        let is_whole = || {
            dims.iter()
                .map(|&dim| dim as u64)
                .eq(whole.shape.iter().copied())
        };
        if !dims.is_empty() && !is_whole() {
            weights.check_shape(&part, dims)?;
        }
        let elements = self.prefetcher.read(&part, shard)?;
        weights.finish(&part, elements, device)
    }
}

/// Which part of a tensor of this shape belongs to a rank.
pub(crate) fn ranges(shape: &[u64], shard: Shard) -> Result<Vec<DimRange>> {
    let Shard {
        dim,
        rank,
        world_size,
    } = shard;
    if rank >= world_size {
        return Err(Error::new(Code::SliceRange)
            .expected(format_args!("a rank below {world_size}"))
            .found(rank));
    }
    if world_size == 1 {
        return Ok(Vec::new());
    }
    let Some((outer, &size)) = shape.get(..dim).zip(shape.get(dim)) else {
        return Err(Error::new(Code::SliceRank)
            .expected(format_args!("one of {} dimensions", shape.len()))
            .found(format_args!("dimension {dim}")));
    };
    let (rank, ranks) = (rank as u64, world_size as u64);
    if !size.is_multiple_of(ranks) {
        return Err(Error::new(Code::ShapeMismatch)
            .expected(format_args!("a multiple of {ranks} in dimension {dim}"))
            .found(size));
    }
    let len = size / ranks;
    let mut ranges: Vec<_> = outer.iter().map(|&size| DimRange::all(size)).collect();
    ranges.push(DimRange::from(rank * len..(rank + 1) * len));
    Ok(ranges)
}

impl Backend for TensorParallel {
    type Hints = Shard;

    fn get(
        &self,
        shape: Shape,
        name: &str,
        shard: Shard,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let part = self.part(&shape, name, shard, dtype, device);
        part.map_err(into_candle)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        // Every shape is taken, and the only rank has all of it.
        self.get(Shape::from(()), name, Shard::default(), dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.contains(name)
    }
}
