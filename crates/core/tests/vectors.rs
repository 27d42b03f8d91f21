//! The conformance suite in `tests/vectors`: one small file a rule, and what every profile says of
//! it. `make_vectors.py` there explains the table.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::{Contents, PROFILES, file, options, ours, reference};
use safeshard_core::{Code, Error, Header, HeaderOptions, Kind, Limits, Prefix, Profile, Result};

/// A zero dimension behind an overflow: empty for us wherever the zero stands, an error for the
/// reference, which multiplies from the left.
const ORDER_INDEPENDENT: [&str; 3] = [
    "huge_between_zero_dims",
    "huge_then_zero_dim",
    "huge_then_zero_dim_small_parts",
];

/// One line of the table, and the file it is about.
struct Vector {
    name: String,
    bytes: Vec<u8>,
    strict: String,
    default: String,
    reference: String,
    the_crate: String,
}

impl Vector {
    fn parse(&self, profile: Profile) -> Result<Contents> {
        ours(&self.bytes, profile)
    }

    fn accepted_by(&self, profile: Profile) -> bool {
        self.parse(profile).is_ok()
    }
}

#[test]
fn every_verdict_is_the_tables() {
    let mut wrong = Vec::new();
    for vector in vectors() {
        for (profile, expected) in [
            (Profile::Strict, &vector.strict),
            (Profile::Default, &vector.default),
            (Profile::Reference, &vector.reference),
        ] {
            let result = vector.parse(profile);
            let found = result.as_ref().map_or_else(|e| e.code().as_str(), |_| "ok");
            if found != expected {
                wrong.push(format!("{} {profile:?}: {result:?}", vector.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_reference_profile_is_the_reference() {
    for vector in vectors() {
        let theirs = reference(&vector.bytes);
        let verdict = if theirs.is_some() { "ok" } else { "refused" };
        assert_eq!(verdict, vector.the_crate, "{}", vector.name);
        let ours = vector.parse(Profile::Reference).ok();
        assert_eq!(ours, theirs, "{}", vector.name);
    }
}

#[test]
fn default_accepts_nothing_that_the_reference_refuses_but_zeros_behind_an_overflow() {
    let beyond: Vec<_> = vectors()
        .filter(|v| v.accepted_by(Profile::Default) && reference(&v.bytes).is_none())
        .map(|vector| vector.name)
        .collect();
    assert_eq!(beyond, ORDER_INDEPENDENT);
}

#[test]
fn profiles_that_accept_a_file_read_the_same_in_it() {
    for vector in vectors() {
        let default = vector.parse(Profile::Default).ok();
        if let Ok(strict) = vector.parse(Profile::Strict) {
            assert_eq!(Some(&strict), default.as_ref(), "{}", vector.name);
        }
        if let (Some(default), Some(theirs)) = (default, reference(&vector.bytes)) {
            assert_eq!(default, theirs, "{}", vector.name);
        }
    }
}

#[test]
fn every_format_code_has_a_vector() {
    let found: BTreeSet<_> = vectors()
        .flat_map(|v| [v.strict, v.default, v.reference])
        .collect();
    // Those of other formats are of files that no safetensors header begins.
    let is_foreign = |code: &Code| {
        let foreign = ["not-weights", "zip-", "pickle-", "torch-", "storage-"];
        foreign.iter().any(|start| code.as_str().starts_with(start))
    };
    let missing: Vec<_> = Code::ALL
        .iter()
        .filter(|code| code.kind() == Kind::Format && !is_foreign(code))
        .filter(|code| !found.contains(code.as_str()))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_table_lists_every_file_and_nothing_else() {
    let listed: BTreeSet<_> = vectors().map(|vector| vector.name).collect();
    let present: BTreeSet<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "safetensors"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(listed, present);
}

#[test]
fn errors_name_the_byte_and_the_tensor() {
    // The byte is where the bytes of the third column are last found in the file.
    let (strict, default) = (Profile::Strict, Profile::Default);
    let table: [(&str, Profile, &[u8], Option<&str>); _] = [
        ("prefix_limit_plus_1", default, b"\x01\xe1\xf5\x05", None),
        ("header_truncated_by_1", default, b"", None),
        ("utf8_invalid_byte", default, b"\xff", None),
        ("lead_space", strict, b" {", None),
        ("padding_tab", strict, b"\t", None),
        ("padding_text", default, b"x\0\x01", None),
        ("json_control_character", default, b"\x01\":", None),
        ("json_trailing_comma", default, b"}\0\x01", None),
        ("json_missing_comma", default, b"\"v\"", None),
        ("meta_value_number", default, b"1}", None),
        ("meta_twice_apart", default, b"\"__metadata__\"", None),
        ("meta_key_twice", default, b"\"__metadata__\"", None),
        ("entry_null", default, b"null", Some("w")),
        ("entry_no_shape", default, b"\"w\"", Some("w")),
        ("entry_shape_twice", default, b"\"shape\"", Some("w")),
        ("unknown_field", strict, b"\"strides\"", Some("w")),
        ("unknown_field_twice", default, b"\"x\"", Some("w")),
        ("unknown_field_twice_inside", default, b"\"a\"", Some("w")),
        ("depth_128_array", default, b"[]", Some("w")),
        ("dtype_unknown_lower_case", default, b"\"u8\"", Some("w")),
        ("dim_float", default, b"2.0", Some("w")),
        ("offset_negative", default, b"-2", Some("w")),
        ("overflow_elements", default, b"\"w\"", Some("w")),
        ("mismatch_too_small", default, b"\"w\"", Some("w")),
        ("remainder_f4_1_short", default, b"\"w\"", Some("w")),
        ("dup_tensor_same", default, b"\"w\"", Some("w")),
        ("reversed", default, b"\"a\"", Some("a")),
        ("hole_of_one_byte", default, b"\"b\"", Some("b")),
        ("overlap_listed_first", default, b"\"a\"", Some("a")),
        ("truncated_by_1", default, b"", None),
        ("trailing_1", default, b"\x02", None),
    ];
    for (name, profile, place, tensor) in table {
        let bytes = read(name);
        let error = ours(&bytes, profile).unwrap_err();
        let starts_here = |at: &usize| bytes[*at..].starts_with(place);
        let offset = (0..=bytes.len()).rev().find(starts_here).unwrap();
        let found = (error.offset(), error.tensor());
        assert_eq!(found, (Some(offset as u64), tensor), "{name}: {error}");
    }
}

#[test]
fn foreign_files_are_named() {
    for (name, word) in [
        ("foreign_zip", "zip"),
        ("foreign_pickle_2", "pickle"),
        ("foreign_torch_legacy", "pickle"),
        ("foreign_gguf", "GGUF"),
        ("foreign_npy", "npy"),
        ("foreign_gzip", "gzip"),
        ("foreign_hdf5", "HDF5"),
        ("foreign_html", "web page"),
        ("foreign_git_lfs", "git lfs pull"),
    ] {
        let error = ours(&read(name), Profile::Default).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(word), "{name}: {message}");
    }
}

#[test]
fn a_header_parses_without_the_file_and_in_two_steps() {
    let known_only_from_the_length = [
        Code::FileTruncated,
        Code::TrailingBytes,
        Code::HeaderTruncated,
        // Without the whole start of the file, its format cannot be told.
        Code::NotSafetensors,
    ];
    for vector in vectors() {
        for profile in PROFILES {
            let options = options(profile);
            let whole = vector.parse(profile);
            let code = whole.as_ref().err().map(Error::code);
            if code.is_some_and(|code| known_only_from_the_length.contains(&code)) {
                continue;
            }
            let without_file = Header::parse(&vector.bytes, None, &options);
            let two_steps = two_steps(&vector.bytes, &options);
            for header in [without_file, two_steps] {
                match (&whole, header) {
                    (Ok(whole), Ok(header)) => assert_eq!(*whole, common::contents(&header)),
                    (Err(whole), Err(error)) => assert_eq!(whole.code(), error.code()),
                    (whole, header) => panic!("{}: {whole:?} {header:?}", vector.name),
                }
            }
        }
    }
}

#[test]
fn a_limit_is_kept_to_the_last_unit() {
    let json = br#"{"__metadata__":{"ab":"cde"},"name":{"x":[[]],"dtype":"U8","shape":[1,2],"data_offsets":[0,2]},"v":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}}"#;
    let file = file(json, 2);
    let exact = Limits {
        header_bytes: json.len() as u64,
        tensors: 2,
        name_bytes: 4,
        rank: 2,
        metadata_bytes: 5,
        ignored_bytes: 4,
        ..Limits::default()
    };
    let parse = |limits| {
        let options = HeaderOptions {
            limits,
            ..HeaderOptions::default()
        };
        Header::parse(&file, None, &options).map(|header| header.len())
    };
    assert_eq!(parse(exact).unwrap(), 2);

    type Lower = fn(&mut Limits);
    let lowered: [(Lower, Code); 6] = [
        (|limits| limits.header_bytes -= 1, Code::HeaderTooLarge),
        (|limits| limits.tensors -= 1, Code::LimitTensors),
        (|limits| limits.name_bytes -= 1, Code::LimitName),
        (|limits| limits.rank -= 1, Code::LimitRank),
        (|limits| limits.metadata_bytes -= 1, Code::LimitMetadata),
        (|limits| limits.ignored_bytes -= 1, Code::LimitIgnored),
    ];
    for (lower, code) in lowered {
        let mut limits = exact;
        lower(&mut limits);
        let error = parse(limits).unwrap_err();
        assert_eq!((error.code(), error.kind()), (code, Kind::Limit), "{error}");
        assert!(error.offset().is_some(), "{error}");
    }
}

fn two_steps(file: &[u8], options: &HeaderOptions) -> Result<Header> {
    let prefix = Prefix::parse(file.get(..8).unwrap_or(file), None, options)?;
    let range = prefix.header_range();
    let json = &file[range.start as usize..range.end as usize];
    prefix.header(json, options)
}

fn vectors() -> impl Iterator<Item = Vector> {
    let table = fs::read_to_string(folder().join("verdicts.tsv")).unwrap();
    let rows: Vec<_> = table.lines().skip(1).map(vector).collect();
    assert!(rows.len() > 300);
    rows.into_iter()
}

fn vector(row: &str) -> Vector {
    let columns: Vec<_> = row.split('\t').map(str::to_owned).collect();
    let [name, strict, default, reference, the_crate, _python] = columns.try_into().unwrap();
    Vector {
        bytes: read(&name),
        name,
        strict,
        default,
        reference,
        the_crate,
    }
}

fn read(name: &str) -> Vec<u8> {
    fs::read(folder().join(name).with_extension("safetensors")).unwrap()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors")
}
