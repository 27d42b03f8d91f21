//! What can be said on the command line.

use std::env;
use std::num::NonZeroUsize;

use clap::builder::styling::AnsiColor;
use clap::builder::{PossibleValue, Styles};
use clap::{Args, CommandFactory, Parser, ValueEnum};
use safeshard_core::{Error, Printable, ShardSize};

use crate::commands::Command;

const EXAMPLES: &str = "\
Examples:
  safeshard inspect model/                     what is in it
  safeshard inspect model/ --tree              by module, with sizes
  safeshard verify model/                      is anything wrong with it?
  safeshard verify model/ --level content      also NaN, Inf, all-zero tensors, invalid booleans
  safeshard reshard model/ new/ --max-shard-size 2GB
  safeshard convert model/ half/ --dtype BF16  cast, filter or rename tensors
  safeshard diff old/ new/                     which tensors differ, and by how much
  safeshard index model/ --write               write the index that is missing
  safeshard meta model.safetensors set author=me
  safeshard digest model/ --output SHA256SUMS  what to verify against later

PATH is a file, an index (model.safetensors.index.json) or a folder with either of them.

Exit codes: 0 fine, or equal; 1 findings, or different; 2 could not run.";

/// Inspects, verifies, compares and repairs safetensors checkpoints: one file, or shards with an
/// index.
///
/// Reads headers where headers are enough, never loads a model as a whole, and changes files so that
/// readers find the old one or the new one, whole.
#[derive(Debug, Parser)]
#[command(
    name = "safeshard",
    bin_name = "safeshard",
    version,
    after_help = EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true,
    styles = STYLES,
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) common: Common,
}

impl Cli {
    /// What this process was asked for. Where that makes no sense, or is help, says so and ends it.
    pub(crate) fn of_this_process() -> Self {
        let arguments: Vec<_> = env::args_os().collect();
        Self::try_parse_from(&arguments).unwrap_or_else(|error| {
            // The message quotes the arguments, which may be names that a shell found somewhere: it is
            // that of arguments that can be shown.
            let shown = arguments
                .iter()
                .map(|argument| Printable::of(argument).to_string());
            match Self::try_parse_from(shown) {
                Err(shown) if shown.kind() == error.kind() => shown.exit(),
                // What was wrong with them cannot be shown.
                _ => Self::command().error(error.kind(), error.kind()).exit(),
            }
        })
    }
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "For every command")]
pub(crate) struct Common {
    /// Print no progress, and nothing that only confirms
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// Use so many threads for reading and writing [default: one a core, at most 8]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// How to read files: `mmap` only where nobody writes to them meanwhile
    #[arg(long, global = true, value_enum, default_value = "pread")]
    pub(crate) io: IoArg,

    /// Read what is larger than usual, if it is trusted: at most so many bytes of `header` or `index`, of a
    /// `name`, of `metadata` or of `ignored` fields; so many `tensors`, `shards`, or dimensions (`rank`)
    #[arg(long = "limit", global = true, value_name = "WHAT=N", value_parser = limit)]
    pub(crate) limits: Vec<(LimitArg, u64)>,

    /// Where a folder has an index and a single file that it does not name: which of them
    #[arg(long, global = true, value_enum)]
    pub(crate) prefer: Option<PreferArg>,
}

/// What is bounded when a checkpoint is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LimitArg {
    Header,
    Index,
    Tensors,
    Shards,
    Name,
    Rank,
    Metadata,
    Ignored,
}

/// Which of two checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PreferArg {
    /// The index, with its shards
    Index,
    /// The single file
    Single,
}

/// A bound: what of, and how many, with a unit of bytes where that is easier to say.
fn limit(text: &str) -> Result<(LimitArg, u64), String> {
    let (what, many) = text.split_once('=').ok_or("write it as WHAT=N")?;
    let what = LimitArg::from_str(what, true).map_err(|_| {
        let known = LimitArg::value_variants().iter();
        let known: Vec<_> = known.filter_map(ValueEnum::to_possible_value).collect();
        let known: Vec<_> = known.iter().map(PossibleValue::get_name).collect();
        format!("no such limit; there are {}", known.join(", "))
    })?;
    let many: ShardSize = many.parse().map_err(|error: Error| error.to_string())?;
    Ok((what, many.bytes()))
}

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoArg {
    /// By position; a file that is cut off meanwhile is an error
    #[default]
    Pread,
    /// Mapped; a file that is cut off meanwhile kills the process
    Mmap,
}

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
