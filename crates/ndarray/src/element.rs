//! The one table of element types: which Rust type an array has for which dtype.

use std::fmt;

use bytemuck::allocation::{pod_collect_to_vec, try_cast_vec, try_zeroed_vec};
use bytemuck::{AnyBitPattern, NoUninit, Pod};
use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use ndarray::{ArcArray, IxDyn};
use num_complex::Complex32;
use safeshard_core::{Code, Dtype, Error, Result, TypedVec};

use crate::{DynArray, F8E4M3Fnuz, F8E5M2Fnuz, F8E8M0};

/// A type of elements: every dtype of the format but those smaller than a byte has one.
///
/// | type | dtype |
/// |---|---|
/// | `i8`, `i16`, `i32`, `i64` | `I8`, `I16`, `I32`, `I64` |
/// | `u8`, `u16`, `u32`, `u64` | `U8`, `U16`, `U32`, `U64` |
/// | `f32`, `f64` | `F32`, `F64` |
/// | [`struct@f16`], [`bf16`] | `F16`, `BF16` |
/// | [`F8E4M3`], [`F8E5M2`] | `F8_E4M3`, `F8_E5M2` |
/// | [`F8E8M0`], [`F8E4M3Fnuz`], [`F8E5M2Fnuz`] | `F8_E8M0`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ` |
/// | [`Complex32`] | `C64` |
/// | `bool` | `BOOL`; bytes other than 0 and 1 are an error |
///
/// The trait is sealed: what an element's bytes mean is the format's to say.
pub trait Element: Copy + fmt::Debug + PartialEq + Send + Sync + sealed::Sealed {
    /// The dtype in a file.
    const DTYPE: Dtype;
}

pub(crate) mod sealed {
    use ndarray::{ArcArray, IxDyn};
    use safeshard_core::{Result, TypedVec};

    use crate::DynArray;

    /// What the adapter does with elements of one type.
    pub trait Sealed: Sized + 'static {
        /// The elements that were read, without a copy.
        fn from_read(elements: TypedVec) -> Result<Vec<Self>>;

        /// Bytes where they lie, as elements.
        fn from_bytes(bytes: &[u8]) -> Result<&[Self]>;

        /// Elements as a file holds them.
        fn to_bytes(elements: &[Self]) -> &[u8];

        /// `len` elements whose bytes `fill` writes; none of a type that not all bytes make.
        fn filled(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Vec<Self>>;

        fn into_dyn_array(array: ArcArray<Self, IxDyn>) -> DynArray;

        /// The array, if it has elements of this type.
        fn from_dyn_array(array: DynArray) -> Option<ArcArray<Self, IxDyn>>;

        fn in_dyn_array(array: &DynArray) -> Option<&ArcArray<Self, IxDyn>>;
    }
}

/// Calls a macro with one line an element type: dtype and variant, Rust type, variant of [`TypedVec`],
/// and how its elements are made of bytes.
macro_rules! for_each_element {
    ($macro:ident) => {
        $macro! {
            Bool bool U8 checked;
            U8 u8 U8 plain;
            I8 i8 I8 plain;
            F8E5M2 F8E5M2 U8 recast;
            F8E4M3 F8E4M3 U8 recast;
            F8E8M0 F8E8M0 U8 recast;
            F8E4M3Fnuz F8E4M3Fnuz U8 recast;
            F8E5M2Fnuz F8E5M2Fnuz U8 recast;
            I16 i16 I16 plain;
            U16 u16 U16 plain;
            F16 f16 F16 plain;
            Bf16 bf16 Bf16 plain;
            I32 i32 I32 plain;
            U32 u32 U32 plain;
            F32 f32 F32 plain;
            C64 Complex32 F32 recast;
            F64 f64 F64 plain;
            I64 i64 I64 plain;
            U64 u64 U64 plain;
        }
    };
}
pub(crate) use for_each_element;

macro_rules! elements {
    ($($dtype:ident $type:ident $read:ident $kind:ident;)*) => {
        $(
            impl Element for $type {
                const DTYPE: Dtype = Dtype::$dtype;
            }

            impl sealed::Sealed for $type {
                fn from_read(elements: TypedVec) -> Result<Vec<Self>> {
                    match elements {
                        TypedVec::$read(vec) => $kind::from_vec(vec),
                        _ => Err(Error::new(Code::DtypeMismatch).expected(Self::DTYPE)),
                    }
                }

                fn from_bytes(bytes: &[u8]) -> Result<&[Self]> {
                    $kind::from_bytes(bytes)
                }

                fn to_bytes(elements: &[Self]) -> &[u8] {
                    bytemuck::must_cast_slice(elements)
                }

                fn filled(
                    len: usize,
                    fill: impl FnOnce(&mut [u8]) -> Result<()>,
                ) -> Result<Vec<Self>> {
                    $kind::filled(len, fill)
                }

                fn into_dyn_array(array: ArcArray<Self, IxDyn>) -> DynArray {
                    DynArray::$dtype(array)
                }

                fn from_dyn_array(array: DynArray) -> Option<ArcArray<Self, IxDyn>> {
                    match array {
                        DynArray::$dtype(array) => Some(array),
                        _ => None,
                    }
                }

                fn in_dyn_array(array: &DynArray) -> Option<&ArcArray<Self, IxDyn>> {
                    match array {
                        DynArray::$dtype(array) => Some(array),
                        _ => None,
                    }
                }
            }
        )*
    };
}

for_each_element!(elements);

/// Types that any bytes make, and that the core reads as themselves.
mod plain {
    pub(super) use super::recast::{filled, from_bytes};
    use super::*;

    pub(super) fn from_vec<T>(elements: Vec<T>) -> Result<Vec<T>> {
        Ok(elements)
    }
}

/// Types that any bytes make, and that the core reads as something of the same alignment.
mod recast {
    use super::*;

    pub(super) fn from_vec<T: NoUninit, E: Pod>(elements: Vec<T>) -> Result<Vec<E>> {
        // Only room for half a complex number at the end of the memory makes a copy necessary.
        Ok(try_cast_vec(elements).unwrap_or_else(|(_, elements)| pod_collect_to_vec(&elements)))
    }

    pub(super) fn from_bytes<E: AnyBitPattern>(bytes: &[u8]) -> Result<&[E]> {
        // Nothing may lie anywhere.
        if bytes.is_empty() {
            return Ok(&[]);
        }
        bytemuck::try_cast_slice(bytes).map_err(|_| {
            Error::new(Code::Misaligned)
                .expected(format_args!("a multiple of {} bytes", align_of::<E>()))
                .found(format_args!("the address {:#x}", bytes.as_ptr().addr()))
        })
    }

    pub(super) fn filled<E: Pod>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Vec<E>> {
        let mut elements = try_zeroed_vec(len).map_err(|()| {
            let bytes = len.saturating_mul(size_of::<E>());
            Error::new(Code::LimitMemory).found(format_args!("{bytes} bytes"))
        })?;
        fill(bytemuck::must_cast_slice_mut(&mut elements))?;
        Ok(elements)
    }
}

/// `bool`, which only 0 and 1 make.
mod checked {
    use super::*;

    pub(super) fn from_vec(bytes: Vec<u8>) -> Result<Vec<bool>> {
        from_bytes(&bytes)?;
        // `collect` writes into the vector it takes from: same length, same alignment.
        Ok(bytes.into_iter().map(|byte| byte != 0).collect())
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<&[bool]> {
        bytemuck::checked::try_cast_slice(bytes).map_err(|_| {
            let mut wrong = bytes.iter().enumerate().filter(|(_, byte)| **byte > 1);
            let (element, byte) = wrong.next().unwrap_or((0, &0));
            Error::new(Code::CastValue)
                .expected("0 or 1")
                .found(format_args!("{byte} at element {element}"))
        })
    }

    pub(super) fn filled(
        _len: usize,
        _fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Vec<bool>> {
        Err(Error::new(Code::UnsupportedCast).found(Dtype::Bool))
    }
}
