//! Verifying: everything that is wrong with a checkpoint, as findings and not as an error.

mod content;

use std::path::Path;

use super::Checkpoint;
use crate::checkpoint::open::OpenOptions;
use crate::error::{Code, Error, Finding, Kind, Result, Severity};
use crate::io::engine::ReadOptions;

/// How to verify a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// How it is opened, and by which rules.
    pub open: OpenOptions,
    /// How its bytes are read, where they are.
    pub read: ReadOptions,
    /// How deep to look.
    pub level: VerifyLevel,
}

/// How deep to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VerifyLevel {
    /// Headers, index, files: what opening checks, and what it warns of.
    #[default]
    Structure,
    /// Every byte of every tensor as well: NaN, infinity, nothing but zeros, booleans that are
    /// neither 0 nor 1.
    Content,
}

/// What verifying found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Errors and warnings, those of the structure first, then by tensor.
    pub findings: Vec<Finding>,
}

impl Verification {
    /// Whether the checkpoint may be used: none of the findings is an error.
    pub fn is_accepted(&self) -> bool {
        let mut severities = self.findings.iter().map(|finding| finding.severity);
        severities.all(|severity| severity != Severity::Error)
    }
}

/// Says everything that is wrong with the checkpoint at a path, in findings with the codes of errors.
/// What is no checkpoint at all is a finding too.
///
/// The structure takes one or two reads a file. The content is read once, on a few threads, and two
/// blocks of 384 KiB a thread are in memory; it is looked at only where the structure is sound.
///
/// # Errors
/// Only where there is nothing to be said: `io`, `not-found`, `not-a-regular-file` (what is at the
/// path cannot be read), `file-changed` (it was written to meanwhile), `cancelled`.
///
/// ```
/// use safeshard_core::{Code, VerifyOptions, verify};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// std::fs::write(&path, "<!DOCTYPE html>").unwrap();
/// let verification = verify(&path, &VerifyOptions::default())?;
/// assert!(!verification.is_accepted());
/// assert_eq!(verification.findings[0].problem.code(), Code::NotSafetensors);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn verify(path: impl AsRef<Path>, options: &VerifyOptions) -> Result<Verification> {
    with_content(structure(path.as_ref(), &options.open)?, options)
}

/// As [`verify`], of what somebody else opened at the path, or could not open: a file of another format.
///
/// # Errors
/// As [`verify`].
///
/// ```
/// use safeshard_core::{Checkpoint, Dtype, SaveTensor, VerifyLevel, VerifyOptions, verify_opened};
///
/// let tensor = SaveTensor::new("w", Dtype::Bool, [2], vec![1, 7]);
/// let opened = Checkpoint::from_tensors(vec![tensor]);
/// let options = VerifyOptions { level: VerifyLevel::Content, ..VerifyOptions::default() };
/// let verification = verify_opened(opened, "memory", &options)?;
/// assert_eq!(verification.findings[0].problem.code().as_str(), "bool-value");
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn verify_opened(
    opened: Result<Checkpoint>,
    path: impl AsRef<Path>,
    options: &VerifyOptions,
) -> Result<Verification> {
    with_content(looked_at(opened, path.as_ref())?, options)
}

/// What is to be said of the content too, if that was asked for.
fn with_content(
    (mut verification, checkpoint): (Verification, Option<Checkpoint>),
    options: &VerifyOptions,
) -> Result<Verification> {
    if let Some(checkpoint) = checkpoint
        && options.level == VerifyLevel::Content
    {
        let content = content::check(&checkpoint, &options.read)?;
        verification.findings.extend(content);
    }
    Ok(verification)
}

/// What is to be said of the structure, and the checkpoint if there is one.
pub(super) fn structure(
    path: &Path,
    options: &OpenOptions,
) -> Result<(Verification, Option<Checkpoint>)> {
    looked_at(Checkpoint::open_with(path, options), path)
}

fn looked_at(
    opened: Result<Checkpoint>,
    path: &Path,
) -> Result<(Verification, Option<Checkpoint>)> {
    match opened {
        Ok(checkpoint) => {
            let mut findings = checkpoint.warnings().to_vec();
            findings.extend(checkpoint.quantization_findings());
            Ok((Verification { findings }, Some(checkpoint)))
        }
        Err(error) => Ok((refused(error, path)?, None)),
    }
}

/// The problems of a checkpoint that cannot be opened, unless it could not be read at all.
fn refused(error: Error, path: &Path) -> Result<Verification> {
    let unreadable = |problem: &Error| match problem.code() {
        // A shard that is a folder, or a device, is the checkpoint's fault.
        Code::NotRegularFile => problem.path() == Some(path),
        Code::SchemeNotBuiltIn => true,
        code => code.kind() == Kind::Io,
    };
    let problems = match error.problems() {
        [] => std::slice::from_ref(&error),
        problems => problems,
    };
    if problems.iter().all(unreadable) {
        return Err(error);
    }
    let findings = error.into_problems().into_iter().map(Finding::error);
    Ok(Verification {
        findings: findings.collect(),
    })
}
