//! An allocator that counts what all threads allocate; a binary that has this module allocates with it.

// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What all threads allocated.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Bytes at most at any moment.
    pub peak: u64,
    /// Bytes of all allocations.
    pub bytes: u64,
    /// Calls of the allocator that gave memory.
    pub calls: u64,
}

/// One test at a time.
pub static MEASURED: Mutex<()> = Mutex::new(());
static LIVE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

impl Cost {
    pub fn of(work: impl FnOnce()) -> Self {
        let live = LIVE.load(Ordering::SeqCst);
        for count in [&BYTES, &CALLS] {
            count.store(0, Ordering::SeqCst);
        }
        PEAK.store(live, Ordering::SeqCst);
        work();
        let [peak, bytes, calls] =
            [&PEAK, &BYTES, &CALLS].map(|count| count.load(Ordering::SeqCst));
        Self {
            peak: peak.saturating_sub(live),
            bytes,
            calls,
        }
    }
}

struct Counting;

impl Counting {
    fn add(bytes: usize) {
        let bytes = bytes as u64;
        let live = LIVE.fetch_add(bytes, Ordering::SeqCst) + bytes;
        PEAK.fetch_max(live, Ordering::SeqCst);
        BYTES.fetch_add(bytes, Ordering::SeqCst);
        CALLS.fetch_add(1, Ordering::SeqCst);
    }

    fn remove(bytes: usize) {
        LIVE.fetch_sub(bytes as u64, Ordering::SeqCst);
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
