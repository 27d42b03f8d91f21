use std::collections::BTreeSet;

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Map, json};

use super::Order::{AsTheyAre, Sorted};
use super::*;
use crate::format::python_json::tests::python_json;

const HEADER: Document = Document::Header;

#[rstest]
#[case::first("{}", &[("k", Some("v"))], r#"{"__metadata__":{"k":"v"}}"#)]
#[case::before_others(r#"{"a":{ }}"#, &[("k", Some("\n"))], r#"{"__metadata__":{"k":"\n"},"a":{ }}"#)]
#[case::sorted(r#"{"__metadata__":{"m":"","b":""}}"#, &[("c", Some(""))], r#"{"__metadata__":{"b":"","c":"","m":""}}"#)]
#[case::between(r#"{ "a":1 , "__metadata__" : {"k" : "v"} , "b":2 }"#, &[("j", Some("w"))], r#"{"__metadata__":{"j":"w","k" : "v"},"a":1,"b":2}"#)]
#[case::last(r#"{"a":1,"__metadata__":{"k":"v"}}"#, &[("k", Some("w"))], r#"{"__metadata__":{"k":"w"},"a":1}"#)]
#[case::emptied(r#"{"a":1,"__metadata__":{"k":"v"},"b":2}"#, &[("k", None)], r#"{"a":1,"b":2}"#)]
#[case::nothing_is_left(r#"{"__metadata__":{"k":"v"}}"#, &[("k", None)], "{}")]
#[case::null(r#"{"__metadata__":null,"a":1}"#, &[("k", Some("v"))], r#"{"__metadata__":{"k":"v"},"a":1}"#)]
#[case::the_last_change_counts(r#"{}"#, &[("k", Some("v")), ("k", None), ("k", Some("w"))], r#"{"__metadata__":{"k":"w"}}"#)]
#[case::numbers_are_text(r#"{}"#, &[("k", Some("1"))], r#"{"__metadata__":{"k":"1"}}"#)]
#[case::escapes(r#"{"__metadata__":{"\u006b":"v"}}"#, &[("k", Some("w"))], r#"{"__metadata__":{"k":"w"}}"#)]
fn headers_are_edited_by_spans(
    #[case] json: &str,
    #[case] changes: &[Change<'_>],
    #[case] expected: &str,
) {
    assert_eq!(
        with_metadata(json, HEADER, changes).unwrap().unwrap(),
        expected
    );
}

#[rstest]
#[case::in_place(r#"{"metadata": {"b": 1, "a": "x"}, "weight_map":{}}"#, AsTheyAre, &[("b", Some("2")), ("c", Some("3"))],
    "{\"metadata\": {\n    \"b\": 2,\n    \"a\": \"x\",\n    \"c\": \"3\"\n  }, \"weight_map\":{}}")]
#[case::sorted(r#"{"weight_map":{}, "metadata":{"b":[1],"a":"x"}}"#, Sorted, &[("aa", Some("é"))],
    "{\"weight_map\":{}, \"metadata\":{\n    \"a\":\"x\",\n    \"aa\": \"\\u00e9\",\n    \"b\":[1]\n  }}")]
#[case::missing("{\n  \"weight_map\": {}\n}", AsTheyAre, &[("k", Some("v"))],
    "{\n  \"weight_map\": {},\n  \"metadata\": {\n    \"k\": \"v\"\n  }\n}")]
#[case::missing_sorted("{\n  \"weight_map\": {}\n}\n", Sorted, &[("k", Some("v"))],
    "{\n  \"metadata\": {\n    \"k\": \"v\"\n  },\n  \"weight_map\": {}\n}\n")]
#[case::emptied(r#"{"metadata":{"k":1},"weight_map":{}}"#, Sorted, &[("k", None)], r#"{"metadata":{},"weight_map":{}}"#)]
#[case::not_an_object(r#"{"metadata":[{"k":1}],"weight_map":{}}"#, AsTheyAre, &[("k", Some("v"))],
    "{\"metadata\":{\n    \"k\": \"v\"\n  },\"weight_map\":{}}")]
#[case::text_stays_text(r#"{"metadata":{"k":"1"}}"#, Sorted, &[("k", Some("2"))], "{\"metadata\":{\n    \"k\": \"2\"\n  }}")]
#[case::what_is_no_json_is_text(r#"{"metadata":{"k":1}}"#, Sorted, &[("k", Some("x"))], "{\"metadata\":{\n    \"k\": \"x\"\n  }}")]
fn indexes_are_edited_by_spans(
    #[case] json: &str,
    #[case] order: Order,
    #[case] changes: &[Change<'_>],
    #[case] expected: &str,
) {
    let document = Document::Index(order);
    assert_eq!(
        with_metadata(json, document, changes).unwrap().unwrap(),
        expected
    );
}

#[rstest]
#[case(r#"{"__metadata__":{"b":"","a":"1"}}"#, HEADER, &[("a", Some("1"))])]
#[case(r#"{"__metadata__":{}}"#, HEADER, &[("a", None)])]
#[case(r#"{"a":1}"#, HEADER, &[("a", None)])]
#[case(r#"{"metadata":{"a":1.0}}"#, Document::Index(Sorted), &[("a", Some("1.0"))])]
#[case(r#"{"metadata":{"a":1}}"#, Document::Index(AsTheyAre), &[("a", Some("2")), ("a", Some("1"))])]
#[case(r#"{"metadata":null}"#, Document::Index(AsTheyAre), &[("a", None)])]
fn what_it_says_already_is_no_change(
    #[case] json: &str,
    #[case] document: Document,
    #[case] changes: &[Change<'_>],
) {
    assert_eq!(with_metadata(json, document, changes).unwrap(), None);
}

/// The same by a tree.
fn naive(mut tree: Map<String, Value>, document: Document, changes: &[Change<'_>]) -> String {
    let old = tree.get(document.key()).and_then(Value::as_object).cloned();
    let mut metadata = old.unwrap_or_default();
    // What goes and comes again keeps its place.
    let mut gone = BTreeSet::new();
    for &(key, value) in changes {
        let Some(text) = value else {
            gone.insert(key);
            continue;
        };
        let was_gone = gone.remove(key);
        let old = metadata.get(key).filter(|_| !was_gone);
        let stays = old.is_some_and(|old| !old.is_string());
        let parsed = serde_json::from_str(text).ok().filter(|_| stays);
        metadata.insert(key.to_owned(), parsed.unwrap_or_else(|| Value::from(text)));
    }
    for key in gone {
        metadata.shift_remove(key);
    }
    match document {
        Document::Header => {
            tree.shift_remove("__metadata__");
            metadata.sort_keys();
            let first = [("__metadata__".to_owned(), Value::Object(metadata))];
            let first = first.into_iter().filter(|(_, value)| *value != json!({}));
            Value::Object(first.chain(tree).collect()).to_string()
        }
        Document::Index(order) => {
            tree.insert("metadata".to_owned(), Value::Object(metadata));
            let mut index = Value::Object(tree);
            match order {
                Sorted => {
                    index.sort_all_objects();
                    python_json(&index) + "\n"
                }
                AsTheyAre => python_json(&index),
            }
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<String>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        Just(json!([1, {"b": 2, "a": []}])),
        Just(Value::Null),
    ]
}

proptest! {
    #[test]
    fn spans_give_what_a_tree_gives(
        before in prop::collection::vec(("[a-z\u{e9}\"]{0,3}", value()), 0..8),
        changes in prop::collection::vec(("[a-z\u{e9}\"]{0,2}", prop::option::of("[0-9x]{0,2}")), 0..6),
        others in prop::collection::vec(("[a-z]{0,3}", value()), 0..4),
        sorted in any::<bool>(),
    ) {
        let changes: Vec<Change<'_>> = changes.iter().map(|(key, value)| (&**key, value.as_deref())).collect();
        let texts = |value: &Value| Value::from(value.as_str().unwrap_or_default());
        let strings: Map<String, Value> = before.iter().map(|(key, value)| (key.clone(), texts(value))).collect();
        let mut header: Map<String, Value> = others.iter().cloned().collect();
        if !strings.is_empty() {
            header.insert("__metadata__".to_owned(), Value::Object(strings));
        }
        let json = Value::Object(header.clone()).to_string();
        let expected = naive(header.clone(), HEADER, &changes);
        let edited = with_metadata(&json, HEADER, &changes).unwrap();
        let unsorted: Value = serde_json::from_str(&json).unwrap();
        match edited {
            Some(edited) => prop_assert_eq!(edited, expected),
            None => prop_assert_eq!(unsorted, serde_json::from_str::<Value>(&expected).unwrap()),
        }

        let order = if sorted { Sorted } else { AsTheyAre };
        let document = Document::Index(order);
        let metadata: Map<String, Value> = before.into_iter().collect();
        let index = Map::from_iter([("metadata".to_owned(), Value::Object(metadata)), ("weight_map".to_owned(), json!({"a": "b"}))]);
        let json = naive(index.clone(), document, &[]);
        let expected = naive(index, document, &changes);
        let edited = with_metadata(&json, document, &changes).unwrap();
        prop_assert_eq!(edited.unwrap_or(json), expected);
    }
}
