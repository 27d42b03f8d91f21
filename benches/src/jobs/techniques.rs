//! What each technique of the reading engine is worth: the same load without it.

use std::path::Path;

use candle_core::Device;
use safeshard::Technique;
use safeshard::candle::load_with;

use super::common::{owned, tensors, threads};
use super::load_warm;
use crate::Result;
use crate::job::{Cache, Contender, Job, Prepared};

pub(super) const WARM: Job = Job {
    name: "techniques-warm",
    title: "What each technique is worth, warm",
    about: "All tensors into candle from the page cache with 2 threads, and the same with one \
            technique switched off.",
    contenders: &[
        Contender::ours("all", "all techniques", |path| load(path, 2, None)),
        Contender::rival("no-huge-pages", "memory in pages of 4 KiB", |path| {
            load(path, 2, Some(Technique::HugePages))
        }),
        Contender::rival("one-thread", "one thread", |path| load(path, 1, None)),
        Contender::rival("short-pieces", "pieces of 512 KiB", |path| {
            load(path, 2, Some(Technique::LongPieces))
        }),
        Contender::rival("any-order", "in the order of the names", |path| {
            load(path, 2, Some(Technique::FileOrder))
        }),
    ],
    targets: &[],
    ..load_warm::ONE_FILE
};

pub(super) const COLD: Job = Job {
    name: "techniques-cold",
    title: "What each technique is worth, from the disk",
    about: "The same when the page cache holds nothing of the file.",
    cache: Cache::Cold,
    contenders: &[
        Contender::ours("all", "all techniques", |path| load(path, 2, None)),
        Contender::rival("any-order", "in the order of the names", |path| {
            load(path, 2, Some(Technique::FileOrder))
        }),
        Contender::rival("one-thread", "one thread", |path| load(path, 1, None)),
    ],
    ..WARM
};

fn load(path: &Path, count: usize, without: Option<Technique>) -> Result<Prepared> {
    let path = owned(path);
    if let Some(technique) = without {
        technique.switch_off();
    }
    Ok(Box::new(move || {
        let (loaded, _report) = load_with(path, &Device::Cpu, &threads(count))?;
        Ok(tensors(loaded, ()))
    }))
}
