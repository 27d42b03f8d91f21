//! Where the figures come from.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::{Folders, Result};

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) page_bytes: usize,
    /// The kernel's setting, such as `always [madvise] never`.
    pub(crate) huge_pages: String,
    /// Of everything that is compared: name and version.
    pub(crate) versions: Vec<(String, String)>,
}

impl Machine {
    pub(crate) fn this(folders: &Folders, python: Option<&Path>) -> Result<Self> {
        let value = |file: &str, key: &str| -> String {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let memory_kib = value("/proc/meminfo", "MemTotal");
        let memory_kib = memory_kib.trim_end_matches(" kB").parse().unwrap_or(0);
        let huge_pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        // Without what a distribution adds to the version.
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let kernel = kernel.trim().split('-').next().unwrap_or_default();
        Ok(Self {
            processor: value("/proc/cpuinfo", "model name"),
            cores: thread::available_parallelism()?.get(),
            memory_mib: memory_kib >> 10,
            kernel: kernel.to_owned(),
            page_bytes: rustix::param::page_size(),
            huge_pages: huge_pages.unwrap_or_default().trim().to_owned(),
            versions: versions(folders, python)?,
        })
    }
}

fn versions(folders: &Folders, python: Option<&Path>) -> Result<Vec<(String, String)>> {
    let lock = fs::read_to_string(folders.package.join("../Cargo.lock"))?;
    let mut versions = Vec::new();
    for crate_name in ["candle-core", "candle-nn", "safetensors"] {
        let entry = format!("name = \"{crate_name}\"\nversion = \"");
        // Rivals bring older ones along; the last is the newest, which is ours.
        let version = lock
            .rsplit_once(&entry)
            .and_then(|(_, rest)| rest.split_once('"'));
        let version = version.map_or("unknown", |(version, _)| version);
        versions.push((crate_name.to_owned(), version.to_owned()));
    }
    if let Some(python) = python {
        let script = "import platform, torch, safetensors\n\
                      print('Python', platform.python_version())\n\
                      print('torch', torch.__version__)\n\
                      print('safetensors (Python)', safetensors.__version__)";
        let output = Command::new(python).args(["-c", script]).output()?;
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let pairs = lines.lines().filter_map(|line| line.rsplit_once(' '));
        versions.extend(pairs.map(|(name, version)| (name.to_owned(), version.to_owned())));
    }
    Ok(versions)
}
