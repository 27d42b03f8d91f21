//! `meta` changes what a checkpoint says of itself, and not a byte of a tensor.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::*;

fn meta(path: &Path, args: &[&str]) -> Run {
    let args = args.iter().map(|arg| (*arg).into());
    safeshard(
        ["meta".into(), path.as_os_str().to_owned()]
            .into_iter()
            .chain(args),
    )
}

type Metadata = Vec<(String, String)>;

type Tensors = Vec<(String, Vec<u8>)>;

/// What the safetensors crate reads: metadata, and the tensors' bytes by name.
fn read(path: &Path) -> (Metadata, Tensors) {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata: Vec<_> = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    metadata.sort();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.data().to_vec()))
        .collect();
    tensors.sort();
    (metadata, tensors)
}

fn pairs(pairs: &[(&str, &str)]) -> Metadata {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn values_are_got_set_and_unset() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_with(
        &path,
        &[floats("w", &[1.0, 2.0]), floats("v", &[3.0])],
        &[("format", "pt")],
    );
    let (_, tensors) = read(&path);

    meta(&path, &["set", "author=me", "note=a=b\n\"c\" \u{e9}"]).ended(0);
    let expected = pairs(&[
        ("author", "me"),
        ("format", "pt"),
        ("note", "a=b\n\"c\" \u{e9}"),
    ]);
    assert_eq!(read(&path), (expected, tensors.clone()));
    assert_eq!(
        meta(&path, &["get", "note"]).ended(0).stdout,
        "a=b\n\"c\" \u{e9}\n"
    );
    assert_eq!(meta(&path, &["get", "nothing"]).ended(1).stdout, "");
    let text = meta(&path, &[]).ended(0).stdout;
    assert_eq!(text, "author=me\nformat=pt\nnote=a=b\\n\"c\" \u{e9}\n");

    meta(&path, &["unset", "note", "format", "author", "nothing"]).ended(0);
    assert_eq!(read(&path), (vec![], tensors));
    for wrong in [
        &["set"][..],
        &["set", "novalue"],
        &["set", "=x"],
        &["get"],
        &["unset"],
    ] {
        meta(&path, wrong).ended(2);
    }
}

#[test]
fn nothing_is_written_over_a_file_that_has_its_name() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_with(&path, &[floats("w", &[1.0])], &[("format", "pt")]);
    let (_, before) = read(&path);
    let inode = || fs::metadata(&path).unwrap().ino();
    // Whether it is as long as before, shorter or longer.
    for value in ["tf", "", "longer"] {
        let (old, mut reader) = (inode(), File::open(&path).unwrap());
        let bytes = fs::read(&path).unwrap();
        let run = meta(&path, &["set", &format!("format={value}")]).ended(0);
        assert!(run.stdout.ends_with(": changed\n"), "{}", run.stdout);
        assert_ne!(inode(), old);
        let mut still = Vec::new();
        reader.read_to_end(&mut still).unwrap();
        assert_eq!(still, bytes, "who has opened it goes on reading it");
        assert_eq!(read(&path), (pairs(&[("format", value)]), before.clone()));
        let unchanged = inode();
        let run = meta(&path, &["set", &format!("format={value}")]).ended(0);
        let said = run.stdout.ends_with(": nothing to change\n");
        assert!(said && inode() == unchanged, "{}", run.stdout);
    }
    assert_eq!(names(folder.path()), ["model.safetensors"]);
}

#[test]
fn what_others_count_on_is_not_written_over() {
    let folder = tempdir().unwrap();
    let (blob, link) = (
        folder.path().join("blob"),
        folder.path().join("model.safetensors"),
    );
    write_with(&blob, &[floats("w", &[1.0])], &[("format", "pt")]);
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o640)).unwrap();
    let bytes = fs::read(&blob).unwrap();
    symlink("blob", &link).unwrap();
    meta(&link, &["set", "format=tf"]).ended(0);
    assert_eq!(fs::read(&blob).unwrap(), bytes);
    assert!(!link.is_symlink());
    assert_eq!(fs::metadata(&link).unwrap().mode() & 0o777, 0o640);
    assert_eq!(read(&link).0, pairs(&[("format", "tf")]));

    let other = folder.path().join("other.safetensors");
    fs::hard_link(&link, &other).unwrap();
    meta(&other, &["set", "format=np"]).ended(0);
    assert_eq!(read(&link).0, pairs(&[("format", "tf")]));
    assert_eq!(read(&other).0, pairs(&[("format", "np")]));
}

#[test]
fn of_shards_the_index_is_changed() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    let index = bert.join("model.safetensors.index.json");
    let original = fs::read(&index).unwrap();
    meta(&bert, &["set", "author=me", "total_size=102784"]).ended(0);
    let changed: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    assert_eq!(changed["metadata"]["author"], "me");
    assert_eq!(changed["metadata"]["total_size"], 102_784);
    assert_eq!(
        meta(&bert, &["get", "total_size"]).ended(0).stdout,
        "102784\n"
    );
    meta(&index, &["unset", "author"]).ended(0);
    assert_eq!(fs::read(&index).unwrap(), original);
    assert_eq!(names(&bert), names(&crate::support::bert()));
}

#[test]
fn alignment_is_kept() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned();
    header.push_str(&" ".repeat(4096 - 8 - header.len()));
    write_by_hand(&path, &header, &1.0f32.to_le_bytes());
    // Fits into the padding.
    meta(&path, &["set", "a=b"]).ended(0);
    assert_eq!(fs::read(&path).unwrap().len(), 4096 + 4);
    meta(&path, &["set", &format!("long={}", "x".repeat(5000))]).ended(0);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 8192 + 4);
    assert_eq!(
        read(&path).1,
        [("w".to_owned(), 1.0f32.to_le_bytes().to_vec())]
    );
}

#[test]
fn a_value_may_be_what_is_in_a_file() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    write(&path, &[floats("w", &[1.0])]);
    // Longer than an argument may be.
    let thumbnail = format!("data:image/jpeg;base64,{}\n", "A".repeat(300_000));
    fs::write(folder.path().join("thumb"), &thumbnail).unwrap();
    let set = |pair: &str| {
        shell(
            folder.path(),
            &format!("safeshard meta m.safetensors set '{pair}'"),
        )
    };
    set("modelspec.thumbnail=@thumb").ended(0);
    set("handle=@@me").ended(0);
    let expected = pairs(&[("handle", "@me"), ("modelspec.thumbnail", &thumbnail)]);
    assert_eq!(read(&path).0, expected);
    let Run { stderr, .. } = set("handle=@me").ended(2);
    assert!(
        stderr.contains("me: ") && stderr.contains("`@@`"),
        "{stderr}"
    );
    fs::write(folder.path().join("binary"), b"\xFF\xFE\x00").unwrap();
    set("handle=@binary").ended(2);
    assert_eq!(read(&path).0, expected);
}

#[test]
fn keys_are_unset_by_pattern_or_all() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let keys = [
        "ss_base",
        "ss_tag_frequency",
        "ss_",
        "sshs",
        "lr",
        "a*b",
        "axb",
    ];
    let metadata = keys.map(|key| (key, "x"));
    let left_by = |args: &[&str]| {
        write_with(&path, &[floats("w", &[1.0])], &metadata);
        let args: Vec<_> = ["unset"].iter().chain(args).copied().collect();
        meta(&path, &args).ended(0);
        let left = read(&path).0.into_iter().map(|(key, _)| key);
        left.collect::<Vec<_>>()
    };
    assert_eq!(left_by(&["ss_*"]), ["a*b", "axb", "lr", "sshs"]);
    assert_eq!(
        left_by(&["ss*e*y", "lr"]),
        ["a*b", "axb", "ss_", "ss_base", "sshs"]
    );
    assert_eq!(left_by(&["nothing*"]).len(), keys.len());
    assert_eq!(left_by(&["*"]), [""; 0]);
    assert_eq!(left_by(&["--all"]), [""; 0]);
    meta(&path, &["unset"]).ended(2);
}

#[test]
fn of_shards_what_all_headers_agree_on_is_shown() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_with(
        &at("a.safetensors"),
        &[floats("a", &[1.])],
        &[("lr", "1e-4"), ("rank", "0"), ("format", "pt")],
    );
    write_with(
        &at("b.safetensors"),
        &[floats("b", &[1.])],
        &[("lr", "1e-4"), ("rank", "1"), ("format", "pt")],
    );
    let index = r#"{"metadata":{"total_size":8,"format":"of the index"},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#;
    fs::write(at("model.safetensors.index.json"), index).unwrap();
    let get = |key: &str| meta(folder.path(), &["get", key]);
    assert_eq!(get("lr").ended(0).stdout, "1e-4\n");
    assert_eq!(get("format").ended(0).stdout, "of the index\n");
    get("rank").ended(1);
    let all = meta(folder.path(), &[]).ended(0).stdout;
    assert_eq!(all, "total_size=8\nformat=of the index\nlr=1e-4\n");
}

#[test]
fn of_shards_every_header_is_changed_in_one_commit() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let shard = |number| format!("model-0000{number}-of-00002.safetensors");
    // Of one rank each, with a tensor that the index does not list, in odd places.
    write_with(
        &at(&shard(1)),
        &[floats("a", &[1.0, 2.0]), floats("stale", &[3.0])],
        &[("rank", "0")],
    );
    write_with(
        &at(&shard(2)),
        &[floats("b", &[4.0])],
        &[("rank", "1"), ("format", "pt")],
    );
    let map = json!({"a": shard(1), "b": shard(2)});
    let index = json!({"metadata": {"total_size": 16, "note": "kept"}, "weight_map": map});
    fs::write(at("model.safetensors.index.json"), index.to_string()).unwrap();
    let before = [1, 2].map(|number| read(&at(&shard(number))).1);

    meta(folder.path(), &["set", "--shards", "format=pt"]).ended(0);
    let index: Value =
        serde_json::from_slice(&fs::read(at("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"], json!({"total_size": 16, "note": "kept"}));
    let files = ["a", "b"].map(|tensor| index["weight_map"][tensor].as_str().unwrap().to_owned());
    assert_eq!(index["weight_map"].as_object().unwrap().len(), 2);
    for (rank, (file, tensors)) in files.iter().zip(&before).enumerate() {
        let (metadata, now) = read(&at(file));
        assert_eq!(
            metadata,
            pairs(&[("format", "pt"), ("rank", &rank.to_string())])
        );
        assert_eq!(now, *tensors);
    }
    // Nothing but the new shards and their index is left.
    assert_eq!(names(folder.path()).len(), 3);
    meta(folder.path(), &["set", "--shards", "format=pt"]).ended(0);
    assert!(
        files.iter().all(|file| at(file).exists()),
        "nothing to change"
    );

    meta(folder.path(), &["unset", "--shards", "ra*"]).ended(0);
    let shown = meta(folder.path(), &[]).ended(0).stdout;
    assert_eq!(shown, "total_size=16\nnote=kept\nformat=pt\n");
    shell(
        folder.path(),
        "safeshard meta model.safetensors.index.json unset --shards --all",
    )
    .ended(0);
    let shown = meta(folder.path(), &[]).ended(0).stdout;
    assert_eq!(shown, "total_size=16\nnote=kept\n");
    // Of a single file, its header.
    write(&at("one.safetensors"), &[floats("a", &[1.])]);
    meta(&at("one.safetensors"), &["set", "--shards", "format=pt"]).ended(0);
    assert_eq!(read(&at("one.safetensors")).0, pairs(&[("format", "pt")]));
}

/// Whatever has the names of the checkpoint's old files, only what is written again may go.
#[test]
fn no_file_goes_with_old_headers_that_the_index_does_not_name() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let shard = "model-00001-of-00001.safetensors";
    let alone = "model-00001-of-00002.safetensors";
    for (name, tensor) in [(shard, "a"), (alone, "a"), ("model.safetensors", "a")] {
        write(&at(name), &[floats(tensor, &[1.0])]);
    }
    let index = |file: &str| json!({"weight_map": {"a": file}}).to_string();
    // The two spellings of one variant's index, which each name another file; and a single file.
    fs::write(at("model.safetensors.index.json"), index(shard)).unwrap();
    let set = "set --shards format=pt";
    let before = names(folder.path());
    let line = format!("safeshard meta . --prefer index {set}");
    let Run { stderr, .. } = shell(folder.path(), &line).ended(2);
    assert!(
        stderr.contains("would-be-lost") && stderr.contains("model.safetensors"),
        "{stderr}"
    );
    assert_eq!(names(folder.path()), before);

    fs::remove_file(at("model.safetensors")).unwrap();
    fs::remove_file(at("model.safetensors.index.json")).unwrap();
    fs::write(at("model.fp16.safetensors.index.json"), index(shard)).unwrap();
    fs::write(at("model.safetensors.index.fp16.json"), index(alone)).unwrap();
    let before = names(folder.path());
    for file in [
        "model.fp16.safetensors.index.json",
        "model.safetensors.index.fp16.json",
    ] {
        let Run { stderr, .. } =
            shell(folder.path(), &format!("safeshard meta {file} {set}")).ended(2);
        assert!(stderr.contains("would-be-lost"), "{stderr}");
    }
    assert_eq!(names(folder.path()), before);
}
