//! How two checkpoints differ: which tensors, and by how much, however they are sharded.

mod values;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use values::{Distance, distance};

use super::Checkpoint;
use crate::checkpoint::names::natural_order;
use crate::error::{Error, Result};
use crate::format::dtype::Dtype;
use crate::format::header::TensorInfo;
use crate::io::engine::ReadOptions;
use crate::io::extent::Extent;
use crate::io::scan::{self, Item};

/// Elements of a tensor that a thread compares before it takes others: whole bytes of any dtype.
const PIECE: u64 = 1 << 20;

/// How to compare two checkpoints. The default takes every other bit for a difference.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// How far floats may be apart; `None` where their bits must be the same.
    pub tolerance: Option<Tolerance>,
    /// What to do with a tensor of another dtype.
    pub dtypes: DtypeChange,
    /// Threads, progress, cancelling. Progress counts the bytes of the first checkpoint.
    pub read: ReadOptions,
}

/// How far floats may be apart: `|a - b| <= absolute + relative * |b|`, as numpy and torch have it.
/// NaN is as far from NaN as any number is from itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    /// Part of the second number.
    pub relative: f64,
    /// Whatever the numbers are.
    pub absolute: f64,
}

/// What to do with a tensor that has another dtype in the second checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DtypeChange {
    /// It differs, whatever its values are.
    #[default]
    Differs,
    /// Floats are compared by value, as `F64`, which holds every one of them. What is no float
    /// differs.
    ByValue,
}

/// How two checkpoints differ. Names are in natural order.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Difference {
    /// Names that only the first one answers to.
    pub only_a: Vec<String>,
    /// Names that only the second one answers to.
    pub only_b: Vec<String>,
    /// Tensors that are not the same.
    pub changed: Vec<Changed>,
}

impl Difference {
    /// Whether there is none.
    pub fn is_equal(&self) -> bool {
        self.only_a.is_empty() && self.only_b.is_empty() && self.changed.is_empty()
    }
}

/// A tensor that is not the same in both.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Changed {
    /// Its name.
    pub name: String,
    /// In which way.
    pub change: Change,
}

/// In which way a tensor differs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// It has another dtype.
    Dtype {
        /// That of the first checkpoint.
        a: Dtype,
        /// That of the second one.
        b: Dtype,
    },
    /// It has another shape.
    Shape {
        /// That of the first checkpoint.
        a: Vec<u64>,
        /// That of the second one.
        b: Vec<u64>,
    },
    /// It has other values.
    #[non_exhaustive]
    Values {
        /// How many elements differ.
        differing: u64,
        /// The largest `|a - b|`; NaN where one of the two is, `None` where elements are no floats
        /// that `F64` holds.
        max_abs: Option<f64>,
        /// The largest `|a - b| / |b|`, likewise.
        max_rel: Option<f64>,
    },
}

/// Compares the tensors of two checkpoints by name: dtypes and shapes, then bytes, then, where bytes
/// differ, numbers. Aliases count as tensors of their own.
///
/// Both are read once, on a few threads; in memory are two blocks of 384 KiB a thread.
///
/// # Errors
/// Those of reading; `file-changed`, `cancelled`.
///
/// ```
/// use safeshard_core::{Change, Checkpoint, DiffOptions, Dtype, SaveTensor, diff, write_to};
///
/// # fn saved(bytes: &[u8]) -> safeshard_core::Result<Checkpoint> {
/// #     let tensor = SaveTensor::new("w", Dtype::U8, [2], bytes);
/// #     let mut file = Vec::new();
/// #     write_to(vec![tensor], &mut file, &Default::default())?;
/// #     Checkpoint::from_bytes(file)
/// # }
/// let (a, b) = (saved(&[1, 2])?, saved(&[1, 3])?);
/// let difference = diff(&a, &b, &DiffOptions::default())?;
/// assert_eq!(difference.changed[0].name, "w");
/// assert!(matches!(difference.changed[0].change, Change::Values { differing: 1, .. }));
/// assert!(diff(&a, &a, &DiffOptions::default())?.is_equal());
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn diff(a: &Checkpoint, b: &Checkpoint, options: &DiffOptions) -> Result<Difference> {
    let mut difference = Difference {
        only_a: missing_in(b, a),
        only_b: missing_in(a, b),
        changed: Vec::new(),
    };
    let mut pairs = Vec::new();
    let mut pair_of = HashMap::new();
    // Aliases of one tensor are compared once.
    let mut names = Vec::new();
    for name in a.names() {
        let (Some(place_a), Some(place_b)) = (a.find(name), b.find(name)) else {
            continue;
        };
        match described(a.info(name)?, b.info(name)?, options.dtypes) {
            Some(change) => {
                let name = name.to_owned();
                difference.changed.push(Changed { name, change });
            }
            None => match pair_of.entry((place_a, place_b)) {
                Entry::Occupied(pair) => names.push((name, *pair.get())),
                Entry::Vacant(pair) => {
                    names.push((name, *pair.insert(pairs.len())));
                    pairs.push(Pair::new(name, [a, b])?);
                }
            },
        }
    }
    let distances = compare(&pairs, options)?;
    for file in a.files().iter().chain(b.files()) {
        file.source.check_unchanged()?;
    }
    for (name, pair) in names {
        if let Some(distance) = distances.get(pair)
            && distance.differing > 0
        {
            difference.changed.push(Changed {
                name: name.to_owned(),
                change: Change::Values {
                    differing: distance.differing,
                    max_abs: distance.max_abs,
                    max_rel: distance.max_rel,
                },
            });
        }
    }
    let changed = &mut difference.changed;
    changed.sort_unstable_by(|a, b| natural_order(&a.name, &b.name));
    Ok(difference)
}

/// The names that one checkpoint has and the other one has not.
fn missing_in(other: &Checkpoint, checkpoint: &Checkpoint) -> Vec<String> {
    let names = checkpoint.names().into_iter();
    let missing = names.filter(|name| !other.contains(name));
    missing.map(str::to_owned).collect()
}

/// What can be said without reading values.
fn described(a: TensorInfo<'_>, b: TensorInfo<'_>, dtypes: DtypeChange) -> Option<Change> {
    let by_value = || {
        let mut floats = [a.dtype, b.dtype].into_iter();
        dtypes == DtypeChange::ByValue && floats.all(values::has_values)
    };
    if a.dtype != b.dtype && !by_value() {
        let (a, b) = (a.dtype, b.dtype);
        return Some(Change::Dtype { a, b });
    }
    let (a, b) = (a.shape, b.shape);
    (a != b).then(|| Change::Shape {
        a: a.to_vec(),
        b: b.to_vec(),
    })
}

/// Two tensors with the same number of elements.
struct Pair<'c> {
    name: &'c str,
    dtypes: [Dtype; 2],
    elements: u64,
    extents: [Extent<'c>; 2],
}

impl<'c> Pair<'c> {
    fn new(name: &'c str, [a, b]: [&'c Checkpoint; 2]) -> Result<Self> {
        let (info_a, info_b) = (a.info(name)?, b.info(name)?);
        Ok(Self {
            name,
            dtypes: [info_a.dtype, info_b.dtype],
            elements: info_a.elements(),
            extents: [a.extent(name)?, b.extent(name)?],
        })
    }
}

/// Elements of a pair from `first` on, at most [`PIECE`] of them.
struct Piece<'p, 'c> {
    /// The position of the pair.
    number: usize,
    pair: &'p Pair<'c>,
    first: u64,
}

impl<'c> Piece<'_, 'c> {
    fn extents(&self) -> [Extent<'c>; 2] {
        let part = |extent: Extent<'c>, dtype: Dtype| {
            let bits = dtype.bits();
            extent.part(self.first * bits / 8, PIECE * bits / 8)
        };
        let ([a, b], [dtype_a, dtype_b]) = (self.pair.extents, self.pair.dtypes);
        [part(a, dtype_a), part(b, dtype_b)]
    }
}

impl Item for Piece<'_, '_> {
    fn extent(&self) -> Extent<'_> {
        let [a, _] = self.extents();
        a
    }

    fn other(&self) -> Option<Extent<'_>> {
        let [_, b] = self.extents();
        Some(b)
    }
}

/// How far the tensors of each pair are apart.
fn compare(pairs: &[Pair<'_>], options: &DiffOptions) -> Result<Vec<Distance>> {
    let mut pieces = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        let firsts = (0..pair.elements).step_by(PIECE as usize);
        pieces.extend(firsts.map(|first| Piece {
            number,
            pair,
            first,
        }));
    }
    let found = scan::each(&options.read, &pieces, |piece, reader| {
        let (pair, [a, b]) = (piece.pair, piece.extents());
        let [dtype_a, dtype_b] = pair.dtypes;
        let mut sum = Distance::of(dtype_a);
        let bits = [dtype_a.bits(), dtype_b.bits()];
        let in_tensor = |error: Error| error.in_tensor(pair.name);
        reader
            .read_two([&a, &b], bits, |a, b| {
                if dtype_a != dtype_b || a != b {
                    sum.add(&distance(pair.dtypes, [a, b], options.tolerance));
                }
            })
            .map_err(in_tensor)?;
        Ok(sum)
    })?;
    let mut distances: Vec<_> = pairs
        .iter()
        .map(|pair| Distance::of(pair.dtypes[0]))
        .collect();
    for (piece, distance) in pieces.iter().zip(&found) {
        if let Some(sum) = distances.get_mut(piece.number) {
            sum.add(distance);
        }
    }
    Ok(distances)
}
