//! What saving costs in memory: nothing that grows with the tensors.

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, path::Path};

use safeshard_core::{Checkpoint, Dtype, Durability, SaveOptions, SaveTensor, save, write_to};

const MIB: usize = 1 << 20;

/// Four shards' worth.
const LEN: usize = 24 * MIB;

fn tensors(bytes: &[u8]) -> Vec<SaveTensor<'_>> {
    let tensors = ["a", "b", "c", "d"].map(|name| {
        // Each at a place of its own, or they would be stored once.
        let bytes = &bytes[usize::from(name.as_bytes()[0] - b'a')..][..LEN];
        SaveTensor::new(name, Dtype::U8, [LEN as u64], bytes)
    });
    tensors.into()
}

fn options(durability: Durability) -> SaveOptions {
    SaveOptions {
        max_shard_size: LEN.to_string().parse().unwrap(),
        threads: NonZeroUsize::new(2),
        durability,
        ..SaveOptions::default()
    }
}

/// Saves in four shards on two threads, and returns how many bytes it took at the most.
fn cost(tensors: Vec<SaveTensor<'_>>, path: &Path, durability: Durability) -> usize {
    let options = options(durability);
    let (report, cost) = peak(|| save(tensors, path, &options).unwrap());
    assert_eq!(report.files.len(), 4);
    println!("{durability:?}: {} KiB", cost >> 10);
    cost
}

#[test]
fn a_save_holds_no_copy_of_a_tensor() {
    let _alone = MEASURED.lock();
    let folder = tempfile::tempdir().unwrap();
    let bytes = vec![7; LEN + 4];
    let path = folder.path().join("cached");
    assert!(cost(tensors(&bytes), &path, Durability::Cached) < 4 * MIB);
    let path = folder.path().join("durable");
    assert!(cost(tensors(&bytes), &path, Durability::Durable) < 64 * MIB);

    let ((), cost) = peak(|| {
        let tensors = tensors(&bytes);
        write_to(tensors, io::sink(), &SaveOptions::default()).unwrap();
    });
    assert!(cost < MIB);
}

#[test]
fn a_checkpoint_that_is_saved_again_is_read_in_pieces() {
    let _alone = MEASURED.lock();
    let folder = tempfile::tempdir().unwrap();
    let bytes = vec![7; LEN + 4];
    save(tensors(&bytes), folder.path(), &options(Durability::Cached)).unwrap();
    drop(bytes);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("again");
    assert!(cost(checkpoint.save_tensors(), &path, Durability::Cached) < 20 * MIB);
}

// ---- counting, on all threads

/// One test at a time.
static MEASURED: Mutex<()> = Mutex::new(());
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// How many bytes more than before there were at the most.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let result = work();
    (result, PEAK.load(Ordering::SeqCst).saturating_sub(before))
}

struct Counting;

impl Counting {
    fn add(bytes: usize) {
        let live = LIVE.fetch_add(bytes, Ordering::SeqCst) + bytes;
        PEAK.fetch_max(live, Ordering::SeqCst);
    }

    fn remove(bytes: usize) {
        LIVE.fetch_sub(bytes, Ordering::SeqCst);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: hands everything on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::remove(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may exist for a moment.
        Self::add(size);
        Self::remove(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
