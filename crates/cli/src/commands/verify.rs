//! `safeshard verify`: whether anything is wrong with a checkpoint.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use safeshard_core::{
    Code, Manifest, Printable, Profile, Verification, VerifyLevel, VerifyOptions, verify,
    verify_digests, verify_opened,
};
use safeshard_import::{ImportOptions, open_with};
use serde::Serialize;

use crate::explain;
use crate::failure::{Failure, Outcome, Result};
use crate::findings::{self, JsonFinding};
use crate::output::{self, BAD, GOOD, Output};
use crate::progress::Show;
use crate::session::Session;
use crate::text::count;

/// Say everything that is wrong with a checkpoint
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file, an index or a folder
    #[arg(required_unless_present = "explain")]
    path: Option<PathBuf>,

    /// Write JSON
    #[arg(long)]
    json: bool,

    /// By which rules headers are read
    #[arg(
        long,
        value_enum,
        default_value = "default",
        hide_possible_values = true
    )]
    profile: ProfileArg,

    /// How deep to look
    #[arg(long, value_enum, default_value = "structure")]
    level: Level,

    /// Digests, as `safeshard digest` or `sha256sum` wrote them; means `--level digest`
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// Describe a finding's code, and do nothing else
    #[arg(long, value_name = "CODE", conflicts_with_all = ["path", "manifest"])]
    explain: Option<String>,
}

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Headers, index and files: a read or two for each
    Structure,
    /// Also every byte: NaN, infinity, nothing but zeros, invalid booleans
    Content,
    /// Also every byte: whether it is what a manifest vouches for
    Digest,
}

/// By which rules headers are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProfileArg {
    Strict,
    Default,
    Reference,
}

#[derive(Serialize)]
struct Verdict<'f> {
    version: u32,
    verdict: &'static str,
    findings: Vec<JsonFinding<'f>>,
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    if let Some(code) = &args.explain {
        return explain_code(code);
    }
    let path = args.path.as_deref().unwrap_or(Path::new("."));
    if args.json {
        output::check_json_paths([path])?;
    }
    let found = look(path, args, session)?;
    let outcome = match found.is_accepted() {
        true => Outcome::Fine,
        false => Outcome::Findings,
    };
    if args.json {
        let findings = found.findings.iter();
        output::json(&Verdict {
            version: 1,
            verdict: match outcome {
                Outcome::Fine => "accept",
                Outcome::Findings => "reject",
            },
            findings: findings
                .map(|finding| JsonFinding::new(finding, path))
                .collect(),
        })?;
        return Ok(outcome);
    }
    let mut out = Output::new();
    for finding in &found.findings {
        findings::write(&mut out, finding)?;
    }
    if !session.is_quiet() {
        let (style, verdict) = match outcome {
            Outcome::Fine => (GOOD, "accepted"),
            Outcome::Findings => (BAD, "rejected"),
        };
        let style = out.style(style);
        write!(out, "{}: {style}{verdict}{style:#}", Printable::of(path))?;
        match found.findings.len() {
            0 => writeln!(out)?,
            findings => writeln!(out, ", {}", count(findings as u64, "finding"))?,
        }
    }
    out.finish()?;
    Ok(outcome)
}

fn look(path: &Path, args: &Args, session: &Session) -> Result<Verification> {
    let profile = match args.profile {
        ProfileArg::Strict => Profile::Strict,
        ProfileArg::Default => Profile::Default,
        ProfileArg::Reference => Profile::Reference,
    };
    let show = if args.json {
        Show::Never
    } else {
        Show::OnTerminal
    };
    let mut options = VerifyOptions {
        open: session.open_options(profile),
        level: match args.level {
            Level::Content => VerifyLevel::Content,
            Level::Structure | Level::Digest => VerifyLevel::Structure,
        },
        ..VerifyOptions::default()
    };
    let moves_bytes = args.level != Level::Structure || args.manifest.is_some();
    let bar = session.bar("verifying", if moves_bytes { show } else { Show::Never });
    if moves_bytes {
        options.read = session.read_options(&bar);
    }
    let Some(manifest) = &args.manifest else {
        if args.level == Level::Digest {
            let why = "--level digest needs --manifest FILE, which `safeshard digest` writes";
            return Err(Failure::Usage(why.to_owned()));
        }
        let import = ImportOptions::default();
        let opened = open_with(path, &options.open, &import);
        return Ok(verify_opened(opened, path, &options)?);
    };
    let digests = Manifest::open(manifest)?;
    let mut found = verify_digests(path, &digests, &options)?;
    if options.level == VerifyLevel::Content {
        // What the structure had to say was said.
        let content = verify(path, &options)?.findings.into_iter();
        let said: HashSet<_> = found
            .findings
            .iter()
            .map(|old| old.problem.to_string())
            .collect();
        let new = content.filter(|finding| !said.contains(&finding.problem.to_string()));
        found.findings.extend(new.collect::<Vec<_>>());
    }
    Ok(found)
}

fn explain_code(name: &str) -> Result {
    let Some(code) = Code::ALL.iter().find(|code| code.as_str() == name) else {
        return Err(Failure::Usage(format!(
            "no finding has the code `{name}`; `safeshard verify PATH` shows codes in brackets"
        )));
    };
    let mut out = Output::new();
    explain::write(&mut out, *code)?;
    out.finish()?;
    Ok(Outcome::Fine)
}
