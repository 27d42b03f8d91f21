//! Loading N bytes of arrays peaks at N and little more, saving copies nothing that is in standard
//! layout, and views take no memory: everything that is allocated counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ndarray::{Array2, Ix2};
use safeshard_core::{Durability, SaveTensor};
use safeshard_ndarray::{
    Checkpoint, CheckpointExt, Dtype, Io, LoadOptions, OpenOptions, SaveOptions, load, load_with,
    save_with, tensor,
};

const MIB: usize = 1 << 20;
/// Buffers of the threads that read and write.
const SLACK: usize = 12 * MIB;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator unchanged; what is added only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Only one test at a time may allocate.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result, and the bytes that were allocated at the same time on the way to it.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before)
}

#[track_caller]
fn assert_about(peak: usize, result: usize) {
    let range = result..result + SLACK;
    let (peak_mib, result_mib) = (peak / MIB, result / MIB);
    assert!(range.contains(&peak), "{peak_mib} MiB for {result_mib} MiB");
}

fn cached() -> SaveOptions {
    SaveOptions {
        durability: Durability::Cached,
        ..SaveOptions::default()
    }
}

/// 48 MiB of each dtype.
fn checkpoint(dtypes: &[Dtype]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = vec![1_u8; 48 * MIB];
    let tensors = dtypes.iter().map(|&dtype| {
        let rows = 48 * MIB as u64 * 8 / dtype.bits() / 1024;
        SaveTensor::new(dtype.name(), dtype, [rows, 1024], bytes.as_slice())
    });
    safeshard_core::save(tensors.collect(), folder.path(), &cached()).unwrap();
    folder
}

/// Those that the core reads as another type are not copied either.
#[test]
fn loading_needs_the_arrays_memory_and_little_more() {
    let _alone = alone();
    let dtypes = [
        Dtype::F32,
        Dtype::C64,
        Dtype::Bool,
        Dtype::F8E4M3,
        Dtype::F4,
    ];
    let folder = checkpoint(&dtypes);
    let (arrays, bytes) = peak(|| load(folder.path()).unwrap());
    assert_about(bytes, dtypes.len() * 48 * MIB);
    drop(arrays);
    let (_array, bytes) = peak(|| tensor::<bool, Ix2>(folder.path(), "BOOL").unwrap());
    assert_about(bytes, 48 * MIB);
}

#[test]
fn casting_on_the_way_needs_the_results_memory_and_little_more() {
    let _alone = alone();
    let folder = checkpoint(&[Dtype::Bf16]);
    let options = LoadOptions::floats_as(Dtype::F32);
    let (_arrays, bytes) = peak(|| load_with(folder.path(), &options).unwrap());
    assert_about(bytes, 96 * MIB);
}

#[test]
fn views_take_no_memory() {
    let _alone = alone();
    let folder = checkpoint(&[Dtype::F32, Dtype::Bool]);
    let options = OpenOptions {
        // SAFETY: nobody writes to the file.
        io: unsafe { Io::mmap() },
        ..OpenOptions::default()
    };
    let (checkpoint, opened) = peak(|| Checkpoint::open_with(folder.path(), &options).unwrap());
    let ((), bytes) = peak(|| {
        let view = checkpoint.view::<f32, Ix2>("F32").unwrap();
        assert_eq!(view.len() * 4, 48 * MIB);
        assert!(checkpoint.cow::<bool, Ix2>("BOOL").unwrap().is_view());
        let mapped = checkpoint.mapped::<f32, Ix2>("F32").unwrap();
        assert_eq!(mapped.view(), view);
    });
    assert!(opened < MIB && bytes < 4096, "{opened} and {bytes} bytes");
}

#[test]
fn saving_copies_nothing_in_standard_layout_and_pieces_of_the_rest() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let w = Array2::<f32>::zeros((4096, 12 * 1024));
    let bytes = |arrays: [(&str, ndarray::ArrayView2<'_, f32>); 2]| {
        peak(|| save_with(arrays, folder.path(), &cached()).unwrap()).1
    };
    let standard = bytes([("a", w.view()), ("b", w.slice(ndarray::s![1.., ..]))]);
    assert!(standard < MIB, "{standard} bytes");
    let others = bytes([("a", w.t()), ("b", w.slice(ndarray::s![..;-1, ..]))]);
    assert!(
        (4 * MIB..17 * MIB).contains(&others),
        "{} MiB",
        others / MIB
    );
}
