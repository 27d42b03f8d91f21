//! `safeshard reshard`: the same tensors in other files.

use std::fs;
use std::path::Path;

use rstest::rstest;
use tempfile::tempdir;

use crate::support::*;
use crate::writing::{loads_in_python, peak_memory, same_tensors, shards};

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn it_splits_merges_and_keeps() {
    let folder = tempdir().unwrap();
    let bert = bert();
    let at = |name: &str| folder.path().join(name);
    for (args, from, to, files) in [
        ("--single", bert.as_path(), "single", 1),
        ("--max-shard-size 50KB", &at("single"), "split", 3),
        ("", &at("split"), "kept", 3),
        ("--max-shard-size 30000", &at("split"), "smaller", 5),
        ("--max-shard-size 1MiB", &at("smaller"), "one", 1),
        ("--single", &at("split"), "named.safetensors", 1),
        // In place.
        ("--max-shard-size 20kb", &at("split"), "split", 6),
        ("--max-shard-size 20kb", &at("split"), "split", 6),
        ("--single --threads 1", &at("split"), "split", 1),
        (
            "--max-shard-size 30000",
            &at("named.safetensors"),
            "split",
            5,
        ),
    ] {
        let mut words = vec!["reshard", from.to_str().unwrap()];
        let to = at(to);
        words.push(to.to_str().unwrap());
        words.extend(args.split_whitespace());
        let run = safeshard(words).ended(0);
        assert_eq!(run.stderr, "");
        let line = format!("{}: 39 tensors in {files} file", to.display());
        assert!(run.stdout.starts_with(&line), "{}", run.stdout);
        same_tensors(&bert, &to);
        if to.is_dir() {
            assert_eq!(names(&to).len(), files + usize::from(files > 1));
        }
    }
}

#[test]
fn nothing_is_said_that_was_not_asked_for() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    let bert = bert.to_str().unwrap();
    let run = safeshard(["reshard", bert, bert, "--single", "--quiet", "--no-sync"]).ended(0);
    assert_eq!((&*run.stdout, &*run.stderr), ("", ""));
}

#[test]
fn python_loads_it() {
    let folder = tempdir().unwrap();
    let bert = bert();
    let mut saved = Vec::new();
    for (number, args) in [
        "--single",
        "--max-shard-size 20KB",
        "--max-shard-size 20KB --dialect hub",
        "--max-shard-size 20KB --dialect dcp",
        "",
    ]
    .into_iter()
    .enumerate()
    {
        let to = folder.path().join(number.to_string());
        let mut words = vec!["reshard", bert.to_str().unwrap(), to.to_str().unwrap()];
        words.push("--with-files");
        words.extend(args.split(' ').filter(|word| !word.is_empty()));
        let run = safeshard(words).ended(0);
        assert!(run.stdout.contains("copied along: "), "{}", run.stdout);
        saved.push(to);
    }
    loads_in_python(&bert, &saved, folder.path());
}

#[test]
fn dialects_have_their_own_spelling() {
    let folder = tempdir().unwrap();
    let bert = bert();
    let index = |dialect: &str| {
        let to = folder.path().join(dialect);
        let (from, to_text) = (bert.to_str().unwrap(), to.to_str().unwrap());
        let mut words = vec!["reshard", from, to_text];
        if dialect != "own" {
            words.extend(["--dialect", dialect]);
        }
        safeshard(words).ended(0);
        fs::read(to.join(INDEX)).unwrap()
    };
    let own = fs::read(bert.join(INDEX)).unwrap();
    assert!(index("own") == own);
    assert!(index("transformers") == own);
    assert!(index("hub") != own && index("dcp") != own);
}

#[rstest]
#[case::both(&["--single", "--max-shard-size", "5GB"], "cannot be used with")]
#[case::zero(&["--max-shard-size", "0"], "'0'")]
#[case::negative(&["--max-shard-size=-5GB"], "'-5GB'")]
#[case::nan(&["--max-shard-size", "nan"], "'nan'")]
#[case::inf(&["--max-shard-size", "inf"], "'inf'")]
#[case::unit(&["--max-shard-size", "5 parsecs"], "'5 parsecs'")]
#[case::dialect(&["--dialect", "klingon"], "'klingon'")]
fn what_makes_no_sense_is_refused_by_name(#[case] args: &[&str], #[case] named: &str) {
    let folder = tempdir().unwrap();
    let to = folder.path().join("to");
    let bert = bert();
    let words = ["reshard", bert.to_str().unwrap(), to.to_str().unwrap()];
    let run = safeshard(words.iter().chain(args)).ended(2);
    assert!(run.stderr.contains(named), "{}", run.stderr);
    assert!(!to.exists());
}

#[test]
fn a_file_is_no_folder_of_shards() {
    let folder = tempdir().unwrap();
    let to = folder.path().join("x.safetensors");
    let bert = bert();
    let words = [
        "reshard",
        bert.to_str().unwrap(),
        to.to_str().unwrap(),
        "--max-shard-size",
        "1KB",
    ];
    let run = safeshard(words).ended(2);
    assert!(run.stderr.contains("name a folder"), "{}", run.stderr);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_cannot_be_read_ends_with_2_and_makes_nothing() {
    let folder = tempdir().unwrap();
    let to = folder.path().join("to");
    let from = folder.path().join("nothing");
    let run = safeshard(["reshard".as_ref(), from.as_os_str(), to.as_os_str()]).ended(2);
    assert!(run.stderr.starts_with("error[not-found]"), "{}", run.stderr);
    assert!(!to.exists());
}

#[test]
fn losses_are_warned_of() {
    let folder = tempdir().unwrap();
    let (one, two) = shards();
    let at = |name: &str| folder.path().join(name);
    write_with(
        &at(one),
        &[floats("a", &[1.0]), floats("gone", &[2.0])],
        &[("rank", "0")],
    );
    write_with(&at(two), &[floats("b", &[3.0])], &[("rank", "1\u{1b}[31m")]);
    let index = format!(r#"{{"metadata": {{}}, "weight_map": {{"a": "{one}", "b": "{two}"}}}}"#);
    fs::write(at(INDEX), index).unwrap();
    let path = folder.path().to_str().unwrap();
    let before = names(folder.path());
    let run = safeshard(["reshard", path, path, "--single", "--quiet"]).ended(2);
    let says = |text: &str| assert!(run.stderr.contains(text), "{}", run.stderr);
    says("error[would-be-lost]");
    says(": gone that its index does not list; move them first, or pass `--accept-loss`");
    assert_eq!(names(folder.path()), before);
    let words = [
        "reshard",
        path,
        path,
        "--single",
        "--quiet",
        "--accept-loss",
    ];
    let run = safeshard(words).ended(0);
    assert_eq!(
        run.stderr,
        format!(
            "warning: `gone` in {one} is not in the index, and was not written\n\
             warning: metadata of {one} that has no place any more: rank=0\n\
             warning: metadata of {two} that has no place any more: rank=1\\u{{1b}}[31m\n"
        )
    );
    assert_eq!(names(folder.path()), ["model.safetensors"]);
}

#[test]
fn files_go_along_only_if_asked_and_replace_nothing() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    fs::write(bert.join("pytorch_model.bin"), "").unwrap();
    let to = folder.path().join("to");
    let words = [
        "reshard",
        bert.to_str().unwrap(),
        to.to_str().unwrap(),
        "--single",
    ];
    safeshard(words).ended(0);
    assert_eq!(names(&to), ["model.safetensors"]);
    let with_files = || safeshard(words.iter().chain(&["--with-files"]));
    let run = with_files().ended(0);
    assert!(
        run.stdout
            .contains("\nnot copied along: pytorch_model.bin\n"),
        "{}",
        run.stdout
    );
    assert!(names(&to).contains(&"config.json".to_owned()));
    let config = fs::read(bert.join("config.json")).unwrap();
    assert!(fs::read(to.join("config.json")).unwrap() == config);

    fs::write(to.join("config.json"), "{}").unwrap();
    let run = with_files().ended(2);
    assert!(
        run.stderr.starts_with("error[side-file-differs]"),
        "{}",
        run.stderr
    );
    assert_eq!(fs::read(to.join("config.json")).unwrap(), b"{}");
}

#[test]
fn memory_does_not_grow_with_the_checkpoint() {
    const MIB: usize = 1 << 20;
    let folder = tempdir().unwrap();
    let from = folder.path().join("from.safetensors");
    let bytes = vec![1; 300 * MIB];
    let tensors: Vec<_> = ('a'..='f').map(|name| name.to_string()).collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|name| {
            (
                name.as_str(),
                safetensors::Dtype::F32,
                vec![bytes.len() / 24],
                bytes[..bytes.len() / 6].to_vec(),
            )
        })
        .collect();
    write(&from, &tensors);
    drop((tensors, bytes));
    let peak = |args: &str| {
        let args = args.replace("FROM", from.to_str().unwrap());
        peak_memory(folder.path(), &args)
    };
    for args in [
        "reshard FROM split --max-shard-size 60MB",
        "reshard split merged --single",
        "convert FROM half --dtype F16",
        "convert FROM doubled --dtype F64 --max-shard-size 200MB",
    ] {
        let peak = peak(args);
        println!("{args}: {} MiB", peak / MIB);
        assert!(peak < 80 * MIB, "{args}: {} MiB", peak / MIB);
    }
    same_tensors(&from, Path::new(&folder.path().join("merged")));
}
