//! Any slice of any shape is refused or stays inside the tensor, and small ones are what
//! one-by-one selection gives.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use safeshard_core::{DimRange, Dtype, Slice};

/// Tensors of at most so many elements are walked one by one.
const SMALL: u64 = 4096;

#[derive(Arbitrary, Debug)]
struct Input {
    dtype: u8,
    sizes: Vec<Size>,
    ranges: Vec<(Size, Size, Size)>,
}

/// Mostly small, so that most slices are legal.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Small(u8),
    Any(u64),
}

impl Size {
    fn value(self) -> u64 {
        match self {
            Self::Small(size) => u64::from(size % 8),
            Self::Any(size) => size,
        }
    }
}

fuzz_target!(|input: Input| {
    let dtype = Dtype::ALL[usize::from(input.dtype) % Dtype::ALL.len()];
    let shape: Vec<u64> = input.sizes.iter().copied().map(Size::value).collect();
    let ranges: Vec<DimRange> = input
        .ranges
        .iter()
        .map(|&(start, stop, step)| DimRange {
            start: start.value(),
            stop: stop.value(),
            step: step.value(),
        })
        .collect();
    let Ok(slice) = Slice::new(dtype, &shape, &ranges) else {
        return;
    };
    let Some(byte_len) = dtype.byte_len(&shape) else {
        // An empty part of what is no tensor, or whole bytes of one that does not end on one.
        return;
    };
    if let Some(last) = slice.run_count().checked_sub(1) {
        assert!(slice.run_start(last) + slice.run_len() <= byte_len);
    }
    // Empty dimensions count as one: the walk goes through the others all the same.
    let mut steps = shape.iter().map(|&size| size.max(1));
    let steps = steps.try_fold(1u64, u64::checked_mul);
    if steps.is_some_and(|steps| steps <= SMALL) {
        let runs: Vec<u64> = slice.runs().flatten().collect();
        assert_eq!(runs, naive(dtype, &shape, &ranges));
        assert_eq!(slice.byte_len(), runs.len() as u64);
    }
});

/// The bytes of every selected element, one by one.
fn naive(dtype: Dtype, shape: &[u64], ranges: &[DimRange]) -> Vec<u64> {
    let mut selected = vec![0];
    for (dim, &size) in shape.iter().enumerate() {
        let range = ranges.get(dim).copied().unwrap_or(DimRange::all(size));
        let positions = (range.start..range.stop).step_by(range.step as usize);
        let positions: Vec<u64> = positions.collect();
        selected = selected
            .iter()
            .flat_map(|outer| positions.iter().map(move |at| outer * size + at))
            .collect();
    }
    let bits = selected
        .iter()
        .flat_map(|element| element * dtype.bits()..(element + 1) * dtype.bits());
    bits.step_by(8).map(|bit| bit / 8).collect()
}
