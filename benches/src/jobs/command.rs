//! The `safeshard` command against the commands that people use, each started as a process of its own.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::Digest as _;

use super::common::{GIB, owned};
use super::save::{fresh_folder, saved};
use crate::Result;
use crate::data::{Dataset, files};
use crate::digest::Digest;
use crate::job::{Cache, Contender, Job, Measure, Opens, Prepared, Product, Target};

pub(super) const RESHARD: Job = Job {
    name: "command-reshard",
    title: "`safeshard reshard`: 4 GiB into shards",
    about: "One file of 4 GiB into shards of at most 1 GiB, in the page cache when the command ends. \
            `cp` copies the same bytes into one file. Python's way is `load_file` and huggingface_hub's \
            `save_torch_state_dict`; its interpreter and libraries are loaded before the clock starts.",
    data: Dataset::FourGib,
    cache: Cache::Warm,
    touch: 6 * GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours("safeshard", "`safeshard reshard`", |path| {
            reshard(path, &["--max-shard-size", "1GiB"])
        }),
        Contender::rival("cp", "`cp --reflink=never`", copy),
        Contender::python("python", "Python `save_torch_state_dict`", "reshard", &[]),
    ],
    targets: &[
        Target::time("safeshard", "cp", 1.15, 1.00),
        Target::time("safeshard", "python", 0.33, 0.20),
        Target::extra_memory("safeshard", 256.0, 64.0),
    ],
};

pub(super) const MERGE: Job = Job {
    name: "command-merge",
    title: "`safeshard reshard --single`: four shards into one file",
    about: "Four shards of 1 GiB into one file, in the page cache when the command ends; `cp` copies \
            the same bytes into four files.",
    data: Dataset::FourGibShards,
    contenders: &[
        Contender::ours("safeshard", "`safeshard reshard --single`", |path| {
            reshard(path, &["--single"])
        }),
        Contender::rival("cp", "`cp --reflink=never`", copy),
    ],
    targets: &[
        Target::time("safeshard", "cp", 1.15, 1.00),
        Target::extra_memory("safeshard", 256.0, 64.0),
    ],
    ..RESHARD
};

pub(super) const INSPECT: Job = Job {
    name: "command-inspect",
    title: "`safeshard inspect` of 1,000 tensors",
    about: "From the start of the process to its end. Python imports `safetensors` only, no framework, \
            and lists the same: names, dtypes and shapes.",
    data: Dataset::Header1k,
    touch: 64 << 20,
    samples_times: 3,
    contenders: &[
        Contender::ours("safeshard", "`safeshard inspect --json`", inspect),
        Contender::rival("python", "`python -c` with `safe_open`", inspect_in_python),
    ],
    targets: &[
        Target {
            ours: "safeshard",
            measure: Measure::Milliseconds,
            must: 10.0,
            goal: 5.0,
        },
        Target::time("safeshard", "python", 0.25, 0.10),
    ],
    ..RESHARD
};

pub(super) const DIFF: Job = Job {
    name: "command-diff",
    title: "`safeshard diff` of equal checkpoints",
    about: "Two files of 1 GiB with the same bytes.",
    data: Dataset::Twins,
    touch: GIB,
    samples_times: 1,
    contenders: &[
        Contender::ours("safeshard", "`safeshard diff`", |path| {
            compare(path, safeshard(&["diff"]))
        }),
        Contender::rival("cmp", "`cmp`", |path| compare(path, Command::new("cmp"))),
    ],
    targets: &[Target::time("safeshard", "cmp", 1.30, 0.70)],
    ..RESHARD
};

pub(super) const DIGEST: Job = Job {
    name: "command-digest",
    title: "`safeshard digest`",
    about: "The digest of a file of 1 GiB. Each is compared with that of another implementation.",
    data: Dataset::Matrices,
    touch: GIB,
    samples_times: 1,
    contenders: &[
        Contender::ours("blake3", "`safeshard digest`, BLAKE3, 2 threads", |path| {
            let command = safeshard(&["digest", "--threads", "2", "--algorithm", "blake3"]);
            hash(path, command, blake3)
        }),
        Contender::ours("sha256", "`safeshard digest`, SHA-256", |path| {
            hash(path, safeshard(&["digest"]), sha256)
        }),
        Contender::rival("sha256sum", "`sha256sum`", |path| {
            hash(path, Command::new("sha256sum"), sha256)
        }),
        Contender::rival("b3sum", "`b3sum`, 2 threads", |path| {
            let mut command = Command::new("b3sum");
            command.args(["--num-threads", "2"]);
            hash(path, command, blake3)
        }),
    ],
    targets: &[
        Target::time("blake3", "sha256sum", 0.33, 0.15),
        Target::time("sha256", "sha256sum", 1.05, 0.50),
    ],
    ..RESHARD
};

/// The command, which is built beside this program.
fn safeshard(words: &[&str]) -> Command {
    let this = env::current_exe().unwrap_or_default();
    let mut command = Command::new(this.with_file_name("safeshard"));
    command.args(words);
    command
}

/// What it printed, where all went well.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => {
            let errors = String::from_utf8_lossy(&output.stderr);
            Err(format!("{command:?}: {}: {errors}", output.status).into())
        }
    }
}

fn reshard(path: &Path, how: &[&str]) -> Result<Prepared> {
    let folder = fresh_folder(path)?;
    let mut command = safeshard(&["reshard", "--no-sync"]);
    command.args(how).arg(path).arg(&folder);
    run(command, folder)
}

fn copy(path: &Path) -> Result<Prepared> {
    let folder = fresh_folder(path)?;
    let mut command = Command::new("cp");
    command
        .arg("--reflink=never")
        .args(files(path)?)
        .arg(&folder);
    run(command, folder)
}

fn run(mut command: Command, folder: PathBuf) -> Result<Prepared> {
    Ok(Box::new(move || {
        output(&mut command)?;
        Ok(saved(folder, ()))
    }))
}

fn inspect(path: &Path) -> Result<Prepared> {
    let mut command = safeshard(&["inspect", "--json"]);
    command.arg(path);
    Ok(Box::new(move || {
        let json = output(&mut command)?;
        Ok(Box::new(move || {
            let found: Value = serde_json::from_str(&json)?;
            described(&found["tensors"])
        }))
    }))
}

fn inspect_in_python(path: &Path) -> Result<Prepared> {
    const SCRIPT: &str = "\
import json, sys
from safetensors import safe_open
with safe_open(sys.argv[1], 'numpy') as file:
    tensors = [(name, file.get_slice(name)) for name in file.keys()]
    tensors = [
        {'name': name, 'dtype': part.get_dtype(), 'shape': part.get_shape()}
        for name, part in tensors
    ]
    print(json.dumps(tensors))
";
    let python = env::var_os("SAFESHARD_BENCH_PYTHON").ok_or("--python is needed")?;
    let mut command = Command::new(python);
    command.args([OsStr::new("-c"), OsStr::new(SCRIPT), path.as_os_str()]);
    Ok(Box::new(move || {
        let json = output(&mut command)?;
        Ok(Box::new(move || described(&serde_json::from_str(&json)?)))
    }))
}

/// A list of names, dtypes and shapes.
fn described(tensors: &Value) -> Result<Digest> {
    let tensors = tensors.as_array().ok_or("no tensors")?;
    let entries = tensors.iter().map(|tensor| {
        let name = tensor["name"].as_str()?;
        let dtype = tensor["dtype"].as_str()?.to_owned();
        let shape = tensor["shape"].as_array()?.iter().map(Value::as_u64);
        Some((name, dtype, shape.collect::<Option<Vec<_>>>()?, 0, 0))
    });
    let entries: Option<Vec<_>> = entries.collect();
    Ok(Digest::of_entries(
        entries.ok_or("a tensor without a description")?,
    ))
}

/// Both files of a folder; the command says by its exit status that they are equal.
fn compare(path: &Path, mut command: Command) -> Result<Prepared> {
    let files = files(path)?;
    command.args(&files);
    Ok(Box::new(move || {
        output(&mut command)?;
        Ok(Box::new(move || Digest::of_files(&files)))
    }))
}

type Hash = fn(&Path) -> Result<String>;

/// A command that prints the digest of a file, which must be the one that `expected` gives.
fn hash(path: &Path, mut command: Command, expected: Hash) -> Result<Prepared> {
    let path = owned(path);
    command.arg(&path);
    Ok(Box::new(move || {
        let printed = output(&mut command)?;
        let check: Product = Box::new(move || match printed.starts_with(&expected(&path)?) {
            true => Digest::of_files(&[path]),
            false => Err(format!("another digest: {printed}").into()),
        });
        Ok(check)
    }))
}

fn blake3(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn sha256(path: &Path) -> Result<String> {
    let mut hasher = sha2::Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(format!("{:x}", hasher.finalize()))
}
