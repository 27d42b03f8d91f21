//! One command a file: its arguments, and the few calls into the library that it is.

mod inspect;

use clap::Subcommand;

use crate::failure::Result;
use crate::session::Session;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Inspect(inspect::Args),
}

/// Does it.
pub(crate) fn run(command: &Command, session: &Session) -> Result {
    match command {
        Command::Inspect(args) => inspect::run(args, session),
    }
}
