//! Names and values from outside: exact for whoever parses or saves them, and shown to people such that
//! they forge no line, no colour and no direction.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use rstest::rstest;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::*;

/// Names that a terminal would obey, that look like others, or that break what is written carelessly.
const NAMES: [&str; 40] = [
    "evil\nforged: accepted",
    "evil\r\nforged: right",
    "\u{1b}[35mcolour",
    "\u{1b}]0;title\u{7}",
    "\u{9b}35mcolour of eight bits",
    "\u{8}\u{8}back",
    "\0nul",
    "\u{7f}delete",
    "tab\tand\u{b}more\u{c}",
    "\u{85}line",
    "\u{2028}line",
    "\u{2029}paragraph",
    "\u{202e}right to left",
    "\u{2066}isolate",
    "\u{200f}mark",
    "\u{61c}arabic mark",
    "soft\u{ad}hyphen",
    "zero\u{200b}width",
    "joined\u{200d}\u{2060}\u{feff}",
    "\u{34f}grapheme",
    "\u{115f}\u{1160}hangul",
    "\u{3164}\u{ffa0}hangul",
    "\u{17b4}khmer",
    "\u{180e}mongolian",
    "\u{fff9}between\u{fffa}lines\u{fffb}",
    "\u{e0041}\u{e007f}tags",
    "\u{fe0f}\u{e0100}variants",
    "\u{1d173}music",
    "\u{13430}hieroglyphs",
    "\u{2800}braille",
    "\u{a0}\u{3000}spaces",
    "\u{ffff}\u{10ffff}nothing",
    "\"quoted\"",
    "\\u{1b}[35m",
    "back\\slash\\n",
    "`ticks`",
    "",
    " ",
    "日本語 é🦀",
    "<script>$(reboot)%s{}",
];

/// So many of them consist of what is ASCII or not to be seen.
const OBEYED: usize = 32;

/// Of the names, nothing may come through but what can be seen.
fn assert_harmless(shown: &str, what: &str) {
    let names = NAMES[..OBEYED].concat();
    // We ourselves end lines, and write colours.
    let is_ours = |c: char| c.is_ascii_graphic() || matches!(c, ' ' | '\r' | '\n' | '\u{1b}');
    let obeyed: Vec<_> = shown
        .chars()
        .filter(|&c| names.contains(c) && !is_ours(c))
        .collect();
    assert_eq!(obeyed, [], "{what}: {shown:?}");
    for forged in ["\u{1b}[35m", "\u{1b}]", "\nforged"] {
        assert!(!shown.contains(forged), "{what}: {shown:?}");
    }
}

/// A file of tensors with these names and a NaN each, one without them, an index with such a key, and one
/// that names tensors that are not there.
fn scene(names: &[&str]) -> TempDir {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors: Vec<_> = names.iter().map(|name| floats(name, &[f32::NAN])).collect();
    let metadata: Vec<_> = names.iter().map(|name| (*name, *name)).collect();
    write_with(&at("evil.safetensors"), &tensors, &metadata);
    write(&at("other.safetensors"), &[floats("w", &[1.0])]);
    let place = |name: &&str| ((*name).to_owned(), Value::from("other.safetensors"));
    let index = |map: Value| json!({"metadata": {names[0]: 1}, "weight_map": map, names[0]: 1});
    for (file, map) in [
        (
            "odd.safetensors.index.json",
            json!({"w": "other.safetensors"}),
        ),
        (
            "lost.safetensors.index.json",
            names.iter().map(place).collect(),
        ),
    ] {
        fs::write(at(file), index(map).to_string()).unwrap();
    }
    folder
}

fn sorted(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort();
    names
}

#[test]
fn json_is_valid_and_has_every_name_exactly() {
    let folder = scene(&NAMES);
    let expected = sorted(NAMES.map(str::to_owned));
    let run = |args: &str| {
        let run = shell(folder.path(), &format!("safeshard {args}"));
        assert_eq!(run.stderr, "", "{args}");
        assert_harmless(&run.stdout, args);
        run.json()
    };
    let of = |list: &Value, key: &str| {
        let list = list.as_array().unwrap().iter();
        sorted(list.map(|item| item[key].as_str().unwrap().to_owned()))
    };
    let found = run("inspect --json evil.safetensors");
    assert_eq!(of(&found["tensors"], "name"), expected);
    let metadata = found["files"][0]["metadata"].as_object().unwrap();
    assert_eq!(sorted(metadata.keys().cloned()), expected);
    assert!(metadata.iter().all(|(key, value)| key == value));

    let found = run("verify --json --level content evil.safetensors");
    assert_eq!(of(&found["findings"], "tensor"), expected);
    let found = run("verify --json lost.safetensors.index.json");
    let lost = found["findings"].as_array().unwrap().iter();
    let lost = lost.filter(|finding| finding["code"] == "tensor-not-in-shard");
    let lost = lost.map(|finding| finding["tensor"].as_str().unwrap().to_owned());
    assert_eq!(sorted(lost), expected);

    let found = run("diff --json evil.safetensors other.safetensors");
    let only = found["only_a"].as_array().unwrap().iter();
    assert_eq!(
        sorted(only.map(|name| name.as_str().unwrap().to_owned())),
        expected
    );
}

#[rstest]
#[case::inspect("inspect evil.safetensors")]
#[case::tree("inspect --tree evil.safetensors")]
#[case::several_files("inspect evil.safetensors other.safetensors")]
#[case::warnings("inspect odd.safetensors.index.json")]
#[case::index("index lost.safetensors.index.json")]
#[case::verify("verify --level content evil.safetensors")]
#[case::verify_index("verify lost.safetensors.index.json")]
#[case::diff("diff evil.safetensors other.safetensors")]
#[case::diff_other_way("diff other.safetensors evil.safetensors")]
#[case::meta("meta evil.safetensors")]
#[case::meta_of_an_index("meta odd.safetensors.index.json")]
#[case::tensors("digest --tensors evil.safetensors")]
#[case::convert("convert evil.safetensors out --dtype-for .=U8")]
#[case::renamed("convert evil.safetensors out --rename \"^.*=same\"")]
#[case::reshard("reshard lost.safetensors.index.json out")]
fn no_name_forges_a_line_a_colour_or_a_direction_on_a_terminal(#[case] args: &str) {
    let folder = scene(&NAMES);
    let shown = on_terminal(folder.path(), &format!("stty cols 9999; safeshard {args}"));
    assert_harmless(&shown, args);
    assert!(shown.contains(r"\"), "it shows names: {shown:?}");
}

#[rstest]
#[case::inspect("inspect evil.safetensors")]
#[case::tree("inspect --tree evil.safetensors")]
#[case::warnings("inspect odd.safetensors.index.json")]
#[case::verify("verify --level content evil.safetensors")]
#[case::verify_index("verify lost.safetensors.index.json")]
#[case::index("index lost.safetensors.index.json")]
#[case::diff("diff evil.safetensors other.safetensors")]
#[case::meta("meta evil.safetensors")]
#[case::several_problems("reshard lost.safetensors.index.json out")]
fn in_a_pipe_no_name_begins_a_line_of_its_own(#[case] args: &str) {
    let plain: Vec<_> = (0..NAMES.len()).map(|at| format!("plain{at}")).collect();
    let plain: Vec<_> = plain.iter().map(String::as_str).collect();
    let [evil, plain] = [&NAMES[..], &plain].map(|names| {
        let folder = scene(names);
        let run = shell(folder.path(), &format!("safeshard {args} 2>&1"));
        assert!([0, 1, 2].map(Some).contains(&run.code), "{run:#?}");
        run.stdout
    });
    assert_harmless(&evil, args);
    assert!(!evil.contains(['\u{1b}', '\r']), "{evil}");
    assert!(evil.contains(r"evil\nforged: accepted"), "{evil}");
    assert_eq!(evil.lines().count(), plain.lines().count(), "{evil}");
}

#[test]
fn a_manifest_has_every_file_name_exactly() {
    for name in [
        "a\u{1b}[31mb",
        "\u{202e}gnp",
        "zero\u{200b}width",
        "new\nline",
        "back\\slash",
        "\r",
        "\u{7f}\u{85}\u{e0041}",
    ] {
        let folder = tempdir().unwrap();
        let file = folder.path().join(format!("{name}.safetensors"));
        write(&file, &[floats("w", &[1.0])]);
        shell(folder.path(), "safeshard digest *.safetensors > SUMS").ended(0);
        shell(
            folder.path(),
            "safeshard digest *.safetensors --output SAME",
        )
        .ended(0);
        let text = fs::read_to_string(folder.path().join("SUMS")).unwrap();
        assert_eq!(
            text,
            fs::read_to_string(folder.path().join("SAME")).unwrap()
        );
        assert_eq!(text.lines().count(), 1, "{text:?}");
        shell(folder.path(), "sha256sum --strict --check SUMS").ended(0);
        shell(
            folder.path(),
            "safeshard verify *.safetensors --manifest SUMS",
        )
        .ended(0);

        let shown = on_terminal(folder.path(), "safeshard digest --quiet *.safetensors");
        assert!(shown.contains(".safetensors\r\n"), "{shown:?}");
        let ours = shown.chars().filter(|c| !matches!(c, '\r' | '\n'));
        assert!(
            ours.clone().all(|c| c.is_ascii_graphic() || c == ' '),
            "{shown:?}"
        );
    }
}

#[test]
fn a_value_comes_out_as_it_went_in() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let value = "x\u{1b}[31my\u{202e}\r\n\u{7}\u{e0041}\u{3164}z\n\0";
    write_with(&path, &[floats("w", &[1.0])], &[("key", value)]);
    let text = safeshard(["meta", path.to_str().unwrap(), "get", "key"]);
    assert_eq!(text.ended(0).stdout, format!("{value}\n"));
    shell(
        folder.path(),
        "safeshard meta model.safetensors get key > value",
    )
    .ended(0);
    let saved = fs::read_to_string(folder.path().join("value")).unwrap();
    assert_eq!(saved, format!("{value}\n"));
    let shown = on_terminal(folder.path(), "safeshard meta model.safetensors get key");
    let lines = [
        r"x\u{1b}[31my\u{202e}\r",
        r"\u{7}\u{e0041}\u{3164}z",
        r"\u{0}",
        "",
    ];
    assert_eq!(shown, lines.join("\r\n"));
}

#[rstest]
#[case::file(&["inspect", EVIL])]
#[case::verify(&["verify", EVIL])]
#[case::shard_size(&["reshard", "a", EVIL_FILE, "--max-shard-size", "1GB"])]
#[case::manifest(&["verify", ".", "--manifest", EVIL])]
#[case::flag(&[FLAG])]
#[case::command(&[EVIL])]
#[case::number(&["inspect", ".", "--threads", EVIL])]
#[case::size(&["reshard", "a", "b", "--max-shard-size", EVIL])]
#[case::regex(&["convert", "a", "b", "--include", REGEX])]
#[case::dtype(&["convert", "a", "b", "--dtype", EVIL])]
#[case::code(&["verify", "--explain", EVIL])]
#[case::manual(&["man", EVIL])]
#[case::shell(&["completions", EVIL])]
fn what_is_wrong_with_an_argument_is_said_without_obeying_it(#[case] args: &[&str]) {
    let folder = tempdir().unwrap();
    let run: Run = Command::new(SAFESHARD)
        .args(args)
        .current_dir(folder.path())
        .output()
        .unwrap()
        .into();
    let run = run.ended(2);
    assert!(run.stderr.starts_with("error"), "{}", run.stderr);
    assert!(
        !run.stderr.contains(['\u{1b}', '\u{202e}']),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains("\nforged"), "{}", run.stderr);
    assert!(run.stderr.contains(r"\nforged"), "{}", run.stderr);
}

const EVIL: &str = "evil\u{1b}[35m\u{202e}\nforged";
const EVIL_FILE: &str = "evil\u{1b}[35m\u{202e}\nforged.safetensors";
const FLAG: &str = "--evil\u{1b}[35m\u{202e}\nforged";
const REGEX: &str = "evil\u{1b}\\[35m\u{202e}\nforged(";

#[test]
fn an_argument_that_is_not_utf8_is_named_for_that() {
    for args in [&["inspect", ".", "--threads"][..], &["meta", ".", "get"]] {
        let arg = OsStr::from_bytes(b"\xff\x1b[35m");
        let output = Command::new(SAFESHARD).args(args).arg(arg).output();
        let run = Run::from(output.unwrap()).ended(2);
        assert!(run.stderr.contains("invalid"), "{}", run.stderr);
        assert!(!run.stderr.contains('\u{1b}'), "{}", run.stderr);
    }
}

#[test]
fn a_name_that_is_not_utf8_is_never_another_one() {
    let folder = tempdir().unwrap();
    let name = OsStr::from_bytes(b"m\xff.safetensors");
    let path = folder.path().join(name);
    write(&path, &[floats("w", &[1.0])]);
    let run = |args: &[&str], path: &Path| -> Run {
        let command = Command::new(SAFESHARD).args(args).arg(path).output();
        command.unwrap().into()
    };
    // People are told which byte it is.
    for command in ["inspect", "verify"] {
        let text = run(&[command], &path).ended(0).stdout;
        assert!(text.contains(r"m\xff.safetensors: "), "{text}");
    }
    let text = run(
        &["inspect"],
        &folder.path().join(OsStr::from_bytes(b"\xfe")),
    )
    .ended(2);
    assert!(
        text.stderr.contains(r"\xfe: no such file"),
        "{}",
        text.stderr
    );
    // A document that cannot have the name is not written.
    for args in [
        &["inspect", "--json"][..],
        &["verify", "--json"],
        &["digest"],
    ] {
        let refused = run(args, &path).ended(2);
        assert_eq!(refused.stdout, "");
        assert!(refused.stderr.contains("UTF-8"), "{}", refused.stderr);
    }
    run(&["digest", "--tensors"], &path).ended(0);

    // Nor does what is said of another file hold for it.
    let other = folder.path().join("m\u{fffd}.safetensors");
    fs::copy(&path, other).unwrap();
    shell(folder.path(), "sha256sum m\u{fffd}.safetensors > SUMS").ended(0);
    let manifest = folder.path().join("SUMS");
    let found = run(&["verify", "--manifest", manifest.to_str().unwrap()], &path);
    let found = found.ended(1).stdout;
    assert!(found.contains("error[digest-unlisted]"), "{found}");

    // A folder of such a name is one like others.
    let inner = folder.path().join(OsStr::from_bytes(b"\xfd"));
    fs::create_dir(&inner).unwrap();
    fs::copy(&path, inner.join("model.safetensors")).unwrap();
    let text = run(&["digest"], &inner).ended(0).stdout;
    assert!(text.ends_with("  model.safetensors\n"), "{text}");
}
