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
    step(
        "cargo clippy",
        &mut tree.cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    step(
        "cargo doc",
        tree.cargo(&["doc", "--no-deps", "--features", "candle,ndarray"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    if setup::runs(&mut tree.cargo(&["deny", "--version"])) {
        step("cargo deny", &mut tree.cargo(&["deny", "check"]))
    } else {
        eprintln!(
            "xtask: WARNING: cargo-deny is not installed: licences and advisories are NOT CHECKED"
        );
        Ok(())
    }
}
