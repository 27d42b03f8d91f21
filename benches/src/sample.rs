//! One sample: one contender, once, in this process.
//!
//! What the driver and its children say to each other, a line each; `python/rivals.py` does the
//! same: the child says `ready` when everything is prepared, the driver answers when the page cache
//! is as wanted, the child runs, says [`Measured`] while it still holds what it produced, and, asked
//! to check, says its [`Digest`](crate::digest::Digest).

use std::io::{self, Write};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::job::Run;
use crate::memory::{self, Resident};
use crate::{Folders, Result, jobs};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    No,
    Yes,
}

/// What one sample measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// On top of what was resident before the clock started, with the product still in memory.
    pub(crate) resident: Resident,
}

pub(crate) fn run(folders: &Folders, job: &str, contender: &str, check: Check) -> Result {
    let job = jobs::find(job)?;
    let contender = job.contender(contender).ok_or("no such contender")?;
    let Run::Rust(prepare) = contender.run else {
        return Err("this contender is a function of python/rivals.py".into());
    };
    let prepared = prepare(&job.data.path(&folders.data()))?;
    say("ready")?;
    io::stdin().read_line(&mut String::new())?;
    // Last: within two seconds the machine may have given the memory back to its host. Not where no
    // time is taken and memory is watched from outside.
    if check == Check::No {
        memory::touch(job.touch)?;
    }

    memory::reset_peak()?;
    let before = Resident::of("self")?;
    let cpu_before = memory::cpu_seconds()?;
    let clock = Instant::now();
    let product = prepared()?;
    let seconds = clock.elapsed().as_secs_f64();
    let cpu = memory::cpu_seconds()?;
    let measured = Measured {
        seconds,
        user: cpu.0 - cpu_before.0,
        system: cpu.1 - cpu_before.1,
        resident: Resident::of("self")?.above(before),
    };
    say(&serde_json::to_string(&measured)?)?;
    if check == Check::Yes {
        say(&serde_json::to_string(&product()?)?)?;
    }
    Ok(())
}

fn say(line: &str) -> Result {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}
