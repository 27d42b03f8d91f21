//! `safeshard meta`: what a checkpoint says about itself, and changing that.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use safeshard_core::{
    Checkpoint, MetadataChange, MetadataWrite, OpenOptions, Printable, Profile, UnknownDtype,
    change_metadata,
};
use serde_json::Value;

use crate::failure::{Outcome, Result};
use crate::output::Output;
use crate::progress::Show;
use crate::session::Session;

/// Show metadata, get a value, set or unset some
///
/// Those of a single file are in its header, those of shards in the index.
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
        /// A key and its value
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = pair)]
        pairs: Vec<(String, String)>,
    },
    /// Remove keys; tensors stay as they are
    Unset {
        /// A key
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    match &args.action {
        None => show(args, session),
        Some(Action::Get { key }) => get(args, key, session),
        Some(Action::Set { pairs }) => {
            let changes = pairs.iter().cloned();
            let changes = changes.map(|(key, value)| MetadataChange::Set(key, value));
            change(args, &changes.collect::<Vec<_>>(), session)
        }
        Some(Action::Unset { keys }) => {
            let changes = keys.iter().cloned().map(MetadataChange::Unset);
            change(args, &changes.collect::<Vec<_>>(), session)
        }
    }
}

/// What the checkpoint says of itself, in the order in which it does.
fn metadata(args: &Args, session: &Session) -> Result<Vec<(String, String)>> {
    let options = OpenOptions {
        unknown_dtype: UnknownDtype::Keep,
        ..session.open_options(Profile::default())
    };
    let checkpoint = Checkpoint::open_with(&args.path, &options)?;
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Ok(match (checkpoint.index(), checkpoint.files()) {
        (Some(index), _) => {
            let text = |value: &Value| match value {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            let entries = index.metadata().iter();
            entries
                .map(|(key, value)| (key.clone(), text(value)))
                .collect()
        }
        (None, files) => {
            let entries = files.iter().flat_map(|file| file.header().metadata());
            entries.map(owned).collect()
        }
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

fn change(args: &Args, changes: &[MetadataChange], session: &Session) -> Result {
    let bar = session.bar("writing", Show::OnTerminal);
    let written = change_metadata(&args.path, changes, &session.read_options(&bar))?;
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

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}
