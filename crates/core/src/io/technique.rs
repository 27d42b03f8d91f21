//! What makes reading fast, each with a switch for the benchmark that proves it.
//!
//! Everything is on. Nothing but `cargo xtask bench techniques-warm techniques-cold slice-dim-0` turns
//! it off; `benches/README.md` has the gains of the last run. Those below are of a Llama of 2.1 GiB in
//! the page cache, read by two threads; the second thread itself takes it to 0.4 to 0.7 of the time.

use std::sync::atomic::{AtomicU8, Ordering};

/// A technique that can be done without: results are the same, later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Technique {
    /// Destinations in pages of 2 MiB: 0.3 to 0.4 of the time.
    HugePages = 1,
    /// Pieces in the order of the files: 0.8 to 1.0 of the time; from a solid-state disk no gain was
    /// measured.
    FileOrder = 2,
    /// Pieces of 8 MiB rather than of 512 KiB: 0.6 to 0.8 of the time.
    LongPieces = 4,
    /// The pages of little memory made at once: 0.8 to 1.0 of the time of slices of 0.2 to 1.8 MB.
    PagesAtOnce = 8,
}

static OFF: AtomicU8 = AtomicU8::new(0);

impl Technique {
    /// For the whole process, from now on.
    pub fn switch_off(self) {
        OFF.fetch_or(self as u8, Ordering::Relaxed);
    }

    pub(crate) fn is_on(self) -> bool {
        OFF.load(Ordering::Relaxed) & self as u8 == 0
    }
}
