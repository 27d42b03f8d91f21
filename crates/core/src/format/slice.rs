//! Part of a tensor as runs of bytes.

use std::ops::Range;

use super::layout::elements;
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;

/// Which positions of one dimension: from `start` to before `stop`, every `step`th.
///
/// ```
/// use safeshard_core::DimRange;
///
/// assert_eq!(DimRange::from(2u64..8).len(), 6);
/// assert_eq!(DimRange { start: 2, stop: 9, step: 3 }.len(), 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DimRange {
    /// The first position.
    pub start: u64,
    /// The position behind the last one.
    pub stop: u64,
    /// From one position to the next; at least 1.
    pub step: u64,
}

impl DimRange {
    /// All of a dimension of `size` positions.
    pub fn all(size: u64) -> Self {
        Self::from(0..size)
    }

    /// How many positions it selects.
    pub fn len(&self) -> u64 {
        match self.step {
            0 => 0,
            step => self.stop.saturating_sub(self.start).div_ceil(step),
        }
    }

    /// Whether it selects nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, dim: usize, size: u64) -> Result<()> {
        let code = if self.step == 0 {
            Code::SliceStep
        } else if self.start > self.stop {
            Code::SliceReversed
        } else if self.stop > size {
            Code::SliceRange
        } else {
            return Ok(());
        };
        Err(Error::new(code)
            .expected(format_args!("a range within 0..{size} for dimension {dim}"))
            .found(format_args!(
                "{}..{} by {}",
                self.start, self.stop, self.step
            )))
    }
}

impl From<Range<u64>> for DimRange {
    fn from(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            stop: range.end,
            step: 1,
        }
    }
}

impl From<Range<usize>> for DimRange {
    fn from(range: Range<usize>) -> Self {
        Self::from(range.start as u64..range.end as u64)
    }
}

/// Part of a tensor: equally long runs of bytes at positions that are computed when asked for.
///
/// Neighbouring runs are joined, so a slice of the outermost dimension is one run. Building one
/// allocates a few words a dimension; walking its runs allocates nothing.
///
/// ```
/// use safeshard_core::{DimRange, Dtype, Slice};
///
/// // Columns 1 and 2 of a 3x4 matrix of U8.
/// let slice = Slice::new(Dtype::U8, &[3, 4], &[DimRange::all(3), (1u64..3).into()])?;
/// assert_eq!(slice.shape(), [3, 2]);
/// assert_eq!(slice.runs().collect::<Vec<_>>(), [1..3, 5..7, 9..11]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    shape: Vec<u64>,
    /// The first run's first byte.
    start: u64,
    run_len: u64,
    /// How runs repeat, innermost last.
    repeats: Vec<Repeat>,
}

/// `count` times, `stride` bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Repeat {
    count: u64,
    stride: u64,
}

impl Slice {
    /// The part of a tensor of this dtype and shape that `ranges` select; dimensions behind the last
    /// range are taken whole. Empty ranges and empty dimensions are legal.
    ///
    /// # Errors
    /// `slice-rank`, `slice-step`, `slice-reversed`, `slice-range`; `slice-sub-byte` where elements
    /// smaller than a byte would have to be taken apart.
    pub fn new(dtype: Dtype, shape: &[u64], ranges: &[DimRange]) -> Result<Self> {
        if ranges.len() > shape.len() {
            return Err(Error::new(Code::SliceRank)
                .expected(format_args!("at most {}", shape.len()))
                .found(ranges.len()));
        }
        let mut selected = Vec::with_capacity(shape.len());
        for (dim, &size) in shape.iter().enumerate() {
            let range = ranges.get(dim).copied().unwrap_or(DimRange::all(size));
            range.check(dim, size)?;
            selected.push(range);
        }
        let new_shape: Vec<u64> = selected.iter().map(DimRange::len).collect();
        if new_shape.contains(&0) {
            return Ok(Self {
                shape: new_shape,
                start: 0,
                run_len: 0,
                repeats: Vec::new(),
            });
        }
        let total_bits = elements(shape).and_then(|count| count.checked_mul(dtype.bits()));
        if total_bits.is_none() {
            return Err(Error::new(Code::ShapeOverflow).found(format_args!("{dtype} {shape:?}")));
        }

        // From the innermost dimension outwards, in bits; nothing overflows, because all of it lies
        // inside the tensor.
        let mut start = 0;
        let mut run_len = dtype.bits();
        let mut repeats: Vec<Repeat> = Vec::new();
        let mut dim_stride = dtype.bits();
        for (range, &size) in selected.iter().zip(shape).rev() {
            start += range.start * dim_stride;
            let next = Repeat {
                count: range.len(),
                stride: range.step.saturating_mul(dim_stride),
            };
            dim_stride *= size;
            match repeats.last_mut() {
                _ if next.count == 1 => {}
                None if next.stride == run_len => run_len *= next.count,
                Some(inner) if next.stride == inner.stride * inner.count => {
                    inner.count *= next.count;
                }
                _ => repeats.push(next),
            }
        }
        repeats.reverse();
        let on_bytes = |bits: u64| bits.is_multiple_of(8);
        if !(on_bytes(start) && on_bytes(run_len) && repeats.iter().all(|r| on_bytes(r.stride))) {
            return Err(Error::new(Code::SliceSubByte).found(format_args!("{dtype} {shape:?}")));
        }
        for repeat in &mut repeats {
            repeat.stride /= 8;
        }
        Ok(Self {
            shape: new_shape,
            start: start / 8,
            run_len: run_len / 8,
            repeats,
        })
    }

    /// All of a tensor of this shape and length in bytes: one run.
    pub fn whole(shape: &[u64], byte_len: u64) -> Self {
        Self {
            shape: shape.to_vec(),
            start: 0,
            run_len: byte_len,
            repeats: Vec::new(),
        }
    }

    /// The shape of the part.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Bytes of the part.
    pub fn byte_len(&self) -> u64 {
        self.run_len * self.run_count()
    }

    /// Bytes of each run.
    pub fn run_len(&self) -> u64 {
        self.run_len
    }

    /// How many runs there are; none where the part is empty.
    pub fn run_count(&self) -> u64 {
        match self.run_len {
            0 => 0,
            _ => self.repeats.iter().map(|repeat| repeat.count).product(),
        }
    }

    /// Where run `index` begins, in bytes from the start of the tensor. Time: one division a
    /// dimension.
    pub fn run_start(&self, index: u64) -> u64 {
        let mut left = index;
        let mut start = self.start;
        for repeat in self.repeats.iter().rev() {
            start += left % repeat.count * repeat.stride;
            left /= repeat.count;
        }
        start
    }

    /// Where in the tensor byte `at` of the part lies. The part must be longer than `at`.
    pub(crate) fn offset_of(&self, at: u64) -> u64 {
        match self.run_len {
            0 => self.start,
            run_len => self.run_start(at / run_len) + at % run_len,
        }
    }

    /// The runs in the order of the part's elements, as bytes from the start of the tensor.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs_from(0)
    }

    /// As [`Slice::runs`], from byte `at` of the part on: of the run that it lies in, what is left.
    pub(crate) fn runs_from(&self, at: u64) -> impl Iterator<Item = Range<u64>> {
        let run_len = self.run_len.max(1);
        let (count, stride) = self.repeats.last().map_or((1, 0), |r| (r.count, r.stride));
        let first = at / run_len;
        let mut begun = at % run_len;
        // Runs are short: a division for each of them would be felt, one for each row of them is not.
        let mut start = self.run_start(first);
        let mut left = count - first % count;
        (first..self.run_count()).map(move |index| {
            if left == 0 {
                start = self.run_start(index);
                left = count;
            }
            let run = start + begun..start + run_len;
            begun = 0;
            start += stride;
            left -= 1;
            run
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every selected element, one by one: too simple to be wrong.
    fn naive(size: u64, shape: &[u64], ranges: &[DimRange]) -> Vec<u64> {
        let mut offsets = vec![0];
        for (dim, range) in ranges.iter().enumerate() {
            let inner: u64 = shape[dim + 1..].iter().product();
            let positions: Vec<u64> = (range.start..range.stop)
                .step_by(range.step as usize)
                .collect();
            offsets = offsets
                .iter()
                .flat_map(|base| positions.iter().map(move |at| base + at * inner))
                .collect();
        }
        offsets
            .iter()
            .flat_map(|element| element * size..(element + 1) * size)
            .collect()
    }

    fn dims() -> impl Strategy<Value = Vec<(u64, DimRange)>> {
        let dim = (0u64..6).prop_flat_map(|size| {
            (0..=size, 0..=size, 1u64..4).prop_map(move |(a, b, step)| {
                let (start, stop) = (a.min(b), a.max(b));
                (size, DimRange { start, stop, step })
            })
        });
        prop::collection::vec(dim, 0..5)
    }

    proptest! {
        #[test]
        fn runs_cover_what_one_by_one_selection_covers(dims in dims(), size in prop::sample::select(vec![1u64, 2, 8])) {
            let dtype = match size { 1 => Dtype::U8, 2 => Dtype::F16, _ => Dtype::I64 };
            let (shape, ranges): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
            let slice = Slice::new(dtype, &shape, &ranges).unwrap();
            let bytes: Vec<u64> = slice.runs().flatten().collect();
            prop_assert_eq!(&bytes, &naive(size, &shape, &ranges));
            prop_assert_eq!(slice.byte_len(), bytes.len() as u64);
            for at in 0..bytes.len() {
                let rest: Vec<u64> = slice.runs_from(at as u64).flatten().collect();
                prop_assert_eq!(&rest, &bytes[at..]);
                prop_assert_eq!(slice.offset_of(at as u64), bytes[at]);
            }
            // Joined as far as they can be: no run begins where the one before it ends, unless
            // longer runs would not be equally long.
            if slice.run_count() == 2 {
                prop_assert_ne!(slice.run_start(0) + slice.run_len(), slice.run_start(1));
            }
        }
    }

    #[test]
    fn whole_rows_are_one_run() {
        let slice = Slice::new(Dtype::F32, &[10, 4, 8], &[(2u64..5).into()]).unwrap();
        assert_eq!(slice.runs().next(), Some(2 * 128..5 * 128));
        assert_eq!(slice.run_count(), 1);
    }

    #[test]
    fn equally_spaced_runs_of_two_dimensions_become_one_repeat() {
        let slice = Slice::new(
            Dtype::U8,
            &[5, 7, 6],
            &[DimRange::all(5), DimRange::all(7), (0u64..2).into()],
        )
        .unwrap();
        assert_eq!((slice.run_count(), slice.repeats.len()), (35, 1));
    }

    #[test]
    fn what_makes_no_sense_is_refused_without_panic() {
        let code = |range: DimRange| Slice::new(Dtype::U8, &[4], &[range]).unwrap_err().code();
        assert_eq!(
            code(DimRange {
                start: 3,
                stop: 1,
                step: 1
            }),
            Code::SliceReversed
        );
        assert_eq!(
            code(DimRange {
                start: 0,
                stop: u64::MAX,
                step: 1
            }),
            Code::SliceRange
        );
        assert_eq!(
            code(DimRange {
                start: 5,
                stop: 5,
                step: 1
            }),
            Code::SliceRange
        );
        assert_eq!(
            code(DimRange {
                start: 0,
                stop: 4,
                step: 0
            }),
            Code::SliceStep
        );
        let rank = Slice::new(Dtype::U8, &[4], &[DimRange::all(4); 2]).unwrap_err();
        assert_eq!(rank.code(), Code::SliceRank);
        // Legal: empty at the end, of an empty dimension, and a step beyond the end.
        for (size, range) in [(4, 4u64..4), (4, 2..2), (0, 0..0)] {
            assert_eq!(
                Slice::new(Dtype::U8, &[size], &[range.into()])
                    .unwrap()
                    .byte_len(),
                0
            );
        }
        let beyond = DimRange {
            start: 1,
            stop: 4,
            step: u64::MAX,
        };
        assert_eq!(
            Slice::new(Dtype::I64, &[4], &[beyond]).unwrap().byte_len(),
            8
        );
    }

    #[test]
    fn half_bytes_are_taken_in_pairs_or_not_at_all() {
        let slice =
            |range: Range<u64>| Slice::new(Dtype::F4, &[3, 4], &[DimRange::all(3), range.into()]);
        assert_eq!(
            slice(2..4).unwrap().runs().collect::<Vec<_>>(),
            [1..2, 3..4, 5..6]
        );
        assert_eq!(slice(1..3).unwrap_err().code(), Code::SliceSubByte);
        assert_eq!(slice(0..1).unwrap_err().code(), Code::SliceSubByte);
    }
}
