//! Reading ahead: the right tensors in any order, errors where they belong, no hanging, no leak.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use candle_core::{DType, Device};
use rstest::rstest;
use safeshard_candle::{Error, LoadOptions};
use safeshard_core::Code;
use safetensors::Dtype;

use crate::support::{Gate, Probe, Stored, bytes, on_background_thread, one_thread, wait_until};

const CPU: &Device = &Device::Cpu;
const COUNT: usize = 40;

fn name(i: usize) -> String {
    format!("t{i:03}")
}

/// Tensors of `len` bytes that lie in a file in the order of their names.
fn tensors(count: usize, len: usize) -> Vec<Stored> {
    let tensor = |i| Stored::new(&name(i), Dtype::U8, &[len], vec![i as u8; len]);
    (0..count).map(tensor).collect()
}

/// The bytes of a tensor in the file.
fn place(stored: &[Stored], wanted: usize) -> Range<u64> {
    let file = crate::support::file(stored);
    let at = file.windows(stored[wanted].bytes.len());
    let start = at
        .clone()
        .position(|bytes| bytes == stored[wanted].bytes)
        .unwrap() as u64;
    start..start + stored[wanted].bytes.len() as u64
}

fn touches(read: &Range<u64>, place: &Range<u64>) -> bool {
    read.start < place.end && place.start < read.end
}

#[rstest]
#[case::file_order(|i| i)]
#[case::backwards(|i| COUNT - 1 - i)]
#[case::scattered(|i| i * 17 % COUNT)]
#[case::two_places(|i| if i % 2 == 0 { i / 2 } else { COUNT / 2 + i / 2 })]
fn any_order_gives_the_right_tensors(
    #[case] order: fn(usize) -> usize,
    #[values(16, 2 << 20)] len: usize,
) {
    let stored = tensors(COUNT, len);
    let probe = Probe::new(&stored);
    let weights = probe.weights(&LoadOptions::default());
    let vb = weights.var_builder(DType::F32, CPU);
    for i in (0..COUNT).map(order) {
        let tensor = vb.get(len, &name(i)).unwrap();
        assert!(bytes(&tensor) == stored[i].bytes, "{}", name(i));
    }
    let total = (COUNT * len) as u64;
    let read = probe.bytes_read();
    assert!(
        (total..=2 * total).contains(&read),
        "{read} bytes read of {total}"
    );
    assert!(weights.report().is_exact());
}

#[test]
fn in_file_order_every_byte_is_read_once() {
    let stored = tensors(COUNT, 1 << 20);
    let probe = Probe::new(&stored);
    let vb = probe
        .weights(&LoadOptions::default())
        .var_builder(DType::F32, CPU);
    for i in 0..COUNT {
        vb.get(1 << 20, &name(i)).unwrap();
    }
    drop(vb);
    assert_eq!(probe.bytes_read(), (COUNT << 20) as u64);
}

#[test]
fn in_the_order_of_a_model_every_byte_is_read_once() {
    // In file order, layer 10 came after layer 1, and `a` of the next layer after `z`: it was read,
    // dropped, as the model was elsewhere, and read again when it came there.
    let len = 4 << 20;
    let names =
        (0..12).flat_map(|layer| ["q", "z", "m", "a"].map(|name| format!("h.{layer}.{name}")));
    let tensor = |name: String| Stored::new(&name, Dtype::U8, &[len], vec![name.len() as u8; len]);
    let stored: Vec<_> = names.map(tensor).collect();
    let probe = Probe::new(&stored);
    let vb = probe
        .weights(&LoadOptions::default())
        .var_builder(DType::F32, CPU);
    for stored in &stored {
        vb.get(len, &stored.name).unwrap();
        // Time to read what it thinks comes next.
        thread::sleep(Duration::from_millis(5));
    }
    drop(vb);
    assert_eq!(probe.bytes_read(), (stored.len() * len) as u64);
}

#[test]
fn what_follows_is_there_before_it_is_asked_for() {
    let stored = tensors(4, 16);
    let probe = Probe::new(&stored);
    let vb = probe
        .weights(&LoadOptions::default())
        .var_builder(DType::F32, CPU);
    vb.get(16, &name(0)).unwrap();
    wait_until("the rest", || probe.bytes_read() == 4 * 16);
    // From here on every read fails: what is taken was read before.
    probe.set_hook(|_| Err(Error::new(Code::Io)));
    for i in 1..4 {
        wait_until("the tensor", || vb.get(16, &name(i)).is_ok());
    }
}

#[test]
fn no_more_is_read_ahead_than_the_window_holds() {
    let stored = tensors(80, 1 << 20);
    let probe = Probe::new(&stored);
    let vb = probe
        .weights(&LoadOptions::default())
        .var_builder(DType::F32, CPU);
    vb.get(1 << 20, &name(0)).unwrap();
    wait_until("a full window", || probe.bytes_read() > 40 << 20);
    thread::sleep(Duration::from_millis(100));
    let ahead = probe.bytes_read() - (1 << 20);
    assert!(ahead <= 64 << 20, "{ahead} bytes read ahead");
}

#[test]
fn what_a_model_leaves_out_is_in_nobodys_way() {
    let stored = tensors(100, 2 << 20);
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let vb = weights.var_builder(DType::F32, CPU);
    for i in (0..100).step_by(3) {
        assert!(bytes(&vb.get(2 << 20, &name(i)).unwrap()) == stored[i].bytes);
    }
    assert_eq!(weights.report().unused.len(), 66);
}

#[test]
fn a_tensor_may_be_asked_for_again() {
    let stored = tensors(3, 16);
    let vb = Probe::new(&stored)
        .weights(&LoadOptions::default())
        .var_builder(DType::F32, CPU);
    for i in [0, 1, 1, 0, 2, 2, 1] {
        assert_eq!(bytes(&vb.get(16, &name(i)).unwrap()), stored[i].bytes);
    }
}

#[test]
fn another_dtype_than_was_read_ahead_is_read_anew() {
    let stored: Vec<_> = (0..6).map(|i| Stored::f32(&name(i), &[16])).collect();
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let vb = weights.var_builder(DType::F32, CPU);
    for i in 0..6 {
        let dtype = [DType::F32, DType::F64, DType::BF16][i % 3];
        let tensor = vb
            .get_with_hints_dtype(16, &name(i), Default::default(), dtype)
            .unwrap();
        assert_eq!(tensor.dtype(), dtype);
        let back = bytes(&tensor.to_dtype(DType::F32).unwrap());
        assert!(dtype == DType::BF16 || back == stored[i].bytes);
    }
}

#[test]
fn an_error_shows_at_the_tensor_it_belongs_to() {
    let stored = tensors(8, 16);
    let probe = Probe::new(&stored);
    let bad = place(&stored, 5);
    let weights = probe.weights(&LoadOptions::default());
    probe.set_hook(move |read| match touches(read, &bad) {
        true => Err(Error::new(Code::Io).found("a bad sector")),
        false => Ok(()),
    });
    let vb = weights.var_builder(DType::F32, CPU);
    for (i, stored) in stored.iter().enumerate() {
        let result = vb.get(16, &name(i));
        if i == 5 {
            let message = result.unwrap_err().to_string();
            assert!(
                message.contains("`t005`") && message.contains("bad sector"),
                "{message}"
            );
        } else {
            assert_eq!(bytes(&result.unwrap()), stored.bytes);
        }
    }
}

#[test]
fn a_failure_in_the_background_is_no_failure_if_the_tensor_can_be_read() {
    let stored = tensors(8, 16);
    let probe = Probe::new(&stored);
    probe.set_hook(|_| match on_background_thread() {
        true => Err(Error::new(Code::Io)),
        false => Ok(()),
    });
    let vb = probe.weights(&one_thread()).var_builder(DType::F32, CPU);
    for (i, stored) in stored.iter().enumerate() {
        assert_eq!(bytes(&vb.get(16, &name(i)).unwrap()), stored.bytes);
    }
}

#[test]
fn a_panic_in_the_background_leaves_nobody_waiting() {
    let stored = tensors(8, 16);
    let probe = Probe::new(&stored);
    let panics = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&panics);
    let mut options = one_thread();
    options.read.progress = Some(Arc::new(move |_| {
        if on_background_thread() {
            count.fetch_add(1, Ordering::Relaxed);
            panic!("on purpose");
        }
    }));
    let vb = probe.weights(&options).var_builder(DType::F32, CPU);
    vb.get(16, &name(0)).unwrap();
    wait_until("the panic", || panics.load(Ordering::Relaxed) > 0);
    for (i, stored) in stored.iter().enumerate().skip(1) {
        assert_eq!(bytes(&vb.get(16, &name(i)).unwrap()), stored.bytes);
    }
}

#[test]
fn many_threads_may_ask_at_once() {
    let stored = tensors(60, 1 << 16);
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let vb = weights.var_builder(DType::F32, CPU);
    thread::scope(|scope| {
        for k in 0..8 {
            let (vb, stored) = (vb.clone(), &stored);
            scope.spawn(move || {
                for i in (0..60).map(|i| (i * (2 * k + 1) + k) % 60) {
                    assert!(bytes(&vb.get(1 << 16, &name(i)).unwrap()) == stored[i].bytes);
                }
            });
        }
    });
    assert!(weights.report().is_exact());
}

#[test]
fn a_tensor_that_is_being_read_is_waited_for() {
    let stored = tensors(3, 16);
    let probe = Probe::new(&stored);
    let weights = probe.weights(&one_thread());
    let gate = Arc::new(Gate::default());
    let hook = Arc::clone(&gate);
    probe.set_hook(move |_| match on_background_thread() {
        true => hook.pass(),
        false => Ok(()),
    });
    let vb = weights.var_builder(DType::F32, CPU);
    vb.get(16, &name(0)).unwrap();
    gate.wait_for_somebody();
    let asked = thread::spawn(move || vb.get(16, &name(1)).unwrap());
    thread::sleep(Duration::from_millis(50));
    assert!(!asked.is_finished());
    gate.open();
    assert_eq!(bytes(&asked.join().unwrap()), stored[1].bytes);
    assert_eq!(probe.bytes_read(), 3 * 16);
}

#[test]
fn dropping_the_builder_ends_the_thread() {
    let stored = tensors(30, 1 << 20);
    let probe = Probe::new(&stored);
    let gate = Arc::new(Gate::default());
    let hook = Arc::clone(&gate);
    let weights = probe.weights(&one_thread());
    probe.set_hook(move |_| hook.pass());
    let vb = weights.var_builder(DType::F32, CPU);
    vb.get(1 << 20, &name(0)).unwrap();
    gate.wait_for_somebody();
    let before = probe.bytes_read();
    let dropping = thread::spawn(move || drop(vb));
    // Long enough for it to have begun, however busy the machine is.
    thread::sleep(Duration::from_millis(500));
    assert!(
        !dropping.is_finished(),
        "it waits for the read that is under way"
    );
    gate.open();
    dropping.join().unwrap();
    assert_eq!(probe.bytes_read(), before, "and for no other");

    drop(weights);
    assert_eq!(
        Arc::strong_count(&probe),
        1,
        "nobody holds the file any more"
    );
}

#[test]
fn a_builder_that_was_never_asked_has_no_thread() {
    let probe = Probe::new(&tensors(3, 16));
    let weights = probe.weights(&LoadOptions::default());
    drop(weights.var_builder(DType::F32, CPU));
    drop(weights);
    assert_eq!(Arc::strong_count(&probe), 1);
    assert_eq!(probe.bytes_read(), 0);
}
