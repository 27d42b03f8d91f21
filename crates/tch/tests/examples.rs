//! Every example is a program that must run, and must notice when its answer is wrong.

use std::process::Command;

/// What an example prints.
fn run(name: &str) -> String {
    // `cargo test` builds the examples beside the tests.
    let tests = std::env::current_exe().unwrap();
    let program = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(program.exists(), "{} is not built", program.display());
    let output = Command::new(program).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout
}

#[test]
fn what_tch_trained_is_the_same_model_everywhere() {
    let said = run("tch_export");
    assert!(said.contains("new process: outputs identical"), "{said}");
    assert!(said.contains("candle: largest difference"), "{said}");
    assert!(said.contains("python: weights identical"), "{said}");
}

#[test]
fn tensors_pass_to_candle_and_ndarray_and_back() {
    let said = run("tch_to_candle");
    assert!(said.contains("and back: identical"), "{said}");
}
