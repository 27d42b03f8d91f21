//! A checkpoint that is asked tensor by tensor, and knows afterwards what it was asked for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::VarBuilderArgs;
use safeshard_core::{
    Checkpoint, Code, DimRange, Error, IntoCheckpoint, LoadOptions, LoadReport, Planned,
    ReadOptions, Result, TypedVec, natural_order,
};

use crate::dtype::{from_candle, support};
use crate::tensor_parallel::TensorParallel;
use crate::usage::Usage;
use crate::{load, tensor, tensor_parallel, var_builder};

/// An open checkpoint to build models from. Clones are cheap and share everything, the report
/// included.
///
/// ```
/// use candle_core::{DType, Device};
/// use safeshard_candle::Weights;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// # let w = candle_core::Tensor::zeros((2, 3), DType::BF16, &Device::Cpu).unwrap();
/// # let all = [("layer.weight", w.clone()), ("layer.bias", w)].map(|(n, t)| (n.to_string(), t));
/// # candle_core::safetensors::save(&all.into_iter().collect(), path).unwrap();
/// # let path = folder.path();
/// let weights = Weights::open(path)?; // a file, an index or a folder
/// let vb = weights.var_builder(DType::F32, &Device::Cpu);
/// let weight = vb.pp("layer").get((2, 3), "weight").unwrap();
///
/// let report = weights.report();
/// assert_eq!(report.loaded, ["layer.weight"]);
/// assert_eq!(report.unused, ["layer.bias"]);
/// # Ok::<(), safeshard_candle::Error>(())
/// ```
#[derive(Clone)]
pub struct Weights(Arc<Inner>);

struct Inner {
    checkpoint: Checkpoint,
    options: LoadOptions,
    /// The stored name, or alias, behind each name that is asked for.
    names: BTreeMap<String, String>,
    usage: Usage,
}

/// The dtype that a request asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// What the options' rule says; else as stored.
    Rule,
    /// This one or an error.
    Exactly(DType),
    /// Floats in this one, everything else as stored. If this one is no float, it is that or an
    /// error: an integer dtype is only asked for where it matters.
    Floats(DType),
}

impl Weights {
    /// Opens what is at a path, see [`Checkpoint::open`], and reads headers only; or takes a checkpoint that is
    /// open already.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(checkpoint: impl IntoCheckpoint) -> Result<Self> {
        Self::open_with(checkpoint, &LoadOptions::default())
    }

    /// As [`Weights::open`]. `filter` and `rename` decide which names there are; `dtype` counts for
    /// what is loaded without a dtype of its own, so not for builders and variables; `part` for what is
    /// loaded all at once or into variables and tensors, not where one tensor is asked for.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; `name-collision`.
    pub fn open_with(checkpoint: impl IntoCheckpoint, options: &LoadOptions) -> Result<Self> {
        let checkpoint = checkpoint.into_checkpoint(&options.open)?;
        let names = checkpoint.new_names(options)?;
        Ok(Self(Arc::new(Inner {
            checkpoint,
            options: options.clone(),
            names,
            usage: Usage::default(),
        })))
    }

    /// The checkpoint, with names as they are stored.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.0.checkpoint
    }

    /// The names it answers to, after filtering and renaming, in natural order (`layer.2` before
    /// `layer.10`).
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.names.keys().map(String::as_str).collect();
        names.sort_unstable_by(|a, b| natural_order(a, b));
        names
    }

    /// Whether it answers to that name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.names.contains_key(name)
    }

    /// Reads everything at once; see [`load_with`](crate::load_with).
    ///
    /// # Errors
    /// As [`load_with`](crate::load_with).
    pub fn load(&self, device: &Device) -> Result<(HashMap<String, Tensor>, LoadReport)> {
        load::load_all(self, device, support, tensor::tensor)
    }

    /// Reads one tensor: in `dtype`, or as the options' rule says, or as it is stored. `dtype` must
    /// be one that [`Cast`](safeshard_core::Cast) offers for it.
    ///
    /// # Errors
    /// `tensor-missing`, `unsupported-dtype`, `unsupported-cast`, or what reading meets.
    pub fn tensor(&self, name: &str, dtype: Option<DType>, device: &Device) -> Result<Tensor> {
        self.slice(name, &[], dtype, device)
    }

    /// As [`Weights::tensor`], for a part: one range a dimension, from the first one on; the
    /// dimensions behind the last range are taken whole. Only the bytes of the part are read, and
    /// small gaps between them.
    ///
    /// # Errors
    /// As [`Weights::tensor`]; `slice-rank`, `slice-range`, `slice-reversed`, `slice-sub-byte`.
    pub fn slice(
        &self,
        name: &str,
        ranges: &[Range<usize>],
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Tensor> {
        let ranges: Vec<_> = ranges.iter().cloned().map(DimRange::from).collect();
        let planned = self.plan(name, &ranges, dtype.map_or(Want::Rule, Want::Exactly))?;
        let elements = self.read_one(&planned, &self.options().read)?;
        self.finish(&planned, elements, device)
    }

    /// An ordinary candle `VarBuilder`, which reads ahead; see
    /// [`var_builder`](crate::var_builder()). Builders of other dtypes or devices can be had from
    /// the same handle.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        var_builder::builder(self, dtype, device)
    }

    /// A builder for tensor-parallel models, which reads only what belongs to a rank, and ahead; see
    /// [`TensorParallel`].
    pub fn sharded_var_builder(
        &self,
        dtype: DType,
        device: &Device,
    ) -> VarBuilderArgs<'static, TensorParallel> {
        tensor_parallel::builder(self, dtype, device)
    }

    /// What was asked of this handle, its clones and their builders so far: what was loaded and cast,
    /// what was asked for and absent or of another shape, and what nobody asked for.
    ///
    /// A model that tries several names counts as asking for each of them, unless it looks first
    /// (`contains_tensor`).
    pub fn report(&self) -> LoadReport {
        self.0.usage.report(&self.0.names, &self.0.checkpoint)
    }

    /// Which part of a tensor the options' rule wants.
    pub(crate) fn part_of(&self, name: &str) -> Vec<DimRange> {
        let stored = self.0.names.get(name);
        let info = stored.and_then(|stored| self.checkpoint().info(stored).ok());
        info.map_or_else(Vec::new, |info| self.options().part_of(&info))
    }

    pub(crate) fn options(&self) -> &LoadOptions {
        &self.0.options
    }

    /// The stored tensors that its names stand for, each once, in natural order of their stored names.
    pub(crate) fn in_natural_order(&self) -> impl Iterator<Item = &str> {
        let wanted = self.wanted();
        let names = self.checkpoint().tensors().map(|tensor| tensor.name);
        names.filter(move |name| wanted.contains(name))
    }

    /// As [`Weights::in_natural_order`], in the order of the files' bytes.
    pub(crate) fn in_file_order(&self) -> impl Iterator<Item = &str> {
        let checkpoint = self.checkpoint();
        let wanted = self.wanted();
        checkpoint.files().iter().flat_map(move |file| {
            let names = file.header().tensors().map(|tensor| tensor.name);
            let served = |name: &str| checkpoint.file_of(name).is_some_and(|f| ptr::eq(f, file));
            let wanted: Vec<_> = names
                .filter(|&name| wanted.contains(name) && served(name))
                .collect();
            wanted
        })
    }

    fn wanted(&self) -> HashSet<&str> {
        self.0.names.values().map(|name| self.kept(name)).collect()
    }

    /// Decides how to answer a request, and notes it in the report.
    pub(crate) fn plan(&self, name: &str, ranges: &[DimRange], want: Want) -> Result<Planned> {
        let Some(stored) = self.0.names.get(name) else {
            self.0.usage.missing(name);
            return Err(self.missing(name));
        };
        self.0.usage.asked(self.kept(stored));
        let mut planned = self.plan_stored(stored, ranges, want)?;
        name.clone_into(&mut planned.name);
        Ok(planned)
    }

    /// As [`Weights::plan`], by a stored name and without a note.
    pub(crate) fn plan_stored(
        &self,
        stored: &str,
        ranges: &[DimRange],
        want: Want,
    ) -> Result<Planned> {
        let (checkpoint, options) = (self.checkpoint(), self.options());
        let tensor = checkpoint.info(stored)?;
        let wanted = match want {
            Want::Rule => {
                let rule = options.dtype.as_ref();
                rule.and_then(|rule| rule(tensor.name, tensor.dtype))
            }
            // A quantised weight stands for floats, whatever it is stored in.
            Want::Floats(_)
                if !tensor.dtype.is_float() && !checkpoint.is_quantized(tensor.name) =>
            {
                None
            }
            Want::Exactly(dtype) | Want::Floats(dtype) => {
                let unknown = || Error::new(Code::UnsupportedDtype).found(dtype.as_str());
                Some(from_candle(dtype).ok_or_else(unknown)?)
            }
        };
        let planned = checkpoint.plan_one(stored, ranges, wanted, options.unsupported, support)?;
        if let Want::Floats(dtype) = want
            && dtype.is_int()
            && from_candle(dtype) != Some(planned.dtype)
        {
            return Err(Error::new(Code::DtypeMismatch)
                .in_tensor(stored)
                .expected(dtype.as_str())
                .found(planned.dtype)
                .help("integers are never cast"));
        }
        Ok(planned)
    }

    /// Compares a planned tensor's shape with the one asked for, before anything is read.
    pub(crate) fn check_shape(&self, planned: &Planned, dims: &[usize]) -> Result<()> {
        let expected: Vec<_> = dims.iter().map(|&dim| dim as u64).collect();
        if expected == planned.shape {
            return Ok(());
        }
        let error = Error::new(Code::ShapeMismatch)
            .in_tensor(&planned.name)
            .expected(format_args!("{expected:?}"))
            .found(format_args!("{:?}", planned.shape));
        self.0.usage.mismatched(planned, expected);
        Err(error)
    }

    pub(crate) fn read_one(&self, planned: &Planned, options: &ReadOptions) -> Result<TypedVec> {
        let read = self.read(std::slice::from_ref(planned), options)?;
        let missing = || Error::new(Code::TensorMissing).in_tensor(&planned.name);
        read.into_iter().next().ok_or_else(missing)
    }

    /// Reads what was planned, in one go of the engine.
    pub(crate) fn read(&self, plan: &[Planned], options: &ReadOptions) -> Result<Vec<TypedVec>> {
        self.checkpoint().read_planned(plan, options)
    }

    /// Makes a tensor of what was read, and notes it in the report.
    pub(crate) fn finish(
        &self,
        planned: &Planned,
        elements: TypedVec,
        device: &Device,
    ) -> Result<Tensor> {
        let tensor = tensor::tensor(planned, elements, device)?;
        self.note_loaded(planned);
        Ok(tensor)
    }

    pub(crate) fn note_loaded(&self, planned: &Planned) {
        self.0.usage.loaded(planned);
    }

    /// The tensor that a stored name or alias stands for.
    fn kept<'n>(&'n self, stored: &'n str) -> &'n str {
        let aliases = self.checkpoint().aliases();
        aliases.get(stored).map_or(stored, String::as_str)
    }

    fn missing(&self, name: &str) -> Error {
        match self.checkpoint().info(name) {
            Err(error) => error,
            Ok(_) => Error::new(Code::TensorMissing)
                .in_tensor(name)
                .found("a tensor that `filter` or `rename` takes this name from"),
        }
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("checkpoint", &self.0.checkpoint)
            .field("options", &self.0.options)
            .field("names", &self.0.names.len())
            .finish_non_exhaustive()
    }
}
