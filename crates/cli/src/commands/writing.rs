//! What `reshard` and `convert` have in common: where from and where to, how, and what is said of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use safeshard_core::{
    Checkpoint, Durability, Losses, OpenOptions, Printable, Profile, ReshardOptions, ReshardReport,
    ShardSize, Shards, SideFiles, UnknownDtype,
};
use safeshard_import::{ImportOptions, open_with};

use crate::failure::{Failure, Result};
use crate::output::{ODD, Output};
use crate::progress::{Bar, Show};
use crate::session::Session;
use crate::text::{count, size};

/// Where from, where to, and into which files.
#[derive(Debug, clap::Args)]
pub(super) struct Places {
    /// A file, an index or a folder
    #[arg(value_name = "IN")]
    from: PathBuf,

    /// A folder, which may be that of IN; or a file that ends in `.safetensors`
    #[arg(value_name = "OUT")]
    to: PathBuf,

    /// Shards of so many bytes at most: `5GB`, `500 MiB`, a number of bytes [default: as they are]
    #[arg(long, value_name = "SIZE", conflicts_with = "single")]
    max_shard_size: Option<ShardSize>,

    /// One file
    #[arg(long)]
    single: bool,

    /// Copy along what lies beside IN: configuration, tokenizer, licence
    #[arg(long)]
    with_files: bool,

    /// Write even where tensors disappear with the files that are replaced, although they are not part
    /// of the checkpoint: by default they are named, and nothing is written
    #[arg(long)]
    accept_loss: bool,

    /// End when everything is written, without waiting for the disk: a power failure may then
    /// lose both IN, where OUT replaces it, and OUT
    #[arg(long)]
    no_sync: bool,
}

impl Places {
    pub(super) fn open(&self, session: &Session, import: &ImportOptions) -> Result<Checkpoint> {
        let is_file = self.to.extension().is_some_and(|end| end == "safetensors");
        if is_file && self.max_shard_size.is_some() {
            return Err(Failure::Usage(format!(
                "{}: --max-shard-size makes shards, and this is one file; name a folder",
                Printable::of(&self.to)
            )));
        }
        // A tensor of a dtype of tomorrow stops only what would write it.
        let options = OpenOptions {
            unknown_dtype: UnknownDtype::Keep,
            ..session.open_options(Profile::default())
        };
        Ok(open_with(&self.from, &options, import)?)
    }

    pub(super) fn to(&self) -> &Path {
        &self.to
    }

    pub(super) fn bar(session: &Session) -> Bar {
        session.bar("writing", Show::OnTerminal)
    }

    pub(super) fn options(&self, session: &Session, bar: &Bar) -> ReshardOptions {
        let read = session.read_options(bar);
        ReshardOptions {
            shards: match (self.single, self.max_shard_size) {
                (true, _) => Shards::Single,
                (false, Some(size)) => Shards::Limit(size),
                (false, None) => Shards::Keep,
            },
            dialect: None,
            side_files: match self.with_files {
                true => SideFiles::Carry,
                false => SideFiles::Leave,
            },
            losses: match self.accept_loss {
                true => Losses::Accept,
                false => Losses::Refuse,
            },
            durability: match self.no_sync {
                true => Durability::Cached,
                false => Durability::Durable,
            },
            threads: read.threads,
            progress: read.progress,
            cancel: read.cancel,
        }
    }

    /// Says what was written, and warns of what was not.
    pub(super) fn say(
        &self,
        report: &ReshardReport,
        session: &Session,
        more: impl FnOnce(&mut Output) -> Result<()>,
    ) -> Result<()> {
        if !session.is_quiet() {
            let mut out = Output::new();
            let tensors = report.cast.len() as u64 + report.unchanged.values().sum::<u64>();
            writeln!(
                out,
                "{}: {} in {}, {}",
                Printable::of(&self.to),
                count(tensors, "tensor"),
                count(report.saved.files.len() as u64, "file"),
                size(report.saved.total_size),
            )?;
            more(&mut out)?;
            list(&mut out, "copied along", &report.carried)?;
            list(&mut out, "not copied along", &report.not_carried)?;
            out.finish()?;
        }
        warn_of_losses(report);
        Ok(())
    }
}

/// A line with names, if there are any.
pub(super) fn list(out: &mut Output, what: &str, names: &[String]) -> Result<()> {
    if !names.is_empty() {
        writeln!(out, "{what}: {}", Printable::of(&names.join(", ")))?;
    }
    Ok(())
}

/// What is no failure, but must not go unseen either; `--quiet` does not silence it.
fn warn_of_losses(report: &ReshardReport) {
    /// More lines of a kind would hide the others.
    const SHOWN: usize = 10;
    fn warn_of<T>(losses: &[T], line: impl Fn(&T) -> String) {
        for loss in losses.iter().take(SHOWN) {
            warn(&line(loss));
        }
        if let Some(more @ 1..) = losses.len().checked_sub(SHOWN) {
            warn(&format!("and {more} more like the last"));
        }
    }
    warn_of(&report.unlisted, |(file, name)| {
        format!("`{name}` in {file} is not in the index, and was not written")
    });
    warn_of(&report.metadata_left, |left| {
        let (file, key, value) = (&left.file, &left.key, &left.value);
        format!("metadata of {file} that has no place any more: {key}={value}")
    });
    warn_of(&report.overflowed, |(name, elements)| {
        format!("elements of `{name}` too large for their dtype, infinite now: {elements}")
    });
    warn_of(&report.saved.left_behind, |path| {
        format!("{} could not be removed", Printable::of(path))
    });
    warn_of(&report.saved.not_recovered, |left| {
        let (checkpoint, why) = (&left.checkpoint, &left.why);
        format!("an earlier save of {checkpoint} is unfinished: {why}")
    });
}

/// Writes a warning to standard error.
pub(super) fn warn(text: &str) {
    let mut out = Output::stderr();
    let odd = out.style(ODD);
    // Nobody is left to be told.
    let _closed = writeln!(out, "{odd}warning{odd:#}: {}", Printable::of(text));
}
