//! Which tensors are written again, under which names and as which dtypes: in 16 bytes each, because
//! there may be millions.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;

use super::cast::{CastStored, Casting};
use crate::checkpoint::capped::Capped;
use crate::checkpoint::load::{
    LoadOptions, collision, empty_name, unknown_dtype, unsupported_cast,
};
use crate::checkpoint::quantized::Dequantised;
use crate::checkpoint::save::from_checkpoint::Stored;
use crate::checkpoint::save::tensors::{Data, Tensors};
use crate::checkpoint::{Checkpoint, natural_order};
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::format::header::TensorInfo;
use crate::format::name_table::NameTable;
use crate::format::write::NewTensor;
use crate::io::cast::Cast;

/// The tensors that are written again, in natural order of their new names.
pub(super) struct Choice<'c> {
    checkpoint: &'c Checkpoint,
    tensors: Vec<Chosen>,
    names: Names,
    /// Shapes of those that get another one, because a complex number becomes two.
    shapes: HashMap<Place, Vec<u64>>,
    casting: Casting,
    /// Quantised weights that become floats.
    dequantised: HashMap<Place, Dequantised>,
    /// Whether they go into as many files as they come out of.
    pub(super) keeps_shards: bool,
}

/// File, and position in its header.
type Place = (u32, u32);

#[derive(Clone, Copy)]
struct Chosen {
    place: Place,
    /// Its new name, where it is not the one that it is stored under.
    name: Option<NameId>,
    dtype: Dtype,
}

impl<'c> Choice<'c> {
    /// # Errors
    /// `unknown-dtype`, `unsupported-cast`, `name-collision`, those of
    /// [`Checkpoint::dequantised`]: many of them in one error.
    pub(super) fn new(
        checkpoint: &'c Checkpoint,
        options: &LoadOptions,
        dequantise: Option<Dtype>,
    ) -> Result<Self> {
        let mut choice = Self {
            checkpoint,
            tensors: Vec::new(),
            names: Names::default(),
            shapes: HashMap::new(),
            casting: Casting::default(),
            dequantised: HashMap::new(),
            keeps_shards: false,
        };
        let mut problems = Capped::default();
        // Stored names, each with a new one, of aliases too.
        let mut aliases = Vec::new();
        let mut stand_ins = HashSet::new();
        let quantization = checkpoint.quantization();
        let order = checkpoint.in_natural_order();
        choice.tensors.reserve_exact(order.len());
        for place in order {
            let tensor = checkpoint.at(place.0, place.1);
            if let Some(tensor) = tensor.filter(|tensor| options.is_wanted(tensor.name)) {
                if dequantise.is_some() && quantization.companion(tensor.name).is_some() {
                    continue;
                }
                let name = options.rename.as_ref().map(|rename| rename(tensor.name));
                let added = choice.add(place, &tensor, name, options, dequantise);
                added.unwrap_or_else(|error| problems.push(|| error));
            }
        }
        for (alias, kept) in checkpoint.aliases() {
            let Some(place) = checkpoint.find(kept) else {
                continue;
            };
            let Some(name) = options.new_name(alias) else {
                continue;
            };
            // Of a tensor that is not wanted, it is the name that is.
            match checkpoint.at(place.0, place.1) {
                Some(tensor) if !options.is_wanted(kept) && stand_ins.insert(place) => {
                    let added = choice.add(place, &tensor, Some(name), options, dequantise);
                    added.unwrap_or_else(|error| problems.push(|| error));
                }
                Some(_) => aliases.push((alias.as_str(), name)),
                None => {}
            }
        }
        let unknown = checkpoint.unsupported();
        for tensor in unknown.filter(|tensor| options.is_wanted(tensor.name)) {
            problems.push(|| unknown_dtype(tensor.name, tensor.dtype));
        }
        if options.rename.is_some() {
            choice.find_collisions(&aliases, &mut problems);
        }
        problems.into_result()?;
        let mut tensors = std::mem::take(&mut choice.tensors);
        let name = |chosen: &Chosen| choice.name(chosen).unwrap_or_default();
        // As if the tensors had always had these names.
        tensors.sort_by(|a, b| natural_order(name(a), name(b)));
        choice.tensors = tensors;
        Ok(choice)
    }

    fn add(
        &mut self,
        place: Place,
        tensor: &TensorInfo<'_>,
        name: Option<String>,
        options: &LoadOptions,
        dequantise: Option<Dtype>,
    ) -> Result<()> {
        let weight = self.checkpoint.quantization().weight(tensor.name);
        if let Some((dtype, weight)) = dequantise.zip(weight) {
            let computed = Dequantised::new(self.checkpoint, weight, dtype)?;
            self.dequantised.insert(place, computed);
            return self.push(place, tensor, name, dtype);
        }
        let rule = options.dtype.as_ref();
        let ruled = rule.map(|rule| {
            let ruled = self
                .checkpoint
                .ruled(tensor, |name, dtype| rule(name, dtype));
            Ok(ruled?.unwrap_or(tensor.dtype))
        });
        let dtype = ruled.unwrap_or(Ok(tensor.dtype))?;
        let cast = Cast::new(tensor.dtype, dtype);
        if cast.is_none() && dtype != tensor.dtype {
            return Err(unsupported_cast(tensor, dtype));
        }
        if let Some(expansion @ 2..) = cast.map(Cast::expansion) {
            let shape = [tensor.shape, &[expansion]].concat();
            if dtype.byte_len(&shape).is_none() {
                return Err(Error::new(Code::ShapeOverflow).in_tensor(tensor.name));
            }
            self.shapes.insert(place, shape);
        }
        self.push(place, tensor, name, dtype)
    }

    fn push(
        &mut self,
        place: Place,
        tensor: &TensorInfo<'_>,
        name: Option<String>,
        dtype: Dtype,
    ) -> Result<()> {
        let name = name.filter(|name| name != tensor.name);
        if name.as_ref().is_some_and(String::is_empty) {
            return Err(empty_name(tensor.name));
        }
        let name = name.map(|name| self.names.add(&name)).transpose()?;
        self.tensors.push(Chosen { place, name, dtype });
        Ok(())
    }

    /// Finds new names that two tensors get; `aliases` are stored and new names that are recorded only.
    fn find_collisions(&self, aliases: &[(&str, String)], problems: &mut Capped) {
        let count = self.tensors.len() + aliases.len();
        let new_name = |at: usize| match self.tensors.get(at) {
            Some(chosen) => self.name(chosen).unwrap_or_default(),
            None => aliases
                .get(at - self.tensors.len())
                .map_or("", |(_, name)| name),
        };
        let old_name = |at: usize| match self.tensors.get(at) {
            Some(chosen) => self.stored(chosen).map_or("", |tensor| tensor.name),
            None => aliases
                .get(at - self.tensors.len())
                .map_or("", |(alias, _)| alias),
        };
        let mut names = match NameTable::with_room(count) {
            Ok(names) => names,
            Err(error) => return problems.push(|| error),
        };
        for at in 0..count {
            if let Err(other) = names.insert(at, new_name) {
                problems.push(|| collision(old_name(at), old_name(other), new_name(at)));
            }
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// How many elements they have.
    pub(super) fn elements(&self) -> u64 {
        let tensors = (0..self.len()).filter_map(|at| self.described(at));
        let elements = tensors.map(|tensor| tensor.elements().unwrap_or(u64::MAX));
        elements.fold(0, u64::saturating_add)
    }

    /// Of aliases as they are stored, those whose tensors are chosen, each with the new name of its
    /// tensor.
    pub(super) fn kept_of<'a>(
        &'a self,
        aliases: &'a [(String, String)],
    ) -> Vec<(&'a str, &'a str)> {
        let places = aliases.iter();
        let places: BTreeSet<_> = places
            .filter_map(|(_, kept)| self.checkpoint.find(kept))
            .collect();
        if places.is_empty() {
            return Vec::new();
        }
        let chosen = self.tensors.iter();
        let chosen = chosen.filter(|chosen| places.contains(&chosen.place));
        let names: HashMap<_, _> = chosen
            .filter_map(|chosen| Some((chosen.place, self.name(chosen)?)))
            .collect();
        let kept = aliases.iter().filter_map(|(alias, kept)| {
            let place = self.checkpoint.find(kept)?;
            Some((alias.as_str(), *names.get(&place)?))
        });
        kept.collect()
    }

    /// What became of each: what it was, its new name and dtype, and how many of its elements became
    /// infinite.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = Outcome<'_>> {
        let tensors = self.tensors.iter().enumerate();
        tensors.filter_map(|(at, chosen)| {
            Some(Outcome {
                stored: self.stored(chosen)?,
                name: self.name(chosen)?,
                dtype: chosen.dtype,
                overflows: self.casting.overflows(at),
            })
        })
    }

    fn stored(&self, chosen: &Chosen) -> Option<TensorInfo<'c>> {
        self.checkpoint.at(chosen.place.0, chosen.place.1)
    }

    fn name(&self, chosen: &Chosen) -> Option<&str> {
        match chosen.name {
            Some(name) => self.names.get(name),
            None => Some(self.stored(chosen)?.name),
        }
    }
}

/// What became of a tensor.
pub(super) struct Outcome<'o> {
    pub(super) stored: TensorInfo<'o>,
    pub(super) name: &'o str,
    pub(super) dtype: Dtype,
    pub(super) overflows: u64,
}

impl Tensors for Choice<'_> {
    fn len(&self) -> usize {
        self.tensors.len()
    }

    fn described(&self, at: usize) -> Option<NewTensor<'_>> {
        let chosen = self.tensors.get(at)?;
        let stored = self.stored(chosen)?;
        let shape = match self.shapes.is_empty() {
            true => None,
            false => self.shapes.get(&chosen.place),
        };
        Some(NewTensor {
            name: self.name(chosen)?,
            dtype: chosen.dtype,
            shape: shape.map_or(stored.shape, Vec::as_slice),
        })
    }

    fn data(&self, at: usize) -> Option<Data<'_>> {
        let chosen = self.tensors.get(at)?;
        let tensor = self.stored(chosen)?;
        let file = self.checkpoint.files().get(chosen.place.0 as usize)?;
        if !self.dequantised.is_empty()
            && let Some(computed) = self.dequantised.get(&chosen.place)
        {
            return Some(Data::Made(Box::new(computed.clone())));
        }
        let extent = file.extent(&tensor);
        Some(Data::Made(match Cast::new(tensor.dtype, chosen.dtype) {
            None => Box::new(Stored(extent)),
            Some(cast) => Box::new(CastStored::new(extent, cast, &self.casting, at)),
        }))
    }

    fn are_distinct(&self) -> bool {
        true
    }

    fn shards(&self) -> Option<Vec<Vec<u32>>> {
        let files = self.checkpoint.files();
        if !self.keeps_shards || files.len() < 2 {
            return None;
        }
        let mut shards = vec![Vec::new(); files.len()];
        for (chosen, at) in self.tensors.iter().zip(0u32..) {
            if let Some(shard) = shards.get_mut(chosen.place.0 as usize) {
                shard.push(at);
            }
        }
        let rank = |at: u32| {
            let stored = self.stored(self.tensors.get(at as usize)?)?;
            self.checkpoint.rank(stored.name)
        };
        for shard in &mut shards {
            // Each rank is looked up once, and kept for no longer than for this shard.
            let mut ranked: Vec<_> = shard.iter().map(|&at| (rank(at), at)).collect();
            ranked.sort_unstable();
            shard.clear();
            shard.extend(ranked.into_iter().map(|(_, at)| at));
        }
        // As they are numbered; an index may name them in another order.
        let mut numbered: Vec<_> = files.iter().zip(shards).collect();
        numbered.sort_by(|(a, _), (b, _)| natural_order(a.name(), b.name()));
        let shards = numbered.into_iter().map(|(_, shard)| shard);
        // An index could not name a file without tensors.
        let mut shards: Vec<_> = shards.filter(|shard| !shard.is_empty()).collect();
        if shards.is_empty() {
            shards.push(Vec::new());
        }
        Some(shards)
    }
}

/// New names, end to end.
#[derive(Default)]
struct Names {
    text: String,
    /// Where each of them ends.
    ends: Vec<usize>,
}

/// The number of a new name, from 1 on.
type NameId = NonZeroU32;

impl Names {
    fn add(&mut self, name: &str) -> Result<NameId> {
        self.text.push_str(name);
        self.ends.push(self.text.len());
        let id = u32::try_from(self.ends.len()).ok().and_then(NameId::new);
        id.ok_or_else(|| Error::new(Code::LimitTensors))
    }

    fn get(&self, id: NameId) -> Option<&str> {
        let at = id.get() as usize - 1;
        let start = match at.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.text.get(start..*self.ends.get(at)?)
    }
}
