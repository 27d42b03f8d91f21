//! An array whose type of elements is known only when it is there.

use std::fmt;

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use ndarray::{
    ArcArray, Array, ArrayBase, ArrayView, Dimension, Ix1, IxDyn, OwnedArcRepr, OwnedRepr,
};
use num_complex::Complex32;
use safeshard_core::{Cast, Code, Dtype, Error, Result, TypedVec};

use crate::element::for_each_element;
use crate::shape::{array_of, dimension};
use crate::{Element, F8E4M3Fnuz, F8E5M2Fnuz, F8E8M0};

macro_rules! dyn_array {
    ($($dtype:ident $type:ident $read:ident $kind:ident;)*) => {
        /// An array of any dtype and rank.
        ///
        /// Clones share the elements, and so do names of a checkpoint that are tied; who changes
        /// elements that are shared gets a copy first, as with every [`ArcArray`].
        ///
        /// ```
        /// use ndarray::{Array2, arr2};
        /// use safeshard_ndarray::{Dtype, DynArray};
        ///
        /// let array = DynArray::from(arr2(&[[1f32, 2.], [3., 4.]]));
        /// assert_eq!((array.dtype(), array.shape()), (Dtype::F32, &[2, 2][..]));
        /// assert_eq!(array.view::<f32, ndarray::Ix2>()?.row(1).sum(), 7.);
        /// let wider: Array2<f64> = array.cast::<f64>()?.try_into()?;
        /// assert_eq!(wider[[1, 0]], 3.);
        /// assert!(Array2::<f64>::try_from(array).is_err(), "nothing is cast unasked");
        /// # Ok::<(), safeshard_ndarray::Error>(())
        /// ```
        #[derive(Clone, PartialEq)]
        #[non_exhaustive]
        pub enum DynArray {
            $(
                #[doc = concat!("Elements of type `", stringify!($type), "`.")]
                $dtype(ArcArray<$type, IxDyn>),
            )*
            /// Elements smaller than a byte.
            Packed(PackedArray),
        }

        impl DynArray {
            /// The dtype of its elements.
            pub fn dtype(&self) -> Dtype {
                match self {
                    $(Self::$dtype(_) => Dtype::$dtype,)*
                    Self::Packed(array) => array.dtype,
                }
            }

            /// Its dimensions, outermost first; none for a scalar.
            pub fn shape(&self) -> &[usize] {
                match self {
                    $(Self::$dtype(array) => array.shape(),)*
                    Self::Packed(array) => &array.shape,
                }
            }

            /// What was read, as an array.
            pub(crate) fn from_read(dtype: Dtype, shape: &[u64], elements: TypedVec) -> Result<Self> {
                match dtype {
                    $(Dtype::$dtype => Self::typed::<$type>(shape, elements),)*
                    _ => match elements {
                        TypedVec::U8(bytes) => {
                            let shape = dimension::<IxDyn>(shape)?;
                            PackedArray::new(dtype, shape.slice(), bytes).map(Self::Packed)
                        }
                        _ => Err(Error::new(Code::UnsupportedDtype).found(dtype)),
                    },
                }
            }

            /// Its elements as `cast` makes them.
            fn converted<A: Element>(&self, cast: Cast) -> Result<Vec<A>> {
                match self {
                    $(Self::$dtype(array) => convert(array, cast),)*
                    Self::Packed(_) => Err(unsupported_cast(self.dtype(), A::DTYPE)),
                }
            }
        }
    };
}

for_each_element!(dyn_array);

impl DynArray {
    fn typed<A: Element>(shape: &[u64], elements: TypedVec) -> Result<Self> {
        let array: Array<A, IxDyn> = array_of(dimension(shape)?, A::from_read(elements)?)?;
        Ok(array.into())
    }

    /// Its elements where they lie, if they are of type `A` and it has the rank of `D`.
    ///
    /// # Errors
    /// `dtype-mismatch`, `rank-mismatch`.
    pub fn view<A: Element, D: Dimension>(&self) -> Result<ArrayView<'_, A, D>> {
        let array = A::in_dyn_array(self).ok_or_else(|| dtype_mismatch::<A>(self.dtype()))?;
        with_rank(array.view())
    }

    /// A copy with elements of another type, by the rules of [`Cast`]: floats into each other, and
    /// what [`LoadOptions::dtype`](crate::LoadOptions::dtype) offers besides. Complex numbers as `f32`
    /// get one more dimension of 2 at the end: real part, imaginary part. The array itself, shared, if
    /// it has this type already.
    ///
    /// # Errors
    /// `unsupported-cast`; `cast-value` where a value does not fit; `limit-memory`.
    pub fn cast<A: Element>(&self) -> Result<Self> {
        if self.dtype() == A::DTYPE {
            return Ok(self.clone());
        }
        let unsupported = || unsupported_cast(self.dtype(), A::DTYPE);
        let cast = Cast::new(self.dtype(), A::DTYPE).ok_or_else(unsupported)?;
        let mut shape = self.shape().to_vec();
        if let Ok(expansion @ 2..) = usize::try_from(cast.expansion()) {
            shape.push(expansion);
        }
        let array: Array<A, IxDyn> = array_of(IxDyn(&shape), self.converted(cast)?)?;
        Ok(array.into())
    }
}

fn convert<A: Element, B: Element>(array: &ArcArray<A, IxDyn>, cast: Cast) -> Result<Vec<B>> {
    let array = array.as_standard_layout();
    let elements = array.as_slice().unwrap_or_default();
    let expansion = usize::try_from(cast.expansion()).unwrap_or(1);
    B::filled(elements.len().saturating_mul(expansion), |bytes| {
        cast.run(A::to_bytes(elements), bytes).map_err(|error| {
            Error::new(Code::CastValue)
                .expected(error.expected)
                .found(format_args!("{} at element {}", error.value, error.element))
        })
    })
}

fn unsupported_cast(from: Dtype, to: Dtype) -> Error {
    Error::new(Code::UnsupportedCast).found(format_args!("{from} to {to}"))
}

pub(crate) fn dtype_mismatch<A: Element>(found: Dtype) -> Error {
    Error::new(Code::DtypeMismatch)
        .expected(A::DTYPE)
        .found(found)
}

/// The same array with another type of dimension.
pub(crate) fn with_rank<S: ndarray::RawData, D: Dimension>(
    array: ArrayBase<S, IxDyn>,
) -> Result<ArrayBase<S, D>> {
    let rank = array.ndim();
    array
        .into_dimensionality()
        .map_err(|_| rank_mismatch::<D>(rank))
}

pub(crate) fn rank_mismatch<D: Dimension>(found: usize) -> Error {
    Error::new(Code::RankMismatch)
        .expected(D::NDIM.unwrap_or_default())
        .found(found)
}

/// Without a copy.
impl<A: Element, D: Dimension> From<Array<A, D>> for DynArray {
    fn from(array: Array<A, D>) -> Self {
        A::into_dyn_array(array.into_dyn().into_shared())
    }
}

/// Without a copy.
impl<A: Element, D: Dimension> From<ArcArray<A, D>> for DynArray {
    fn from(array: ArcArray<A, D>) -> Self {
        A::into_dyn_array(array.into_dyn())
    }
}

/// Without a copy, unless the elements are shared.
///
/// # Errors
/// `dtype-mismatch`, `rank-mismatch`.
impl<A: Element, D: Dimension> TryFrom<DynArray> for ArrayBase<OwnedRepr<A>, D> {
    type Error = Error;

    fn try_from(array: DynArray) -> Result<Self> {
        ArcArray::try_from(array).map(ArcArray::into_owned)
    }
}

/// Without a copy.
///
/// # Errors
/// `dtype-mismatch`, `rank-mismatch`.
impl<A: Element, D: Dimension> TryFrom<DynArray> for ArrayBase<OwnedArcRepr<A>, D> {
    type Error = Error;

    fn try_from(array: DynArray) -> Result<Self> {
        let dtype = array.dtype();
        let array = A::from_dyn_array(array).ok_or_else(|| dtype_mismatch::<A>(dtype))?;
        with_rank(array)
    }
}

impl fmt::Debug for DynArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DynArray({} {:?})", self.dtype(), self.shape())
    }
}

/// Elements smaller than a byte (`F4`, `F6_E2M3`, `F6_E3M2`): their bytes, as a file holds them.
#[derive(Clone, PartialEq)]
pub struct PackedArray {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: ArcArray<u8, Ix1>,
}

impl PackedArray {
    /// An array of this dtype and shape, counted in elements.
    ///
    /// # Errors
    /// `unsupported-dtype` for a dtype whose elements have a type; `buffer-size` where dtype and shape
    /// say another number of bytes.
    pub fn new(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Result<Self> {
        if dtype.size().is_some() {
            return Err(Error::new(Code::UnsupportedDtype)
                .expected("elements smaller than a byte")
                .found(dtype));
        }
        let dims: Vec<_> = shape.iter().map(|&dim| dim as u64).collect();
        let expected = dtype.byte_len(&dims);
        if expected != Some(bytes.len() as u64) {
            return Err(Error::new(Code::BufferSize)
                .expected(format_args!("the bytes of {dtype} {shape:?}"))
                .found(bytes.len()));
        }
        Ok(Self {
            dtype,
            shape: shape.to_vec(),
            bytes: ArcArray::from_vec(bytes),
        })
    }

    /// The dtype of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its dimensions, counted in elements.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its bytes.
    pub fn bytes(&self) -> &ArcArray<u8, Ix1> {
        &self.bytes
    }
}

impl fmt::Debug for PackedArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedArray({} {:?})", self.dtype, self.shape)
    }
}

impl From<PackedArray> for DynArray {
    fn from(array: PackedArray) -> Self {
        Self::Packed(array)
    }
}
