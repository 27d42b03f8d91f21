//! What saving writes: the bytes are the reference's, by whatever way they reach the medium, and the
//! report says what they are.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rstest::rstest;
use safeshard_core::{Checkpoint, Dtype, Durability, SaveOptions, SaveTensor, save, write_to};
use safetensors::tensor::TensorView;
use safetensors::{Dtype as StDtype, SafeTensors};
use support::tensors::{
    MIB, SINGLE, cached, contents, made, names, noise, shards_of, vector, vectors,
};
use support::{Folder, INDEX};

fn reference_dtype(dtype: Dtype) -> StDtype {
    serde_json::from_value(dtype.name().into()).unwrap()
}

/// What the reference writes for these tensors, `format: pt` included.
fn reference(tensors: &[(&str, Dtype, Vec<u64>, Vec<u8>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let shape = shape.iter().map(|&dim| dim as usize).collect();
        let view = TensorView::new(reference_dtype(*dtype), shape, bytes).unwrap();
        ((*name).to_owned(), view)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn ours<'t>(tensors: &'t [(&str, Dtype, Vec<u64>, Vec<u8>)]) -> Vec<SaveTensor<'t>> {
    let tensors = tensors.iter();
    tensors
        .map(|(name, dtype, shape, bytes)| {
            SaveTensor::new(*name, *dtype, shape.clone(), bytes.as_slice())
        })
        .collect()
}

#[rstest]
fn a_file_is_what_the_reference_writes(
    #[values(Durability::Durable, Durability::Cached)] durability: Durability,
) {
    let folder = Folder::new();
    let mut tensors = vec![
        ("scalar", Dtype::F32, vec![], vec![1, 2, 3, 4]),
        ("empty", Dtype::F64, vec![0, 7], vec![]),
        ("layer.10", Dtype::I64, vec![2], noise(16)),
        (
            "layer.2 \"\u{e9}\u{1f600}\n",
            Dtype::U8,
            vec![3, 1],
            noise(3),
        ),
    ];
    let of_all: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
    for (name, &dtype) in of_all.iter().zip(Dtype::ALL) {
        let bytes = noise(dtype.byte_len(&[4, 2]).unwrap() as usize);
        tensors.push((name, dtype, vec![4, 2], bytes));
    }
    let path = folder.join("x.safetensors");
    let options = SaveOptions {
        durability,
        ..SaveOptions::default()
    };
    save(ours(&tensors), &path, &options).unwrap();
    let reference = reference(&tensors);
    assert_eq!(fs::read(&path).unwrap(), reference);

    let mut streamed = Vec::new();
    write_to(ours(&tensors), &mut streamed, &options).unwrap();
    assert_eq!(streamed, reference);

    let whole = folder.join("whole");
    save(ours(&tensors), &whole, &options).unwrap();
    assert_eq!(names(&whole), [SINGLE]);
    assert_eq!(fs::read(whole.join(SINGLE)).unwrap(), reference);
}

/// Any tensors: dtype, shape and bytes.
fn any_tensors() -> impl Strategy<Value = Vec<(Dtype, Vec<u64>, Vec<u8>)>> {
    let dtype = prop::sample::select(Dtype::ALL);
    let shape = prop::collection::vec(0u64..5, 0..4);
    let tensor = (dtype, shape).prop_filter_map("a remainder", |(dtype, shape)| {
        let len = dtype.byte_len(&shape)?;
        Some((dtype, shape, noise(len as usize)))
    });
    prop::collection::vec(tensor, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_saved_comes_back(tensors in any_tensors(), max in 1u64..600, threads in 1usize..4) {
        let named: Vec<_> = tensors
            .into_iter()
            .enumerate()
            .map(|(at, (dtype, shape, bytes))| (format!("t{at}"), dtype, shape, bytes))
            .collect();
        let tensors: Vec<_> = named
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.as_str(), *dtype, shape.clone(), bytes.clone()))
            .collect();
        let folder = Folder::new();
        let options = SaveOptions {
            threads: NonZeroUsize::new(threads),
            ..shards_of(max)
        };
        let report = save(ours(&tensors), folder.path(), &options).unwrap();
        if tensors.is_empty() {
            prop_assert_eq!(folder.open().unwrap().tensors().count(), 0);
            return Ok(());
        }
        // By our reader, which checks that everything fits together.
        let checkpoint = folder.open().unwrap();
        prop_assert!(checkpoint.warnings().is_empty(), "{:?}", checkpoint.warnings());
        prop_assert_eq!(checkpoint.totals().tensors, tensors.len() as u64);
        prop_assert_eq!(checkpoint.totals().bytes, report.total_size);
        for (name, dtype, shape, bytes) in &tensors {
            let info = checkpoint.info(name).unwrap();
            prop_assert_eq!((info.dtype, info.shape), (*dtype, shape.as_slice()));
            prop_assert_eq!(&checkpoint.read(name).unwrap(), bytes);
        }
        // By the reference, file by file.
        let mut seen = 0;
        for file in &report.files {
            let bytes = fs::read(folder.join(&file.name)).unwrap();
            prop_assert_eq!(bytes.len() as u64, file.bytes);
            let read = SafeTensors::deserialize(&bytes).unwrap();
            seen += read.len();
            for (name, view) in read.iter() {
                let (_, dtype, _, bytes) = tensors.iter().find(|tensor| tensor.0 == name).unwrap();
                prop_assert_eq!(view.dtype(), reference_dtype(*dtype));
                prop_assert_eq!(view.data(), bytes.as_slice());
            }
        }
        prop_assert_eq!(seen, tensors.len());
    }
}

#[test]
fn nothing_is_a_file_without_tensors() {
    let folder = Folder::new();
    let report = save(Vec::new(), folder.join("none"), &cached()).unwrap();
    assert_eq!(report.files.len(), 1);
    assert_eq!(
        Checkpoint::open(folder.join("none"))
            .unwrap()
            .totals()
            .tensors,
        0
    );
    let path = folder.join("none.safetensors");
    save(Vec::new(), &path, &SaveOptions::default()).unwrap();
    assert_eq!(
        SafeTensors::deserialize(&fs::read(path).unwrap())
            .unwrap()
            .len(),
        0
    );
}

/// Through the page cache and around it: around block boundaries, around the size from which on it
/// is left out, and more than all the buffers hold.
#[rstest]
fn both_ways_give_the_same_bytes(
    #[values(0, 1, 4095, 4096, 4097, 16 * MIB - 1, 16 * MIB, 16 * MIB + 1, 16 * MIB + 4096, 45 * MIB + 17)]
    len: usize,
) {
    let folder = Folder::new();
    let bytes = noise(len);
    let (head, tail) = bytes.split_at(len / 3);
    let tensors = || vectors(&[head, &[9; 5], tail]);
    let mut expected = Vec::new();
    write_to(tensors(), &mut expected, &cached()).unwrap();
    for durability in [Durability::Cached, Durability::Durable] {
        let path = folder.join("x.safetensors");
        let options = SaveOptions {
            durability,
            ..SaveOptions::default()
        };
        save(tensors(), &path, &options).unwrap();
        assert!(fs::read(&path).unwrap() == expected, "{durability:?}");
    }
}

/// The file as a whole ends before, on and behind a boundary.
#[rstest]
fn files_of_all_lengths_around_a_boundary(#[values(16 * MIB, 16 * MIB + 4096)] near: usize) {
    let folder = Folder::new();
    let mut empty = Vec::new();
    write_to(vec![vector("w", &noise(16 * MIB))], &mut empty, &cached()).unwrap();
    let header = empty.len() - 16 * MIB;
    for len in [near - 1, near, near + 1] {
        let bytes = noise(len - header);
        let path = folder.join("x.safetensors");
        save(vec![vector("w", &bytes)], &path, &SaveOptions::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), len as u64);
        assert!(Checkpoint::open(&path).unwrap().read("w").unwrap() == bytes);
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let bytes = noise(100_000);
    let tensors = || bytes.chunks(1000).enumerate();
    let tensors = || tensors().map(|(at, bytes)| vector(&format!("layer.{at}"), bytes));
    let saved = |threads| {
        let folder = Folder::new();
        let options = SaveOptions {
            threads: NonZeroUsize::new(threads),
            ..shards_of(7_500)
        };
        let report = save(tensors().collect(), folder.path(), &options).unwrap();
        assert_eq!(report.files.len(), 15);
        (contents(folder.path()), report)
    };
    let once = saved(1);
    assert!(saved(2) == once && saved(5) == once && saved(5) == once);
}
// ---- what is reported

#[test]
fn the_report_says_what_was_written() {
    let folder = Folder::new();
    let storage = [1, 2, 3, 4];
    let tensors = vec![
        vector("tied.b", &storage),
        vector("tied.a", &storage),
        vector("other", &[5, 6, 7]),
        made("computed", |write| {
            write(&[8])?;
            write(&[9, 10, 11])
        }),
    ];
    let report = save(tensors, folder.path(), &shards_of(8)).unwrap();
    let expected: Vec<_> = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    .into_iter()
    .map(|name| (name, fs::metadata(folder.join(name)).unwrap().len()))
    .collect();
    let files = report.files.iter();
    assert!(files.map(|file| (&*file.name, file.bytes)).eq(expected));
    assert_eq!(report.index.as_deref(), Some(INDEX));
    assert_eq!(report.total_size, 4 + 3 + 4);
    let aliases = BTreeMap::from([("tied.b".to_owned(), "tied.a".to_owned())]);
    assert_eq!(report.aliases, aliases);
    assert_eq!(report.materialised, ["computed"]);
    assert!(report.left_behind.is_empty());

    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.aliases(), &aliases);
    assert_eq!(checkpoint.read("tied.b").unwrap(), storage);
    assert_eq!(checkpoint.read("computed").unwrap(), [8, 9, 10, 11]);

    let path = folder.join("x.safetensors");
    let report = save(vec![vector("w", &[1])], &path, &cached()).unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    assert_eq!(report.files.len(), 1);
    assert_eq!(
        (&*report.files[0].name, report.files[0].bytes),
        ("x.safetensors", bytes)
    );
    assert_eq!(report.index, None);
}

#[test]
fn progress_only_grows_and_ends_at_the_total() {
    let folder = Folder::new();
    let bytes = noise(20 * MIB + 3);
    let tensors = vectors(&[&bytes, &[1, 2, 3], &bytes[..MIB]]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let options = SaveOptions {
        progress: Some(Arc::new({
            let seen = Arc::clone(&seen);
            move |progress| seen.lock().unwrap().push(progress)
        })),
        ..shards_of(2 * MIB as u64)
    };
    let report = save(tensors, folder.path(), &options).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.len() >= 4, "{seen:?}");
    assert!(seen.is_sorted_by(|a, b| a.done < b.done));
    assert!(
        seen.iter()
            .all(|progress| progress.total == report.total_size)
    );
    assert_eq!(seen.last().unwrap().done, report.total_size);
}
