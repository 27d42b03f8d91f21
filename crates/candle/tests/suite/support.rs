//! Files written by the reference implementation, sources that can be watched, and bytes of tensors.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{CpuStorage, Storage, Tensor};
use safeshard_candle::{Checkpoint, LoadOptions, Result, Weights};
use safeshard_core::{Access, MemorySource, OpenOptions, ReadAt};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

/// A tensor to write.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    pub(crate) fn new(
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            bytes: bytes.into(),
        }
    }

    /// Elements that differ from tensor to tensor and from place to place.
    pub(crate) fn f32(name: &str, shape: &[usize]) -> Self {
        let seed = name.bytes().map(f32::from).sum::<f32>();
        let values = (0..shape.iter().product()).map(|i: usize| seed + i as f32);
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        Self::new(name, Dtype::F32, shape, bytes)
    }
}

/// A whole file, written by the reference.
pub(crate) fn file(tensors: &[Stored]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (tensor.name.as_str(), view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

pub(crate) fn write(path: impl AsRef<Path>, tensors: &[Stored]) {
    std::fs::write(path, file(tensors)).unwrap();
}

/// An index and its shards.
pub(crate) fn write_shards(folder: &Path, shards: &[&[Stored]]) {
    let mut map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write(folder.join(&name), shard);
        map.extend(
            shard
                .iter()
                .map(|tensor| (tensor.name.clone(), name.clone())),
        );
    }
    write_index(folder, &map);
}

pub(crate) fn write_index(folder: &Path, map: &BTreeMap<String, String>) {
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
}

/// The bytes of a contiguous CPU tensor, as a file would hold them.
pub(crate) fn bytes(tensor: &Tensor) -> Vec<u8> {
    fn le<T: Copy, const N: usize>(elements: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
        elements.iter().copied().flat_map(bytes).collect()
    }
    let (storage, layout) = tensor.storage_and_layout();
    assert!(layout.is_contiguous() && layout.start_offset() == 0);
    let Storage::Cpu(storage) = &*storage else {
        panic!("not on the CPU");
    };
    match storage {
        CpuStorage::U8(v)
        | CpuStorage::F4(v)
        | CpuStorage::F6E2M3(v)
        | CpuStorage::F6E3M2(v)
        | CpuStorage::F8E8M0(v) => v.clone(),
        CpuStorage::F8E4M3(v) => v.iter().map(float8::F8E4M3::to_bits).collect(),
        CpuStorage::I16(v) => le(v, i16::to_le_bytes),
        CpuStorage::BF16(v) => le(v, half::bf16::to_le_bytes),
        CpuStorage::F16(v) => le(v, half::f16::to_le_bytes),
        CpuStorage::U32(v) => le(v, u32::to_le_bytes),
        CpuStorage::I32(v) => le(v, i32::to_le_bytes),
        CpuStorage::F32(v) => le(v, f32::to_le_bytes),
        CpuStorage::I64(v) => le(v, i64::to_le_bytes),
        CpuStorage::F64(v) => le(v, f64::to_le_bytes),
    }
}

/// Whether two tensors are the same memory.
pub(crate) fn same_memory(a: &Tensor, b: &Tensor) -> bool {
    let (a, _) = a.storage_and_layout();
    let (b, _) = b.storage_and_layout();
    std::ptr::eq(&*a, &*b)
}

/// Called before each read, with the bytes of the file that are wanted.
pub(crate) type Hook = Arc<dyn Fn(&Range<u64>) -> Result<()> + Send + Sync>;

/// A file in memory whose reads are counted and may be tampered with.
pub(crate) struct Probe {
    source: MemorySource,
    reads: Mutex<Vec<Range<u64>>>,
    hook: Mutex<Hook>,
}

impl Probe {
    pub(crate) fn new(tensors: &[Stored]) -> Arc<Self> {
        Arc::new(Self {
            source: MemorySource::new(file(tensors)),
            reads: Mutex::default(),
            hook: Mutex::new(Arc::new(|_| Ok(()))),
        })
    }

    pub(crate) fn weights(self: &Arc<Self>, options: &LoadOptions) -> Weights {
        let source: Arc<dyn ReadAt> = Arc::clone(self) as _;
        let sources = vec![("model.safetensors".to_owned(), source)];
        let checkpoint = Checkpoint::from_sources(sources, &OpenOptions::default()).unwrap();
        self.reads.lock().unwrap().clear();
        Weights::open_with(checkpoint, options).unwrap()
    }

    pub(crate) fn set_hook(
        &self,
        hook: impl Fn(&Range<u64>) -> Result<()> + Send + Sync + 'static,
    ) {
        *self.hook.lock().unwrap() = Arc::new(hook);
    }

    /// Bytes that were read since the checkpoint was opened.
    pub(crate) fn bytes_read(&self) -> u64 {
        let reads = self.reads.lock().unwrap();
        reads.iter().map(|read| read.end - read.start).sum()
    }
}

impl ReadAt for Probe {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let range = offset..offset + buf.len() as u64;
        self.reads.lock().unwrap().push(range.clone());
        let hook = Arc::clone(&self.hook.lock().unwrap());
        hook(&range)?;
        self.source.read_at(offset, buf)
    }

    /// Runs of a tensor are read together, tensors are not: so it can be counted which are read.
    fn access(&self) -> Access {
        Access::default().gap(64)
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited in vain: {what}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn on_background_thread() -> bool {
    thread::current().name() == Some("safeshard-prefetch")
}

/// As a caller with one thread: reading ahead happens on the background thread alone.
pub(crate) fn one_thread() -> LoadOptions {
    let mut options = LoadOptions::default();
    options.read.threads = std::num::NonZeroUsize::new(1);
    options
}

/// Lets the background thread's reads wait until the gate opens.
#[derive(Default)]
pub(crate) struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicBool,
}

impl Gate {
    pub(crate) fn pass(&self) -> Result<()> {
        if on_background_thread() {
            self.waiting.store(true, Ordering::Relaxed);
            let open = self.open.lock().unwrap();
            drop(self.changed.wait_while(open, |open| !*open).unwrap());
        }
        Ok(())
    }

    pub(crate) fn wait_for_somebody(&self) {
        wait_until("the background", || self.waiting.load(Ordering::Relaxed));
    }

    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// What Python's writers left.
pub(crate) fn fixtures() -> PathBuf {
    let folder = std::env::var_os("SAFESHARD_FIXTURES");
    Path::new(&folder.expect("SAFESHARD_FIXTURES is not set: run `cargo xtask test`"))
        .join("interop")
}

/// The folders of [`fixtures`] and the files that say what they hold: one for each variant.
pub(crate) fn expectations() -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(fixtures()).unwrap() {
        let folder = folder.unwrap().path();
        for file in std::fs::read_dir(&folder).unwrap() {
            let file = file.unwrap().path();
            let name = file.file_name().unwrap().to_str().unwrap();
            if name.starts_with("expected") && name.ends_with(".json") {
                let text = std::fs::read_to_string(&file).unwrap();
                found.push((folder.clone(), serde_json::from_str(&text).unwrap()));
            }
        }
    }
    found
}
