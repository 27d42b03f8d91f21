//! What the tests need and cargo does not bring: the Python oracles and what they write.
//!
//! Both are made once and stamped, as the last step, with a copy of what they were made from: a
//! missing or different stamp means half-made or out of date, and everything is made anew.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Result, Tree, step};

const STAMP: &str = "made-from.stamp";

/// Each script takes the folder that it writes; the second column is that folder's name.
const GENERATORS: [(&str, &str); 7] = [
    ("make_fixtures.py", "interop"),
    ("make_minilm.py", "all-minilm-l6-v2"),
    ("make_bert_family.py", "bert-family"),
    ("cast_oracle.py", "casts"),
    ("save_oracle.py", "save"),
    ("quantized_oracle.py", "quantized"),
    ("make_torch.py", "torch"),
];

/// Makes the virtual environment unless it is there; returns its Python.
pub(crate) fn python(tree: &Tree) -> Result<PathBuf> {
    let _lock = lock(tree)?;
    make_python(tree)
}

/// Makes the oracles' files unless they are there; returns Python and the files' folder.
pub(crate) fn fixtures(tree: &Tree) -> Result<(PathBuf, PathBuf)> {
    let _lock = lock(tree)?;
    let python = make_python(tree)?;
    let folder = tree.target.join("fixtures");
    let mut source = requirements(tree)?;
    for script in scripts(tree)? {
        source += &read(&script)?;
    }
    if !is_made_from(&folder, &source) {
        remove(&folder)?;
        for (script, name) in GENERATORS {
            let mut generator = tree.command(&python);
            generator
                .arg(tree.root.join("tests/python").join(script))
                .arg(folder.join(name));
            step(script, &mut generator)?;
        }
        stamp(&folder, &source)?;
    }
    Ok((python, folder))
}

/// Lets a cargo command build and run what needs libtorch: that of the oracles' PyTorch, unless the
/// environment names another one as tch wants it.
pub(crate) fn add_libtorch(command: &mut Command, python: &Path) -> Result {
    if ["LIBTORCH", "LIBTORCH_USE_PYTORCH"]
        .iter()
        .any(|name| env::var_os(name).is_some())
    {
        return Ok(());
    }
    const WHERE: &str = "import pathlib, torch; print(pathlib.Path(torch.__file__).parent / 'lib')";
    let output = Command::new(python).args(["-c", WHERE]).output();
    let output = output.map_err(|why| format!("{}: {why}", python.display()))?;
    let lib = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || lib.is_empty() {
        return Err(format!("{} has no torch", python.display()));
    }
    let bin = python.parent().unwrap_or(Path::new(""));
    let libraries = if cfg!(target_os = "macos") {
        "DYLD_LIBRARY_PATH"
    } else {
        "LD_LIBRARY_PATH"
    };
    command
        .env("LIBTORCH_USE_PYTORCH", "1")
        .env("VIRTUAL_ENV", bin.parent().unwrap_or(bin))
        .env("PATH", prepended(bin, "PATH")?)
        .env(libraries, prepended(Path::new(&lib), libraries)?);
    Ok(())
}

/// A folder before those that a variable names already.
fn prepended(folder: &Path, variable: &str) -> Result<OsString> {
    let old = env::var_os(variable).unwrap_or_default();
    let folders = env::split_paths(&old).filter(|folder| !folder.as_os_str().is_empty());
    env::join_paths([folder.to_path_buf()].into_iter().chain(folders))
        .map_err(|why| format!("{variable}: {why}"))
}

fn make_python(tree: &Tree) -> Result<PathBuf> {
    install("strace");
    install("valgrind");
    let folder = tree.root.join(".venv");
    let python = folder.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    let wanted = requirements(tree)?;
    if is_made_from(&folder, &wanted) && python.exists() {
        return Ok(python);
    }
    remove(&folder)?;
    let mut venv = tree.command("python3");
    venv.args(["-m", "venv"]).arg(&folder);
    step(
        "make .venv (needs Python 3 with its venv module)",
        &mut venv,
    )?;
    let mut pip = tree.command(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ])
    .arg(tree.root.join("tests/python/requirements.txt"));
    step("install the Python oracles (some minutes, 6 GB)", &mut pip)?;
    stamp(&folder, &wanted)?;
    Ok(python)
}

/// Whether the tests that inject faults into system calls can run: a container may forbid tracing.
pub(crate) fn can_trace() -> bool {
    runs(Command::new("strace").args(["-f", "-o", "/dev/null", "true"]))
}

/// A program from the package of its name; best effort, those who need it look whether it is there.
pub(crate) fn install(program: &str) {
    if !cfg!(target_os = "linux") || runs(Command::new(program).arg("--version")) {
        return;
    }
    let installed = is_root()
        && runs(Command::new("apt-get").args(["update", "--quiet"]))
        && runs(Command::new("apt-get").args(["install", "--quiet", "--yes", program]));
    if !installed {
        eprintln!("xtask: WARNING: no {program}, and it could not be installed");
    }
}

#[cfg(unix)]
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

/// Whether a program is there and succeeds; its output is dropped.
pub(crate) fn runs(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Keeps two runs in one tree from making the same thing at once; dropping the file unlocks it.
fn lock(tree: &Tree) -> Result<File> {
    let path = tree.target.join("xtask.lock");
    fs::create_dir_all(&tree.target)
        .and_then(|()| File::create(&path))
        .and_then(|file| file.lock().map(|()| file))
        .map_err(|why| format!("{}: {why}", path.display()))
}

fn requirements(tree: &Tree) -> Result<String> {
    read(&tree.root.join("tests/python/requirements.txt"))
}

/// Everything that shapes the fixtures: the generators and what they import.
fn scripts(tree: &Tree) -> Result<Vec<PathBuf>> {
    let folder = tree.root.join("tests/python");
    let entries = fs::read_dir(&folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let mut scripts: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
        .collect();
    scripts.sort();
    Ok(scripts)
}

fn is_made_from(folder: &Path, source: &str) -> bool {
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp == source)
}

fn stamp(folder: &Path, source: &str) -> Result {
    let path = folder.join(STAMP);
    fs::write(&path, source).map_err(|why| format!("{}: {why}", path.display()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|why| format!("{}: {why}", path.display()))
}

fn remove(folder: &Path) -> Result {
    if !folder.exists() {
        return Ok(());
    }
    fs::remove_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))
}
