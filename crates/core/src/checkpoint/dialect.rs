//! What an index says, in the spelling of the library that it is to look like, and what goes into a
//! file's header instead.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use serde_json::Value;

use crate::checkpoint::Index;
use crate::error::{Code, Error, Result};
use crate::format::python_json::{write_string, write_value};
use crate::limits::Limits;

/// Whose spelling of the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// transformers and accelerate: sorted by name, a newline at the end.
    #[default]
    Transformers,
    /// huggingface_hub: in the order of the shards; metadata goes into the index.
    Hub,
    /// torch's distributed checkpoints: in the order given, `total_size` only.
    Dcp,
}

/// Whether a checkpoint is one file or several with an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Single,
    Sharded,
}

/// What an index is about.
#[derive(Debug)]
pub(crate) struct IndexContents<'a, N = Vec<&'a str>> {
    /// Bytes of all stored tensors.
    pub(crate) total_size: u64,
    /// File names, and the tensors of each in the order given.
    pub(crate) shards: Vec<(String, N)>,
    /// The user's metadata; the index takes what [`header_metadata`] leaves.
    pub(crate) metadata: &'a [(String, String)],
    /// The user's metadata for the index.
    pub(crate) extra: &'a [(String, Value)],
    /// Tied tensors, `(dropped, kept)`.
    pub(crate) aliases: &'a [(String, String)],
}

/// Names of tensors, each of another one in all lists of an index.
pub(crate) trait NameList {
    fn len(&self) -> usize;

    fn name(&self, at: usize) -> Option<&str>;
}

impl NameList for Vec<&str> {
    fn len(&self) -> usize {
        self.len()
    }

    fn name(&self, at: usize) -> Option<&str> {
        self.get(at).copied()
    }
}

/// The bytes of an index file: for what the dialect's library can express, its very bytes.
///
/// Memory: the text, and 12 bytes a tensor.
///
/// # Errors
/// [`Code::MetadataClash`], and what our own reader would refuse.
pub(crate) fn index_bytes<N: NameList>(
    dialect: Dialect,
    contents: &IndexContents<'_, N>,
) -> Result<Vec<u8>> {
    let mut metadata = index_metadata(dialect, contents)?;
    // Tensors are counted through all files: there are fewer than 2^32 of them.
    let mut count = 0;
    let starts = contents.shards.iter().map(|(_, names)| {
        let start = count;
        count += names.len() as u32;
        start
    });
    let starts: Vec<u32> = starts.collect();
    let mut places: Vec<u32> = (0..count).collect();
    let entry = |place: &u32| {
        let shard = starts.partition_point(|start| start <= place);
        let shard = shard.checked_sub(1)?;
        let (file, names) = contents.shards.get(shard)?;
        let at = place - starts.get(shard)?;
        Some((names.name(at as usize)?, file.as_str()))
    };
    if dialect == Dialect::Transformers {
        metadata.sort_unstable_by_key(|(key, _)| *key);
        // Stable, so that what is sorted in each file is only merged.
        let name = |place: &u32| entry(place).map(|(name, _)| name);
        places.sort_by(|a, b| name(a).cmp(&name(b)));
    }
    let entries = places.iter().filter_map(entry);
    let sizes = entries.clone().map(|(name, file)| name.len() + file.len());
    // Quotes, colons, commas, indentation.
    let room = sizes.sum::<usize>() + 12 * places.len();
    let mut text = String::new();
    text += "{\n  \"metadata\": {";
    let mut line = "\n    ";
    for (key, value) in &metadata {
        text += line;
        write_string(key, &mut text);
        text += ": ";
        value.write(dialect, &mut text);
        line = ",\n    ";
    }
    text += "\n  }";
    drop(metadata);
    text.reserve_exact(room + 64);
    text += ",\n  \"weight_map\": {";
    let mut line = "\n    ";
    for (name, file) in entries {
        text += line;
        write_string(name, &mut text);
        text += ": ";
        write_string(file, &mut text);
        line = ",\n    ";
    }
    text += match places.is_empty() {
        true => "}\n}",
        false => "\n  }\n}",
    };
    if dialect == Dialect::Transformers {
        text += "\n";
    }
    drop(places);
    check_readable(text.as_bytes())?;
    Ok(text.into_bytes())
}

/// What an index says about itself, in the order in which it is given.
///
/// # Errors
/// [`Code::MetadataClash`].
fn index_metadata<'a, N>(
    dialect: Dialect,
    contents: &'a IndexContents<'_, N>,
) -> Result<Vec<(&'a str, Entry<'a>)>> {
    let text = |(key, value): &'a (String, String)| (&**key, Entry::Text(value));
    let users = contents.metadata.iter();
    let users = users.filter(|(key, _)| goes_into_index(dialect, Layout::Sharded, key));
    let extra = contents.extra.iter();
    let entries = [("total_size", Entry::Size(contents.total_size))]
        .into_iter()
        .chain(users.map(text))
        .chain(extra.map(|(key, value)| (&**key, Entry::Value(value))))
        .chain(contents.aliases.iter().map(text));
    let mut positions = HashMap::new();
    let mut metadata: Vec<(&str, Entry<'_>)> = Vec::new();
    for (key, value) in entries {
        let position = *positions.entry(key).or_insert(metadata.len());
        match metadata.get(position) {
            None => metadata.push((key, value)),
            Some((_, before)) => check_same(key, Some(before.to_value()), &value.to_value())?,
        }
    }
    Ok(metadata)
}

/// A value of an index's metadata.
#[derive(Clone, Copy)]
enum Entry<'a> {
    Size(u64),
    Text(&'a str),
    Value(&'a Value),
}

impl Entry<'_> {
    fn to_value(self) -> Value {
        match self {
            Self::Size(size) => Value::from(size),
            Self::Text(text) => Value::from(text),
            Self::Value(value) => value.clone(),
        }
    }

    fn write(self, dialect: Dialect, text: &mut String) {
        match self {
            Self::Text(string) => write_string(string, text),
            Self::Value(Value::String(string)) => write_string(string, text),
            other => {
                let mut value = other.to_value();
                if dialect == Dialect::Transformers {
                    value.sort_all_objects();
                }
                write_value(&value, "\n    ", text);
            }
        }
    }
}

/// `__metadata__` of every file: the user's metadata and `format: pt`, which every reader in Python
/// wants to see; of a single file also what an index would have said of tied tensors.
///
/// # Errors
/// [`Code::MetadataClash`].
pub(crate) fn header_metadata<'m>(
    dialect: Dialect,
    metadata: &'m [(String, String)],
    aliases: &'m [(String, String)],
    layout: Layout,
) -> Result<BTreeMap<&'m str, &'m str>> {
    let users = metadata.iter();
    let users = users.filter(|(key, _)| !goes_into_index(dialect, layout, key));
    let format = match metadata.iter().any(|(key, _)| key == "format") {
        true => None,
        false => Some(("format", "pt")),
    };
    let borrowed = |(key, value): &'m (String, String)| (&**key, &**value);
    let aliases = match layout {
        Layout::Single => aliases,
        Layout::Sharded => &[],
    };
    let mut header = BTreeMap::new();
    let entries = users.map(borrowed).chain(format);
    for (key, value) in entries.chain(aliases.iter().map(borrowed)) {
        let before = header.insert(key, value);
        check_same(key, before, &value)?;
    }
    Ok(header)
}

/// Where a key of the user's goes. `format` says how to read a file, whatever the dialect.
fn goes_into_index(dialect: Dialect, layout: Layout, key: &str) -> bool {
    dialect == Dialect::Hub && layout == Layout::Sharded && key != "format"
}

/// Checks that nothing was overwritten.
fn check_same<V: PartialEq + Display>(key: &str, before: Option<V>, value: &V) -> Result<()> {
    match before.filter(|before| before != value) {
        None => Ok(()),
        Some(before) => Err(Error::new(Code::MetadataClash)
            .found(format_args!("`{key}` as `{before}` and as `{value}`"))),
    }
}

/// Checks that whoever opens the index with default limits can read it, by reading it.
fn check_readable(bytes: &[u8]) -> Result<()> {
    Index::check(bytes, &Limits::default())
        .map_err(|error| error.help("readers would refuse the index: it is not written"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::Dialect::{Dcp, Hub, Transformers};
    use super::Layout::{Sharded, Single};
    use super::*;

    type Pairs = [(&'static str, &'static str)];

    fn owned<V: From<&'static str>>(pairs: &Pairs) -> Vec<(String, V)> {
        let pairs = pairs.iter();
        pairs
            .map(|&(key, value)| (key.to_owned(), value.into()))
            .collect()
    }

    fn index(dialect: Dialect, metadata: &Pairs, extra: &Pairs, aliases: &Pairs) -> Result<String> {
        let contents = IndexContents {
            total_size: 12,
            shards: vec![
                ("2.safetensors".into(), vec!["z", "b"]),
                ("1.safetensors".into(), vec!["a"]),
            ],
            metadata: &owned(metadata),
            extra: &owned(extra),
            aliases: &owned(aliases),
        };
        index_bytes(dialect, &contents).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn header(
        dialect: Dialect,
        layout: Layout,
        metadata: &Pairs,
        aliases: &Pairs,
    ) -> Result<String> {
        let (metadata, aliases) = (owned(metadata), owned(aliases));
        let header = header_metadata(dialect, &metadata, &aliases, layout)?;
        let pairs = header.iter().map(|(key, value)| format!("{key}={value}"));
        Ok(pairs.collect::<Vec<_>>().join(" "))
    }

    // Whole files are compared with the libraries' own in `super::super::oracle`.
    #[rstest]
    #[case(Transformers, &["a", "c", "e", "total_size", "y"], &["a", "b", "z"], "}\n")]
    #[case(Hub, &["total_size", "u", "e", "a", "y", "c"], &["z", "b", "a"], "}")]
    #[case(Dcp, &["total_size", "e", "a", "y", "c"], &["z", "b", "a"], "}")]
    fn each_dialect_has_its_keys_their_order_and_its_end(
        #[case] dialect: Dialect,
        #[case] metadata: &[&str],
        #[case] tensors: &[&str],
        #[case] end: &str,
    ) {
        let extra = [("e", "1"), ("a", "2")];
        let text = index(dialect, &[("u", "v")], &extra, &[("y", "b"), ("c", "z")]).unwrap();
        let index: Value = serde_json::from_str(&text).unwrap();
        let keys = |of: &str| {
            index[of]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(keys("metadata"), metadata);
        assert_eq!(keys("weight_map"), tensors);
        assert_eq!(text.rsplit_once("  ").unwrap().1, format!("}}\n{end}"));
        assert_eq!(index["metadata"]["total_size"], json!(12));
        assert_eq!(index["weight_map"]["a"], json!("1.safetensors"));
    }

    #[rstest]
    #[case(Transformers, Single, "b=a format=pt u=v")]
    #[case(Transformers, Sharded, "format=pt u=v")]
    #[case(Dcp, Single, "b=a format=pt u=v")]
    #[case(Dcp, Sharded, "format=pt u=v")]
    #[case(Hub, Single, "b=a format=pt u=v")]
    #[case(Hub, Sharded, "format=pt")]
    fn headers_have_what_the_index_does_not(
        #[case] dialect: Dialect,
        #[case] layout: Layout,
        #[case] expected: &str,
    ) {
        assert_eq!(
            header(dialect, layout, &[("u", "v")], &[("b", "a")]).unwrap(),
            expected
        );
    }

    #[test]
    fn a_format_of_the_users_goes_into_headers_whatever_the_dialect() {
        let metadata = [("format", "np")];
        for dialect in [Transformers, Hub, Dcp] {
            for layout in [Single, Sharded] {
                assert_eq!(
                    header(dialect, layout, &metadata, &[]).unwrap(),
                    "format=np"
                );
            }
            assert!(!index(dialect, &metadata, &[], &[]).unwrap().contains("np"));
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let code = |result: Result<String>| result.unwrap_err().code();
        let clash = Code::MetadataClash;
        let alias = [("y", "b")];
        assert_eq!(code(index(Hub, &[("y", "x")], &[], &alias)), clash);
        assert_eq!(code(index(Dcp, &[], &[("y", "x")], &alias)), clash);
        assert_eq!(code(index(Hub, &[("k", "1"), ("k", "2")], &[], &[])), clash);
        assert_eq!(code(index(Hub, &[("k", "1")], &[("k", "2")], &[])), clash);
        assert_eq!(code(index(Hub, &[], &[], &[("total_size", "b")])), clash);
        // Twelve bytes, but as text.
        assert_eq!(
            code(index(Transformers, &[], &[("total_size", "12")], &[])),
            clash
        );
        assert_eq!(code(header(Dcp, Single, &[("y", "x")], &alias)), clash);
        assert_eq!(
            code(header(Dcp, Sharded, &[("k", "1"), ("k", "2")], &[])),
            clash
        );
        assert_eq!(code(header(Hub, Single, &[], &[("format", "b")])), clash);
        // Elsewhere, or the same again.
        assert!(index(Transformers, &[("y", "x")], &[], &alias).is_ok());
        assert!(header(Hub, Sharded, &[("y", "x")], &alias).is_ok());
        assert!(index(Hub, &[("y", "b")], &[("y", "b")], &alias).is_ok());
        assert_eq!(
            header(Hub, Single, &[("y", "b")], &alias).unwrap(),
            "format=pt y=b"
        );
    }

    #[test]
    fn what_our_own_reader_would_refuse_is_not_written() {
        let contents = |file: &str| IndexContents {
            total_size: 1,
            shards: vec![(file.to_owned(), vec!["a"])],
            metadata: &[],
            extra: &[],
            aliases: &[],
        };
        assert!(index_bytes(Hub, &contents("a.safetensors")).is_ok());
        let error = index_bytes(Hub, &contents("../a.safetensors")).unwrap_err();
        assert_eq!(error.code(), Code::ShardName);
    }
}
