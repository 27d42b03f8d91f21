//! What a reader makes of a folder that holds two checkpoints because somebody is saving, or was when his
//! process died; and of one that only looks like it.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use rstest::rstest;
use safeshard_core::{
    Checkpoint, CheckpointKind, Code, Dtype, MetadataChange, OpenOptions, Prefer, ReadOptions,
    SaveOptions, SaveTensor, change_metadata, save,
};
use serde_json::{Value, json};
use support::journals::mark_of;
use support::{FIRST, Folder, INDEX, SECOND, bytes_of, healthy, refused};

const SINGLE: &str = "model.safetensors";
const JOURNAL: &str = ".model.safetensors.commit";
const STAGED_INDEX: &str = ".model.safetensors.index.json.0123456789abcdef.partial";
const STAGED_SINGLE: &str = ".model.safetensors.0123456789abcdef.partial";

/// Shards whose `a` is `[1, 2]`, and a single file whose `a` is `[9]`.
fn both() -> Folder {
    let folder = healthy();
    folder.write(SINGLE, bytes_of(&[("a", &[9])]));
    folder
}

fn value(checkpoint: &Checkpoint) -> Vec<u8> {
    checkpoint.read("a").unwrap()
}

const BY_INDEX: [u8; 2] = [1, 2];
const BY_SINGLE: [u8; 1] = [9];

/// The journal of a save that puts `main` in its place, which is called `stage` until then.
fn journal(folder: &Folder, main: &str, stage: &str, new: &[&str], superseded: &[&str]) -> Value {
    let mark = |path: PathBuf| mark_of(fs::symlink_metadata(path).ok().as_ref(), "main");
    let entry = |name: &str, path: PathBuf| json!({"name": name, "mark": mark(path)});
    let entries = |names: &[&str]| -> Vec<Value> {
        let entries = names.iter();
        entries.map(|name| entry(name, folder.join(name))).collect()
    };
    let staged = folder.join(stage);
    let main_path = match staged.exists() {
        true => staged,
        false => folder.join(main),
    };
    json!({
        "version": "2",
        "main": {"entry": entry(main, main_path), "stage": stage},
        "new": entries(new),
        "along": [],
        "stand_in": null,
        "superseded": entries(superseded),
        "boot": null,
    })
}

fn to_shards(folder: &Folder) -> Value {
    journal(folder, INDEX, STAGED_INDEX, &[FIRST, SECOND], &[SINGLE])
}

fn to_single(folder: &Folder) -> Value {
    let superseded = [INDEX, FIRST, SECOND];
    journal(folder, SINGLE, STAGED_SINGLE, &[], &superseded)
}

#[rstest]
fn the_checkpoint_is_the_one_that_was_committed(
    #[values(Prefer::Neither, Prefer::Index, Prefer::Single)] prefer: Prefer,
    #[values(None, Some(vec!["a".to_owned()]))] only: Option<Vec<String>>,
) {
    let options = OpenOptions {
        prefer,
        only,
        ..OpenOptions::default()
    };
    let folder = both();
    folder.write(JOURNAL, to_shards(&folder).to_string());
    let checkpoint = folder.open_with(&options).unwrap();
    assert_eq!(checkpoint.kind(), CheckpointKind::Index);
    assert_eq!(value(&checkpoint), BY_INDEX);

    let folder = both();
    folder.write(JOURNAL, to_single(&folder).to_string());
    let checkpoint = folder.open_with(&options).unwrap();
    assert_eq!(checkpoint.kind(), CheckpointKind::File);
    assert_eq!(value(&checkpoint), BY_SINGLE);
}

#[test]
fn the_paths_of_both_files_still_open_them() {
    let folder = both();
    folder.write(JOURNAL, to_shards(&folder).to_string());
    let single = Checkpoint::open(folder.join(SINGLE)).unwrap();
    assert_eq!(value(&single), BY_SINGLE);
    let index = Checkpoint::open(folder.join(INDEX)).unwrap();
    assert_eq!(value(&index), BY_INDEX);
}

#[test]
fn what_is_not_committed_does_not_count() {
    // Shards are on their way, and the index for them is staged.
    let folder = healthy();
    folder.write(SINGLE, bytes_of(&[("a", &[9])]));
    fs::rename(folder.join(INDEX), folder.join(STAGED_INDEX)).unwrap();
    folder.write(JOURNAL, to_shards(&folder).to_string());
    assert_eq!(value(&folder.open().unwrap()), BY_SINGLE);

    // As before, with an index that leads other readers to the single file.
    folder.index(&[("a", SINGLE)]);
    let journal = journal(
        &folder,
        INDEX,
        STAGED_INDEX,
        &[INDEX, FIRST, SECOND],
        &[SINGLE],
    );
    folder.write(JOURNAL, journal.to_string());
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.kind(), CheckpointKind::File);
    assert_eq!(value(&checkpoint), BY_SINGLE);

    // There was nothing before, so there is nothing.
    fs::remove_file(folder.join(SINGLE)).unwrap();
    folder.refused(Code::IndexMissing);

    // A single file is on its way.
    let folder = healthy();
    folder.write(STAGED_SINGLE, bytes_of(&[("a", &[9])]));
    folder.write(JOURNAL, to_single(&folder).to_string());
    assert_eq!(value(&folder.open().unwrap()), BY_INDEX);
}

#[test]
fn another_spelling_of_a_variants_index_is_superseded_like_any_file() {
    let spellings = [
        "model.safetensors.index.fp16.json",
        "model.safetensors.fp16.index.json",
    ];
    let folder = Folder::new();
    folder.shard("old.safetensors", &[("a", &[9])]);
    folder.shard("new.safetensors", &[("a", &[1, 2])]);
    let index = |shard: &str| json!({"metadata": {}, "weight_map": {"a": shard}}).to_string();
    folder.write(spellings[0], index("new.safetensors"));
    folder.write(spellings[1], index("old.safetensors"));
    let options = OpenOptions {
        variant: Some("fp16".to_owned()),
        ..OpenOptions::default()
    };
    refused(folder.open_with(&options), Code::AmbiguousCheckpoint);
    let superseded = [spellings[1], "old.safetensors"];
    let stage = ".model.safetensors.index.fp16.json.0123456789abcdef.partial";
    let journal = journal(
        &folder,
        spellings[0],
        stage,
        &["new.safetensors"],
        &superseded,
    );
    folder.write(".model.fp16.safetensors.commit", journal.to_string());
    assert_eq!(value(&folder.open_with(&options).unwrap()), BY_INDEX);
}

#[test]
fn nothing_but_a_commit_makes_two_checkpoints_one() {
    let folder = both();
    folder.refused(Code::AmbiguousCheckpoint);
    let journal = to_shards(&folder);

    // The journal of another checkpoint.
    folder.write(".other.safetensors.commit", journal.to_string());
    folder.refused(Code::AmbiguousCheckpoint);

    // Somebody saved a single file since; or an index.
    for name in [SINGLE, INDEX] {
        let folder = both();
        folder.write(JOURNAL, to_shards(&folder).to_string());
        let mut bytes = fs::read(folder.join(name)).unwrap();
        match name {
            SINGLE => *bytes.last_mut().unwrap() += 1,
            _ => bytes.extend(b" "),
        }
        folder.write(name, bytes);
        folder.refused(Code::AmbiguousCheckpoint);
    }

    // One that supersedes nothing.
    let mut empty = journal.clone();
    empty["superseded"] = json!([]);
    folder.write(JOURNAL, empty.to_string());
    folder.refused(Code::AmbiguousCheckpoint);
    folder.write(JOURNAL, journal.to_string());
    assert_eq!(value(&folder.open().unwrap()), BY_INDEX);
}

#[rstest]
#[case::no_json(|_: &mut Value| json!("{"))]
#[case::hostile(|journal: &mut Value| {
    journal["superseded"] = json!([{"name": "../model.safetensors", "mark": mark_of(None, "main")}]);
    journal.take()
})]
#[case::foreign(|journal: &mut Value| {
    journal["superseded"] = json!([{"name": "config.json", "mark": mark_of(None, "main")}]);
    journal.take()
})]
#[case::from_the_future(|journal: &mut Value| {
    journal["version"] = json!("3");
    journal.take()
})]
fn a_broken_journal_is_named(#[case] change: fn(&mut Value) -> Value) {
    let folder = both();
    let journal = change(&mut to_shards(&folder));
    folder.write(JOURNAL, journal.to_string());
    let error = folder.refused(Code::BrokenJournal);
    assert_eq!(error.path(), Some(&*folder.join(JOURNAL)));
    // Where there is no doubt, it does not matter.
    fs::remove_file(folder.join(SINGLE)).unwrap();
    assert_eq!(value(&folder.open().unwrap()), BY_INDEX);
}

#[test]
fn a_journal_that_is_no_file_is_not_followed() {
    let folder = both();
    folder.write("journal", to_shards(&folder).to_string());
    symlink("journal", folder.join(JOURNAL)).unwrap();
    folder.refused(Code::BrokenJournal);
    fs::remove_file(folder.join(JOURNAL)).unwrap();
    let mode = rustix::fs::Mode::RUSR;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, folder.join(JOURNAL), fifo, mode, 0).unwrap();
    folder.refused(Code::BrokenJournal);
}

#[test]
fn a_link_to_nothing_is_said_at_once() {
    let folder = Folder::new();
    symlink("nowhere", folder.join(SINGLE)).unwrap();
    folder.refused(Code::NotFound);
    let folder = Folder::new();
    symlink("nowhere", folder.join(INDEX)).unwrap();
    folder.refused(Code::NotFound);
}

/// What is wrong with the save of another checkpoint is told, and stops only what must not go on.
#[test]
fn a_save_of_another_checkpoint_that_cannot_be_recovered_is_told() {
    let folder = healthy();
    folder.write(".other.safetensors.commit", "{");
    let tensor = || SaveTensor::new("w", Dtype::U8, [1], &[7][..]);
    let options = SaveOptions::default();
    for to in [
        folder.path().to_path_buf(),
        folder.join("single.safetensors"),
    ] {
        let report = save(vec![tensor()], to, &options).unwrap();
        let [left] = report.not_recovered.as_slice() else {
            panic!("{report:?}");
        };
        assert_eq!(left.checkpoint, "other.safetensors");
        assert_eq!(left.code, Code::BrokenJournal);
        assert!(
            left.why.contains(".other.safetensors.commit"),
            "{}",
            left.why
        );
    }
    let path = folder.join("other.safetensors");
    assert_eq!(
        save(vec![tensor()], &path, &options).unwrap_err().code(),
        Code::BrokenJournal
    );
    let change = [MetadataChange::Set("b".into(), "c".into())];
    let error = change_metadata(
        folder.path(),
        &change,
        &OpenOptions::default(),
        &ReadOptions::default(),
    )
    .unwrap_err();
    assert_eq!(error.code(), Code::BrokenJournal);
}
