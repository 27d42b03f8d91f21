//! Conversions from one dtype to another, block by block while reading.

use std::fmt;
use std::mem::MaybeUninit;

use crate::format::dtype::Dtype;

mod float;

/// A conversion of elements from one dtype to another, applied while reading.
///
/// | from | to | rule |
/// |---|---|---|
/// | `F16`, `BF16`, `F32`, `F64` | each other | nearest, ties to even, too large becomes infinite |
/// | `F8_E4M3`, `F8_E5M2`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ` | `F16`, `BF16`, `F32`, `F64` | exact |
/// | `F8_E8M0` | `BF16`, `F32`, `F64` | exact; not to `F16`, whose range is too small |
/// | `BOOL` | `U8` | the byte; refused unless 0 or 1 |
/// | `I8` | `I16` | exact |
/// | `U16` | `U32` | exact |
/// | `U64` | `I64` | refused above `i64::MAX` |
/// | `C64` | `F32` | two elements for each: real part, imaginary part |
///
/// # Floats
///
/// Every number, subnormals and signed zeros included, becomes the bits that torch 2.13's
/// `.to(dtype)` makes of it on the CPU. As there, everything goes by way of `F32`, so that `F64` is
/// rounded twice on its way to `F16` and `BF16`.
///
/// A NaN stays a NaN, and becomes the same one on every machine. Torch's own differ between
/// processors, and between the elements of one tensor; where it has only one, these rules give it,
/// and else one of its several:
///
/// - to `BF16`: `0x7FC0` (torch from `F32` and `F64`: also `0xFFFF`);
/// - `BF16` to `F32`: the same bits in the upper half, not made quiet;
/// - `F8_E4M3` to `F32`: `0x7FF00000` and the sign; `F8_E4M3FNUZ`, `F8_E5M2FNUZ` and `F8_E8M0`,
///   which have but one NaN: `0x7F800001`;
/// - otherwise made quiet, the sign and the leading bits of the payload kept (torch from `F16` to
///   `F32`: also `0x7FFFFFFF`; to `F16` on processors without F16C: `0x7E00` and the sign).
///
/// ```
/// use safeshard_core::{Cast, Dtype};
///
/// let cast = Cast::new(Dtype::Bf16, Dtype::F32).unwrap();
/// let mut one = [0_u8; 4];
/// cast.run(&[0x80, 0x3F], &mut one).unwrap();
/// assert_eq!(f32::from_ne_bytes(one), 1.0);
///
/// assert_eq!(Cast::new(Dtype::F32, Dtype::I32), None, "floats never become integers");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cast {
    from: Dtype,
    to: Dtype,
}

impl Cast {
    /// The conversion between two dtypes; `None` where it is not offered, or they are the same.
    pub fn new(from: Dtype, to: Dtype) -> Option<Self> {
        use Dtype::{Bf16, Bool, C64, F16, F32, F64, I8, I16, I64, U8, U16, U32, U64};
        use Dtype::{F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0};
        let offered = match (from, to) {
            (F16 | Bf16 | F32 | F64, F16 | Bf16 | F32 | F64) => from != to,
            (F8E4M3 | F8E5M2 | F8E4M3Fnuz | F8E5M2Fnuz, F16 | Bf16 | F32 | F64) => true,
            (F8E8M0, Bf16 | F32 | F64) => true,
            (Bool, U8) | (I8, I16) | (U16, U32) | (U64, I64) | (C64, F32) => true,
            _ => false,
        };
        offered.then_some(Self { from, to })
    }

    /// The dtype of what is read.
    pub fn from(self) -> Dtype {
        self.from
    }

    /// The dtype of what is written.
    pub fn to(self) -> Dtype {
        self.to
    }

    /// How many elements one element becomes: 2 from `C64`, otherwise 1.
    pub fn expansion(self) -> u64 {
        match self.from {
            Dtype::C64 => 2,
            _ => 1,
        }
    }

    /// Bytes that so many bytes become; whole elements, fewer than 2^61 bytes.
    pub(crate) fn output_len(self, bytes: u64) -> u64 {
        bytes / size(self.from) as u64 * size(self.to) as u64 * self.expansion()
    }

    /// Converts elements from the format's byte order to the machine's.
    ///
    /// `dst` is memory that may be uninitialised, or plain `u8`. On `Ok` all of it is written; on an
    /// error, nothing. Allocates nothing, and mostly waits for memory.
    ///
    /// # Errors
    ///
    /// The first value that the target does not hold, by the table above.
    ///
    /// # Panics
    ///
    /// If `src` ends within an element, or `dst` has another length than the result.
    pub fn run<B: Byte>(self, src: &[u8], dst: &mut [B]) -> Result<(), CastError> {
        assert!(
            src.len().is_multiple_of(size(self.from))
                && src.len() / size(self.from) * size(self.to) * self.expansion() as usize
                    == dst.len(),
            "a cast takes whole elements and room for exactly what they become"
        );
        match self.from {
            Dtype::Bool => {
                refuse(src, |x| u64::from(*x), 1, "0 or 1")?;
                map(src, dst, u8::to_ne_bytes);
            }
            Dtype::I8 => map(src, dst, |x| i16::from(x as i8).to_ne_bytes()),
            Dtype::U16 => map(src.as_chunks().0, dst, |x| {
                u32::from(u16::from_le_bytes(x)).to_ne_bytes()
            }),
            Dtype::U64 => {
                let src = src.as_chunks().0;
                let most = i64::MAX as u64;
                refuse(src, |x| u64::from_le_bytes(*x), most, "at most 2^63 - 1")?;
                map(src, dst, |x| u64::from_le_bytes(x).to_ne_bytes());
            }
            Dtype::C64 => map(src.as_chunks().0, dst, |x| {
                u32::from_le_bytes(x).to_ne_bytes()
            }),
            _ => float::convert(self.from, self.to, src, dst),
        }
        Ok(())
    }
}

/// Bytes of an element; the sub-byte dtypes are in no cast.
fn size(dtype: Dtype) -> usize {
    dtype.bits() as usize / 8
}

/// Writes the bytes of each element's result. All of `dst`, because `run` compared the lengths.
fn map<const D: usize, T: Copy, B: Byte>(src: &[T], dst: &mut [B], bytes: impl Fn(T) -> [u8; D]) {
    for (from, to) in src.iter().zip(dst.as_chunks_mut().0) {
        *to = bytes(*from).map(B::new);
    }
}

/// Finds the first element whose value is above `limit`.
fn refuse<T>(
    src: &[T],
    value: impl Fn(&T) -> u64,
    limit: u64,
    expected: &'static str,
) -> Result<(), CastError> {
    // A loop that looks at every element is vector code; one that stops at the first hit is not.
    if src.iter().fold(false, |any, x| any | (value(x) > limit)) {
        let mut values = src.iter().map(value).enumerate();
        if let Some((element, value)) = values.find(|&(_, value)| value > limit) {
            return Err(CastError {
                element,
                value,
                expected,
            });
        }
    }
    Ok(())
}

/// A value that the target of a [`Cast`] does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CastError {
    /// Which element of the source, from 0.
    pub element: usize,
    /// What it is.
    pub value: u64,
    /// What it may be, in words.
    pub expected: &'static str,
}

impl fmt::Display for CastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            element,
            value,
            expected,
        } = self;
        write!(f, "element {element} is {value}, expected {expected}")
    }
}

impl std::error::Error for CastError {}

/// A byte of memory that may be uninitialised (`MaybeUninit<u8>`) or not (`u8`).
pub trait Byte: sealed::Sealed {
    /// A byte with a value.
    fn new(value: u8) -> Self;
}

impl Byte for u8 {
    fn new(value: u8) -> Self {
        value
    }
}

impl Byte for MaybeUninit<u8> {
    fn new(value: u8) -> Self {
        Self::new(value)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for std::mem::MaybeUninit<u8> {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dtype::*;

    fn run(from: Dtype, to: Dtype, src: &[u8]) -> Result<Vec<u8>, CastError> {
        let cast = Cast::new(from, to).unwrap();
        let elements = src.len() / size(from) * cast.expansion() as usize;
        let mut dst = vec![0xAA; elements * size(to)];
        cast.run(src, &mut dst).map(|()| dst)
    }

    fn bytes<const N: usize>(elements: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
        elements.into_iter().flatten().collect()
    }

    #[test]
    fn integers_keep_their_value() {
        assert_eq!(run(Bool, U8, &[0, 1, 1]), Ok(vec![0, 1, 1]));
        let i8s: Vec<u8> = (0..=u8::MAX).collect();
        let i16s = bytes(i8s.iter().map(|&x| i16::from(x as i8).to_ne_bytes()));
        assert_eq!(run(I8, I16, &i8s), Ok(i16s));
        let u16s = bytes((0..=u16::MAX).map(u16::to_le_bytes));
        let u32s = bytes((0..=u16::MAX).map(|x| u32::from(x).to_ne_bytes()));
        assert_eq!(run(U16, U32, &u16s), Ok(u32s));
        let u64s = [0, 1, i64::MAX as u64];
        let i64s = bytes([0, 1, i64::MAX].map(i64::to_ne_bytes));
        assert_eq!(run(U64, I64, &bytes(u64s.map(u64::to_le_bytes))), Ok(i64s));
    }

    #[test]
    fn a_complex_number_becomes_its_two_parts() {
        let parts = [1.5_f32, -2.0, f32::INFINITY, -0.0];
        let results = bytes(parts.map(f32::to_ne_bytes));
        assert_eq!(
            run(C64, F32, &bytes(parts.map(f32::to_le_bytes))),
            Ok(results)
        );
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_and_nothing_is_written() {
        let mut dst = [7; 4];
        let bool_to_u8 = Cast::new(Bool, U8).unwrap();
        let error = bool_to_u8.run(&[1, 0, 2, 255], &mut dst).unwrap_err();
        assert_eq!((error.element, error.value), (2, 2));
        assert_eq!(dst, [7; 4]);

        let too_large = bytes([5, i64::MAX as u64 + 1, u64::MAX].map(u64::to_le_bytes));
        let error = run(U64, I64, &too_large).unwrap_err();
        assert_eq!((error.element, error.value), (1, 1 << 63));
    }

    #[test]
    fn only_what_the_table_lists_is_offered() {
        let offered = |from: Dtype| {
            let targets = Dtype::ALL
                .iter()
                .filter(|&&to| Cast::new(from, to).is_some());
            targets.copied().collect::<Vec<_>>()
        };
        for &from in Dtype::ALL {
            let expected: &[Dtype] = match from {
                F16 => &[Bf16, F32, F64],
                Bf16 => &[F16, F32, F64],
                F32 => &[F16, Bf16, F64],
                F64 => &[F16, Bf16, F32],
                F8E4M3 | F8E5M2 | F8E4M3Fnuz | F8E5M2Fnuz => &[F16, Bf16, F32, F64],
                F8E8M0 => &[Bf16, F32, F64],
                Bool => &[U8],
                I8 => &[I16],
                U16 => &[U32],
                U64 => &[I64],
                C64 => &[F32],
                _ => &[],
            };
            assert_eq!(offered(from), expected, "{from}");
        }
    }

    #[test]
    #[should_panic(expected = "whole elements")]
    fn room_for_too_few_elements_is_refused() {
        let _ = Cast::new(F32, F16).unwrap().run(&[0; 8], &mut [0_u8; 2]);
    }

    #[test]
    #[should_panic(expected = "whole elements")]
    fn part_of_an_element_is_refused() {
        let _ = Cast::new(F32, F16).unwrap().run(&[0; 7], &mut [0_u8; 2]);
    }
}
