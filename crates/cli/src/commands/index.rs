//! `safeshard index`: whether the index of shards is right, and making it so.

use std::io::Write;
use std::path::PathBuf;

use safeshard_core::{
    Code, Finding, IndexOutcome, Printable, Profile, UnknownDtype, VerifyOptions, verify,
    write_index,
};

use crate::failure::{Outcome, Result};
use crate::findings;
use crate::output::{GOOD, Output};
use crate::session::Session;
use crate::text::{count, size};

/// Check the index of a folder's shards, or write it from their headers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder
    dir: PathBuf,

    /// Say where index and shards contradict each other; what is done without a flag
    #[arg(long, conflicts_with = "write")]
    check: bool,

    /// Write the index that the headers give
    #[arg(long)]
    write: bool,
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    match args.write {
        true => write(args, session),
        false => check(args, session),
    }
}

fn check(args: &Args, session: &Session) -> Result {
    let options = VerifyOptions {
        open: session.open_options(Profile::default()),
        ..VerifyOptions::default()
    };
    let found = verify(&args.dir, &options)?;
    // Not what is no contradiction: another checkpoint beside it, an adapter for instance, or metadata
    // that nobody needs.
    let beside = [Code::UnlistedFile, Code::IndexMetadata, Code::IndexExtraKey];
    let concerns = |finding: &&Finding| !beside.contains(&finding.problem.code());
    let findings: Vec<_> = found.findings.iter().filter(concerns).collect();
    let mut out = Output::new();
    for finding in &findings {
        findings::write(&mut out, finding)?;
    }
    if findings.is_empty() && !session.is_quiet() {
        let good = out.style(GOOD);
        writeln!(out, "{}: {good}right{good:#}", Printable::of(&args.dir))?;
    }
    out.finish()?;
    Ok(match findings.is_empty() {
        true => Outcome::Fine,
        false => Outcome::Findings,
    })
}

fn write(args: &Args, session: &Session) -> Result {
    let mut options = session.open_options(Profile::default());
    options.unknown_dtype = UnknownDtype::Keep;
    let report = write_index(&args.dir, &options, Some(&session.cancel()))?;
    if session.is_quiet() {
        return Ok(Outcome::Fine);
    }
    let done = match report.outcome {
        IndexOutcome::Written => "written",
        IndexOutcome::Replaced => "replaced",
        IndexOutcome::Unchanged => "right already",
    };
    let mut out = Output::new();
    writeln!(
        out,
        "{}: {done}, {} in {}, {}",
        Printable::of(&report.path),
        count(report.tensors as u64, "tensor"),
        count(report.shards as u64, "shard"),
        size(report.total_size),
    )?;
    out.finish()?;
    Ok(Outcome::Fine)
}
