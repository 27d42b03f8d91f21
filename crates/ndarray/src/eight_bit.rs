//! The 8-bit floats that no other crate has a type for: their bits.

use std::fmt;

use bytemuck::{Pod, Zeroable};

macro_rules! eight_bit_floats {
    ($($name:ident $doc:literal;)*) => {
        $(
            #[doc = $doc]
            ///
            /// Carries the bits and computes nothing: [`DynArray::cast`](crate::DynArray::cast) or a
            /// dtype in [`LoadOptions`](crate::LoadOptions) gives numbers.
            #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
            #[repr(transparent)]
            pub struct $name(u8);

            impl $name {
                /// The number that these bits are.
                pub const fn from_bits(bits: u8) -> Self {
                    Self(bits)
                }

                /// Its bits.
                pub const fn to_bits(self) -> u8 {
                    self.0
                }
            }

            impl fmt::Debug for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    write!(f, concat!(stringify!($name), "({:#04x})"), self.0)
                }
            }
        )*
    };
}

eight_bit_floats! {
    F8E8M0 "`F8_E8M0`: a power of two, the scale of a block.";
    F8E4M3Fnuz "`F8_E4M3FNUZ`: E4M3 with one zero and one NaN.";
    F8E5M2Fnuz "`F8_E5M2FNUZ`: E5M2 with one zero and one NaN.";
}
