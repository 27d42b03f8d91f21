//! The one pass over a header's JSON.

use super::counts::Counts;
use super::fields::{FieldReader, Fields};
use super::header::{Entry, Header, HeaderOptions, MetadataEntry, Profile, UnknownDtype};
use super::json::Cursor;
use super::layout;
use super::name_table::NameTable;
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::limits::{limit, no_room, room};

/// No entry of a tensor is written shorter: `"":{"dtype":"F4","shape":[],"data_offsets":[0,0]},`.
const SHORTEST_ENTRY: usize = 50;

/// Nor is a pair of `__metadata__`: `"":"",`.
const SHORTEST_PAIR: usize = 6;

/// Dimensions that any header may have, however short it is.
const FREE_DIMENSIONS: usize = 4096;

/// Builds a [`Header`] from its JSON.
pub(super) struct Parser<'a> {
    options: &'a HeaderOptions,
    json: Cursor<'a>,
    header_len: usize,
    padding: u64,
    text: String,
    fields: FieldReader<'a>,
    entries: Vec<Entry>,
    metadata: Option<Vec<MetadataEntry>>,
    metadata_bytes: u64,
    /// Whether everything is kept, or only checked.
    keeps: bool,
    /// Where the data end of what was checked.
    checked_len: u64,
    tensors: u64,
}

impl<'a> Parser<'a> {
    /// A parser for [`Parser::header`].
    pub(super) fn new(json: &'a [u8], options: &'a HeaderOptions) -> Result<Self> {
        Self::keeping(json, options, true)
    }

    fn keeping(json: &'a [u8], options: &'a HeaderOptions, all: bool) -> Result<Self> {
        let text = std::str::from_utf8(json).map_err(|error| {
            Error::new(Code::HeaderNotUtf8).at_offset(8 + error.valid_up_to() as u64)
        })?;
        let cursor = Cursor::new(text, 8, Code::JsonSyntax);
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
        let mut text = String::new();
        let kept = if all { counts.text } else { 0 };
        text.try_reserve_exact(kept)
            .map_err(|_| no_room::<u8>(kept))?;
        Ok(Self {
            options,
            json: cursor,
            header_len: json.len(),
            padding: 0,
            text,
            fields: FieldReader::new(options, if all { dims } else { 0 }, max_dims)?,
            entries: room(if all { entries } else { 0 })?,
            metadata: None,
            metadata_bytes: 0,
            keeps: all,
            checked_len: 0,
            tensors: 0,
        })
    }

    /// A parser that keeps nothing, for [`Parser::check`].
    pub(super) fn checking(json: &'a [u8], options: &'a HeaderOptions) -> Result<Self> {
        Self::keeping(json, options, false)
    }

    /// Length of the data section of a header that is as [`Parser::header`] wants it, and whose entries
    /// and keys of metadata come in order, each once.
    pub(super) fn check(mut self) -> Result<u64> {
        self.document()?;
        Ok(self.checked_len)
    }

    pub(super) fn header(mut self) -> Result<Header> {
        self.document()?;
        self.text.shrink_to_fit();
        self.fields.dims.shrink_to_fit();
        // By offset; entries that are empty at the same place keep the header's order.
        let data_order = |entry: &Entry| (entry.start, entry.end, entry.offset);
        if !self.entries.is_sorted_by_key(data_order) {
            self.entries.sort_unstable_by_key(data_order);
        }
        let names = self.name_table()?;
        let data_len = layout::check(&self.entries, &self.fields.dims, self.options.profile)
            .map_err(|(entry, error)| self.place(error, entry))?;
        let header_len = self.header_len as u64;
        if data_len.checked_add(8 + header_len).is_none() {
            return Err(Error::new(Code::OffsetsOverflow).found(data_len));
        }
        Ok(Header {
            header_len,
            padding: self.padding,
            data_len,
            text: self.text,
            dims: self.fields.dims,
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
        self.padding = padding.len() as u64;
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
        let mut pairs = room(if self.keeps { colons.min(most) } else { 0 })?;
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
            if !self.keeps {
                self.forget_pairs(&mut pairs)
                    .map_err(|error| error.at_offset(offset))?;
            }
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

    /// Forgets all pairs but the last one, behind which the next one must come.
    fn forget_pairs(&mut self, pairs: &mut Vec<MetadataEntry>) -> Result<()> {
        let [before, last] = pairs.as_mut_slice() else {
            return Ok(());
        };
        let key_of = |pair: &MetadataEntry| self.text.get(pair.key()).unwrap_or_default();
        if key_of(before) >= key_of(last) {
            return Err(Error::new(Code::DuplicateKey).found(format_args!(
                "`{}` behind `{}`",
                key_of(last),
                key_of(before)
            )));
        }
        self.text.drain(..last.start as usize);
        last.start = 0;
        pairs.remove(0);
        Ok(())
    }

    /// One tensor: `{"dtype": …, "shape": …, "data_offsets": …}`.
    fn entry(&mut self, name: &str, offset: u64) -> Result<()> {
        self.tensors += 1;
        let limits = &self.options.limits;
        limit(Code::LimitName, name.len() as u64, limits.name_bytes)
            .and_then(|()| limit(Code::LimitTensors, self.tensors, limits.tensors))
            .map_err(|error| error.at_offset(offset))?;
        let fields = self.fields.read(&mut self.json);
        let mut read = fields.and_then(|fields| self.finish_entry(name, offset, fields));
        if !self.keeps {
            read = read.and_then(|()| self.forget_entry());
        }
        read.map_err(|error| error.in_tensor(name).at_offset(offset))
    }

    /// Checks the only entry, and forgets it.
    fn forget_entry(&mut self) -> Result<()> {
        if let Some(entry) = self.entries.pop() {
            let shape = self.fields.dims.get(entry.dims()).unwrap_or_default();
            layout::check_entry(&entry, shape, self.checked_len, self.options.profile)?;
            self.checked_len = entry.end;
            self.text.truncate(entry.name_start as usize);
            self.fields.forget(usize::from(entry.rank));
        }
        Ok(())
    }

    fn finish_entry(&mut self, name: &str, offset: u64, fields: Fields<'a>) -> Result<()> {
        let (dtype_name, dtype_offset) = fields.dtype;
        let (start, end) = fields.data_offsets;
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
            rank: fields.rank,
            dtype,
            dtype_name_len,
        };
        self.entries.push(entry);
        Ok(())
    }

    /// Indexes the names; a name used twice is refused, or in the reference's profile the entry
    /// that comes first in the header is dropped.
    fn name_table(&mut self) -> Result<NameTable> {
        let mut names = NameTable::with_room(self.entries.len())?;
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

fn name_at<'t>(entries: &[Entry], text: &'t str, position: usize) -> &'t str {
    let range = entries.get(position).map(Entry::name).unwrap_or_default();
    text.get(range).unwrap_or_default()
}

/// The beginning of a text that may be long, for a message.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
