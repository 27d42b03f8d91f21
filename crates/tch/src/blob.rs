//! Tensors over memory, and in [`memory`] the memory of tensors: the one module of this crate with unsafe
//! code.
//!
//! libtorch exports `torch_from_blob` as a plain C function: it makes a tensor over memory of ours and
//! calls a function of ours when the last view of it is gone. tch's own `from_blob` has no such function.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use safeshard_core::{Code, Destination, Error, Planned, PrivateMap, Result};
use tch::{Device, Kind, Tensor};

use crate::dtype::{Layout, check_elements, framework, to_kind};

pub(crate) mod memory;

/// `AOTI_TORCH_SUCCESS`.
const SUCCESS: i32 = 0;
/// `c10::DeviceType::CPU`.
const CPU: i32 = 0;
/// What the CPU's index is in a `c10::Device`.
const NO_INDEX: i32 = -1;
/// `c10::Layout::Strided`.
const STRIDED: i32 = 0;

/// At which multiple tensors begin in a [`Block`]: as libtorch's own do.
const BLOCK_ALIGNMENT: usize = 64;

/// Gets the memory's address and what was given along with it.
type Deleter = unsafe extern "C" fn(*mut c_void, *mut c_void);

// SAFETY: as `torch/csrc/stable/c/shim.h` of libtorch 2.11 and later declares it; tch insists on a
// version of libtorch that has it.
unsafe extern "C" {
    fn torch_from_blob(
        data: *mut c_void,
        ndim: i64,
        sizes: *const i64,
        strides: *const i64,
        storage_offset: i64,
        dtype: i32,
        device_type: i32,
        device_index: i32,
        tensor: *mut *mut c_void,
        layout: i32,
        opaque_metadata: *const u8,
        opaque_metadata_size: i64,
        deleter: Option<Deleter>,
        deleter_context: *mut c_void,
    ) -> i32;

    /// Why the last call of this thread failed; libtorch's, until the next call.
    fn torch_exception_get_what_without_backtrace() -> *const c_char;
}

/// A tensor over a part of a mapping, which it keeps alive; `None` where its elements would not lie as
/// libtorch needs them. Copies nothing.
pub(crate) fn mapped(
    map: &Arc<PrivateMap>,
    range: Range<u64>,
    layout: &Layout,
) -> Result<Option<Tensor>> {
    let start = usize::try_from(range.start).ok();
    let end = start.and_then(|start| start.checked_add(layout.byte_len));
    let (Some(start), Some(end)) = (start, end) else {
        return Err(Error::new(Code::FileTruncated));
    };
    if end > map.len() || end as u64 != range.end {
        return Err(Error::new(Code::FileTruncated).at_offset(map.len() as u64));
    }
    // SAFETY: `start` is not behind the mapping's end.
    let data = unsafe { map.as_ptr().add(start) };
    if !data.addr().is_multiple_of(layout.alignment()) {
        return Ok(None);
    }
    // SAFETY: the bytes lie in the mapping, and nobody was given a tensor over them yet.
    let bytes = unsafe { std::slice::from_raw_parts(data, layout.byte_len) };
    check_elements(layout.dtype, bytes)?;
    // SAFETY: the bytes lie in the mapping, which may be written to, is nobody's Rust reference and stays
    // until the tensor drops its share of it.
    unsafe { over(data, layout, Arc::clone(map)) }.map(Some)
}

/// A tensor over memory that belongs to `owner`, which is dropped with the last view of it: once, on
/// whichever thread that is.
///
/// # Safety
/// Until `owner` is dropped, `data` points to the bytes of `layout`, aligned for its elements, readable
/// and writable, and not behind any Rust reference.
unsafe fn over<O: Send + Sync + 'static>(
    data: *mut u8,
    layout: &Layout,
    owner: O,
) -> Result<Tensor> {
    let owner = Arc::new(owner);
    let context = Arc::into_raw(Arc::clone(&owner));
    let mut tensor = ptr::null_mut();
    // SAFETY: `sizes` and `strides` have as many elements as there are dimensions, and describe no byte
    // beyond those that the caller vouches for; `drop_owner::<O>` fits `context`; `tensor` can be written.
    let status = unsafe {
        torch_from_blob(
            data.cast(),
            layout.sizes.len() as i64,
            layout.sizes.as_ptr(),
            layout.strides.as_ptr(),
            0,
            layout.scalar_type,
            CPU,
            NO_INDEX,
            &raw mut tensor,
            STRIDED,
            ptr::null(),
            0,
            Some(drop_owner::<O>),
            context.cast_mut().cast(),
        )
    };
    if status == SUCCESS && !tensor.is_null() {
        // SAFETY: the handle is a `new at::Tensor` that is ours now, which is what tch holds.
        return Ok(unsafe { Tensor::from_ptr(tensor.cast()) });
    }
    // It depends on where libtorch failed whether it has called the function.
    if Arc::strong_count(&owner) > 1 {
        // SAFETY: `context` came from `into_raw` and its share was not dropped.
        drop(unsafe { Arc::from_raw(context) });
    }
    Err(refused())
}

/// Why libtorch refused this thread's last call.
fn refused() -> Error {
    // SAFETY: it only says what it has kept for this thread.
    let why = unsafe { torch_exception_get_what_without_backtrace() };
    let why = match why.is_null() {
        true => Cow::from("no reason"),
        // SAFETY: a C string that stays until this thread's next call.
        false => unsafe { CStr::from_ptr(why) }.to_string_lossy(),
    };
    Error::new(Code::Framework).found(why)
}

/// What libtorch calls when the last view of a tensor is gone.
///
/// # Safety
/// `context` came from `Arc::<O>::into_raw`, and this is called once.
unsafe extern "C" fn drop_owner<O>(_data: *mut c_void, context: *mut c_void) {
    // SAFETY: the caller's promise.
    drop(unsafe { Arc::from_raw(context.cast_const().cast::<O>()) });
}

/// A tensor on the CPU that the engine fills.
pub(crate) struct Room {
    owner: Owner,
    /// In memory of the owner, which nobody else can reach, and so nobody moves.
    data: *mut u8,
    layout: Layout,
}

/// What the memory of a tensor belongs to.
enum Owner {
    /// The tensor.
    Tensor(Tensor),
    /// Bytes that the tensor will lie over, perhaps among others.
    Bytes(Arc<Bytes>),
}

/// A tensor of bytes. A lock, because a tensor is used by one thread at a time.
type Bytes = Mutex<Tensor>;

// SAFETY: tensors may be sent, and `data` is memory of one, which lies still on the heap.
unsafe impl Send for Room {}

impl Room {
    /// Room for a planned tensor, not initialised.
    pub(crate) fn new(planned: &Planned) -> Result<Self> {
        let layout = Layout::new(planned.dtype, &planned.shape)
            .map_err(|error| error.in_tensor(&planned.name))?;
        let kind = to_kind(layout.dtype);
        let memory = match kind {
            Some(kind) => Tensor::f_empty(&layout.sizes, (kind, Device::Cpu)),
            None => bytes(layout.byte_len),
        };
        // All that can be wrong with a checked layout is that there is too little memory.
        let memory = memory.map_err(|_| {
            Error::new(Code::LimitMemory)
                .in_tensor(&planned.name)
                .found(format_args!("{} bytes", layout.byte_len))
        })?;
        Ok(Self {
            data: memory.data_ptr().cast(),
            owner: match kind {
                Some(_) => Owner::Tensor(memory),
                None => Owner::Bytes(Arc::new(Mutex::new(memory))),
            },
            layout,
        })
    }
}

fn bytes(len: usize) -> Result<Tensor, tch::TchError> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    Tensor::f_empty([len], (Kind::Uint8, Device::Cpu))
}

// SAFETY: the memory is the tensor's, on the heap, and nobody else has the tensor or the part of the block
// until `assume_filled`.
unsafe impl Destination for Room {
    type Filled = Result<Tensor>;

    fn bytes(&mut self) -> &mut [MaybeUninit<u8>] {
        // A tensor without bytes may have no address.
        if self.layout.byte_len == 0 {
            return &mut [];
        }
        // SAFETY: `byte_len` bytes of the tensor's memory, which nobody else uses.
        unsafe { std::slice::from_raw_parts_mut(self.data.cast(), self.layout.byte_len) }
    }

    fn is_untouched(&self) -> bool {
        true
    }

    unsafe fn assume_filled(mut self) -> Result<Tensor> {
        let dtype = self.layout.dtype;
        // SAFETY: the caller has written every byte.
        check_elements(dtype, unsafe { self.bytes().assume_init_ref() })?;
        match self.owner {
            Owner::Tensor(tensor) => Ok(tensor),
            // SAFETY: the memory is the owner's, and nobody uses that before the last one drops it.
            Owner::Bytes(bytes) => unsafe { over(self.data, &self.layout, bytes) },
        }
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({:?})", self.layout)
    }
}

/// Memory of the host through which tensors pass on their way to a device; pinned for a GPU.
pub(crate) struct Block {
    memory: Arc<Bytes>,
    device: Device,
    len: usize,
    used: usize,
}

impl Block {
    pub(crate) fn new(len: usize, device: Device) -> Result<Self> {
        let memory = bytes(len);
        let memory = match device {
            Device::Cuda(_) => memory.and_then(|memory| memory.f_pin_memory(device)),
            _ => memory,
        };
        let memory = memory.map_err(|error| framework(&error))?;
        Ok(Self {
            memory: Arc::new(Mutex::new(memory)),
            device,
            len,
            used: 0,
        })
    }

    /// Room for a planned tensor in a part that nobody has; `None` if there is not enough left.
    pub(crate) fn room(&mut self, planned: &Planned) -> Result<Option<Room>> {
        let layout = Layout::new(planned.dtype, &planned.shape)
            .map_err(|error| error.in_tensor(&planned.name))?;
        let start = self.used.next_multiple_of(BLOCK_ALIGNMENT);
        let Some(end) = start
            .checked_add(layout.byte_len)
            .filter(|&end| end <= self.len)
        else {
            return Ok(None);
        };
        self.used = end;
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(Room {
            owner: Owner::Bytes(Arc::clone(&self.memory)),
            // SAFETY: `start` is not behind the block's end.
            data: unsafe { memory.data_ptr().cast::<u8>().add(start) },
            layout,
        }))
    }

    /// An empty block again: the same memory, or new memory where somebody uses a part of it still.
    pub(crate) fn clear(&mut self) -> Result<()> {
        match Arc::get_mut(&mut self.memory) {
            Some(_) => self.used = 0,
            None => *self = Self::new(self.len, self.device)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safeshard_core::Dtype;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// Counts how often it is dropped.
    struct Counted {
        memory: Box<[u64]>,
        drops: Arc<AtomicUsize>,
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            // Whoever still reads it would see this.
            self.memory.fill(u64::MAX);
            self.drops.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counted(shape: &[u64]) -> (Result<Tensor>, Arc<AtomicUsize>) {
        let mut memory: Box<[u64]> = (0..16).collect();
        let drops = Arc::new(AtomicUsize::new(0));
        let data = memory.as_mut_ptr();
        let owner = Counted {
            memory,
            drops: Arc::clone(&drops),
        };
        let layout = Layout::new(Dtype::I64, shape).unwrap();
        // SAFETY: the memory is the owner's, aligned, and has 16 elements.
        (unsafe { over(data.cast(), &layout, owner) }, drops)
    }

    #[test]
    fn the_owner_is_dropped_once_with_the_last_view() {
        let (tensor, drops) = counted(&[4, 4]);
        let tensor = tensor.unwrap();
        let row = tensor.get(2);
        let storage = row.view([2, 2]).transpose(0, 1);
        drop((tensor, row));
        assert_eq!(drops.load(Ordering::SeqCst), 0);
        assert_eq!(storage.int64_value(&[0, 1]), 10);
        drop(storage);
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn views_are_dropped_by_any_thread_in_any_order() {
        let (tensor, drops) = counted(&[16]);
        let tensor = tensor.unwrap();
        let views: Vec<_> = (0..16).map(|i| tensor.narrow(0, i, 1)).collect();
        drop(tensor);
        thread::scope(|scope| {
            for (i, view) in views.into_iter().enumerate() {
                scope.spawn(move || {
                    assert_eq!(view.int64_value(&[0]), i as i64);
                    drop(view);
                });
            }
        });
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_libtorch_refuses_drops_the_owner_once_too() {
        let mut layout = Layout::new(Dtype::I64, &[4]).unwrap();
        layout.sizes = vec![-1];
        let drops = Arc::new(AtomicUsize::new(0));
        let mut memory: Box<[u64]> = (0..4).collect();
        let data = memory.as_mut_ptr();
        let owner = Counted {
            memory,
            drops: Arc::clone(&drops),
        };
        // SAFETY: the memory is the owner's; libtorch refuses the size before it uses it.
        let refused = unsafe { over(data.cast(), &layout, owner) };
        assert_eq!(refused.unwrap_err().code(), Code::Framework);
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn tensors_without_elements_need_no_memory() {
        let (tensor, drops) = counted(&[0, 4]);
        assert_eq!(tensor.unwrap().size(), [0, 4]);
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_block_in_use_is_not_filled_again() {
        let planned = |name: &str| {
            let bytes: &[u8] = &[1, 2, 3, 4];
            let tensor = safeshard_core::SaveTensor::new(name, Dtype::U16, [2], bytes);
            let checkpoint = safeshard_core::Checkpoint::from_tensors(vec![tensor]).unwrap();
            let plan = checkpoint.plan_one(name, &[], None, Default::default(), crate::support);
            plan.unwrap()
        };
        let filled = |block: &mut Block, byte| {
            let mut room = block.room(&planned("w")).unwrap().unwrap();
            room.bytes().fill(MaybeUninit::new(byte));
            // SAFETY: all of it was written.
            unsafe { room.assume_filled() }.unwrap()
        };
        let mut block = Block::new(4, Device::Cpu).unwrap();
        let used = filled(&mut block, 1);
        let place = used.data_ptr();
        assert!(block.room(&planned("w")).unwrap().is_none());
        block.clear().unwrap();
        let other = filled(&mut block, 2);
        assert_ne!(other.data_ptr(), place);
        assert_eq!(used.view_dtype(Kind::Uint8).int64_value(&[0]), 1);
        drop((used, other));
        let place = block.memory.lock().unwrap().data_ptr();
        block.clear().unwrap();
        assert_eq!(filled(&mut block, 3).data_ptr(), place);
    }
}
