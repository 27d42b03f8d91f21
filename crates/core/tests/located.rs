//! Tensors that lie anywhere as a checkpoint: read, saved, re-sharded, converted and compared as any other.

mod support;

use std::fs;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use safeshard_core::{
    Checkpoint, ConvertOptions, DiffOptions, Dtype, FileSource, Located, ReadAt, ReshardOptions,
    Result, SaveOptions, SaveTensor, TensorData, WriteBytes, convert, diff, gather, reshard, save,
};
use support::Folder;

/// A file whose bytes the system may copy, and that counts those that are read.
#[derive(Debug)]
struct Counting {
    file: FileSource,
    read: Arc<AtomicU64>,
}

impl ReadAt for Counting {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.file.read_at(offset, buf)
    }

    fn as_file(&self) -> Result<Option<FileSource>> {
        Ok(Some(self.file.clone()))
    }
}

const FLOATS: usize = 30_000;

fn floats(seed: usize) -> Vec<u8> {
    (0..FLOATS)
        .flat_map(|at| ((at * seed % 1009) as f32 / 8.0).to_le_bytes())
        .collect()
}

/// A file of some other format: two tensors at places that no safetensors file would have them at.
fn foreign(folder: &Folder) -> (Checkpoint, Arc<AtomicU64>) {
    let mut bytes = b"something else ".to_vec();
    let mut place = |tensor: &[u8]| -> Range<u64> {
        let start = bytes.len() as u64;
        bytes.extend_from_slice(tensor);
        bytes.extend_from_slice(b"junk");
        start..start + tensor.len() as u64
    };
    let (b, a) = (place(&floats(7)), place(&floats(3)));
    folder.write("foreign.bin", &bytes);
    let path = folder.join("foreign.bin");
    let read = Arc::<AtomicU64>::default();
    let source: Arc<dyn ReadAt> = Arc::new(Counting {
        file: FileSource::open(&path).unwrap(),
        read: read.clone(),
    });
    let tensor = |name: &str, range: &Range<u64>| {
        let located = Located::new(source.clone(), &path, range.clone());
        SaveTensor::new(name, Dtype::F32, [100, 300], located)
    };
    let tensors = vec![tensor("a", &a), tensor("b", &b), tensor("tied", &b)];
    (Checkpoint::from_tensors(tensors).unwrap(), read)
}

fn is_the_same(checkpoint: &Checkpoint) {
    assert_eq!(checkpoint.names(), ["a", "b", "tied"]);
    for (name, seed) in [("a", 3), ("b", 7), ("tied", 7)] {
        assert!(checkpoint.read(name).unwrap() == floats(seed), "{name}");
    }
}

#[test]
fn bytes_of_a_file_are_copied_by_the_system_wherever_they_lie() {
    let folder = Folder::new();
    let (checkpoint, read) = foreign(&folder);
    let out = |name: &str| folder.join(name);
    let small = SaveOptions {
        max_shard_size: "150KB".parse().unwrap(),
        ..SaveOptions::like(&checkpoint)
    };
    save(checkpoint.save_tensors(), out("saved"), &small).unwrap();
    reshard(&checkpoint, out("resharded"), &ReshardOptions::default()).unwrap();
    convert(&checkpoint, out("converted"), &ConvertOptions::default()).unwrap();
    assert_eq!(read.load(Ordering::Relaxed), 0);
    for name in ["saved", "resharded", "converted"] {
        is_the_same(&Checkpoint::open(out(name)).unwrap());
    }
    assert!(
        out("saved")
            .join("model-00002-of-00002.safetensors")
            .exists()
    );
    let file = fs::read(out("converted").join("model.safetensors")).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&file).unwrap();
    for (name, seed) in [("a", 3), ("b", 7)] {
        assert!(
            reference.tensor(name).unwrap().data() == floats(seed),
            "{name}"
        );
    }
    is_the_same(&checkpoint);
    let whole = 3 * 4 * FLOATS as u64;
    assert_eq!(read.load(Ordering::Relaxed), whole);
}

#[test]
fn it_is_a_checkpoint_for_every_command() {
    let folder = Folder::new();
    let (checkpoint, read) = foreign(&folder);
    let options = ConvertOptions {
        dtype: Some(Arc::new(|_, _| Some(Dtype::F16))),
        ..ConvertOptions::default()
    };
    convert(&checkpoint, folder.join("half"), &options).unwrap();
    let half = Checkpoint::open(folder.join("half")).unwrap();
    let cast: Vec<u8> = floats(3)
        .chunks(4)
        .flat_map(|float| {
            let float = f32::from_le_bytes(float.try_into().unwrap());
            half::f16::from_f32(float).to_le_bytes()
        })
        .collect();
    assert!(half.read("a").unwrap() == cast);
    read.store(0, Ordering::Relaxed);
    let row = checkpoint.read_slice("b", &[(7u64..8).into()]).unwrap();
    assert!(row == floats(7)[7 * 1200..8 * 1200]);
    assert_eq!(read.load(Ordering::Relaxed), 1200);
    save(
        checkpoint.save_tensors(),
        folder.join("again"),
        &SaveOptions::like(&checkpoint),
    )
    .unwrap();
    let again = Checkpoint::open(folder.join("again")).unwrap();
    let difference = diff(&checkpoint, &again, &DiffOptions::default()).unwrap();
    assert!(difference.is_equal());
    let extent = checkpoint.extent("b").unwrap();
    assert_eq!(
        (extent.start, extent.path),
        (15, &*folder.join("foreign.bin"))
    );
}

#[test]
fn a_file_that_changed_is_told_by_whoever_reads_it() {
    let folder = Folder::new();
    let (checkpoint, _) = foreign(&folder);
    let bytes = fs::read(folder.join("foreign.bin")).unwrap();
    fs::write(folder.join("foreign.bin"), &bytes[1..]).unwrap();
    let saved = save(
        checkpoint.save_tensors(),
        folder.join("saved"),
        &SaveOptions::default(),
    );
    assert_eq!(saved.unwrap_err().code(), safeshard_core::Code::FileChanged);
    assert!(!folder.join("saved/model.safetensors").exists());
}

/// The transpose of a matrix in memory.
struct Transposed(Vec<u8>, u64);

impl TensorData for Transposed {
    fn byte_len(&self) -> Option<u64> {
        Some(self.0.len() as u64)
    }

    fn is_materialised(&self) -> bool {
        true
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let columns = self.0.len() as u64 / self.1;
        let copy = |ranges: &[Range<u64>], write: &mut WriteBytes<'_>| {
            let mut part = Vec::new();
            for row in ranges[0].clone() {
                part.extend(
                    ranges[1]
                        .clone()
                        .map(|column| self.0[(column * self.1 + row) as usize]),
                );
            }
            write(&part)
        };
        gather(&[self.1, columns], 1, range, copy, write)
    }
}

#[test]
fn a_tensor_with_strides_is_read_and_saved_in_any_part() {
    let (rows, columns) = (3000u64, 7000u64);
    let memory: Vec<u8> = (0..rows * columns).map(|at| (at % 251) as u8).collect();
    let expected = |row: u64, column: u64| memory[(column * rows + row) as usize];
    let tensor = || {
        SaveTensor::new(
            "t",
            Dtype::U8,
            [rows, columns],
            Transposed(memory.clone(), rows),
        )
    };
    let checkpoint = Checkpoint::from_tensors(vec![tensor()]).unwrap();
    let corner = checkpoint
        .read_slice("t", &[(2990u64..3000).into(), (5u64..6990).into()])
        .unwrap();
    let whole: Vec<u8> = (0..rows)
        .flat_map(|row| (0..columns).map(move |column| expected(row, column)))
        .collect();
    let rows_of_it = whole.chunks(columns as usize).skip(2990);
    assert!(
        corner
            == rows_of_it
                .flat_map(|row| &row[5..6990])
                .copied()
                .collect::<Vec<_>>()
    );
    assert!(checkpoint.read("t").unwrap() == whole);
    let folder = Folder::new();
    let path = folder.join("model.safetensors");
    let report = save(vec![tensor()], &path, &SaveOptions::default()).unwrap();
    assert_eq!(report.materialised, ["t"]);
    assert!(Checkpoint::open(&path).unwrap().read("t").unwrap() == whole);
}
