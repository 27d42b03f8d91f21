//! What may be in our dependency tree: licences, sources, known weaknesses. `deny.toml` says it.

use std::path::PathBuf;
use std::process::Command;

use crate::{Result, Tree, setup, step};

/// The version that checks, the same everywhere.
const VERSION: &str = "0.20.2";

/// Checks everything; of the advisories, which are in a database on the net, only warns where it is not
/// to be had.
pub(crate) fn check(tree: &Tree) -> Result {
    let program = installed(tree)?;
    let deny = |args: &[&str]| {
        let mut deny = tree.command(&program);
        // Otherwise it looks at the facade only, since that is the root.
        deny.arg("--workspace").args(args);
        deny
    };
    step(
        "cargo deny",
        &mut deny(&["check", "bans", "licenses", "sources"]),
    )?;
    if !setup::runs(&mut deny(&["fetch", "db"])) {
        eprintln!(
            "xtask: WARNING: the database of advisories cannot be fetched: advisories are NOT CHECKED"
        );
        return Ok(());
    }
    step("cargo deny", &mut deny(&["check", "advisories"]))
}

/// The program in `target/tools`, built there the first time.
fn installed(tree: &Tree) -> Result<PathBuf> {
    let tools = tree.target.join("tools");
    let program = tools.join("bin/cargo-deny");
    let version = Command::new(&program).arg("--version").output();
    let wanted = format!("cargo-deny {VERSION}");
    if version.is_ok_and(|output| output.stdout.trim_ascii() == wanted.as_bytes()) {
        return Ok(program);
    }
    let mut install = tree.cargo(&["install", "cargo-deny", "--version", VERSION, "--locked"]);
    install.arg("--root").arg(tools);
    // Its objects are of no use among ours.
    install.env_remove("CARGO_TARGET_DIR");
    step("install cargo-deny (some minutes, once)", &mut install)?;
    Ok(program)
}
