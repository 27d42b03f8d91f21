//! How a command ends, and what the shell is told.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use safeshard_core::{Code, Error, Printable};

use crate::output::{BAD, Output};
use crate::{interrupt, words};

/// A command's result.
pub(crate) type Result<T = Outcome, E = Failure> = std::result::Result<T, E>;

/// How a command ended that could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Fine, or equal.
    Fine,
    /// Findings, or different.
    Findings,
}

/// Why a command could not run.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the library says.
    Core(Error),
    /// The output could not be written.
    Output(io::Error),
    /// The arguments make no sense, in words.
    Usage(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Core(error)
    }
}

/// Of writing to standard output; files are the library's.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Core(error) => words::message(error).fmt(f),
            Self::Output(error) => write!(f, "standard output: {error}"),
            Self::Usage(why) => Printable::of(why).fmt(f),
        }
    }
}

/// Reports a failure, and says what the process ends with.
pub(crate) fn exit_code(result: Result) -> ExitCode {
    match result {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(1),
        // Whoever reads has seen enough.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Core(error)) if error.code() == Code::Cancelled => {
            ExitCode::from(interrupt::exit_code())
        }
        Err(failure) => {
            report(&failure);
            ExitCode::from(2)
        }
    }
}

fn report(failure: &Failure) {
    let code = match failure {
        Failure::Core(error) => format!("[{}]", error.code().as_str()),
        Failure::Output(_) | Failure::Usage(_) => String::new(),
    };
    let mut out = Output::stderr();
    let bad = out.style(BAD);
    // Nobody is left to be told.
    let _closed = writeln!(out, "{bad}error{code}{bad:#}: {failure}");
}
