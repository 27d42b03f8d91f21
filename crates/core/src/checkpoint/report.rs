//! What a load did, as a value.

use std::fmt;

use super::names::sample;
use crate::Dtype;

/// What a load did and what it found amiss. `Display` prints a short summary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
pub struct Mismatch {
    /// The tensor's name.
    pub name: String,
    /// The shape asked for.
    pub expected: Vec<u64>,
    /// The shape in the checkpoint.
    pub found: Vec<u64>,
}

/// A tensor that was converted.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        let names = |names: &[String]| sample(names.iter().map(String::as_str));
        for (what, list) in [("missing", &self.missing), ("unused", &self.unused)] {
            if !list.is_empty() {
                write!(f, "; {} {what}: {}", list.len(), names(list))?;
            }
        }
        if !self.mismatched.is_empty() {
            let list = sample(
                self.mismatched
                    .iter()
                    .map(|mismatch| mismatch.name.as_str()),
            );
            write!(f, "; {} of another shape: {list}", self.mismatched.len())?;
        }
        if !self.skipped.is_empty() {
            let list = sample(self.skipped.iter().map(|(name, _)| name.as_str()));
            write!(f, "; {} skipped: {list}", self.skipped.len())?;
        }
        if !self.cast.is_empty() {
            write!(f, "; {} cast", self.cast.len())?;
        }
        if !self.aliased.is_empty() {
            write!(f, "; {} aliases", self.aliased.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_a_few_of_each() {
        let report = LoadReport {
            loaded: vec!["a".into(), "b".into()],
            unused: ["p", "q", "r", "s"].map(str::to_owned).to_vec(),
            ..LoadReport::default()
        };
        assert_eq!(
            report.to_string(),
            "2 tensors loaded; 4 unused: p, q, r and 1 more"
        );
        assert!(!report.is_exact());
    }
}
