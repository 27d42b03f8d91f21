//! Every example is a program that must run, and must notice when its answer is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

fn quickstart(folder: Option<&Path>) -> Output {
    // `cargo test` builds the examples beside the tests. Asking cargo to run one would build all
    // dependencies again, with the features that the example alone needs.
    let tests = std::env::current_exe().unwrap();
    let program = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples/quickstart");
    assert!(
        program.exists(),
        "{} is not built: run `cargo test` without naming a target, or `cargo test --examples` first",
        program.display()
    );
    Command::new(program).args(folder).output().unwrap()
}

/// The largest difference from transformers that the program printed.
fn largest_difference(output: &Output) -> f32 {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
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

/// sentence-transformers/all-MiniLM-L6-v2, sharded by transformers; ten sentences.
#[test]
fn quickstart_embeds_with_a_real_model_as_transformers_does() {
    let folder = fixtures().join("all-minilm-l6-v2");
    assert!(largest_difference(&quickstart(Some(&folder))) <= 1e-5);
}

/// Random models with the names, heads, tokenizers and padding of their kinds.
#[rstest]
#[case("bert-masked-lm")]
#[case("roberta")]
#[case("xlm-roberta-masked-lm")]
fn quickstart_embeds_with_the_bert_family_as_transformers_does(#[case] model: &str) {
    let folder = fixtures().join("bert-family").join(model);
    assert!(largest_difference(&quickstart(Some(&folder))) <= 1e-5);
}

/// Its gelu is another in candle than in transformers: 3e-5 in this model's embeddings.
#[test]
fn quickstart_refuses_distilbert() {
    let output = quickstart(Some(&fixtures().join("bert-family/distilbert")));
    let reason = "wanted bert, roberta or xlm-roberta, found distilbert";
    assert_refused(&output, reason);
}

#[rstest]
#[case("model_type", "gpt2".into(), "wanted bert, roberta or xlm-roberta, found gpt2")]
#[case("model_type", Value::Null, "found no model_type")]
#[case("position_embedding_type", "relative_key".into(), "absolute positions")]
#[case("is_decoder", true.into(), "only encoders")]
fn quickstart_refuses_what_candle_would_compute_otherwise(
    #[case] key: &str,
    #[case] value: Value,
    #[case] reason: &str,
) {
    let folder = edited_copy("config.json", |config| config[key] = value);
    assert_refused(&quickstart(Some(folder.path())), reason);
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
