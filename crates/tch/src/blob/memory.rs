//! The memory of tensors, for those who save it or read it.
//!
//! Whoever has a tensor of a storage may move the storage to other memory: by `resize_`, or as the `out` of
//! an operation, which asks for no `&mut`. The old memory is freed, whatever other tensors there are. So
//! no address is kept here. It is asked each time that bytes are used, together with the storage's length,
//! and nobody else's code runs between asking and using: bytes are copied out, and lent only to
//! [`save`](safeshard_core::save), of which it is known what it does with them.
//!
//! What remains is what tch itself leaves open. Its tensors may be sent to other threads while tensors of the
//! same storage stay behind, so that safe code can move or write to a storage on one thread while an
//! operation, or a save or a read here, uses it on another. That is a data race in libtorch. Nothing that is
//! called for one tensor can exclude it; whoever shares a storage between threads must not change it
//! meanwhile.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::Path;
use std::ptr;

use safeshard_core::{
    Code, Error, Result, SaveOptions, SaveReport, SaveTensor, TensorData, WriteBytes,
};
use tch::{Device, TchError, Tensor};

use super::{SUCCESS, refused};
use crate::dtype::{Layout, framework};

/// Bytes that are lent at a time: what a save writes before it says how far it has come.
const LENT: usize = 8 << 20;

/// Bytes that are copied at a time: they should still be in the processor's cache when they are used.
const COPIED: usize = 512 << 10;

// SAFETY: as `torch/csrc/stable/c/shim.h` and `torch/csrc/inductor/aoti_torch/c/shim.h` of libtorch 2.11 and
// later declare them; tch insists on a version of libtorch that has them. A tensor is an `at::Tensor *`, as
// to tch. Neither changes anything.
unsafe extern "C" {
    fn torch_get_const_data_ptr(tensor: *const c_void, data: *mut *const c_void) -> i32;
    fn aoti_torch_get_storage_size(tensor: *const c_void, size: *mut i64) -> i32;
}

/// The bytes of a contiguous tensor on the CPU, where they lie.
pub(crate) struct Memory {
    /// Its sizes, strides and offset stay, because nobody else has it; its storage is shared.
    tensor: Tensor,
    /// Where in the storage the bytes end.
    end: u64,
    len: usize,
}

// SAFETY: of the tensor, only what changes nothing is called, which libtorch allows on any number of threads.
unsafe impl Sync for Memory {}

impl Memory {
    /// Of a tensor whose elements lie in row-major order in the CPU's memory, as they are.
    pub(crate) fn new(tensor: &Tensor, layout: &Layout) -> Result<Self> {
        let tensor = tensor.f_detach().map_err(|error| framework(&error))?;
        let plain = tensor.device() == Device::Cpu
            && !tensor.is_sparse()
            && !tensor.is_mkldnn()
            && tensor.is_contiguous()
            && tensor.size() == layout.sizes
            && !tensor.is_conj()
            && !tensor.is_neg();
        if !plain {
            return Err(Error::new(Code::Framework).found("a tensor that is not plain memory"));
        }
        let start = offset(&tensor)?.saturating_mul(layout.alignment() as u64);
        Ok(Self {
            tensor,
            end: start.saturating_add(layout.byte_len as u64),
            len: layout.byte_len,
        })
    }

    /// Where all the bytes lie now, if there are any. What is known of it ends when the storage is moved.
    fn data(&self) -> Result<*const u8> {
        check_end(&self.tensor, self.end)?;
        let mut data = ptr::null();
        // SAFETY: a tensor, and a pointer that can be written.
        match unsafe { torch_get_const_data_ptr(self.tensor.as_ptr().cast(), &raw mut data) } {
            SUCCESS if self.len == 0 || !data.is_null() => Ok(data.cast()),
            _ => Err(refused()),
        }
    }
}

/// For anybody: who is given bytes may have a tensor of the same storage, and so is given copies.
impl TensorData for Memory {
    fn byte_len(&self) -> Option<u64> {
        Some(self.len as u64)
    }

    fn place(&self) -> Option<Range<usize>> {
        // What has no bytes shares none, whatever its address.
        let start = self.data().ok().filter(|_| self.len > 0)?.addr();
        Some(start..start + self.len)
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let mut copy = vec![MaybeUninit::uninit(); COPIED.min(self.len)];
        let end = range.end.min(self.len as u64);
        let mut at = range.start;
        while at < end {
            let len = copy.len().min((end - at) as usize);
            let piece = copy.get_mut(..len).unwrap_or_default();
            write(self.read_at(at, piece)?)?;
            at += len as u64;
        }
        Ok(())
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(buf.len()));
        let (Some(start), true) = (start, end.is_some_and(|end| end <= self.len)) else {
            return Err(Error::new(Code::FileTruncated).at_offset(self.len as u64));
        };
        if buf.is_empty() {
            return Ok(&mut []);
        }
        let data = self.data()?;
        // SAFETY: from `start` to `end` the bytes are among the `len` that lie at `data` now, and `buf` is ours
        // alone. Through pointers, because others may have tensors of the memory that is read.
        unsafe {
            ptr::copy_nonoverlapping(data.add(start), buf.as_mut_ptr().cast(), buf.len());
            Ok(buf.assume_init_mut())
        }
    }
}

/// Saves the tensors that `tensors` makes, of memory that is lent where it lies.
pub(crate) fn save(
    path: &Path,
    options: &SaveOptions,
    tensors: impl for<'l> FnOnce(&'l Lender) -> Result<Vec<SaveTensor<'l>>>,
) -> Result<SaveReport> {
    let lender = Lender(());
    safeshard_core::save(tensors(&lender)?, path, options)
}

/// Lends memory. There is one as long as [`save`] runs, so that nothing else gets what it lends.
pub(crate) struct Lender(());

impl Lender {
    pub(crate) fn lend(&self, memory: Memory) -> Lent<'_> {
        Lent {
            memory,
            _lender: self,
        }
    }
}

/// Memory that is lent to a save.
pub(crate) struct Lent<'l> {
    memory: Memory,
    _lender: &'l Lender,
}

impl TensorData for Lent<'_> {
    fn byte_len(&self) -> Option<u64> {
        self.memory.byte_len()
    }

    fn place(&self) -> Option<Range<usize>> {
        self.memory.place()
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let end = range.end.min(self.memory.len as u64) as usize;
        let mut at = range.start.min(end as u64) as usize;
        while at < end {
            let len = LENT.min(end - at);
            let data = self.memory.data()?;
            // SAFETY: the bytes are among the `len` of the memory, which lie at `data` now. `write` is `save`'s,
            // because a `Lent` ends before `save` does: it hands a piece of this size to the system, or copies
            // it, before it tells anybody of its progress. Whoever then moves the storage finds nobody using the
            // piece, and where the next one lies is asked anew.
            let piece = unsafe { std::slice::from_raw_parts(data.add(at), len) };
            write(piece)?;
            at += len;
        }
        Ok(())
    }
}

/// Memory that nobody else has, in which elements are put in order; used again for as long as it is large
/// enough, because the allocator of a thread keeps what is freed.
#[derive(Default)]
pub(crate) struct Gathered {
    memory: Option<Tensor>,
}

impl Gathered {
    /// The bytes of plain numbers, wherever they lie.
    pub(crate) fn bytes_of(&mut self, elements: &Tensor) -> Result<&[u8], TchError> {
        let (kind, count) = (elements.f_kind()?, elements.numel());
        if count == 0 {
            return Ok(&[]);
        }
        let fits = |memory: &Tensor| memory.kind() == kind && memory.numel() >= count;
        let memory = match self.memory.take().filter(fits) {
            Some(memory) => memory,
            None => Tensor::f_empty([count as i64], (kind, Device::Cpu))?,
        };
        let memory = self.memory.insert(memory);
        let part = memory.f_narrow(0, 0, count as i64)?;
        part.f_view(elements.size().as_slice())?.f_copy_(elements)?;
        let len = count * kind.elt_size_in_bytes();
        // SAFETY: the memory has at least `count` elements from `data_ptr` on, which were filled, and the tensor
        // is this value's alone, which is borrowed as long as the bytes.
        Ok(unsafe { std::slice::from_raw_parts(memory.data_ptr().cast(), len) })
    }
}

/// Refuses a tensor whose elements do not all lie in its storage, which libtorch would use all the same: from
/// Python, a storage can be cut off, and some of libtorch's internal views are not checked.
pub(crate) fn check_storage(tensor: &Tensor, element_size: usize) -> Result<()> {
    let steps = tensor.size().into_iter().zip(tensor.stride());
    let mut end = offset(tensor)?.saturating_add(1);
    for (size, stride) in steps {
        match size.unsigned_abs().checked_sub(1) {
            Some(more) => end = end.saturating_add(more.saturating_mul(stride.unsigned_abs())),
            None => return Ok(()),
        }
    }
    check_end(tensor, end.saturating_mul(element_size as u64))
}

/// How many elements of its storage lie before a tensor.
fn offset(tensor: &Tensor) -> Result<u64> {
    let offset = tensor.f_storage_offset();
    Ok(offset.map_err(|error| framework(&error))?.unsigned_abs())
}

/// Refuses a tensor that ends behind its storage, at so many bytes of it.
fn check_end(tensor: &Tensor, end: u64) -> Result<()> {
    let mut size = 0;
    // SAFETY: a tensor, and a number that can be written.
    match unsafe { aoti_torch_get_storage_size(tensor.as_ptr().cast(), &raw mut size) } {
        SUCCESS if end <= size.unsigned_abs() => Ok(()),
        SUCCESS => Err(Error::new(Code::TensorShort)
            .expected(format_args!("a storage of {end} bytes"))
            .found(size)),
        _ => Err(Error::new(Code::Framework).found("a tensor without a storage")),
    }
}
