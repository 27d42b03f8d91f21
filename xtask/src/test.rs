//! `cargo test` with the oracles at hand.

use std::path::PathBuf;
use std::process::Command;

use crate::{Result, Tree, setup, step};

/// Everything at once, libtorch's adapter too: cargo compiles each dependency, and libtorch's bindings, once
/// for each set of features, and one set is the least there is.
const ALL: [&str; 1] = ["--workspace"];

/// Runs every test, with the libtorch that the oracles brought along. With arguments, runs what they name.
pub(crate) fn run(tree: &Tree, args: &[&str]) -> Result {
    let oracles = Oracles::make(tree)?;
    if args.is_empty() {
        return step("cargo test", &mut oracles.test_with_libtorch(tree, &ALL)?);
    }
    let needs_libtorch = |arg: &&str| {
        ["tch", "matrix", "workspace"]
            .iter()
            .any(|name| arg.contains(name))
    };
    let mut tests = match args.iter().any(needs_libtorch) {
        true => oracles.test_with_libtorch(tree, args)?,
        false => oracles.test(tree, args),
    };
    step("cargo test", &mut tests)
}

/// Runs the matrix, and writes the table that it makes into README.md.
pub(crate) fn matrix(tree: &Tree) -> Result {
    let args = [&ALL[..], &["--test", "matrix"]].concat();
    let mut tests = Oracles::make(tree)?.test_with_libtorch(tree, &args)?;
    step("matrix", tests.env("SAFESHARD_WRITE_MATRIX", "1"))
}

/// What the tests ask and compare with.
struct Oracles {
    python: PathBuf,
    fixtures: PathBuf,
    can_trace: bool,
}

impl Oracles {
    fn make(tree: &Tree) -> Result<Self> {
        let (python, fixtures) = setup::fixtures(tree)?;
        let can_trace = setup::can_trace();
        if !can_trace {
            eprintln!(
                "xtask: WARNING: strace cannot trace here: tests of injected faults are SKIPPED"
            );
        }
        Ok(Self {
            python,
            fixtures,
            can_trace,
        })
    }

    fn test(&self, tree: &Tree, args: &[&str]) -> Command {
        let mut tests = tree.cargo(&["test"]);
        tests
            .args(args)
            .env("SAFESHARD_PYTHON", &self.python)
            .env("SAFESHARD_FIXTURES", &self.fixtures);
        if !self.can_trace {
            tests.env("SAFESHARD_SKIP_STRACE", "1");
        }
        tests
    }

    fn test_with_libtorch(&self, tree: &Tree, args: &[&str]) -> Result<Command> {
        let mut tests = self.test(tree, args);
        setup::add_libtorch(&mut tests, &self.python)?;
        Ok(tests)
    }
}
