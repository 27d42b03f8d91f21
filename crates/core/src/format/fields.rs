//! The fields of an entry: `{"dtype": …, "shape": …, "data_offsets": …}`.

use std::borrow::Cow;

use super::header::{HeaderOptions, Profile};
use super::json::Cursor;
use super::skip::{Keys, Repeats};
use crate::error::{Code, Error, Result};
use crate::limits::{limit, room};

/// Containers open around a field's value: the header and the entry.
const OPEN_IN_ENTRY: usize = 2;

/// Keys of unknown fields, and inside them, that are remembered at once to find repeated ones.
const MAX_IGNORED_KEYS: usize = 4096;

/// What an entry says of its tensor.
pub(super) struct Fields<'a> {
    /// The dtype's name and the byte at which it stands.
    pub(super) dtype: (Cow<'a, str>, u64),
    /// Where the shape begins in [`FieldReader::dims`].
    pub(super) dims_start: usize,
    pub(super) rank: u16,
    pub(super) data_offsets: (u64, u64),
}

/// Reads the fields of one entry after the other.
pub(super) struct FieldReader<'a> {
    options: &'a HeaderOptions,
    /// The shapes, end to end.
    pub(super) dims: Vec<u64>,
    max_dims: usize,
    ignored_bytes: u64,
    ignored_keys: Keys,
}

impl<'a> FieldReader<'a> {
    /// Reserves memory for `dims` dimensions and accepts `max_dims`.
    pub(super) fn new(options: &'a HeaderOptions, dims: usize, max_dims: usize) -> Result<Self> {
        let repeats = match options.profile {
            Profile::Strict | Profile::Default => Repeats::Refuse,
            Profile::Reference => Repeats::Allow,
        };
        Ok(Self {
            options,
            dims: room(dims.min(max_dims))?,
            max_dims,
            ignored_bytes: 0,
            ignored_keys: Keys::new(repeats, MAX_IGNORED_KEYS),
        })
    }

    /// Forgets the last dimensions; they count as before.
    pub(super) fn forget(&mut self, dims: usize) {
        self.dims.truncate(self.dims.len().saturating_sub(dims));
        self.max_dims = self.max_dims.saturating_sub(dims);
    }

    pub(super) fn read(&mut self, json: &mut Cursor<'a>) -> Result<Fields<'a>> {
        match self.usual_fields(json) {
            Some(fields) => Ok(fields),
            None => self.fields(json),
        }
    }

    /// An entry exactly as the reference writes it, as nearly all are: comparing with what is
    /// expected is faster than finding out what is there. Whatever else it is, a mistake included,
    /// is left to [`FieldReader::fields`], and nothing has changed.
    fn usual_fields(&mut self, json: &mut Cursor<'a>) -> Option<Fields<'a>> {
        const USUAL_RANK: usize = 8;
        let before = self.dims.len();
        let rank = USUAL_RANK.min(self.options.limits.rank as usize);
        let most = self.max_dims.min(before + rank);
        let mut ahead = json.clone();
        let usual = usual_entry(&mut ahead, &mut self.dims, most);
        match usual {
            Some(_) => *json = ahead,
            None => self.dims.truncate(before),
        }
        usual
    }

    fn fields(&mut self, json: &mut Cursor<'a>) -> Result<Fields<'a>> {
        let reference = self.options.profile == Profile::Reference;
        let dims_start = self.dims.len();
        let mut found = Found::default();
        match json.peek() {
            Some(b'{') => self.named_fields(json, &mut found)?,
            // A derived reader takes a struct's fields in order, too.
            Some(b'[') if reference => self.positional_fields(json, &mut found)?,
            _ => return Err(json.unexpected("an object").recode(Code::EntryType)),
        }
        found.complete(dims_start)
    }

    fn named_fields(&mut self, json: &mut Cursor<'a>, found: &mut Found<'a>) -> Result<()> {
        json.expect(b'{')?;
        let unknown = self.ignored_keys.len();
        let mut first = true;
        while let Some((key, offset)) = json.next_key(&mut first)? {
            let known = match &*key {
                "dtype" => Field::Dtype,
                "shape" => Field::Shape,
                "data_offsets" => Field::DataOffsets,
                _ => {
                    self.ignored_keys.add(&key, offset)?;
                    self.unknown_field(json, &key, offset)?;
                    continue;
                }
            };
            self.field(json, known, offset, found)?;
        }
        self.ignored_keys.close(unknown)
    }

    fn positional_fields(&mut self, json: &mut Cursor<'a>, found: &mut Found<'a>) -> Result<()> {
        json.expect(b'[')?;
        let mut first = true;
        for field in [Field::Dtype, Field::Shape, Field::DataOffsets] {
            if !json.next_item(&mut first)? {
                return Err(Error::new(Code::FieldMissing).expected(field.name()));
            }
            self.field(json, field, json.offset(), found)?;
        }
        json.expect(b']')
    }

    fn field(
        &mut self,
        json: &mut Cursor<'a>,
        field: Field,
        offset: u64,
        found: &mut Found<'a>,
    ) -> Result<()> {
        let seen = match field {
            Field::Dtype => found.dtype.is_some(),
            Field::Shape => found.rank.is_some(),
            Field::DataOffsets => found.data_offsets.is_some(),
        };
        if seen {
            return Err(Error::new(Code::DuplicateKey)
                .at_offset(offset)
                .found(format_args!("`{}` twice", field.name())));
        }
        match field {
            Field::Dtype => found.dtype = Some(self.dtype(json)?),
            Field::Shape => found.rank = Some(self.shape(json)?),
            Field::DataOffsets => found.data_offsets = Some(data_offsets(json)?),
        }
        Ok(())
    }

    fn dtype(&self, json: &mut Cursor<'a>) -> Result<(Cow<'a, str>, u64)> {
        let next = json.peek();
        let offset = json.offset();
        match next {
            Some(b'"') => Ok((json.string()?, offset)),
            // A derived enum is also read from `{"F32": null}`.
            Some(b'{') if self.options.profile == Profile::Reference => {
                json.expect(b'{')?;
                let null = |json: &mut Cursor<'a>| {
                    let (key, _) = json.next_key(&mut true)?.unwrap_or_default();
                    json.literal("null")?;
                    json.expect(b'}')?;
                    Ok((key, offset))
                };
                null(json).map_err(|error: Error| error.recode(Code::FieldType))
            }
            _ => Err(json
                .unexpected("a string for `dtype`")
                .recode(Code::FieldType)),
        }
    }

    /// Appends the dimensions and returns their number.
    fn shape(&mut self, json: &mut Cursor<'a>) -> Result<u16> {
        let array = "an array of unsigned integers for `shape`";
        if json.peek() != Some(b'[') {
            return Err(json.unexpected(array).recode(Code::FieldType));
        }
        json.expect(b'[')?;
        let before = self.dims.len();
        let max_rank = self.options.limits.rank.min(u64::from(u16::MAX));
        let mut first = true;
        while json.next_item(&mut first)? {
            let dims = self.dims.len() as u64 + 1;
            limit(Code::LimitRank, dims - before as u64, max_rank)
                .and_then(|()| limit(Code::LimitDimensions, dims, self.max_dims as u64))
                .map_err(|error| error.at_offset(json.offset()))?;
            let dim = json
                .unsigned()
                .map_err(|error| wrong_number(error, array))?;
            self.dims.push(dim);
        }
        Ok((self.dims.len() - before) as u16)
    }

    fn unknown_field(&mut self, json: &mut Cursor<'a>, key: &str, offset: u64) -> Result<()> {
        if self.options.profile == Profile::Strict {
            return Err(Error::new(Code::FieldUnknown)
                .at_offset(offset)
                .expected("dtype, shape and data_offsets only")
                .found(format_args!("`{key}`")));
        }
        let start = json.position();
        let limit = self.options.limits.ignored_bytes;
        let left = limit.saturating_sub(self.ignored_bytes);
        json.skip_value(OPEN_IN_ENTRY, &mut self.ignored_keys, left)?;
        self.ignored_bytes += (json.position() - start) as u64;
        Ok(())
    }
}

/// Reads `{"dtype":"…","shape":[…],"data_offsets":[…,…]}` if that is what comes next, to the byte.
fn usual_entry<'a>(
    json: &mut Cursor<'a>,
    dims: &mut Vec<u64>,
    most_dims: usize,
) -> Option<Fields<'a>> {
    let dims_start = dims.len();
    json.take_text("{\"dtype\":\"")?;
    let offset = json.offset() - 1;
    let dtype = (Cow::Borrowed(json.take_word()), offset);
    json.take_text("\",\"shape\":[")?;
    while json.take_text("]").is_none() {
        if dims.len() > dims_start {
            json.take_text(",")?;
        }
        dims.push(json.take_digits().filter(|_| dims.len() < most_dims)?);
    }
    json.take_text(",\"data_offsets\":[")?;
    let start = json.take_digits()?;
    json.take_text(",")?;
    let end = json.take_digits()?;
    json.take_text("]}")?;
    Some(Fields {
        dtype,
        dims_start,
        rank: (dims.len() - dims_start) as u16,
        data_offsets: (start, end),
    })
}

fn data_offsets(json: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let pair = "an array of two unsigned integers for `data_offsets`";
    let wrong = |json: &mut Cursor<'_>| json.unexpected(pair).recode(Code::FieldType);
    let mut first = true;
    if !json.take(b'[') || !json.next_item(&mut first)? {
        return Err(wrong(json));
    }
    let start = json.unsigned().map_err(|error| wrong_number(error, pair))?;
    if !json.next_item(&mut first)? {
        return Err(wrong(json));
    }
    let end = json.unsigned().map_err(|error| wrong_number(error, pair))?;
    if !json.take(b']') {
        return Err(wrong(json));
    }
    Ok((start, end))
}

/// A syntax error where the grammar is fine and the type is not.
fn wrong_number(error: Error, expected: &str) -> Error {
    error.expected(expected).recode(Code::FieldType)
}

#[derive(Clone, Copy)]
enum Field {
    Dtype,
    Shape,
    DataOffsets,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Self::Dtype => "dtype",
            Self::Shape => "shape",
            Self::DataOffsets => "data_offsets",
        }
    }
}

/// The fields of an entry found so far, as in [`Fields`].
#[derive(Default)]
struct Found<'a> {
    dtype: Option<(Cow<'a, str>, u64)>,
    rank: Option<u16>,
    data_offsets: Option<(u64, u64)>,
}

impl<'a> Found<'a> {
    fn complete(self, dims_start: usize) -> Result<Fields<'a>> {
        let missing = |field: Field| {
            Error::new(Code::FieldMissing).expected(format_args!("`{}`", field.name()))
        };
        Ok(Fields {
            dtype: self.dtype.ok_or_else(|| missing(Field::Dtype))?,
            dims_start,
            rank: self.rank.ok_or_else(|| missing(Field::Shape))?,
            data_offsets: self
                .data_offsets
                .ok_or_else(|| missing(Field::DataOffsets))?,
        })
    }
}
