//! Loading N bytes peaks at N and little more, saving and mapping need next to nothing: everything that
//! this process has resident counts, libtorch's memory included.
#![cfg(target_os = "linux")]

use std::fs;

use safeshard_core::Durability;
use safeshard_tch::{Checkpoint, LoadOptions, SaveOptions, floats_as, load, load_with, map_with};
use tch::{Device, Kind, Tensor};

const MIB: u64 = 1 << 20;
/// What README promises.
const SLACK: u64 = 64 * MIB;

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// The result, and how much more than before was resident on the way to it.
fn peak<T>(work: impl FnOnce() -> T) -> (T, u64) {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let result = work();
    (result, status("VmHWM").saturating_sub(before))
}

#[track_caller]
fn assert_below(peak: u64, result: u64, slack: u64) {
    let most = result + slack;
    assert!(peak < most, "{} MiB for {} MiB", peak / MIB, result / MIB);
}

/// One test, so that nothing else happens in this process meanwhile.
#[test]
fn nothing_needs_much_more_memory_than_its_result() {
    // What libtorch sets up when it is first used, and its code that comes into memory meanwhile: for tensors
    // of this size it is other code than for small ones.
    measure(240 * MIB, u64::MAX >> 1);
    let loading = measure(240 * MIB, SLACK);
    assert!(
        loading >= 240 * MIB,
        "this test does not measure: {loading} bytes"
    );
}

/// Does everything with tensors of so many bytes; returns the peak of loading them.
fn measure(payload: u64, slack: u64) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let options = SaveOptions {
        max_shard_size: "50MB".parse().unwrap(),
        durability: Durability::Cached,
        ..SaveOptions::default()
    };
    let rows = (payload / 3 / 4096) as i64;
    let tensors = (0..3).map(|i| {
        let tensor = Tensor::ones([rows, 1024], (Kind::Float, Device::Cpu)) * i;
        (format!("layer.{i}"), tensor)
    });
    let tensors: Vec<_> = tensors.collect();
    let save = |tensors: &[(String, Tensor)]| {
        let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
        safeshard_tch::save_with(tensors, &path, &options).unwrap()
    };
    let (report, saving) = peak(|| save(&tensors));
    assert_eq!(report.total_size, payload);
    assert_below(saving, 0, slack);
    let turned: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.tr()))
        .collect();
    let (_, gathering) = peak(|| save(&turned));
    assert_below(gathering, 0, slack);
    save(&tensors);

    let (loaded, loading) = peak(|| load(&path, Device::Cpu).unwrap());
    assert_below(loading, payload, slack);
    assert_eq!(loaded["layer.2"].double_value(&[-1, -1]), 2.);
    drop(loaded);

    let halves = floats_as(Kind::BFloat16);
    let (loaded, casting) = peak(|| safeshard_tch::load_with(&path, Device::Cpu, &halves).unwrap());
    assert_below(casting, payload / 2, slack);
    drop(loaded);

    // SAFETY: the files stay as they are.
    let (mapped, mapping) = peak(|| unsafe { map_with(&path, &LoadOptions::default()) }.unwrap());
    assert_below(mapping, 0, slack);
    assert!(mapped.1.copied.is_empty());
    drop(mapped);

    let (_, passing) = peak(|| {
        let tensors = tensors
            .iter()
            .map(|(name, tensor)| safeshard_tch::tensor_to_save(name, tensor));
        let checkpoint =
            Checkpoint::from_tensors(tensors.collect::<Result<_, _>>().unwrap()).unwrap();
        load_with(&checkpoint, Device::Cpu, &LoadOptions::default()).unwrap()
    });
    assert_below(passing, payload, slack);
    loading
}
