//! What people are told when something is not what they took it for: each kind of it is one of a public bug
//! report.

use std::fs;
use std::process::Command;

use rstest::rstest;

use crate::support::{Run, floats, root, safeshard, shell, write, write_by_hand};
use crate::writing::python;

/// No Rust, and no advice that does not help.
#[track_caller]
fn is_plain(message: &str) {
    for word in ["::", "Limits", "limit", "open the list", "`write_index`"] {
        assert!(!message.contains(word), "{word}: {message}");
    }
}

#[test]
fn what_is_no_safetensors_file_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let script = root().join("tests/python/foreign_files.py");
    let made = Command::new(python())
        .arg(script)
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let expected = fs::read_to_string(folder.path().join("expected.tsv")).unwrap();
    let mut files = 0;
    for line in expected.lines() {
        let (name, what) = line.split_once('\t').unwrap();
        let path = folder.path().join(name);
        let Run { stdout, .. } = safeshard(["verify".as_ref(), path.as_os_str()]).ended(1);
        assert!(
            stdout.contains("error[not-safetensors]"),
            "{name}: {stdout}"
        );
        assert!(stdout.contains(what), "{name}: {stdout}");
        is_plain(&stdout);
        let Run { stderr, .. } = safeshard(["inspect".as_ref(), path.as_os_str()]).ended(2);
        assert!(stderr.contains(what), "{name}: {stderr}");
        files += 1;
    }
    assert!(files > 50, "{files}");
}

#[test]
fn the_same_in_the_place_of_an_index_or_a_shard_is_called_so() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let index = "model.safetensors.index.json";
    fs::write(at(index), "Entry not found").unwrap();
    let Run { stderr, .. } = shell(folder.path(), "safeshard inspect .").ended(2);
    assert!(stderr.contains("text, `Entry not found`"), "{stderr}");
    fs::write(at(index), r#"{"weight_map":{"a":"a.safetensors"}}"#).unwrap();
    fs::write(at("a.safetensors"), "404: Not Found").unwrap();
    let Run { stderr, .. } = shell(folder.path(), "safeshard inspect .").ended(2);
    assert!(stderr.contains("text, `404: Not Found`"), "{stderr}");
}

#[test]
fn a_file_that_was_cut_off_is_still_called_that() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    write(&path, &[floats("a", &[1.0; 100])]);
    let whole = fs::read(&path).unwrap();
    for len in [9, 30, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let Run { stdout, .. } = safeshard(["verify".as_ref(), path.as_os_str()]).ended(1);
        assert!(stdout.contains("truncated]"), "{stdout}");
        assert!(stdout.contains("cut off"), "{stdout}");
    }
}

/// A header that says what a case needs, with the bytes that its tensors have.
fn large() -> [(&'static str, String, usize); 6] {
    let entry = |name: &str, shape: &str| {
        format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[0,0]}}"#)
    };
    let many: Vec<_> = (0..300).map(|at| entry(&at.to_string(), "[0]")).collect();
    let deep = format!("[0{}]", ",1".repeat(70));
    let metadata = format!(r#"{{"__metadata__":{{"a":"{}"}}}}"#, "x".repeat(3000));
    let ignored = r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":"xxxxxxxxxx"}}"#;
    [
        ("header", format!("{{{}}}", many.join(",")), 1000),
        ("tensors", format!("{{{}}}", many.join(",")), 100),
        ("name", format!("{{{}}}", entry(&"n".repeat(90), "[0]")), 50),
        ("rank", format!("{{{}}}", entry("a", &deep)), 64),
        ("metadata", metadata, 1000),
        ("ignored", ignored.to_owned(), 5),
    ]
}

#[test]
fn what_is_larger_than_usual_is_read_when_it_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let path = path.to_str().unwrap();
    for (what, header, limit) in large() {
        write_by_hand(path.as_ref(), &header, b"");
        let inspect = |limit: String| safeshard(["inspect", path, "--limit", &limit]);
        let Run { stderr, .. } = inspect(format!("{what}={limit}")).ended(2);
        // The advice is the flag that helps.
        assert!(
            stderr.contains(&format!("pass `--limit {what}=")),
            "{stderr}"
        );
        assert!(!stderr.contains("::"), "{stderr}");
        inspect(format!("{what}=1MB")).ended(0);
    }
}

#[test]
fn an_index_that_is_larger_than_usual_is_read_when_it_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (file, tensor) in [("a.safetensors", "a"), ("b.safetensors", "b")] {
        write(&at(file), &[floats(tensor, &[1.])]);
    }
    let map = r#"{"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#;
    fs::write(at("model.safetensors.index.json"), map).unwrap();
    for (limit, enough) in [("index=20", "index=1 KB"), ("shards=1", "shards=2")] {
        let inspect = |limit: &str| {
            shell(
                folder.path(),
                &format!("safeshard inspect . --limit '{limit}'"),
            )
        };
        let Run { stderr, .. } = inspect(limit).ended(2);
        let what = limit.split_once('=').unwrap().0;
        assert!(
            stderr.contains(&format!("pass `--limit {what}=")),
            "{stderr}"
        );
        inspect(enough).ended(0);
    }
}

/// A file whose one tensor of a dtype of tomorrow must stop only what needs it.
#[test]
fn one_unknown_dtype_stops_only_what_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"odd":{"dtype":"F9","shape":[2],"data_offsets":[2,5]}}"#;
    write_by_hand(&folder.path().join("m.safetensors"), header, b"\x01\x02abc");
    let run = |line: &str| shell(folder.path(), line);
    run("safeshard inspect m.safetensors").ended(0);
    run("safeshard meta m.safetensors set a=b").ended(0);
    let written = fs::read(folder.path().join("m.safetensors")).unwrap();
    assert!(written.ends_with(b"\x01\x02abc"));
    assert_eq!(
        run("safeshard meta m.safetensors get a").ended(0).stdout,
        "b\n"
    );
    for line in [
        "safeshard reshard m.safetensors o",
        "safeshard convert m.safetensors o --dtype F32",
    ] {
        let Run { stderr, .. } = run(line).ended(2);
        assert!(
            stderr.contains("`odd`") && stderr.contains("`--exclude` leaves it out"),
            "{stderr}"
        );
    }
    run("safeshard convert m.safetensors o --exclude ^odd$").ended(0);
    run("safeshard verify o").ended(0);
    let Run { stderr, .. } = run("safeshard diff m.safetensors o").ended(2);
    assert!(stderr.contains("`convert --exclude`"), "{stderr}");
}

#[rstest]
#[case::index("index", "b")]
#[case::single("single", "a")]
fn of_two_checkpoints_the_preferred_one_is_read(#[case] prefer: &str, #[case] tensor: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("model.safetensors"), &[floats("a", &[1.])]);
    write(
        &at("model-00001-of-00001.safetensors"),
        &[floats("b", &[1.])],
    );
    let map = r#"{"weight_map":{"b":"model-00001-of-00001.safetensors"}}"#;
    fs::write(at("model.safetensors.index.json"), map).unwrap();
    let Run { stderr, .. } = shell(folder.path(), "safeshard inspect .").ended(2);
    assert!(
        stderr.contains("`--prefer index` or `--prefer single`"),
        "{stderr}"
    );
    is_plain(&stderr);
    let line = format!("safeshard inspect . --json --prefer {prefer}");
    let json = shell(folder.path(), &line).ended(0).json();
    assert_eq!(json["tensors"][0]["name"], tensor);
}

#[rstest]
#[case("header")]
#[case("header=much")]
#[case("weight=1")]
#[case("rank=-1")]
fn a_limit_that_makes_no_sense_is_a_usage_error(#[case] limit: &str) {
    let Run { stderr, .. } = safeshard(["inspect", "x", "--limit", limit]).ended(2);
    assert!(stderr.contains(limit), "{stderr}");
}

#[test]
fn shards_without_an_index_are_told_the_command_that_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    for number in 1..=2 {
        let name = format!("model-0000{number}-of-00002.safetensors");
        write(
            &folder.path().join(name),
            &[floats(&number.to_string(), &[1.])],
        );
    }
    let Run { stderr, .. } = shell(folder.path(), "safeshard inspect .").ended(2);
    assert!(
        stderr.contains("write one with `safeshard index --write`"),
        "{stderr}"
    );
    is_plain(&stderr);
    let json = shell(folder.path(), "safeshard verify . --json")
        .ended(1)
        .json();
    let message = json["findings"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("`safeshard index --write`"), "{message}");
    shell(
        folder.path(),
        "safeshard index . --write && safeshard inspect .",
    )
    .ended(0);
}
