//! The one table of what libtorch can hold, and shapes as it counts them.

use safeshard_core::{Code, Dtype, Error, LoadOptions, Result, Support};
use tch::{Kind, TchError, Tensor};

/// One line a dtype that both have: the format's name, libtorch's number (`c10::ScalarType`), and tch's
/// name where tch has one.
macro_rules! shared_dtypes {
    ($($dtype:ident $number:literal $($kind:ident)?;)*) => {
        /// libtorch's number for elements that are stored as `dtype`.
        pub(crate) fn scalar_type(dtype: Dtype) -> Option<i32> {
            match dtype { $(Dtype::$dtype => Some($number),)* _ => None }
        }

        fn of_scalar_type(number: i32) -> Option<Dtype> {
            match number { $($number => Some(Dtype::$dtype),)* _ => None }
        }

        /// tch's kind for elements that are stored as `dtype`; `None` where tch has no name for it, even
        /// if libtorch [has](support) such tensors.
        pub fn to_kind(dtype: Dtype) -> Option<Kind> {
            match dtype { $($(Dtype::$dtype => Some(Kind::$kind),)?)* _ => None }
        }

        /// The format's dtype for elements of this kind; `None` for a kind that it lacks.
        pub fn from_kind(kind: Kind) -> Option<Dtype> {
            match kind { $($(Kind::$kind => Some(Dtype::$dtype),)?)* _ => None }
        }
    };
}

shared_dtypes! {
    Bool 11 Bool;
    F4 45;
    U8 0 Uint8;
    I8 1 Int8;
    F8E5M2 23 Float8e5m2;
    F8E4M3 24 Float8e4m3fn;
    F8E8M0 44;
    F8E4M3Fnuz 26 Float8e4m3fnuz;
    F8E5M2Fnuz 25 Float8e5m2fnuz;
    I16 2 Int16;
    U16 27;
    F16 5 Half;
    Bf16 15 BFloat16;
    I32 3 Int;
    U32 28;
    F32 6 Float;
    C64 9 ComplexFloat;
    F64 7 Double;
    I64 4 Int64;
    U64 29;
}

/// Whether libtorch can hold a dtype: all but `F6_E2M3` and `F6_E3M2`.
///
/// tch has no [`Kind`] for `U16`, `U32`, `U64`, `F8_E8M0` and `F4`. Their tensors are libtorch's all the
/// same, under their own types: [`Tensor::f_kind`] of them is an error and [`Tensor::kind`] panics, but
/// `to_kind`, views, devices and saving work. A tensor of `F4` has packed pairs, so its last dimension is
/// half of the stored one, as in torch.
pub fn support(dtype: Dtype) -> Support {
    match scalar_type(dtype) {
        Some(_) => Support::Native,
        None => Support::Never,
    }
}

/// The format's dtype for a tensor's elements, those that tch has no kind for included.
///
/// # Errors
/// `unsupported-dtype` for one that the format lacks, such as a quantised one; `framework` for a tensor
/// that is not defined.
///
/// ```
/// use safeshard_tch::{Dtype, dtype_of};
/// use tch::{Device, Kind, Tensor};
///
/// let weight = Tensor::zeros([2, 3], (Kind::BFloat16, Device::Cpu));
/// assert_eq!(dtype_of(&weight)?, Dtype::Bf16);
/// # Ok::<(), safeshard_tch::Error>(())
/// ```
pub fn dtype_of(tensor: &Tensor) -> Result<Dtype> {
    if !tensor.defined() {
        return Err(Error::new(Code::Framework).found("a tensor that is not defined"));
    }
    let unknown = || Error::new(Code::UnsupportedDtype);
    match tensor.f_kind() {
        Ok(kind) => from_kind(kind).ok_or_else(|| unknown().found(format_args!("{kind:?}"))),
        Err(TchError::UnknownKind(number)) => of_scalar_type(number)
            .ok_or_else(|| unknown().found(format_args!("libtorch's type {number}"))),
        Err(error) => Err(framework(&error)),
    }
}

/// Everything that is floating point in this kind, everything else as stored; as
/// [`LoadOptions::floats_as`]. A kind that the format lacks changes nothing.
///
/// ```
/// use safeshard_tch::{LoadOptions, Unsupported, floats_as};
/// use tch::Kind;
///
/// let options = LoadOptions {
///     unsupported: Unsupported::Skip,
///     ..floats_as(Kind::Float)
/// };
/// ```
pub fn floats_as(kind: Kind) -> LoadOptions {
    from_kind(kind).map_or_else(LoadOptions::default, LoadOptions::floats_as)
}

/// A tensor's type and dimensions as libtorch counts them.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dtype: Dtype,
    pub(crate) scalar_type: i32,
    pub(crate) sizes: Vec<i64>,
    pub(crate) strides: Vec<i64>,
    pub(crate) byte_len: usize,
}

impl Layout {
    /// Of a tensor of the format in row-major order.
    pub(crate) fn new(dtype: Dtype, shape: &[u64]) -> Result<Self> {
        let overflow = || Error::new(Code::ShapeOverflow).found(format_args!("{shape:?}"));
        let unsupported = || Error::new(Code::UnsupportedDtype).found(dtype);
        let scalar_type = scalar_type(dtype).ok_or_else(unsupported)?;
        let byte_len = dtype.byte_len(shape).and_then(|len| len.try_into().ok());
        let sizes = sizes(dtype, shape)?;
        let mut strides = vec![1_i64; sizes.len()];
        let mut stride = 1_i64;
        for (size, place) in sizes.iter().zip(&mut strides).rev() {
            *place = stride;
            stride = stride.checked_mul((*size).max(1)).ok_or_else(overflow)?;
        }
        Ok(Self {
            dtype,
            scalar_type,
            sizes,
            strides,
            byte_len: byte_len.ok_or_else(overflow)?,
        })
    }

    /// At which multiple an element has to lie. libtorch's complex numbers want more than the format's.
    pub(crate) fn alignment(&self) -> usize {
        self.dtype.size().unwrap_or(1) as usize
    }
}

/// Refuses elements that libtorch takes for granted not to exist: a `BOOL` that is neither 0 nor 1.
pub(crate) fn check_elements(dtype: Dtype, bytes: &[u8]) -> Result<()> {
    if dtype != Dtype::Bool || bytes.iter().fold(0, |all, byte| all | byte) <= 1 {
        return Ok(());
    }
    let mut wrong = bytes.iter().enumerate().filter(|(_, byte)| **byte > 1);
    let (element, byte) = wrong.next().unwrap_or((0, &0));
    Err(Error::new(Code::CastValue)
        .expected("0 or 1")
        .found(format_args!("{byte} at element {element}")))
}

/// A stored shape as libtorch counts it: pairs of `F4` are one element.
pub(crate) fn sizes(dtype: Dtype, shape: &[u64]) -> Result<Vec<i64>> {
    let mut shape = shape.to_vec();
    if let (Dtype::F4, Some(last)) = (dtype, shape.last_mut()) {
        if !last.is_multiple_of(2) {
            return Err(Error::new(Code::UnsupportedDtype)
                .expected("an even last dimension, because libtorch packs F4 in pairs")
                .found(format_args!("{shape:?}"))
                .help("`Checkpoint::read` gives its bytes"));
        }
        *last /= 2;
    }
    let sizes: Result<_, _> = shape.iter().map(|&dim| dim.try_into()).collect();
    sizes.map_err(|_| Error::new(Code::ShapeOverflow).found(format_args!("{shape:?}")))
}

/// A tensor's shape as the format counts it.
pub(crate) fn stored_shape(dtype: Dtype, tensor: &Tensor) -> Result<Vec<u64>> {
    let mut shape: Vec<_> = tensor.size().into_iter().map(i64::unsigned_abs).collect();
    if dtype == Dtype::F4 {
        let scalar = || Error::new(Code::SliceSubByte).found("a pair of F4 without a dimension");
        *shape.last_mut().ok_or_else(scalar)? *= 2;
    }
    Ok(shape)
}

/// What libtorch refused: the first line of it, without its stack.
pub(crate) fn framework(error: &TchError) -> Error {
    let text = error.to_string();
    Error::new(Code::Framework).found(text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_but_two_is_libtorchs_and_comes_back() {
        for &dtype in Dtype::ALL {
            let number = scalar_type(dtype);
            assert_eq!(number.and_then(of_scalar_type), number.map(|_| dtype));
            if let Some(kind) = to_kind(dtype) {
                assert_eq!(from_kind(kind), Some(dtype));
                assert_eq!(Some(kind.elt_size_in_bytes() as u64), dtype.size());
            }
            let packed = matches!(dtype, Dtype::F6E2M3 | Dtype::F6E3M2);
            assert_eq!(number.is_none(), packed, "{dtype}");
        }
    }

    #[test]
    fn shapes_that_libtorch_cannot_count_are_refused() {
        for shape in [&[0, u64::MAX][..], &[0, 1 << 62, 1 << 62]] {
            let error = Layout::new(Dtype::U8, shape).unwrap_err();
            assert_eq!(error.code(), Code::ShapeOverflow, "{shape:?}");
        }
        let odd = Layout::new(Dtype::F4, &[2, 3]).unwrap_err();
        assert_eq!(odd.code(), Code::UnsupportedDtype);
        let even = Layout::new(Dtype::F4, &[3, 2, 4]).unwrap();
        assert_eq!((even.sizes, even.strides), (vec![3, 2, 2], vec![4, 2, 1]));
    }
}
