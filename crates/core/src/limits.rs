//! Bounds on what a file may make us allocate.

use crate::{Code, Error, Result};

/// Bounds that parsing never exceeds, whatever a file says.
///
/// Every allocation while opening is covered by one of these. The defaults pass every checkpoint
/// known to exist; raise one with struct update syntax for files that are trusted.
///
/// ```
/// use safeshard_core::Limits;
///
/// let limits = Limits { header_bytes: 500_000_000, ..Limits::default() };
/// assert_eq!(limits.rank, 64);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of one file's JSON header in bytes; 100,000,000 as in the reference. Never more
    /// than `u32::MAX` is read.
    pub header_bytes: u64,
    /// Tensors in one file; 2,000,000.
    pub tensors: u64,
    /// Length of one name in bytes of UTF-8; 65,536.
    pub name_bytes: u64,
    /// Dimensions of one shape; 64, the most that torch and numpy can hold.
    pub rank: u64,
    /// Keys and values of `__metadata__` in bytes of UTF-8; 100,000,000.
    pub metadata_bytes: u64,
    /// JSON text of fields that the format does not know, all together; 1,000,000 bytes.
    pub ignored_bytes: u64,
    /// Length of an index file; 100,000,000 bytes. The index of a model with 23,000 experts is 14 MB;
    /// parsed, an index takes up to five times its length.
    pub index_bytes: u64,
    /// Files of one checkpoint; 100,000.
    pub shards: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 100_000_000,
            tensors: 2_000_000,
            name_bytes: 1 << 16,
            rank: 64,
            metadata_bytes: 100_000_000,
            ignored_bytes: 1_000_000,
            index_bytes: 100_000_000,
            shards: 100_000,
        }
    }
}

/// The error with this code if there is more than a limit allows.
pub(crate) fn limit(code: Code, found: u64, limit: u64) -> Result<()> {
    if found <= limit {
        return Ok(());
    }
    Err(Error::new(code)
        .expected(format_args!("at most {limit}"))
        .found(found))
}

/// An empty vector with room for so many elements. Whatever is more than a few bytes is asked for here:
/// where there is not enough memory, that is an error, and does not end the process.
pub(crate) fn room<T>(elements: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    match vec.try_reserve_exact(elements) {
        Ok(()) => Ok(vec),
        Err(_) => Err(no_room::<T>(elements)),
    }
}

/// The error where there is no memory for so many elements.
pub(crate) fn no_room<T>(elements: usize) -> Error {
    let bytes = elements.saturating_mul(size_of::<T>());
    Error::new(Code::LimitMemory).found(format_args!("{bytes} bytes asked for"))
}
