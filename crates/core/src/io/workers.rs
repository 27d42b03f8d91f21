//! Several files at a time: threads, progress, and one stop for all of them.

use std::mem;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::SaveOptions;
use crate::{Cancel, Code, Error, Progress, Result};

/// More threads than this have not made any storage faster.
const MAX_THREADS: usize = 8;

/// How far a save has come, and whether it goes on.
pub(super) struct Meter<'o> {
    options: &'o SaveOptions,
    /// The caller's switch works it, and the first failure does.
    stop: Cancel,
    total: u64,
    done: Mutex<u64>,
}

impl<'o> Meter<'o> {
    /// For so many bytes of tensors.
    pub(super) fn new(options: &'o SaveOptions, total: u64) -> Self {
        let cancel = options.cancel.as_ref();
        Self {
            options,
            stop: cancel.map(Cancel::child).unwrap_or_default(),
            total,
            done: Mutex::new(0),
        }
    }

    /// Fails with `cancelled` once the save is to stop.
    pub(super) fn go_on(&self) -> Result<()> {
        match self.stop.is_cancelled() {
            true => Err(Error::new(Code::Cancelled)),
            false => Ok(()),
        }
    }

    /// Counts bytes of tensors and tells the caller.
    pub(super) fn add(&self, bytes: u64) {
        // Held during the call, so that `done` only ever grows for the one who is told.
        let mut done = lock(&self.done);
        *done += bytes;
        if let Some(progress) = &self.options.progress {
            progress(Progress {
                done: *done,
                total: self.total,
            });
        }
    }

    /// Does the same with every item, on as many threads as the options say; results come in order.
    /// The first failure, or a panic, stops all of them.
    pub(super) fn each<I: Sync, T: Send>(
        &self,
        items: &[I],
        work: impl Fn(&I) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::with_capacity(items.len()));
        let failure = Mutex::new(None);
        let worker = || {
            let stop = StopWhenDropped(&self.stop);
            while !self.stop.is_cancelled() {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(at) else {
                    break;
                };
                match work(item) {
                    Ok(result) => lock(&results).push((at, result)),
                    Err(error) => {
                        lock(&failure).get_or_insert(error);
                        self.stop.cancel();
                    }
                }
            }
            mem::forget(stop);
        };
        thread::scope(|scope| {
            for _ in 1..self.threads().min(items.len()) {
                // Where no further thread can be had, the others do its work.
                let thread = thread::Builder::new().name("safeshard-save".into());
                let _no_thread = thread.spawn_scoped(scope, worker);
            }
            worker();
        });
        if let Some(error) = lock(&failure).take() {
            return Err(error);
        }
        self.go_on()?;
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_unstable_by_key(|&(at, _)| at);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    fn threads(&self) -> usize {
        let available = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        match self.options.threads {
            Some(threads) => threads.get(),
            None => available().min(MAX_THREADS),
        }
    }
}

/// Stops the others where one panics: their work would be for nothing.
struct StopWhenDropped<'m>(&'m Cancel);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A lock that a panicking progress callback cannot break: what it guards is always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn with_threads(threads: usize) -> SaveOptions {
        SaveOptions {
            threads: NonZeroUsize::new(threads),
            ..SaveOptions::default()
        }
    }

    #[test]
    fn everything_is_done_once_and_comes_in_order() {
        for threads in [1, 2, 5, 100] {
            let options = with_threads(threads);
            let items: Vec<_> = (0..50).collect();
            let results = Meter::new(&options, 0)
                .each(&items, |at| Ok(at * at))
                .unwrap();
            assert!(results.into_iter().eq((0..50).map(|at| at * at)));
        }
    }

    #[test]
    fn the_first_failure_is_the_answer_and_stops_the_others() {
        for threads in [1, 2, 5] {
            let options = with_threads(threads);
            let meter = Meter::new(&options, 0);
            let items: Vec<_> = (0..1_000_000).collect();
            let result = meter.each(&items, |at| match at {
                10 => Err(Error::new(Code::TensorShort)),
                _ => meter.go_on().map(|()| thread::yield_now()),
            });
            assert_eq!(result.unwrap_err().code(), Code::TensorShort);
            assert_eq!(meter.go_on().unwrap_err().code(), Code::Cancelled);
        }
    }

    #[test]
    fn a_failure_does_not_work_the_switch_of_the_caller() {
        let options = SaveOptions {
            cancel: Some(Cancel::default()),
            ..SaveOptions::default()
        };
        let failing = |_: &i32| Err::<(), _>(Error::new(Code::TensorShort));
        Meter::new(&options, 0).each(&[0, 1], failing).unwrap_err();
        assert!(!options.cancel.as_ref().unwrap().is_cancelled());
        options.cancel.as_ref().unwrap().cancel();
        let error = Meter::new(&options, 0)
            .each(&[0, 1], |at| Ok(*at))
            .unwrap_err();
        assert_eq!(error.code(), Code::Cancelled);
    }

    #[test]
    fn a_panic_stops_the_others() {
        let options = with_threads(2);
        let meter = Meter::new(&options, 0);
        let waits = |at: &i32| match at {
            0 => panic!("on purpose"),
            _ => loop {
                meter.go_on()?;
                thread::yield_now();
            },
        };
        let result = catch_unwind(AssertUnwindSafe(|| meter.each::<_, ()>(&[0, 1], waits)));
        assert!(result.is_err());
    }
}
