//! `safeshard man`: the manual, as a page for `man`.

use std::io::Write;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::args::Cli;
use crate::failure::{Failure, Outcome, Result};
use crate::output::Output;

/// Write the manual page, or that of a command
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The command; all of safeshard if there is none
    #[arg(value_name = "COMMAND")]
    of: Option<String>,
}

pub(super) fn run(args: &Args) -> Result {
    let mut safeshard = Cli::command();
    safeshard.build();
    let page = match &args.of {
        None => safeshard,
        Some(name) => {
            let command = safeshard.find_subcommand(name);
            let unknown = || Failure::Usage(format!("no command is called `{name}`"));
            let command = command.ok_or_else(unknown)?;
            command.clone()
        }
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    let mut out = Output::new();
    out.write_all(&text)?;
    out.finish()?;
    Ok(Outcome::Fine)
}
