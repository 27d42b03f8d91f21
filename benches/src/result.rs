//! What a run of a job found out: kept as JSON, so that the report can be made again.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::digest::Digest;
use crate::machine::Machine;
use crate::memory::Resident;
use crate::stats;

#[derive(Serialize, Deserialize)]
pub(crate) struct JobResult {
    pub(crate) job: String,
    pub(crate) command: String,
    pub(crate) machine: Machine,
    /// What every contender produced.
    pub(crate) product: Digest,
    /// The least and the greatest part of the files that was in the page cache before a sample.
    pub(crate) cached: Option<(f64, f64)>,
    pub(crate) contenders: Vec<ContenderResult>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ContenderResult {
    pub(crate) name: String,
    /// In the order measured; so is `user`, `system`.
    pub(crate) seconds: Vec<f64>,
    pub(crate) user: Vec<f64>,
    pub(crate) system: Vec<f64>,
    /// Peaks of one further run that was watched; the highest sum of all runs.
    pub(crate) resident: Resident,
    pub(crate) files_opened: Option<u64>,
}

impl JobResult {
    pub(crate) fn contender(&self, name: &str) -> Option<&ContenderResult> {
        let mut contenders = self.contenders.iter();
        contenders.find(|contender| contender.name == name)
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    pub(crate) fn write(&self, path: &Path) -> Result {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(())
    }
}

impl ContenderResult {
    pub(crate) fn median(&self) -> f64 {
        stats::median(&self.seconds)
    }

    pub(crate) fn best(&self) -> f64 {
        stats::best(&self.seconds)
    }
}
