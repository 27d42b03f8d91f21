//! The memory of a process, as the kernel counts it.
//!
//! A virtual machine may give freed memory back to its host, and then the first touch of it is
//! several times slower than any loader: whoever measures first loses. So every sample touches and
//! frees what its job will need before the clock starts ([`touch`]).

use std::fs;
use std::thread;

use memmap2::{Advice, MmapMut};
use serde::{Deserialize, Serialize};

use crate::Result;

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resident {
    /// Memory that belongs to no file: heap, stacks.
    pub(crate) anonymous: u64,
    /// Pages of mapped files.
    pub(crate) mapped: u64,
    /// The highest sum of both since the peak was last reset.
    pub(crate) peak: u64,
}

impl Resident {
    /// Of the process with that id, or of `self`.
    pub(crate) fn of(process: &str) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        Ok(Self::parse(&status))
    }

    /// Of the process with that id and of those that its first thread has started.
    pub(crate) fn with_children(process: &str) -> Result<Self> {
        let mut sum = Self::of(process)?;
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
        // One that has ended has no memory.
        for child in children.split_whitespace().flat_map(Self::of) {
            sum.anonymous += child.anonymous;
            sum.mapped += child.mapped;
        }
        Ok(sum)
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix(name));
            let digits = line.and_then(|line| line.strip_prefix(':')?.trim().strip_suffix(" kB"));
            digits
                .and_then(|digits| digits.parse().ok())
                .map_or(0, |kb: u64| kb << 10)
        };
        Self {
            anonymous: field("RssAnon"),
            mapped: field("RssFile"),
            peak: field("VmHWM"),
        }
    }

    /// What came on top of another state.
    pub(crate) fn above(self, other: Self) -> Self {
        Self {
            anonymous: self.anonymous.saturating_sub(other.anonymous),
            mapped: self.mapped.saturating_sub(other.mapped),
            // The peak was reset at `other`.
            peak: self.peak.saturating_sub(other.anonymous + other.mapped),
        }
    }

    /// The higher figure of each kind.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            anonymous: self.anonymous.max(other.anonymous),
            mapped: self.mapped.max(other.mapped),
            peak: self.peak.max(other.peak),
        }
    }
}

/// Lets [`Resident::peak`] of this process begin anew.
pub(crate) fn reset_peak() -> Result {
    fs::write("/proc/self/clear_refs", "5")?;
    Ok(())
}

/// Seconds that this process, and those that it has waited for, have spent in their own code and in the
/// kernel; counted in hundredths.
pub(crate) fn cpu_seconds() -> Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    // The second field is a name in parentheses; times are the 14th to the 17th.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let mut times = after_name.split_whitespace().skip(11);
    let mut next = || -> Result<f64> {
        let time = times.next().ok_or("/proc/self/stat is too short")?;
        Ok(time.parse::<f64>()? / ticks)
    };
    let (user, system) = (next()?, next()?);
    let (user_of_others, system_of_others) = (next()?, next()?);
    Ok((user + user_of_others, system + system_of_others))
}

/// Touches and frees that many bytes. In huge pages where the kernel gives them, to save time.
pub(crate) fn touch(bytes: u64) -> Result {
    let mut memory = arena(bytes)?;
    let half = memory.len().div_ceil(2).max(1);
    thread::scope(|scope| {
        for part in memory.chunks_mut(half) {
            scope.spawn(|| {
                for page in part.chunks_mut(4096) {
                    page[0] = 1;
                }
            });
        }
    });
    Ok(())
}

/// Fresh memory, not touched yet, in huge pages where the kernel gives them.
pub(crate) fn arena(bytes: u64) -> Result<MmapMut> {
    let memory = MmapMut::map_anon(usize::try_from(bytes)?)?;
    // Best effort: the machine's figures say which pages it gives.
    let _refused = memory.advise(Advice::HugePage);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_status() {
        let status =
            "Name:\tx\nVmHWM:\t    12 kB\nVmRSS:\t 9 kB\nRssAnon:\t 5 kB\nRssFile:\t 4 kB\n";
        let before = Resident::parse(status);
        assert_eq!(
            (before.anonymous, before.mapped, before.peak),
            (5120, 4096, 12288)
        );
        assert_eq!(before.above(before).peak, 3072);
        assert_eq!(Resident::parse("").max(before), before);
    }

    #[test]
    fn this_process_has_memory_and_time() {
        assert!(Resident::of("self").unwrap().anonymous > 0);
        let (user, system) = cpu_seconds().unwrap();
        assert!(user >= 0.0 && system >= 0.0);
        touch(8 << 20).unwrap();
    }
}
