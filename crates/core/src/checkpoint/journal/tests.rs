use std::os::unix::fs::symlink;

use rstest::rstest;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::io::entry::Mark;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const STAGE: &str = ".model.safetensors.index.json.0123456789abcdef.partial";

fn entry(folder: &TempDir, name: &str) -> Entry {
    Entry::at(folder.path(), name).unwrap().unwrap()
}

/// A folder in which shards are about to replace a single file, and the journal of that.
fn pending() -> (TempDir, Journal) {
    let folder = tempdir().unwrap();
    for (name, bytes) in [(STAGE, "index"), (SINGLE, "single"), ("a.safetensors", "a")] {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let staged = entry(&folder, STAGE);
    let journal = Journal {
        version: Version::Two,
        main: Staged {
            entry: staged.renamed_to(INDEX.to_owned()),
            stage: STAGE.to_owned(),
        },
        new: vec![entry(&folder, "a.safetensors")],
        along: vec![],
        stand_in: None,
        superseded: vec![entry(&folder, SINGLE)],
        boot: None,
    };
    (folder, journal)
}

fn rename(folder: &TempDir, from: &str, to: &str) {
    fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
}

#[test]
fn what_is_written_is_read() {
    let (folder, mut journal) = pending();
    journal.superseded.push(Entry {
        name: "sub/b.safetensors".to_owned(),
        mark: Mark {
            len: u64::MAX,
            inode: u64::MAX,
            born: None,
            modified: i128::from(i64::MIN) * 1_000_000_000,
            changed: Some(1),
        },
    });
    let along = Staged {
        entry: journal.new[0]
            .clone()
            .renamed_to("a config.json".to_owned()),
        stage: ".a config.json.safetensors.0123456789abcdef.partial".to_owned(),
    };
    journal.along.push(along);
    journal.stand_in = Some(journal.main.clone());
    journal.boot = Some(boot());
    let path = folder.path().join(Journal::name(SINGLE));
    assert_eq!(Journal::read(folder.path(), SINGLE).unwrap(), None);
    fs::write(path, journal.to_bytes()).unwrap();
    assert_eq!(Journal::read(folder.path(), SINGLE).unwrap(), Some(journal));
    assert_eq!(
        Journal::read(folder.path(), "other.safetensors").unwrap(),
        None
    );
}

#[test]
fn names_of_journals() {
    assert_eq!(
        Journal::single_of(".model.safetensors.commit"),
        Some(SINGLE)
    );
    assert_eq!(
        Journal::single_of(&Journal::name("a.b.safetensors")),
        Some("a.b.safetensors")
    );
    for name in [
        ".git.commit",
        "model.safetensors.commit",
        ".model.safetensors",
        ".commit",
    ] {
        assert_eq!(Journal::single_of(name), None, "{name}");
    }
}

#[test]
fn the_renaming_of_the_main_file_decides() {
    let (folder, journal) = pending();
    let stand = || journal.stand(folder.path()).unwrap();
    let overruled = |names: &[&str]| journal.overruled(folder.path(), names).unwrap();
    assert_eq!(stand(), Stand::Pending);
    assert_eq!(
        overruled(&[SINGLE, INDEX, "a.safetensors"]),
        ["a.safetensors"]
    );
    rename(&folder, STAGE, INDEX);
    assert_eq!(stand(), Stand::Committed);
    assert_eq!(overruled(&[SINGLE, INDEX]), [SINGLE]);
    assert!(overruled(&[INDEX]).is_empty());
    fs::remove_file(folder.path().join(SINGLE)).unwrap();
    assert_eq!(
        overruled(&[SINGLE]),
        [SINGLE],
        "removed since it was listed"
    );
    // Somebody saves a single file with other means.
    fs::write(folder.path().join(SINGLE), "another one").unwrap();
    assert!(overruled(&[SINGLE, INDEX]).is_empty());
    // Somebody replaces the index.
    fs::write(folder.path().join(INDEX), "another index").unwrap();
    assert_eq!(stand(), Stand::Void);
    assert!(overruled(&[SINGLE, INDEX]).is_empty());
    fs::remove_file(folder.path().join(INDEX)).unwrap();
    assert_eq!(stand(), Stand::Void);
}

#[test]
fn a_new_checkpoint_of_which_something_is_gone_supersedes_nothing() {
    let (folder, journal) = pending();
    rename(&folder, STAGE, INDEX);
    assert_eq!(journal.stand(folder.path()).unwrap(), Stand::Committed);
    rename(&folder, "a.safetensors", "elsewhere");
    assert_eq!(journal.stand(folder.path()).unwrap(), Stand::Void);
}

#[test]
fn what_was_not_on_the_disk_before_the_machine_was_started_again_supersedes_nothing() {
    let (folder, mut journal) = pending();
    rename(&folder, STAGE, INDEX);
    journal.boot = Some(boot());
    assert_eq!(journal.stand(folder.path()).unwrap(), Stand::Committed);
    journal.boot = Some("another time".to_owned());
    assert_eq!(journal.stand(folder.path()).unwrap(), Stand::Void);
}

/// With this in the place of `good`.
fn text(good: &str, bad: &str) -> String {
    let end = ".0123456789abcdef.partial";
    let text = format!(
        r#"{{"version": "2", "main": {{"entry": {{"name": "{INDEX}", "mark": {MARK}}}, "stage": "{STAGE}"}},
            "new": [{{"name": "a.safetensors", "mark": {MARK}}}],
            "along": [{{"entry": {{"name": "b.json", "mark": {MARK}}}, "stage": ".b.json.safetensors{end}"}}],
            "stand_in": null, "superseded": [{{"name": "{SINGLE}", "mark": {MARK}}}], "boot": null}}"#
    );
    Journal::parse(text.as_bytes(), SINGLE).unwrap();
    assert!(text.contains(good));
    text.replace(good, bad)
}

const MARK: &str = r#"{"len": 4, "inode": 5, "born": 1, "modified": 1, "changed": null}"#;

/// One that stands in, under this name.
fn stand_in(name: &str) -> String {
    let entry = format!(r#"{{"name": "{name}", "mark": {MARK}}}"#);
    let staged = format!(r#""stand_in": {{"entry": {entry}, "stage": "{STAGE}"}}"#);
    text(r#""stand_in": null"#, &staged)
}

#[test]
fn an_index_of_the_checkpoint_may_stand_in() {
    Journal::parse(stand_in(INDEX).as_bytes(), SINGLE).unwrap();
}

#[rstest]
#[case::empty("")]
#[case::not_json("no journal")]
#[case::not_utf_8(&text("a.safetensors", r"\ud800.safetensors"))]
#[case::another_document("[]")]
#[case::nothing_in_it("{}")]
#[case::cut_off(&text(r#", "boot": null}"#, ""))]
#[case::more_behind_it(&text(r#""boot": null}"#, r#""boot": null} 1"#))]
#[case::another_version(&text(r#""2""#, r#""1""#))]
#[case::a_number(&text(r#""2""#, "2"))]
#[case::an_unknown_key(&text(r#""version""#, r#""x": "1", "version""#))]
#[case::a_key_twice(&text(r#""version""#, r#""version": "2", "version""#))]
#[case::a_mark_twice(&text(r#""inode": 5"#, r#""inode": 5, "inode": 5"#))]
#[case::no_stage(&text(&format!(r#", "stage": "{STAGE}""#), ""))]
#[case::no_mark_at_all(&text(&format!(r#", "mark": {MARK}"#), ""))]
#[case::a_stage_elsewhere(&text(STAGE, "./x/../y.safetensors.0123456789abcdef.partial"))]
#[case::a_stage_that_is_none(&text(STAGE, "README.md"))]
#[case::what_goes_along_is_no_stage(&text(".b.json.safetensors", "b.json.safetensors"))]
#[case::main_of_another_checkpoint(&text(INDEX, "other.safetensors.index.json"))]
#[case::main_that_is_a_shard(&text(INDEX, "b.safetensors"))]
#[case::main_elsewhere(&text(INDEX, "../model.safetensors.index.json"))]
#[case::two_main_files(&text(r#""main": "#, r#""main": [{}, {}], "x": "#))]
#[case::no_main_file(&text(r#""main": "#, r#""main": null, "x": "#))]
#[case::a_shard_that_stands_in(&stand_in("a.safetensors"))]
#[case::another_index_that_stands_in(&stand_in("other.safetensors.index.json"))]
#[case::out_of_the_folder(&text("a.safetensors", "../a.safetensors"))]
#[case::below_and_out(&text("a.safetensors", "x/../../a.safetensors"))]
#[case::absolute(&text("a.safetensors", "/tmp/a.safetensors"))]
#[case::no_safetensors_file(&text("a.safetensors", "config.json"))]
#[case::a_hidden_end(&text("a.safetensors", r"a.safetensors\u0000"))]
#[case::another_index(&text("a.safetensors", "other.safetensors.index.json"))]
#[case::another_variants_index(&text("a.safetensors", "model.safetensors.index.fp16.json"))]
#[case::an_index_elsewhere(&text("a.safetensors", "x/model.safetensors.index.json"))]
#[case::old_files_elsewhere(&text(r#""name": "model.safetensors""#, r#""name": "../model.safetensors""#))]
#[case::weights_that_go_along(&text(r#""b.json""#, r#""b.safetensors""#))]
#[case::what_goes_along_elsewhere(&text(r#""b.json""#, r#""../b.json""#))]
#[case::a_hidden_file_that_goes_along(&text(r#""b.json""#, r#"".ssh""#))]
#[case::no_mark(&text(MARK, "null"))]
#[case::half_a_mark(&text(MARK, r#"{"len": 4, "inode": 5}"#))]
#[case::no_time(&text(r#""modified": 1"#, r#""modified": null"#))]
#[case::half_a_time(&text(r#""modified": 1"#, r#""modified": 1."#))]
#[case::a_negative_length(&text(r#""len": 4"#, r#""len": -4"#))]
#[case::a_length_that_is_no_integer(&text(r#""len": 4"#, r#""len": 4.0"#))]
#[case::entries_in_an_object(&text(r#""new": ["#, r#""new": {}, "x": ["#))]
#[case::deep(&format!(r#"{{"new": {}"#, "[".repeat(1 << 20)))]
#[case::deep_before_the_version(&format!(r#"{{"x": {}"#, "[".repeat(1 << 20)))]
fn what_no_save_wrote_is_refused(#[case] text: &str) {
    let folder = tempdir().unwrap();
    let path = folder.path().join(Journal::name(SINGLE));
    fs::write(&path, text).unwrap();
    let error = Journal::read(folder.path(), SINGLE).unwrap_err();
    assert_eq!(error.code(), Code::BrokenJournal, "{error}");
    assert_eq!(error.path(), Some(&*path));
}

#[test]
fn only_a_regular_file_of_some_size_is_read() {
    let folder = tempdir().unwrap();
    let path = folder.path().join(Journal::name(SINGLE));
    let refused = || {
        let error = Journal::read(folder.path(), SINGLE).unwrap_err();
        assert_eq!(error.code(), Code::BrokenJournal, "{error}");
        assert_eq!(error.path(), Some(&*path));
    };
    let good = folder.path().join("good");
    fs::write(&good, text("", "")).unwrap();
    for target in [&*good, Path::new("/dev/zero"), Path::new("nowhere")] {
        symlink(target, &path).unwrap();
        refused();
        fs::remove_file(&path).unwrap();
    }
    let mode = rustix::fs::Mode::RUSR;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
    refused();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused();
    fs::remove_dir(&path).unwrap();
    fs::File::create(&path)
        .unwrap()
        .set_len(LONGEST + 1)
        .unwrap();
    refused();
}
