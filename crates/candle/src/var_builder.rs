//! What an ordinary `VarBuilder` asks.

use std::collections::HashMap;
use std::sync::Mutex;

use candle_core::{DType, Device, DeviceLocation, Shape, Tensor};
use candle_nn::var_builder::{Shard, SimpleBackend};
use candle_nn::{Init, VarBuilder};
use safeshard_core::{Dtype, Result};

use crate::outlook::Expected;
use crate::prefetch::Prefetcher;
use crate::tensor::into_candle;
use crate::weights::Want;
use crate::{Weights, lock};

const WHOLE: Shard = Shard {
    dim: 0,
    rank: 0,
    world_size: 1,
};

pub(crate) fn builder(weights: &Weights, dtype: DType, device: &Device) -> VarBuilder<'static> {
    let backend = Backend {
        weights: weights.clone(),
        prefetcher: Prefetcher::new(weights, dtype, Expected::Always(WHOLE)),
        tied: Mutex::default(),
    };
    VarBuilder::from_backend(Box::new(backend), dtype, device.clone())
}

struct Backend {
    weights: Weights,
    prefetcher: Prefetcher,
    /// Tensors that have several names, so that all of them get the same one.
    tied: Mutex<HashMap<(String, Dtype, DeviceLocation), Tensor>>,
}

impl Backend {
    fn tensor(
        &self,
        shape: Option<&Shape>,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let planned = self.weights.plan(name, &[], Want::Floats(dtype))?;
        if let Some(shape) = shape {
            self.weights.check_shape(&planned, shape.dims())?;
        }
        let read = || {
            let elements = self.prefetcher.read(&planned, WHOLE)?;
            self.weights.finish(&planned, elements, device)
        };
        let mut kept = self.weights.checkpoint().aliases().values();
        if !kept.any(|kept| *kept == planned.stored) {
            return read();
        }
        let key = (planned.stored.clone(), planned.dtype, device.location());
        let known = lock(&self.tied).get(&key).cloned();
        if let Some(tensor) = known {
            self.weights.note_loaded(&planned);
            return Ok(tensor);
        }
        let tensor = read()?;
        Ok(lock(&self.tied).entry(key).or_insert(tensor).clone())
    }
}

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.tensor(Some(&shape), name, dtype, device);
        tensor.map_err(into_candle)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.tensor(None, name, dtype, device);
        tensor.map_err(into_candle)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.contains(name)
    }
}
