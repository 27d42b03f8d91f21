//! Reads ahead of a model that asks for one tensor after the other.
//!
//! One thread reads what is [expected](crate::outlook) after the tensor that was asked for last. It
//! never has more than a window of tensors that nobody has taken yet, and reads no tensor twice.
//! Whatever it has not read, or could not read, is read by whoever asks for it: so an error shows at
//! the tensor it belongs to, and nothing depends on the thread being there.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use candle_core::DType;
use candle_nn::var_builder::Shard;
use safeshard_core::{Cancel, Planned, Result, TypedVec};

use crate::outlook::{Expected, Habits, Outlook};
use crate::progress::Meter;
use crate::weights::Want;
use crate::{Weights, lock, tensor_parallel};

/// Bytes that are read and not taken, at most; one tensor may be larger. Together with the engine's
/// buffers less than 64 MiB.
const WINDOW: u64 = 48 << 20;

/// Bytes that are worth a go of the engine.
const BATCH: u64 = 16 << 20;

/// How many tensors are looked at: bounds the work for very small ones.
const REACH: usize = 256;

/// The thread, from the first request until it is dropped.
pub(crate) struct Prefetcher {
    ahead: Arc<Ahead>,
    thread: OnceLock<Option<JoinHandle<()>>>,
}

impl Prefetcher {
    /// For a builder of this dtype; what is asked for in another one is not taken from here. `expected`
    /// is what will be asked of tensors before any was asked for.
    pub(crate) fn new(weights: &Weights, dtype: DType, expected: Expected) -> Self {
        let want = Want::Floats(dtype);
        let outlook = Outlook::new(weights.in_natural_order().filter_map(|stored| {
            let planned = weights.plan_stored(stored, &[], want).ok()?;
            Some((planned.stored, planned.dtype, planned.byte_len))
        }));
        let places = outlook.places().iter();
        let meter = match expected {
            Expected::Always(_) => Meter::new(weights, places.map(|place| &*place.stored)),
            Expected::Unknown | Expected::Nothing => Meter::growing(weights),
        };
        let user = weights.options().read.cancel.clone().unwrap_or_default();
        Self {
            ahead: Arc::new(Ahead {
                meter,
                weights: weights.clone(),
                want,
                cancel: user.child(),
                state: Mutex::new(State {
                    asked: None,
                    habits: outlook.habits(expected),
                    done: vec![false; outlook.places().len()],
                    reading: Vec::new(),
                    ready: BTreeMap::new(),
                    closed: false,
                }),
                outlook,
                changed: Condvar::new(),
            }),
            thread: OnceLock::new(),
        }
    }

    /// The elements of that part of a tensor, which `planned` asks for: read already, or now.
    pub(crate) fn read(&self, planned: &Planned, part: Shard) -> Result<TypedVec> {
        self.thread.get_or_init(|| {
            let ahead = Arc::clone(&self.ahead);
            let thread = thread::Builder::new().name("safeshard-prefetch".into());
            // Without a thread, everything is read when it is asked for.
            thread.spawn(move || ahead.work()).ok()
        });
        if let Some(elements) = self.ahead.take(planned, part) {
            return Ok(elements);
        }
        self.ahead
            .weights
            .read_one(planned, &self.ahead.meter.options())
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        lock(&self.ahead.state).closed = true;
        self.ahead.cancel.cancel();
        self.ahead.changed.notify_all();
        if let Some(thread) = self.thread.take().flatten() {
            // It does not panic, and if it did there would be nobody to tell.
            let _panicked = thread.join();
        }
    }
}

impl fmt::Debug for Prefetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetcher").finish_non_exhaustive()
    }
}

/// What the thread and those who ask share.
struct Ahead {
    weights: Weights,
    want: Want,
    meter: Arc<Meter>,
    /// Also stops with the caller's own switch.
    cancel: Cancel,
    outlook: Outlook,
    state: Mutex<State>,
    changed: Condvar,
}

/// Tensors by their positions in the outlook.
struct State {
    /// The group of the one that was asked for last.
    asked: Option<usize>,
    habits: Habits,
    /// Those that are not to be read (again) by the thread.
    done: Vec<bool>,
    /// Those that the thread reads now.
    reading: Vec<usize>,
    ready: BTreeMap<usize, (Planned, TypedVec)>,
    closed: bool,
}

impl Ahead {
    fn take(&self, planned: &Planned, part: Shard) -> Option<TypedVec> {
        let (position, place) = self.outlook.find(&planned.stored)?;
        let usable = place.dtype == planned.dtype;
        let mut state = lock(&self.state);
        state.asked = Some(place.group);
        state.habits.asked(place.kind, part);
        while usable && state.reading.contains(&position) {
            state = self.wait(state);
        }
        if let Some(done) = state.done.get_mut(position) {
            *done = true;
        }
        let ready = state.ready.remove(&position);
        drop(state);
        self.changed.notify_all();
        let (read, elements) = ready?;
        (usable && read.ranges == planned.ranges).then_some(elements)
    }

    /// The thread.
    fn work(&self) {
        loop {
            let mut state = lock(&self.state);
            let batch = loop {
                if state.closed {
                    return;
                }
                match self.next(&mut state) {
                    Some(batch) => break batch,
                    None => state = self.wait(state),
                }
            };
            state.reading = batch.iter().map(|&(position, _)| position).collect();
            drop(state);
            // A panic of the caller's progress function must not leave anybody waiting.
            let read = catch_unwind(AssertUnwindSafe(|| self.read(&batch)));
            let mut state = lock(&self.state);
            let batch = mem::take(&mut state.reading);
            match read {
                Ok(Ok(all)) => state.arrive(batch.into_iter().zip(all)),
                // Whoever asks for one of them reads it, and meets the error if it is theirs.
                Ok(Err(_)) | Err(_) => state.give_up(batch),
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn read(&self, batch: &[(usize, Shard)]) -> Result<Vec<(Planned, TypedVec)>> {
        let all = self.outlook.places();
        let places = batch
            .iter()
            .filter_map(|&(position, part)| Some((all.get(position)?, part)));
        let plan = places.map(|(place, part)| {
            let plan = |ranges: &[_]| self.weights.plan_stored(&place.stored, ranges, self.want);
            plan(&tensor_parallel::ranges(&plan(&[])?.shape, part)?)
        });
        let plan = plan.collect::<Result<Vec<_>>>()?;
        let mut options = self.meter.options();
        options.cancel = Some(self.cancel.clone());
        let all = self.weights.read(&plan, &options)?;
        Ok(plan.into_iter().zip(all).collect())
    }

    /// What to read next, once room for it has been made; `None` if there is nothing worth it.
    fn next(&self, state: &mut State) -> Option<Vec<(usize, Shard)>> {
        let expected = self.outlook.from(state.asked?, &state.habits).take(REACH);
        let expected = expected.filter(|&(at, ..)| state.done.get(at) == Some(&false));
        let (ready, missing): (Vec<_>, Vec<_>) = expected
            .enumerate()
            .partition(|(_, (at, ..))| state.ready.contains_key(at));
        let wanted: HashSet<_> = ready.into_iter().map(|(_, (at, ..))| at).collect();

        let mut bytes = state.bytes_of_ready(|at| wanted.contains(&at));
        let next_is_missing = missing.first().is_some_and(|&(turn, _)| turn == 0);
        let (mut batch, mut batch_bytes) = (Vec::new(), 0);
        for (_, (at, place, part)) in missing {
            let byte_len = place.byte_len / part.world_size.max(1) as u64;
            let fits = bytes.saturating_add(byte_len) <= WINDOW || bytes == 0;
            if !fits || batch_bytes >= BATCH {
                break;
            }
            batch.push((at, part));
            bytes += byte_len;
            batch_bytes += byte_len;
        }
        // A little at a time is only worth it if somebody may wait for it.
        let worth_it = next_is_missing || batch_bytes >= BATCH || batch.len() >= REACH / 4;
        if batch.is_empty() || !worth_it {
            return None;
        }
        self.make_room(state, &wanted, WINDOW.saturating_sub(batch_bytes));
        Some(batch)
    }

    /// Drops what was read for nothing, as the model went on elsewhere, until at most `room` bytes
    /// are left.
    fn make_room(&self, state: &mut State, wanted: &HashSet<usize>, room: u64) {
        let ready: Vec<_> = state.ready.keys().copied().collect();
        let mut held = state.bytes_of_ready(|_| true);
        for at in ready.into_iter().filter(|at| !wanted.contains(at)) {
            if held <= room {
                break;
            }
            held -= state
                .ready
                .get(&at)
                .map_or(0, |(planned, _)| planned.byte_len);
            state.give_up([at]);
            if let Some(place) = self.outlook.places().get(at) {
                state.habits.disappointed(place.kind);
            }
        }
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let changed = self.changed.wait(state);
        changed.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bytes_of_ready(&self, which: impl Fn(usize) -> bool) -> u64 {
        let ready = self.ready.iter().filter(|&(&at, _)| which(at));
        ready.map(|(_, (planned, _))| planned.byte_len).sum()
    }

    fn arrive(&mut self, batch: impl IntoIterator<Item = (usize, (Planned, TypedVec))>) {
        for (position, read) in batch {
            // Somebody may have wanted it in another dtype meanwhile.
            if self.done.get(position) == Some(&false) {
                self.ready.insert(position, read);
            }
        }
    }

    fn give_up(&mut self, positions: impl IntoIterator<Item = usize>) {
        for position in positions {
            self.ready.remove(&position);
            if let Some(done) = self.done.get_mut(position) {
                *done = true;
            }
        }
    }
}
