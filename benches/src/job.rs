//! What a benchmark is: some contenders that do the same thing with the same files.

use std::path::Path;

use crate::Result;
use crate::data::Dataset;
use crate::digest::Digest;

/// One comparison; each file in `jobs/` is one.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What is measured and what is left out, for the report.
    pub(crate) about: &'static str,
    pub(crate) data: Dataset,
    pub(crate) cache: Cache,
    /// Bytes of memory touched and freed before the clock starts: more than any contender needs.
    pub(crate) touch: u64,
    /// Samples for each one asked for: short jobs are noisier and cost little.
    pub(crate) samples_times: usize,
    /// Whether to count the files that each contender opens.
    pub(crate) opens: Opens,
    pub(crate) contenders: &'static [Contender],
    pub(crate) targets: &'static [Target],
}

/// What the page cache holds of the files when the clock starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// All: they were just read.
    Warm,
    /// Nothing: they were just dropped.
    Cold,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opens {
    Ignored,
    Counted,
}

#[derive(Clone, Copy)]
pub(crate) struct Contender {
    /// Unique within the job.
    pub(crate) name: &'static str,
    /// What the report calls it.
    pub(crate) label: &'static str,
    pub(crate) side: Side,
    pub(crate) run: Run,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    Rival,
    /// What the machine can do at best: no loader, only the least that one must do.
    Floor,
}

#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// Gets the path of the job's data.
    Rust(RustRun),
    /// A function of `python/rivals.py`, and what is added to its environment.
    Python(&'static str, &'static [(&'static str, &'static str)]),
}

/// Everything that is not measured is done; calling it is what is measured.
pub(crate) type Prepared = Box<dyn FnOnce() -> Result<Product>>;

/// Owns what was produced, so that it is in memory when the clock stops; calling it, with the clock
/// stopped, says what it is.
pub(crate) type Product = Box<dyn FnOnce() -> Result<Digest>>;

/// What safeshard has to reach.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Which contender is meant.
    pub(crate) ours: &'static str,
    pub(crate) measure: Measure,
    pub(crate) must: f64,
    pub(crate) goal: f64,
}

#[derive(Clone, Copy)]
pub(crate) enum Measure {
    /// Its median over the median of this other contender.
    TimeOver(&'static str),
    /// The peak of its anonymous memory over the bytes of what it produced.
    AnonymousOverPayload,
    /// The same with the pages of mapped files.
    ResidentOverPayload,
    /// The peak of its anonymous memory, in MiB.
    AnonymousMib,
    /// Its median, in milliseconds.
    Milliseconds,
    /// How many files it opened.
    FilesOpened,
}

impl Job {
    pub(crate) fn contender(&self, name: &str) -> Option<&'static Contender> {
        let mut contenders = self.contenders.iter();
        contenders.find(|contender| contender.name == name)
    }
}

type RustRun = fn(&Path) -> Result<Prepared>;

impl Contender {
    pub(crate) const fn ours(name: &'static str, label: &'static str, run: RustRun) -> Self {
        Self::new(name, label, Side::Ours, Run::Rust(run))
    }

    pub(crate) const fn rival(name: &'static str, label: &'static str, run: RustRun) -> Self {
        Self::new(name, label, Side::Rival, Run::Rust(run))
    }

    pub(crate) const fn floor(name: &'static str, label: &'static str, run: RustRun) -> Self {
        Self::new(name, label, Side::Floor, Run::Rust(run))
    }

    /// A rival; `function` and `env` are those of [`Run::Python`].
    pub(crate) const fn python(
        name: &'static str,
        label: &'static str,
        function: &'static str,
        env: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self::new(name, label, Side::Rival, Run::Python(function, env))
    }

    const fn new(name: &'static str, label: &'static str, side: Side, run: Run) -> Self {
        Self {
            name,
            label,
            side,
            run,
        }
    }
}

impl Target {
    pub(crate) const fn time(
        ours: &'static str,
        rival: &'static str,
        must: f64,
        goal: f64,
    ) -> Self {
        let measure = Measure::TimeOver(rival);
        Self {
            ours,
            measure,
            must,
            goal,
        }
    }

    /// The memory that a save may need, in MiB.
    pub(crate) const fn extra_memory(ours: &'static str, must: f64, goal: f64) -> Self {
        let measure = Measure::AnonymousMib;
        Self {
            ours,
            measure,
            must,
            goal,
        }
    }

    /// The anonymous memory that every load may need.
    pub(crate) const fn memory(ours: &'static str) -> Self {
        let measure = Measure::AnonymousOverPayload;
        Self {
            ours,
            measure,
            must: 1.03,
            goal: 1.01,
        }
    }
}
