//! The one table of what candle can hold.

use candle_core::DType;
use safeshard_core::{Dtype, LoadOptions, Support};

/// One line a dtype that both have: the format's name, candle's name.
macro_rules! shared_dtypes {
    ($($stored:ident $candle:ident;)*) => {
        /// Candle's dtype for elements that are stored as `dtype`; `None` where candle has none.
        pub fn to_candle(dtype: Dtype) -> Option<DType> {
            match dtype { $(Dtype::$stored => Some(DType::$candle),)* _ => None }
        }

        /// The format's dtype for elements of candle's `dtype`; `None` for one that is newer than
        /// this library.
        pub fn from_candle(dtype: DType) -> Option<Dtype> {
            match dtype { $(DType::$candle => Some(Dtype::$stored),)* _ => None }
        }
    };
}

shared_dtypes! {
    F4 F4;
    F6E2M3 F6E2M3;
    F6E3M2 F6E3M2;
    U8 U8;
    F8E4M3 F8E4M3;
    F8E8M0 F8E8M0;
    I16 I16;
    F16 F16;
    Bf16 BF16;
    I32 I32;
    U32 U32;
    F32 F32;
    F64 F64;
    I64 I64;
}

/// Whether candle can hold a dtype, and what [`Unsupported::Widen`](crate::Unsupported::Widen) loads
/// it as if not. Every value is kept.
///
/// | stored | loaded as | |
/// |---|---|---|
/// | `BOOL` | `U8` | refused if a byte is neither 0 nor 1 |
/// | `I8` | `I16` | |
/// | `U16` | `U32` | |
/// | `U64` | `I64` | refused above `i64::MAX` |
/// | `F8_E5M2`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ` | `F16` | |
/// | `C64` | `F32` | with one more dimension of 2 at the end: real part, imaginary part |
///
/// `F4`, `F6_E2M3`, `F6_E3M2` and `F8_E8M0` are kept as they are; candle carries them but computes
/// nothing with them.
pub fn support(dtype: Dtype) -> Support {
    match dtype {
        Dtype::Bool => Support::Widen(Dtype::U8),
        Dtype::I8 => Support::Widen(Dtype::I16),
        Dtype::U16 => Support::Widen(Dtype::U32),
        Dtype::U64 => Support::Widen(Dtype::I64),
        Dtype::F8E5M2 | Dtype::F8E4M3Fnuz | Dtype::F8E5M2Fnuz => Support::Widen(Dtype::F16),
        Dtype::C64 => Support::Widen(Dtype::F32),
        _ if to_candle(dtype).is_some() => Support::Native,
        _ => Support::Never,
    }
}

/// As [`support`], for variables: candle has none of dtypes that it computes nothing with.
pub(crate) fn var_support(dtype: Dtype) -> Support {
    match dtype {
        Dtype::F8E8M0 => Support::Widen(Dtype::Bf16),
        Dtype::F4 | Dtype::F6E2M3 | Dtype::F6E3M2 => Support::Never,
        _ => support(dtype),
    }
}

/// Everything that is floating point in candle's `dtype`, everything else as stored; as
/// [`LoadOptions::floats_as`]. A dtype that only a later candle has changes nothing.
///
/// ```
/// use candle_core::DType;
/// use safeshard_candle::{LoadOptions, Unsupported, floats_as};
///
/// let options = LoadOptions {
///     unsupported: Unsupported::Widen,
///     ..floats_as(DType::F32)
/// };
/// ```
pub fn floats_as(dtype: DType) -> LoadOptions {
    from_candle(dtype).map_or_else(LoadOptions::default, LoadOptions::floats_as)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safeshard_core::Cast;

    #[test]
    fn every_dtype_is_native_or_widens_to_one_that_is() {
        for &dtype in Dtype::ALL {
            match support(dtype) {
                Support::Native => {
                    assert_eq!(to_candle(dtype).and_then(from_candle), Some(dtype));
                }
                Support::Widen(wider) => {
                    assert_eq!(support(wider), Support::Native);
                    assert!(Cast::new(dtype, wider).is_some(), "{dtype} to {wider}");
                }
                Support::Never => panic!("{dtype} cannot be loaded"),
            }
        }
    }
}
