//! The planner: which tensor goes into which file.

use std::collections::HashMap;
use std::mem;

use super::{ShardSize, Sharding};
use crate::checkpoint::names::sample;
use crate::error::{Code, Error, Result};

/// A tensor that is to be stored, as the planner sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sized<'a> {
    pub(crate) name: &'a str,
    pub(crate) bytes: u64,
}

/// Shards of positions in `tensors`; together they hold each once. At least one shard, and none
/// without tensors, except where there are none at all: then one, so that there is a file to open.
///
/// Sizes are those of tensors; headers are not counted, as nobody counts them.
pub(crate) fn plan(
    tensors: &[Sized<'_>],
    max: ShardSize,
    sharding: &Sharding,
) -> Result<Vec<Vec<usize>>> {
    let shards = match sharding {
        Sharding::Greedy => greedy(tensors, max.bytes()),
        Sharding::Balanced => balanced(tensors, max.bytes()),
        Sharding::Explicit(shards) => explicit(tensors, shards)?,
    };
    Ok(match shards.is_empty() {
        true => vec![Vec::new()],
        false => shards,
    })
}

/// As huggingface_hub's `split_torch_state_dict_into_shards`.
fn greedy(tensors: &[Sized<'_>], max: u64) -> Vec<Vec<usize>> {
    // Torch gives all tensors without bytes one address, so that huggingface_hub takes them for one:
    // they go where the first of them goes, behind what else is there.
    let empty = tensors.iter().enumerate();
    let empty = empty.filter(|(_, tensor)| tensor.bytes == 0);
    let mut empty = empty.map(|(position, _)| position);
    let first_empty = empty.next();

    let mut shards: Vec<Vec<usize>> = Vec::new();
    let mut open = Vec::new();
    let mut room = max;
    for (position, tensor) in tensors.iter().enumerate() {
        if tensor.bytes > max {
            shards.push(vec![position]);
            continue;
        }
        if tensor.bytes > room {
            shards.push(mem::take(&mut open));
            room = max;
        }
        if tensor.bytes > 0 || first_empty == Some(position) {
            open.push(position);
            room -= tensor.bytes;
        }
    }
    if !open.is_empty() {
        shards.push(open);
    }
    let has_first =
        |shard: &&mut Vec<usize>| first_empty.is_some_and(|first| shard.contains(&first));
    if let Some(shard) = shards.iter_mut().find(has_first) {
        shard.extend(empty);
    }
    shards
}

/// In the order given throughout. A tensor that is too large parts those before it from those behind
/// it, and each part is divided evenly.
fn balanced(tensors: &[Sized<'_>], max: u64) -> Vec<Vec<usize>> {
    let parts = tensors.chunk_by(|a, b| a.bytes.max(b.bytes) <= max);
    let lengths = parts.flat_map(|part| match part {
        [_] => vec![1],
        several => even_lengths(several, max),
    });
    let mut positions = 0..tensors.len();
    lengths
        .map(|length| positions.by_ref().take(length).collect())
        .collect()
}

/// How many tensors each shard gets, none of them larger than `max`: as few shards as the order
/// allows, the largest of them as small as the order allows, and each as near as it then can be to
/// its share of what is left.
fn even_lengths(tensors: &[Sized<'_>], max: u64) -> Vec<usize> {
    let shards = fewest(tensors, max)[0];
    let capacity = least_capacity(tensors, max, shards);
    let mut left: u128 = tensors.iter().map(|tensor| u128::from(tensor.bytes)).sum();
    let mut lengths = Vec::with_capacity(shards);
    let (mut length, mut filled) = (0, 0);
    for (tensor, needed) in tensors.iter().zip(fewest(tensors, capacity)) {
        let bytes = u128::from(tensor.bytes);
        let shards_left = shards - lengths.len();
        // The shards behind this one cannot hold the tensor and all that follows. Then it fits here,
        // because `capacity` is enough for all.
        let must = needed >= shards_left;
        let fits = filled + bytes <= u128::from(capacity);
        // With it, the shard is nearer to `left / shards_left` than without.
        let nearer = (2 * filled + bytes) * shards_left as u128 <= 2 * left;
        if !(must || fits && nearer) {
            lengths.push(mem::take(&mut length));
            left -= mem::take(&mut filled);
        }
        length += 1;
        filled += bytes;
    }
    lengths.push(length);
    lengths
}

/// The least capacity with which so many shards are enough.
fn least_capacity(tensors: &[Sized<'_>], max: u64, shards: usize) -> u64 {
    let largest = tensors.iter().map(|tensor| tensor.bytes).max();
    let (mut low, mut high) = (largest.unwrap_or_default(), max);
    while low < high {
        let middle = low.midpoint(high);
        match fewest(tensors, middle)[0] <= shards {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    high
}

/// For each tensor, how few shards of this capacity hold it and all that follow; 0 at the end. No
/// tensor is larger than the capacity.
fn fewest(tensors: &[Sized<'_>], capacity: u64) -> Vec<usize> {
    let mut fewest = vec![0; tensors.len() + 1];
    let (mut end, mut filled) = (tensors.len(), 0);
    for (start, tensor) in tensors.iter().enumerate().rev() {
        filled += u128::from(tensor.bytes);
        while filled > u128::from(capacity) {
            end -= 1;
            filled -= u128::from(tensors[end].bytes);
        }
        fewest[start] = fewest[end] + 1;
    }
    fewest
}

fn explicit(tensors: &[Sized<'_>], shards: &[Vec<String>]) -> Result<Vec<Vec<usize>>> {
    let positions = tensors.iter().enumerate();
    let mut left: HashMap<_, _> = positions.map(|(at, tensor)| (tensor.name, at)).collect();
    let mut planned = Vec::with_capacity(shards.len());
    for names in shards {
        let shard = names.iter().map(|name| {
            let is_known = || tensors.iter().any(|tensor| tensor.name == name);
            left.remove(name.as_str()).ok_or_else(|| {
                Error::new(Code::ShardList)
                    .in_tensor(name)
                    .found(match is_known() {
                        true => "named twice",
                        false => "a name of no stored tensor",
                    })
            })
        });
        planned.push(shard.collect::<Result<Vec<_>>>()?);
    }
    if !left.is_empty() {
        let names = tensors.iter().map(|tensor| tensor.name);
        let missing = sample(names.filter(|name| left.contains_key(name)));
        return Err(Error::new(Code::ShardList).found(format_args!("no shard names {missing}")));
    }
    // An index could not name a file without tensors.
    planned.retain(|shard| !shard.is_empty());
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn planned(sizes: &[u64], max: u64, sharding: &Sharding) -> Result<Vec<Vec<usize>>> {
        let names: Vec<_> = (0..sizes.len()).map(|number| number.to_string()).collect();
        let tensors = names.iter().zip(sizes);
        let tensors = tensors.map(|(name, &bytes)| Sized { name, bytes });
        plan(&tensors.collect::<Vec<_>>(), ShardSize::new(max)?, sharding)
    }

    // Hundreds of plans are compared with huggingface_hub's own in `super::oracle`.
    #[rstest]
    #[case::exact_fit(&[2, 3, 0, 1], 5, "[[0, 1, 2], [3]]")]
    #[case::too_large_first(&[20, 1, 1], 5, "[[0], [1, 2]]")]
    #[case::too_large_overtakes(&[1, 20, 1], 5, "[[1], [0, 2]]")]
    #[case::too_large_last(&[1, 1, 20], 5, "[[2], [0, 1]]")]
    #[case::all_too_large(&[6, 7, 8], 5, "[[0], [1], [2]]")]
    #[case::empty_only(&[0, 0], 5, "[[0, 1]]")]
    #[case::empty_go_with_the_first(&[5, 0, 5, 0, 1, 0], 5, "[[0, 1, 3, 5], [2], [4]]")]
    #[case::none(&[], 5, "[[]]")]
    #[case::beyond_64_bits(&[u64::MAX, 1, u64::MAX - 1], u64::MAX, "[[0], [1, 2]]")]
    fn greedy_is_huggingface_hubs(#[case] sizes: &[u64], #[case] max: u64, #[case] shards: &str) {
        let planned = planned(sizes, max, &Sharding::Greedy).unwrap();
        assert_eq!(format!("{planned:?}"), shards);
    }

    // ---- balanced

    #[rstest]
    #[case::in_order(&[1, 20, 1], 5, "[[0], [1], [2]]")]
    #[case::equal(&[1; 7], 3, "[[0, 1], [2, 3, 4], [5, 6]]")]
    #[case::as_small_as_can_be(&[4, 1, 1, 1, 1, 4, 4], 7, "[[0, 1, 2], [3, 4, 5], [6]]")]
    #[case::one(&[1, 2, 3], 6, "[[0, 1, 2]]")]
    #[case::empty_beside_too_large(&[0, 9, 0], 5, "[[0], [1], [2]]")]
    #[case::none(&[], 5, "[[]]")]
    #[case::beyond_64_bits(&[u64::MAX, 1, u64::MAX - 1], u64::MAX, "[[0], [1, 2]]")]
    fn balanced_keeps_the_order(#[case] sizes: &[u64], #[case] max: u64, #[case] shards: &str) {
        let planned = planned(sizes, max, &Sharding::Balanced).unwrap();
        assert_eq!(format!("{planned:?}"), shards);
    }

    /// The fewest shards of tensors in order, and the least that the largest of so many can hold
    /// without what is too large: by trying every way to cut.
    fn best(sizes: &[u64], max: u64) -> (usize, u64) {
        let mut best = (usize::MAX, u64::MAX);
        for cuts in 0..1u32 << (sizes.len() - 1) {
            let mut shards = vec![vec![sizes[0]]];
            for (number, &size) in sizes[1..].iter().enumerate() {
                match cuts >> number & 1 {
                    0 => shards.last_mut().unwrap().push(size),
                    _ => shards.push(vec![size]),
                }
            }
            let allowed = |shard: &Vec<u64>| shard.len() == 1 || shard.iter().sum::<u64>() <= max;
            if shards.iter().all(allowed) {
                let sums = shards.iter().map(|shard| shard.iter().sum());
                let largest = sums.filter(|&sum| sum <= max).max().unwrap_or(0);
                best = best.min((shards.len(), largest));
            }
        }
        best
    }

    proptest! {
        #[test]
        fn balanced_is_the_best_in_this_order(
            sizes in prop::collection::vec(prop_oneof![0..8u64, 0..30u64], 1..12),
            max in 1..20u64,
        ) {
            let shards = planned(&sizes, max, &Sharding::Balanced).unwrap();
            prop_assert!(shards.iter().flatten().copied().eq(0..sizes.len()), "{:?}", shards);
            let sum = |shard: &Vec<usize>| shard.iter().map(|&at| sizes[at]).sum::<u64>();
            for shard in &shards {
                prop_assert!(sum(shard) <= max || shard.len() == 1, "{:?}", shards);
            }
            let largest = shards.iter().map(sum).filter(|&sum| sum <= max).max().unwrap_or(0);
            prop_assert_eq!((shards.len(), largest), best(&sizes, max), "{:?}", shards);
        }

        #[test]
        fn equal_tensors_make_equal_shards(count in 1..200usize, size in 1..9u64, max in 9..99u64) {
            let shards = planned(&vec![size; count], max, &Sharding::Balanced).unwrap();
            let lengths = shards.iter().map(Vec::len);
            prop_assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }

        #[test]
        fn small_tensors_make_nearly_equal_shards(
            sizes in prop::collection::vec(0..10u64, 1..300),
            max in 100..400u64,
        ) {
            let shards = planned(&sizes, max, &Sharding::Balanced).unwrap();
            let sums = shards.iter().map(|shard| shard.iter().map(|&at| sizes[at]).sum::<u64>());
            prop_assert!(sums.clone().max().unwrap() - sums.min().unwrap() <= 20);
        }
    }

    // ---- explicit

    fn explicit(shards: Vec<Vec<&str>>) -> Result<Vec<Vec<usize>>> {
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        let shards = shards.into_iter().map(owned).collect();
        planned(&[1, 1, 1], 2, &Sharding::Explicit(shards))
    }

    #[test]
    fn shards_are_as_asked_for() {
        assert_eq!(
            explicit(vec![vec!["2", "0"], vec!["1"]]).unwrap(),
            [&[2, 0][..], &[1]]
        );
        // However large.
        assert_eq!(
            explicit(vec![vec![], vec!["0", "1", "2"]]).unwrap(),
            [[0, 1, 2]]
        );
        let nothing = planned(&[], 5, &Sharding::Explicit(vec![vec![], vec![]]));
        assert_eq!(nothing.unwrap(), [[0; 0]]);
    }

    #[rstest]
    #[case(vec![vec!["0", "1"], vec!["2", "x"]], "`x`")]
    #[case(vec![vec!["0", "1"], vec!["2", "1"]], "named twice")]
    #[case(vec![vec!["1"]], "no shard names 0, 2")]
    fn shards_that_are_not_the_tensors_are_refused(
        #[case] shards: Vec<Vec<&str>>,
        #[case] why: &str,
    ) {
        let error = explicit(shards).unwrap_err();
        assert_eq!(error.code(), Code::ShardList);
        assert!(error.to_string().contains(why), "{error}");
    }
}
