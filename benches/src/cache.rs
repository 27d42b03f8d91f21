//! What the page cache holds of a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Advice, fadvise};

use crate::Result;
use crate::job::Cache;

/// Some kernels reclaim a page that was just read; then the files are read again, this often.
const ATTEMPTS: usize = 5;

/// Sees to it that the files are in the cache, or are not; returns which part of their bytes is in it
/// then, or `None` where there is no `fincore` to ask.
///
/// What is missing from the cache is not read alone: the kernel keeps a file that is read from front to
/// back in units of up to 2 MiB, and what it reads into a gap in small ones, which take longer to copy
/// from and much longer to map. After [`drop_all`] every sample finds the same.
///
/// # Errors
/// Where the cache is not as asked for: the figures would mean something else.
pub(crate) fn prepare(files: &[impl AsRef<Path>], cache: Cache) -> Result<Option<f64>> {
    let mut cached = None;
    for attempt in 0..=ATTEMPTS {
        if attempt > 0 {
            drop_all(files)?;
            if cache == Cache::Warm {
                files
                    .iter()
                    .try_for_each(|file| read_through(file.as_ref()))?;
            }
        }
        cached = cached_part(files);
        let wanted = match (cache, cached) {
            (_, None) => attempt > 0,
            (Cache::Warm, Some(part)) => part >= 0.999,
            (Cache::Cold, Some(part)) => part <= 0.001,
        };
        if wanted {
            return Ok(cached);
        }
    }
    let percent = cached.unwrap_or(f64::NAN) * 100.0;
    Err(
        format!("{percent:.1}% of the files are in the page cache, which is not what was wanted")
            .into(),
    )
}

/// Drops files from the cache.
pub(crate) fn drop_all(files: &[impl AsRef<Path>]) -> Result {
    files.iter().try_for_each(|file| drop_pages(file.as_ref()))
}

fn read_through(path: &Path) -> Result {
    let mut file = File::open(path)?;
    // Stays in the processor's cache.
    let mut buffer = vec![0; 256 << 10];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn drop_pages(path: &Path) -> Result {
    let file = File::open(path)?;
    // Pages that are not on the disk yet cannot be dropped.
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}

fn cached_part(files: &[impl AsRef<Path>]) -> Option<f64> {
    let mut fincore = Command::new("fincore");
    fincore.args(["--bytes", "--raw", "--noheadings", "--output", "RES,SIZE"]);
    let output = fincore
        .args(files.iter().map(AsRef::as_ref))
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    let (mut cached, mut size) = (0, 0);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (res, len) = line.split_once(' ')?;
        cached += res.trim().parse::<u64>().ok()?;
        size += len.trim().parse::<u64>().ok()?;
    }
    // Whole pages are counted, so the part can be a little above one.
    (size > 0).then(|| (cached as f64 / size as f64).min(1.0))
}
