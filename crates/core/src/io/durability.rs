//! When a save returns, and whether the machine was started again since.

use std::fs;

/// When a save returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// When everything is on the disk: a power failure afterwards loses nothing.
    #[default]
    Durable,
    /// When everything is written; the system brings it to the disk when it likes. A crash of the
    /// process still leaves the old or the new checkpoint, a power failure may leave neither.
    Cached,
}

/// What tells the time since the machine was started from all others; nothing where the system does not
/// say.
pub(crate) fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot.unwrap_or_default().trim().to_owned()
}
