//! Comparisons with the other loaders; see `benches/`.

use std::process::Command;

use crate::{Result, Tree, setup, step};

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
    let mut bench = tree.cargo(&["run", "--release", "--package", "safeshard-bench"]);
    // Only where a job is named that needs it: building libtorch's bindings takes minutes.
    if let Some(python) = &python
        && args.iter().any(|arg| arg.starts_with("tch-"))
    {
        bench.args(["--features", "tch"]);
        setup::add_libtorch(&mut bench, python)?;
    }
    bench.arg("--").args(args);
    if let Some(python) = python {
        bench.arg("--python").arg(python);
    }
    step("benchmark", &mut bench)
}
