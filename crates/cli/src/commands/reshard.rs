//! `safeshard reshard`: the same tensors in other files.

use clap::ValueEnum;
use safeshard_core::{Dialect, ReshardOptions, reshard};
use safeshard_import::ImportOptions;

use super::writing::Places;
use crate::failure::{Outcome, Result};
use crate::session::Session;

/// Split, merge, or change the size of shards; no byte of a tensor changes
///
/// Readers find the old checkpoint or the new one, whole, at every moment, also where OUT is the folder
/// of IN. What OUT holds of that name already is replaced.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    places: Places,

    /// Whose spelling of the index [default: that of IN]
    #[arg(long, value_enum)]
    dialect: Option<DialectArg>,
}

/// Whose spelling of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DialectArg {
    /// transformers and accelerate
    Transformers,
    /// huggingface_hub
    Hub,
    /// torch's distributed checkpoints
    Dcp,
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    let checkpoint = args.places.open(session, &ImportOptions::default())?;
    let bar = Places::bar(session);
    let options = ReshardOptions {
        dialect: args.dialect.map(|dialect| match dialect {
            DialectArg::Transformers => Dialect::Transformers,
            DialectArg::Hub => Dialect::Hub,
            DialectArg::Dcp => Dialect::Dcp,
        }),
        ..args.places.options(session, &bar)
    };
    let report = reshard(&checkpoint, args.places.to(), &options)?;
    drop(bar);
    args.places.say(&report, session, |_| Ok(()))?;
    Ok(Outcome::Fine)
}
