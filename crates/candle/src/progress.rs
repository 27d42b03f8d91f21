//! Several reads that report their progress as one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use safeshard_core::{Progress, ReadOptions};

use crate::{Weights, lock};

/// Counts the bytes of all reads of a job.
#[derive(Debug)]
pub(crate) struct Meter {
    total: u64,
    done: Mutex<u64>,
    options: ReadOptions,
}

impl Meter {
    /// For reading these stored tensors.
    pub(crate) fn new<'n>(
        weights: &Weights,
        stored: impl IntoIterator<Item = &'n str>,
    ) -> Arc<Self> {
        let infos = stored
            .into_iter()
            .filter_map(|name| weights.checkpoint().info(name).ok());
        Arc::new(Self {
            total: infos
                .map(|tensor| tensor.byte_len())
                .fold(0, u64::saturating_add),
            done: Mutex::new(0),
            options: weights.options().read.clone(),
        })
    }

    /// Options for one of the reads.
    pub(crate) fn options(self: &Arc<Self>) -> ReadOptions {
        let mut options = self.options.clone();
        if let Some(progress) = options.progress.take() {
            let (meter, before) = (Arc::clone(self), AtomicU64::new(0));
            options.progress = Some(Arc::new(move |part: Progress| {
                // Held during the call: one call at a time, and `done` only grows.
                let mut done = lock(&meter.done);
                *done += part.done - before.swap(part.done, Ordering::Relaxed);
                progress(Progress {
                    // What is read a second time is not more work done.
                    done: (*done).min(meter.total),
                    total: meter.total,
                });
            }));
        }
        options
    }
}
