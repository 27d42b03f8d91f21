//! `safeshard inspect`: what is in a checkpoint.

mod json;
mod overview;
mod tree;

use std::path::{Path, PathBuf};

use safeshard_core::{
    Checkpoint, Code, Error, Finding, OpenOptions, Profile, UnknownDtype, natural_order,
};
use safeshard_import::{ImportOptions, open_with};

use crate::failure::{Outcome, Result};
use crate::output::{self, Output};
use crate::session::Session;

/// Show what is in a checkpoint: tensors, totals, metadata
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file, an index or a folder; or several files that make up one checkpoint
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// Group tensors by module
    #[arg(long, conflicts_with = "json")]
    tree: bool,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What is shown.
struct View<'c> {
    path: &'c Path,
    checkpoint: &'c Checkpoint,
    /// In natural order of their names.
    tensors: Vec<Tensor<'c>>,
    findings: Vec<&'c Finding>,
}

/// A tensor, be its dtype known or not.
struct Tensor<'c> {
    name: &'c str,
    dtype: &'c str,
    shape: &'c [u64],
    /// Where it is in the data section.
    start: u64,
    end: u64,
    file: &'c str,
}

/// Sums over tensors.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    if args.json {
        output::check_json_paths(args.paths.iter().map(PathBuf::as_path))?;
    }
    // A tensor of a dtype of tomorrow can be looked at.
    let options = OpenOptions {
        unknown_dtype: UnknownDtype::Keep,
        ..session.open_options(Profile::default())
    };
    let checkpoint = match args.paths.as_slice() {
        [path] => open_with(path, &options, &ImportOptions::default())?,
        paths => Checkpoint::open_files(paths, &options)?,
    };
    let unknown: Vec<_> = checkpoint
        .unsupported()
        .map(|tensor| unknown_dtype(&tensor))
        .collect();
    let path = args.paths.first().map_or(Path::new(""), PathBuf::as_path);
    let view = View::new(path, &checkpoint, &unknown);
    if args.json {
        output::json(&json::Inspection::of(&view))?;
        return Ok(Outcome::Fine);
    }
    let mut out = Output::new();
    let width = output::width();
    match args.tree {
        true => tree::write(&view, &mut out, width)?,
        false => overview::write(&view, &mut out, width)?,
    }
    out.finish()?;
    Ok(Outcome::Fine)
}

impl<'c> View<'c> {
    fn new(path: &'c Path, checkpoint: &'c Checkpoint, unknown: &'c [Finding]) -> Self {
        let file_of = |name: &str| checkpoint.file_of(name).map_or("", |file| file.name());
        let known = checkpoint.tensors().map(|tensor| Tensor {
            name: tensor.name,
            dtype: tensor.dtype.name(),
            shape: tensor.shape,
            start: tensor.start,
            end: tensor.end,
            file: file_of(tensor.name),
        });
        let mut tensors: Vec<_> = known.collect();
        if !unknown.is_empty() {
            tensors.extend(checkpoint.unsupported().map(|tensor| Tensor {
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
                start: tensor.start,
                end: tensor.end,
                file: file_of(tensor.name),
            }));
            tensors.sort_unstable_by(|a, b| natural_order(a.name, b.name));
        }
        Self {
            path,
            checkpoint,
            tensors,
            findings: checkpoint.warnings().iter().chain(unknown).collect(),
        }
    }

    fn totals(&self) -> Sums {
        let mut sums = Sums::default();
        self.tensors.iter().for_each(|tensor| sums.add(tensor));
        sums
    }
}

impl Tensor<'_> {
    fn byte_len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    fn elements(&self) -> u64 {
        self.shape
            .iter()
            .fold(1, |product, &dim| product.saturating_mul(dim))
    }
}

impl Sums {
    fn add(&mut self, tensor: &Tensor<'_>) {
        self.tensors += 1;
        self.parameters = self.parameters.saturating_add(tensor.elements());
        self.bytes = self.bytes.saturating_add(tensor.byte_len());
    }
}

fn unknown_dtype(tensor: &safeshard_core::UnsupportedTensor<'_>) -> Finding {
    let problem = Error::new(Code::UnknownDtype)
        .in_tensor(tensor.name)
        .found(format_args!("`{}`", tensor.dtype));
    Finding::error(problem)
}
