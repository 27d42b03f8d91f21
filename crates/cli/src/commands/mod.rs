//! One command a file: its arguments, and the few calls into the library that it is.

mod completions;
mod convert;
mod diff;
mod digest;
mod index;
mod inspect;
mod man;
mod meta;
mod reshard;
mod verify;
mod writing;

use clap::Subcommand;

use crate::failure::Result;
use crate::session::Session;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Inspect(inspect::Args),
    Verify(verify::Args),
    Reshard(reshard::Args),
    Convert(convert::Args),
    Diff(diff::Args),
    Index(index::Args),
    Meta(meta::Args),
    Digest(digest::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Does it.
pub(crate) fn run(command: &Command, session: &Session) -> Result {
    match command {
        Command::Inspect(args) => inspect::run(args, session),
        Command::Verify(args) => verify::run(args, session),
        Command::Reshard(args) => reshard::run(args, session),
        Command::Convert(args) => convert::run(args, session),
        Command::Diff(args) => diff::run(args, session),
        Command::Index(args) => index::run(args, session),
        Command::Meta(args) => meta::run(args, session),
        Command::Digest(args) => digest::run(args, session),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}
