//! The bytes of tensors on the CPU, where they lie.

use std::ops::Range;

use candle_core::{CpuStorage, Tensor};
use safeshard_core::{Code, Dtype, Error, Result};

/// Which bytes of its storage belong to a contiguous tensor.
pub(crate) struct Span(Range<usize>);

impl Span {
    /// `slice-sub-byte` where it does not begin and end on whole bytes.
    pub(crate) fn of(dtype: Dtype, tensor: &Tensor) -> Result<Self> {
        // Candle counts elements also where several share a byte.
        let position = |elements: usize| {
            let bytes = dtype.byte_len(&[elements as u64])?;
            usize::try_from(bytes).ok()
        };
        let start = tensor.layout().start_offset();
        let bytes = position(start).zip(position(start + tensor.elem_count()));
        let (start, end) = bytes.ok_or_else(|| Error::new(Code::SliceSubByte))?;
        Ok(Self(start..end))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Of a storage's bytes.
    pub(crate) fn of_bytes<'b>(&self, bytes: &'b [u8]) -> Result<&'b [u8]> {
        bytes.get(self.0.clone()).ok_or_else(too_small)
    }

    /// As [`Span::of_bytes`], to be overwritten.
    pub(crate) fn of_bytes_mut<'b>(&self, bytes: &'b mut [u8]) -> Result<&'b mut [u8]> {
        bytes.get_mut(self.0.clone()).ok_or_else(too_small)
    }
}

fn too_small() -> Error {
    Error::new(Code::Framework).found("a storage smaller than the shape")
}

/// The bytes of everything that a storage holds.
pub(crate) fn storage_bytes(storage: &CpuStorage) -> &[u8] {
    match storage {
        CpuStorage::U8(bytes)
        | CpuStorage::F4(bytes)
        | CpuStorage::F6E2M3(bytes)
        | CpuStorage::F6E3M2(bytes)
        | CpuStorage::F8E8M0(bytes) => bytes,
        CpuStorage::F8E4M3(elements) => bytemuck::must_cast_slice(elements),
        CpuStorage::I16(elements) => bytemuck::must_cast_slice(elements),
        CpuStorage::F16(elements) => bytemuck::must_cast_slice(elements),
        CpuStorage::BF16(elements) => bytemuck::must_cast_slice(elements),
        CpuStorage::I32(elements) => bytemuck::must_cast_slice(elements),
        CpuStorage::U32(elements) => bytemuck::must_cast_slice(elements),
        CpuStorage::F32(elements) => bytemuck::must_cast_slice(elements),
        CpuStorage::I64(elements) => bytemuck::must_cast_slice(elements),
        CpuStorage::F64(elements) => bytemuck::must_cast_slice(elements),
    }
}

/// As [`storage_bytes`], to be overwritten.
pub(crate) fn storage_bytes_mut(storage: &mut CpuStorage) -> &mut [u8] {
    match storage {
        CpuStorage::U8(bytes)
        | CpuStorage::F4(bytes)
        | CpuStorage::F6E2M3(bytes)
        | CpuStorage::F6E3M2(bytes)
        | CpuStorage::F8E8M0(bytes) => bytes,
        CpuStorage::F8E4M3(elements) => bytemuck::must_cast_slice_mut(elements),
        CpuStorage::I16(elements) => bytemuck::must_cast_slice_mut(elements),
        CpuStorage::F16(elements) => bytemuck::must_cast_slice_mut(elements),
        CpuStorage::BF16(elements) => bytemuck::must_cast_slice_mut(elements),
        CpuStorage::I32(elements) => bytemuck::must_cast_slice_mut(elements),
        CpuStorage::U32(elements) => bytemuck::must_cast_slice_mut(elements),
        CpuStorage::F32(elements) => bytemuck::must_cast_slice_mut(elements),
        CpuStorage::I64(elements) => bytemuck::must_cast_slice_mut(elements),
        CpuStorage::F64(elements) => bytemuck::must_cast_slice_mut(elements),
    }
}
