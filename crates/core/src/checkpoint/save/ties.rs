//! Tensors that share their memory: which of them are stored, and under which name.

use std::collections::{HashMap, HashSet};

use super::{SaveTensor, Ties};
use crate::format::write::name_twice;
use crate::{Code, Error, Result};

/// What becomes of the tensors of a save.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Positions of those that are stored, in the order given.
    pub(crate) stored: Vec<usize>,
    /// The others, as `(dropped, kept)`: group by group in the order of their first tensors, sorted
    /// within. It is the order of huggingface_hub's index.
    pub(crate) aliases: Vec<(String, String)>,
}

/// Finds tied tensors and decides. Refuses a name that is given twice, in whichever files the two
/// would land.
pub(crate) fn resolve(tensors: &[SaveTensor<'_>], ties: Ties) -> Result<Resolved> {
    let mut names = HashSet::with_capacity(tensors.len());
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(name_twice(&twice.name));
    }
    let groups = match ties {
        Ties::Duplicate => Vec::new(),
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
    let stored = tensors.iter().enumerate();
    let stored = stored.filter(|(_, tensor)| !dropped.contains(tensor.name.as_str()));
    let owned = |&(dropped, kept): &(&str, &str)| (dropped.to_owned(), kept.to_owned());
    Ok(Resolved {
        stored: stored.map(|(position, _)| position).collect(),
        aliases: aliases.iter().map(owned).collect(),
    })
}

/// The names of tensors of one dtype and shape at the same bytes, sorted, as groups in the order of
/// their first tensors. A tensor on its own is a group too.
fn tied<'t>(tensors: &'t [SaveTensor<'_>]) -> Vec<Vec<&'t str>> {
    let mut groups: Vec<Vec<&str>> = Vec::new();
    let mut known = HashMap::new();
    for tensor in tensors {
        // Tensors without bytes share nothing, even at one address.
        let Some(place) = tensor.data.place().filter(|place| !place.is_empty()) else {
            continue;
        };
        let group = *known
            .entry((place, tensor.dtype, &tensor.shape))
            .or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.push(&tensor.name),
            None => groups.push(vec![&tensor.name]),
        }
    }
    for group in &mut groups {
        group.sort_unstable();
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

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

    fn resolved(places: &[(&str, std::ops::Range<usize>)]) -> (Vec<usize>, Vec<String>) {
        let storage = [0; 16];
        let Resolved { stored, aliases } =
            resolve(&tensors(&storage, places), Ties::Dedup).unwrap();
        let spelled = aliases
            .iter()
            .map(|(dropped, kept)| format!("{dropped}: {kept}"));
        (stored, spelled.collect())
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
        assert_eq!(all.stored, [0, 1, 2]);
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
        assert_eq!(resolve(&free, Ties::Error).unwrap().stored, [0, 1, 2, 3]);
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
