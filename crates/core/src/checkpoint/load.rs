//! What to load, under which name and as which dtype: decided before anything is read.
//!
//! Every adapter plans here and only says what its framework can hold.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::capped::Capped;
use super::report::{CastRecord, LoadReport};
use super::{Checkpoint, Fill};
use crate::checkpoint::open::OpenOptions;
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::format::header::{TensorInfo, UnknownDtype};
use crate::format::slice::{DimRange, Slice};
use crate::io::cast::Cast;
use crate::io::engine::ReadOptions;

/// Says of a stored name whether its tensor is wanted.
pub type Filter = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Turns a stored name into the one to load it under.
pub type Rename = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// Says of a stored name and dtype which dtype is wanted; `None` for as it is stored.
pub type DtypeRule = Arc<dyn Fn(&str, Dtype) -> Option<Dtype> + Send + Sync>;

/// Says of a stored name and shape which part is wanted: one range a dimension, from the first one on;
/// dimensions behind the last range are taken whole, and no range means all of it.
pub type PartRule = Arc<dyn Fn(&str, &[u64]) -> Vec<DimRange> + Send + Sync>;

/// Which tensors to load, and how.
///
/// ```
/// use std::sync::Arc;
/// use safeshard_core::{Dtype, LoadOptions};
///
/// let options = LoadOptions {
///     filter: Some(Arc::new(|name| name.starts_with("encoder."))),
///     rename: Some(Arc::new(|name| name.replace("encoder.", ""))),
///     ..LoadOptions::floats_as(Dtype::F32)
/// };
/// ```
#[derive(Clone)]
pub struct LoadOptions {
    /// How to open the checkpoint; here, a tensor of unknown dtype does not stop the others.
    pub open: OpenOptions,
    /// Threads, progress, cancellation.
    pub read: ReadOptions,
    /// Which names to load, as stored; `None` for all.
    pub filter: Option<Filter>,
    /// What a stored name becomes; two names must not become one.
    pub rename: Option<Rename>,
    /// The dtype a tensor is wanted in; `None` for all as they are stored. A quantised weight stands for
    /// floats: what the rule makes of its dtype counts, or else what it makes of an `F32` of its name, and
    /// a dtype other than its own is refused. Scales and the like keep theirs.
    pub dtype: Option<DtypeRule>,
    /// Which part of each tensor to load, such as the share of a rank of a tensor-parallel model: all
    /// shares are then read in one go, in the order of the files. `None` for all tensors whole. Only the
    /// bytes of the parts are read, and small gaps between them.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use safeshard_core::{DimRange, LoadOptions};
    ///
    /// let (rank, ranks) = (3, 8);
    /// let options = LoadOptions {
    ///     part: Some(Arc::new(move |_, shape| match *shape {
    ///         [rows, _] => vec![DimRange::from(rows * rank / ranks..rows * (rank + 1) / ranks)],
    ///         _ => vec![],
    ///     })),
    ///     ..LoadOptions::default()
    /// };
    /// ```
    pub part: Option<PartRule>,
    /// What to do with a tensor whose dtype the framework does not have.
    pub unsupported: Unsupported,
}

impl LoadOptions {
    /// Everything that is floating point in this dtype; everything else as stored. A quantised weight is
    /// refused, because a cast loses its scale: see [`Checkpoint::dequantised`].
    pub fn floats_as(dtype: Dtype) -> Self {
        Self {
            dtype: Some(Arc::new(move |_, stored| {
                stored.is_float().then_some(dtype)
            })),
            ..Self::default()
        }
    }

    /// Whether the filter lets a stored name pass.
    pub(super) fn is_wanted(&self, stored: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter(stored))
    }

    /// What a stored name becomes; `None` if it is not wanted.
    pub fn new_name(&self, stored: &str) -> Option<String> {
        if !self.is_wanted(stored) {
            return None;
        }
        let rename = self.rename.as_ref();
        Some(rename.map_or_else(|| stored.to_owned(), |rename| rename(stored)))
    }

    /// Which part of a tensor to load; no range means all of it.
    pub fn part_of(&self, tensor: &TensorInfo<'_>) -> Vec<DimRange> {
        let part = self.part.as_ref();
        part.map_or_else(Vec::new, |part| part(tensor.name, tensor.shape))
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            open: OpenOptions {
                unknown_dtype: UnknownDtype::Keep,
                ..OpenOptions::default()
            },
            read: ReadOptions::default(),
            filter: None,
            rename: None,
            dtype: None,
            part: None,
            unsupported: Unsupported::default(),
        }
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("open", &self.open)
            .field("read", &self.read)
            .field("filter", &self.filter.is_some())
            .field("rename", &self.rename.is_some())
            .field("dtype", &self.dtype.is_some())
            .field("part", &self.part.is_some())
            .field("unsupported", &self.unsupported)
            .finish()
    }
}

/// What to do with a tensor whose dtype the framework does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unsupported {
    /// Fail, naming the tensor and what would load it.
    #[default]
    Refuse,
    /// Leave it out; the report says so.
    Skip,
    /// Load it as the dtype that the adapter documents for it, every value kept; the report says
    /// so. A tensor for which there is none is refused.
    Widen,
}

/// Whether a framework can hold a dtype.
///
/// Complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Support {
    /// As it is.
    Native,
    /// Not as it is, but every value fits this dtype.
    Widen(Dtype),
    /// Not at all.
    Never,
}

/// One tensor to load.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Planned {
    /// Its name after renaming.
    pub name: String,
    /// Its name in the checkpoint.
    pub stored: String,
    /// Which part of it; dimensions behind the last range are taken whole.
    pub ranges: Vec<DimRange>,
    /// Its dtype after the cast.
    pub dtype: Dtype,
    /// The shape of the part after the cast: `C64` as `F32` has a last dimension of 2.
    pub shape: Vec<u64>,
    /// The conversion on the way, if any.
    pub cast: Option<Cast>,
    /// Bytes after the cast.
    pub byte_len: u64,
}

impl Planned {
    /// The request for it.
    pub fn fill<D>(&self, destination: D) -> Fill<D> {
        Fill {
            name: self.stored.clone(),
            ranges: (!self.ranges.is_empty()).then(|| self.ranges.clone()),
            cast: self.cast,
            destination,
        }
    }

    /// What a report says about the conversion, if there is one.
    pub fn record(&self) -> Option<CastRecord> {
        Some(CastRecord {
            name: self.name.clone(),
            from: self.cast?.from(),
            to: self.dtype,
        })
    }
}

/// What a load will do.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Plan {
    /// Each tensor that will be read, in natural order of the stored names.
    pub tensors: Vec<Planned>,
    /// Further names for tensors of the plan: the alias, and its position in `tensors`.
    pub aliases: Vec<(String, usize)>,
    /// What the load will report; an adapter may add to it.
    pub report: LoadReport,
}

impl Plan {
    /// The tensors that an adapter made of [`Plan::tensors`], in that order, under their names; those with
    /// several names under each of them, as `share` makes another handle of one.
    pub fn named<T>(
        &self,
        tensors: impl IntoIterator<Item = T>,
        share: impl Fn(&T) -> T,
    ) -> HashMap<String, T> {
        let mut named = HashMap::with_capacity(self.report.loaded.len());
        let names = self.tensors.iter().map(|planned| planned.name.clone());
        named.extend(names.zip(tensors));
        for (alias, kept) in &self.report.aliased {
            if let Some(shared) = named.get(kept).map(&share) {
                named.insert(alias.clone(), shared);
            }
        }
        named
    }
}

impl Checkpoint {
    /// Decides what to load. Reads nothing.
    ///
    /// An alias is loaded as a second name of the tensor it stands for, without reading it twice.
    ///
    /// # Errors
    /// All tensors that cannot be loaded as asked, in one error: `unsupported-dtype`,
    /// `unsupported-cast`, `quantized-weight`, `unknown-dtype`, `name-collision`, and those of
    /// [`Slice::new`].
    pub fn plan(&self, options: &LoadOptions, support: impl Fn(Dtype) -> Support) -> Result<Plan> {
        let mut planner = Planner {
            checkpoint: self,
            options,
            support: &support,
            plan: Plan::default(),
            has_aliases: !self.aliases().is_empty(),
            positions: HashMap::new(),
            taken: HashMap::new(),
            problems: Capped::default(),
        };
        for tensor in self.tensors() {
            planner.add(tensor, tensor.name);
        }
        for (alias, kept) in self.aliases() {
            if let Ok(tensor) = self.info(kept) {
                planner.add_alias(alias, tensor);
            }
        }
        for tensor in self.unsupported() {
            planner.add_unknown(tensor.name, tensor.dtype);
        }
        planner.problems.into_result()?;
        Ok(planner.plan)
    }

    /// The stored name, or alias, behind each name that the options give; those of tensors of unknown
    /// dtype too.
    ///
    /// # Errors
    /// `name-collision`: all names that two become.
    pub fn new_names(&self, options: &LoadOptions) -> Result<BTreeMap<String, String>> {
        let mut names = BTreeMap::new();
        let mut problems = Capped::default();
        let unknown = self.unsupported().map(|tensor| tensor.name);
        for stored in self.names().into_iter().chain(unknown) {
            let Some(name) = options.new_name(stored) else {
                continue;
            };
            if let Some(other) = names.insert(name.clone(), stored.to_owned()) {
                problems.push(|| collision(stored, &other, &name));
            }
        }
        problems.into_result()?;
        Ok(names)
    }

    /// Decides how to load one tensor or part of it, by its name or an alias: in `dtype`, or as it is
    /// stored. No ranges mean all of it.
    ///
    /// # Errors
    /// As [`Checkpoint::info`], [`Checkpoint::plan`] and [`Slice::new`]; `quantized-companion` where a
    /// scale would be narrowed.
    pub fn plan_one(
        &self,
        name: &str,
        ranges: &[DimRange],
        dtype: Option<Dtype>,
        unsupported: Unsupported,
        support: impl Fn(Dtype) -> Support,
    ) -> Result<Planned> {
        let tensor = self.info(name)?;
        if let Some(dtype) = dtype {
            self.check_wanted(&tensor, dtype)?;
        }
        let planned = plan_part(tensor, ranges.to_vec(), dtype, unsupported, &support)?;
        planned.ok_or_else(|| unsupported_dtype(tensor, support(tensor.dtype)))
    }
}

struct Planner<'o> {
    checkpoint: &'o Checkpoint,
    options: &'o LoadOptions,
    support: &'o dyn Fn(Dtype) -> Support,
    plan: Plan,
    has_aliases: bool,
    /// Where in the plan a stored name is, if there are aliases.
    positions: HashMap<&'o str, usize>,
    /// Which stored name got a new name, if there are any.
    taken: HashMap<String, &'o str>,
    problems: Capped,
}

impl<'o> Planner<'o> {
    /// Plans a tensor under `name`, its own or an alias.
    fn add(&mut self, tensor: TensorInfo<'o>, name: &'o str) {
        let Some(new_name) = self.new_name(name) else {
            return;
        };
        let rule = self.options.dtype.as_ref();
        let wanted = rule.map(|rule| {
            self.checkpoint
                .ruled(&tensor, |name, dtype| rule(name, dtype))
        });
        let wanted = match wanted.transpose() {
            Ok(wanted) => wanted.flatten(),
            Err(error) => return self.problems.push(|| error),
        };
        let part = self.options.part_of(&tensor);
        let unsupported = self.options.unsupported;
        match plan_part(tensor, part, wanted, unsupported, self.support) {
            Ok(Some(mut planned)) => {
                planned.name = new_name;
                self.plan.report.loaded.push(planned.name.clone());
                self.plan.report.cast.extend(planned.record());
                if self.has_aliases {
                    self.positions.insert(tensor.name, self.plan.tensors.len());
                }
                self.plan.tensors.push(planned);
            }
            Ok(None) => {
                let dtype = tensor.dtype.to_string();
                self.plan.report.skipped.push((new_name, dtype));
            }
            Err(error) => self.problems.push(|| error),
        }
    }

    fn add_alias(&mut self, alias: &'o str, kept: TensorInfo<'o>) {
        // The kept name may have been filtered out: then the alias is what is loaded.
        let Some(&position) = self.positions.get(kept.name) else {
            return self.add(kept, alias);
        };
        if let (Some(alias), Some(planned)) =
            (self.new_name(alias), self.plan.tensors.get(position))
        {
            self.plan.report.loaded.push(alias.clone());
            self.plan
                .report
                .aliased
                .push((alias.clone(), planned.name.clone()));
            self.plan.aliases.push((alias, position));
        }
    }

    fn add_unknown(&mut self, name: &'o str, dtype: &str) {
        let Some(new_name) = self.new_name(name) else {
            return;
        };
        if self.options.unsupported == Unsupported::Skip {
            self.plan.report.skipped.push((new_name, dtype.to_owned()));
            return;
        }
        self.problems.push(|| unknown_dtype(name, dtype));
    }

    /// What a name becomes, or `None` if it is not wanted or already taken.
    fn new_name(&mut self, name: &'o str) -> Option<String> {
        let new_name = self.options.new_name(name)?;
        if new_name.is_empty() && !name.is_empty() {
            self.problems.push(|| empty_name(name));
            return None;
        }
        // Stored names and aliases all differ.
        if self.options.rename.is_some()
            && let Some(other) = self.taken.insert(new_name.clone(), name)
        {
            self.problems.push(|| collision(name, other, &new_name));
            return None;
        }
        Some(new_name)
    }
}

pub(super) fn unknown_dtype(name: &str, dtype: &str) -> Error {
    let error = Error::new(Code::UnknownDtype).in_tensor(name);
    let error = error.found(format_args!("`{dtype}`"));
    error.help("`Unsupported::Skip` leaves it out")
}

pub(super) fn unsupported_cast(tensor: &TensorInfo<'_>, dtype: Dtype) -> Error {
    Error::new(Code::UnsupportedCast)
        .in_tensor(tensor.name)
        .found(format_args!("{} to {dtype}", tensor.dtype))
        .help(format!("load it as {}", tensor.dtype))
}

pub(super) fn empty_name(stored: &str) -> Error {
    Error::new(Code::EmptyName).in_tensor(stored)
}

pub(super) fn collision(stored: &str, other: &str, new_name: &str) -> Error {
    let error = Error::new(Code::NameCollision).in_tensor(stored);
    error.found(format_args!("`{other}` also becomes `{new_name}`"))
}

/// How to load part of a tensor; `None` if it is to be skipped.
fn plan_part(
    tensor: TensorInfo<'_>,
    ranges: Vec<DimRange>,
    wanted: Option<Dtype>,
    unsupported: Unsupported,
    support: &dyn Fn(Dtype) -> Support,
) -> Result<Option<Planned>> {
    if ranges.is_empty() {
        return plan_tensor(tensor, wanted, unsupported, support);
    }
    let slice = Slice::new(tensor.dtype, tensor.shape, &ranges)
        .map_err(|error| error.in_tensor(tensor.name))?;
    let part = TensorInfo {
        shape: slice.shape(),
        ..tensor
    };
    let planned = plan_tensor(part, wanted, unsupported, support)?;
    Ok(planned.map(|planned| Planned { ranges, ..planned }))
}

/// How to load a tensor of that shape; `None` if it is to be skipped.
fn plan_tensor(
    tensor: TensorInfo<'_>,
    wanted: Option<Dtype>,
    unsupported: Unsupported,
    support: &dyn Fn(Dtype) -> Support,
) -> Result<Option<Planned>> {
    let own = support(tensor.dtype);
    let dtype = match (wanted, own, unsupported) {
        (Some(wanted), _, _) if wanted != tensor.dtype => wanted,
        (_, Support::Native, _) => tensor.dtype,
        (_, _, Unsupported::Skip) => return Ok(None),
        (_, Support::Widen(wider), Unsupported::Widen) => wider,
        (_, support, _) => return Err(unsupported_dtype(tensor, support)),
    };
    if support(dtype) != Support::Native {
        return Err(Error::new(Code::UnsupportedDtype)
            .in_tensor(tensor.name)
            .found(format_args!("{dtype}, which it is wanted in")));
    }
    let cast = Cast::new(tensor.dtype, dtype);
    if cast.is_none() && dtype != tensor.dtype {
        return Err(unsupported_cast(&tensor, dtype));
    }
    let mut shape = tensor.shape.to_vec();
    if let Some(expansion @ 2..) = cast.map(Cast::expansion) {
        shape.push(expansion);
    }
    let Some(byte_len) = dtype.byte_len(&shape) else {
        return Err(Error::new(Code::ShapeOverflow).in_tensor(tensor.name));
    };
    Ok(Some(Planned {
        name: tensor.name.to_owned(),
        stored: tensor.name.to_owned(),
        ranges: Vec::new(),
        dtype,
        shape,
        cast,
        byte_len,
    }))
}

fn unsupported_dtype(tensor: TensorInfo<'_>, support: Support) -> Error {
    let error = Error::new(Code::UnsupportedDtype)
        .in_tensor(tensor.name)
        .found(tensor.dtype);
    match support {
        Support::Widen(wider) => error.help(format!(
            "`Unsupported::Widen` loads it as {wider}, `Unsupported::Skip` leaves it out"
        )),
        _ => error.help("`Unsupported::Skip` leaves it out"),
    }
}
