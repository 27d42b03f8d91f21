//! Where bytes lie.

use std::cmp::Ordering;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::access::Access;
use super::source::ReadAt;

/// Bytes that lie side by side in a source, such as those of a tensor in a file, exactly as a safetensors
/// file holds them: little-endian, row-major.
///
/// What lies in one [file](ReadAt::as_file) is copied by the system where it is saved, whatever else is in
/// that file, and tensors with the same extent are tied.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'s> {
    /// The source.
    pub source: &'s Arc<dyn ReadAt>,
    /// What errors call the source.
    pub path: &'s Path,
    /// Where in the source they begin, in bytes.
    pub start: u64,
    /// How many bytes there are.
    pub len: u64,
}

impl<'s> Extent<'s> {
    /// All of a source.
    pub fn whole(source: &'s Arc<dyn ReadAt>, path: &'s Path) -> Self {
        Self {
            start: 0,
            len: source.len(),
            source,
            path,
        }
    }

    /// The bytes from `at` on, at most `len` of them; counted from the beginning of the extent.
    #[must_use]
    pub fn part(self, at: u64, len: u64) -> Self {
        let at = at.min(self.len);
        Self {
            start: self.start.saturating_add(at),
            len: len.min(self.len - at),
            ..self
        }
    }

    /// Where in the source they are.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start.saturating_add(self.len)
    }

    /// The bytes, if they are in memory; `None` also where the source has fewer than it said.
    pub fn bytes(&self) -> Option<&'s [u8]> {
        let range = self.range();
        let start = usize::try_from(range.start).ok()?;
        let end = usize::try_from(range.end).ok()?;
        self.source.as_bytes()?.get(start..end)
    }

    /// Whether it and the next one are worth one call: both are short, and they lie near to each other in one
    /// source. A call costs more than copying them once more.
    pub(crate) fn joins(&self, next: &Extent<'_>, access: &Access) -> bool {
        let (end, gap) = (self.range().end, access.gap);
        self.len <= gap
            && next.len <= gap
            && self.address() == next.address()
            && (end..=end.saturating_add(gap)).contains(&next.start)
            && next.source.as_bytes().is_none()
    }

    /// Which of two lies first, where sources are read front to back, one behind the other.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let sources = match self.address() == other.address() {
            // Comparing paths takes long.
            true => Ordering::Equal,
            false => self
                .path
                .cmp(other.path)
                .then(self.address().cmp(&other.address())),
        };
        sources.then(self.start.cmp(&other.start))
    }

    /// The address of the source, by which it is told from others as long as it lives.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(self.source).addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::source::MemorySource;

    #[test]
    fn a_part_stays_inside() {
        let source: Arc<dyn ReadAt> = Arc::new(MemorySource::new(vec![1, 2, 3, 4, 5]));
        let whole = Extent::whole(&source, Path::new("memory"));
        assert_eq!(whole.bytes().unwrap(), [1, 2, 3, 4, 5]);
        let part = whole.part(1, 3);
        assert_eq!(
            (part.range(), part.bytes().unwrap()),
            (1..4, &[2, 3, 4][..])
        );
        assert_eq!(part.part(2, 9).range(), 3..4);
        assert_eq!(part.part(9, 9).range(), 4..4);
        let beyond = Extent { len: 6, ..whole };
        assert_eq!(beyond.bytes(), None);
    }
}
