//! Checked arithmetic on shapes and on the order of tensors in a file.

use std::cmp::Ordering;

use super::header::Entry;
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::format::header::Profile;

/// Elements of a shape; `None` where 64 bits cannot count them. A zero anywhere means none, so the
/// answer does not depend on the order of the dimensions.
pub(crate) fn elements(shape: &[u64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .try_fold(1u64, |count, &dim| count.checked_mul(dim))
}

/// As the reference counts: dimension by dimension, so a zero after the overflow comes too late.
fn elements_in_order(shape: &[u64]) -> Option<u64> {
    shape
        .iter()
        .try_fold(1u64, |count, &dim| count.checked_mul(dim))
}

/// Checks that entries in data order follow one another without hole or overlap from byte 0, and
/// that each one's shape and dtype fill its place exactly.
///
/// Returns the length of the data section; on failure, which entry and what is wrong.
pub(super) fn check<'e>(
    entries: &'e [Entry],
    dims: &[u64],
    profile: Profile,
) -> Result<u64, (&'e Entry, Error)> {
    let mut end = 0;
    for entry in entries {
        let shape = dims.get(entry.dims()).unwrap_or_default();
        check_entry(entry, shape, end, profile).map_err(|error| (entry, error))?;
        end = entry.end;
    }
    Ok(end)
}

/// Checks one entry, which comes behind those that end there.
pub(super) fn check_entry(
    entry: &Entry,
    shape: &[u64],
    previous_end: u64,
    profile: Profile,
) -> Result<()> {
    check_place(entry, previous_end)?;
    check_size(entry, shape, profile)
}

fn check_place(entry: &Entry, previous_end: u64) -> Result<()> {
    if entry.end < entry.start {
        return Err(Error::new(Code::OffsetsReversed)
            .expected(format_args!("an end of at least {}", entry.start))
            .found(entry.end));
    }
    let code = match entry.start.cmp(&previous_end) {
        Ordering::Equal => return Ok(()),
        Ordering::Greater => Code::Hole,
        Ordering::Less => Code::Overlap,
    };
    Err(Error::new(code)
        .expected(format_args!("data_offsets that begin at {previous_end}"))
        .found(entry.start))
}

fn check_size(entry: &Entry, shape: &[u64], profile: Profile) -> Result<()> {
    // Nobody knows how large an unknown dtype is.
    let Some(dtype) = entry.dtype else {
        return Ok(());
    };
    let elements = match profile {
        Profile::Reference => elements_in_order(shape),
        Profile::Strict | Profile::Default => elements(shape),
    };
    let wanted = byte_len(dtype, shape, elements)?;
    let found = entry.end - entry.start;
    if wanted != found {
        return Err(Error::new(Code::SizeMismatch)
            .expected(format_args!("{wanted} bytes for {dtype} {shape:?}"))
            .found(format_args!("{found} ({}..{})", entry.start, entry.end)));
    }
    Ok(())
}

/// Bytes of a tensor, given the elements of its shape as counted by one of the two above.
pub(super) fn byte_len(dtype: Dtype, shape: &[u64], elements: Option<u64>) -> Result<u64> {
    let Some(bits) = elements.and_then(|count| count.checked_mul(dtype.bits())) else {
        return Err(Error::new(Code::ShapeOverflow).found(format_args!("{dtype} {shape:?}")));
    };
    if !bits.is_multiple_of(8) {
        return Err(Error::new(Code::SubByteRemainder)
            .expected("a multiple of 8 bits")
            .found(format_args!("{bits} bits for {dtype} {shape:?}")));
    }
    Ok(bits / 8)
}
