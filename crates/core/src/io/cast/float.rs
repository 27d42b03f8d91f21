//! Floats, by way of `f32`.
//!
//! Single elements are converted without branches, so that loops over them become vector code, and
//! their NaNs in integers, because what float arithmetic makes of those differs between processors.
//! F16 goes in small blocks, because processors that convert it do so by the slice.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{Byte, map, size};
use crate::format::dtype::Dtype;

/// Converts whole elements between two float dtypes.
pub(super) fn convert<B: Byte>(from: Dtype, to: Dtype, src: &[u8], dst: &mut [B]) {
    match from {
        Dtype::F32 => from_values(to, src.as_chunks().0, dst, f32::from_le_bytes),
        Dtype::Bf16 => from_values(to, src.as_chunks().0, dst, bf16_to_f32),
        Dtype::F64 => from_values(to, src.as_chunks().0, dst, f64_to_f32),
        Dtype::F16 => from_f16(to, src.as_chunks().0, dst),
        Dtype::F8E4M3 => from_bytes(to, src, dst, &F8_E4M3),
        Dtype::F8E5M2 => from_bytes(to, src, dst, &F8_E5M2),
        Dtype::F8E4M3Fnuz => from_bytes(to, src, dst, &F8_E4M3FNUZ),
        Dtype::F8E5M2Fnuz => from_bytes(to, src, dst, &F8_E5M2FNUZ),
        Dtype::F8E8M0 => from_bytes(to, src, dst, &F8_E8M0),
        _ => unreachable!("{from} is no float"),
    }
}

/// From elements of any kind, given the `f32` that each stands for.
fn from_values<T: Copy, B: Byte>(to: Dtype, src: &[T], dst: &mut [B], value: impl Fn(T) -> f32) {
    match to {
        Dtype::F16 => {
            let mut values = [0.0; BLOCK];
            let mut halves = [f16::ZERO; BLOCK];
            for (src, dst) in src.chunks(BLOCK).zip(dst.chunks_mut(BLOCK * 2)) {
                let values = &mut values[..src.len()];
                let halves = &mut halves[..src.len()];
                for (to, from) in values.iter_mut().zip(src) {
                    *to = value(*from);
                }
                halves.convert_from_f32_slice(values);
                map(halves, dst, f16::to_ne_bytes);
            }
        }
        Dtype::Bf16 => map(src, dst, |x| f32_to_bf16(value(x)).to_ne_bytes()),
        Dtype::F32 => map(src, dst, |x| value(x).to_ne_bytes()),
        Dtype::F64 => map(src, dst, |x| f32_to_f64(value(x)).to_ne_bytes()),
        _ => unreachable!("{to} is no float to cast to"),
    }
}

fn from_f16<B: Byte>(to: Dtype, src: &[[u8; 2]], dst: &mut [B]) {
    let mut halves = [f16::ZERO; BLOCK];
    let mut values = [0.0; BLOCK];
    for (src, dst) in src.chunks(BLOCK).zip(dst.chunks_mut(BLOCK * size(to))) {
        let halves = &mut halves[..src.len()];
        let values = &mut values[..src.len()];
        for (to, from) in halves.iter_mut().zip(src) {
            *to = f16::from_le_bytes(*from);
        }
        halves.convert_to_f32_slice(values);
        from_values(to, values, dst, |x| x);
    }
}

/// From 8-bit formats: converts all 256 values, then looks each element up.
fn from_bytes<B: Byte>(to: Dtype, src: &[u8], dst: &mut [B], values: &[f32; 256]) {
    match size(to) {
        2 => look_up::<2, B>(to, src, dst, values),
        4 => look_up::<4, B>(to, src, dst, values),
        _ => look_up::<8, B>(to, src, dst, values),
    }
}

fn look_up<const D: usize, B: Byte>(to: Dtype, src: &[u8], dst: &mut [B], values: &[f32; 256]) {
    let mut table = [[0_u8; D]; 256];
    from_values(to, values, table.as_flattened_mut(), |x| x);
    map(src, dst, |x| table[usize::from(x)]);
}

fn bf16_to_f32(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if bits & !SIGN > INFINITY {
        0x7FC0
    } else {
        let odd = bits >> 16 & 1;
        (bits.wrapping_add(0x7FFF + odd) >> 16) as u16
    }
}

fn f32_to_f64(value: f32) -> f64 {
    if value.is_nan() {
        let bits = u64::from(value.to_bits());
        // All ones: the exponent and the quiet bit.
        f64::from_bits(bits >> 31 << 63 | 0xFFF << 51 | (bits & 0x007F_FFFF) << 29)
    } else {
        f64::from(value)
    }
}

fn f64_to_f32(bytes: [u8; 8]) -> f32 {
    let value = f64::from_le_bytes(bytes);
    if value.is_nan() {
        let bits = value.to_bits();
        let payload = (bits >> 29) as u32 & 0x007F_FFFF;
        f32::from_bits((bits >> 32) as u32 & SIGN | INFINITY | QUIET | payload)
    } else {
        value as f32
    }
}

static F8_E4M3: [f32; 256] = table(F8::E4M3);
static F8_E5M2: [f32; 256] = table(F8::E5M2);
static F8_E4M3FNUZ: [f32; 256] = table(F8::E4M3Fnuz);
static F8_E5M2FNUZ: [f32; 256] = table(F8::E5M2Fnuz);
static F8_E8M0: [f32; 256] = table(F8::E8M0);

#[derive(Clone, Copy)]
enum F8 {
    E4M3,
    E5M2,
    E4M3Fnuz,
    E5M2Fnuz,
    E8M0,
}

/// What each byte of an 8-bit format is.
const fn table(format: F8) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let bits = byte as u32;
        let sign = (bits & 0x80) << 24;
        let value = match (format, bits) {
            (F8::E5M2, _) => f16::from_bits((bits << 8) as u16).to_f32_const().to_bits(),
            (F8::E4M3, 0x7F | 0xFF) => sign | INFINITY | 0x7 << 20,
            (F8::E4M3Fnuz | F8::E5M2Fnuz, 0x80) | (F8::E8M0, 0xFF) => LONE_NAN,
            (F8::E4M3, _) => sign | small(bits & 0x7F, 3, 7),
            (F8::E4M3Fnuz, _) => sign | small(bits & 0x7F, 3, 8),
            (F8::E5M2Fnuz, _) => sign | small(bits & 0x7F, 2, 16),
            (F8::E8M0, 0) => 1 << 22, // 2^-127 is subnormal
            (F8::E8M0, _) => bits << 23,
        };
        table[byte] = f32::from_bits(value);
        byte += 1;
    }
    table
}

/// A finite magnitude: an exponent with this bias, then a mantissa of so many bits.
const fn small(bits: u32, mantissa_bits: u32, bias: u32) -> u32 {
    let exponent = bits >> mantissa_bits;
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    let (steps, exponent) = match exponent {
        0 => (mantissa, 1),
        _ => (mantissa | 1 << mantissa_bits, exponent),
    };
    let step = f32::from_bits((127 + exponent - bias - mantissa_bits) << 23);
    (steps as f32 * step).to_bits()
}

/// Elements of a block. Measured: fewer spend their time in calls, more in moving through the caches.
const BLOCK: usize = 128;

const INFINITY: u32 = 0x7F80_0000;
const QUIET: u32 = 0x0040_0000;
const SIGN: u32 = 0x8000_0000;
/// The NaN of a format that has only one, as torch writes it.
const LONE_NAN: u32 = INFINITY | 1;

#[cfg(test)]
mod tests {
    use Dtype::*;

    use super::*;

    const WIDE: [Dtype; 4] = [F16, Bf16, F32, F64];

    #[test]
    fn every_8_and_16_bit_float_becomes_what_the_textbook_says() {
        let all_8: Vec<u8> = (0..=u8::MAX).collect();
        let all_16 = bytes((0..=u16::MAX).map(u16::to_le_bytes));
        for to in WIDE {
            for from in [F8E4M3, F8E5M2, F8E4M3Fnuz, F8E5M2Fnuz] {
                check(from, to, &all_8);
            }
            for from in [F16, Bf16] {
                if from != to {
                    check(from, to, &all_16);
                }
            }
        }
    }

    #[test]
    fn wide_floats_are_rounded_as_the_textbook_says() {
        // Every sign, exponent and leading mantissa, with tails just beside and on the ties.
        let tails = [0, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
        for tail in tails {
            let f32s = (0..=u16::MAX).map(|top| u32::from(top) << 16 | tail);
            let src = bytes(f32s.map(u32::to_le_bytes));
            for to in [F16, Bf16, F64] {
                check(F32, to, &src);
            }
            // Below F32's last bit: nothing, a tie, and just above one.
            for low in [0, 0x1000_0000, 0x1000_0001] {
                let f64s = (0..=u16::MAX).map(|top| {
                    let value = f32::from_bits(u32::from(top) << 16 | tail);
                    f64::from(value).to_bits() | low
                });
                let src = bytes(f64s.map(u64::to_le_bytes));
                for to in [F16, Bf16, F32] {
                    check(F64, to, &src);
                }
            }
        }
    }

    #[test]
    fn a_block_scale_is_a_power_of_two() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        for to in [Bf16, F32, F64] {
            let results = bits(to, &run(F8E8M0, to, &all));
            for (exponent, &result) in results[..255].iter().enumerate() {
                assert_eq!(format(to).value(result), 2_f64.powi(exponent as i32 - 127));
            }
            assert!(format(to).value(results[255]).is_nan());
        }
    }

    #[test]
    fn nans_follow_the_documented_rules() {
        let cases: &[(Dtype, u64, Dtype, u64)] = &[
            (F16, 0xFC01, F32, 0xFFC0_2000),
            (F16, 0x7D55, F64, 0x7FFD_5400_0000_0000),
            (F16, 0xFC01, Bf16, 0x7FC0),
            (Bf16, 0xFF81, F32, 0xFF81_0000),
            (Bf16, 0xFF81, F64, 0xFFF8_2000_0000_0000),
            (Bf16, 0xFF81, F16, 0xFE08),
            (F32, 0x7F80_0001, F64, 0x7FF8_0000_2000_0000),
            (F32, 0xFF80_0001, F16, 0xFE00),
            (F32, 0xFFFF_FFFF, F16, 0xFFFF),
            (F32, 0xFFFF_FFFF, Bf16, 0x7FC0),
            (F64, 0xFFF0_0000_0000_0001, F32, 0xFFC0_0000),
            (F64, 0x7FF5_5555_5555_5555, F32, 0x7FEA_AAAA),
            (F64, 0x7FF5_5555_5555_5555, F16, 0x7F55),
            (F64, 0xFFF0_0000_0000_0001, Bf16, 0x7FC0),
            (F8E4M3, 0xFF, F32, 0xFFF0_0000),
            (F8E4M3, 0x7F, F16, 0x7F80),
            (F8E5M2, 0x7D, F32, 0x7FE0_0000),
            (F8E5M2, 0xFE, F16, 0xFE00),
            (F8E4M3Fnuz, 0x80, F32, 0x7F80_0001),
            (F8E5M2Fnuz, 0x80, F16, 0x7E00),
            (F8E8M0, 0xFF, F64, 0x7FF8_0000_2000_0000),
        ];
        for &(from, source, to, expected) in cases {
            // Enough of them for vector code and for what remains behind it.
            let src = source.to_le_bytes()[..size(from)].repeat(21);
            let results = bits(to, &run(from, to, &src));
            assert_eq!(results, [expected; 21], "{from} {source:#x} to {to}");
        }
    }

    fn run(from: Dtype, to: Dtype, src: &[u8]) -> Vec<u8> {
        let mut dst = vec![0xAA; src.len() / size(from) * size(to)];
        convert(from, to, src, &mut dst);
        dst
    }

    fn bytes<const N: usize>(elements: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
        elements.into_iter().flatten().collect()
    }

    /// Elements as bits, whatever their size.
    fn bits(dtype: Dtype, bytes: &[u8]) -> Vec<u64> {
        let element = |bytes: &[u8]| {
            let mut wide = [0; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(wide)
        };
        bytes.chunks(size(dtype)).map(element).collect()
    }

    /// A float format in its textbook form.
    struct Format {
        exponent_bits: u32,
        mantissa_bits: u32,
        bias: i32,
        specials: Specials,
    }

    #[derive(PartialEq)]
    enum Specials {
        /// The largest exponent is for infinities and NaNs.
        Ieee,
        /// All bits but the sign.
        OneMagnitude,
        /// The sign alone.
        NegativeZero,
    }

    fn format(dtype: Dtype) -> Format {
        let (exponent_bits, mantissa_bits, bias, specials) = match dtype {
            F64 => (11, 52, 1023, Specials::Ieee),
            F32 => (8, 23, 127, Specials::Ieee),
            Bf16 => (8, 7, 127, Specials::Ieee),
            F16 => (5, 10, 15, Specials::Ieee),
            F8E5M2 => (5, 2, 15, Specials::Ieee),
            F8E4M3 => (4, 3, 7, Specials::OneMagnitude),
            F8E4M3Fnuz => (4, 3, 8, Specials::NegativeZero),
            F8E5M2Fnuz => (5, 2, 16, Specials::NegativeZero),
            other => panic!("{other}"),
        };
        Format {
            exponent_bits,
            mantissa_bits,
            bias,
            specials,
        }
    }

    impl Format {
        fn value(&self, bits: u64) -> f64 {
            let exponent = (bits >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1);
            let mantissa = bits & ((1 << self.mantissa_bits) - 1);
            let magnitude_bits = self.exponent_bits + self.mantissa_bits;
            let negative = bits >> magnitude_bits == 1;
            let all_ones = exponent == (1 << self.exponent_bits) - 1;
            let nan = match self.specials {
                Specials::Ieee => all_ones && mantissa != 0,
                Specials::OneMagnitude => all_ones && mantissa == (1 << self.mantissa_bits) - 1,
                Specials::NegativeZero => bits == 1 << magnitude_bits,
            };
            let magnitude = if nan {
                f64::NAN
            } else if all_ones && self.specials == Specials::Ieee {
                f64::INFINITY
            } else {
                let leading = if exponent == 0 {
                    0
                } else {
                    1 << self.mantissa_bits
                };
                let power = exponent.max(1) as i32 - self.bias - self.mantissa_bits as i32;
                // Two factors: the smallest steps of F64 are subnormal powers.
                (leading + mantissa) as f64 * 2_f64.powi(power / 2) * 2_f64.powi(power - power / 2)
            };
            if negative { -magnitude } else { magnitude }
        }

        /// The nearest value of an IEEE format, the even one of two.
        fn round(&self, value: f64) -> f64 {
            if value == 0.0 || !value.is_finite() {
                return value;
            }
            let lowest = 1 - self.bias;
            let power = (((value.to_bits() >> 52 & 0x7FF) as i32) - 1023).max(lowest);
            let step = 2_f64.powi(power - self.mantissa_bits as i32);
            let rounded = (value / step).round_ties_even() * step;
            if rounded.abs() >= 2_f64.powi(self.bias + 1) {
                f64::INFINITY.copysign(value)
            } else {
                rounded
            }
        }
    }

    /// Compares a cast of `src` with the textbook.
    fn check(from: Dtype, to: Dtype, src: &[u8]) {
        let dst = run(from, to, src);
        for (source, result) in bits(from, src).into_iter().zip(bits(to, &dst)) {
            let exact = format(from).value(source);
            let expected = match to {
                F64 => exact,
                F32 => format(F32).round(exact),
                _ => format(to).round(format(F32).round(exact)),
            };
            let value = format(to).value(result);
            let same = value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan();
            assert!(
                same,
                "{from} {source:#x} to {to}: {value:e}, not {expected:e}"
            );
        }
    }
}
