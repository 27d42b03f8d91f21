//! safeshard against the other loaders of safetensors files.
//!
//! `cargo xtask bench` runs this program. It starts every sample as a process of its own (itself
//! with `run`, or Python), prepares memory and page cache on purpose, and compares medians.
//! `README.md` beside this package holds the figures; start reading at [`job`].

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod cache;
mod data;
mod digest;
mod driver;
mod instructions;
mod job;
mod jobs;
mod machine;
mod memory;
mod random;
mod report;
mod result;
mod sample;
mod stats;
mod svg;

const USAGE: &str = "\
usage: cargo xtask bench [JOB...] [--samples N] [--quick]
       cargo xtask bench --report
       cargo xtask bench --instructions [--accept]

  JOB             which comparisons; all of them without
  --samples N     samples of each contender (9)
  --quick         two samples, to try things; never part of a report
  --report        writes benches/README.md from the last results
  --instructions  counts instructions under callgrind and compares them with the recorded
                  counts; --accept records them

jobs:";

type Result<T = (), E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match run(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result {
    let folders = Folders::locate()?;
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        // What the driver starts.
        ["run", job, contender] => sample::run(&folders, job, contender, sample::Check::No),
        ["run", job, contender, "--check"] => {
            sample::run(&folders, job, contender, sample::Check::Yes)
        }
        ["count", name] => instructions::count(&folders, name),
        // What people start.
        ["--report"] => report::write(&folders),
        ["--instructions"] => instructions::compare(&folders),
        ["--instructions", "--accept"] => instructions::accept(&folders),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            for job in jobs::ALL {
                println!("  {:20}{}", job.name, job.title);
            }
            Ok(())
        }
        words => driver::run(&folders, &driver::Options::parse(words)?),
    }
}

/// Where things are.
struct Folders {
    /// This package.
    package: PathBuf,
    /// What is generated once and what is measured: inside the target folder.
    work: PathBuf,
}

impl Folders {
    fn locate() -> Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => std::path::absolute(folder)?,
            None => package.join("../target"),
        };
        Ok(Self {
            work: target.join("bench"),
            package,
        })
    }

    fn data(&self) -> PathBuf {
        self.work.join("data")
    }

    /// The results that the report is made of.
    fn results(&self) -> PathBuf {
        self.package.join("results")
    }
}
