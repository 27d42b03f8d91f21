//! `cargo test` with the oracles at hand.

use crate::{Result, Tree, setup, step};

/// Runs the default members' tests, so that no framework that cargo cannot build is needed.
pub(crate) fn run(tree: &Tree, args: &[&str]) -> Result {
    let (python, fixtures) = setup::fixtures(tree)?;
    let mut tests = tree.cargo(&["test"]);
    tests
        .args(args)
        .env("SAFESHARD_PYTHON", python)
        .env("SAFESHARD_FIXTURES", fixtures);
    if !setup::can_trace() {
        eprintln!("xtask: WARNING: strace cannot trace here: tests of injected faults are SKIPPED");
        tests.env("SAFESHARD_SKIP_STRACE", "1");
    }
    step("cargo test", &mut tests)
}
