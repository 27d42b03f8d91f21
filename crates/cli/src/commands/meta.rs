//! `safeshard meta`: what a checkpoint says about itself, and changing that.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use safeshard_core::{
    Checkpoint, MetadataChange, MetadataWrite, OpenOptions, Printable, Profile, ShardFile,
    UnknownDtype, change_metadata, change_shard_metadata,
};
use serde_json::Value;

use crate::failure::{Failure, Outcome, Result};
use crate::output::Output;
use crate::progress::Show;
use crate::session::Session;

/// Show metadata, get a value, set or unset some
///
/// Those of a single file are in its header, those of shards in the index; what the headers of all shards
/// agree on is shown too.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file, an index or a folder
    path: PathBuf,

    #[command(subcommand)]
    action: Option<Action>,
}

/// What to do with metadata.
#[derive(Debug, Subcommand)]
enum Action {
    /// Write one value, and nothing else
    Get {
        /// Its key
        key: String,
    },
    /// Give keys values; tensors stay as they are
    Set {
        /// A key and its value; `@FILE` for what is in a file, `@@` for a value that begins with `@`
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = pair)]
        pairs: Vec<(String, ValueArg)>,

        /// In the header of every shard, where transformers looks for `format`; not in the index
        #[arg(long)]
        shards: bool,
    },
    /// Remove keys; tensors stay as they are
    Unset {
        /// A key, or a pattern: `ss_*`
        #[arg(required_unless_present = "all", value_name = "KEY")]
        keys: Vec<String>,

        /// All keys
        #[arg(long, conflicts_with = "keys")]
        all: bool,

        /// In the header of every shard; not in the index
        #[arg(long)]
        shards: bool,
    },
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    match &args.action {
        None => show(args, session),
        Some(Action::Get { key }) => get(args, key, session),
        Some(Action::Set { pairs, shards }) => {
            let changes = pairs.iter().map(|(key, value)| {
                let value = value.read()?;
                Ok(MetadataChange::Set(key.clone(), value))
            });
            let changes = changes.collect::<Result<Vec<_>>>()?;
            change(args, &changes, Where::of(*shards), session)
        }
        Some(Action::Unset { keys, all, shards }) => {
            let is_meant = |key: &&str| *all || keys.iter().any(|pattern| fits(pattern, key));
            let checkpoint = open(args, session)?;
            let mut meant: BTreeSet<&str> = match (Where::of(*shards), checkpoint.index()) {
                (Where::Index, Some(index)) => {
                    index.metadata().keys().map(String::as_str).collect()
                }
                _ => {
                    let entries = checkpoint.files().iter();
                    let entries = entries.flat_map(|file| file.header().metadata());
                    entries.map(|(key, _)| key).collect()
                }
            };
            meant.retain(is_meant);
            let changes = meant
                .into_iter()
                .map(str::to_owned)
                .map(MetadataChange::Unset);
            change(
                args,
                &changes.collect::<Vec<_>>(),
                Where::of(*shards),
                session,
            )
        }
    }
}

/// Which metadata of a checkpoint in shards are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Index,
    Shards,
}

impl Where {
    fn of(is_of_shards: bool) -> Self {
        match is_of_shards {
            true => Self::Shards,
            false => Self::Index,
        }
    }
}

fn open(args: &Args, session: &Session) -> Result<Checkpoint> {
    let options = OpenOptions {
        unknown_dtype: UnknownDtype::Keep,
        ..session.open_options(Profile::default())
    };
    Ok(Checkpoint::open_with(&args.path, &options)?)
}

/// What the checkpoint says of itself, in the order in which it does.
fn metadata(args: &Args, session: &Session) -> Result<Vec<(String, String)>> {
    let checkpoint = open(args, session)?;
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Ok(match (checkpoint.index(), checkpoint.files()) {
        (Some(index), files) => {
            let text = |value: &Value| match value {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            let of_index = index.metadata().iter();
            let of_index = of_index.map(|(key, value)| (key.clone(), text(value)));
            let of_shards = agreed(files).filter(|(key, _)| !index.metadata().contains_key(*key));
            of_index.chain(of_shards.map(owned)).collect()
        }
        (None, files) => {
            let entries = files.iter().flat_map(|file| file.header().metadata());
            entries.map(owned).collect()
        }
    })
}

/// What the headers of all files say.
fn agreed(files: &[ShardFile]) -> impl Iterator<Item = (&str, &str)> {
    let first = files.first().into_iter();
    let entries = first.flat_map(|file| file.header().metadata());
    entries.filter(|(key, value)| {
        let mut files = files.iter();
        files.all(|file| file.header().metadata_value(key) == Some(*value))
    })
}

fn show(args: &Args, session: &Session) -> Result {
    let mut out = Output::new();
    for (key, value) in metadata(args, session)? {
        writeln!(out, "{}={}", Printable::of(&key), Printable::of(&value))?;
    }
    out.finish()?;
    Ok(Outcome::Fine)
}

fn get(args: &Args, key: &str, session: &Session) -> Result {
    let metadata = metadata(args, session)?;
    let Some((_, value)) = metadata.iter().find(|(other, _)| other == key) else {
        return Ok(Outcome::Findings);
    };
    let mut out = Output::new();
    out.exactly(value)?;
    writeln!(out)?;
    out.finish()?;
    Ok(Outcome::Fine)
}

fn change(args: &Args, changes: &[MetadataChange], of: Where, session: &Session) -> Result {
    let bar = session.bar("writing", Show::OnTerminal);
    let open = session.open_options(Profile::default());
    let read = session.read_options(&bar);
    let written = match of {
        Where::Index => change_metadata(&args.path, changes, &open, &read)?,
        Where::Shards => change_shard_metadata(&args.path, changes, &open, &read)?,
    };
    drop(bar);
    if session.is_quiet() {
        return Ok(Outcome::Fine);
    }
    let done = match written {
        MetadataWrite::Nothing => "nothing to change",
        MetadataWrite::Replaced => "changed",
    };
    let mut out = Output::new();
    writeln!(out, "{}: {done}", Printable::of(&args.path))?;
    out.finish()?;
    Ok(Outcome::Fine)
}

/// A value as it is given.
#[derive(Clone, Debug)]
enum ValueArg {
    Text(String),
    In(PathBuf),
}

impl ValueArg {
    fn read(&self) -> Result<String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::In(file) => fs::read_to_string(file).map_err(|why| {
                Failure::Usage(format!(
                    "{}: {why}; a value that begins with `@` is written `@@`",
                    file.display()
                ))
            }),
        }
    }
}

fn pair(text: &str) -> Result<(String, ValueArg), String> {
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return Err("write it as KEY=VALUE".to_owned());
    };
    let value = match value.strip_prefix('@') {
        None => ValueArg::Text(value.to_owned()),
        Some(text) if text.starts_with('@') => ValueArg::Text(text.to_owned()),
        Some(file) => ValueArg::In(file.into()),
    };
    Ok((key.to_owned(), value))
}

/// Whether a key is this one, or fits the pattern: `*` stands for any characters.
fn fits(pattern: &str, key: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = key.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}
