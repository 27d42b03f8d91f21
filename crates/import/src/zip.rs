//! The directory of a zip archive: which entries there are, and where their bytes lie.
//!
//! What two readers of zip archives could read differently is refused: entries twice, local headers that say
//! something else, overlaps, bytes before the archive or behind it. Names never touch the file system.

use std::collections::BTreeMap;
use std::ops::Range;

use safeshard_core::{Code, Error, ReadAt, Result};

use crate::input::{Input, read};
use crate::options::ImportLimits;

/// The entries of an archive, by name.
#[derive(Debug)]
pub(crate) struct Directory {
    entries: BTreeMap<String, Entry>,
}

/// Where the bytes of an entry lie, stored as they are.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Of the bytes, in the archive.
    pub(crate) range: Range<u64>,
    /// The checksum, where there is one.
    pub(crate) crc: Option<u32>,
    is_compressed: bool,
}

impl Directory {
    /// Reads the directory, and of each entry its local header.
    ///
    /// # Errors
    /// `zip-directory`, `zip-entry`, `zip-duplicate`, `zip-overlap`, `zip-encrypted`, `limit-pickle`; `io`.
    pub(crate) fn read(archive: &dyn ReadAt, limits: &ImportLimits) -> Result<Self> {
        let end = End::find(archive)?;
        if end.entries > limits.zip_entries {
            return Err(Error::new(Code::LimitPickle)
                .expected(format_args!("at most {} entries", limits.zip_entries))
                .found(end.entries));
        }
        let mut input = Input::new(archive, end.directory.clone());
        let mut entries = BTreeMap::new();
        let mut extents = Vec::new();
        for _ in 0..end.entries {
            let listed =
                Listed::read(&mut input).map_err(|error| recoded(error, Code::ZipDirectory))?;
            let (entry, start) = listed.entry(archive, end.directory.start)?;
            extents.push(start..entry.range.end);
            if let Some(_twice) = entries.insert(listed.name.clone(), entry) {
                return Err(Error::new(Code::ZipDuplicate)
                    .at_offset(start)
                    .found(format_args!("`{}`", listed.name)));
            }
        }
        if input.left() > 0 {
            return Err(Error::new(Code::ZipDirectory)
                .at_offset(input.at())
                .expected(format_args!("{} entries", end.entries))
                .found("more"));
        }
        extents.sort_unstable_by_key(|extent| (extent.start, extent.end));
        let mut pairs = extents.iter().zip(extents.iter().skip(1));
        if let Some((_, overlap)) = pairs.find(|(before, after)| before.end > after.start) {
            return Err(Error::new(Code::ZipOverlap).at_offset(overlap.start));
        }
        Ok(Self { entries })
    }

    /// Whether there is an entry of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// All names, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The entry of a name.
    ///
    /// # Errors
    /// `zip-method` where it is compressed.
    pub(crate) fn get(&self, name: &str) -> Result<Option<&Entry>> {
        let entry = self.entries.get(name);
        match entry {
            Some(entry) if entry.is_compressed => Err(Error::new(Code::ZipMethod)
                .at_offset(entry.range.start)
                .found(format_args!("`{name}`"))),
            entry => Ok(entry),
        }
    }
}

/// What the end of the archive says of the directory.
struct End {
    directory: Range<u64>,
    entries: u64,
}

impl End {
    const LEN: u64 = 22;
    const LOCATOR_LEN: u64 = 20;
    const LEN_64: u64 = 56;

    /// Finds the record that ends exactly where the archive ends.
    fn find(archive: &dyn ReadAt) -> Result<Self> {
        let len = archive.len();
        let tail_start = len.saturating_sub(Self::LEN + u64::from(u16::MAX));
        let tail = read(archive, tail_start, len - tail_start)?;
        let is_record = |&at: &usize| {
            let record = tail.get(at..).unwrap_or_default();
            let rest = record.len() as u64;
            record.starts_with(b"PK\x05\x06")
                && u16_at(record, 20).is_some_and(|comment| Self::LEN + u64::from(comment) == rest)
        };
        let at = (0..tail.len()).rev().find(is_record);
        let record = at.and_then(|at| Some((tail_start + at as u64, tail.get(at..)?)));
        let Some((at, record)) = record else {
            return Err(broken(len)
                .expected("the end of the directory")
                .found("none"));
        };
        Self::parse(archive, at, record)
            .ok_or_else(|| broken(at))
            .and_then(|end| end)
    }

    /// `None` where a field is not there at all.
    fn parse(archive: &dyn ReadAt, at: u64, record: &[u8]) -> Option<Result<Self>> {
        let narrow = [4, 6, 8, 10].map(|field| u16_at(record, field).map(u64::from));
        let [disk, first_disk, here, total] = narrow;
        let mut disks = (disk?, first_disk?);
        let (mut here, mut total) = (here?, total?);
        let (mut size, mut start) = (u32_at(record, 12)?.into(), u32_at(record, 16)?.into());
        let mut behind = at;
        let locator_at = at.checked_sub(Self::LOCATOR_LEN);
        let locator = locator_at.and_then(|at| read(archive, at, Self::LOCATOR_LEN).ok());
        if let Some(locator) = locator.filter(|bytes| bytes.starts_with(b"PK\x06\x07")) {
            behind = u64_at(&locator, 8)?;
            let fits = behind.checked_add(Self::LEN_64 + Self::LOCATOR_LEN) == Some(at);
            let wide = fits
                .then(|| read(archive, behind, Self::LEN_64).ok())
                .flatten();
            let Some(wide) = wide.filter(|bytes| bytes.starts_with(b"PK\x06\x06")) else {
                return Some(Err(broken(behind).expected("the end record of 64 bits")));
            };
            disks = (u32_at(&wide, 16)?.into(), u32_at(&wide, 20)?.into());
            (here, total) = (u64_at(&wide, 24)?, u64_at(&wide, 32)?);
            (size, start) = (u64_at(&wide, 40)?, u64_at(&wide, 48)?);
        }
        if disks != (0, 0) || here != total {
            return Some(Err(broken(at).expected("an archive in one part")));
        }
        let end: Option<u64> = u64::checked_add(start, size);
        if end != Some(behind)
            || total
                .checked_mul(Listed::LEN)
                .is_none_or(|least| least > size)
        {
            return Some(Err(broken(at)
                .expected("the directory right before its end")
                .found(format_args!("{total} entries in {size} bytes at {start}"))));
        }
        Some(Ok(Self {
            directory: start..behind,
            entries: total,
        }))
    }
}

/// What the directory says of an entry.
struct Listed {
    name: String,
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u64,
    size: u64,
    start: u64,
}

impl Listed {
    const LEN: u64 = 46;
    const LOCAL_LEN: u64 = 30;

    fn read(input: &mut Input<'_>) -> Result<Self> {
        let at = input.at();
        let fixed = input.array::<46>()?;
        let fields = (|| {
            let lengths = [28, 30, 32].map(|field| u16_at(&fixed, field));
            let [name, extra, comment] = lengths;
            let wide = [20, 24, 42].map(|field| u32_at(&fixed, field));
            let [compressed, size, start] = wide;
            let flags = (u16_at(&fixed, 8)?, u16_at(&fixed, 10)?, u32_at(&fixed, 16)?);
            Some((
                (name?, extra?, comment?),
                (compressed?, size?, start?),
                flags,
            ))
        })();
        let Some((lengths, wide, flags)) = fields.filter(|_| fixed.starts_with(b"PK\x01\x02"))
        else {
            return Err(broken(at).expected("an entry"));
        };
        let name = input.take(lengths.0.into())?;
        let Ok(name) = std::str::from_utf8(name).map(str::to_owned) else {
            return Err(broken(at).expected("a name in UTF-8"));
        };
        let extra = input.take(lengths.1.into())?;
        let [size, compressed, start] = widened(extra, [wide.1, wide.0, wide.2])
            .ok_or_else(|| broken(at).expected("sizes of 64 bits"))?;
        input.skip(lengths.2.into())?;
        Ok(Self {
            name,
            flags: flags.0,
            method: flags.1,
            crc: flags.2,
            compressed,
            size,
            start,
        })
    }

    /// The entry, and where its local header begins.
    fn entry(&self, archive: &dyn ReadAt, directory: u64) -> Result<(Entry, u64)> {
        let differs = |what: &str| {
            Error::new(Code::ZipEntry)
                .at_offset(self.start)
                .expected(format_args!("{what} of `{}`", self.name))
        };
        if self.flags & 1 != 0 {
            return Err(Error::new(Code::ZipEncrypted).found(format_args!("`{}`", self.name)));
        }
        let is_compressed = self.method != 0;
        if !is_compressed && self.compressed != self.size {
            return Err(differs("one size"));
        }
        let fixed_end = self.start.checked_add(Self::LOCAL_LEN);
        let fixed_end = fixed_end.filter(|&end| end <= directory);
        let fixed_end = fixed_end.ok_or_else(|| differs("the local header"))?;
        let local = read(archive, self.start, Self::LOCAL_LEN)?;
        let lengths = u16_at(&local, 26).zip(u16_at(&local, 28));
        let (name_len, extra_len) = lengths
            .filter(|_| local.starts_with(b"PK\x03\x04"))
            .ok_or_else(|| differs("the local header"))?;
        let start = fixed_end + u64::from(name_len) + u64::from(extra_len);
        let end = start.checked_add(self.compressed);
        let end = end.filter(|&end| end <= directory);
        let end = end.ok_or_else(|| differs("bytes before the directory"))?;
        let name = read(archive, fixed_end, name_len.into())?;
        if name != self.name.as_bytes() || u16_at(&local, 8) != Some(self.method) {
            return Err(differs("the local header"));
        }
        let entry = Entry {
            range: start..end,
            // What torch writes where it is told to compute none.
            crc: (self.crc != 0).then_some(self.crc),
            is_compressed,
        };
        Ok((entry, self.start))
    }
}

/// Sizes and places of which those that do not fit into 32 bits are in the extra field, one after the other.
fn widened(extra: &[u8], narrow: [u32; 3]) -> Option<[u64; 3]> {
    const WIDE: u16 = 1;
    let mut extra = extra;
    let mut wide = &[][..];
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let end = 4 + usize::from(len);
        if id == WIDE {
            wide = extra.get(4..end)?;
        }
        extra = extra.get(end..)?;
    }
    let mut next = 0;
    let mut values = narrow.map(u64::from);
    for value in values
        .iter_mut()
        .filter(|value| **value == u64::from(u32::MAX))
    {
        *value = u64_at(wide, next)?;
        next += 8;
    }
    Some(values)
}

fn broken(at: u64) -> Error {
    Error::new(Code::ZipDirectory).at_offset(at)
}

/// A lack of bytes, as what it means here.
fn recoded(error: Error, code: Code) -> Error {
    match (error.code(), error.offset()) {
        (Code::PickleTruncated, Some(at)) => Error::new(code).at_offset(at),
        _ => error,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
