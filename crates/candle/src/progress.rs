//! Several reads that report their progress as one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use safeshard_core::{Progress, ReadOptions};

use crate::{Weights, lock};

/// Counts the bytes of all reads of a job.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Bytes of everything there is to read, where that is known.
    all: Option<u64>,
    /// Of the reads that have begun.
    sum: Mutex<Progress>,
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
        let lengths = infos.map(|tensor| tensor.byte_len());
        Self::counting(weights, Some(lengths.fold(0, u64::saturating_add)))
    }

    /// For reads of which nobody knows how many there will be: the total grows with each.
    pub(crate) fn growing(weights: &Weights) -> Arc<Self> {
        Self::counting(weights, None)
    }

    fn counting(weights: &Weights, all: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            all,
            sum: Mutex::new(Progress::new(0, 0)),
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
                let mut sum = lock(&meter.sum);
                let before = before.swap(part.done, Ordering::Relaxed);
                if before == 0 {
                    sum.total += part.total;
                }
                sum.done += part.done - before;
                let total = meter.all.unwrap_or(sum.total);
                // What is read a second time is not more work done.
                progress(Progress::new(sum.done.min(total), total));
            }));
        }
        options
    }
}
