//! The bytes of tensors that do not lie as a file holds them: with strides, on a device, yet to be computed.
//!
//! A framework can copy any box of such a tensor (`narrow` along each dimension) into contiguous memory of
//! the host. Which boxes make up a stretch of the row-major bytes is the same for all frameworks, and said
//! here once.

use std::ops::Range;

use super::data::WriteBytes;
use crate::error::Result;

/// How many bytes are copied at a time, unless one element has more.
const PIECE: u64 = 8 << 20;

/// Gives the bytes of `range` of a tensor to `write`, in boxes of at most 8 MiB, of which `copy` gives the
/// bytes: for each dimension of `shape` it is told a range, and it writes the elements of that box in
/// row-major order, of `element_size` bytes each.
///
/// Nothing is copied but what lies in the range, and at most the rest of the elements at its ends. For
/// implementing [`TensorData::write_range`](crate::TensorData::write_range).
///
/// # Errors
/// Those of `copy` and `write`.
///
/// ```
/// use safeshard_core::gather;
///
/// // The transpose of [[0, 1, 2], [3, 4, 5]], whose rows are columns in memory.
/// let memory: [u8; 6] = [0, 1, 2, 3, 4, 5];
/// let mut rows = Vec::new();
/// gather(
///     &[3, 2],
///     1,
///     1..5,
///     |ranges, write| {
///         for row in ranges[0].clone() {
///             for column in ranges[1].clone() {
///                 write(&[memory[(column * 3 + row) as usize]])?;
///             }
///         }
///         Ok(())
///     },
///     &mut |bytes| {
///         rows.extend_from_slice(bytes);
///         Ok(())
///     },
/// )?;
/// assert_eq!(rows, [3, 1, 4, 2]); // of [0, 3, 1, 4, 2, 5]
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn gather(
    shape: &[u64],
    element_size: u64,
    range: Range<u64>,
    mut copy: impl FnMut(&[Range<u64>], &mut WriteBytes<'_>) -> Result<()>,
    write: &mut WriteBytes<'_>,
) -> Result<()> {
    let size = element_size.max(1);
    let all = shape
        .iter()
        .fold(1u64, |count, &dim| count.saturating_mul(dim));
    let end = range.end.div_ceil(size).min(all);
    let mut at = range.start / size;
    let mut window = Window::new(at.saturating_mul(size), range);
    while at < end {
        let ranges = next_box(shape, at..end, (PIECE / size).max(1));
        copy(&ranges, &mut |bytes| window.show(bytes, write))?;
        at += ranges
            .iter()
            .map(|range| range.end - range.start)
            .product::<u64>();
    }
    Ok(())
}

/// The largest box of at most so many elements that these elements, in row-major order, begin with.
fn next_box(shape: &[u64], elements: Range<u64>, most: u64) -> Vec<Range<u64>> {
    let mut ranges: Vec<_> = vec![0..1; shape.len()];
    let most = most.min(elements.end - elements.start);
    // How many elements a step along a dimension has, and how many steps the place is from the beginning.
    let (mut step, mut place) = (1, elements.start);
    let mut is_whole = true;
    for (range, &dim) in ranges.iter_mut().zip(shape).rev() {
        let index = place % dim.max(1);
        if is_whole {
            let count = (most / step).clamp(1, dim - index);
            *range = index..index + count;
            // Further out only whole steps fit on.
            is_whole = index == 0 && count == dim && step.saturating_mul(dim) <= most;
        } else {
            *range = index..index + 1;
        }
        (step, place) = (step.saturating_mul(dim), place / dim.max(1));
    }
    ranges
}

/// Lets through what lies in a range of the bytes that are shown, from a place before it on.
pub(crate) struct Window {
    at: u64,
    range: Range<u64>,
}

impl Window {
    /// Of bytes that are shown from `at` on.
    pub(crate) fn new(at: u64, range: Range<u64>) -> Self {
        Self { at, range }
    }

    /// Shows the next bytes.
    pub(crate) fn show(&mut self, bytes: &[u8], write: &mut WriteBytes<'_>) -> Result<()> {
        let len = bytes.len() as u64;
        let inside = |place: u64| (place.saturating_sub(self.at)).min(len) as usize;
        let part = bytes.get(inside(self.range.start)..inside(self.range.end));
        self.at = self.at.saturating_add(len);
        match part {
            Some(part) if !part.is_empty() => write(part),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes of a range of a tensor whose elements are their numbers, and how many were copied.
    fn gathered(shape: &[u64], size: u64, range: Range<u64>) -> (Vec<u8>, u64) {
        let (mut given, mut copied) = (Vec::new(), 0);
        gather(
            shape,
            size,
            range,
            |ranges, write| {
                let mut numbers = vec![0];
                for (range, dim) in ranges.iter().zip(shape) {
                    let inner = |number: u64| range.clone().map(move |index| number * dim + index);
                    numbers = numbers.into_iter().flat_map(inner).collect();
                }
                copied += numbers.len() as u64;
                numbers
                    .iter()
                    .try_for_each(|number| write(&number.to_le_bytes()[..size as usize]))
            },
            &mut |bytes| {
                given.extend_from_slice(bytes);
                Ok(())
            },
        )
        .unwrap();
        (given, copied)
    }

    proptest! {
        #[test]
        fn any_range_of_any_shape_is_its_row_major_bytes(
            shape in prop::collection::vec(0u64..5, 0..5),
            size in 1u64..8,
            ends in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let count = shape.iter().product::<u64>();
            let all: Vec<u8> = (0..count)
                .flat_map(|number| number.to_le_bytes()[..size as usize].to_vec())
                .collect();
            let (one, other) = (ends.0.index(all.len() + 1), ends.1.index(all.len() + 1));
            let range = one.min(other)..one.max(other);
            let (given, copied) = gathered(&shape, size, range.start as u64..range.end as u64);
            prop_assert_eq!(&given, &all[range.clone()]);
            prop_assert!(copied * size < range.len() as u64 + 2 * size);
        }
    }

    #[test]
    fn boxes_are_as_large_as_they_may_be() {
        let shape = [4, 3, 1 << 20];
        let boxes = |elements: Range<u64>| {
            let mut at = elements.start;
            let mut boxes = Vec::new();
            while at < elements.end {
                let next = next_box(&shape, at..elements.end, 8 << 20);
                at += next
                    .iter()
                    .map(|range| range.end - range.start)
                    .product::<u64>();
                boxes.push(next);
            }
            boxes
        };
        let row = 1 << 20;
        assert_eq!(
            boxes(0..12 * row),
            [[0..2, 0..3, 0..row], [2..4, 0..3, 0..row]]
        );
        assert_eq!(boxes(4 * row..5 * row), [[1..2, 1..2, 0..row]]);
        assert_eq!(
            boxes(row - 5..3 * row + 5),
            [
                [0..1, 0..1, row - 5..row],
                [0..1, 1..3, 0..row],
                [1..2, 0..1, 0..5]
            ]
        );
    }
}
