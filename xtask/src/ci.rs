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
    // As the tests do, so that what was compiled for them, libtorch's bindings above all, serves here.
    let python = setup::python(tree)?;
    let mut clippy = tree.cargo(&["clippy", "--workspace", "--all-targets"]);
    // The benchmark measures libtorch only where it is asked to.
    clippy.args(["--features", "safeshard-bench/tch", "--", "-D", "warnings"]);
    setup::add_libtorch(&mut clippy, &python)?;
    step("cargo clippy", &mut clippy)?;
    let mut doc = tree.cargo(&["doc", "--no-deps", "--workspace"]);
    for program in ["safeshard-bench", "safeshard-matrix", "xtask"] {
        doc.args(["--exclude", program]);
    }
    doc.env("RUSTDOCFLAGS", "-D warnings");
    setup::add_libtorch(&mut doc, &python)?;
    step("cargo doc", &mut doc)?;
    if setup::runs(&mut tree.cargo(&["deny", "--version"])) {
        step("cargo deny", &mut tree.cargo(&["deny", "check"]))
    } else {
        eprintln!(
            "xtask: WARNING: cargo-deny is not installed: licences and advisories are NOT CHECKED"
        );
        Ok(())
    }
}
