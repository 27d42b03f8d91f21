//! Every example is a program that must run, and must notice when its answer is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn quickstart(folder: Option<&Path>) -> Output {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "--quiet", "--example", "quickstart", "--"])
        .args(folder);
    cargo.output().expect("cargo runs")
}

/// The largest difference from transformers that the program printed.
fn largest_difference(output: &Output) -> f32 {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let line = stdout.lines().find_map(|line| line.strip_prefix("largest difference: "));
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

#[test]
fn quickstart_notices_a_wrong_number() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-bert");
    for file in fs::read_dir(shipped).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join("expected.json");
    let mut expected: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let number = &mut expected["embeddings"][1][7];
    *number = (number.as_f64().unwrap() + 2e-5).into();
    fs::write(&path, expected.to_string()).unwrap();

    let output = quickstart(Some(folder.path()));
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("differ from transformers'"), "{stderr}");
}
