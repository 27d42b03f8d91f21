//! Work on a few threads: one queue, one count of what is done, and one stop for all of them.

use std::fmt;
use std::mem;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use crate::error::{Code, Error, Result};
use crate::limits::room;

/// More threads than this have not made any storage faster.
const MAX_THREADS: usize = 8;

/// How far a read or a save has come, in bytes of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes read or written so far.
    pub done: u64,
    /// Bytes to read or to write in all.
    pub total: u64,
}

/// What is called to tell how far work has come.
pub(crate) type OnProgress = dyn Fn(Progress) + Send + Sync;

impl Progress {
    /// So many bytes of so many.
    pub fn new(done: u64, total: u64) -> Self {
        Self { done, total }
    }
}

/// A switch that stops a running read or save, from any thread; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Switch>);

/// What is called with the folder that is waited for.
type OnWait = dyn Fn(&Path) + Send + Sync;

#[derive(Default)]
struct Switch {
    used: AtomicBool,
    parent: Option<Cancel>,
    on_wait: Option<Box<OnWait>>,
}

impl Cancel {
    /// A switch of work that may have to wait, such as a save for another one into the same folder: once
    /// it has waited for a second, `told` is called with the folder, once, from the thread that waits.
    pub fn on_wait(told: impl Fn(&Path) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Switch {
            on_wait: Some(Box::new(told)),
            ..Switch::default()
        }))
    }

    /// A switch that this one works too, but that does not work this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(Arc::new(Switch {
            parent: Some(self.clone()),
            ..Switch::default()
        }))
    }

    /// Stops every read and save that was given this switch; they fail with `cancelled`.
    pub fn cancel(&self) {
        self.0.used.store(true, Ordering::Relaxed);
    }

    /// Whether it was used.
    pub fn is_cancelled(&self) -> bool {
        let parent = self.0.parent.as_ref();
        self.0.used.load(Ordering::Relaxed) || parent.is_some_and(Self::is_cancelled)
    }

    /// Fails with `cancelled` once the switch was used, if there is one.
    pub(crate) fn check(cancel: Option<&Self>) -> Result<()> {
        match cancel.is_some_and(Self::is_cancelled) {
            true => Err(Error::new(Code::Cancelled)),
            false => Ok(()),
        }
    }

    /// Says for what the work waits.
    pub(crate) fn waits_for(&self, folder: &Path) {
        match (&self.0.on_wait, &self.0.parent) {
            (Some(told), _) => told(folder),
            (None, Some(parent)) => parent.waits_for(folder),
            (None, None) => {}
        }
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch")
            .field("used", &self.used)
            .field("parent", &self.parent)
            .field("on_wait", &self.on_wait.is_some())
            .finish()
    }
}

/// As many threads as asked for, or as there are cores, at most 8.
pub(crate) fn threads(asked: Option<NonZeroUsize>) -> usize {
    // Finding out means reading files; it does not change.
    static AVAILABLE: OnceLock<usize> = OnceLock::new();
    let available = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    asked.map_or_else(
        || *AVAILABLE.get_or_init(|| available().min(MAX_THREADS)),
        NonZeroUsize::get,
    )
}

/// The threads of one call, how far they have come, and whether they go on.
pub(crate) struct Workers<'o> {
    threads: usize,
    on_progress: Option<&'o OnProgress>,
    /// The caller's switch works it, and the first failure does.
    stop: Cancel,
    total: u64,
    done: Mutex<u64>,
}

impl<'o> Workers<'o> {
    /// For work on so many bytes.
    pub(crate) fn new(
        threads: usize,
        on_progress: Option<&'o Arc<OnProgress>>,
        cancel: Option<&Cancel>,
        total: u64,
    ) -> Self {
        Self {
            threads,
            on_progress: on_progress.map(|call| &**call),
            stop: cancel.map(Cancel::child).unwrap_or_default(),
            total,
            done: Mutex::new(0),
        }
    }

    /// Fails with `cancelled` once the work is to stop.
    pub(crate) fn go_on(&self) -> Result<()> {
        Cancel::check(Some(&self.stop))
    }

    /// Counts bytes and tells the caller.
    pub(crate) fn add(&self, bytes: u64) {
        let Some(on_progress) = self.on_progress else {
            return;
        };
        // Held during the call, so that `done` only ever grows for the one who is told.
        let mut done = lock(&self.done);
        *done += bytes;
        on_progress(Progress {
            done: *done,
            total: self.total,
        });
    }

    /// Does the same with every item; each thread has something of its own to do it with. Results
    /// come in order. The first failure, or a panic, stops all of them.
    pub(crate) fn each<I: Send, O, T: Send>(
        &self,
        items: impl IntoIterator<Item = I, IntoIter: ExactSizeIterator + Send>,
        own: impl Fn() -> O + Sync,
        work: impl Fn(I, &mut O) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let items = items.into_iter();
        let count = items.len();
        let items = Mutex::new(items.enumerate());
        let results = Mutex::new(room(count)?);
        let failure = Mutex::new(None);
        let worker = || {
            let stop = StopWhenDropped(&self.stop);
            let mut own = own();
            while !self.stop.is_cancelled() {
                let next = lock(&items).next();
                let Some((at, item)) = next else {
                    break;
                };
                match work(item, &mut own) {
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
            for _ in 1..self.threads.min(count) {
                // Where no further thread can be had, the others do its work.
                let thread = thread::Builder::new().name("safeshard".into());
                let _no_thread = thread.spawn_scoped(scope, worker);
            }
            worker();
        });
        if let Some(error) = lock(&failure).take() {
            return Err(error);
        }
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        if results.len() < count {
            return Err(Error::new(Code::Cancelled));
        }
        results.sort_unstable_by_key(|&(at, _)| at);
        Ok(results.into_iter().map(|(_, result)| result).collect())
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

    fn workers(threads: usize) -> Workers<'static> {
        Workers::new(threads, None, None, 0)
    }

    #[test]
    fn everything_is_done_once_and_comes_in_order() {
        for threads in [1, 2, 5, 100] {
            let results = workers(threads)
                .each(0..50, || (), |at, ()| Ok(at * at))
                .unwrap();
            assert!(results.into_iter().eq((0..50).map(|at| at * at)));
        }
    }

    #[test]
    fn the_first_failure_is_the_answer_and_stops_the_others() {
        for threads in [1, 2, 5] {
            let workers = workers(threads);
            let work = |at, (): &mut ()| match at {
                10 => Err(Error::new(Code::TensorShort)),
                _ => workers.go_on().map(|()| thread::yield_now()),
            };
            let result = workers.each(0..1_000_000, || (), work);
            assert_eq!(result.unwrap_err().code(), Code::TensorShort);
            assert_eq!(workers.go_on().unwrap_err().code(), Code::Cancelled);
        }
    }

    #[test]
    fn a_failure_does_not_work_the_switch_of_the_caller() {
        let cancel = Cancel::default();
        let workers = || Workers::new(1, None, Some(&cancel), 0);
        let failing = |_, (): &mut ()| Err::<(), _>(Error::new(Code::TensorShort));
        workers().each(0..2, || (), failing).unwrap_err();
        assert!(!cancel.is_cancelled());
        cancel.cancel();
        let error = workers().each(0..2, || (), |at, ()| Ok(at)).unwrap_err();
        assert_eq!(error.code(), Code::Cancelled);
    }

    #[test]
    fn a_panic_stops_the_others() {
        let workers = workers(2);
        let waits = |at, (): &mut ()| match at {
            0 => panic!("on purpose"),
            _ => loop {
                workers.go_on()?;
                thread::yield_now();
            },
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            workers.each::<_, _, ()>(0..2, || (), waits)
        }));
        assert!(result.is_err());
    }
}
