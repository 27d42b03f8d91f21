//! What a load did, as a value.

use std::fmt;

use super::names::sample;
use crate::format::dtype::Dtype;
use crate::printable::Printable;

/// What a load did and what it found amiss. `Display` prints a short summary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Tensors that were loaded, under their new names, aliases included.
    pub loaded: Vec<String>,
    /// Asked for, and not in the checkpoint.
    pub missing: Vec<String>,
    /// In the checkpoint, and never asked for.
    pub unused: Vec<String>,
    /// Left out because the framework has no such dtype: name and dtype.
    pub skipped: Vec<(String, String)>,
    /// Asked for with another shape.
    pub mismatched: Vec<Mismatch>,
    /// Converted to another dtype on the way.
    pub cast: Vec<CastRecord>,
    /// Names that share the tensor of another name: alias and the name that was kept.
    pub aliased: Vec<(String, String)>,
}

/// A tensor of another shape than was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// The tensor's name.
    pub name: String,
    /// The shape asked for.
    pub expected: Vec<u64>,
    /// The shape in the checkpoint.
    pub found: Vec<u64>,
}

impl Mismatch {
    /// A tensor that was asked for in the first of these shapes and has the second one.
    pub fn new(name: impl Into<String>, expected: Vec<u64>, found: Vec<u64>) -> Self {
        Self {
            name: name.into(),
            expected,
            found,
        }
    }
}

/// A tensor that was converted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CastRecord {
    /// The tensor's name.
    pub name: String,
    /// Its dtype in the checkpoint.
    pub from: Dtype,
    /// Its dtype now.
    pub to: Dtype,
}

impl LoadReport {
    /// Whether everything asked for was there and everything there was asked for.
    pub fn is_exact(&self) -> bool {
        self.missing.is_empty()
            && self.unused.is_empty()
            && self.skipped.is_empty()
            && self.mismatched.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        let (missing, unused) = (self.missing.iter(), self.unused.iter());
        some_of(f, "missing", missing.map(String::as_str))?;
        some_of(f, "unused", unused.map(String::as_str))?;
        let mismatched = self.mismatched.iter();
        some_of(f, "of another shape", mismatched.map(|other| &*other.name))?;
        let skipped = self.skipped.iter();
        some_of(f, "skipped", skipped.map(|(name, _)| &**name))?;
        if !self.cast.is_empty() {
            write!(f, "; {} cast", self.cast.len())?;
        }
        if !self.aliased.is_empty() {
            write!(f, "; {} aliases", self.aliased.len())?;
        }
        Ok(())
    }
}

/// How many there are, and the first few.
fn some_of<'n>(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    names: impl ExactSizeIterator<Item = &'n str>,
) -> fmt::Result {
    match names.len() {
        0 => Ok(()),
        count => write!(f, "; {count} {what}: {}", Printable::of(&sample(names))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_a_few_of_each() {
        let report = LoadReport {
            loaded: vec!["a".into(), "b".into()],
            unused: ["p", "q\n", "r", "s"].map(str::to_owned).to_vec(),
            ..LoadReport::default()
        };
        assert_eq!(
            report.to_string(),
            r"2 tensors loaded; 4 unused: p, q\n, r and 1 more"
        );
        assert!(!report.is_exact());
    }
}
