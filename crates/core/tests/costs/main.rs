//! What operations cost: memory, allocations and instructions grow with the input and no faster,
//! whatever it has many of. All is counted, nothing is timed.

mod cases;
#[path = "../support/counting.rs"]
mod counting;
mod inputs;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::Command;

use cases::CASES;
use counting::{Cost, MEASURED};
use inputs::{Input, Place};
use tempfile::tempdir;

/// Bytes that do not depend on the input: buffers, and what a process has once.
const SLACK: u64 = 1 << 20;

/// Twice as much takes twice as much, or a little more where something is sorted.
const TWICE: f64 = 2.2;

#[test]
fn memory_is_a_multiple_of_the_input() {
    let _alone = MEASURED.lock();
    let mut wrong = Vec::new();
    for case in CASES {
        let costs = sizes(case.input, Watched::Memory).map(|count| {
            let folder = tempdir().unwrap();
            let (place, len) = Place::make(folder.path(), case.input, count);
            let cost = Cost::of(|| (case.run)(&place).unwrap());
            let _ = fs::remove_dir_all(&place.output);
            (cost, len)
        });
        let what = format!("{} of {} {}", case.name, costs[2].1, case.input.name());
        let (largest, len) = costs[2];
        let times = largest.peak.saturating_sub(SLACK) as f64 / len as f64;
        println!("{what}: {} KiB, {times:.1} times", largest.peak >> 10);
        if largest.peak > case.most * len + SLACK {
            wrong.push(format!("{what}: {} at once", largest.peak));
        }
        let peaks = costs.map(|(cost, _)| cost.peak);
        let [_, half, _] = peaks;
        for (kind, counts) in [
            // Of buffers or of what grows, whichever is more.
            ("bytes at once", [0, half, largest.peak]),
            ("bytes in all", costs.map(|(cost, _)| cost.bytes)),
            ("allocations", costs.map(|(cost, _)| cost.calls)),
        ] {
            if !is_linear(counts, 1 << 16) {
                wrong.push(format!("{what}: {kind}: {counts:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What searches from the start each time allocates nothing, so instructions are counted too.
#[test]
fn instructions_grow_no_faster_than_the_input() {
    if let Some(folder) = support::child_folder() {
        for case in CASES {
            for count in sizes(case.input, Watched::Instructions) {
                let folder = tempfile::tempdir_in(&folder).unwrap();
                let (place, _) = Place::make(folder.path(), case.input, count);
                counted(&mut || (case.run)(&place).unwrap());
            }
        }
        return;
    }
    let works = Command::new("valgrind").arg("--version").output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!("WARNING: NOT TESTED: instructions: there is no valgrind");
        return;
    }
    let _alone = MEASURED.lock();
    let folder = tempdir().unwrap();
    let out = folder.path().join("counts");
    let toggle = format!("--toggle-collect={}::counted", module_path!());
    // After each, into a file of its own.
    let dump = format!("--dump-after={}::counted", module_path!());
    let file = format!("--callgrind-out-file={}", out.display());
    support::child(
        &[
            "valgrind",
            "--tool=callgrind",
            "--quiet",
            "--collect-atstart=no",
            &toggle,
            &dump,
            &file,
        ],
        folder.path(),
    );
    let count = |number: usize| {
        let text = fs::read_to_string(folder.path().join(format!("counts.{number}"))).unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        total.unwrap().parse::<u64>().unwrap()
    };
    let mut wrong = Vec::new();
    for (at, case) in CASES.iter().enumerate() {
        let counts = [1, 2, 3].map(|number| count(3 * at + number));
        let what = format!("{} {}", case.name, case.input.name());
        println!("{what}: {counts:?}");
        if !is_linear(counts, 100_000) {
            wrong.push(format!("{what}: {counts:?}"));
        }
    }
    assert!(wrong.is_empty(), "instructions: {}", wrong.join("\n"));
}

/// What callgrind watches.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

/// Whether the second step, which is twice the first, takes about twice as much as the first.
fn is_linear([once, twice, four_times]: [u64; 3], noise: u64) -> bool {
    let first = twice.saturating_sub(once) as f64;
    let second = four_times.saturating_sub(twice) as f64;
    second <= TWICE * first + noise as f64
}

/// How many of something there are, each time twice as many.
fn sizes(input: Input, watched: Watched) -> [usize; 3] {
    let least = match (input, watched) {
        (Input::Shards, Watched::Memory) => 100,
        (Input::LongNames, Watched::Memory) => 500,
        (_, Watched::Memory) => 2000,
        (Input::Shards, Watched::Instructions) => 24,
        (Input::LongNames, Watched::Instructions) => 30,
        // Fifty times as slow.
        (_, Watched::Instructions) => 120,
    };
    [1, 2, 4].map(|times| times * least)
}

/// What is counted.
#[derive(Clone, Copy)]
enum Watched {
    Memory,
    Instructions,
}
