//! `safeshard convert`: other dtypes, other names, fewer tensors.

use std::path::Path;

use rstest::rstest;
use safeshard_core::Checkpoint;
use safetensors::Dtype;
use tempfile::{TempDir, tempdir};

use crate::support::*;
use crate::writing::loads_converted_in_python;

/// Some floats, integers and 8-bit floats.
fn mixed() -> TempDir {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(
        &path,
        &[
            floats("layer.0.weight", &[1.0, 1e6]),
            floats("layer.0.norm", &[2.0]),
            ("layer.1.scale", Dtype::F8_E4M3, vec![2], vec![0x38, 0x40]),
            ("steps", Dtype::I64, vec![1], vec![7, 0, 0, 0, 0, 0, 0, 0]),
        ],
    );
    folder
}

/// Converts it to the folder `to` beside it.
fn convert(folder: &TempDir, args: &[&str]) -> Run {
    let path = folder.path().join("model.safetensors");
    let to = folder.path().join("to");
    let words = ["convert", path.to_str().unwrap(), to.to_str().unwrap()];
    safeshard(words.iter().chain(args))
}

/// Names and dtypes of what is there.
fn dtypes(folder: &TempDir) -> Vec<String> {
    let checkpoint = Checkpoint::open(folder.path().join("to")).unwrap();
    let tensors = checkpoint.tensors();
    tensors
        .map(|tensor| format!("{} {}", tensor.name, tensor.dtype))
        .collect()
}

#[test]
fn floats_change_and_it_says_what_did_and_what_did_not() {
    let folder = mixed();
    let run = convert(&folder, &["--dtype", "F16"]).ended(0);
    let to = folder.path().join("to");
    assert_eq!(
        run.stdout,
        format!(
            "{}: 4 tensors in 1 file, 16 B\n\
             F32 to F16: 2 tensors\n\
             F8_E4M3 as before: 1 tensor\n\
             I64 as before: 1 tensor\n",
            to.display()
        )
    );
    assert_eq!(
        run.stderr,
        "warning: elements of `layer.0.weight` too large for their dtype, infinite now: 1\n"
    );
    let expected = [
        "layer.0.norm F16",
        "layer.0.weight F16",
        "layer.1.scale F8_E4M3",
        "steps I64",
    ];
    assert_eq!(dtypes(&folder), expected);
}

#[rstest]
#[case("bf16")]
#[case("BFloat16")]
#[case("torch.bfloat16")]
fn dtypes_have_several_names(#[case] name: &str) {
    let folder = mixed();
    convert(&folder, &["--dtype", name, "--include", "weight"]).ended(0);
    assert_eq!(dtypes(&folder), ["layer.0.weight BF16"]);
}

#[test]
fn rules_reach_single_tensors_and_the_first_counts() {
    let folder = mixed();
    let rules = ["--dtype-for", "norm=F32", "--dtype-for", "scale|norm=F64"];
    convert(&folder, &[&["--dtype", "BF16"], &rules[..]].concat()).ended(0);
    let expected = [
        "layer.0.norm F32",
        "layer.0.weight BF16",
        "layer.1.scale F64",
        "steps I64",
    ];
    assert_eq!(dtypes(&folder), expected);
}

#[test]
fn names_are_chosen_and_changed() {
    let folder = mixed();
    let args = [
        "--include",
        r"^layer\.",
        "--exclude",
        "norm$",
        "--exclude",
        "steps",
        "--rename",
        r"^layer\.(\d+)\.=h.${1}.",
        "--rename",
        r"weight=w\=",
        "--rename",
        r"\\=backslash",
    ];
    let run = convert(&folder, &args).ended(0);
    assert_eq!(
        dtypes(&folder),
        ["h.0.wbackslash= F32", "h.1.scale F8_E4M3"]
    );
    assert!(
        run.stdout
            .contains("\nrenamed: 2 tensors\nleft out: 2 tensors\n"),
        "{}",
        run.stdout
    );
    assert_eq!(run.stderr, "");
}

#[test]
fn a_pattern_that_matches_nothing_is_warned_of() {
    let folder = mixed();
    let args = [
        "--exclude",
        "lm_head",
        "--rename",
        "^transformer=",
        "--dtype-for",
        "nrom=F32",
    ];
    let run = convert(&folder, &args).ended(0);
    let lines = ["lm_head", "nrom", "^transformer"]
        .map(|pattern| format!("warning: no name matches `{pattern}`\n"));
    assert_eq!(run.stderr, lines.concat());
    assert_eq!(dtypes(&folder).len(), 4);
}

#[rstest]
#[case::unknown(&["--dtype", "F31"], "there are BOOL, F4")]
#[case::narrow(&["--dtype", "F8_E4M3"], "--dtype-for")]
#[case::integer(&["--dtype", "I64"], "--dtype-for")]
#[case::no_dtype(&["--dtype-for", "norm"], "REGEX=DTYPE")]
#[case::regex(&["--include", "("], "unclosed group")]
#[case::no_name(&["--rename", "x"], "FROM=TO")]
#[case::nothing_to_replace(&["--rename", "=x"], "FROM=TO")]
#[case::not_offered(&["--dtype-for", "steps=F32"], "tensor `steps`: this cast is not offered")]
#[case::collision(&["--rename", "^layer.0.*=same"], "error[name-collision]")]
#[case::nothing_left(&["--include", "^nothing$"], "error[nothing-left]")]
#[case::both(&["--single", "--max-shard-size", "1"], "cannot be used with")]
fn what_cannot_be_is_refused_and_makes_nothing(#[case] args: &[&str], #[case] said: &str) {
    let folder = mixed();
    let run = convert(&folder, args).ended(2);
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert_eq!(run.stdout, "");
    assert!(!folder.path().join("to").exists());
}

#[test]
fn torch_rounds_the_same_way() {
    let folder = tempdir().unwrap();
    let bert = bert();
    let mut saved = Vec::new();
    for (dtype, torch) in [("F16", "float16"), ("BF16", "bfloat16"), ("F64", "float64")] {
        let to = folder.path().join(dtype);
        let args = [
            bert.as_os_str(),
            to.as_os_str(),
            "--dtype".as_ref(),
            dtype.as_ref(),
        ];
        let words = [Path::new("convert").as_os_str()].into_iter().chain(args);
        safeshard(words).ended(0);
        saved.push((to, torch));
    }
    loads_converted_in_python(&bert, &saved, folder.path());
}
