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

/// A block of FP8, its scale, and a norm.
fn quantised() -> TempDir {
    let folder = tempdir().unwrap();
    let scale = 0.5_f32.to_le_bytes().to_vec();
    write(
        &folder.path().join("model.safetensors"),
        &[
            ("l.weight", Dtype::F8_E4M3, vec![1, 2], vec![0x40, 0x44]),
            ("l.weight_scale_inv", Dtype::F32, vec![1, 1], scale),
            floats("norm", &[2.0]),
        ],
    );
    folder
}

#[test]
fn a_quantised_weight_is_refused_multiplied_or_kept_and_its_scale_never_narrowed() {
    let folder = quantised();
    let run = convert(&folder, &["--dtype", "BF16"]).ended(2);
    for word in [
        "l.weight",
        "l.weight_scale_inv",
        "--dequantize BF16",
        "--dtype-for",
    ] {
        assert!(run.stderr.contains(word), "{}", run.stderr);
    }
    assert!(!run.stderr.contains("::"), "{}", run.stderr);
    assert!(!folder.path().join("to").exists());
    let run = convert(&folder, &["--dtype-for", "scale=BF16"]).ended(2);
    assert!(run.stderr.contains("l.weight_scale_inv"), "{}", run.stderr);

    let raw = ["--dtype", "fp16", "--dtype-for", "^l.weight$=F8_E4M3"];
    convert(&folder, &raw).ended(0);
    let expected = ["l.weight F8_E4M3", "l.weight_scale_inv F32", "norm F16"];
    assert_eq!(dtypes(&folder), expected);

    convert(&folder, &["--dequantize", "F32", "--dtype", "BF16"]).ended(0);
    assert_eq!(dtypes(&folder), ["l.weight F32", "norm BF16"]);
    let checkpoint = Checkpoint::open(folder.path().join("to")).unwrap();
    let expected = [1.0_f32, 1.5].map(f32::to_le_bytes).concat();
    assert_eq!(checkpoint.read("l.weight").unwrap(), expected);
}

#[test]
fn inspect_says_what_is_quantised() {
    let folder = quantised();
    let path = folder.path().join("model.safetensors");
    let path = path.to_str().unwrap();
    let run = safeshard(["inspect", path]).ended(0);
    assert!(
        run.stdout.contains("FP8 with scales: 1 weight"),
        "{}",
        run.stdout
    );
    let json = safeshard(["inspect", path, "--json"]).ended(0).json();
    let weight = &json["quantization"]["tensors"][0];
    assert_eq!(weight["name"], "l.weight");
    assert_eq!(weight["scheme"], "fp8");
    assert_eq!(weight["companions"][0], "l.weight_scale_inv");
}

#[rstest]
#[case(r"layer\.(.*)=x.\1", r"`\1`")]
#[case(r"layer\.(.*)=x.$2", "no group `2`")]
#[case(r"layer\.(.*)=x.${rest}", "no group `rest`")]
#[case(r"layer\.(.*)=x.$", "`$$`")]
fn a_group_that_does_not_exist_is_refused(#[case] rule: &str, #[case] words: &str) {
    let folder = mixed();
    let run = convert(&folder, &["--rename", rule]).ended(2);
    assert!(run.stderr.contains(words), "{}", run.stderr);
}

#[rstest]
#[case(r"^(steps)$=$1_x", "steps_x")]
#[case(r"^(?<what>steps)$=${what}_x", "steps_x")]
#[case(r"^(?<what>steps)$=$what", "steps")]
#[case(r"^steps$=a$$b", "a$b")]
fn groups_that_exist_stand_for_what_they_matched(#[case] rule: &str, #[case] name: &str) {
    let folder = mixed();
    convert(&folder, &["--include", "^steps$", "--rename", rule]).ended(0);
    assert_eq!(dtypes(&folder), [format!("{name} I64")]);
}

#[test]
fn a_rule_that_leaves_nothing_of_a_name_is_refused() {
    let folder = mixed();
    let run = convert(&folder, &["--rename", "^steps$="]).ended(2);
    assert!(run.stderr.contains("steps"), "{}", run.stderr);
}
