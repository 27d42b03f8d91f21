//! Comparisons with the other loaders; see `benches/`.

use std::process::Command;

use crate::{Result, Tree, setup, step};

const PROGRAM: &str = "safeshard-bench";

/// Builds the benchmark and passes everything on to it. Where it will measure, it gets the Python of
/// the oracles, which are rivals too.
pub(crate) fn run(tree: &Tree, args: &[&str]) -> Result {
    if args.contains(&"--instructions") {
        setup::install("valgrind");
        if !setup::runs(Command::new("valgrind").arg("--version")) {
            eprintln!("xtask: WARNING: no valgrind: instructions are NOT COUNTED");
            return Ok(());
        }
    }
    let measures = !args
        .iter()
        .any(|arg| ["--help", "-h", "--report", "--instructions"].contains(arg));
    let python = if measures {
        Some(setup::python(tree)?)
    } else {
        None
    };
    if args.iter().any(|arg| arg.starts_with("command-")) {
        setup::install("b3sum");
    }
    let mut build = tree.cargo(&["build", "--release", "--bin", PROGRAM]);
    let mut bench = tree.command(tree.target.join("release").join(PROGRAM));
    match &python {
        // Only where a job is named that needs it: building libtorch's bindings takes minutes.
        Some(python) if args.iter().any(|arg| arg.starts_with("tch-")) => {
            build.args(["--package", PROGRAM, "--features", "tch"]);
            setup::add_libtorch(&mut build, python)?;
            setup::add_libtorch(&mut bench, python)?;
        }
        // With the quick start and what cargo takes into account for it: each set of features would
        // compile candle once more.
        _ => {
            build.args([
                "--bin",
                "safeshard",
                "--example",
                "quickstart",
                "--workspace",
            ]);
            build.args([
                "--exclude",
                "safeshard-tch",
                "--exclude",
                "safeshard-matrix",
            ]);
        }
    }
    step("build the benchmark", &mut build)?;
    bench.args(args);
    if let Some(python) = python {
        bench.arg("--python").arg(python);
    }
    step("benchmark", &mut bench)
}
