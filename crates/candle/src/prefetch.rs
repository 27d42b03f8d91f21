//! Reads ahead of a model that asks for one tensor after the other.
//!
//! One thread reads what follows, in file order, the tensor that was asked for last. It never has
//! more than a window of tensors that nobody has taken yet, and reads no tensor twice. Whatever it
//! has not read, or could not read, is read by whoever asks for it: so an error shows at the tensor
//! it belongs to, and nothing depends on the thread being there.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use candle_core::DType;
use safeshard_core::{Cancel, Dtype, Planned, Result, TypedVec};

use crate::progress::Meter;
use crate::weights::Want;
use crate::{Weights, lock};

/// Bytes that are read and not taken, at most; one tensor may be larger. Together with the engine's
/// buffers less than 64 MiB.
const WINDOW: u64 = 48 << 20;

/// Bytes that are worth a go of the engine.
const BATCH: u64 = 16 << 20;

/// A smaller tensor does not say where the model goes on: norms in F32 lie apart from the matrices of
/// their layers, which are in BF16.
const WORTH_FOLLOWING: u64 = 256 << 10;

/// How many tensors of the file order are looked at: bounds the work for very small tensors.
const REACH: usize = 256;

/// The thread, from the first request until it is dropped.
pub(crate) struct Prefetcher {
    ahead: Arc<Ahead>,
    thread: OnceLock<Option<JoinHandle<()>>>,
}

impl Prefetcher {
    /// For a builder of this dtype; what is asked for in another one is not taken from here.
    pub(crate) fn new(weights: &Weights, dtype: DType) -> Self {
        let order = weights.in_file_order().filter_map(|stored| {
            let planned = weights.plan_stored(stored, &[], Want::Floats(dtype)).ok()?;
            Some(Place {
                stored: planned.stored,
                dtype: planned.dtype,
                byte_len: planned.byte_len,
            })
        });
        let order: Vec<_> = order.collect();
        let positions = order
            .iter()
            .zip(0..)
            .map(|(place, i)| (place.stored.clone(), i));
        let user = weights.options().read.cancel.clone().unwrap_or_default();
        Self {
            ahead: Arc::new(Ahead {
                meter: Meter::new(weights, order.iter().map(|place| place.stored.as_str())),
                weights: weights.clone(),
                want: Want::Floats(dtype),
                cancel: user.child(),
                positions: positions.collect(),
                state: Mutex::new(State {
                    done: vec![false; order.len()],
                    ..State::default()
                }),
                order,
                changed: Condvar::new(),
            }),
            thread: OnceLock::new(),
        }
    }

    /// The tensor's elements: read already, or now.
    pub(crate) fn read(&self, planned: &Planned) -> Result<TypedVec> {
        self.thread.get_or_init(|| {
            let ahead = Arc::clone(&self.ahead);
            let thread = thread::Builder::new().name("safeshard-prefetch".into());
            // Without a thread, everything is read when it is asked for.
            thread.spawn(move || ahead.work()).ok()
        });
        if let Some(elements) = self.ahead.take(planned) {
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

/// What the thread and those who ask share.
struct Ahead {
    weights: Weights,
    want: Want,
    meter: Arc<Meter>,
    /// Also stops with the caller's own switch.
    cancel: Cancel,
    order: Vec<Place>,
    positions: HashMap<String, usize>,
    state: Mutex<State>,
    changed: Condvar,
}

/// A tensor in file order, as the thread would read it.
struct Place {
    stored: String,
    dtype: Dtype,
    byte_len: u64,
}

#[derive(Default)]
struct State {
    /// The position that was asked for last.
    asked: Option<usize>,
    /// Positions that are not to be read (again) by the thread.
    done: Vec<bool>,
    /// Positions that the thread reads now.
    reading: Vec<usize>,
    ready: BTreeMap<usize, TypedVec>,
    closed: bool,
}

impl Ahead {
    fn take(&self, planned: &Planned) -> Option<TypedVec> {
        let &position = self.positions.get(&planned.stored)?;
        let place = self.order.get(position)?;
        let usable = place.dtype == planned.dtype;
        let mut state = lock(&self.state);
        if place.byte_len >= WORTH_FOLLOWING || state.asked.is_none() {
            state.asked = Some(position);
        }
        while usable && state.reading.contains(&position) {
            state = self.wait(state);
        }
        if let Some(done) = state.done.get_mut(position) {
            *done = true;
        }
        let elements = state.ready.remove(&position);
        drop(state);
        self.changed.notify_all();
        elements.filter(|_| usable)
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
            state.reading.clone_from(&batch);
            drop(state);
            // A panic of the caller's progress function must not leave anybody waiting.
            let read = catch_unwind(AssertUnwindSafe(|| self.read(&batch)));
            let mut state = lock(&self.state);
            state.reading.clear();
            match read {
                Ok(Ok(all)) => state.arrive(batch.into_iter().zip(all)),
                // Whoever asks for one of them reads it, and meets the error if it is theirs.
                Ok(Err(_)) | Err(_) => state.give_up(batch),
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn read(&self, batch: &[usize]) -> Result<Vec<TypedVec>> {
        let places = batch
            .iter()
            .filter_map(|&position| self.order.get(position));
        let plan = places.map(|place| self.weights.plan_stored(&place.stored, &[], self.want));
        let mut options = self.meter.options();
        options.cancel = Some(self.cancel.clone());
        self.weights
            .read(&plan.collect::<Result<Vec<_>>>()?, &options)
    }

    /// What to read next, once room for it has been made; `None` if there is nothing worth it.
    fn next(&self, state: &mut State) -> Option<Vec<usize>> {
        let first = state.asked? + 1;
        let mut end = first;
        let mut batch = Vec::new();
        let (mut ready, mut bytes, mut batch_bytes) = (0, 0_u64, 0);
        let places = self.order.iter().enumerate().skip(first).take(REACH);
        for (position, place) in places {
            if state.done.get(position) == Some(&true) {
                continue;
            }
            let is_ready = state.ready.contains_key(&position);
            let sum = bytes.saturating_add(place.byte_len);
            let fits = sum <= WINDOW || bytes == 0;
            if !fits || !is_ready && batch_bytes >= BATCH {
                break;
            }
            if is_ready {
                ready += 1;
            } else {
                batch.push(position);
                batch_bytes += place.byte_len;
            }
            bytes = sum;
            end = position + 1;
        }
        // A little at a time is only worth it if somebody may wait for it.
        let worth_it = ready == 0 || batch_bytes >= BATCH || batch.len() >= REACH / 4;
        if batch.is_empty() || !worth_it {
            return None;
        }
        self.make_room(state, first..end, WINDOW.saturating_sub(batch_bytes));
        Some(batch)
    }

    /// Drops what was read for nothing, as the model went on elsewhere, until at most `room` bytes
    /// are left.
    fn make_room(&self, state: &mut State, wanted: Range<usize>, room: u64) {
        let byte_len = |position: usize| self.order.get(position).map_or(0, |p| p.byte_len);
        let mut held: u64 = state.ready.keys().map(|&position| byte_len(position)).sum();
        let unwanted = state
            .ready
            .keys()
            .copied()
            .filter(|at| !wanted.contains(at));
        for position in unwanted.collect::<Vec<_>>() {
            if held <= room {
                break;
            }
            held -= byte_len(position);
            state.give_up([position]);
        }
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let changed = self.changed.wait(state);
        changed.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn arrive(&mut self, batch: impl IntoIterator<Item = (usize, TypedVec)>) {
        for (position, elements) in batch {
            // Somebody may have wanted it in another dtype meanwhile.
            if self.done.get(position) == Some(&false) {
                self.ready.insert(position, elements);
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use safeshard_core::Checkpoint;

    use super::*;

    #[test]
    fn a_small_tensor_elsewhere_does_not_lead_the_reading_away() {
        // A norm that was asked for sent the thread to the norms of all other layers.
        let matrix = Tensor::zeros((512, 512), DType::BF16, &Device::Cpu).unwrap();
        let norm = Tensor::zeros(512, DType::F32, &Device::Cpu).unwrap();
        let tensors = HashMap::from([("matrix", matrix), ("norm", norm)]);
        let bytes = safetensors::serialize(&tensors, None).unwrap();
        let checkpoint = Checkpoint::from_bytes(bytes).unwrap();
        let weights = Weights::from_checkpoint(checkpoint, &crate::LoadOptions::default()).unwrap();
        let reader = Prefetcher::new(&weights, DType::BF16);
        let asked = |name| {
            let planned = weights.plan_stored(name, &[], Want::Floats(DType::BF16));
            reader.read(&planned.unwrap()).unwrap();
            lock(&reader.ahead.state).asked
        };
        let at_norm = asked("norm");
        let at_matrix = asked("matrix");
        assert_ne!(at_norm, at_matrix);
        assert_eq!(asked("norm"), at_matrix);
    }
}
