//! Checkpoints into variables, variables from checkpoints, and variables into checkpoints.

use std::path::Path;

use candle_core::{Device, Var};
use candle_nn::VarMap;
use safeshard_core::{
    Code, Error, IntoCheckpoint, LoadOptions, LoadReport, Planned, Result, SaveOptions, SaveReport,
    natural_order,
};

use crate::dtype::{from_candle, var_support};
use crate::weights::Want;
use crate::{Weights, load, lock, save, tensor};

/// What to do about variables that the checkpoint lacks, or has in another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fit {
    /// Fail, naming all of them; no variable is changed.
    Exact,
    /// Leave them as they are; the report names them.
    Partial,
}

/// Checkpoints for candle's `VarMap`.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{VarBuilder, VarMap};
/// use safeshard_candle::{LoadOptions, SaveOptions, VarMapExt};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// # let w = candle_core::Tensor::ones((2, 3), DType::BF16, &Device::Cpu).unwrap();
/// # w.save_safetensors("proj.weight", &path).unwrap();
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let layer = candle_nn::linear_no_bias(3, 2, vb.pp("proj"))?;
///
/// let report = vars.load_checkpoint(&path, &LoadOptions::default())?; // BF16 becomes F32
/// assert_eq!(layer.weight().to_vec2::<f32>()?, [[1.; 3]; 2]);
/// assert!(report.is_exact());
///
/// let (rebuilt, _) = VarMap::from_checkpoint(&path, &LoadOptions::default(), &Device::Cpu)?;
/// assert_eq!(rebuilt.all_vars().len(), 1);
///
/// rebuilt.save_checkpoint(&path, &SaveOptions::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait VarMapExt: Sized {
    /// Sets every variable of the map to the tensor of its name in a checkpoint, at a path or open already.
    /// Tensors that are no variables are left alone; the report names them as unused.
    ///
    /// Shapes must be equal. Floats are cast to their variable's dtype; everything else must have it
    /// already, or get it by [`Unsupported::Widen`](crate::Unsupported::Widen).
    ///
    /// All or nothing: the tensors are read beside the variables first, which takes the memory of
    /// both, and on an error no variable has changed.
    ///
    /// # Errors
    /// As [`Weights::open`]; every variable that does not fit, in one error: `tensor-missing`,
    /// `shape-mismatch`, `dtype-mismatch`, `unsupported-dtype`, `unsupported-cast`; or what reading
    /// meets.
    fn load_checkpoint(
        &self,
        checkpoint: impl IntoCheckpoint,
        options: &LoadOptions,
    ) -> Result<LoadReport> {
        self.load_weights(&Weights::open_with(checkpoint, options)?, Fit::Exact)
    }

    /// As [`VarMapExt::load_checkpoint`], by way of a handle, and with a choice of what to do
    /// about variables that have no tensor there. Returns the handle's report.
    ///
    /// # Errors
    /// As [`VarMapExt::load_checkpoint`].
    fn load_weights(&self, weights: &Weights, fit: Fit) -> Result<LoadReport>;

    /// Saves every variable under its name, as [`save_with`](crate::save_with). The map is not locked
    /// meanwhile; a variable on the CPU that is set is saved as it is before or after.
    ///
    /// # Errors
    /// As [`save_with`](crate::save_with).
    fn save_checkpoint(&self, path: impl AsRef<Path>, options: &SaveOptions) -> Result<SaveReport>;

    /// A map with a variable for every tensor of a checkpoint, with the options of
    /// [`load_with`](crate::load_with). Tied tensors that were stored once become one variable under
    /// both names.
    ///
    /// candle has no variables of `F4`, `F6_E2M3`, `F6_E3M2` and `F8_E8M0`; `Unsupported::Widen` makes
    /// `BF16` of the last.
    ///
    /// # Errors
    /// As [`load_with`](crate::load_with).
    fn from_checkpoint(
        checkpoint: impl IntoCheckpoint,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<(Self, LoadReport)>;
}

impl VarMapExt for VarMap {
    fn load_weights(&self, weights: &Weights, fit: Fit) -> Result<LoadReport> {
        let vars = lock(self.data()).clone();
        let mut vars: Vec<_> = vars.into_iter().collect();
        vars.sort_unstable_by(|(a, _), (b, _)| natural_order(a, b));

        let (mut plan, mut targets, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for (name, var) in vars {
            match plan_var(weights, &name, &var) {
                Ok(planned) => {
                    plan.push(planned);
                    targets.push(var);
                }
                Err(error) if fit == Fit::Partial && is_misfit(&error) => {}
                Err(error) => problems.push(error),
            }
        }
        if !problems.is_empty() {
            return Err(Error::all(problems));
        }

        let elements = weights.read(&plan, &weights.options().read)?;
        let mut tensors = Vec::with_capacity(plan.len());
        for ((planned, var), elements) in plan.iter().zip(&targets).zip(elements) {
            tensors.push(tensor::tensor(planned, elements, var.device())?);
        }
        // From here on only a device that breaks can fail.
        for ((planned, var), tensor) in plan.iter().zip(&targets).zip(tensors) {
            var.set(&tensor)
                .map_err(|error| tensor::framework(&error).in_tensor(&planned.name))?;
            weights.note_loaded(planned);
        }
        Ok(weights.report())
    }

    fn save_checkpoint(&self, path: impl AsRef<Path>, options: &SaveOptions) -> Result<SaveReport> {
        let vars = lock(self.data()).clone();
        let tensors = vars.iter().map(|(name, var)| (name, var.as_tensor()));
        save::save_with(tensors, path, options)
    }

    fn from_checkpoint(
        checkpoint: impl IntoCheckpoint,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<(Self, LoadReport)> {
        let weights = Weights::open_with(checkpoint, options)?;
        let (vars, report) = load::load_all(&weights, device, var_support, tensor::var)?;
        let map = Self::new();
        lock(map.data()).extend(vars);
        Ok((map, report))
    }
}

/// Decides how to read a variable's tensor, and that setting it cannot fail.
fn plan_var(weights: &Weights, name: &str, var: &Var) -> Result<Planned> {
    let part = weights.part_of(name);
    let planned = weights.plan(name, &part, Want::Floats(var.dtype()))?;
    weights.check_shape(&planned, var.dims())?;
    if from_candle(var.dtype()) != Some(planned.dtype) {
        return Err(Error::new(Code::DtypeMismatch)
            .in_tensor(name)
            .expected(var.dtype().as_str())
            .found(planned.dtype)
            .help("integers are never cast"));
    }
    if !var.is_contiguous() {
        let error = Error::new(Code::Framework).in_tensor(name);
        return Err(error.found("a variable that is not contiguous"));
    }
    Ok(planned)
}

fn is_misfit(error: &Error) -> bool {
    matches!(error.code(), Code::TensorMissing | Code::ShapeMismatch)
}
