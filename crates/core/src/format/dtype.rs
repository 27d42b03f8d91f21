//! The one table of the format's dtypes: name, bits, kind.

use std::fmt;

/// One line a dtype, ascending in the rank by which writers sort tensors (descending in files).
macro_rules! dtypes {
    ($($variant:ident $name:literal $bits:literal $doc:literal;)*) => {
        /// The type of a tensor's elements: the 22 of safetensors 0.8.0.
        ///
        /// `Ord` is the rank by which the reference sorts tensors into a file.
        ///
        /// ```
        /// use safeshard_core::Dtype;
        ///
        /// assert_eq!(Dtype::from_name("BF16"), Some(Dtype::Bf16));
        /// assert_eq!(Dtype::F4.byte_len(&[3, 2]), Some(3));
        /// assert_eq!(Dtype::F4.byte_len(&[3]), None, "three half bytes are no whole bytes");
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Dtype {
            $(#[doc = concat!("`", $name, "`: ", $doc, ".")] $variant,)*
        }

        impl Dtype {
            /// Every dtype, ascending in rank.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in a header, such as `BF16`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The dtype of a header's name; case counts.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// Bits of one element.
            pub fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    Bool "BOOL" 8 "one byte, 0 or 1";
    F4 "F4" 4 "E2M1, two elements a byte, the first in the low half";
    F6E2M3 "F6_E2M3" 6 "E2M3, packed";
    F6E3M2 "F6_E3M2" 6 "E3M2, packed";
    U8 "U8" 8 "unsigned integer";
    I8 "I8" 8 "signed integer";
    F8E5M2 "F8_E5M2" 8 "E5M2 with infinities";
    F8E4M3 "F8_E4M3" 8 "E4M3 without infinities (torch's `float8_e4m3fn`)";
    F8E8M0 "F8_E8M0" 8 "a power of two (a block scale)";
    F8E4M3Fnuz "F8_E4M3FNUZ" 8 "E4M3 with one zero and one NaN";
    F8E5M2Fnuz "F8_E5M2FNUZ" 8 "E5M2 with one zero and one NaN";
    I16 "I16" 16 "signed integer";
    U16 "U16" 16 "unsigned integer";
    F16 "F16" 16 "IEEE half precision";
    Bf16 "BF16" 16 "the upper half of an F32";
    I32 "I32" 32 "signed integer";
    U32 "U32" 32 "unsigned integer";
    F32 "F32" 32 "IEEE single precision";
    C64 "C64" 64 "complex: two F32, real first";
    F64 "F64" 64 "IEEE double precision";
    I64 "I64" 64 "signed integer";
    U64 "U64" 64 "unsigned integer";
}

impl Dtype {
    /// Bytes of one element, or `None` where several elements share a byte.
    pub fn size(self) -> Option<u64> {
        self.bits().is_multiple_of(8).then_some(self.bits() / 8)
    }

    /// The alignment in bytes that a typed view of the elements needs.
    pub fn alignment(self) -> usize {
        match self {
            Self::C64 => 4,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
            _ => 1,
        }
    }

    /// Real floating point, block scales included.
    pub fn is_float(self) -> bool {
        !self.is_integer() && !matches!(self, Self::Bool | Self::C64)
    }

    /// Signed or unsigned integers; `BOOL` is neither integer nor float.
    pub fn is_integer(self) -> bool {
        matches!(
            self,
            Self::U8
                | Self::I8
                | Self::U16
                | Self::I16
                | Self::U32
                | Self::I32
                | Self::U64
                | Self::I64
        )
    }

    /// Bytes of a tensor of this dtype and shape; `None` where 64 bits cannot count its bits or it
    /// does not end on a whole byte. A zero anywhere in the shape means zero bytes.
    pub fn byte_len(self, shape: &[u64]) -> Option<u64> {
        let bits = super::layout::elements(shape)?.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back() {
        assert_eq!(Dtype::ALL.len(), 22);
        for &dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("bf16"), None);
    }

    #[test]
    fn names_bits_and_rank_are_the_references() {
        use safetensors::Dtype as Reference;
        let reference = [
            Reference::BOOL,
            Reference::F4,
            Reference::F6_E2M3,
            Reference::F6_E3M2,
            Reference::U8,
            Reference::I8,
            Reference::F8_E5M2,
            Reference::F8_E4M3,
            Reference::F8_E8M0,
            Reference::F8_E4M3FNUZ,
            Reference::F8_E5M2FNUZ,
            Reference::I16,
            Reference::U16,
            Reference::F16,
            Reference::BF16,
            Reference::I32,
            Reference::U32,
            Reference::F32,
            Reference::C64,
            Reference::F64,
            Reference::I64,
            Reference::U64,
        ];
        assert!(reference.is_sorted(), "the reference's own rank");
        for (ours, theirs) in Dtype::ALL.iter().zip(reference) {
            assert_eq!(ours.name(), theirs.to_string());
            assert_eq!(ours.bits(), theirs.bitsize() as u64, "{ours}");
        }
    }

    #[test]
    fn a_zero_dimension_means_no_bytes_in_any_order() {
        let huge = 1 << 63;
        assert_eq!(Dtype::F32.byte_len(&[huge, huge, 0]), Some(0));
        assert_eq!(Dtype::F32.byte_len(&[0, huge, huge]), Some(0));
        assert_eq!(Dtype::F32.byte_len(&[huge, huge]), None);
        assert_eq!(Dtype::F32.byte_len(&[]), Some(4));
    }
}
