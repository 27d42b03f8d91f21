//! Instructions that the work per tensor, or per run of a slice, takes: the same on every run, so a check can hold them.
//!
//! Counted by callgrind, only inside [`counted`], on one thread, and compared with
//! `instructions.json`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use candle_core::Device;
use safeshard::candle::load_with;
use safeshard::{Checkpoint, DimRange, Fill, Header, HeaderOptions, LoadOptions, ReadOptions};
use safetensors::tensor::TensorView;

use crate::data::Dataset;
use crate::{Folders, Result};

/// A count may grow by this part: hash seeds move it by 2%, and the C library copies memory with other
/// instructions on other processors.
const TOLERANCE: f64 = 0.15;

const TENSORS: u64 = 10_000;

type Routine = fn(&Path) -> Result;

/// Name, and what is counted: each works on a file of [`TENSORS`] small tensors, or on as many runs.
const ROUTINES: [(&str, Routine); 4] = [
    ("parse the header", parse),
    ("open and list", open),
    ("load into candle", load),
    ("copy a run", slice),
];

/// Instructions a tensor or run, by routine.
type Counts = BTreeMap<String, u64>;

/// Fails where a routine takes more than was recorded.
pub(crate) fn compare(folders: &Folders) -> Result {
    let recorded: Counts = serde_json::from_str(&fs::read_to_string(record(folders))?)?;
    let mut grown = Vec::new();
    for (name, count) in measure(folders)? {
        let before = recorded
            .get(&name)
            .copied()
            .ok_or(format!("{name}: not recorded"))?;
        let growth = count as f64 / before as f64 - 1.0;
        println!(
            "{name:20} {count:6} instructions each, recorded {before} ({:+.1}%)",
            growth * 100.0
        );
        if growth > TOLERANCE {
            grown.push(name);
        }
    }
    match grown.as_slice() {
        [] => Ok(()),
        grown => Err(format!(
            "takes more instructions than recorded: {}; `--accept` records that this is meant",
            grown.join(", ")
        )
        .into()),
    }
}

/// Records the counts of today.
pub(crate) fn accept(folders: &Folders) -> Result {
    let counts = measure(folders)?;
    let text = serde_json::to_string_pretty(&counts)?;
    println!("{text}");
    fs::write(record(folders), text + "\n")?;
    Ok(())
}

/// Runs one routine; what callgrind watches.
pub(crate) fn count(folders: &Folders, name: &str) -> Result {
    let routine = ROUTINES.iter().find(|(routine, _)| *routine == name);
    let (_, routine) = routine.ok_or("no such routine")?;
    routine(&Dataset::Header10k.path(&folders.data()))
}

fn measure(folders: &Folders) -> Result<Counts> {
    Dataset::Header10k.make(&folders.data())?;
    let mut counts = Counts::new();
    for (name, _) in ROUTINES {
        counts.insert(name.to_owned(), callgrind(folders, name)? / TENSORS);
    }
    Ok(counts)
}

fn callgrind(folders: &Folders, name: &str) -> Result<u64> {
    let out = folders.work.join("callgrind.out");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet", "--collect-atstart=no"]);
    valgrind.arg(format!("--toggle-collect={}::counted*", module_path!()));
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.arg(env::current_exe()?).args(["count", name]);
    let output = valgrind
        .output()
        .map_err(|why| format!("valgrind did not start: {why}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let text = fs::read_to_string(out)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    match total.ok_or("callgrind gave no total")?.parse()? {
        0 => Err("callgrind did not see the counted function".into()),
        count => Ok(count),
    }
}

fn record(folders: &Folders) -> std::path::PathBuf {
    folders.package.join("instructions.json")
}

/// The function whose instructions count, with those of all it calls.
#[inline(never)]
fn counted(work: &mut dyn FnMut() -> Result) -> Result {
    work()
}

fn parse(path: &Path) -> Result {
    let file = fs::read(path)?;
    counted(&mut || {
        let header = Header::parse(&file, Some(file.len() as u64), &HeaderOptions::default())?;
        expect(header.len())
    })
}

fn open(path: &Path) -> Result {
    counted(&mut || expect(Checkpoint::open(path)?.names().len()))
}

fn load(path: &Path) -> Result {
    let options = LoadOptions {
        read: one_thread(),
        ..LoadOptions::default()
    };
    counted(&mut || {
        let (tensors, _report) = load_with(path, &Device::Cpu, &options)?;
        expect(tensors.len())
    })
}

/// An error was allocated for each run, and thrown away.
fn slice(_: &Path) -> Result {
    let rows = vec![0; (TENSORS * ROW) as usize];
    let shape = vec![TENSORS as usize, ROW as usize];
    let whole = TensorView::new(safetensors::Dtype::U8, shape, &rows)?;
    let checkpoint = Checkpoint::from_bytes(safetensors::serialize([("w", whole)], None)?)?;
    let mut columns = vec![0; rows.len() / 2];
    counted(&mut || {
        let part = Fill {
            name: "w".into(),
            ranges: Some(vec![DimRange::all(TENSORS), (0..ROW / 2).into()]),
            cast: None,
            destination: &mut columns[..],
        };
        Ok(checkpoint.overwrite(vec![part], &one_thread())?)
    })
}

/// Bytes of a row of which half is a run.
const ROW: u64 = 32;

fn one_thread() -> ReadOptions {
    ReadOptions {
        threads: std::num::NonZero::new(1),
        ..ReadOptions::default()
    }
}

fn expect(tensors: usize) -> Result {
    match tensors as u64 {
        TENSORS => Ok(()),
        found => Err(format!("{found} tensors instead of {TENSORS}").into()),
    }
}
