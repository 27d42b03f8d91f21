//! `index` says whether an index is right, and makes one that is.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::support::*;

const INDEX: &str = "model.safetensors.index.json";

fn index(args: &[&str], folder: &Path) -> Run {
    safeshard(
        ["index"]
            .iter()
            .chain(args)
            .chain([&folder.to_str().unwrap()]),
    )
}

#[test]
fn the_index_that_is_written_is_transformers_own() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    let path = bert.join(INDEX);
    let original = fs::read(&path).unwrap();
    let broken: Value = serde_json::from_slice(&original).unwrap();

    // Of an index that lost a tensor and has a wrong size, what is right stays.
    let mut broken = broken;
    broken["metadata"]["total_size"] = 1.into();
    broken["metadata"]["total_parameters"] = 2.into();
    broken["weight_map"]
        .as_object_mut()
        .unwrap()
        .shift_remove("pooler.dense.bias");
    fs::write(&path, format!("{broken}\n")).unwrap();
    index(&["--check"], &bert).ended(1);
    index(&["--write"], &bert).ended(0);
    assert_eq!(fs::read(&path).unwrap(), original);
    let again = index(&["--write"], &bert).ended(0);
    assert!(again.stdout.contains("right already"), "{}", again.stdout);
    index(&["--check"], &bert).ended(0);

    // Without any, all but the number of parameters, which not every version writes.
    fs::remove_file(&path).unwrap();
    index(&[], &bert).ended(1);
    index(&["--write"], &bert).ended(0);
    let mut expected: Value = serde_json::from_slice(&original).unwrap();
    expected["metadata"]
        .as_object_mut()
        .unwrap()
        .shift_remove("total_parameters");
    let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(written, expected);
    assert_eq!(
        names(&bert),
        names(&crate::support::bert()),
        "nothing is left behind"
    );
}

#[test]
fn shards_that_contradict_each_other_get_no_index() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(
        &at("model-00001-of-00002.safetensors"),
        &[floats("a", &[1.0])],
    );
    let run = index(&["--write"], folder.path()).ended(2);
    assert!(
        run.stderr.starts_with("error[shard-missing]"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("model-00002-of-00002.safetensors"),
        "{}",
        run.stderr
    );

    write(
        &at("model-00002-of-00002.safetensors"),
        &[floats("a", &[2.0])],
    );
    let run = index(&["--write"], folder.path()).ended(2);
    assert!(
        run.stderr.starts_with("error[duplicate-across-files]"),
        "{}",
        run.stderr
    );

    write(
        &at("model-00002-of-00002.safetensors"),
        &[floats("b", &[2.0])],
    );
    write(
        &at("model-00001-of-00003.safetensors"),
        &[floats("c", &[2.0])],
    );
    let run = index(&["--write"], folder.path()).ended(2);
    assert!(
        run.stderr.starts_with("error[ambiguous-checkpoint]"),
        "{}",
        run.stderr
    );

    fs::remove_file(at("model-00001-of-00003.safetensors")).unwrap();
    write(&at("model.safetensors"), &[floats("a", &[1.0])]);
    let run = index(&["--write"], folder.path()).ended(2);
    assert!(
        run.stderr.starts_with("error[ambiguous-checkpoint]"),
        "{}",
        run.stderr
    );

    fs::remove_file(at("model.safetensors")).unwrap();
    write(&at("adapter_model.safetensors"), &[floats("a", &[1.0])]);
    index(&["--write"], folder.path()).ended(0);
    safeshard(["verify".as_ref(), folder.path().as_os_str()]).ended(0);
}

#[test]
fn a_variant_and_a_generation_keep_the_name_of_their_index() {
    for (shard, index_name) in [
        (
            "model.fp16-00001-of-00001.safetensors",
            "model.safetensors.index.fp16.json",
        ),
        (
            "model-g2-00001-of-00001.safetensors",
            "model.safetensors.index.json",
        ),
    ] {
        let folder = tempdir().unwrap();
        write(&folder.path().join(shard), &[floats("a", &[1.0])]);
        index(&["--write"], folder.path()).ended(0);
        assert_eq!(names(folder.path()), [shard, index_name]);
    }
}

#[test]
fn a_folder_without_shards_gets_no_index() {
    let folder = tempdir().unwrap();
    let run = index(&["--write"], folder.path()).ended(2);
    assert!(
        run.stderr.starts_with("error[no-checkpoint]"),
        "{}",
        run.stderr
    );
    index(&["--check", "--write"], folder.path()).ended(2);
}
