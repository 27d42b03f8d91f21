//! Loading N bytes of tensors peaks at N plus at most 64 MiB, and saving them needs a few MiB:
//! everything that is allocated counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use safeshard_candle::{
    LoadOptions, SaveOptions, VarMapExt, Weights, floats_as, load, load_with, save_with,
};
use safeshard_core::Durability;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const MIB: usize = 1 << 20;
const SLACK: usize = 64 * MIB;

/// A shard, in MiB.
const SIZES: [usize; 5] = [32, 1, 16, 12, 6];
const SHARD: usize = 67 * MIB;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes on to the system's allocator unchanged; what is added only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Only one test at a time may allocate.
static ALONE: Mutex<()> = Mutex::new(());

/// The result, and the bytes that were allocated at the same time on the way to it.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before)
}

fn checkpoint(dtype: Dtype, shards: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let bytes = vec![shard as u8 + 1; SIZES[0] * MIB];
        let tensors = SIZES.iter().enumerate().map(|(i, size)| {
            let elements = size * MIB * 8 / dtype.bitsize();
            let bytes = &bytes[..size * MIB];
            let view = TensorView::new(dtype, vec![elements], bytes).unwrap();
            (format!("layer.{shard}.w{i}"), view)
        });
        let tensors: Vec<_> = tensors.collect();
        for (name, _) in &tensors {
            map.insert(name.clone(), file.clone().into());
        }
        safetensors::serialize_to_file(tensors, None, &folder.path().join(&file)).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    let path = folder.path().join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
    folder
}

/// Names in an order in which a model might ask: not the file's.
fn model_order(path: &Path) -> (Weights, Vec<String>) {
    let weights = Weights::open(path).unwrap();
    let mut names: Vec<_> = weights.names().into_iter().map(str::to_owned).collect();
    for layer in names.chunks_mut(SIZES.len()) {
        layer.swap(0, 3);
        layer.swap(1, 4);
    }
    (weights, names)
}

fn build(path: PathBuf, dtype: DType) -> Vec<Tensor> {
    let (weights, names) = model_order(&path);
    let vb = weights.var_builder(dtype, &Device::Cpu);
    names
        .iter()
        .map(|name| vb.get_unchecked(name).unwrap())
        .collect()
}

#[track_caller]
fn assert_below(peak: usize, result: usize) {
    let most = result + SLACK;
    assert!(
        (result..most).contains(&peak),
        "{} MiB for {} MiB",
        peak / MIB,
        result / MIB
    );
}

#[test]
fn loading_needs_the_tensors_memory_and_little_more() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = checkpoint(Dtype::BF16, 3);
    let (tensors, bytes) = peak(|| load(folder.path(), &Device::Cpu).unwrap());
    assert_eq!(tensors.len(), 3 * SIZES.len());
    assert_below(bytes, 3 * SHARD);
    drop(tensors);

    let (_tensors, bytes) = peak(|| build(folder.path().to_path_buf(), DType::BF16));
    assert_below(bytes, 3 * SHARD);
}

#[test]
fn casting_on_the_way_needs_the_results_memory_and_little_more() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = checkpoint(Dtype::BF16, 2);
    let options = floats_as(DType::F32);
    let (tensors, bytes) = peak(|| load_with(folder.path(), &Device::Cpu, &options).unwrap());
    assert_below(bytes, 4 * SHARD);
    drop(tensors);

    let (_tensors, bytes) = peak(|| build(folder.path().to_path_buf(), DType::F32));
    assert_below(bytes, 4 * SHARD);
}

#[test]
fn eight_bit_floats_and_variables_are_not_copied_again() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = checkpoint(Dtype::F8_E4M3, 2);
    let options = LoadOptions::default();
    let (tensors, bytes) = peak(|| load(folder.path(), &Device::Cpu).unwrap());
    assert_below(bytes, 2 * SHARD);
    drop(tensors);

    let build = || VarMap::from_checkpoint(folder.path(), &options, &Device::Cpu).unwrap();
    let (_vars, bytes) = peak(build);
    assert_below(bytes, 2 * SHARD);
}

#[test]
fn what_nobody_takes_stays_within_the_window() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = checkpoint(Dtype::BF16, 3);
    let (weights, names) = model_order(folder.path());
    let ((), bytes) = peak(|| {
        let vb = weights.var_builder(DType::BF16, &Device::Cpu);
        for name in &names {
            drop(vb.get_unchecked(name).unwrap());
        }
    });
    // The largest tensor is held by the one who asked.
    assert_below(bytes, SIZES[0] * MIB);
}

#[test]
fn saving_borrows_what_is_in_memory() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let tensors = [DType::F32, DType::BF16, DType::F8E4M3, DType::F64].map(|dtype| {
        let elements = 16 * MIB / dtype.size_in_bytes();
        let tensor = Tensor::ones(elements, dtype, &Device::Cpu).unwrap();
        (dtype.as_str(), tensor)
    });
    let folder = tempfile::tempdir().unwrap();
    for max_shard_size in ["1GB", "20MB"] {
        let options = SaveOptions {
            max_shard_size: max_shard_size.parse().unwrap(),
            durability: Durability::Cached,
            ..SaveOptions::default()
        };
        let (report, bytes) = peak(|| {
            let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
            save_with(tensors, folder.path(), &options).unwrap()
        });
        assert_eq!(report.total_size, 64 * MIB as u64);
        assert!(bytes < 4 * MIB, "{} KiB", bytes >> 10);
    }
}

#[test]
fn saving_gathers_views_in_pieces() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let tensor = Tensor::ones((4096, 4096), DType::F32, &Device::Cpu).unwrap();
    let view = tensor.t().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        durability: Durability::Cached,
        ..SaveOptions::default()
    };
    let (report, bytes) = peak(|| save_with([("view", &view)], folder.path(), &options).unwrap());
    assert_eq!(report.materialised, ["view"]);
    assert!(bytes < 12 * MIB, "{} KiB", bytes >> 10);
}
