//! Checkpoints into the variables of a `VarStore`, and variables into checkpoints.

use std::collections::HashSet;
use std::path::Path;
use std::slice;

use safeshard_core::{
    Checkpoint, Code, Dtype, Error, IntoCheckpoint, LoadOptions, LoadReport, Mismatch, Planned,
    Result, SaveOptions, SaveReport, Slice, Unsupported, natural_order,
};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::dtype::{dtype_of, framework, sizes, support};
use crate::{load, map, save};

/// How a checkpoint goes into the variables of a `VarStore`.
#[derive(Clone, Debug, Default)]
pub struct VarOptions {
    /// Which stored names there are, under which names variables find them, and how they are read. The
    /// dtypes are those of the variables, see [`VarOptions::kinds`].
    pub load: LoadOptions,
    /// What to do about variables that do not fit.
    pub fit: Fit,
    /// Whose kind a variable has afterwards.
    pub kinds: Kinds,
}

/// What to do about variables that the checkpoint lacks, or has in another shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fit {
    /// Fail, naming all of them; no variable is changed.
    #[default]
    Exact,
    /// Leave them as they are; the report names them.
    Partial,
}

/// Whose kind a variable has when a checkpoint was loaded into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kinds {
    /// Its own: floats are cast to it while they are read, everything else must have it already.
    #[default]
    Variable,
    /// The checkpoint's, as tch's own `load` does. A trainable variable stays floating point or complex.
    Checkpoint,
}

/// Checkpoints for tch's `VarStore`.
///
/// Names are those of [`VarStore::variables`], with `.` between their parts, as everywhere else in the
/// Hugging Face world; tch itself writes `|` where a format allows no dots, so a variable `a.b` that the
/// checkpoint lacks is also looked for as `a|b`. [`LoadOptions::rename`] and
/// [`VarStoreExt::save_checkpoint_as`] change names on the way in and out.
pub trait VarStoreExt {
    /// Sets every variable to the tensor of its name in a checkpoint, at a path or open already. The
    /// variables keep their memory, so that views and tied tensors change with them, and stay trainable or not.
    ///
    /// Shapes must be equal; nothing is broadcast. Tensors that are no variables are left alone; the
    /// report names them as unused.
    ///
    /// All or nothing: the tensors are read beside the variables first, which takes the memory of
    /// both, and on an error no variable has changed.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; every variable that does not fit, in one error: `tensor-missing`,
    /// `shape-mismatch`, `dtype-mismatch`, `unsupported-dtype`, `unsupported-cast`; `cast-value` where a
    /// `BOOL` is neither 0 nor 1; or what reading meets.
    fn load_checkpoint(
        &mut self,
        checkpoint: impl IntoCheckpoint,
        options: &VarOptions,
    ) -> Result<LoadReport>;

    /// As [`VarStoreExt::load_checkpoint`], but the variables take the new tensors instead of copying
    /// them: one copy of each byte, or none where [`OpenOptions::io`](crate::OpenOptions::io) of the
    /// options is [`Io::mmap`](crate::Io::mmap), see [`map`](crate::map()). Layers and optimizers that
    /// share a variable see it; views that were taken before keep the old memory.
    ///
    /// # Errors
    /// As [`VarStoreExt::load_checkpoint`].
    fn adopt_checkpoint(
        &mut self,
        checkpoint: impl IntoCheckpoint,
        options: &VarOptions,
    ) -> Result<LoadReport>;

    /// What [`VarStoreExt::load_checkpoint`] would do, without doing it: what is missing, unused, of
    /// another shape, and what would be cast. Reads headers only.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and of variables whose kind does not fit.
    fn check_checkpoint(
        &self,
        checkpoint: impl IntoCheckpoint,
        options: &VarOptions,
    ) -> Result<LoadReport>;

    /// Saves every variable under its name, as [`save_with`](crate::save_with).
    ///
    /// # Errors
    /// As [`save_with`](crate::save_with).
    fn save_checkpoint(&self, path: impl AsRef<Path>, options: &SaveOptions) -> Result<SaveReport> {
        self.save_checkpoint_as(path, options, str::to_owned)
    }

    /// As [`VarStoreExt::save_checkpoint`], under the names that `rename` makes of the variables' names.
    ///
    /// # Errors
    /// As [`save_with`](crate::save_with); `name-collision` where two names become one.
    fn save_checkpoint_as(
        &self,
        path: impl AsRef<Path>,
        options: &SaveOptions,
        rename: impl Fn(&str) -> String,
    ) -> Result<SaveReport>;
}

impl VarStoreExt for VarStore {
    fn load_checkpoint(
        &mut self,
        checkpoint: impl IntoCheckpoint,
        options: &VarOptions,
    ) -> Result<LoadReport> {
        let checkpoint = checkpoint.into_checkpoint(&options.load.open)?;
        let plan = Plan::new(self, &checkpoint, options)?.fit(options.fit)?;
        let read = &options.load.read;
        let tensors = load::read(&checkpoint, &plan.tensors(), Device::Cpu, read)?;
        // From here on only a device that breaks can fail.
        for (target, tensor) in plan.targets.into_iter().zip(tensors) {
            target.set(&tensor)?;
        }
        Ok(plan.report)
    }

    fn adopt_checkpoint(
        &mut self,
        checkpoint: impl IntoCheckpoint,
        options: &VarOptions,
    ) -> Result<LoadReport> {
        let checkpoint = checkpoint.into_checkpoint(&options.load.open)?;
        let plan = Plan::new(self, &checkpoint, options)?.fit(options.fit)?;
        let tensors = new_tensors(&checkpoint, &plan.tensors(), self.device(), &options.load)?;
        for (mut target, tensor) in plan.targets.into_iter().zip(tensors) {
            target.adopt(&tensor)?;
        }
        Ok(plan.report)
    }

    fn check_checkpoint(
        &self,
        checkpoint: impl IntoCheckpoint,
        options: &VarOptions,
    ) -> Result<LoadReport> {
        let checkpoint = checkpoint.into_checkpoint(&options.load.open)?;
        let plan = Plan::new(self, &checkpoint, options)?.fit(Fit::Partial)?;
        Ok(plan.report)
    }

    fn save_checkpoint_as(
        &self,
        path: impl AsRef<Path>,
        options: &SaveOptions,
        rename: impl Fn(&str) -> String,
    ) -> Result<SaveReport> {
        let variables = self.variables().into_iter();
        save::save_with(
            variables.map(|(name, variable)| (rename(&name), variable)),
            path,
            options,
        )
    }
}

/// Tensors that variables can have for their own, each in memory that no other has.
fn new_tensors(
    checkpoint: &Checkpoint,
    plan: &[Planned],
    device: Device,
    options: &LoadOptions,
) -> Result<Vec<Tensor>> {
    let in_memory = checkpoint
        .files()
        .iter()
        .all(|file| file.source().as_bytes().is_some());
    if device != Device::Cpu || !in_memory {
        return load::read(checkpoint, plan, device, &options.read);
    }
    let (mut tensors, _) = map::mapped(checkpoint, plan, options)?;
    // Two variables of one stored tensor would be tied without anybody having asked for it.
    let mut taken = HashSet::new();
    for (planned, tensor) in plan.iter().zip(&mut tensors) {
        if !taken.insert(&planned.stored) {
            let own = slice::from_ref(planned);
            let own = load::read(checkpoint, own, device, &options.read)?;
            if let Some(own) = own.into_iter().next() {
                *tensor = own;
            }
        }
    }
    Ok(tensors)
}

/// A variable, and what goes into it.
struct Target {
    variable: Tensor,
    planned: Planned,
    /// Whether the checkpoint's elements are of another type, so that the variable needs other memory.
    changes_kind: bool,
}

impl Target {
    /// Copies the elements over the variable's.
    fn set(mut self, tensor: &Tensor) -> Result<()> {
        if self.changes_kind {
            let tensor = tensor.f_to_device(self.variable.device());
            return self.adopt(&tensor.map_err(|error| self.refused(&error))?);
        }
        tch::no_grad(|| self.variable.f_copy_(tensor)).map_err(|error| self.refused(&error))
    }

    /// Makes the tensor's memory the variable's.
    fn adopt(&mut self, tensor: &Tensor) -> Result<()> {
        let adopted = self.variable.f_set_data(tensor);
        adopted.map_err(|error| self.refused(&error))
    }

    fn refused(&self, error: &tch::TchError) -> Error {
        framework(error).in_tensor(&self.planned.name)
    }
}

/// What will be read into which variable, and what does not fit.
struct Plan {
    targets: Vec<Target>,
    report: LoadReport,
    misfits: Vec<Error>,
}

impl Plan {
    /// Decides everything and changes nothing.
    fn new(vars: &VarStore, checkpoint: &Checkpoint, options: &VarOptions) -> Result<Self> {
        let mut variables: Vec<_> = vars.variables().into_iter().collect();
        variables.sort_unstable_by(|(a, _), (b, _)| natural_order(a, b));
        let names = checkpoint.new_names(&options.load)?;
        let mut plan = Self {
            targets: Vec::with_capacity(variables.len()),
            report: LoadReport::default(),
            misfits: Vec::new(),
        };
        let (mut used, mut problems) = (HashSet::new(), Vec::new());
        for (name, variable) in variables {
            // As tch spells it where a format allows no dots.
            let piped = || names.get_key_value(&name.replace('.', "|"));
            let found = names.get_key_value(&name).or_else(piped);
            let Some((new_name, stored)) = found else {
                let missing = Error::new(Code::TensorMissing).in_tensor(&name);
                plan.misfits.push(match checkpoint.path() {
                    Some(path) => missing.at_path(path),
                    None => missing,
                });
                plan.report.missing.push(name);
                continue;
            };
            used.insert(new_name);
            match plan.add(&name, variable, stored, checkpoint, options) {
                Ok(()) => {}
                Err(problem) => problems.push(problem.in_tensor(&name)),
            }
        }
        if !problems.is_empty() {
            // All there is to say at once, shapes and absences included.
            problems.append(&mut plan.misfits);
            return Err(Error::all(problems));
        }
        let unused = names.keys().filter(|name| !used.contains(name));
        plan.report.unused = unused.cloned().collect();
        plan.report
            .unused
            .sort_unstable_by(|a, b| natural_order(a, b));
        Ok(plan)
    }

    fn add(
        &mut self,
        name: &str,
        variable: Tensor,
        stored: &str,
        checkpoint: &Checkpoint,
        options: &VarOptions,
    ) -> Result<()> {
        let info = checkpoint.info(stored)?;
        let own = dtype_of(&variable)?;
        let part = options.load.part_of(&info);
        let slice = Slice::new(info.dtype, info.shape, &part)?;
        if sizes(info.dtype, slice.shape())? != variable.size() {
            let expected = variable.size().into_iter().map(i64::unsigned_abs);
            let mismatch = Mismatch::new(name, expected.collect(), slice.shape().to_vec());
            let error = Error::new(Code::ShapeMismatch).in_tensor(name);
            self.misfits.push(
                error
                    .expected(format_args!("{:?}", mismatch.expected))
                    .found(format_args!("{:?}", mismatch.found)),
            );
            self.report.mismatched.push(mismatch);
            return Ok(());
        }
        let cast = options.kinds == Kinds::Variable && own.is_float() && info.dtype.is_float();
        let unsupported = Unsupported::Refuse;
        let mut planned =
            checkpoint.plan_one(stored, &part, cast.then_some(own), unsupported, support)?;
        check_kind(&variable, own, planned.dtype, options.kinds)?;
        planned.name = name.to_owned();
        self.report.loaded.push(name.to_owned());
        self.report.cast.extend(planned.record());
        self.targets.push(Target {
            changes_kind: planned.dtype != own,
            variable,
            planned,
        });
        Ok(())
    }

    /// The plan, if what does not fit may be left out.
    fn fit(self, fit: Fit) -> Result<Self> {
        match fit {
            Fit::Exact if !self.misfits.is_empty() => Err(Error::all(self.misfits)),
            _ => Ok(self),
        }
    }

    fn tensors(&self) -> Vec<Planned> {
        let targets = self.targets.iter();
        targets.map(|target| target.planned.clone()).collect()
    }
}

/// Says whether a variable can take elements of this dtype.
fn check_kind(variable: &Tensor, own: Dtype, found: Dtype, kinds: Kinds) -> Result<()> {
    let differs = || Error::new(Code::DtypeMismatch).expected(own).found(found);
    match kinds {
        Kinds::Variable if own != found => Err(differs().help("integers are never cast")),
        Kinds::Checkpoint
            if variable.requires_grad() && !found.is_float() && found != Dtype::C64 =>
        {
            Err(differs().help("a trainable variable is floating point or complex"))
        }
        _ => Ok(()),
    }
}
