//! `safeshard diff`: which tensors of two checkpoints differ, and by how much.

use std::io::{self, Write};
use std::path::PathBuf;

use safeshard_core::{
    Change, Changed, DiffOptions, Difference, DtypeChange, Printable, Tolerance, diff,
};
use serde::Serialize;

use crate::failure::{Outcome, Result};
use crate::output::{self, BAD, GOOD, Output};
use crate::progress::Show;
use crate::session::Session;
use crate::text::{count, number, shape};

/// Compare two checkpoints tensor by tensor, however they are sharded
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file, an index or a folder
    a: PathBuf,

    /// Another one
    b: PathBuf,

    /// Write JSON
    #[arg(long)]
    json: bool,

    /// Take floats for equal that are at most this part of B's apart, besides --atol
    #[arg(long, value_name = "X", value_parser = tolerance)]
    rtol: Option<f64>,

    /// Take floats for equal that are at most this much apart, besides --rtol
    #[arg(long, value_name = "X", value_parser = tolerance)]
    atol: Option<f64>,

    /// Compare floats of different dtypes by value
    #[arg(long)]
    cast: bool,
}

#[derive(Serialize)]
struct JsonDifference<'d> {
    version: u32,
    equal: bool,
    only_a: &'d [String],
    only_b: &'d [String],
    changed: Vec<JsonChanged<'d>>,
}

#[derive(Serialize)]
struct JsonChanged<'d> {
    name: &'d str,
    reason: &'static str,
    /// Null where it is infinite, or not a number.
    max_abs: Option<f64>,
    max_rel: Option<f64>,
    differing: u64,
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    let a = session.open(&args.a)?;
    let b = session.open(&args.b)?;
    let show = if args.json {
        Show::Never
    } else {
        Show::OnTerminal
    };
    let bar = session.bar("comparing", show);
    let tolerance = (args.rtol.is_some() || args.atol.is_some()).then(|| Tolerance {
        relative: args.rtol.unwrap_or_default(),
        absolute: args.atol.unwrap_or_default(),
    });
    let difference = diff(
        &a,
        &b,
        &DiffOptions {
            tolerance,
            dtypes: match args.cast {
                true => DtypeChange::ByValue,
                false => DtypeChange::Differs,
            },
            read: session.read_options(&bar),
        },
    )?;
    drop(bar);
    if args.json {
        let changed = difference.changed.iter();
        output::json(&JsonDifference {
            version: 1,
            equal: difference.is_equal(),
            only_a: &difference.only_a,
            only_b: &difference.only_b,
            changed: changed.map(JsonChanged::of).collect(),
        })?;
    } else {
        let mut out = Output::new();
        write(&difference, &mut out)?;
        if !session.is_quiet() {
            summary(&difference, a.names().len() as u64, &mut out)?;
        }
        out.finish()?;
    }
    Ok(match difference.is_equal() {
        true => Outcome::Fine,
        false => Outcome::Findings,
    })
}

impl<'d> JsonChanged<'d> {
    fn of(changed: &'d Changed) -> Self {
        let (reason, differing, max_abs, max_rel) = match changed.change {
            Change::Dtype { .. } => ("dtype", 0, None, None),
            Change::Shape { .. } => ("shape", 0, None, None),
            Change::Values {
                differing,
                max_abs,
                max_rel,
                ..
            } => ("values", differing, max_abs, max_rel),
            _ => ("values", 0, None, None),
        };
        let finite = |number: Option<f64>| number.filter(|number| number.is_finite());
        Self {
            name: &changed.name,
            reason,
            max_abs: finite(max_abs),
            max_rel: finite(max_rel),
            differing,
        }
    }
}

/// Writes a line for each tensor that differs.
fn write(difference: &Difference, out: &mut Output) -> io::Result<()> {
    let (good, bad) = (out.style(GOOD), out.style(BAD));
    for name in &difference.only_a {
        writeln!(out, "{bad}-{bad:#} {}", Printable::of(name))?;
    }
    for name in &difference.only_b {
        writeln!(out, "{good}+{good:#} {}", Printable::of(name))?;
    }
    for changed in &difference.changed {
        write!(out, "{bad}!{bad:#} {}: ", Printable::of(&changed.name))?;
        match &changed.change {
            Change::Dtype { a, b } => writeln!(out, "{a} in A, {b} in B")?,
            Change::Shape { a, b } => writeln!(out, "{} in A, {} in B", shape(a), shape(b))?,
            Change::Values {
                differing,
                max_abs,
                max_rel,
                ..
            } => {
                write!(out, "{}", count(*differing, "element"))?;
                if let (Some(abs), Some(rel)) = (max_abs, max_rel) {
                    write!(out, ", by at most {abs:.3e}, relative {rel:.3e}")?;
                }
                writeln!(out)?;
            }
            _ => writeln!(out)?,
        }
    }
    Ok(())
}

fn summary(difference: &Difference, names: u64, out: &mut Output) -> io::Result<()> {
    let (good, bad) = (out.style(GOOD), out.style(BAD));
    if difference.is_equal() {
        return writeln!(out, "{good}equal{good:#}: {}", count(names, "tensor"));
    }
    let same = names - (difference.only_a.len() + difference.changed.len()) as u64;
    writeln!(
        out,
        "{bad}different{bad:#}: {} the same, {} changed, {} only in A, {} only in B",
        number(same),
        number(difference.changed.len() as u64),
        number(difference.only_a.len() as u64),
        number(difference.only_b.len() as u64),
    )
}

/// A number that is no less than 0.
fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 => Ok(number),
        _ => Err("not a number of 0 or more".to_owned()),
    }
}
