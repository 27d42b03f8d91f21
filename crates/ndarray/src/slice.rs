//! Parts of tensors as ndarray spells them (`s![..]`): which ranges to read, and what to do with the axes
//! of what was read.

use ndarray::{ArrayD, Axis, Dimension, SliceInfoElem};
use safeshard_core::{Code, DimRange, Error, Result};

use crate::dyn_array::rank_mismatch;

/// What is to be read, and how its axes become those of the result.
pub(crate) struct Part {
    pub(crate) ranges: Vec<DimRange>,
    axes: Vec<Change>,
}

/// What becomes of an axis.
#[derive(Clone, Copy)]
enum Change {
    Keep,
    Reverse,
    /// It has one position.
    Remove,
    Insert,
}

impl Part {
    /// The part of a tensor of this shape that becomes an array of the rank of `D`. Axes behind the last
    /// element of `slice` are taken whole.
    pub(crate) fn new<D: Dimension>(shape: &[u64], slice: &[SliceInfoElem]) -> Result<Self> {
        let mut part = Self {
            ranges: Vec::with_capacity(shape.len()),
            axes: Vec::with_capacity(slice.len()),
        };
        for element in slice {
            let axis = part.ranges.len();
            let size = shape.get(axis).copied();
            match *element {
                SliceInfoElem::NewAxis => part.axes.push(Change::Insert),
                SliceInfoElem::Index(index) => {
                    let start = position(index, axis, size)?;
                    part.ranges
                        .push(DimRange::from(start..start.saturating_add(1)));
                    part.axes.push(Change::Remove);
                }
                SliceInfoElem::Slice { start, end, step } => {
                    let start = position(start, axis, size)?;
                    let end = end.map(|end| position(end, axis, size)).transpose()?;
                    let range = DimRange {
                        start,
                        stop: end.or(size).unwrap_or_default(),
                        step: step.unsigned_abs() as u64,
                    };
                    let backwards = step < 0;
                    part.ranges.push(if backwards {
                        from_the_back(range)
                    } else {
                        range
                    });
                    part.axes.push(if backwards {
                        Change::Reverse
                    } else {
                        Change::Keep
                    });
                }
            }
        }
        let count =
            |change: fn(&Change) -> bool| part.axes.iter().filter(|axis| change(axis)).count();
        let rank = shape.len() + count(|axis| matches!(axis, Change::Insert))
            - count(|axis| matches!(axis, Change::Remove));
        match D::NDIM {
            Some(expected) if expected != rank => Err(rank_mismatch::<D>(rank)),
            _ => Ok(part),
        }
    }

    /// Makes the result of what was read. Copies nothing.
    pub(crate) fn apply<A>(&self, mut array: ArrayD<A>) -> ArrayD<A> {
        let mut axis = 0;
        for change in &self.axes {
            match change {
                Change::Keep => {}
                Change::Reverse => array.invert_axis(Axis(axis)),
                Change::Insert => array = array.insert_axis(Axis(axis)),
                Change::Remove => {
                    array = array.index_axis_move(Axis(axis), 0);
                    continue;
                }
            }
            axis += 1;
        }
        array
    }
}

/// An index that counts from the back if it is negative.
fn position(index: isize, axis: usize, size: Option<u64>) -> Result<u64> {
    let size = size.ok_or_else(|| {
        let error = Error::new(Code::SliceRank).expected(format_args!("at most {axis}"));
        error.found("more")
    })?;
    let distance = index.unsigned_abs() as u64;
    let position = match index {
        0.. => Some(distance),
        _ => size.checked_sub(distance),
    };
    position.ok_or_else(|| {
        Error::new(Code::SliceRange)
            .expected(format_args!(
                "a range within 0..{size} for dimension {axis}"
            ))
            .found(index)
    })
}

/// The same range if its steps are counted from its end, front to back.
fn from_the_back(range: DimRange) -> DimRange {
    match range.len() {
        0 => range,
        // The last position is in the range, and `len - 1` steps before it is too.
        len => DimRange {
            start: range.stop - 1 - (len - 1) * range.step,
            ..range
        },
    }
}
