//! Everything that must hold before a change is merged.

use crate::{Result, Tree, bench, setup, step, test};

/// Stops at the first step that fails.
pub(crate) fn run(tree: &Tree) -> Result {
    test::run(tree, &[])?;
    lint(tree)?;
    bench::run(tree, &["--instructions"])?;
    step(
        "quick start",
        &mut tree.cargo(&["run", "--release", "--example", "quickstart"]),
    )
}

/// What can be said of the sources without running them.
pub(crate) fn lint(tree: &Tree) -> Result {
    step("cargo fmt", &mut tree.cargo(&["fmt", "--all", "--check"]))?;
    let clippy = |packages: &[&str]| {
        let mut clippy = tree.cargo(&["clippy"]);
        clippy
            .args(packages)
            .args(["--all-targets", "--", "-D", "warnings"]);
        clippy
    };
    // By itself, so that what cargo compiled for its tests, libtorch's bindings, serves here too.
    step(
        "cargo clippy",
        &mut clippy(&["--workspace", "--exclude", "safeshard-tch"]),
    )?;
    let python = setup::python(tree)?;
    let mut clippy_of_tch = clippy(&["--package", "safeshard-tch"]);
    setup::add_libtorch(&mut clippy_of_tch, &python)?;
    step("cargo clippy of tch", &mut clippy_of_tch)?;
    let doc = |args: &[&str]| {
        let mut doc = tree.cargo(&["doc", "--no-deps"]);
        doc.args(args).env("RUSTDOCFLAGS", "-D warnings");
        doc
    };
    step(
        "cargo doc",
        &mut doc(&["--features", "candle,ndarray,digest"]),
    )?;
    let mut doc_of_tch = doc(&["--package", "safeshard-tch"]);
    setup::add_libtorch(&mut doc_of_tch, &python)?;
    step("cargo doc of tch", &mut doc_of_tch)?;
    if setup::runs(&mut tree.cargo(&["deny", "--version"])) {
        step("cargo deny", &mut tree.cargo(&["deny", "check"]))
    } else {
        eprintln!(
            "xtask: WARNING: cargo-deny is not installed: licences and advisories are NOT CHECKED"
        );
        Ok(())
    }
}
