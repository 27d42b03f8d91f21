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
mod words;

use std::process::ExitCode;

use args::Cli;
use session::Session;

fn main() -> ExitCode {
    interrupt::survive_the_limit_of_file_sizes();
    let Cli { command, common } = Cli::of_this_process();
    let session = Session::new(common);
    let result = commands::run(&command, &session);
    failure::exit_code(result)
}
