//! The one pass over a header's JSON.

use std::borrow::Cow;

use super::counts::Counts;
use super::header::{
    Entry, Header, HeaderOptions, MetadataEntry, NameTable, Profile, UnknownDtype,
};
use super::json::{Cursor, Keys, Repeats};
use super::layout;
use crate::{Code, Dtype, Error, Result};

/// No entry of a tensor is written shorter: `"":{"dtype":"F4","shape":[],"data_offsets":[0,0]},`.
const SHORTEST_ENTRY: usize = 50;

/// Nor is a pair of `__metadata__`: `"":"",`.
const SHORTEST_PAIR: usize = 6;

/// Containers open around a field's value: the header and the entry.
const OPEN_IN_ENTRY: usize = 2;

/// Dimensions that any header may have, however short it is.
const FREE_DIMENSIONS: usize = 4096;

/// Keys of unknown fields, and inside them, that are remembered at once to find repeated ones.
const MAX_IGNORED_KEYS: usize = 4096;

/// Builds a [`Header`] from its JSON.
pub(super) struct Parser<'a> {
    options: &'a HeaderOptions,
    json: Cursor<'a>,
    header_len: usize,
    text: String,
    dims: Vec<u64>,
    max_dims: usize,
    entries: Vec<Entry>,
    metadata: Option<Vec<MetadataEntry>>,
    metadata_bytes: u64,
    ignored_bytes: u64,
    ignored_keys: Keys,
}

impl<'a> Parser<'a> {
    pub(super) fn new(json: &'a [u8], options: &'a HeaderOptions) -> Result<Self> {
        let text = std::str::from_utf8(json).map_err(|error| {
            Error::new(Code::HeaderNotUtf8).at_offset(8 + error.valid_up_to() as u64)
        })?;
        let cursor = Cursor::new(text, 8, Code::JsonSyntax);
        let repeats = match options.profile {
            Profile::Strict | Profile::Default => Repeats::Refuse,
            Profile::Reference => Repeats::Allow,
        };
        let counts = Counts::new(json);
        let entries = counts.objects.min(json.len() / SHORTEST_ENTRY);
        // An entry has four colons, and three commas besides those of its shape; a pair of metadata
        // has one of each.
        let dims = (counts.commas + counts.objects).saturating_sub(counts.colons);
        // What entries and names leave of nearly twice the header's length, because a dimension of
        // two bytes (`1,`) takes eight.
        let most = json.len() * 2 - json.len() / 8;
        let left = most.saturating_sub(entries * size_of::<Entry>() + counts.text);
        let max_dims = FREE_DIMENSIONS + left / size_of::<u64>();
        Ok(Self {
            options,
            json: cursor,
            header_len: json.len(),
            text: String::with_capacity(counts.text),
            dims: Vec::with_capacity(dims.min(max_dims)),
            max_dims,
            entries: Vec::with_capacity(entries),
            metadata: None,
            metadata_bytes: 0,
            ignored_bytes: 0,
            ignored_keys: Keys::new(repeats, MAX_IGNORED_KEYS),
        })
    }

    pub(super) fn header(mut self) -> Result<Header> {
        self.document()?;
        self.text.shrink_to_fit();
        self.dims.shrink_to_fit();
        // By offset; entries that are empty at the same place keep the header's order.
        let data_order = |entry: &Entry| (entry.start, entry.end, entry.offset);
        if !self.entries.is_sorted_by_key(data_order) {
            self.entries.sort_unstable_by_key(data_order);
        }
        let names = self.name_table()?;
        let data_len = layout::check(&self.entries, &self.dims, self.options.profile)
            .map_err(|(entry, error)| self.place(error, entry))?;
        let header_len = self.header_len as u64;
        if data_len.checked_add(8 + header_len).is_none() {
            return Err(Error::new(Code::OffsetsOverflow).found(data_len));
        }
        Ok(Header {
            header_len,
            data_len,
            text: self.text,
            dims: self.dims,
            entries: self.entries,
            metadata: self.metadata.unwrap_or_default(),
            names,
        })
    }

    fn document(&mut self) -> Result<()> {
        let strict = self.options.profile == Profile::Strict;
        if strict && !self.json.rest().starts_with('{') {
            return Err(self.json.unexpected("`{`").recode(Code::HeaderStart));
        }
        if self.json.peek() != Some(b'{') {
            return Err(self.json.unexpected("`{`").recode(Code::HeaderNotObject));
        }
        self.json.expect(b'{')?;
        let mut first = true;
        while let Some((key, offset)) = self.json.next_key(&mut first)? {
            if key == "__metadata__" {
                self.metadata(offset)?;
            } else {
                self.entry(&key, offset)?;
            }
        }
        let padding = self.json.rest();
        if strict && !padding.bytes().all(|byte| byte == b' ') {
            return Err(Error::new(Code::HeaderPadding).at_offset(self.json.offset()));
        }
        match self.json.peek() {
            None => Ok(()),
            Some(_) => Err(self.json.unexpected("only spaces behind the header")),
        }
    }

    fn metadata(&mut self, offset: u64) -> Result<()> {
        if self.metadata.is_some() {
            return Err(Error::new(Code::DuplicateKey)
                .at_offset(offset)
                .found("`__metadata__` twice"));
        }
        match self.json.peek() {
            Some(b'{') => self.json.expect(b'{')?,
            // The reference reads `null` as absent, and refuses a second one all the same.
            Some(b'n') if self.options.profile != Profile::Strict => {
                self.json.literal("null")?;
                self.metadata = Some(Vec::new());
                return Ok(());
            }
            _ => return Err(self.json.unexpected("an object").recode(Code::MetadataType)),
        }
        let here = self.json.outside_strings().take_while(|&byte| byte != b'}');
        let colons = here.filter(|&byte| byte == b':').count();
        let most = self.json.rest().len() / SHORTEST_PAIR;
        let mut pairs = Vec::with_capacity(colons.min(most));
        let mut first = true;
        while let Some((key, offset)) = self.json.next_key(&mut first)? {
            if self.json.peek() != Some(b'"') {
                return Err(self.json.unexpected("a string").recode(Code::MetadataType));
            }
            let start = self.keep(&key);
            self.json.string_onto(&mut self.text)?;
            let bytes = self.text.len() - start as usize;
            self.metadata_bytes += bytes as u64;
            limit(
                Code::LimitMetadata,
                self.metadata_bytes,
                self.options.limits.metadata_bytes,
            )
            .map_err(|error| error.at_offset(offset))?;
            pairs.push(MetadataEntry {
                start,
                key_len: key.len() as u32,
                value_len: (bytes - key.len()) as u32,
            });
        }
        // Of equal keys, the last one written stays last: it starts behind the others, or where
        // they do if they are empty, values too.
        let key_of = |pair: &MetadataEntry| self.text.get(pair.key()).unwrap_or_default();
        let place_of = |pair: &MetadataEntry| (pair.start, pair.value_len);
        pairs.sort_unstable_by(|a, b| (key_of(a), place_of(a)).cmp(&(key_of(b), place_of(b))));
        if self.options.profile == Profile::Reference {
            pairs.reverse();
            pairs.dedup_by(|a, b| key_of(a) == key_of(b));
            pairs.reverse();
        } else if let Some(pair) = pairs.windows(2).find_map(|pair| match pair {
            [a, b] if key_of(a) == key_of(b) => Some(b),
            _ => None,
        }) {
            return Err(Error::new(Code::DuplicateKey)
                .at_offset(offset)
                .found(format_args!("`{}` twice in `__metadata__`", key_of(pair))));
        }
        self.metadata = Some(pairs);
        Ok(())
    }

    /// One tensor: `{"dtype": …, "shape": …, "data_offsets": …}`.
    fn entry(&mut self, name: &str, offset: u64) -> Result<()> {
        let limits = &self.options.limits;
        limit(Code::LimitName, name.len() as u64, limits.name_bytes)
            .and_then(|()| {
                limit(
                    Code::LimitTensors,
                    self.entries.len() as u64 + 1,
                    limits.tensors,
                )
            })
            .map_err(|error| error.at_offset(offset))?;
        let mut fields = Fields::new(self.dims.len());
        let parsed = match self.usual_fields(&mut fields) {
            Some(()) => Ok(()),
            None => self.fields(&mut fields),
        };
        parsed
            .and_then(|()| self.finish_entry(name, offset, fields))
            .map_err(|error| error.in_tensor(name).at_offset(offset))
    }

    /// An entry exactly as the reference writes it, as nearly all are: comparing with what is
    /// expected is faster than finding out what is there. Whatever else it is, a mistake included,
    /// is left to [`Parser::fields`], and nothing has changed.
    fn usual_fields(&mut self, fields: &mut Fields<'a>) -> Option<()> {
        const USUAL_RANK: usize = 8;
        let rank = USUAL_RANK.min(self.options.limits.rank as usize);
        let most = self.max_dims.min(self.dims.len() + rank);
        let mut json = self.json.clone();
        let usual = usual_entry(&mut json, &mut self.dims, most, fields);
        match usual {
            Some(()) => self.json = json,
            None => {
                self.dims.truncate(fields.dims_start);
                *fields = Fields::new(fields.dims_start);
            }
        }
        usual
    }

    fn fields(&mut self, fields: &mut Fields<'a>) -> Result<()> {
        let reference = self.options.profile == Profile::Reference;
        match self.json.peek() {
            Some(b'{') => self.json.expect(b'{')?,
            // A derived reader takes a struct's fields in order, too.
            Some(b'[') if reference => return self.positional_fields(fields),
            _ => return Err(self.json.unexpected("an object").recode(Code::EntryType)),
        }
        let unknown = self.ignored_keys.len();
        let mut first = true;
        while let Some((key, offset)) = self.json.next_key(&mut first)? {
            let known = match &*key {
                "dtype" => Field::Dtype,
                "shape" => Field::Shape,
                "data_offsets" => Field::DataOffsets,
                _ => {
                    self.ignored_keys.add(&key, offset)?;
                    self.unknown_field(&key, offset)?;
                    continue;
                }
            };
            self.field(known, offset, fields)?;
        }
        self.ignored_keys.close(unknown)
    }

    fn positional_fields(&mut self, fields: &mut Fields<'a>) -> Result<()> {
        self.json.expect(b'[')?;
        let mut first = true;
        for field in [Field::Dtype, Field::Shape, Field::DataOffsets] {
            if !self.json.next_item(&mut first)? {
                return Err(Error::new(Code::FieldMissing).expected(field.name()));
            }
            self.field(field, self.json.offset(), fields)?;
        }
        self.json.expect(b']')
    }

    fn field(&mut self, field: Field, offset: u64, fields: &mut Fields<'a>) -> Result<()> {
        let seen = match field {
            Field::Dtype => fields.dtype.is_some(),
            Field::Shape => fields.rank.is_some(),
            Field::DataOffsets => fields.data_offsets.is_some(),
        };
        if seen {
            return Err(Error::new(Code::DuplicateKey)
                .at_offset(offset)
                .found(format_args!("`{}` twice", field.name())));
        }
        match field {
            Field::Dtype => fields.dtype = Some(self.dtype()?),
            Field::Shape => fields.rank = Some(self.shape()?),
            Field::DataOffsets => fields.data_offsets = Some(self.data_offsets()?),
        }
        Ok(())
    }

    fn dtype(&mut self) -> Result<(Cow<'a, str>, u64)> {
        let next = self.json.peek();
        let offset = self.json.offset();
        match next {
            Some(b'"') => Ok((self.json.string()?, offset)),
            // A derived enum is also read from `{"F32": null}`.
            Some(b'{') if self.options.profile == Profile::Reference => {
                self.json.expect(b'{')?;
                let null = |json: &mut Cursor<'a>| {
                    let (key, _) = json.next_key(&mut true)?.unwrap_or_default();
                    json.literal("null")?;
                    json.expect(b'}')?;
                    Ok((key, offset))
                };
                null(&mut self.json).map_err(|error: Error| error.recode(Code::FieldType))
            }
            _ => Err(self
                .json
                .unexpected("a string for `dtype`")
                .recode(Code::FieldType)),
        }
    }

    /// Appends the dimensions and returns their number.
    fn shape(&mut self) -> Result<u16> {
        let array = "an array of unsigned integers for `shape`";
        if self.json.peek() != Some(b'[') {
            return Err(self.json.unexpected(array).recode(Code::FieldType));
        }
        self.json.expect(b'[')?;
        let before = self.dims.len();
        let mut first = true;
        while self.json.next_item(&mut first)? {
            let rank = (self.dims.len() - before) as u64 + 1;
            limit(
                Code::LimitRank,
                rank,
                self.options.limits.rank.min(u64::from(u16::MAX)),
            )
            .and_then(|()| {
                limit(
                    Code::LimitDimensions,
                    self.dims.len() as u64 + 1,
                    self.max_dims as u64,
                )
            })
            .map_err(|error| error.at_offset(self.json.offset()))?;
            let dim = self
                .json
                .unsigned()
                .map_err(|error| wrong_number(error, array))?;
            self.dims.push(dim);
        }
        Ok((self.dims.len() - before) as u16)
    }

    fn data_offsets(&mut self) -> Result<(u64, u64)> {
        let pair = "an array of two unsigned integers for `data_offsets`";
        let wrong = |json: &mut Cursor<'_>| json.unexpected(pair).recode(Code::FieldType);
        let mut first = true;
        if !self.json.take(b'[') || !self.json.next_item(&mut first)? {
            return Err(wrong(&mut self.json));
        }
        let start = self
            .json
            .unsigned()
            .map_err(|error| wrong_number(error, pair))?;
        if !self.json.next_item(&mut first)? {
            return Err(wrong(&mut self.json));
        }
        let end = self
            .json
            .unsigned()
            .map_err(|error| wrong_number(error, pair))?;
        if !self.json.take(b']') {
            return Err(wrong(&mut self.json));
        }
        Ok((start, end))
    }

    fn unknown_field(&mut self, key: &str, offset: u64) -> Result<()> {
        if self.options.profile == Profile::Strict {
            return Err(Error::new(Code::FieldUnknown)
                .at_offset(offset)
                .expected("dtype, shape and data_offsets only")
                .found(format_args!("`{key}`")));
        }
        let start = self.json.position();
        let limit = self.options.limits.ignored_bytes;
        let left = limit.saturating_sub(self.ignored_bytes);
        let keys = &mut self.ignored_keys;
        self.json.skip_value(OPEN_IN_ENTRY, keys, left)?;
        self.ignored_bytes += (self.json.position() - start) as u64;
        Ok(())
    }

    fn finish_entry(&mut self, name: &str, offset: u64, fields: Fields<'a>) -> Result<()> {
        let missing = |field: Field| {
            Error::new(Code::FieldMissing).expected(format_args!("`{}`", field.name()))
        };
        let (dtype_name, dtype_offset) = fields.dtype.ok_or_else(|| missing(Field::Dtype))?;
        let rank = fields.rank.ok_or_else(|| missing(Field::Shape))?;
        let (start, end) = fields
            .data_offsets
            .ok_or_else(|| missing(Field::DataOffsets))?;
        let dtype = Dtype::from_name(&dtype_name);
        let name_start = self.keep(name);
        let mut dtype_name_len = 0;
        if dtype.is_none() {
            let kept = self.options.unknown_dtype == UnknownDtype::Keep;
            dtype_name_len = match u8::try_from(dtype_name.len()) {
                Ok(len) if kept => len,
                _ => {
                    return Err(Error::new(Code::UnknownDtype)
                        .at_offset(dtype_offset)
                        .found(format_args!("`{}`", shortened(&dtype_name)))
                        .help("`UnknownDtype::Keep` reads the other tensors"));
                }
            };
            self.keep(&dtype_name);
        }
        let entry = Entry {
            start,
            end,
            name_start,
            name_len: name.len() as u32,
            dims_start: fields.dims_start as u32,
            offset: offset as u32,
            rank,
            dtype,
            dtype_name_len,
        };
        self.entries.push(entry);
        Ok(())
    }

    /// Indexes the names; a name used twice is refused, or in the reference's profile the entry
    /// that comes first in the header is dropped.
    fn name_table(&mut self) -> Result<NameTable> {
        let mut names = NameTable::with_capacity(self.entries.len());
        for position in 0..self.entries.len() {
            let Err(other) = names.insert(position, |at| name_at(&self.entries, &self.text, at))
            else {
                continue;
            };
            if self.options.profile == Profile::Reference {
                drop(names);
                self.drop_replaced();
                return self.name_table();
            }
            let same = [position, other]
                .into_iter()
                .filter_map(|at| self.entries.get(at));
            let error = Error::new(Code::DuplicateTensor);
            return Err(match same.max_by_key(|entry| entry.offset) {
                Some(second) => self.place(error, second),
                None => error,
            });
        }
        Ok(names)
    }

    /// Keeps of every name only the entry that comes last in the header.
    fn drop_replaced(&mut self) {
        let text = &self.text;
        let name_of = |entry: &Entry| text.get(entry.name()).unwrap_or_default();
        self.entries
            .sort_unstable_by(|a, b| name_of(a).cmp(name_of(b)).then(b.offset.cmp(&a.offset)));
        self.entries
            .dedup_by(|later, kept| name_of(later) == name_of(kept));
        self.entries
            .sort_unstable_by_key(|entry| (entry.start, entry.end, entry.offset));
    }

    /// Appends to the header's text and returns where it begins there.
    fn keep(&mut self, text: &str) -> u32 {
        let start = self.text.len();
        self.text.push_str(text);
        start as u32
    }

    /// Adds an entry's name and place to an error.
    fn place(&self, error: Error, entry: &Entry) -> Error {
        let name = self.text.get(entry.name()).unwrap_or_default();
        error.in_tensor(name).at_offset(u64::from(entry.offset))
    }
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

/// The fields of an entry read so far.
struct Fields<'a> {
    /// The dtype's name and the byte at which it stands.
    dtype: Option<(Cow<'a, str>, u64)>,
    dims_start: usize,
    rank: Option<u16>,
    data_offsets: Option<(u64, u64)>,
}

impl Fields<'_> {
    fn new(dims_start: usize) -> Self {
        Self {
            dtype: None,
            dims_start,
            rank: None,
            data_offsets: None,
        }
    }
}

/// Reads `{"dtype":"…","shape":[…],"data_offsets":[…,…]}` if that is what comes next, to the byte.
fn usual_entry<'a>(
    json: &mut Cursor<'a>,
    dims: &mut Vec<u64>,
    most_dims: usize,
    fields: &mut Fields<'a>,
) -> Option<()> {
    json.take_text("{\"dtype\":\"")?;
    let offset = json.offset() - 1;
    fields.dtype = Some((Cow::Borrowed(json.take_word()), offset));
    json.take_text("\",\"shape\":[")?;
    while json.take_text("]").is_none() {
        if dims.len() > fields.dims_start {
            json.take_text(",")?;
        }
        dims.push(json.take_digits().filter(|_| dims.len() < most_dims)?);
    }
    fields.rank = Some((dims.len() - fields.dims_start) as u16);
    json.take_text(",\"data_offsets\":[")?;
    let start = json.take_digits()?;
    json.take_text(",")?;
    fields.data_offsets = Some((start, json.take_digits()?));
    json.take_text("]}")
}

fn name_at<'t>(entries: &[Entry], text: &'t str, position: usize) -> &'t str {
    let range = entries.get(position).map(Entry::name).unwrap_or_default();
    text.get(range).unwrap_or_default()
}

/// A syntax error where the grammar is fine and the type is not.
fn wrong_number(error: Error, expected: &str) -> Error {
    error.expected(expected).recode(Code::FieldType)
}

fn limit(code: Code, found: u64, limit: u64) -> Result<()> {
    if found <= limit {
        return Ok(());
    }
    Err(Error::new(code)
        .expected(format_args!("at most {limit}"))
        .found(found))
}

/// The beginning of a text that may be long, for a message.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
