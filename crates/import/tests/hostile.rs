//! Files that nobody means well with: refused by the rule that they break, or read as torch reads them; and
//! whatever is done to a file, nothing panics and little memory is taken.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread;

use proptest::prelude::*;
use rstest::rstest;
use safeshard_core::{Checkpoint, OpenOptions, Result};
use safeshard_import::{ImportLimits, ImportOptions, PickledCode, open, open_with};

/// The storage that all pickles here refer to: 0, 1, 2, 3, 4, 5.
const NUMBERS: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

fn numbers() -> Vec<u8> {
    NUMBERS
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// Pickled text, integer, global, tuple, dict.
fn text(text: &str) -> Vec<u8> {
    [
        b"X",
        &(text.len() as u32).to_le_bytes()[..],
        text.as_bytes(),
    ]
    .concat()
}

fn int(number: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &number.to_le_bytes()].concat()
}

fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

fn dict(items: &[Vec<u8>]) -> Vec<u8> {
    [b"}(", &items.concat()[..], b"u"].concat()
}

fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

fn storage_of(class: &str, key: &str, numel: i64) -> Vec<u8> {
    let class = global("torch", class);
    let name = [text("storage"), class, text(key), text("cpu"), int(numel)];
    [&tuple(&name)[..], b"Q"].concat()
}

fn tensor_of(storage: Vec<u8>, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let counts = |counts: &[i64]| tuple(&counts.iter().copied().map(int).collect::<Vec<_>>());
    let hooks = [&global("collections", "OrderedDict")[..], b")R"].concat();
    let (shape, strides) = (counts(shape), counts(strides));
    let arguments = [
        storage,
        int(offset),
        shape,
        strides,
        b"\x89".to_vec(),
        hooks,
    ];
    let function = global("torch._utils", "_rebuild_tensor_v2");
    [&function[..], &tuple(&arguments), b"R"].concat()
}

fn storage() -> Vec<u8> {
    storage_of("FloatStorage", "0", 6)
}

fn tensor() -> Vec<u8> {
    tensor_of(storage(), 0, &[2, 3], &[3, 1])
}

fn last_three() -> Vec<u8> {
    tensor_of(storage(), 3, &[3], &[1])
}

/// An archive with entries that are stored.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let at = archive.len() as u32;
        let len = (bytes.len() as u32).to_le_bytes();
        let crc = crc32fast::hash(bytes).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        let common = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 33, 0][..],
            &crc,
            &len,
            &len,
            &name_len,
        ]
        .concat();
        archive.extend([b"PK\x03\x04", &common[..], &[0, 0], name.as_bytes(), bytes].concat());
        directory.extend(
            [
                b"PK\x01\x02\x14\0",
                &common[..],
                &[0; 12],
                &at.to_le_bytes(),
            ]
            .concat(),
        );
        directory.extend(name.as_bytes());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (start, len) = (archive.len() as u32, directory.len() as u32);
    archive.extend(directory);
    archive.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count].concat());
    archive.extend([&len.to_le_bytes()[..], &start.to_le_bytes(), &[0, 0]].concat());
    archive
}

fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[
        ("archive/data.pkl", pickle),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &numbers()),
        ("archive/version", b"3\n"),
    ])
}

fn good() -> Vec<u8> {
    archive(&pickle(&dict(&[text("w"), tensor()])))
}

fn opened(bytes: &[u8]) -> Result<Checkpoint> {
    opened_with(bytes, &ImportOptions::default())
}

fn opened_with(bytes: &[u8], options: &ImportOptions) -> Result<Checkpoint> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    open_with(file.path(), &OpenOptions::default(), options)
}

#[track_caller]
fn holds_the_numbers(checkpoint: &Checkpoint, name: &str) {
    assert_eq!(checkpoint.read(name).unwrap(), numbers(), "{name}");
}

fn memo_bomb() -> Vec<u8> {
    let doubled = |at: u8| [b'q', at, b'h', at, 0x86];
    [b")".to_vec(), (0..60).flat_map(doubled).collect()].concat()
}

#[rstest]
#[case::plain(tensor(), &[])]
#[case::memo_bomb(tensor(), &[text("x"), memo_bomb()])]
#[case::memo_bomb_as_a_key(tensor(), &[memo_bomb(), int(1)])]
#[case::deep_tuples(tensor(), &[text("x"), [b")".to_vec(), vec![0x85; 1_000_000]].concat()])]
#[case::deep_lists(tensor(), &[text("x"), [vec![b']'; 1_000_000], vec![b'a'; 999_999]].concat()])]
#[case::a_list_in_itself(tensor(), &[text("x"), b"]q\x05h\x05a".to_vec()])]
#[case::a_long_number(tensor(), &[text("x"), [&b"\x8a\x28"[..], &[0xff; 40]].concat()])]
#[case::a_stranger(tensor(), &[text("x"), [&global("some.module", "Thing")[..], b")R"].concat()])]
fn what_is_odd_and_no_tensor_is_passed_over(#[case] w: Vec<u8>, #[case] more: &[Vec<u8>]) {
    let body = dict(&[more.concat(), text("w"), w]);
    // On a stack on which recursion would show.
    let small = thread::Builder::new().stack_size(256 << 10);
    let checked = small.spawn(move || {
        let checkpoint = opened(&archive(&pickle(&body))).unwrap();
        assert_eq!(checkpoint.names(), ["w"]);
        holds_the_numbers(&checkpoint, "w");
    });
    checked.unwrap().join().unwrap();
}

#[rstest]
#[case::beyond_the_storage("storage-range", tensor_of(storage(), 4, &[2, 3], &[3, 1]))]
#[case::another_size("storage-size", tensor_of(storage_of("FloatStorage", "0", 12), 0, &[12], &[1]))]
#[case::an_overflowing_size("storage-size", tensor_of(storage_of("FloatStorage", "0", i64::MAX), 0, &[1], &[1]))]
#[case::a_negative_offset("torch-arguments", tensor_of(storage(), -1, &[2], &[1]))]
#[case::a_negative_stride("torch-arguments", tensor_of(storage(), 5, &[2], &[-1]))]
#[case::expanded_to_4_tib("limit-expansion", tensor_of(storage(), 0, &[1 << 40], &[0]))]
#[case::a_shape_that_overflows("shape-overflow", tensor_of(storage(), 0, &[1 << 62, 1 << 62], &[0, 0]))]
#[case::strides_that_overflow("storage-range", tensor_of(storage(), 0, &[1 << 40, 2], &[1 << 40, 1]))]
#[case::no_storage("storage-missing", tensor_of(storage_of("FloatStorage", "7", 6), 0, &[6], &[1]))]
#[case::a_path_as_a_key("storage-missing", tensor_of(storage_of("FloatStorage", "../../etc/passwd", 6), 0, &[6], &[1]))]
#[case::another_storage("torch-dtype", tensor_of(storage_of("OtherStorage", "0", 6), 0, &[6], &[1]))]
#[case::too_many_dimensions("limit-rank", tensor_of(storage(), 0, &[1; 65], &[1; 65]))]
#[case::few_arguments("torch-arguments", [&global("torch._utils", "_rebuild_tensor_v2")[..], &tuple(&[storage()]), b"R"].concat())]
#[case::filled_like_a_dict("pickle-type", [tensor(), text("a"), int(1), b"s".to_vec()].concat())]
#[case::of_python("pickle-code", [&global("os", "system")[..], &tuple(&[text("touch PWNED")]), b"R"].concat())]
#[case::in_a_name("pickle-code", [&b"\x8c\x05torch\x8c\x0aos.execvpe\x93"[..], b")R"].concat())]
#[case::from_the_stack("pickle-code", b"\x8c\x08builtins\x8c\x04eval\x93\x8c\x031+1\x85R".to_vec())]
#[case::the_extension_registry("pickle-opcode", b"\x82\x01".to_vec())]
#[case::a_buffer_elsewhere("pickle-opcode", b"\x97".to_vec())]
#[case::four_gib_of_text("pickle-truncated", b"X\xff\xff\xff\xffabc".to_vec())]
#[case::text_beyond_64_bits("pickle-truncated", b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc".to_vec())]
#[case::nothing_in_the_memo("pickle-memo", b"h\x07".to_vec())]
#[case::nothing_on_the_stack("pickle-stack", b"0000".to_vec())]
#[case::no_mark("pickle-stack", b"u".to_vec())]
#[case::an_item_of_a_number("pickle-type", b"K\x01K\x02a".to_vec())]
#[case::a_number_of_letters("pickle-number", b"Iabc\n".to_vec())]
#[case::no_utf8("pickle-text", b"\x8c\x02\xff\xfe".to_vec())]
#[case::another_protocol("pickle-protocol", b"\x80\x06".to_vec())]
fn what_breaks_a_rule_is_refused_by_it(#[case] code: &str, #[case] w: Vec<u8>) {
    let bytes = archive(&pickle(&dict(&[text("w"), w])));
    let error = opened(&bytes).unwrap_err();
    assert_eq!(error.code().as_str(), code, "{error}");
    assert!(error.path().is_some());
}

#[test]
fn code_is_named_with_its_place_and_its_weights_can_be_taken() {
    let call = [
        &global("posix", "system")[..],
        &tuple(&[text("touch PWNED")]),
        b"R",
    ]
    .concat();
    let body = dict(&[text("x"), call, text("w"), tensor()]);
    let bytes = archive(&pickle(&body));
    let error = opened(&bytes).unwrap_err();
    assert_eq!(error.finding(), Some("posix.system"));
    let at = bytes.windows(6).position(|part| part == b"cposix").unwrap();
    assert_eq!(error.offset(), Some(at as u64));
    let options = ImportOptions {
        code: PickledCode::Ignore,
        ..ImportOptions::default()
    };
    let checkpoint = opened_with(&bytes, &options).unwrap();
    holds_the_numbers(&checkpoint, "w");
    let codes = checkpoint
        .warnings()
        .iter()
        .map(|warning| warning.problem.code().as_str());
    assert_eq!(codes.collect::<Vec<_>>(), ["pickle-code", "pickle-object"]);
    assert!(!Path::new("PWNED").exists());
}

#[test]
fn names_that_come_twice_are_refused() {
    let twice = [text("w"), tensor(), text("w"), last_three()];
    let nested = [
        text("a.b"),
        tensor(),
        text("a"),
        dict(&[text("b"), last_three()]),
    ];
    for body in [dict(&twice), dict(&nested)] {
        let error = opened(&archive(&pickle(&body))).unwrap_err();
        assert_eq!(error.code().as_str(), "name-collision");
    }
}

#[test]
fn a_dict_that_is_filled_after_it_was_remembered_is_one() {
    let filled = [&b"}q\x07"[..], &text("w"), &tensor(), b"s"].concat();
    let body = dict(&[text("first"), filled, text("second"), b"h\x07".to_vec()]);
    let checkpoint = opened(&archive(&pickle(&body))).unwrap();
    assert_eq!(checkpoint.names(), ["first.w", "second.w"]);
    assert_eq!(checkpoint.aliases()["second.w"], "first.w");
}

#[test]
fn one_storage_has_one_type() {
    let other = tensor_of(storage_of("IntStorage", "0", 6), 0, &[6], &[1]);
    let body = dict(&[text("a"), tensor(), text("b"), other]);
    let error = opened(&archive(&pickle(&body))).unwrap_err();
    assert_eq!(
        (error.code().as_str(), error.tensor()),
        ("storage-dtype", Some("b"))
    );
}

#[test]
fn what_is_shared_too_often_ends_at_a_limit() {
    // Each level holds the one below twice: 2^60 names for one tensor.
    let mut body = [&b"]q\x00"[..], &tensor(), b"a0"].concat();
    for level in 0..60u8 {
        body.extend([
            b']',
            b'q',
            level + 1,
            b'h',
            level,
            b'a',
            b'h',
            level,
            b'a',
            b'0',
        ]);
    }
    body.extend([b'h', 60]);
    let options = ImportOptions {
        limits: ImportLimits {
            tensors: 10_000,
            ..ImportLimits::default()
        },
        ..ImportOptions::default()
    };
    let error = opened_with(&archive(&pickle(&body)), &options).unwrap_err();
    assert_eq!(error.code().as_str(), "limit-tensors");
}

#[rstest]
#[case::cut_off("zip-directory", |mut bytes: Vec<u8>| { bytes.truncate(bytes.len() - 40); bytes })]
#[case::longer("zip-directory", |bytes: Vec<u8>| [&bytes[..], b"x"].concat())]
#[case::another_name_in_the_local_header("zip-entry", |mut bytes: Vec<u8>| { bytes[30] = b'A'; bytes })]
#[case::encrypted("zip-encrypted", |mut bytes: Vec<u8>| {
    let at = bytes.windows(4).position(|part| part == b"PK\x01\x02").unwrap();
    bytes[at + 8] |= 1;
    bytes
})]
#[case::a_bit_of_the_pickle("zip-checksum", |mut bytes: Vec<u8>| { bytes[60] ^= 1; bytes })]
fn archives_are_whole_and_say_one_thing(
    #[case] code: &str,
    #[case] change: fn(Vec<u8>) -> Vec<u8>,
) {
    let error = opened(&change(good())).unwrap_err();
    assert_eq!(error.code().as_str(), code, "{error}");
}

#[test]
fn a_bit_of_a_storage_is_found_before_a_byte_of_it_is_given() {
    let mut bytes = good();
    let at = bytes
        .windows(24)
        .position(|part| part == numbers())
        .unwrap();
    bytes[at + 23] ^= 1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    fs::write(&path, &bytes).unwrap();
    let checkpoint = open(&path).unwrap();
    // Of what comes before it too, and where the system would copy.
    let row = checkpoint.read_slice("w", &[(0u64..1).into()]).unwrap_err();
    let to = folder.path().join("out.safetensors");
    let copied = safeshard_core::convert(&checkpoint, &to, &Default::default()).unwrap_err();
    for error in [row, copied] {
        assert_eq!(error.code().as_str(), "zip-checksum");
    }
    assert!(!to.exists());
}

#[rstest]
#[case::two_roots("torch-root", vec![("a/data.pkl", good_pickle()), ("b/data.pkl", good_pickle())])]
#[case::no_root("torch-root", vec![("a/b/data.pkl", good_pickle())])]
#[case::twice("zip-duplicate", vec![("a/data.pkl", good_pickle()), ("a/data.pkl", good_pickle())])]
#[case::more_behind_the_end("trailing-bytes", vec![("a/data.pkl", [good_pickle(), b"cos\nsystem\n".to_vec()].concat())])]
fn archives_have_one_pickle(#[case] code: &str, #[case] entries: Vec<(&str, Vec<u8>)>) {
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, bytes)| (*name, &**bytes))
        .collect();
    let error = opened(&zip(&entries)).unwrap_err();
    assert_eq!(error.code().as_str(), code, "{error}");
}

fn good_pickle() -> Vec<u8> {
    pickle(&dict(&[text("w"), tensor()]))
}

/// As torch wrote files before 1.6.
fn legacy() -> Vec<u8> {
    let name = [
        text("storage"),
        global("torch", "FloatStorage"),
        text("0"),
        text("cpu"),
        int(6),
    ];
    let storage = [&tuple(&[name.concat(), b"N".to_vec()])[..], b"Q"].concat();
    [
        pickle(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"),
        pickle(b"M\xe9\x03"),
        pickle(&dict(&[text("little_endian"), b"\x88".to_vec()])),
        pickle(&dict(&[text("w"), tensor_of(storage, 0, &[2, 3], &[3, 1])])),
        pickle(&[&b"]"[..], &text("0"), b"a"].concat()),
        6i64.to_le_bytes().to_vec(),
        numbers(),
    ]
    .concat()
}

#[test]
fn legacy_files_are_accounted_for_to_the_last_byte() {
    holds_the_numbers(&opened(&legacy()).unwrap(), "w");
    let code = |bytes: &[u8]| opened(bytes).unwrap_err().code().as_str();
    let bytes = legacy();
    assert_eq!(code(&bytes[..bytes.len() - 1]), "file-truncated");
    assert_eq!(code(&bytes[..bytes.len() - 28]), "file-truncated");
    // One program reads what is before the archive, and another the archive.
    assert_eq!(code(&[legacy(), good()].concat()), "trailing-bytes");
    let mut other = legacy();
    let at = other.len() - 32;
    other[at] = 5;
    assert_eq!(code(&other), "storage-size");
}

/// Opens bytes and reads all that is in them.
fn read_all(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let checkpoint = opened(bytes).ok()?;
    let names = checkpoint.names().into_iter();
    names.map(|name| checkpoint.read(name).ok()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// What is changed is refused, or has its bytes somewhere else that nobody reads: with the checksums,
    /// the numbers are right or there are none.
    #[test]
    fn a_changed_archive_is_refused_or_the_same(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        is_legacy in any::<bool>(),
    ) {
        let mut bytes = if is_legacy { legacy() } else { good() };
        for (at, byte) in changes {
            let len = bytes.len();
            bytes[at.index(len)] = byte;
        }
        // Of a legacy file nothing vouches for the bytes.
        if let Some(tensors) = read_all(&bytes) && !is_legacy {
            let right = tensors.iter().all(|tensor| numbers().ends_with(tensor) || *tensor == numbers());
            prop_assert!(right);
        }
    }

    #[test]
    fn any_program_for_the_machine_ends(body in prop::collection::vec(prop_oneof![
        any::<u8>(),
        prop::sample::select(&b"\x80\x85\x86\x87\x88\x8c\x93\x94\x95(.}]u()tRQabes0122qhjKMJX"[..]),
    ], 0..200)) {
        let _any = opened(&archive(&pickle(&body)));
        let _any = opened(&[legacy()[..20].to_vec(), body].concat());
    }
}
