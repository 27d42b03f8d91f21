//! What Python wrote, and what it says of what we write.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use safeshard_core::{Checkpoint, OpenOptions};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The folder of what the generators in `tests/python` wrote.
pub fn fixtures() -> PathBuf {
    let folder = env::var_os("SAFESHARD_FIXTURES");
    PathBuf::from(
        folder.expect("SAFESHARD_FIXTURES is not set: run the tests with `cargo xtask test`"),
    )
}

/// A checkpoint that Python wrote, and what its reader says is in it.
pub struct Written {
    pub folder: PathBuf,
    expected: Value,
}

impl Written {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut found = Vec::new();
        for folder in fs::read_dir(fixtures().join("interop")).unwrap() {
            let folder = folder.unwrap().path();
            for file in fs::read_dir(&folder).unwrap() {
                let path = file.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                if name.starts_with("expected") && name.ends_with(".json") {
                    let expected = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                    let folder = folder.clone();
                    found.push(Self { folder, expected });
                }
            }
        }
        assert!(found.len() >= 18);
        found
    }

    pub fn open(&self) -> Checkpoint {
        let path = self.folder.join(self.expected["path"].as_str().unwrap());
        Checkpoint::open_with(path, &self.open_options()).unwrap()
    }

    pub fn open_options(&self) -> OpenOptions {
        OpenOptions {
            variant: self.expected["variant"].as_str().map(str::to_owned),
            ..OpenOptions::default()
        }
    }

    /// Checks that it holds exactly the tensors and aliases that Python wrote.
    #[track_caller]
    pub fn is_in(&self, checkpoint: &Checkpoint) {
        let tensors = self.expected["tensors"].as_object().unwrap();
        let aliases: BTreeMap<String, String> =
            serde_json::from_value(self.expected["aliases"].clone()).unwrap();
        assert_eq!(checkpoint.aliases(), &aliases);
        let names: BTreeSet<_> = checkpoint.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(names, tensors.keys().map(String::as_str).collect());
        for (name, expected) in tensors {
            let info = checkpoint.info(name).unwrap();
            assert_eq!(info.dtype.name(), expected["dtype"], "{name}");
            assert_eq!(serde_json::json!(info.shape), expected["shape"], "{name}");
            let digest = Sha256::digest(checkpoint.read(name).unwrap());
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, expected["sha256"], "{name}");
        }
    }
}

/// Runs a script of `tests/python` with a file of jobs; it prints a line for each.
#[track_caller]
pub fn run(script: &str, jobs: &[Value], folder: &Path) {
    let path = folder.join("jobs.json");
    fs::write(&path, Value::from(jobs).to_string()).unwrap();
    let python = env::var_os("SAFESHARD_PYTHON");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python");
    let output = Command::new(python.expect("SAFESHARD_PYTHON is not set: run `cargo xtask test`"))
        .arg(scripts.join(script))
        .arg(path)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let done = stdout.lines().filter(|line| line.starts_with("loaded "));
    assert_eq!(done.count(), jobs.len(), "{stdout}");
}

/// What each of the Python libraries finds in a folder that holds one number in every tensor: `tests/python/load_folders.py`, started
/// once for all tests.
pub fn values_in(folder: &Path) -> Value {
    static PYTHON: OnceLock<Mutex<(Child, BufReader<ChildStdout>)>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| {
        let python = env::var_os("SAFESHARD_PYTHON")
            .expect("SAFESHARD_PYTHON is not set: run the tests with `cargo xtask test`");
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/load_folders.py");
        let mut child = Command::new(python)
            .arg(fs::canonicalize(script).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        // It ends when its input does, with this process.
        Mutex::new((child, answers))
    });
    let mut python = python.lock().unwrap_or_else(PoisonError::into_inner);
    let (child, answers) = &mut *python;
    writeln!(child.stdin.as_mut().unwrap(), "{}", folder.display()).unwrap();
    let mut answer = String::new();
    answers.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}
