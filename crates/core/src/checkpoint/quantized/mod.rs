//! Quantised weights: which tensors are numbers that mean nothing by themselves, and what they are read
//! with.
//!
//! Each family of schemes is a module that knows how its writers name things. A weight is known by its
//! dtype, its name, and the names beside it; what `config.json` says decides where these do not.

mod bitsandbytes;
mod config;
mod dequantise;
mod gptq;
mod microscaling;
mod packed;
mod scaled;
mod torchao;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::{Checkpoint, CheckpointKind};
use crate::checkpoint::file_names::is_shard;
use crate::error::{Code, Error, Finding, Result};
use crate::format::dtype::Dtype;
use crate::format::header::TensorInfo;

pub(in crate::checkpoint) use config::QUANTIZATION_KEYS;
pub(in crate::checkpoint) use dequantise::Dequantised;

/// Dtypes that quantised weights are stored in. Most checkpoints have none of them, and are done with.
const DTYPES: [Dtype; 8] = [
    Dtype::F4,
    Dtype::U8,
    Dtype::I8,
    Dtype::I32,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::F8E4M3Fnuz,
    Dtype::F8E5M2Fnuz,
];

/// How a weight was quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// Floats of 8 bits with a scale for the tensor, for each channel or for each block.
    Fp8,
    /// Integers of 8 bits with a scale for the tensor, for each channel or for each block, as
    /// compressed-tensors writes them.
    Int8,
    /// Integers of a few bits, packed into 32, with scales for groups, as compressed-tensors writes them.
    PackedInt,
    /// GPTQ: integers packed along the inputs.
    Gptq,
    /// AWQ: integers packed along the outputs.
    Awq,
    /// bitsandbytes: integers of 8 bits with a largest value for each row.
    BitsandbytesInt8,
    /// bitsandbytes: 4-bit numbers of a table, with a largest value for each block: NF4 or FP4.
    Bitsandbytes4bit,
    /// 4-bit floats with a power of two for each 32.
    Mxfp4,
    /// 4-bit floats with an 8-bit scale for each 16, and one for the tensor.
    Nvfp4,
    /// A tensor subclass of torchao.
    Torchao,
}

impl Scheme {
    /// What people call it, such as `NF4 or FP4 of bitsandbytes`.
    pub fn description(self) -> &'static str {
        match self {
            Self::Fp8 => "FP8 with scales",
            Self::Int8 => "int8 of compressed-tensors",
            Self::PackedInt => "packed integers of compressed-tensors",
            Self::Gptq => "GPTQ",
            Self::Awq => "AWQ",
            Self::BitsandbytesInt8 => "int8 of bitsandbytes",
            Self::Bitsandbytes4bit => "NF4 or FP4 of bitsandbytes",
            Self::Mxfp4 => "MXFP4",
            Self::Nvfp4 => "NVFP4",
            Self::Torchao => "torchao",
        }
    }

    /// A stable name for programs, such as `bitsandbytes-4bit`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::PackedInt => "packed-int",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::BitsandbytesInt8 => "bitsandbytes-int8",
            Self::Bitsandbytes4bit => "bitsandbytes-4bit",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Torchao => "torchao",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a tensor beside a quantised weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Role {
    /// What the weight's numbers are multiplied by.
    Scale,
    /// What is taken off them before.
    ZeroPoint,
    /// Which group each input belongs to.
    GroupIndex,
    /// The numbers that they stand for.
    Table,
    /// The shape of the weight before it was packed, or other words about it.
    Description,
    /// The scale of the activations, which the weight does not need.
    ActivationScale,
}

/// A tensor that a quantised weight is read with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Companion {
    /// Its name, as stored.
    pub name: String,
    /// What it is.
    pub role: Role,
}

/// A quantised weight.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuantizedTensor {
    /// The name of the tensor that holds its numbers, as stored.
    pub name: String,
    /// How they were made.
    pub scheme: Scheme,
    /// What it is read with.
    pub companions: Vec<Companion>,
    /// What it would have to be read with and is not there, by the names that were looked for.
    pub missing: Vec<String>,
}

impl QuantizedTensor {
    /// The name of its scale, if it has one.
    pub fn scale(&self) -> Option<&str> {
        let scale = self.companions.iter().find(|it| it.role == Role::Scale);
        scale.map(|scale| scale.name.as_str())
    }

    /// Whether its values can be computed; see [`Checkpoint::dequantised`].
    pub fn can_be_dequantised(&self) -> bool {
        self.missing.is_empty() && dequantise::is_offered(self)
    }
}

/// What is quantised in a checkpoint; see [`Checkpoint::quantization`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Quantization {
    /// What `config.json` beside the checkpoint calls the method, such as `fp8`.
    pub method: Option<String>,
    /// The quantised weights, in the order of the files.
    pub tensors: Vec<QuantizedTensor>,
    /// By stored name: a weight, or what one is read with.
    places: HashMap<String, Part>,
}

/// What a tensor is in a scheme.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The weight at this position.
    Weight(usize),
    Companion(Role),
}

impl Quantization {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The quantised weight of that stored name.
    pub fn weight(&self, name: &str) -> Option<&QuantizedTensor> {
        match self.places.get(name)? {
            Part::Weight(position) => self.tensors.get(*position),
            Part::Companion(_) => None,
        }
    }

    /// What the tensor of that stored name is to a quantised weight, if anything.
    pub fn companion(&self, name: &str) -> Option<Role> {
        match self.places.get(name)? {
            Part::Weight(_) => None,
            Part::Companion(role) => Some(*role),
        }
    }

    /// How many weights there are of each scheme.
    pub fn counts(&self) -> BTreeMap<Scheme, u64> {
        let mut counts = BTreeMap::new();
        for tensor in &self.tensors {
            *counts.entry(tensor.scheme).or_default() += 1;
        }
        counts
    }

    fn find(checkpoint: &Checkpoint) -> Self {
        let mut found = Self::default();
        let mut bare = Vec::new();
        for (file, shard) in checkpoint.files.iter().enumerate() {
            for position in shard.header.positions_of(&DTYPES) {
                let tensor = shard.header.tensor_at(position);
                let Some(tensor) = tensor.filter(|tensor| checkpoint.serves(file, tensor.name))
                else {
                    continue;
                };
                match recognise(&tensor, checkpoint) {
                    Some(weight) => found.tensors.push(weight),
                    None if scaled::is_bare(&tensor) => bare.push(tensor),
                    None => {}
                }
            }
        }
        if found.tensors.is_empty() && bare.is_empty() {
            return found;
        }
        found.method = config::method(checkpoint);
        // Among weights with scales, or where the config says so, one without is half a weight.
        let lacks_scale = |scheme| {
            let says_so = found.method.as_deref().is_some_and(config::is_scaled);
            says_so || found.tensors.iter().any(|weight| weight.scheme == scheme)
        };
        let (fp8, int8) = (lacks_scale(Scheme::Fp8), lacks_scale(Scheme::Int8));
        let half = bare.iter().filter(|tensor| match tensor.dtype {
            Dtype::I8 => int8,
            _ => fp8,
        });
        found.tensors.extend(half.map(scaled::half));
        for (position, weight) in found.tensors.iter().enumerate() {
            for companion in &weight.companions {
                let part = Part::Companion(companion.role);
                found.places.insert(companion.name.clone(), part);
            }
            let part = Part::Weight(position);
            found.places.insert(weight.name.clone(), part);
        }
        found
    }
}

impl Checkpoint {
    /// What is quantised in it, found when it is first asked for: from `config.json` beside it, from
    /// metadata, and from names, dtypes and shapes. Reads no tensor.
    ///
    /// Time: a look at the dtype of each tensor, and a few names for each that may be a quantised weight.
    ///
    /// ```
    /// use safeshard_core::{Checkpoint, Dtype, SaveTensor};
    ///
    /// let tensors = vec![
    ///     SaveTensor::new("l.weight", Dtype::F8E4M3, [1, 2], vec![0x40, 0x40]),
    ///     SaveTensor::new("l.weight_scale_inv", Dtype::F32, [1, 1], 0.5f32.to_le_bytes().to_vec()),
    /// ];
    /// let checkpoint = Checkpoint::from_tensors(tensors)?;
    /// let weight = checkpoint.quantization().weight("l.weight").unwrap();
    /// assert_eq!(weight.scheme.name(), "fp8");
    /// assert_eq!(weight.scale(), Some("l.weight_scale_inv"));
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn quantization(&self) -> &Quantization {
        self.quantization.get_or_init(|| Quantization::find(self))
    }

    /// Whether a tensor is a quantised weight: then no cast makes anything of its numbers.
    pub fn is_quantized(&self, name: &str) -> bool {
        let kept = self.aliases.get(name).map_or(name, String::as_str);
        let quantization = self.quantization();
        !quantization.is_empty() && quantization.weight(kept).is_some()
    }

    /// What a rule makes of a tensor: the dtype that it is to have, if another one than it has.
    ///
    /// A quantised weight stands for floats, whatever it is stored in. So a rule is asked what it makes
    /// of it as stored, and, where it says nothing, what it makes of an `F32` of that name. To leave the
    /// numbers as they are, a rule says their own dtype. What a weight is read with keeps its dtype.
    ///
    /// # Errors
    /// `quantized-weight`.
    pub(in crate::checkpoint) fn ruled(
        &self,
        tensor: &TensorInfo<'_>,
        rule: impl Fn(&str, Dtype) -> Option<Dtype>,
    ) -> Result<Option<Dtype>> {
        let wanted = rule(tensor.name, tensor.dtype);
        let quantization = self.quantization();
        if quantization.is_empty() {
            return Ok(wanted);
        }
        if quantization.companion(tensor.name).is_some() {
            return Ok(None);
        }
        let Some(weight) = quantization.weight(tensor.name) else {
            return Ok(wanted);
        };
        match wanted.or_else(|| rule(tensor.name, Dtype::F32)) {
            Some(dtype) if dtype != tensor.dtype => Err(refusal(weight, tensor, dtype)),
            _ => Ok(None),
        }
    }

    /// Checks that one tensor, asked for by its name, keeps its meaning in another dtype.
    ///
    /// # Errors
    /// `quantized-weight`; `quantized-companion` for a dtype that holds less.
    pub(in crate::checkpoint) fn check_wanted(
        &self,
        tensor: &TensorInfo<'_>,
        wanted: Dtype,
    ) -> Result<()> {
        let quantization = self.quantization();
        if wanted == tensor.dtype || quantization.is_empty() {
            return Ok(());
        }
        if let Some(weight) = quantization.weight(tensor.name) {
            return Err(refusal(weight, tensor, wanted));
        }
        let is_narrower = wanted.bits() < tensor.dtype.bits() || wanted.bits() == 16;
        match quantization.companion(tensor.name) {
            Some(_) if is_narrower => Err(Error::new(Code::QuantizedCompanion)
                .in_tensor(tensor.name)
                .expected(tensor.dtype)
                .found(format_args!("a request for {wanted}"))
                .help(format!("load it as {}", tensor.dtype))),
            _ => Ok(()),
        }
    }

    /// Weights without their scales, and with those of another shape: each as a finding. In one shard of
    /// several the scale may lie in another one, so there it stops nothing.
    pub(in crate::checkpoint) fn quantization_findings(&self) -> Vec<Finding> {
        let is_part =
            self.kind == CheckpointKind::File && self.files.iter().any(|file| is_shard(&file.name));
        let incomplete = |weight: &QuantizedTensor| {
            let problem = self.at_file_of(incomplete(weight), &weight.name);
            match is_part {
                true => Finding::warning(problem),
                false => Finding::error(problem),
            }
        };
        let weights = self.quantization().tensors.iter();
        let findings = weights.filter_map(|weight| match weight.missing.is_empty() {
            false => Some(incomplete(weight)),
            true => {
                let problem = dequantise::check(self, weight).err()?;
                Some(Finding::error(self.at_file_of(problem, &weight.name)))
            }
        });
        findings.collect()
    }

    fn at_file_of(&self, error: Error, name: &str) -> Error {
        match self.file_of(name) {
            Some(file) => error.at_path(file.place()),
            None => error,
        }
    }
}

/// The scheme of a weight; `None` for what is none, or not known to be one.
fn recognise(tensor: &TensorInfo<'_>, checkpoint: &Checkpoint) -> Option<QuantizedTensor> {
    let beside = Beside(checkpoint);
    match tensor.dtype {
        Dtype::I32 => gptq::recognise(tensor, beside).or_else(|| packed::recognise(tensor, beside)),
        Dtype::U8 => microscaling::recognise(tensor, beside)
            .or_else(|| bitsandbytes::recognise_4bit(tensor, beside))
            .or_else(|| torchao::recognise(tensor, beside)),
        Dtype::F4 => microscaling::recognise(tensor, beside),
        Dtype::I8 => bitsandbytes::recognise_int8(tensor, beside)
            .or_else(|| torchao::recognise(tensor, beside))
            .or_else(|| scaled::recognise(tensor, beside)),
        _ => torchao::recognise(tensor, beside).or_else(|| scaled::recognise(tensor, beside)),
    }
}

fn refusal(weight: &QuantizedTensor, tensor: &TensorInfo<'_>, wanted: Dtype) -> Error {
    let scheme = weight.scheme.description();
    let found = match weight.scale() {
        Some(scale) => format!("{scheme}, whose scale is `{scale}`, asked for as {wanted}"),
        None => format!("{scheme}, without a scale, asked for as {wanted}"),
    };
    let error = Error::new(Code::QuantizedWeight).in_tensor(tensor.name);
    let stored = tensor.dtype;
    error.found(found).help(match weight.can_be_dequantised() {
        true => format!(
            "`Checkpoint::dequantised` to {wanted} multiplies it; asked for as {stored}, its numbers stay as stored"
        ),
        false => format!("asked for as {stored}, its numbers stay as stored"),
    })
}

fn incomplete(weight: &QuantizedTensor) -> Error {
    Error::new(Code::QuantizedIncomplete)
        .in_tensor(&weight.name)
        .expected(format_args!(
            "{} with `{}`",
            weight.scheme.description(),
            weight.missing.join("`, `")
        ))
        .found("none of that name")
}

/// The tensors beside the one that is looked at.
#[derive(Clone, Copy)]
struct Beside<'c>(&'c Checkpoint);

impl<'c> Beside<'c> {
    fn info(self, name: &str) -> Option<TensorInfo<'c>> {
        self.0.info(name).ok()
    }
}

/// A weight in the making: companions are looked up by the ends of their names.
struct Builder<'c, 's> {
    beside: Beside<'c>,
    /// How all their names begin.
    stem: &'s str,
    weight: QuantizedTensor,
}

impl<'c, 's> Builder<'c, 's> {
    fn new(tensor: &TensorInfo<'_>, stem: &'s str, scheme: Scheme, beside: Beside<'c>) -> Self {
        let weight = QuantizedTensor {
            name: tensor.name.to_owned(),
            scheme,
            companions: Vec::new(),
            missing: Vec::new(),
        };
        Self {
            beside,
            stem,
            weight,
        }
    }

    /// Takes the companions that are there.
    fn optional(mut self, ends: &[&str], role: Role) -> Self {
        for end in ends {
            self.take(end, role);
        }
        self
    }

    /// Takes the first that is there, or notes that none is.
    fn required(mut self, ends: &[&str], role: Role) -> Self {
        let mut ends_there = ends.iter();
        if !ends_there.any(|end| self.take(end, role))
            && let Some(end) = ends.first()
        {
            self.weight.missing.push(format!("{}{end}", self.stem));
        }
        self
    }

    fn take(&mut self, end: &str, role: Role) -> bool {
        let name = format!("{}{end}", self.stem);
        let is_there = name != self.weight.name && self.beside.0.contains(&name);
        if is_there {
            self.weight.companions.push(Companion { name, role });
        }
        is_there
    }

    fn build(self) -> QuantizedTensor {
        self.weight
    }

    /// The weight, if there is a scale: by its name alone it could be anything.
    fn build_if_scaled(self) -> Option<QuantizedTensor> {
        self.weight.missing.is_empty().then_some(self.weight)
    }
}
