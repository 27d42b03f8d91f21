//! Files written by the reference implementation, and every element type by its dtype.

use std::path::Path;

use ndarray::{ArrayView, Dimension};
use safeshard_ndarray::{Checkpoint, Dtype, Element};
use safetensors::tensor::TensorView;

/// A tensor to write.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    name: String,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    /// Bytes that differ from element to element; those of `BOOL` are 0 and 1.
    pub(crate) fn new(name: &str, dtype: Dtype, shape: &[usize]) -> Self {
        let reference = reference(dtype);
        let bytes = shape.iter().product::<usize>() * reference.bitsize() / 8;
        let seed = name.bytes().fold(17, u8::wrapping_add);
        let byte = |i: usize| {
            let byte = seed.wrapping_add((i as u8).wrapping_mul(37));
            if dtype == Dtype::Bool {
                byte >> 3 & 1
            } else {
                byte
            }
        };
        Self::with_bytes(name, dtype, shape, (0..bytes).map(byte).collect::<Vec<_>>())
    }

    pub(crate) fn with_bytes(
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            dtype: reference(dtype),
            shape: shape.to_vec(),
            bytes: bytes.into(),
        }
    }
}

/// The reference's dtype of the same name.
pub(crate) fn reference(dtype: Dtype) -> safetensors::Dtype {
    serde_json::from_value(dtype.name().into()).unwrap()
}

/// A whole file, written by the reference.
pub(crate) fn file(tensors: &[Stored]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (tensor.name.as_str(), view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// The same, whose data begin one byte further than they should: legal, and misaligned.
pub(crate) fn misaligned(tensors: &[Stored]) -> Vec<u8> {
    let mut file = file(tensors);
    let len = u64::from_le_bytes(file[..8].try_into().unwrap());
    file[..8].copy_from_slice(&(len + 1).to_le_bytes());
    file.insert(8 + len as usize, b' ');
    file
}

pub(crate) fn write(path: impl AsRef<Path>, tensors: &[Stored]) {
    std::fs::write(path, file(tensors)).unwrap();
}

pub(crate) fn in_memory(tensors: &[Stored]) -> Checkpoint {
    Checkpoint::from_bytes(file(tensors)).unwrap()
}

/// The bytes of elements in row-major order, one by one: too simple to be wrong.
pub(crate) fn bytes<A: Element + bytemuck::NoUninit, D: Dimension>(
    array: &ArrayView<'_, A, D>,
) -> Vec<u8> {
    let elements = array.iter();
    elements
        .flat_map(|element| bytemuck::bytes_of(element).to_vec())
        .collect()
}

/// Calls a generic function with the element type of a dtype.
macro_rules! with_element {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            Dtype::Bool => $function::<bool>($($argument),*),
            Dtype::U8 => $function::<u8>($($argument),*),
            Dtype::I8 => $function::<i8>($($argument),*),
            Dtype::F8E5M2 => $function::<safeshard_ndarray::F8E5M2>($($argument),*),
            Dtype::F8E4M3 => $function::<safeshard_ndarray::F8E4M3>($($argument),*),
            Dtype::F8E8M0 => $function::<safeshard_ndarray::F8E8M0>($($argument),*),
            Dtype::F8E4M3Fnuz => $function::<safeshard_ndarray::F8E4M3Fnuz>($($argument),*),
            Dtype::F8E5M2Fnuz => $function::<safeshard_ndarray::F8E5M2Fnuz>($($argument),*),
            Dtype::I16 => $function::<i16>($($argument),*),
            Dtype::U16 => $function::<u16>($($argument),*),
            Dtype::F16 => $function::<safeshard_ndarray::f16>($($argument),*),
            Dtype::Bf16 => $function::<safeshard_ndarray::bf16>($($argument),*),
            Dtype::I32 => $function::<i32>($($argument),*),
            Dtype::U32 => $function::<u32>($($argument),*),
            Dtype::F32 => $function::<f32>($($argument),*),
            Dtype::C64 => $function::<safeshard_ndarray::Complex32>($($argument),*),
            Dtype::F64 => $function::<f64>($($argument),*),
            Dtype::I64 => $function::<i64>($($argument),*),
            Dtype::U64 => $function::<u64>($($argument),*),
            packed => panic!("{packed} has no element type"),
        }
    };
}
pub(crate) use with_element;
