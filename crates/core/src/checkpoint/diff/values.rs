//! How far two stretches of elements are apart.

use super::Tolerance;
use crate::format::dtype::Dtype;
use crate::io::cast::Cast;

/// Elements that are compared at a time: as numbers, they lie on the stack.
const BLOCK: usize = 512;

/// How far elements are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Distance {
    pub(super) differing: u64,
    /// The largest of all, `None` where elements have no values.
    pub(super) max_abs: Option<f64>,
    pub(super) max_rel: Option<f64>,
}

impl Distance {
    /// Of no elements yet.
    pub(super) fn of(dtype: Dtype) -> Self {
        let nothing = has_values(dtype).then_some(0.0);
        Self {
            differing: 0,
            max_abs: nothing,
            max_rel: nothing,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.differing += other.differing;
        for (sum, other) in [
            (&mut self.max_abs, other.max_abs),
            (&mut self.max_rel, other.max_rel),
        ] {
            if let (Some(sum), Some(other)) = (sum.as_mut(), other) {
                *sum = larger(*sum, other);
            }
        }
    }
}

/// Whether elements are floats that `F64` holds.
pub(super) fn has_values(dtype: Dtype) -> bool {
    dtype == Dtype::F64 || dtype.is_float() && Cast::new(dtype, Dtype::F64).is_some()
}

/// How far elements of these dtypes are apart: as many whole ones of the one as of the other.
pub(super) fn distance(
    dtypes: [Dtype; 2],
    [a, b]: [&[u8]; 2],
    tolerance: Option<Tolerance>,
) -> Distance {
    let [dtype_a, dtype_b] = dtypes;
    if !has_values(dtype_a) {
        return Distance {
            differing: differing_bits(dtype_a.bits(), a, b),
            ..Distance::of(dtype_a)
        };
    }
    let mut distance = Distance::of(dtype_a);
    let (mut max_abs, mut max_rel) = (0.0, 0.0);
    let mut apart = 0;
    let (mut values_a, mut values_b) = ([0.0; BLOCK], [0.0; BLOCK]);
    let block_of = |dtype: Dtype| BLOCK * dtype.bits() as usize / 8;
    let blocks = a.chunks(block_of(dtype_a)).zip(b.chunks(block_of(dtype_b)));
    for (a, b) in blocks {
        let (a, b) = (
            values(dtype_a, a, &mut values_a),
            values(dtype_b, b, &mut values_b),
        );
        for (&a, &b) in a.iter().zip(b) {
            let same = a == b || a.is_nan() && b.is_nan();
            if same {
                continue;
            }
            let abs = (a - b).abs();
            max_abs = larger(max_abs, abs);
            max_rel = larger(max_rel, abs / b.abs());
            // Not the other way round: what is NaN is near nothing.
            let near = |by: Tolerance| b.is_finite() && abs <= by.absolute + by.relative * b.abs();
            apart += u64::from(!tolerance.is_some_and(near));
        }
    }
    distance.max_abs = Some(max_abs);
    distance.max_rel = Some(max_rel);
    distance.differing = match tolerance {
        // Another zero, or another NaN, is another bit.
        None if dtype_a == dtype_b => differing_bits(dtype_a.bits(), a, b),
        _ => apart,
    };
    distance
}

/// The values of at most a block of elements.
fn values<'v>(dtype: Dtype, bytes: &[u8], values: &'v mut [f64; BLOCK]) -> &'v [f64] {
    let mut converted = [0; size_of::<[f64; BLOCK]>()];
    let mut bytes = bytes;
    if let Some(cast) = Cast::new(dtype, Dtype::F64) {
        let len = cast.output_len(bytes.len() as u64) as usize;
        let converted = converted.get_mut(..len).unwrap_or_default();
        // Floats all fit.
        let _fits = cast.run(bytes, converted);
        bytes = converted;
    }
    let elements = bytes.as_chunks().0;
    for (value, element) in values.iter_mut().zip(elements) {
        *value = f64::from_le_bytes(*element);
    }
    values.get(..elements.len()).unwrap_or_default()
}

/// How many elements of so many bits are not the same.
fn differing_bits(bits: u64, a: &[u8], b: &[u8]) -> u64 {
    let bytes = |size: usize| {
        let elements = a.chunks(size).zip(b.chunks(size));
        elements.filter(|(a, b)| a != b).count() as u64
    };
    match bits {
        4 => {
            let pairs = a.iter().zip(b);
            let halves = pairs.map(|(a, b)| [(a ^ b) & 0x0F, (a ^ b) & 0xF0]);
            halves.flatten().filter(|half| *half != 0).count() as u64
        }
        6 => {
            let triples = a.as_chunks::<3>().0.iter().zip(b.as_chunks::<3>().0);
            let elements = triples.map(|(a, b)| {
                let word = |[x, y, z]: [u8; 3]| u32::from_le_bytes([x, y, z, 0]);
                let other = word(*a) ^ word(*b);
                (0..4).filter(|at| other >> (6 * at) & 0x3F != 0).count() as u64
            });
            elements.sum()
        }
        bits => bytes((bits / 8).max(1) as usize),
    }
}

/// The larger one; NaN where one is.
fn larger(a: f64, b: f64) -> f64 {
    match a >= b || a.is_nan() {
        true => a,
        false => b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    fn apart(a: &[f32], b: &[f32], tolerance: Option<Tolerance>) -> Distance {
        distance([Dtype::F32; 2], [&bytes(a), &bytes(b)], tolerance)
    }

    #[test]
    fn without_tolerance_bits_count() {
        let nan = f32::from_bits(0x7FC0_0001);
        let distance = apart(&[0.0, f32::NAN, 1.0, 2.0], &[-0.0, nan, 1.0, 2.5], None);
        assert_eq!(distance.differing, 3);
        assert_eq!(distance.max_abs, Some(0.5));
        assert_eq!(distance.max_rel, Some(0.2));
    }

    #[test]
    fn with_tolerance_values_count() {
        let by = |relative, absolute| Some(Tolerance { relative, absolute });
        let (a, b) = ([1.0, f32::NAN, 100.0, 0.0], [1.5, f32::NAN, 101.0, -0.0]);
        let differing = |tolerance| apart(&a, &b, tolerance).differing;
        assert_eq!(differing(by(0.0, 0.0)), 2);
        assert_eq!(differing(by(0.01, 0.0)), 1);
        assert_eq!(differing(by(0.0, 0.5)), 1);
        assert_eq!(differing(by(0.0, 1.0)), 0);
        // An infinity is near itself only, whatever the tolerance.
        let infinite = apart(&[1.0], &[f32::INFINITY], by(1.0, 1.0));
        assert_eq!(infinite.differing, 1);
    }

    #[test]
    fn elements_are_compared_to_the_last() {
        for len in [BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7] {
            let a = vec![1.0; len];
            for at in [0, BLOCK - 2, len / 2, len - 1] {
                let mut b = a.clone();
                b[at] = 1.5;
                let half = vec![half::bf16::from_f32(1.0); len];
                let half: Vec<u8> = half.iter().flat_map(|x| x.to_le_bytes()).collect();
                let dtypes = [Dtype::Bf16, Dtype::F32];
                for found in [
                    apart(&a, &b, None),
                    distance(dtypes, [&half, &bytes(&b)], None),
                ] {
                    assert_eq!(
                        (found.differing, found.max_abs),
                        (1, Some(0.5)),
                        "{at} of {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_is_near_nan() {
        let by = Some(Tolerance {
            relative: 1.0,
            absolute: f64::MAX,
        });
        let distance = apart(&[1.0, 2.0], &[f32::NAN, 3.0], by);
        assert_eq!(distance.differing, 1);
        assert!(distance.max_abs.unwrap().is_nan());
    }

    #[test]
    fn elements_smaller_than_a_byte_are_counted_one_by_one() {
        assert_eq!(differing_bits(4, &[0x12, 0x34], &[0x13, 0x43]), 3);
        // Bits 0 to 5, 6 to 11, 12 to 17 and 18 to 23.
        assert_eq!(differing_bits(6, &[0, 0, 0], &[0x3F, 0, 0]), 1);
        assert_eq!(differing_bits(6, &[0, 0, 0], &[0x40, 0x10, 0x80]), 3);
    }
}
