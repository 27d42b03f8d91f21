//! The project's chores, in plain Rust: `cargo xtask` lists them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

mod api;
mod bench;
mod ci;
mod deny;
mod floors;
mod setup;
mod test;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup             make .venv/ with the pinned Python oracles
  fixtures          let the oracles write target/fixtures/
  test [--] [ARGS]  setup, fixtures, then cargo test ARGS; without ARGS, all of it
  matrix            runs the matrix of frameworks and writes its table into README.md
  lint              formatting, floors, clippy, documentation, public interfaces, licences
  api               write the public interfaces into api/
  bench [ARGS]      compare with the other loaders; --help lists the jobs
  ci                test, lint, instruction counts, and the quick start";

type Result<T = (), E = String> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match run(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result {
    let tree = Tree::locate()?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["setup"] => setup::python(&tree).map(drop),
        ["fixtures"] => setup::fixtures(&tree).map(drop),
        ["test", "--", rest @ ..] | ["test", rest @ ..] => test::run(&tree, rest),
        ["matrix"] => test::matrix(&tree),
        ["bench", rest @ ..] => bench::run(&tree, rest),
        ["lint"] => ci::lint(&tree),
        ["api"] => api::write(&tree),
        ["ci"] => ci::run(&tree),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [] => Err(format!("no command\n{USAGE}")),
        [unknown, ..] => Err(format!("cannot run `{unknown}` like that\n{USAGE}")),
    }
}

/// Where things are; absolute, so that every child may run from the root.
struct Tree {
    root: PathBuf,
    target: PathBuf,
}

impl Tree {
    fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .ok_or("the workspace has no root")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => std::path::absolute(&dir)
                .map_err(|why| format!("CARGO_TARGET_DIR {}: {why}", dir.display()))?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// A program that runs from the root and builds where we build.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }

    fn cargo(&self, args: &[&str]) -> Command {
        let mut cargo = self.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(args);
        cargo
    }
}

/// Runs one step with its output in view, or says which step failed.
fn step(name: &str, command: &mut Command) -> Result {
    eprintln!("xtask: {name}");
    let status = command.status().map_err(|why| {
        format!(
            "{name}: {} did not start: {why}",
            command.get_program().display()
        )
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{name}: failed with {status}"))
    }
}
