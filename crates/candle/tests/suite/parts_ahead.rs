//! Reading ahead for the rank of a tensor-parallel model: the right parts whatever is asked for, and
//! nothing but parts.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use candle_nn::var_builder::Shard;
use rstest::rstest;
use safeshard_candle::{Error, LoadOptions};
use safeshard_core::Code;
use safetensors::Dtype;

use crate::support::{Gate, Probe, Stored, bytes, on_background_thread, one_thread, wait_until};

const CPU: &Device = &Device::Cpu;
const LAYERS: usize = 12;
const TENSORS: usize = 3 * LAYERS;
const RANKS: usize = 4;

/// Layers of two matrices and a norm, in the order in which a model asks for them.
fn model(rows: usize, columns: usize) -> Vec<Stored> {
    let layer = |layer| {
        [
            Stored::f32(&format!("h.{layer}.up"), &[rows, columns]),
            Stored::f32(&format!("h.{layer}.down"), &[rows, columns]),
            Stored::f32(&format!("h.{layer}.a_norm"), &[columns]),
        ]
    };
    (0..LAYERS).flat_map(layer).collect()
}

fn shard(name: &str, rank: usize) -> Shard {
    match name.rsplit_once('.') {
        Some((_, "up")) => part(0, rank),
        Some((_, "down")) => part(1, rank),
        _ => Shard::default(),
    }
}

fn part(dim: usize, rank: usize) -> Shard {
    Shard {
        dim,
        rank,
        world_size: RANKS,
    }
}

/// What candle narrows the whole tensor to.
fn expected(stored: &Stored, shard: Shard) -> Vec<u8> {
    let whole = Tensor::from_raw_buffer(&stored.bytes, DType::F32, &stored.shape, CPU).unwrap();
    let len = stored.shape[shard.dim] / shard.world_size;
    let part = whole.narrow(shard.dim, shard.rank * len, len).unwrap();
    bytes(&part.force_contiguous().unwrap())
}

#[rstest]
#[case::one_after_the_other(|i| i, |_| 3)]
#[case::backwards(|i| TENSORS - 1 - i % TENSORS, |_| 1)]
#[case::scattered(|i| i * 17 % TENSORS, |_| 2)]
#[case::another_rank_each_time(|i| i, |i| i % RANKS)]
#[case::another_rank_in_later_layers(|i| i, |i| i / 20 % RANKS)]
#[case::all_ranks_of_each_tensor(|i| i / RANKS, |i| i % RANKS)]
#[case::one_rank_after_the_other(|i| i, |i| i / TENSORS)]
fn any_order_and_any_rank_gives_the_right_parts(
    #[case] order: fn(usize) -> usize,
    #[case] rank: fn(usize) -> usize,
    #[values((8, 8), (512, 256))] shape: (usize, usize),
) {
    let stored = model(shape.0, shape.1);
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let vb = weights.sharded_var_builder(DType::F32, CPU);
    for i in 0..RANKS * TENSORS {
        let stored = &stored[order(i) % TENSORS];
        let shard = shard(&stored.name, rank(i));
        let tensor = vb.get_with_hints((), &stored.name, shard).unwrap();
        assert!(
            bytes(&tensor) == expected(stored, shard),
            "{} {shard:?}",
            stored.name
        );
    }
}

#[test]
fn after_the_first_layer_everything_is_there_before_it_is_asked_for() {
    let stored = model(8, 8);
    let probe = Probe::new(&stored);
    let vb = probe
        .weights(&one_thread())
        .sharded_var_builder(DType::F32, CPU);
    let gate = Arc::new(Gate::default());
    let hook = Arc::clone(&gate);
    probe.set_hook(move |_| hook.pass());
    let get = |stored: &Stored| vb.get_with_hints((), &stored.name, shard(&stored.name, 2));
    get(&stored[0]).unwrap();
    gate.wait_for_somebody();
    for stored in &stored[1..3] {
        get(stored).unwrap();
    }
    gate.open();
    get(&stored[3]).unwrap();
    let all: Vec<_> = stored
        .iter()
        .map(|stored| expected(stored, shard(&stored.name, 2)))
        .collect();
    // Of `down`, whose runs lie close together, the gaps are read too: all but those at the ends.
    let gaps: usize = LAYERS * (8 - 1) * (8 - 2) * 4;
    let total = all.iter().map(Vec::len).sum::<usize>() + gaps;
    wait_until("the rest", || probe.bytes_read() == total as u64);
    // From here on every read fails: what is taken was read before.
    probe.set_hook(|_| Err(Error::new(Code::Io)));
    for (stored, expected) in stored.iter().zip(all).skip(4) {
        assert_eq!(bytes(&get(stored).unwrap()), expected);
    }
}

#[test]
fn of_what_was_not_asked_for_yet_nothing_is_read_ahead() {
    let stored = model(8, 8);
    let probe = Probe::new(&stored);
    let vb = probe
        .weights(&LoadOptions::default())
        .sharded_var_builder(DType::F32, CPU);
    vb.get_with_hints((), "h.3.up", part(0, 0)).unwrap();
    // The rows of layers 3 to 11.
    let rows = 9 * 2 * 8 * 4;
    wait_until("the others", || probe.bytes_read() == rows);
    probe.set_hook(|_| panic!("nobody asked for it"));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(probe.bytes_read(), rows);
}

#[test]
fn an_error_shows_at_the_tensor_it_belongs_to() {
    let mut stored = model(8, 8);
    // Its rows cannot be shared out; what is read ahead with it can.
    stored[15] = Stored::f32("h.5.up", &[7, 8]);
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let vb = weights.sharded_var_builder(DType::F32, CPU);
    for stored in &stored {
        let shard = shard(&stored.name, 1);
        let result = vb.get_with_hints((), &stored.name, shard);
        if stored.name == "h.5.up" {
            let message = result.unwrap_err().to_string();
            assert!(
                message.contains("`h.5.up`") && message.contains("multiple of 4"),
                "{message}"
            );
        } else {
            assert_eq!(bytes(&result.unwrap()), expected(stored, shard));
        }
    }
}

#[test]
fn a_rank_that_leaves_experts_out_does_not_read_them_for_ever() {
    // One expert of eight in each of 40 layers, all of it.
    let names = (0..40).flat_map(|layer| (0..8).map(move |e| format!("h.{layer}.e.{e}.w")));
    let len = 1 << 20;
    let tensor = |name: String| Stored::new(&name, Dtype::U8, &[len], vec![name.len() as u8; len]);
    let stored: Vec<_> = names.map(tensor).collect();
    let probe = Probe::new(&stored);
    let vb = probe
        .weights(&LoadOptions::default())
        .sharded_var_builder(DType::F32, CPU);
    for layer in 0..40 {
        let name = format!("h.{layer}.e.0.w");
        vb.get_with_hints(len, &name, Shard::default()).unwrap();
        // Time to read what it thinks comes next.
        thread::sleep(Duration::from_millis(10));
    }
    drop(vb);
    // What it asked for, and what was read ahead before the first of it was dropped.
    let most = (40 * len + (64 << 20)) as u64;
    let read = probe.bytes_read();
    assert!(read <= most, "{read} bytes read of {most}");
}

#[test]
fn no_more_is_read_ahead_than_the_window_holds() {
    let names = (0..80).map(|layer| format!("h.{layer}.w"));
    let tensor = |name: String| Stored::new(&name, Dtype::U8, &[4 << 20], vec![1; 4 << 20]);
    let stored: Vec<_> = names.map(tensor).collect();
    let probe = Probe::new(&stored);
    let vb = probe
        .weights(&LoadOptions::default())
        .sharded_var_builder(DType::F32, CPU);
    vb.get_with_hints((), "h.0.w", part(0, 0)).unwrap();
    wait_until("a full window", || probe.bytes_read() > 40 << 20);
    thread::sleep(Duration::from_millis(100));
    let read = probe.bytes_read();
    assert!(read <= 64 << 20, "{read} bytes read ahead");
}

#[test]
fn a_failure_in_the_background_is_no_failure_if_the_part_can_be_read() {
    let stored = model(8, 8);
    let probe = Probe::new(&stored);
    probe.set_hook(|_| match on_background_thread() {
        true => Err(Error::new(Code::Io)),
        false => Ok(()),
    });
    let vb = probe
        .weights(&one_thread())
        .sharded_var_builder(DType::F32, CPU);
    for stored in &stored {
        let shard = shard(&stored.name, 0);
        let tensor = vb.get_with_hints((), &stored.name, shard).unwrap();
        assert_eq!(bytes(&tensor), expected(stored, shard));
    }
}

#[test]
fn progress_counts_the_bytes_of_parts() {
    let stored = model(8, 8);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let mut options = LoadOptions::default();
    options.read.progress = Some(Arc::new(move |progress| {
        seen.lock().unwrap().push((progress.done, progress.total));
    }));
    let weights = Probe::new(&stored).weights(&options);
    let vb = weights.sharded_var_builder(DType::F32, CPU);
    let mut sum = 0;
    for stored in &stored {
        let shard = shard(&stored.name, 1);
        let part = vb.get_with_hints((), &stored.name, shard).unwrap();
        sum += part.elem_count() as u64 * 4;
    }
    let calls = calls.lock().unwrap();
    assert!(calls.is_sorted() && calls.iter().all(|&(done, total)| done <= total));
    assert_eq!(calls.last(), Some(&(sum, sum)));
}
