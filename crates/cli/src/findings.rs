//! Findings as JSON, and as lines for a person.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safeshard_core::{Finding, Severity};
use serde::Serialize;

use crate::output::{BAD, ODD, Output};
use crate::words;

/// A finding as the JSON of `inspect` and `verify` has it.
#[derive(Debug, Serialize)]
pub(crate) struct JsonFinding<'f> {
    code: &'static str,
    severity: &'static str,
    file: Option<String>,
    tensor: Option<&'f str>,
    offset: Option<u64>,
    message: String,
}

impl<'f> JsonFinding<'f> {
    /// A finding about the checkpoint at `path`.
    pub(crate) fn new(finding: &'f Finding, path: &Path) -> Self {
        let problem = &finding.problem;
        Self {
            code: problem.code().as_str(),
            severity: severity(finding.severity),
            file: problem.path().map(|file| name_of(file, path)),
            tensor: problem.tensor(),
            offset: problem.offset(),
            message: words::message(problem).to_string(),
        }
    }
}

/// Writes a line: how much it matters, the code, the message.
pub(crate) fn write(out: &mut Output, finding: &Finding) -> io::Result<()> {
    let style = out.style(match finding.severity {
        Severity::Error => BAD,
        Severity::Warning => ODD,
    });
    writeln!(
        out,
        "{style}{}[{}]{style:#}: {}",
        severity(finding.severity),
        finding.problem.code().as_str(),
        words::message(&finding.problem)
    )
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// A file of the checkpoint at `path`, by the name that it has there.
fn name_of(file: &Path, path: &Path) -> String {
    let folder = match path.is_dir() {
        true => path.to_path_buf(),
        false => path.parent().map(PathBuf::from).unwrap_or_default(),
    };
    let name = file.strip_prefix(folder).unwrap_or(file);
    let name = match name.as_os_str().is_empty() {
        true => file,
        false => name,
    };
    name.to_string_lossy().into_owned()
}
