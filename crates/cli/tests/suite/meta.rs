//! `meta` changes what a checkpoint says of itself, and not a byte of a tensor.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
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
