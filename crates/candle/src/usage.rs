//! What was asked of a checkpoint, kept until someone wants the report.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;

use safeshard_core::{CastRecord, Checkpoint, Dtype, LoadReport, Mismatch, Planned, natural_order};

use crate::lock;

/// Notes of all requests, from any thread.
#[derive(Debug, Default)]
pub(crate) struct Usage(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    /// Stored names, whatever became of the request.
    asked: HashSet<String>,
    loaded: BTreeSet<String>,
    missing: BTreeSet<String>,
    mismatched: BTreeMap<String, Mismatch>,
    cast: BTreeMap<(String, Dtype), CastRecord>,
}

impl Usage {
    pub(crate) fn asked(&self, stored: &str) {
        lock(&self.0).asked.insert(stored.to_owned());
    }

    pub(crate) fn missing(&self, name: &str) {
        lock(&self.0).missing.insert(name.to_owned());
    }

    pub(crate) fn mismatched(&self, planned: &Planned, expected: Vec<u64>) {
        let mismatch = Mismatch::new(&planned.name, expected, planned.shape.clone());
        lock(&self.0)
            .mismatched
            .insert(planned.name.clone(), mismatch);
    }

    pub(crate) fn loaded(&self, planned: &Planned) {
        let mut notes = lock(&self.0);
        notes.loaded.insert(planned.name.clone());
        if let Some(record) = planned.record() {
            notes.cast.insert((record.name.clone(), record.to), record);
        }
    }

    /// `names`: the stored name or alias behind each name that could be asked for.
    pub(crate) fn report(
        &self,
        names: &BTreeMap<String, String>,
        checkpoint: &Checkpoint,
    ) -> LoadReport {
        let notes = lock(&self.0);
        let kept = |stored: &String| checkpoint.aliases().get(stored);
        let unused = names.iter().filter(|(_, stored)| {
            let stored = kept(stored).unwrap_or(stored);
            !notes.asked.contains(stored)
        });
        let aliased = notes.loaded.iter().filter_map(|alias| {
            let kept = kept(names.get(alias)?)?;
            let (kept, _) = names.iter().find(|(_, stored)| *stored == kept)?;
            Some((alias.clone(), kept.clone()))
        });
        let mut report = LoadReport::default();
        report.loaded = in_natural_order(&notes.loaded);
        report.missing = in_natural_order(&notes.missing);
        report.unused = in_natural_order(unused.map(|(name, _)| name));
        report.mismatched = notes.mismatched.values().cloned().collect();
        report.cast = notes.cast.values().cloned().collect();
        report.aliased = aliased.collect();
        report
    }
}

fn in_natural_order<'n>(names: impl IntoIterator<Item = &'n String>) -> Vec<String> {
    let mut names: Vec<_> = names.into_iter().cloned().collect();
    names.sort_unstable_by(|a, b| natural_order(a, b));
    names
}
