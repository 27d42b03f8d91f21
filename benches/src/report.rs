//! Tables and pictures of results: on the terminal after a run, and in `README.md`.

use std::fmt::Write;
use std::fs;

use crate::job::{Job, Measure, Side, Target};
use crate::machine::Machine;
use crate::result::{ContenderResult, JobResult};
use crate::stats::{ratio, seconds};
use crate::svg::{self, Bar};
use crate::{Folders, Result, jobs};

const START: &str = "\
# Benchmarks

safeshard against the other loaders of safetensors files. Made by `cargo xtask bench --report` from
the results in `results/`; `cargo xtask bench` measures them anew.

## How it is measured

- Every sample is a process of its own, and the contenders of a job take turns in random order
  (with a fixed seed). Figures are medians; ratios are of medians of the same run.
- Memory is touched and freed in the process before the clock starts. A virtual machine gives freed
  memory back to its host; the first touch of such memory is up to five times slower than any
  loader, and would be charged to whoever comes first.
- Before each sample `fincore` says whether the page cache holds the files. If it should and does not,
  they are dropped and read from front to back, all of them: the kernel keeps in small units what it
  reads into gaps, and mapping those takes up to three times as long.
- One further run of each contender is not timed: its memory is looked at every millisecond, and
  what it produced is compared. All contenders of a job produced the same names, dtypes, shapes and
  bytes, or there would be no result.
- \"Anonymous\" and \"mapped\" are peaks on top of what the process had before the clock started;
  mapped are pages of files. Those of a command are its process's. User and system time are medians too, in steps of 10 ms.
- A black mark on a bar is the best sample.

";

/// Renders `README.md` and its pictures from the last results, and keeps those.
pub(crate) fn write(folders: &Folders) -> Result {
    let results = folders.results();
    fs::create_dir_all(&results)?;
    let mut measured = Vec::new();
    for job in jobs::ALL {
        let name = format!("{}.json", job.name);
        let (last, kept) = (
            folders.work.join("results").join(&name),
            results.join(&name),
        );
        if last.exists() {
            fs::copy(last, &kept)?;
        }
        if kept.exists() {
            measured.push((job, JobResult::read(&kept)?));
        }
    }
    let Some((_, first)) = measured.first() else {
        return Err("there are no results: run `cargo xtask bench` first".into());
    };
    let stranger = measured
        .iter()
        .find(|(_, result)| result.machine != first.machine);
    if let Some((job, _)) = stranger {
        return Err(format!("{} was measured on another machine: run it again", job.name).into());
    }
    let mut page = START.to_owned();
    page += &machine(&first.machine);
    let all = measured.iter().map(|(job, result)| (*job, result));
    let _ok = writeln!(
        page,
        "## What it has to reach\n\nRatios of safeshard's figure to the other one: less is better.\n\n{}",
        markdown(&targets(all))
    );
    for (job, result) in &measured {
        page += &section(job, result);
        fs::write(
            results.join(format!("{}.svg", job.name)),
            picture(job, result),
        )?;
    }
    fs::write(folders.package.join("README.md"), page)?;
    Ok(())
}

/// What a run prints when a job is done.
pub(crate) fn text(job: &Job, result: &JobResult) -> String {
    let mut text = format!("\n{} ({})\n\n", job.title, job.name);
    text += &aligned(&table(job, result));
    if !job.targets.is_empty() {
        text.push('\n');
        text += &aligned(&targets([(job, result)]));
    }
    text.replace('`', "")
}

fn machine(machine: &Machine) -> String {
    let versions = machine
        .versions
        .iter()
        .map(|(name, version)| format!("{name} {version}"));
    format!(
        "## The machine\n\n{} cores ({}), {} GiB of memory, Linux {}, pages of {} bytes, huge pages: \
         `{}`. {}.\n\n",
        machine.cores,
        machine.processor,
        (machine.memory_mib + 512) >> 10,
        machine.kernel,
        machine.page_bytes,
        machine.huge_pages,
        versions.collect::<Vec<_>>().join(", "),
    )
}

/// The targets of some jobs: a head, and a row each.
fn targets<'r>(measured: impl IntoIterator<Item = (&'r Job, &'r JobResult)>) -> Vec<Vec<String>> {
    let head = ["benchmark", "against", "must", "goal", "reached", "verdict"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (job, result) in measured {
        rows.extend(
            job.targets
                .iter()
                .map(|target| verdict(job, target, result)),
        );
    }
    rows
}

fn section(job: &Job, result: &JobResult) -> String {
    let samples = result
        .contenders
        .first()
        .map_or(0, |first| first.seconds.len());
    let cached = match result.cached {
        Some((least, most)) => {
            let (least, most) = (
                format!("{:.1}", least * 100.0),
                format!("{:.1}", most * 100.0),
            );
            let range = if least == most {
                most
            } else {
                format!("{least} to {most}")
            };
            format!("{range}% of the files were in the page cache.")
        }
        None => "What was in the page cache was not checked.".to_owned(),
    };
    format!(
        "## {}\n\n{}\n\n![{}](results/{}.svg)\n\n{}\n`{}`: {samples} samples of each. {} tensors, \
         {}. {cached}\n\n",
        job.title,
        job.about,
        job.title,
        job.name,
        markdown(&table(job, result)),
        result.command,
        result.product.tensors,
        size(result.product.bytes),
    )
}

fn picture(job: &Job, result: &JobResult) -> String {
    let bars = job.contenders.iter().filter_map(|contender| {
        let measured = result.contender(contender.name)?;
        Some(Bar {
            label: contender.label.replace('`', ""),
            side: contender.side,
            median: measured.median(),
            best: measured.best(),
            value: seconds(measured.median()),
        })
    });
    svg::bars(job.title, &bars.collect::<Vec<_>>())
}

/// The contenders: a head, and a row each.
fn table(job: &Job, result: &JobResult) -> Vec<Vec<String>> {
    let counted = result
        .contenders
        .iter()
        .any(|contender| contender.files_opened.is_some());
    let mut head = vec![
        "",
        "median",
        "best",
        "safeshard / it",
        "anonymous",
        "mapped",
        "user + system",
    ];
    head.extend(counted.then_some("files opened"));
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    let ours = job
        .contenders
        .iter()
        .find(|contender| contender.side == Side::Ours);
    let ours = ours.and_then(|ours| result.contender(ours.name));
    let ours = ours.map_or(f64::NAN, ContenderResult::median);
    for contender in job.contenders {
        let Some(measured) = result.contender(contender.name) else {
            continue;
        };
        let memory = |bytes: u64| -> String {
            let payload = result.product.bytes;
            match bytes.min(payload) >> 20 {
                // A ratio of small things says nothing.
                0..16 => size(bytes),
                _ => format!(
                    "{} ({} ×)",
                    size(bytes),
                    ratio(bytes as f64 / payload as f64)
                ),
            }
        };
        let compared = if contender.side == Side::Ours {
            String::new()
        } else {
            ratio(ours / measured.median())
        };
        let (user, system) = (&measured.user, &measured.system);
        let mut row = vec![
            contender.label.to_owned(),
            seconds(measured.median()),
            seconds(measured.best()),
            compared,
            memory(measured.resident.anonymous),
            memory(measured.resident.mapped),
            format!(
                "{:.2} + {:.2} s",
                crate::stats::median(user),
                crate::stats::median(system)
            ),
        ];
        if counted {
            let opened = measured.files_opened;
            row.push(opened.map_or("–".to_owned(), |opened| opened.to_string()));
        }
        rows.push(row);
    }
    rows
}

/// A target's row.
fn verdict(job: &Job, target: &Target, result: &JobResult) -> Vec<String> {
    let label = |name: &str| {
        job.contender(name)
            .map_or(name, |found| found.label)
            .to_owned()
    };
    let ours = result.contender(target.ours);
    let per_payload = |bytes: u64| bytes as f64 / result.product.bytes as f64;
    let (against, reached) = match target.measure {
        Measure::TimeOver(rival) => {
            let medians = ours.zip(result.contender(rival));
            let reached = medians.map(|(ours, rival)| ours.median() / rival.median());
            (label(rival), reached)
        }
        Measure::AnonymousOverPayload => {
            let reached = ours.map(|ours| per_payload(ours.resident.anonymous));
            ("peak anonymous memory / payload".to_owned(), reached)
        }
        Measure::AnonymousMib => {
            let reached = ours.map(|ours| ours.resident.anonymous as f64 / f64::from(1 << 20));
            ("peak anonymous memory, MiB".to_owned(), reached)
        }
        Measure::ResidentOverPayload => {
            let reached = ours.map(|ours| per_payload(ours.resident.peak));
            ("peak resident memory / payload".to_owned(), reached)
        }
        Measure::Milliseconds => {
            let reached = ours.map(|ours| ours.median() * 1000.0);
            ("milliseconds".to_owned(), reached)
        }
        Measure::FilesOpened => {
            let reached = ours.and_then(|ours| ours.files_opened);
            (
                "files opened".to_owned(),
                reached.map(|opened| opened as f64),
            )
        }
    };
    let reached = reached.unwrap_or(f64::NAN);
    let figure = match target.measure {
        Measure::FilesOpened | Measure::AnonymousMib => |count: f64| format!("{count:.0}"),
        Measure::Milliseconds => |milliseconds: f64| format!("{milliseconds:.1}"),
        _ => ratio,
    };
    let verdict = match reached {
        reached if reached <= target.goal => "pass, goal reached",
        reached if reached <= target.must => "pass",
        reached if reached.is_nan() => "not measured",
        _ => "**miss**",
    };
    let several = job
        .contenders
        .iter()
        .filter(|one| one.side == Side::Ours)
        .count()
        > 1;
    let what = match several {
        true => format!("{}: {}", job.title, label(target.ours)),
        false => job.title.to_owned(),
    };
    vec![
        what,
        against,
        figure(target.must),
        figure(target.goal),
        figure(reached),
        verdict.to_owned(),
    ]
}

fn size(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 20) {
        mib if mib >= 1024.0 => format!("{:.2} GiB", mib / 1024.0),
        mib if mib >= 10.0 => format!("{mib:.0} MiB"),
        mib => format!("{mib:.1} MiB"),
    }
}

fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (position, row) in rows.iter().enumerate() {
        let _ok = writeln!(text, "| {} |", row.join(" | "));
        if position == 0 {
            let rule: Vec<_> = (0..row.len())
                .map(|column| if column == 0 { "---" } else { "--:" })
                .collect();
            let _ok = writeln!(text, "| {} |", rule.join(" | "));
        }
    }
    text
}

fn aligned(rows: &[Vec<String>]) -> String {
    let plain = |cell: &String| cell.replace('`', "");
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| plain(cell).chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (position, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = plain(cell);
            let _ok = match position {
                0 => write!(text, "  {cell:width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}
