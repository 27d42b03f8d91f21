//! Checkpoints over tensors that are there already.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use safeshard_core::{Code, Error, Fill, Planned, Result};

use crate::Weights;
use crate::bytes::{Span, storage_bytes_mut};
use crate::dtype::from_candle;
use crate::progress::Meter;
use crate::tensor::framework;
use crate::weights::Want;

/// Tensors that are locked and read into at a time: each is a level of the call stack.
const BATCH: usize = 32;

/// A tensor, and what goes into it.
struct Target {
    tensor: Tensor,
    planned: Planned,
}

impl Weights {
    /// Reads tensors of the checkpoint over the ones given, by their names: for models that are
    /// loaded again and again, without the cost of new memory, which is about half of a load.
    ///
    /// Shapes must be equal. Floats are cast to the dtype of the tensor that is there; everything else
    /// must have it already. All of that is checked before anything changes. Every other tensor or view
    /// of the same memory changes with it, candle's history of gradients does not see it, and what the
    /// checkpoint has besides is left alone.
    ///
    /// On the CPU each byte is copied once, from the file to where it belongs, by a few threads. On
    /// other devices one tensor at a time is read and copied there.
    ///
    /// # Errors
    /// Every tensor that does not fit, in one error, and nothing has changed: `tensor-missing`,
    /// `shape-mismatch`, `dtype-mismatch`, `unsupported-dtype`, `unsupported-cast`; `framework` for a
    /// tensor that is not contiguous. Or what reading meets: then some tensors hold what was read, some
    /// what was there before, and some zeros.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use candle_core::{DType, Device, Tensor};
    /// use safeshard_candle::{Weights, load};
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let (first, second) = (folder.path().join("1.safetensors"), folder.path().join("2.safetensors"));
    /// # for (path, value) in [(&first, 1f32), (&second, 2f32)] {
    /// #     Tensor::full(value, 3, &Device::Cpu)?.save_safetensors("w", path)?;
    /// # }
    /// let tensors = load(&first, &Device::Cpu)?;
    /// Weights::open(&second)?.load_into(&tensors)?;
    /// assert_eq!(tensors["w"].to_vec1::<f32>()?, [2., 2., 2.]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load_into<N, T>(&self, tensors: impl IntoIterator<Item = (N, T)>) -> Result<()>
    where
        N: AsRef<str>,
        T: Borrow<Tensor>,
    {
        let mut targets = Vec::new();
        let mut problems = Vec::new();
        for (name, tensor) in tensors {
            match self.target(name.as_ref(), tensor.borrow()) {
                Ok(target) => targets.push(target),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(Error::all(problems));
        }
        let order: HashMap<_, usize> = self.in_file_order().zip(0..).collect();
        targets.sort_by_key(|target| order.get(target.planned.stored.as_str()));
        let stored = targets.iter().map(|target| target.planned.stored.as_str());
        let meter = Meter::new(self, stored);
        for batch in batches(&targets) {
            with_memory(&batch, Vec::new(), &|parts| {
                self.checkpoint().overwrite(parts, &meter.options())
            })?;
        }
        let elsewhere = targets
            .iter()
            .filter(|target| !target.tensor.device().is_cpu());
        for Target { tensor, planned } in elsewhere {
            let elements = self.read_one(planned, &meter.options())?;
            let loaded = crate::tensor::tensor(planned, elements, tensor.device())?;
            // Both flat: a scalar has no dimension along which it could be set.
            let set = tensor
                .flatten_all()
                .and_then(|flat| flat.slice_set(&loaded.flatten_all()?, 0, 0));
            set.map_err(|error| framework(&error).in_tensor(&planned.name))?;
        }
        for target in &targets {
            self.note_loaded(&target.planned);
        }
        Ok(())
    }

    /// Decides how to read into a tensor, and that it fits.
    fn target(&self, name: &str, tensor: &Tensor) -> Result<Target> {
        let planned = self.plan(name, &self.part_of(name), Want::Floats(tensor.dtype()))?;
        self.check_shape(&planned, tensor.dims())?;
        if from_candle(tensor.dtype()) != Some(planned.dtype) {
            return Err(Error::new(Code::DtypeMismatch)
                .in_tensor(name)
                .expected(tensor.dtype().as_str())
                .found(planned.dtype)
                .help("integers are never cast"));
        }
        if !tensor.is_contiguous() {
            let error = Error::new(Code::Framework).in_tensor(name);
            return Err(error.found("a tensor that is not contiguous"));
        }
        // Without its history: candle refuses to change in place what has one.
        let tensor = tensor.detach();
        Ok(Target { tensor, planned })
    }
}

/// Tensors on the CPU, a few at a time, in the order of their storages, as candle itself locks them;
/// never two of one storage, whose lock is taken only once.
fn batches(targets: &[Target]) -> Vec<Vec<&Target>> {
    let mut batches: Vec<BTreeMap<usize, &Target>> = Vec::new();
    for target in targets
        .iter()
        .filter(|target| target.tensor.device().is_cpu())
    {
        let (storage, _) = target.tensor.storage_and_layout();
        let address = std::ptr::from_ref(&*storage).addr();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH && !batch.contains_key(&address) => {
                batch.insert(address, target);
            }
            _ => batches.push(BTreeMap::from([(address, target)])),
        }
    }
    let batches = batches.into_iter();
    batches.map(|batch| batch.into_values().collect()).collect()
}

/// What is to be filled.
type Parts<'m> = Vec<Fill<&'m mut [u8]>>;

/// Locks the tensors one inside the other, and calls `fill` with the memory of all of them.
fn with_memory(
    targets: &[&Target],
    parts: Parts<'_>,
    fill: &dyn Fn(Parts<'_>) -> Result<()>,
) -> Result<()> {
    let Some((Target { tensor, planned }, rest)) = targets.split_first() else {
        return fill(parts);
    };
    let parts = Cell::new(Some(parts));
    let result = Cell::new(None);
    let lend = Lend(|storage: &mut CpuStorage| {
        let bytes = Span::of(planned.dtype, tensor)
            .and_then(|span| span.of_bytes_mut(storage_bytes_mut(storage)));
        result.set(Some(bytes.and_then(|bytes| {
            let mut parts: Parts<'_> = parts.take().unwrap_or_default();
            parts.push(planned.fill(bytes));
            with_memory(rest, parts, fill)
        })));
    });
    let refused = |error| framework(&error).in_tensor(&planned.name);
    tensor.inplace_op1(&lend).map_err(refused)?;
    let not_called = || Error::new(Code::Framework).found("an operation that was not called");
    result.take().unwrap_or_else(|| Err(not_called()))
}

/// Gets at a tensor's storage, by way of an operation that changes it in place.
struct Lend<F>(F);

impl<F: Fn(&mut CpuStorage)> InplaceOp1 for Lend<F> {
    fn name(&self) -> &'static str {
        "load_into"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        (self.0)(storage);
        Ok(())
    }
}
