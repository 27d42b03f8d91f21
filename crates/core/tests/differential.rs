//! Headers that nobody wrote by hand: what the reference writes and what becomes of it under
//! mutation must mean the same to us, to the reference and to a naive twin.

mod common;

use std::collections::{BTreeMap, HashMap};

use common::{Contents, PROFILES, Tensor, file, ours, reference, same_verdict};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use safeshard_core::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        // A failure becomes a vector, not a seed.
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

// ---- valid headers

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn what_the_reference_writes_is_read_as_it_was_meant(checkpoint in checkpoint()) {
        let file = checkpoint.written_by_the_reference();
        let theirs = reference(&file).unwrap();
        prop_assert_eq!(&checkpoint.tensors(), &by_name(&theirs));
        prop_assert_eq!(&checkpoint.metadata, &theirs.metadata);
        prop_assert_eq!(&naive(&file), &theirs);
        for profile in PROFILES {
            prop_assert_eq!(&ours(&file, profile).unwrap(), &theirs);
        }
    }

    #[test]
    fn neither_order_nor_spaces_change_the_meaning(
        checkpoint in checkpoint(),
        order in any::<u64>(),
        pretty in any::<bool>(),
    ) {
        let written = checkpoint.written_by_the_reference();
        let (json, data) = split(&written);
        let mut members: Vec<_> = parse_object(json).into_iter().collect();
        let mut seed = order;
        members.sort_by_cached_key(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 32
        });
        let shuffled: Map<String, Value> = members.into_iter().collect();
        let json = if pretty {
            serde_json::to_vec_pretty(&shuffled).unwrap()
        } else {
            serde_json::to_vec(&shuffled).unwrap()
        };
        let file = file(&json, data.len());
        let expected = reference(&written).unwrap();
        prop_assert_eq!(&naive(&file), &expected);
        for profile in PROFILES {
            prop_assert_eq!(&ours(&file, profile).unwrap(), &expected);
        }
    }

    #[test]
    fn no_prefix_of_a_file_is_a_file(checkpoint in checkpoint()) {
        let file = checkpoint.written_by_the_reference();
        for len in 0..file.len() {
            for profile in PROFILES {
                prop_assert!(ours(&file[..len], profile).is_err(), "{len} of {}", file.len());
            }
        }
    }
}

// ---- broken headers

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn mutated_headers_get_the_references_verdict(
        base in select(BASES),
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let mut pieces = pieces(base.as_bytes());
        for mutation in mutations {
            mutation.apply(&mut pieces);
        }
        same_verdict(&file(&pieces.concat(), BASE_DATA));
    }
}

#[test]
fn every_flipped_bit_gets_the_references_verdict() {
    for base in BASES {
        let file = file(base.as_bytes(), BASE_DATA);
        for bit in 0..file.len() * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            same_verdict(&flipped);
        }
    }
}

/// Every construct that the format or the reference knows, over so many bytes of data.
const BASES: &[&str] = &[
    r#"{"a":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]},"b":{"dtype":"I8","shape":[],"data_offsets":[6,7]},"c":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[7,8]}}"#,
    r#"{"__metadata__":{"format":"pt","a":""},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  "#,
    r#" {"a":["BF16",[4],[0,8]],"b":{"dtype":{"F4":null},"shape":[0],"data_offsets":[8,8]},"__metadata__":null}"#,
    r#"{"a":{"x":[1.5,-0,{"y":[null,true]}],"dtype":"F4","shape":[16],"data_offsets":[0,8]},"\u0062\n":{"dtype":"U8","shape":[9223372036854775808,2,0],"data_offsets":[8,8]}}"#,
    r#"{"a":{"shape":[0,9223372036854775808],"data_offsets":[0,0],"dtype":"U64"},"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8],"z":"\ud83d\ude00"}}"#,
];
const BASE_DATA: usize = 8;

/// What is put where something else stood.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    " ",
    "\t",
    "\n",
    "\0",
    "\\",
    "null",
    "true",
    "{}",
    "[]",
    "{\"U8\":null}",
    "\"a\"",
    "\"w\"",
    "\"\\u0061\"",
    "\"\\ud800\"",
    "\"__metadata__\"",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"x\"",
    "\"U8\"",
    "\"F4\"",
    "\"F6_E2M3\"",
    "\"F64\"",
    "\"I8\"",
    "\"u8\"",
    "0",
    "1",
    "2",
    "7",
    "8",
    "16",
    "-0",
    "-1",
    "01",
    "1.0",
    "1e0",
    "1e400",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "[0,8]",
    "[8,8]",
    "[0,0]",
    "\u{feff}",
    "é",
];

#[derive(Clone, Debug)]
enum Mutation {
    Swap(Index, Index),
    Copy(Index, Index),
    Remove(Index),
    Insert(Index, &'static str),
    Replace(Index, &'static str),
    FlipBit(Index, u8),
    InsertByte(Index, u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        (at(), at()).prop_map(|(a, b)| Mutation::Swap(a, b)),
        (at(), at()).prop_map(|(a, b)| Mutation::Copy(a, b)),
        at().prop_map(Mutation::Remove),
        (at(), select(PIECES)).prop_map(|(a, piece)| Mutation::Insert(a, piece)),
        (at(), select(PIECES)).prop_map(|(a, piece)| Mutation::Replace(a, piece)),
        (at(), 0..8u8).prop_map(|(a, bit)| Mutation::FlipBit(a, bit)),
        (at(), any::<u8>()).prop_map(|(a, byte)| Mutation::InsertByte(a, byte)),
    ]
}

impl Mutation {
    fn apply(self, pieces: &mut Vec<Vec<u8>>) {
        // So that no mutation meets an empty header.
        pieces.push(b" ".to_vec());
        let len = pieces.len();
        match self {
            Self::Swap(a, b) => pieces.swap(a.index(len), b.index(len)),
            Self::Copy(a, b) => pieces.insert(b.index(len), pieces[a.index(len)].clone()),
            Self::Remove(a) => drop(pieces.remove(a.index(len))),
            Self::Insert(a, piece) => pieces.insert(a.index(len), piece.into()),
            Self::Replace(a, piece) => pieces[a.index(len)] = piece.into(),
            Self::FlipBit(a, bit) => pieces[a.index(len)][0] ^= 1 << bit,
            Self::InsertByte(a, byte) => pieces[a.index(len)].push(byte),
        }
    }
}

/// Strings, words and numbers, and single bytes of everything else.
fn pieces(json: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let (mut in_string, mut in_word) = (false, false);
    for &byte in json {
        let word = byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        match pieces.last_mut() {
            Some(last) if in_string || (in_word && word) => last.push(byte),
            _ => pieces.push(vec![byte]),
        }
        in_string ^= byte == b'"';
        in_word = word;
    }
    pieces
}

// ---- a checkpoint to write

#[derive(Clone, Debug)]
struct Checkpoint {
    tensors: BTreeMap<String, (Dtype, Vec<u64>)>,
    metadata: BTreeMap<String, String>,
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let tensor = (select(Dtype::ALL), prop::collection::vec(0..4u64, 0..4));
    let tensor = tensor.prop_map(|(dtype, mut shape)| {
        if dtype.size().is_none() {
            shape.push(4); // whole bytes for any number of bits
        }
        (dtype, shape)
    });
    let tensors = prop::collection::btree_map(text(), tensor, 0..8);
    let metadata = prop::collection::btree_map(text(), text(), 0..4);
    (tensors, metadata).prop_map(|(tensors, metadata)| Checkpoint { tensors, metadata })
}

fn text() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        "[a-z]{1,3}\\.[0-9]\\.weight",
        "[\"\\\\/\n\t\0{}:,é😀]{0,6}",
        any::<String>()
    ];
    text.prop_filter("a reserved name", |text| text != "__metadata__")
}

impl Checkpoint {
    fn written_by_the_reference(&self) -> Vec<u8> {
        let data = vec![0; 8 << 10];
        let views = self.tensors.iter().map(|(name, (dtype, shape))| {
            let len = dtype.byte_len(shape).unwrap() as usize;
            let dtype = serde_json::from_value(dtype.name().into()).unwrap();
            let shape = shape.iter().map(|&dim| dim as usize).collect();
            (name, TensorView::new(dtype, shape, &data[..len]).unwrap())
        });
        let metadata: HashMap<_, _> = self.metadata.clone().into_iter().collect();
        // Of no tensors and an empty map, the reference writes `{}"__metadata__":{}`.
        let metadata = (!metadata.is_empty()).then_some(metadata);
        safetensors::serialize(views, metadata).unwrap()
    }

    fn tensors(&self) -> BTreeMap<String, (String, Vec<u64>)> {
        let tensors = self.tensors.iter();
        tensors
            .map(|(name, (dtype, shape))| (name.clone(), (dtype.name().to_owned(), shape.clone())))
            .collect()
    }
}

fn by_name(contents: &Contents) -> BTreeMap<String, (String, Vec<u64>)> {
    let tensors = contents.tensors.iter().cloned();
    tensors
        .map(|tensor| (tensor.name, (tensor.dtype, tensor.shape)))
        .collect()
}

// ---- the naive twin: a valid header, read the obvious way

fn naive(file: &[u8]) -> Contents {
    let (json, data) = split(file);
    let mut metadata = BTreeMap::new();
    let mut tensors = Vec::new();
    for (name, value) in parse_object(json) {
        if name == "__metadata__" {
            let pairs = value.as_object().unwrap().iter();
            metadata = pairs
                .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
                .collect();
            continue;
        }
        let numbers = |field: &str| -> Vec<u64> {
            let array = value[field].as_array().unwrap().iter();
            array.map(|number| number.as_u64().unwrap()).collect()
        };
        let [start, end] = numbers("data_offsets").try_into().unwrap();
        tensors.push(Tensor {
            offsets: (start, end),
            name: name.clone(),
            dtype: value["dtype"].as_str().unwrap().to_owned(),
            shape: numbers("shape"),
        });
    }
    tensors.sort();
    let mut end = 0;
    for tensor in &tensors {
        let elements: u64 = tensor.shape.iter().product();
        let bits = Dtype::from_name(&tensor.dtype).unwrap().bits();
        assert_eq!(tensor.offsets.0, end);
        end += elements * bits / 8;
        assert_eq!(tensor.offsets.1, end);
    }
    assert_eq!(end, data.len() as u64);
    Contents { tensors, metadata }
}

fn split(file: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = file.split_first_chunk().unwrap();
    rest.split_at(u64::from_le_bytes(*length) as usize)
}

fn parse_object(json: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(json).unwrap()
}
