//! `safeshard digest`: what to verify a checkpoint against later.

use std::path::PathBuf;

use clap::ValueEnum;
use safeshard_core::{Algorithm, DigestOf, DigestOptions};

use crate::failure::{Outcome, Result};
use crate::output::Output;
use crate::progress::Show;
use crate::session::Session;

/// Write a digest of every file, as sha256sum does, or of every tensor
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file, an index or a folder
    path: PathBuf,

    /// Which digest
    #[arg(long, value_enum, default_value = "sha256")]
    algorithm: AlgorithmArg,

    /// Digest every tensor instead of every file: they stay the same however the checkpoint is sharded
    #[arg(long)]
    tensors: bool,

    /// Write to a file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Which digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AlgorithmArg {
    /// As sha256sum and the Hugging Face hub have it
    Sha256,
    /// As b3sum has it; several times as fast
    Blake3,
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    let checkpoint = session.open(&args.path)?;
    let bar = session.bar("digesting", Show::OnTerminal);
    let read = session.read_options(&bar);
    let cancel = read.cancel.clone();
    let manifest = checkpoint.digest(&DigestOptions {
        algorithm: match args.algorithm {
            AlgorithmArg::Sha256 => Algorithm::Sha256,
            AlgorithmArg::Blake3 => Algorithm::Blake3,
        },
        of: match args.tensors {
            true => DigestOf::Tensors,
            false => DigestOf::Files,
        },
        read,
    })?;
    drop(bar);
    match &args.output {
        Some(path) => manifest.write_file(path, cancel.as_ref())?,
        None => {
            let mut out = Output::new();
            for entry in manifest.entries() {
                out.exactly(&format!("{entry}\n"))?;
            }
            out.finish()?;
        }
    }
    Ok(Outcome::Fine)
}
