//! `cargo test` with the oracles at hand.

use crate::{Result, Tree, setup, step};

/// Runs the default members' tests, which need no framework that cargo cannot build, and then those
/// of the adapter for tch, with the libtorch that the oracles brought along. With arguments, runs what they
/// name.
pub(crate) fn run(tree: &Tree, args: &[&str]) -> Result {
    let (python, fixtures) = setup::fixtures(tree)?;
    let can_trace = setup::can_trace();
    if !can_trace {
        eprintln!("xtask: WARNING: strace cannot trace here: tests of injected faults are SKIPPED");
    }
    let tests = |args: &[&str]| {
        let mut tests = tree.cargo(&["test"]);
        tests
            .args(args)
            .env("SAFESHARD_PYTHON", &python)
            .env("SAFESHARD_FIXTURES", &fixtures);
        if !can_trace {
            tests.env("SAFESHARD_SKIP_STRACE", "1");
        }
        tests
    };
    if !args.is_empty() {
        let mut tests = tests(args);
        if args
            .iter()
            .any(|arg| arg.contains("tch") || *arg == "--workspace")
        {
            setup::add_libtorch(&mut tests, &python)?;
        }
        return step("cargo test", &mut tests);
    }
    step("cargo test", &mut tests(&[]))?;
    for (name, args) in TCH {
        let mut tests = tests(args);
        setup::add_libtorch(&mut tests, &python)?;
        step(name, &mut tests)?;
    }
    Ok(())
}

/// The adapter by itself, and what the facade's documentation says of it.
const TCH: [(&str, &[&str]); 2] = [
    ("cargo test of tch", &["--package", "safeshard-tch"]),
    (
        "documentation tests with tch",
        &["--doc", "--package", "safeshard", "--features", "tch"],
    ),
];
