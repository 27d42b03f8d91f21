//! Tensors that share their memory: which of them are stored, and under which name.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::Ties;
use super::tensors::Tensors;
use crate::error::{Code, Error, Result};
use crate::format::name_table::NameTable;
use crate::format::write::{NewTensor, name_twice};
use crate::io::data::TensorData;

/// What becomes of the tensors of a save.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Those that are stored, in the order given.
    pub(crate) stored: Positions,
    /// The others, as `(dropped, kept)`: group by group in the order of their first tensors, sorted
    /// within. It is the order of huggingface_hub's index.
    pub(crate) aliases: Vec<(String, String)>,
}

/// Positions of tensors: where it is all of them, they are not listed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Positions {
    /// So many.
    All(u32),
    Some(Vec<u32>),
}

impl Positions {
    /// The position at a place among them.
    pub(crate) fn get(&self, place: usize) -> Option<u32> {
        match self {
            Self::All(count) => u32::try_from(place).ok().filter(|at| at < count),
            Self::Some(positions) => positions.get(place).copied(),
        }
    }

    /// In order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + Clone {
        let len = match self {
            Self::All(count) => *count as usize,
            Self::Some(positions) => positions.len(),
        };
        (0..len).filter_map(|place| self.get(place))
    }
}

/// Finds tied tensors and decides. Refuses a name that is given twice, in whichever files the two
/// would land.
pub(crate) fn resolve(tensors: &dyn Tensors, ties: Ties) -> Result<Resolved> {
    let count = u32::try_from(tensors.len()).map_err(|_| Error::new(Code::LimitTensors))?;
    let name = |at| tensors.described(at).map_or("", |tensor| tensor.name);
    if !tensors.are_distinct() {
        let mut names = NameTable::with_room(tensors.len())?;
        if let Some(twice) = (0..tensors.len()).find(|&at| names.insert(at, name).is_err()) {
            return Err(name_twice(name(twice)));
        }
    }
    let groups = match ties {
        Ties::Duplicate => Vec::new(),
        _ if tensors.are_distinct() => Vec::new(),
        Ties::Dedup | Ties::Error => tied(tensors),
    };
    let groups = groups.iter().filter_map(|group| group.split_first());
    let aliases: Vec<(&str, &str)> = groups
        .flat_map(|(kept, dropped)| dropped.iter().map(|dropped| (*dropped, *kept)))
        .collect();
    if let (Ties::Error, Some((dropped, kept))) = (ties, aliases.first()) {
        return Err(Error::new(Code::TiedTensors)
            .in_tensor(*dropped)
            .found(format_args!("the very bytes of `{kept}`")));
    }
    let dropped: HashSet<_> = aliases.iter().map(|(dropped, _)| *dropped).collect();
    let is_stored = |&at: &u32| !dropped.contains(name(at as usize));
    let owned = |&(dropped, kept): &(&str, &str)| (dropped.to_owned(), kept.to_owned());
    Ok(Resolved {
        stored: match dropped.is_empty() {
            true => Positions::All(count),
            false => Positions::Some((0..count).filter(is_stored).collect()),
        },
        aliases: aliases.iter().map(owned).collect(),
    })
}

/// Where a tensor's bytes are: in memory, or in a source at this address.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Memory { start: usize, end: usize },
    Source(usize, u64),
}

impl Place {
    /// Tensors without bytes share nothing, even at one address.
    fn of(data: &dyn TensorData) -> Option<Self> {
        match (data.place(), data.extent()) {
            (Some(Range { start, end }), _) => (start < end).then_some(Self::Memory { start, end }),
            (None, Some(extent)) if extent.len > 0 => {
                Some(Self::Source(extent.address(), extent.start))
            }
            _ => None,
        }
    }
}

/// The names of tensors of one dtype and shape at the same bytes, sorted, as groups in the order of
/// their first tensors.
fn tied(tensors: &dyn Tensors) -> Vec<Vec<&str>> {
    let place = |at: usize| Some((Place::of(&*tensors.data(at)?)?, at));
    let mut places: Vec<_> = (0..tensors.len()).filter_map(place).collect();
    places.sort_unstable();
    let mut groups = Vec::new();
    for shared in places.chunk_by(|(a, _), (b, _)| a == b) {
        if shared.len() == 1 {
            continue;
        }
        let mut alike: HashMap<_, Vec<(usize, &str)>> = HashMap::new();
        for &(_, at) in shared {
            if let Some(NewTensor { name, dtype, shape }) = tensors.described(at) {
                alike.entry((dtype, shape)).or_default().push((at, name));
            }
        }
        groups.extend(alike.into_values());
    }
    groups.sort_unstable_by_key(|group| group.first().map(|(at, _)| *at));
    let sorted = groups.into_iter().map(|group| {
        let mut names: Vec<_> = group.into_iter().map(|(_, name)| name).collect();
        names.sort_unstable();
        names
    });
    sorted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::save::SaveTensor;
    use crate::format::dtype::Dtype;

    /// Tensors of `U8` at these places of one storage, except where the name says another dtype.
    fn tensors<'t>(
        storage: &'t [u8],
        places: &[(&str, std::ops::Range<usize>)],
    ) -> Vec<SaveTensor<'t>> {
        let tensor = |(name, place): &(&str, std::ops::Range<usize>)| {
            let dtype = if name.ends_with("i8") {
                Dtype::I8
            } else {
                Dtype::U8
            };
            let shape = match name.ends_with("column") {
                true => vec![place.len() as u64, 1],
                false => vec![place.len() as u64],
            };
            SaveTensor::new(*name, dtype, shape, &storage[place.clone()])
        };
        places.iter().map(tensor).collect()
    }

    fn resolved(places: &[(&str, std::ops::Range<usize>)]) -> (Vec<u32>, Vec<String>) {
        let storage = [0; 16];
        let Resolved { stored, aliases } =
            resolve(&tensors(&storage, places), Ties::Dedup).unwrap();
        let spelled = aliases
            .iter()
            .map(|(dropped, kept)| format!("{dropped}: {kept}"));
        (stored.iter().collect(), spelled.collect())
    }

    #[test]
    fn the_first_in_the_alphabet_is_kept_where_it_stands() {
        let (stored, aliases) = resolved(&[("z", 0..4), ("m", 4..8), ("b", 0..4), ("a", 8..9)]);
        assert_eq!(stored, [1, 2, 3]);
        assert_eq!(aliases, ["z: b"]);
    }

    #[test]
    fn groups_come_in_the_order_of_their_first_tensors() {
        let (stored, aliases) = resolved(&[
            ("q", 0..4),
            ("c", 4..8),
            ("B", 4..8),
            ("é", 0..4),
            ("p", 0..4),
            ("a", 4..8),
        ]);
        assert_eq!(stored, [2, 4]);
        assert_eq!(aliases, ["q: p", "é: p", "a: B", "c: B"]);
    }

    #[test]
    fn what_is_not_the_very_same_is_stored() {
        for places in [
            [("a", 0..4), ("b", 0..5)],        // begins with it
            [("a", 0..4), ("b", 2..6)],        // overlaps it
            [("a", 0..4), ("b", 4..8)],        // behind it
            [("a", 0..4), ("b.i8", 0..4)],     // another dtype
            [("a", 0..4), ("b.column", 0..4)], // another shape
            [("a", 4..4), ("b", 4..4)],        // nothing at one address
        ] {
            assert_eq!(resolved(&places), (vec![0, 1], vec![]), "{places:?}");
        }
    }

    #[test]
    fn ties_are_stored_twice_or_refused_on_request() {
        let storage = [0; 16];
        let tied = tensors(&storage, &[("b", 0..4), ("a", 0..4), ("c", 4..8)]);
        let all = resolve(&tied, Ties::Duplicate).unwrap();
        assert_eq!(all.stored, Positions::All(3));
        assert_eq!(all.aliases, []);
        let error = resolve(&tied, Ties::Error).unwrap_err();
        assert_eq!(
            (error.code(), error.tensor()),
            (Code::TiedTensors, Some("b"))
        );
        assert!(error.to_string().contains("`a`"), "{error}");
        let free = tensors(
            &storage,
            &[("b", 0..4), ("a", 0..5), ("e", 0..0), ("f", 0..0)],
        );
        assert_eq!(
            resolve(&free, Ties::Error).unwrap().stored,
            Positions::All(4)
        );
    }

    #[test]
    fn a_name_given_twice_is_refused_whatever_becomes_of_ties() {
        let storage = [0; 16];
        let twice = tensors(&storage, &[("a", 0..4), ("b", 0..4), ("a", 0..4)]);
        for ties in [Ties::Dedup, Ties::Duplicate, Ties::Error] {
            let error = resolve(&twice, ties).unwrap_err();
            assert_eq!(
                (error.code(), error.tensor()),
                (Code::NameCollision, Some("a"))
            );
        }
    }
}
