//! Everything that must hold before a change is merged.

use std::process::Command;

use crate::{Result, Tree, api, bench, deny, floors, setup, step, test};

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
    floors::check(tree)?;
    // As the tests do, so that what was compiled for them, libtorch's bindings above all, serves here.
    let python = setup::python(tree)?;
    let mut clippy = tree.cargo(&["clippy", "--workspace", "--all-targets"]);
    // The benchmark measures libtorch only where it is asked to.
    clippy.args(["--features", "safeshard-bench/tch", "--", "-D", "warnings"]);
    setup::add_libtorch(&mut clippy, &python)?;
    step("cargo clippy", &mut clippy)?;
    let mut doc = doc(tree)?;
    step("cargo doc", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    api::check(tree)?;
    deny::check(tree)
}

/// Documents every crate that is published, with all of its features.
pub(crate) fn doc(tree: &Tree) -> Result<Command> {
    let mut doc = tree.cargo(&["doc", "--no-deps", "--workspace"]);
    for program in ["safeshard-bench", "safeshard-matrix", "xtask"] {
        doc.args(["--exclude", program]);
    }
    doc.args(["--features", "candle,digest,import,ndarray,tch"]);
    setup::add_libtorch(&mut doc, &setup::python(tree)?)?;
    Ok(doc)
}
