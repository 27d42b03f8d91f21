//! `safeshard completions`: what a shell needs to complete commands and flags.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::{Outcome, Result};
use crate::output::Output;

/// Write completions for a shell, for it to source
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "safeshard", &mut script);
    let mut out = Output::new();
    out.write_all(&script)?;
    out.finish()?;
    Ok(Outcome::Fine)
}
