//! A parsed header: which tensors a file holds, and where.
//!
//! [`Header`] is parsed from bytes alone, without the file: from the start of a file, or in two
//! steps with [`Prefix`] where a source is read by ranges. It keeps names in one string and shapes
//! in one vector, about 60 bytes a tensor beside its name, so that a header of a million tensors
//! takes less memory parsed than as text.

use std::fmt;
use std::ops::Range;

use super::name_table::NameTable;
use super::parse::Parser;
use super::sniff::{self, Foreign};
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::limits::Limits;

/// Which rules a header is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Profile {
    /// The written specification: begins with `{`, no unknown fields, no `null` metadata, padded
    /// with spaces only; no key twice.
    Strict,
    /// What the reference accepts, but no key twice at any level, none of the forms that it accepts
    /// by accident, and a zero in a shape means an empty tensor wherever it stands.
    #[default]
    Default,
    /// What the reference (the `safetensors` crate 0.8.0) accepts, accidents included: of a name
    /// used twice the last entry counts.
    Reference,
}

/// What to do with a tensor whose dtype is none of [`Dtype::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnknownDtype {
    /// Refuse the file, as the reference does.
    #[default]
    Refuse,
    /// Serve the other tensors; list this one under [`Header::unsupported`].
    Keep,
}

/// How to parse a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderOptions {
    /// Which rules to apply.
    pub profile: Profile,
    /// Bounds on size and count.
    pub limits: Limits,
    /// What to do with dtypes that nobody knows.
    pub unknown_dtype: UnknownDtype,
}

/// The first 8 bytes of a file: how long its header is.
///
/// ```
/// use safeshard_core::{HeaderOptions, Prefix};
///
/// let json = br#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
/// let options = HeaderOptions::default();
/// // A ranged source: ask for 8 bytes (or a few more), then for the header.
/// let prefix = Prefix::parse(&(json.len() as u64).to_le_bytes(), None, &options)?;
/// assert_eq!(prefix.header_range(), 8..8 + json.len() as u64);
/// let header = prefix.header(json, &options)?;
/// assert_eq!(header.file_len(), 8 + json.len() as u64 + 2);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    header_len: u64,
    file_len: Option<u64>,
}

impl Prefix {
    /// How many bytes of a file are worth passing to [`Prefix::parse`]: enough to name a foreign
    /// format.
    pub const WANTED: usize = sniff::WANTED;

    /// Reads the length from a file's first bytes: 8 are needed, up to [`Prefix::WANTED`] help to
    /// say what a file is that is no safetensors file. `file_len` is checked where it is known.
    ///
    /// # Errors
    /// `header-too-short`, `not-safetensors`, `header-too-large`, `header-truncated`.
    pub fn parse(start: &[u8], file_len: Option<u64>, options: &HeaderOptions) -> Result<Self> {
        let foreign = |error: Error| Foreign::of(start).map_or(error, Foreign::error);
        let Some(length) = start.first_chunk::<8>() else {
            let found = file_len.unwrap_or(start.len() as u64);
            let error = Error::new(Code::HeaderTooShort);
            return Err(foreign(error.expected("at least 8 bytes").found(found)));
        };
        let header_len = u64::from_le_bytes(*length);
        let beyond = file_len.filter(|len| header_len > len.saturating_sub(8));
        // A header begins with a brace. What begins otherwise may be anything, and no limit is too low for it.
        let is_header = start.get(8).is_none_or(|&byte| byte == b'{');
        if let Some(file_len) = beyond
            && !is_header
        {
            return Err(Foreign::without_header(start, header_len, file_len).error());
        }
        if header_len == 0
            && let Some(zeros) = Foreign::of(start)
        {
            return Err(zeros.error());
        }
        let limit = options.limits.header_bytes.min(u64::from(u32::MAX));
        if header_len > limit {
            let error = Error::new(Code::HeaderTooLarge)
                .at_offset(0)
                .expected(format_args!("at most {limit} bytes"))
                .found(header_len);
            // Nobody writes so much, and where it is, no limit is of use.
            let error = match beyond.is_some() || header_len > u64::from(u32::MAX) {
                true => error.help("the file is damaged: fetch it again"),
                false => error,
            };
            // How long the file is may not be known.
            return Err(match beyond {
                Some(_) => error,
                None => foreign(error),
            });
        }
        if let Some(file_len) = beyond {
            return Err(Error::new(Code::HeaderTruncated)
                .at_offset(file_len)
                .expected(format_args!("{header_len} bytes of header"))
                .found(file_len.saturating_sub(8)));
        }
        Ok(Self {
            header_len,
            file_len,
        })
    }

    /// Length of the JSON that follows the prefix, padding included, in bytes.
    pub fn header_len(&self) -> u64 {
        self.header_len
    }

    /// Which bytes of the file the JSON is.
    pub fn header_range(&self) -> Range<u64> {
        8..8 + self.header_len
    }

    /// Parses the JSON: exactly [`Prefix::header_len`] bytes.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn header(&self, json: &[u8], options: &HeaderOptions) -> Result<Header> {
        if json.len() as u64 != self.header_len {
            return Err(Error::new(Code::HeaderTruncated)
                .at_offset(8 + json.len() as u64)
                .expected(format_args!("{} bytes of header", self.header_len))
                .found(json.len()));
        }
        let header = Parser::new(json, options)?.header()?;
        if let Some(found) = self.file_len {
            header.check_file_len(found)?;
        }
        Ok(header)
    }
}

/// Which tensors a file holds: names, dtypes, shapes, places; and its metadata.
///
/// ```
/// use safeshard_core::{Dtype, Header, HeaderOptions};
///
/// let json = br#"{"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
/// let mut file = (json.len() as u64).to_le_bytes().to_vec();
/// file.extend_from_slice(json);
/// file.extend_from_slice(&[0; 8]);
///
/// let header = Header::parse(&file, Some(file.len() as u64), &HeaderOptions::default())?;
/// let w = header.tensor("w").unwrap();
/// assert_eq!((w.dtype, w.shape, w.byte_len()), (Dtype::F32, &[2, 1][..], 8));
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub struct Header {
    pub(super) header_len: u64,
    /// Bytes behind the JSON.
    pub(super) padding: u64,
    pub(super) data_len: u64,
    /// Names, unknown dtypes, metadata keys and values, one behind the other.
    pub(super) text: String,
    /// Shapes, one behind the other.
    pub(super) dims: Vec<u64>,
    /// In data order.
    pub(super) entries: Vec<Entry>,
    /// Sorted by key.
    pub(super) metadata: Vec<MetadataEntry>,
    pub(super) names: NameTable,
}

impl Header {
    /// Parses the start of a file: 8 bytes of length, the JSON, and anything behind it.
    ///
    /// `file_len` is the length of the whole file; `None` where it is not known, and then neither
    /// truncation nor trailing bytes can be told. Memory: at most twice the header's length and
    /// 32 KiB, whatever it says ([`Profile::Reference`] takes entries that are shorter than what is
    /// kept of them, and may need six times). Time: linear, and a sort where tensors are not listed
    /// in data order.
    ///
    /// # Errors
    /// A code of kind `Format` or `Limit` with the byte of the file, the tensor, what was expected
    /// and what was found; the rules are those of `options.profile`.
    pub fn parse(start: &[u8], file_len: Option<u64>, options: &HeaderOptions) -> Result<Self> {
        let prefix = Prefix::parse(start, file_len, options)?;
        let rest = start.get(8..).unwrap_or_default();
        let json = usize::try_from(prefix.header_len)
            .ok()
            .and_then(|len| rest.get(..len))
            .unwrap_or(rest);
        match prefix.header(json, options) {
            Err(error) if json.first() != Some(&b'{') => {
                Err(Foreign::of(start).map_or(error, Foreign::error))
            }
            result => result,
        }
    }

    /// Checks a header as [`Header::parse`] does, but keeps nothing of it: of a new file, whose tensors
    /// are in the order of their data, have names that differ, and whose metadata is sorted.
    pub(super) fn check_new(start: &[u8], file_len: u64, options: &HeaderOptions) -> Result<()> {
        let prefix = Prefix::parse(start, Some(file_len), options)?;
        let json = start.get(8..).unwrap_or_default();
        let data_len = Parser::checking(json, options)?.check()?;
        match prefix.header_range().end.checked_add(data_len) == Some(file_len) {
            true => Ok(()),
            false => Err(Error::new(Code::TrailingBytes).found(file_len)),
        }
    }

    /// The tensors in the order of their data; empty tensors at the same place in header order.
    pub fn tensors(&self) -> impl DoubleEndedIterator<Item = TensorInfo<'_>> {
        self.entries.iter().filter_map(|entry| self.info(entry))
    }

    /// Positions of the tensors whose dtype is one of some: no name or shape is looked at.
    pub(crate) fn positions_of(&self, dtypes: &[Dtype]) -> impl Iterator<Item = usize> {
        let entries = self.entries.iter().enumerate();
        let found =
            entries.filter(|(_, entry)| entry.dtype.is_some_and(|dtype| dtypes.contains(&dtype)));
        found.map(|(position, _)| position)
    }

    /// The tensor of that name, found by hash.
    pub fn tensor(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.info(self.entries.get(self.position(name)?)?)
    }

    /// Tensors whose dtype is unknown; none unless [`UnknownDtype::Keep`] was asked for.
    pub fn unsupported(&self) -> impl Iterator<Item = UnsupportedTensor<'_>> {
        self.entries
            .iter()
            .filter_map(|entry| self.unsupported_info(entry))
    }

    /// How many tensors there are, those of unknown dtype included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the file holds no tensor; such files are legal.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A value of `__metadata__`.
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        let at = self
            .metadata
            .binary_search_by(|entry| self.slice(entry.key()).cmp(key));
        self.metadata
            .get(at.ok()?)
            .map(|entry| self.slice(entry.value()))
    }

    /// The keys and values of `__metadata__`, sorted by key.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.metadata
            .iter()
            .map(|entry| (self.slice(entry.key()), self.slice(entry.value())))
    }

    /// Length of the JSON in bytes, padding included.
    pub fn header_len(&self) -> u64 {
        self.header_len
    }

    /// How many bytes of it are behind the JSON.
    pub(crate) fn padding(&self) -> u64 {
        self.padding
    }

    /// The byte of the file at which the data section begins.
    pub fn data_start(&self) -> u64 {
        8 + self.header_len
    }

    /// Length of the data section in bytes.
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Length that the file must have, in bytes.
    pub fn file_len(&self) -> u64 {
        // Cannot overflow: the parser refuses offsets beyond it.
        self.data_start() + self.data_len
    }

    /// Checks the length of the file against what the header promises.
    ///
    /// # Errors
    /// `file-truncated` or `trailing-bytes`, with both lengths.
    pub fn check_file_len(&self, found: u64) -> Result<()> {
        let expected = self.file_len();
        if found == expected {
            return Ok(());
        }
        let (code, gap, word) = if found < expected {
            (Code::FileTruncated, expected - found, "missing")
        } else {
            (Code::TrailingBytes, found - expected, "too many")
        };
        Err(Error::new(code)
            .at_offset(found.min(expected))
            .expected(format_args!("{expected} bytes"))
            .found(format_args!("{found}, {gap} {word}")))
    }

    /// The position of a tensor in data order, those of unknown dtype counted.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.names.find(name, |index| {
            self.entries.get(index).map_or("", |entry| self.name(entry))
        })
    }

    /// The tensor at a position in data order.
    pub(crate) fn tensor_at(&self, position: usize) -> Option<TensorInfo<'_>> {
        self.info(self.entries.get(position)?)
    }

    /// The tensor of unknown dtype at a position in data order.
    pub(crate) fn unsupported_at(&self, position: usize) -> Option<UnsupportedTensor<'_>> {
        self.unsupported_info(self.entries.get(position)?)
    }

    fn unsupported_info(&self, entry: &Entry) -> Option<UnsupportedTensor<'_>> {
        entry.dtype.is_none().then(|| UnsupportedTensor {
            name: self.name(entry),
            dtype: self.slice(entry.dtype_name()),
            shape: self.shape(entry),
            start: entry.start,
            end: entry.end,
        })
    }

    fn info(&self, entry: &Entry) -> Option<TensorInfo<'_>> {
        Some(TensorInfo {
            name: self.name(entry),
            dtype: entry.dtype?,
            shape: self.shape(entry),
            start: entry.start,
            end: entry.end,
        })
    }

    fn name(&self, entry: &Entry) -> &str {
        self.slice(entry.name())
    }

    fn shape(&self, entry: &Entry) -> &[u64] {
        self.dims.get(entry.dims()).unwrap_or_default()
    }

    fn slice(&self, range: Range<usize>) -> &str {
        self.text.get(range).unwrap_or_default()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("header_len", &self.header_len)
            .field("data_len", &self.data_len)
            .field("tensors", &self.entries.len())
            .finish_non_exhaustive()
    }
}

/// What a header says of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo<'a> {
    /// Its name, such as `encoder.layer.0.attention.self.query.weight`.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; none for a scalar.
    pub shape: &'a [u64],
    /// Its first byte, counted from the start of the data section.
    pub start: u64,
    /// The byte behind its last one.
    pub end: u64,
}

impl TensorInfo<'_> {
    /// Bytes of its elements.
    pub fn byte_len(&self) -> u64 {
        self.end - self.start
    }

    /// Number of its elements.
    pub fn elements(&self) -> u64 {
        // The header's check has shown that the product fits.
        self.shape.iter().product()
    }
}

/// What a header says of a tensor whose dtype is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnsupportedTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The name of its dtype, as written.
    pub dtype: &'a str,
    /// Its dimensions, outermost first.
    pub shape: &'a [u64],
    /// Its first byte, counted from the start of the data section.
    pub start: u64,
    /// The byte behind its last one.
    pub end: u64,
}

/// A tensor as it is kept: 40 bytes, because a hostile header can name two million.
///
/// Positions fit 32 bits because a header's length does.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) name_start: u32,
    pub(super) name_len: u32,
    pub(super) dims_start: u32,
    /// Where the entry begins in the JSON.
    pub(super) offset: u32,
    pub(super) rank: u16,
    pub(super) dtype: Option<Dtype>,
    /// An unknown dtype's name stands behind the tensor's name.
    pub(super) dtype_name_len: u8,
}

impl Entry {
    pub(super) fn name(&self) -> Range<usize> {
        let start = self.name_start as usize;
        start..start + self.name_len as usize
    }

    fn dtype_name(&self) -> Range<usize> {
        let start = self.name().end;
        start..start + usize::from(self.dtype_name_len)
    }

    pub(super) fn dims(&self) -> Range<usize> {
        let start = self.dims_start as usize;
        start..start + usize::from(self.rank)
    }
}

/// A key of `__metadata__`; its value stands behind it in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct MetadataEntry {
    pub(super) start: u32,
    pub(super) key_len: u32,
    pub(super) value_len: u32,
}

impl MetadataEntry {
    pub(super) fn key(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.key_len as usize
    }

    fn value(&self) -> Range<usize> {
        let start = self.key().end;
        start..start + self.value_len as usize
    }
}
