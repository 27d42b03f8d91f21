//! `cargo test` with the oracles at hand.

use std::path::PathBuf;
use std::process::Command;

use crate::{Result, Tree, setup, step};

/// What libtorch is needed for: the adapter and the matrix, compiled together, because libtorch's bindings
/// take minutes for each set of features; and what the facade's documentation says of tch.
const WITH_LIBTORCH: [(&str, &[&str]); 2] = [
    ("cargo test of tch and the matrix", &TCH_AND_MATRIX),
    (
        "documentation tests with tch",
        &["--doc", "--package", "safeshard", "--features", "tch"],
    ),
];

pub(crate) const TCH_AND_MATRIX: [&str; 4] = [
    "--package",
    "safeshard-tch",
    "--package",
    "safeshard-matrix",
];

/// Runs the default members' tests, which need no framework that cargo cannot build, and then those
/// that need libtorch, with the one that the oracles brought along. With arguments, runs what they name.
pub(crate) fn run(tree: &Tree, args: &[&str]) -> Result {
    let oracles = Oracles::make(tree)?;
    if !args.is_empty() {
        let needs_libtorch = |arg: &&str| {
            ["tch", "matrix", "workspace"]
                .iter()
                .any(|name| arg.contains(name))
        };
        let mut tests = match args.iter().any(needs_libtorch) {
            true => oracles.test_with_libtorch(tree, args)?,
            false => oracles.test(tree, args),
        };
        return step("cargo test", &mut tests);
    }
    step("cargo test", &mut oracles.test(tree, &[]))?;
    for (name, args) in WITH_LIBTORCH {
        step(name, &mut oracles.test_with_libtorch(tree, args)?)?;
    }
    Ok(())
}

/// Runs the matrix, and writes the table that it makes into README.md.
pub(crate) fn matrix(tree: &Tree) -> Result {
    let args = [&TCH_AND_MATRIX[..], &["--test", "matrix"]].concat();
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
