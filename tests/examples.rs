//! Every example is a program that must run, and must notice when its answer is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;

fn quickstart(folder: Option<&Path>) -> Output {
    run("quickstart", folder)
}

fn run<'p>(example: &str, args: impl IntoIterator<Item = &'p Path>) -> Output {
    // `cargo test` builds the examples beside the tests. Asking cargo to run one would build all
    // dependencies again, with the features that the example alone needs.
    let tests = std::env::current_exe().unwrap();
    let program = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(example);
    assert!(
        program.exists(),
        "{} is not built: run `cargo test` without naming a target, or `cargo test --examples` first",
        program.display()
    );
    Command::new(program).args(args).output().unwrap()
}

/// What a program that ended well printed.
fn printed(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout.into_owned()
}

/// The largest difference from transformers that the program printed.
fn largest_difference(output: &Output) -> f32 {
    let stdout = printed(output);
    let line = stdout
        .lines()
        .find_map(|line| line.strip_prefix("largest difference: "));
    line.and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no largest difference in:\n{stdout}"))
}

fn fixtures() -> PathBuf {
    std::env::var_os("SAFESHARD_FIXTURES")
        .expect("SAFESHARD_FIXTURES is not set: run `cargo xtask test`, which makes what this test reads")
        .into()
}

#[test]
fn quickstart_computes_what_transformers_computed() {
    assert!(largest_difference(&quickstart(None)) <= 1e-5);
}

#[test]
fn quickstart_reshards() {
    let line = "re-sharded into 6 files: through ndarray, all 39 tensors are the same";
    let stdout = printed(&quickstart(None));
    assert!(stdout.lines().any(|printed| printed == line), "{stdout}");
}

/// The statistics are those that candle computes of the tensors it loads.
#[test]
fn ndarray_views_prints_what_is_in_the_tensors() {
    let folder = fixtures().join("all-minilm-l6-v2");
    let stdout = printed(&run("ndarray_views", [&*folder]));
    let tensors = safeshard::candle::load(&folder, &Device::Cpu).unwrap();
    let mut compared = 0;
    for line in stdout.lines().skip(1) {
        let words: Vec<_> = line.split_whitespace().collect();
        let tensor = &tensors[words[5]];
        if words[0] != "F32" {
            continue;
        }
        let number = |tensor: candle_core::Result<Tensor>| {
            let number = tensor.unwrap().to_dtype(DType::F64).unwrap();
            number.to_scalar::<f64>().unwrap()
        };
        let flat = tensor.flatten_all().unwrap();
        let expected = [
            number(flat.min(0)),
            number(flat.to_dtype(DType::F64).unwrap().mean(0)),
            number(flat.max(0)),
        ];
        for (expected, printed) in expected.iter().zip(&words[1..]) {
            let printed: f64 = printed.parse().unwrap();
            assert!((printed - expected).abs() < 2e-5, "{line}: {expected}");
        }
        compared += 1;
    }
    assert_eq!(compared, tensors.len());
}

#[test]
fn round_trip_changes_no_byte() {
    for name in [
        "all-minilm-l6-v2",
        "interop/gpt2-tied-sharded",
        "interop/hub-tied-sharded",
    ] {
        round_trip_changes_no_byte_of(name);
    }
}

fn round_trip_changes_no_byte_of(name: &str) {
    let folder = fixtures().join(name);
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    let stdout = printed(&run("round_trip", [&*folder, &*out]));
    let files = fs::read_dir(&out).unwrap();
    let mut count = 0;
    for file in files {
        let name = file.unwrap().file_name();
        let same = fs::read(out.join(&name)).unwrap() == fs::read(folder.join(&name)).unwrap();
        assert!(same, "{}", name.display());
        count += 1;
    }
    assert!(count >= 4, "shards and an index");
    assert_eq!(stdout.lines().count(), count);
}

/// sentence-transformers/all-MiniLM-L6-v2, sharded by transformers; ten sentences.
#[test]
fn quickstart_embeds_with_a_real_model_as_transformers_does() {
    let folder = fixtures().join("all-minilm-l6-v2");
    assert!(largest_difference(&quickstart(Some(&folder))) <= 1e-5);
}

/// Random models with the names, heads, tokenizers and padding of their kinds.
#[test]
fn quickstart_embeds_with_the_bert_family_as_transformers_does() {
    for model in ["bert-masked-lm", "roberta", "xlm-roberta-masked-lm"] {
        let folder = fixtures().join("bert-family").join(model);
        let difference = largest_difference(&quickstart(Some(&folder)));
        assert!(difference <= 1e-5, "{model}: {difference}");
    }
}

/// Its gelu is another in candle than in transformers: 3e-5 in this model's embeddings.
#[test]
fn quickstart_refuses_distilbert() {
    let output = quickstart(Some(&fixtures().join("bert-family/distilbert")));
    let reason = "wanted bert, roberta or xlm-roberta, found distilbert";
    assert_refused(&output, reason);
}

#[test]
fn quickstart_refuses_what_candle_would_compute_otherwise() {
    const KINDS: &str = "wanted bert, roberta or xlm-roberta, found gpt2";
    let cases = [
        ("model_type", "gpt2".into(), KINDS),
        ("model_type", Value::Null, "found no model_type"),
        (
            "position_embedding_type",
            "relative_key".into(),
            "absolute positions",
        ),
        ("is_decoder", true.into(), "only encoders"),
    ];
    for (key, value, reason) in cases {
        let folder = edited_copy("config.json", |config| config[key] = value);
        assert_refused(&quickstart(Some(folder.path())), reason);
    }
}

#[test]
fn quickstart_notices_a_wrong_number() {
    let folder = edited_copy("expected.json", |expected| {
        let number = &mut expected["embeddings"][1][7];
        *number = (number.as_f64().unwrap() + 2e-5).into();
    });
    assert_refused(
        &quickstart(Some(folder.path())),
        "differ from transformers'",
    );
}

/// The checkpoint that the repository ships, with one of its files changed.
fn edited_copy(file: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-bert");
    for file in fs::read_dir(shipped).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join(file);
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(&path, json.to_string()).unwrap();
    folder
}

fn assert_refused(output: &Output, reason: &str) {
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(reason), "{stderr}");
}
