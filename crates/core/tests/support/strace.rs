//! Whether `strace` can be used, and what differs from run to run in what it shows.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether this machine lets processes be traced; where it does not, the test ends loudly.
#[track_caller]
pub fn works(tested: &str) -> bool {
    let works = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .output();
    if works.is_ok_and(|output| output.status.success()) {
        return true;
    }
    if env::var_os("SAFESHARD_SKIP_STRACE").is_some_and(|value| value == "1") {
        eprintln!("WARNING: NOT TESTED: {tested}: strace cannot trace here, and may be skipped");
        return false;
    }
    panic!("strace is missing or may not trace; SAFESHARD_SKIP_STRACE=1 skips this test");
}

/// The random parts of the names of stages, in the order in which a run made them: by their places,
/// runs compare.
#[derive(Debug, Default)]
pub struct Stages(Vec<String>);

pub const STAGE_END: &str = ".partial";
const RANDOM_DIGITS: usize = 16;
/// Six digits, like the others to who sees a stage's name.
const NOT_RANDOM: &str = "facade";

impl Stages {
    /// Those of the last run in this folder.
    pub fn of(root: &Path) -> Self {
        let mut stages = Self::default();
        if let Ok(log) = fs::read_to_string(log_in(root)) {
            stages.learn(&log);
        }
        stages
    }

    fn learn(&mut self, log: &str) {
        let found: Vec<_> = log.match_indices(STAGE_END).collect();
        for (end, _) in found {
            let random = &log[end.saturating_sub(RANDOM_DIGITS)..end];
            let is_random = random.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_random
                && !random.starts_with(NOT_RANDOM)
                && !self.0.iter().any(|known| known == random)
            {
                self.0.push(random.to_owned());
            }
        }
    }

    /// The text with the places instead.
    pub fn places_in(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (place, random) in self.0.iter().enumerate() {
            text = text.replace(random, &format!("{NOT_RANDOM}{place:010}"));
        }
        text
    }
}

/// Where a run in this folder is logged.
pub fn log_in(root: &Path) -> PathBuf {
    root.join("strace.log")
}
