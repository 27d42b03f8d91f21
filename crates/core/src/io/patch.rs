//! A few bytes of a file that has its name already: the only place that writes into one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::source::FileSource;
use crate::{Code, Durability, Error, Result};

/// What is written in one go: kernels copy a page without being interrupted, and media write it as a
/// whole.
const PAGE: u64 = 4096;

/// Writes bytes over those at `offset`, if whoever reads or kills the process meanwhile finds the old
/// ones or the new ones: they lie in one page of a file that has no other name. Says whether it did.
///
/// # Errors
/// `file-changed` where the path does not lead to what `source` was opened from; `io`.
pub(crate) fn patch(
    source: &FileSource,
    offset: u64,
    bytes: &[u8],
    durability: Durability,
) -> Result<bool> {
    let path = source.path();
    let last = offset + (bytes.len() as u64).saturating_sub(1);
    if offset / PAGE != last / PAGE {
        return Ok(false);
    }
    let Some(file) = open_only_name(path) else {
        return Ok(false);
    };
    source.check_in_place()?;
    let written = file.write_all_at(bytes, offset);
    let written = written.and_then(|()| match durability {
        Durability::Durable => file.sync_all(),
        Durability::Cached => Ok(()),
    });
    written.map_err(|error| Error::io(Code::Io, error).at_path(path))?;
    Ok(true)
}

/// Opens a file for writing, unless it is reached through a link or has another name, under which
/// somebody may count on it.
fn open_only_name(path: &Path) -> Option<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.nlink() == 1).then_some(file)
}
