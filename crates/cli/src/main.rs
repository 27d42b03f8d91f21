//! The command `safeshard`: what the library does, from a shell.

mod args;
mod commands;
mod explain;
mod failure;
mod findings;
mod interrupt;
mod output;
mod progress;
mod session;
mod table;
mod text;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use session::Session;

fn main() -> ExitCode {
    let Cli { command, common } = Cli::parse();
    let session = Session::new(common);
    let result = commands::run(&command, &session);
    failure::exit_code(result)
}
