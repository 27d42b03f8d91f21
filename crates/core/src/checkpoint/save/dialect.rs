//! What an index says, in the spelling of the library that it is to look like, and what goes into a
//! file's header instead.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use serde_json::{Map, Value};

use super::Dialect;
use crate::checkpoint::Index;
use crate::format::python_json::python_json;
use crate::{Code, Error, Limits, Result};

/// Whether a checkpoint is one file or several with an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Single,
    Sharded,
}

/// What an index is about.
#[derive(Debug)]
pub(crate) struct IndexContents<'a> {
    /// Bytes of all stored tensors.
    pub(crate) total_size: u64,
    /// File names, and the tensors of each in the order given.
    pub(crate) shards: Vec<(String, Vec<&'a str>)>,
    /// The user's metadata; the index takes what [`header_metadata`] leaves.
    pub(crate) metadata: &'a [(String, String)],
    /// The user's metadata for the index.
    pub(crate) extra: &'a [(String, Value)],
    /// Tied tensors, `(dropped, kept)`.
    pub(crate) aliases: &'a [(String, String)],
}

/// The bytes of an index file: for what the dialect's library can express, its very bytes.
///
/// # Errors
/// [`Code::MetadataClash`], and what our own reader would refuse.
pub(crate) fn index_bytes(dialect: Dialect, contents: &IndexContents<'_>) -> Result<Vec<u8>> {
    let text = |(key, value): &(String, String)| (key.clone(), Value::from(value.as_str()));
    let users = contents.metadata.iter();
    let users = users.filter(|(key, _)| goes_into_index(dialect, Layout::Sharded, key));
    let entries = [("total_size".to_owned(), contents.total_size.into())]
        .into_iter()
        .chain(users.map(text))
        .chain(contents.extra.iter().cloned())
        .chain(contents.aliases.iter().map(text));
    let mut metadata = Map::new();
    for (key, value) in entries {
        let before = metadata.insert(key.clone(), value.clone());
        check_same(&key, before, &value)?;
    }

    let weight_map = contents.shards.iter().flat_map(|(file, names)| {
        let names = names.iter();
        names.map(|&name| (name.to_owned(), Value::from(file.as_str())))
    });
    let weight_map = Value::Object(weight_map.collect());
    let mut index = Value::Object(Map::from_iter([
        ("metadata".to_owned(), Value::Object(metadata)),
        ("weight_map".to_owned(), weight_map),
    ]));
    let bytes = match dialect {
        Dialect::Transformers => {
            index.sort_all_objects();
            python_json(&index) + "\n"
        }
        Dialect::Hub | Dialect::Dcp => python_json(&index),
    };
    check_readable(bytes.as_bytes())?;
    Ok(bytes.into_bytes())
}

/// `__metadata__` of every file: the user's metadata and `format: pt`, which every reader in Python
/// wants to see; of a single file also what an index would have said of tied tensors.
///
/// # Errors
/// [`Code::MetadataClash`].
pub(crate) fn header_metadata(
    dialect: Dialect,
    metadata: &[(String, String)],
    aliases: &[(String, String)],
    layout: Layout,
) -> Result<BTreeMap<String, String>> {
    let users = metadata.iter();
    let users = users.filter(|(key, _)| !goes_into_index(dialect, layout, key));
    let format = ("format".to_owned(), "pt".to_owned());
    let format = match metadata.iter().any(|(key, _)| *key == format.0) {
        true => None,
        false => Some(&format),
    };
    let aliases = match layout {
        Layout::Single => aliases,
        Layout::Sharded => &[],
    };
    let mut header = BTreeMap::new();
    for (key, value) in users.chain(format).chain(aliases) {
        let before = header.insert(key.clone(), value.clone());
        check_same(key, before, value)?;
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
    Index::parse(bytes, Path::new(""), &Limits::default())
        .map(drop)
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
        let header = header_metadata(dialect, &owned(metadata), &owned(aliases), layout)?;
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
