//! Other metadata in the text of a header or an index: by spans, so that whatever else there is stays as
//! it is, to the byte, and takes no memory but its text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use super::json::Cursor;
use super::python_json::{write_string, write_value};
use super::skip::{Keys, Repeats};
use crate::error::{Code, Error, Result};

/// What the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// A header without its padding. Its `__metadata__` come first, sorted by key, in as few bytes as can
    /// be; there are none where they would be empty.
    Header,
    /// An index, whose `metadata` are spelled as Python does it.
    Index(Order),
}

/// Where a new key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// All are sorted.
    Sorted,
    /// Behind those that are there.
    AsTheyAre,
}

/// A key, and the value that it gets; none where it goes.
pub(crate) type Change<'c> = (&'c str, Option<&'c str>);

/// The text with other metadata; `None` where it says all of that already. In an index, a value that is
/// not text stays so where the new one is JSON.
///
/// Memory: the new text, and 8 bytes a key. Time: linear, and a sort.
///
/// # Errors
/// `json-syntax`, `index-syntax`; `header-too-large`, `limit-index` where 32 bits cannot count its bytes.
pub(crate) fn with_metadata(
    json: &str,
    document: Document,
    changes: &[Change<'_>],
) -> Result<Option<String>> {
    if u32::try_from(json.len()).is_err() {
        return Err(Error::new(document.too_large()).found(json.len()));
    }
    let mut found = Found::in_text(json, document)?;
    let mut changes_of: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
    for &(key, value) in changes {
        changes_of.entry(key).or_default().push(value);
    }
    let mut new = Vec::new();
    let mut pairs = Vec::with_capacity(found.pairs.len() + changes_of.len());
    let mut says_the_same = true;
    for pair in std::mem::take(&mut found.pairs) {
        let (key, old) = pair.read(json, document)?;
        let Some(changes) = changes_of.remove(&*key) else {
            pairs.push(Pair::Old(pair));
            continue;
        };
        let old = serde_json::from_str(old).ok();
        let value = changed(old.as_ref(), &changes);
        says_the_same &= value == old;
        if let Some(value) = value {
            pairs.push(Pair::New(new.len() as u32));
            new.push(NewPair::new(&key, value, document));
        }
    }
    for (key, _) in changes.iter().filter(|(_, value)| value.is_some()) {
        let changes = changes_of.remove(key).unwrap_or_default();
        if let Some(value) = changed(None, &changes) {
            says_the_same = false;
            pairs.push(Pair::New(new.len() as u32));
            new.push(NewPair::new(key, value, document));
        }
    }
    if says_the_same {
        return Ok(None);
    }
    let pairs = Pairs {
        json,
        document,
        new,
        pairs,
    };
    Ok(Some(found.with(json, document, &pairs.sorted())))
}

/// What a key has after changes one after the other, if it had this.
fn changed(old: Option<&Value>, changes: &[Option<&str>]) -> Option<Value> {
    let is_no_text = |value: &Value| !value.is_string();
    let mut stays = old.is_some_and(is_no_text);
    let mut now = None;
    for text in changes {
        now = text.map(|text| {
            let parsed = serde_json::from_str(text).ok().filter(|_| stays);
            parsed.unwrap_or_else(|| Value::from(text))
        });
        stays = now.as_ref().is_some_and(is_no_text);
    }
    now
}

impl Document {
    fn cursor(self, json: &str) -> Cursor<'_> {
        Cursor::new(json, self.base(), self.syntax())
    }

    /// Where the text begins in its file.
    fn base(self) -> u64 {
        match self {
            Self::Header => 8,
            Self::Index(_) => 0,
        }
    }

    fn syntax(self) -> Code {
        match self {
            Self::Header => Code::JsonSyntax,
            Self::Index(_) => Code::IndexSyntax,
        }
    }

    fn too_large(self) -> Code {
        match self {
            Self::Header => Code::HeaderTooLarge,
            Self::Index(_) => Code::LimitIndex,
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Header => "__metadata__",
            Self::Index(_) => "metadata",
        }
    }
}

/// Where the metadata are, and what is around them.
#[derive(Default)]
struct Found {
    /// Their value, if there are any.
    value: Option<Range<usize>>,
    pairs: Vec<Span>,
    /// The other members, from the first to the last: those before the metadata, and those behind.
    before: Option<Range<usize>>,
    behind: Option<Range<usize>>,
}

/// A key and its value, from its opening quote to the value's end.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Found {
    fn in_text(json: &str, document: Document) -> Result<Self> {
        let mut cursor = document.cursor(json);
        let mut found = Self::default();
        let mut first = true;
        cursor.expect(b'{')?;
        while let Some((key, offset)) = cursor.next_key(&mut first)? {
            if key == document.key() {
                let is_object = cursor.peek() == Some(b'{');
                let start = cursor.position();
                match is_object {
                    true => found.pairs = pairs(&mut cursor, document)?,
                    false => skip(&mut cursor, 1)?,
                }
                found.value = Some(start..cursor.position());
                continue;
            }
            skip(&mut cursor, 1)?;
            let others = match found.value {
                None => &mut found.before,
                Some(_) => &mut found.behind,
            };
            let start = (offset - document.base()) as usize;
            others.get_or_insert(start..start).end = cursor.position();
        }
        Ok(found)
    }

    /// The text with these pairs.
    fn with(&self, json: &str, document: Document, pairs: &Pairs<'_>) -> String {
        let text = |range: Range<usize>| json.get(range).unwrap_or_default();
        let more = pairs.new.iter().map(|pair| pair.text.len() + AROUND);
        let mut new = String::with_capacity(json.len() + more.sum::<usize>() + 2 * AROUND);
        let metadata = |new: &mut String| {
            *new += match document {
                Document::Header => "\"__metadata__\":",
                Document::Index(_) => "\"metadata\": ",
            };
            pairs.write(new);
        };
        match (document, &self.value, &self.before) {
            (Document::Header, _, _) => {
                let mut separator = "{";
                if !pairs.pairs.is_empty() {
                    new += separator;
                    metadata(&mut new);
                    separator = ",";
                }
                for others in [&self.before, &self.behind].into_iter().flatten() {
                    new += separator;
                    new += text(others.clone());
                    separator = ",";
                }
                new += if separator == "{" { "{}" } else { "}" };
            }
            (Document::Index(_), Some(value), _) => {
                new += text(0..value.start);
                pairs.write(&mut new);
                new += text(value.end..json.len());
            }
            (Document::Index(order), None, Some(others)) => {
                let (start, end) = (others.start, others.end);
                if order == Order::Sorted {
                    // Nothing that has a meaning in an index comes before it.
                    new += "{\n  ";
                    metadata(&mut new);
                    new += ",\n  ";
                    new += text(start..json.len());
                } else {
                    new += text(0..end);
                    new += ",\n  ";
                    metadata(&mut new);
                    new += text(end..json.len());
                }
            }
            (Document::Index(_), None, None) => {
                new += "{\n  ";
                metadata(&mut new);
                new += "\n}";
            }
        }
        new
    }
}

/// Bytes around a pair, and around all of them, at most.
const AROUND: usize = 32;

/// The pairs of an object, which comes next.
fn pairs(cursor: &mut Cursor<'_>, document: Document) -> Result<Vec<Span>> {
    let mut pairs = Vec::new();
    let mut first = true;
    cursor.expect(b'{')?;
    while let Some((_, offset)) = cursor.next_key(&mut first)? {
        skip(cursor, 2)?;
        pairs.push(Span {
            start: (offset - document.base()) as u32,
            end: cursor.position() as u32,
        });
    }
    Ok(pairs)
}

/// Walks over a value, with so many containers open around it.
fn skip(cursor: &mut Cursor<'_>, depth: usize) -> Result<()> {
    cursor.peek();
    // Whether a key is there twice was checked when the file was opened.
    let mut keys = Keys::new(Repeats::Allow, 0);
    cursor.skip_value(depth, &mut keys, u64::MAX)
}

impl Span {
    fn text(self, json: &str) -> &str {
        json.get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }

    /// Its key, and the text of its value.
    fn read(self, json: &str, document: Document) -> Result<(Cow<'_, str>, &str)> {
        let mut cursor = document.cursor(self.text(json));
        let key = cursor.string()?;
        cursor.expect(b':')?;
        cursor.peek();
        Ok((key, cursor.rest()))
    }
}

/// The new metadata.
struct Pairs<'t> {
    json: &'t str,
    document: Document,
    pairs: Vec<Pair>,
    new: Vec<NewPair>,
}

enum Pair {
    Old(Span),
    /// By its position among the new ones, which are fewer than 2^32.
    New(u32),
}

/// A pair that is not in the text, or not like that.
struct NewPair {
    key: String,
    text: String,
}

impl NewPair {
    fn new(key: &str, mut value: Value, document: Document) -> Self {
        let text = match document {
            Document::Header => format!("{}:{value}", Value::from(key)),
            Document::Index(order) => {
                if order == Order::Sorted {
                    value.sort_all_objects();
                }
                let mut text = String::new();
                write_string(key, &mut text);
                text += ": ";
                write_value(&value, "\n    ", &mut text);
                text
            }
        };
        Self {
            key: key.to_owned(),
            text,
        }
    }
}

impl Pairs<'_> {
    /// In the order that the document wants.
    fn sorted(mut self) -> Self {
        if self.document != Document::Index(Order::AsTheyAre) {
            let mut pairs = std::mem::take(&mut self.pairs);
            // What could not be read was refused before.
            pairs.sort_by(|a, b| self.key(a).cmp(&self.key(b)));
            self.pairs = pairs;
        }
        self
    }

    fn key(&self, pair: &Pair) -> Cow<'_, str> {
        match pair {
            Pair::Old(span) => match span.read(self.json, self.document) {
                Ok((key, _)) => key,
                Err(_) => Cow::default(),
            },
            Pair::New(at) => {
                let new = self.new.get(*at as usize);
                new.map_or(Cow::default(), |new| Cow::Borrowed(&*new.key))
            }
        }
    }

    fn write(&self, text: &mut String) {
        let (mut before, between, end) = match self.document {
            Document::Header => ("{", ",", "}"),
            Document::Index(_) => ("{\n    ", ",\n    ", "\n  }"),
        };
        for pair in &self.pairs {
            *text += before;
            *text += match pair {
                Pair::Old(span) => span.text(self.json),
                Pair::New(at) => {
                    let new = self.new.get(*at as usize);
                    new.map_or("", |new| &new.text)
                }
            };
            before = between;
        }
        *text += match self.pairs.is_empty() {
            true => "{}",
            false => end,
        };
    }
}

#[cfg(test)]
mod tests;
