//! Many parts of many files into many destinations: the same bytes as a naive reader finds, at any
//! number of threads; and how a read reports, stops and fails.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use safeshard_core::{
    Cancel, Cast, Checkpoint, Code, DimRange, Dtype, Error, Fill, Io, MemorySource, OpenOptions,
    Progress, ReadAt, ReadOptions, Result, TypedBuffer, TypedVec,
};
use support::{Folder, by_hand, bytes_of, refused};

// ---- the naive reader

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// The elements that ranges select, one by one; whole rows where they are asked for.
fn naive(tensor: &Tensor, ranges: &[DimRange]) -> Vec<u8> {
    let size = tensor.dtype.size().unwrap();
    let mut ranges = ranges.to_vec();
    ranges.extend(
        tensor.shape[ranges.len()..]
            .iter()
            .map(|&len| DimRange::all(len)),
    );
    let mut starts = vec![0];
    let mut len = size;
    if let (
        Some(&row),
        Some(DimRange {
            start: 0,
            stop,
            step: 1,
        }),
    ) = (tensor.shape.last(), ranges.last())
        && row == *stop
    {
        len *= row;
        ranges.pop();
    }
    for (dim, range) in ranges.iter().enumerate() {
        let inner: u64 = tensor.shape[dim + 1..].iter().product();
        let positions = || (range.start..range.stop).step_by(range.step as usize);
        let within = |base: u64| positions().map(move |at| base + at * inner * size);
        starts = starts.into_iter().flat_map(within).collect();
    }
    let mut bytes = Vec::new();
    for start in starts {
        bytes.extend_from_slice(&tensor.bytes[start as usize..][..len as usize]);
    }
    bytes
}

fn cast(bytes: Vec<u8>, cast: Option<Cast>) -> Vec<u8> {
    let Some(cast) = cast else { return bytes };
    let size = |dtype: Dtype| dtype.size().unwrap() as usize;
    let elements = bytes.len() / size(cast.from()) * cast.expansion() as usize;
    let mut converted = vec![0; elements * size(cast.to())];
    cast.run(&bytes, &mut converted).unwrap();
    converted
}

/// A file of these tensors in this order.
fn file(tensors: &[Tensor]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = serde_json::json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [start, data.len()],
        });
        header.insert(tensor.name.clone(), entry);
    }
    by_hand(&serde_json::Value::from(header).to_string(), &data)
}

/// The request for part of a tensor, into plain bytes.
fn part(name: &str, ranges: &[DimRange], cast: Option<Cast>, len: usize) -> Fill<TypedBuffer> {
    Fill {
        name: name.to_owned(),
        ranges: Some(ranges.to_vec()),
        cast,
        destination: TypedBuffer::new(Dtype::U8, len as u64).unwrap(),
    }
}

fn bytes(filled: TypedVec) -> Vec<u8> {
    match filled {
        TypedVec::U8(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

fn threads(threads: usize) -> ReadOptions {
    ReadOptions {
        threads: NonZero::new(threads),
        ..ReadOptions::default()
    }
}

// ---- what is read

#[derive(Clone, Debug)]
struct Request {
    tensor: usize,
    ranges: Vec<DimRange>,
    cast: Option<Cast>,
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    use Dtype::{Bf16, C64, F8E4M3, F16, F32, F64, I8, I64, U8};
    prop::sample::select(vec![U8, I8, F8E4M3, F16, Bf16, F32, C64, F64, I64])
}

fn tensors() -> impl Strategy<Value = Vec<Tensor>> {
    let tensor = (dtypes(), prop::collection::vec(0u64..7, 0..4), any::<u8>());
    let tensor = tensor.prop_map(|(dtype, shape, seed)| {
        let len = dtype.byte_len(&shape).unwrap();
        // Every byte different from its neighbours and from those of other tensors.
        let bytes = (0..len).map(|i| (i * 7 + i / 256) as u8 ^ seed).collect();
        Tensor {
            name: String::new(),
            dtype,
            shape,
            bytes,
        }
    });
    prop::collection::vec(tensor, 1..9).prop_map(|mut tensors| {
        for (i, tensor) in tensors.iter_mut().enumerate() {
            tensor.name = format!("t{i}");
        }
        tensors
    })
}

fn request(tensors: &[Tensor]) -> impl Strategy<Value = Request> + use<> {
    let tensors = tensors.to_vec();
    (0..tensors.len()).prop_flat_map(move |index| {
        let tensor = &tensors[index];
        let range = |&size: &u64| {
            (0..=size, 0..=size, 1u64..4).prop_map(|(a, b, step)| DimRange {
                start: a.min(b),
                stop: a.max(b),
                step,
            })
        };
        let ranges: Vec<_> = tensor.shape.iter().map(range).collect();
        let casts = Dtype::ALL
            .iter()
            .filter_map(|&to| Cast::new(tensor.dtype, to));
        let casts: Vec<_> = [None].into_iter().chain(casts.map(Some)).collect();
        let rank = tensor.shape.len();
        (ranges, 0..=rank, prop::sample::select(casts)).prop_map(
            move |(mut ranges, given, cast)| {
                ranges.truncate(given);
                Request {
                    tensor: index,
                    ranges,
                    cast,
                }
            },
        )
    })
}

fn cases() -> impl Strategy<Value = (Vec<Tensor>, Vec<Request>, usize)> {
    tensors().prop_flat_map(|tensors| {
        let requests = prop::collection::vec(request(&tensors), 0..20);
        (Just(tensors), requests, 1usize..4)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn many_parts_of_many_files_are_what_a_naive_reader_finds((tensors, requests, files) in cases()) {
        let folder = Folder::new();
        let mut map = serde_json::Map::new();
        for (i, tensors) in tensors.chunks(tensors.len().div_ceil(files)).enumerate() {
            let name = format!("{i}.safetensors");
            folder.write(&name, file(tensors));
            map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name.clone().into())));
        }
        folder.index_json(&serde_json::json!({"metadata": {}, "weight_map": map}));
        // SAFETY: nobody writes to the files.
        let mapped = OpenOptions { io: unsafe { Io::mmap() }, ..OpenOptions::default() };
        for options in [OpenOptions::default(), mapped] {
            let checkpoint = folder.open_with(&options).unwrap();
            for count in [1, 2, 8] {
                let expected: Vec<_> = requests.iter().map(|request| {
                    cast(naive(&tensors[request.tensor], &request.ranges), request.cast)
                }).collect();
                let parts = requests.iter().zip(&expected).map(|(request, expected)| {
                    let name = &tensors[request.tensor].name;
                    part(name, &request.ranges, request.cast, expected.len())
                });
                let filled = checkpoint.fill(parts.collect(), &threads(count)).unwrap();
                let filled: Vec<_> = filled.into_iter().map(bytes).collect();
                prop_assert_eq!(filled, expected);
            }
            for request in &requests {
                let tensor = &tensors[request.tensor];
                let read = checkpoint.read_slice(&tensor.name, &request.ranges).unwrap();
                prop_assert_eq!(read, naive(tensor, &request.ranges));
            }
        }
    }
}

/// 40 MB in 1000 rows: longer than a piece, rows shorter than a run worth a call of its own.
fn large() -> (Folder, Tensor) {
    // Repeats, but nowhere at the start of a row or a piece.
    let floats = (0..10_007u32).flat_map(|i| (i as f32 / 7.0).to_le_bytes());
    let mut bytes = floats.collect::<Vec<u8>>().repeat(1000);
    bytes.truncate(40_000_000);
    let tensor = Tensor {
        name: "large".into(),
        dtype: Dtype::F32,
        shape: vec![1000, 10_000],
        bytes,
    };
    let small = Tensor {
        name: "small".into(),
        dtype: Dtype::U8,
        shape: vec![3],
        bytes: vec![1; 3],
    };
    let folder = Folder::new();
    folder.write("model.safetensors", file(&[small, tensor.clone()]));
    (folder, tensor)
}

#[test]
fn tensors_longer_than_a_piece() {
    let (folder, tensor) = large();
    let checkpoint = folder.open().unwrap();
    let rows = DimRange::all(1000);
    let ways = [
        // All; rows; most of each row; a few columns; rows far apart; every third column of a few
        // rows; every column of every other row.
        vec![],
        vec![DimRange::from(1u64..999)],
        vec![DimRange::from(0u64..300), DimRange::from(100u64..9900)],
        vec![rows, DimRange::from(5u64..8)],
        vec![DimRange {
            start: 3,
            stop: 1000,
            step: 111,
        }],
        vec![
            DimRange::from(7u64..60),
            DimRange {
                start: 2,
                stop: 10_000,
                step: 3,
            },
        ],
        vec![
            DimRange {
                start: 0,
                stop: 1000,
                step: 2,
            },
            DimRange::all(10_000),
        ],
    ];
    let to_bf16 = Cast::new(Dtype::F32, Dtype::Bf16);
    let to_f64 = Cast::new(Dtype::F32, Dtype::F64);
    for way in &ways {
        let plain = naive(&tensor, way);
        // Converting takes long where nothing is optimised.
        let conversions = match plain.len() {
            ..4_000_000 => vec![None, to_bf16, to_f64],
            40_000_000 => vec![None, to_bf16],
            _ => vec![None],
        };
        for conversion in conversions {
            let expected = cast(plain.clone(), conversion);
            for count in [1, 8] {
                let request = part("large", way, conversion, expected.len());
                let filled = checkpoint.fill(vec![request], &threads(count)).unwrap();
                // Not `assert_eq`, which would print 40 MB.
                assert!(
                    filled.into_iter().map(bytes).next().unwrap() == expected,
                    "{way:?}"
                );
            }
        }
    }
}

#[test]
fn runs_longer_than_a_piece() {
    // Two runs of 12 MB each, 4 MB apart, so that pieces end inside of runs.
    let pattern: Vec<u8> = (0..1_000_003u32).map(|i| (i / 1000) as u8).collect();
    let mut bytes = pattern.repeat(32);
    bytes.truncate(32_000_000);
    let tensor = Tensor {
        name: "w".into(),
        dtype: Dtype::U8,
        shape: vec![2, 16_000_000],
        bytes,
    };
    let checkpoint = Checkpoint::from_bytes(file(std::slice::from_ref(&tensor))).unwrap();
    let way = [DimRange::all(2), DimRange::from(1_000_003u64..13_000_003)];
    assert!(checkpoint.read_slice("w", &way).unwrap() == naive(&tensor, &way));
}

#[test]
fn results_come_in_the_order_asked() {
    let folder = Folder::new();
    let names: Vec<String> = (0..50).map(|i| format!("t{i}")).collect();
    let values: Vec<Vec<u8>> = (0..50).map(|i| vec![i; 1 + i as usize]).collect();
    let list: Vec<_> = names
        .iter()
        .zip(&values)
        .map(|(n, v)| (n.as_str(), v.as_slice()))
        .collect();
    folder
        .shard("x.safetensors", &list[..20])
        .shard("y.safetensors", &list[20..]);
    let files = ["y.safetensors", "x.safetensors"].map(|name| folder.join(name));
    let checkpoint = Checkpoint::open_files(&files, &OpenOptions::default()).unwrap();
    // Backwards, from both files in turn, some twice.
    let order: Vec<usize> = (0..100).map(|i| (i * 37 + 11) % 50).collect();
    for count in [1, 8] {
        let parts = order
            .iter()
            .map(|&i| part(&names[i], &[], None, values[i].len()));
        let filled = checkpoint.fill(parts.collect(), &threads(count)).unwrap();
        let expected: Vec<_> = order.iter().map(|&i| values[i].clone()).collect();
        assert_eq!(filled.into_iter().map(bytes).collect::<Vec<_>>(), expected);
    }
    assert!(
        checkpoint
            .fill(Vec::<Fill<TypedBuffer>>::new(), &threads(8))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn empty_tensors_and_scalars() {
    let tensor = |name: &str, shape: &[u64], bytes: &[u8]| Tensor {
        name: name.into(),
        dtype: Dtype::F16,
        shape: shape.to_vec(),
        bytes: bytes.to_vec(),
    };
    let tensors = [
        tensor("empty", &[0], &[]),
        tensor("scalar", &[], &[0, 0x3c]),
        tensor("hollow", &[3, 0, 5], &[]),
        tensor("last", &[1, 1], &[0, 0x40]),
        tensor("end", &[0, 7], &[]),
    ];
    let checkpoint = Checkpoint::from_bytes(file(&tensors)).unwrap();
    for tensor in &tensors {
        assert_eq!(checkpoint.read(&tensor.name).unwrap(), tensor.bytes);
        let none = vec![DimRange::from(0u64..0); tensor.shape.len().min(1)];
        let expected = if none.is_empty() { &*tensor.bytes } else { &[] };
        assert_eq!(
            checkpoint.read_slice(&tensor.name, &none).unwrap(),
            expected
        );
    }
    let to_f32 = Cast::new(Dtype::F16, Dtype::F32);
    let parts = ["empty", "scalar", "hollow"].map(|name| Fill {
        name: name.into(),
        ranges: None,
        cast: to_f32,
        destination: TypedBuffer::new(Dtype::F32, if name == "scalar" { 4 } else { 0 }).unwrap(),
    });
    let filled = checkpoint
        .fill(parts.into(), &ReadOptions::default())
        .unwrap();
    let floats = |values: &[f32]| TypedVec::F32(values.to_vec());
    assert_eq!(filled, [floats(&[]), floats(&[1.0]), floats(&[])]);
}

#[test]
fn memory_of_the_callers_own() {
    let checkpoint = Checkpoint::from_bytes(bytes_of(&[("a", &[1, 2, 3]), ("b", &[4])])).unwrap();
    let mut memory = [MaybeUninit::uninit(); 4];
    let (b, a) = memory.split_at_mut(1);
    let parts = [("a", a), ("b", b)].map(|(name, destination)| Fill {
        name: name.into(),
        ranges: None,
        cast: None,
        destination,
    });
    let filled = checkpoint
        .fill(parts.into(), &ReadOptions::default())
        .unwrap();
    assert_eq!(filled, [&[1, 2, 3][..], &[4]]);
}

// ---- how it reports and stops

/// Reads the large tensor's rows, every other row, and a cast, and returns what was reported.
fn reported(checkpoint: &Checkpoint, mut options: ReadOptions) -> Result<Vec<Progress>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&seen);
    let cancel = options.cancel.clone();
    options.progress = Some(Arc::new(move |progress| {
        report.lock().unwrap().push(progress);
        if let Some(cancel) = &cancel {
            cancel.cancel();
        }
    }));
    let every_other = DimRange {
        start: 0,
        stop: 1000,
        step: 2,
    };
    let rows = DimRange::from(100u64..300);
    let parts = vec![
        part("large", &[], None, 40_000_000),
        part("large", &[every_other], None, 20_000_000),
        part(
            "large",
            &[rows],
            Cast::new(Dtype::F32, Dtype::F64),
            16_000_000,
        ),
        part("small", &[], None, 3),
    ];
    checkpoint.fill(parts, &options)?;
    let seen = seen.lock().unwrap();
    Ok(seen.clone())
}

#[test]
fn progress_counts_every_byte_once_and_only_forwards() {
    let (folder, _) = large();
    let checkpoint = folder.open().unwrap();
    for count in [1, 2, 8] {
        let seen = reported(&checkpoint, threads(count)).unwrap();
        assert!(seen.len() > 10, "{} reports", seen.len());
        assert!(seen.iter().all(|progress| progress.total == 68_000_003));
        assert!(seen.windows(2).all(|pair| pair[0].done < pair[1].done));
        assert_eq!(seen.last().unwrap().done, 68_000_003);
    }
}

#[test]
fn cancelling_stops_a_read_and_gives_nothing() {
    let (folder, _) = large();
    let checkpoint = folder.open().unwrap();
    for count in [1, 2, 8] {
        let cancel = Cancel::default();
        let options = ReadOptions {
            cancel: Some(cancel.clone()),
            ..threads(count)
        };
        // The first report cancels.
        refused(reported(&checkpoint, options.clone()), Code::Cancelled);
        assert!(cancel.is_cancelled());
        // And what is cancelled does not start.
        let error = checkpoint.fill(vec![part("small", &[], None, 3)], &options);
        refused(error.map(drop), Code::Cancelled);
    }
    assert_eq!(checkpoint.read("small").unwrap(), [1; 3]);
}

#[test]
fn a_report_that_panics_breaks_nothing_but_its_own_read() {
    let (folder, _) = large();
    let checkpoint = folder.open().unwrap();
    for count in [1, 8] {
        let options = ReadOptions {
            progress: Some(Arc::new(|_| panic!("on purpose"))),
            ..threads(count)
        };
        let part = part("large", &[], None, 40_000_000);
        let read = AssertUnwindSafe(|| checkpoint.fill(vec![part], &options).map(drop));
        assert!(catch_unwind(read).is_err());
        assert_eq!(checkpoint.read("small").unwrap(), [1; 3]);
    }
}

#[test]
fn a_report_may_read_too() {
    let (folder, _) = large();
    let checkpoint = Arc::new(folder.open().unwrap());
    let inner = Arc::clone(&checkpoint);
    let options = ReadOptions {
        progress: Some(Arc::new(move |_| {
            assert_eq!(inner.read("small").unwrap(), [1; 3]);
        })),
        ..threads(2)
    };
    let part = part("large", &[], None, 40_000_000);
    checkpoint.fill(vec![part], &options).unwrap();
}

// ---- how it fails

#[test]
fn a_destination_of_another_size_is_refused() {
    let values = [0x3c00u16; 6].map(u16::to_le_bytes).concat();
    let shape = vec![2, 3];
    let bytes = support::typed(vec![("w", safetensors::Dtype::F16, shape, &values)]);
    let checkpoint = Checkpoint::from_bytes(bytes).unwrap();
    let column = [DimRange::all(2), DimRange::from(0u64..1)];
    let to_f32 = Cast::new(Dtype::F16, Dtype::F32);
    for (ranges, cast, right) in [(&[][..], None, 12), (&column, None, 4), (&[], to_f32, 24)] {
        for wrong in [0, 1, right - 1, right + 1, right * 2, 1 << 20] {
            let filled = checkpoint.fill(vec![part("w", ranges, cast, wrong)], &threads(1));
            let error = refused(filled.map(drop), Code::BufferSize);
            assert_eq!(error.tensor(), Some("w"));
            let message = error.to_string();
            assert!(
                message.contains(&format!("expected {right} bytes")),
                "{message}"
            );
        }
        checkpoint
            .fill(vec![part("w", ranges, cast, right)], &threads(1))
            .unwrap();
    }
}

#[test]
fn a_request_that_makes_no_sense_names_the_tensor() {
    let checkpoint = Checkpoint::from_bytes(bytes_of(&[("a", &[1, 2, 3])])).unwrap();
    let cast = Cast::new(Dtype::F32, Dtype::F16);
    let reversed = DimRange {
        start: 2,
        stop: 1,
        step: 1,
    };
    let no_step = DimRange {
        start: 0,
        stop: 1,
        step: 0,
    };
    let requests = [
        (part("a", &[], cast, 3), Code::UnsupportedCast),
        (part("a", &[(0u64..4).into()], None, 3), Code::SliceRange),
        (part("a", &[reversed], None, 3), Code::SliceReversed),
        (part("a", &[no_step], None, 3), Code::SliceStep),
        (
            part("a", &[(0u64..1).into(), (0u64..1).into()], None, 3),
            Code::SliceRank,
        ),
        (part("x", &[], None, 3), Code::TensorMissing),
    ];
    for (request, code) in requests {
        let name = request.name.clone();
        let error = refused(checkpoint.fill(vec![request], &threads(1)).map(drop), code);
        assert_eq!(error.tensor(), Some(&*name));
    }
}

#[test]
fn a_value_that_does_not_fit_is_named_by_its_place_in_the_tensor() {
    // The element was counted from the start of its block, and the byte was the block's.
    let mut values = vec![1u64; 600_000];
    values[555_555] = u64::MAX;
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let tensor = Tensor {
        name: "w".into(),
        dtype: Dtype::U64,
        shape: vec![600_000],
        bytes,
    };
    let checkpoint = Checkpoint::from_bytes(file(&[tensor])).unwrap();
    let cast = Cast::new(Dtype::U64, Dtype::I64);
    let error = refused(
        checkpoint
            .fill(vec![part("w", &[], cast, 4_800_000)], &threads(1))
            .map(drop),
        Code::CastValue,
    );
    let start = checkpoint.files()[0].header().data_start();
    assert_eq!(
        (error.tensor(), error.offset()),
        (Some("w"), Some(start + 555_555 * 8))
    );
    let message = error.to_string();
    assert!(
        message.contains("18446744073709551615 in element 555555"),
        "{message}"
    );
}

/// Fails behind its header.
#[derive(Debug)]
struct Broken(MemorySource, u64);

impl ReadAt for Broken {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        if offset >= self.1 {
            return Err(Error::io(Code::Io, std::io::Error::from_raw_os_error(5)));
        }
        self.0.read_at(offset, buf)
    }
}

#[test]
fn the_first_error_wins_and_names_its_place() {
    let source = |name: &str, fails: bool| -> (String, Arc<dyn ReadAt>) {
        let bytes = bytes_of(&[(&format!("{name}.w"), &[1; 8])]);
        let start = bytes.len() as u64 - 8;
        let memory = MemorySource::new(bytes);
        (
            name.into(),
            Arc::new(Broken(memory, if fails { start } else { u64::MAX })),
        )
    };
    let sources = vec![source("x", false), source("y", true), source("z", true)];
    let checkpoint = Checkpoint::from_sources(sources, &OpenOptions::default()).unwrap();
    // In the order of the files, whatever the order of the request.
    let parts = ["z.w", "y.w", "x.w"].map(|name| part(name, &[], None, 8));
    let error = refused(
        checkpoint.fill(parts.into(), &threads(1)).map(drop),
        Code::Io,
    );
    assert_eq!(
        (error.path(), error.tensor()),
        (Some(Path::new("y")), Some("y.w"))
    );
    assert_eq!(
        error.offset(),
        Some(checkpoint.files()[1].header().data_start())
    );
    assert_eq!(checkpoint.read("x.w").unwrap(), [1; 8]);
}

/// Says that it is as long as it pleases.
#[derive(Debug)]
struct Endless(MemorySource, u64);

impl ReadAt for Endless {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        self.0.read_at(offset, buf)
    }
}

#[test]
fn sizes_beyond_all_memory_are_refused_without_overflow() {
    // The longest that a header can state; nine of them are more than 64 bits count.
    let len = (1u64 << 61) - 1;
    let header = |name: &str| {
        format!(r#"{{"{name}":{{"dtype":"F8_E4M3","shape":[{len}],"data_offsets":[0,{len}]}}}}"#)
    };
    let source = |name: &str| -> (String, Arc<dyn ReadAt>) {
        let file = by_hand(&header(name), &[7; 1 << 16]);
        let total = 8 + header(name).len() as u64 + len;
        (
            name.into(),
            Arc::new(Endless(MemorySource::new(file), total)),
        )
    };
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let sources = names.map(source).into();
    let checkpoint = Checkpoint::from_sources(sources, &OpenOptions::default()).unwrap();
    assert_eq!(checkpoint.totals().bytes, u64::MAX);
    refused(checkpoint.read("a"), Code::LimitMemory);
    for cast in [None, Cast::new(Dtype::F8E4M3, Dtype::F64)] {
        let parts = names.map(|name| part(name, &[], cast, 0));
        refused(
            checkpoint.fill(parts.into(), &threads(1)).map(drop),
            Code::BufferSize,
        );
    }
    // A small part of it is read, as far as the source goes.
    let part = |start: u64| checkpoint.read_slice("a", &[DimRange::from(start..start + 10)]);
    assert_eq!(part(0).unwrap(), [7; 10]);
    refused(part(1 << 40), Code::FileTruncated);
}

#[test]
fn reading_leaves_files_alone() {
    let folder = Folder::new();
    folder.shard("model.safetensors", &[("a", &[1, 2])]);
    let path = folder.join("model.safetensors");
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    let before = (
        fs::read(&path).unwrap(),
        fs::metadata(&path).unwrap().modified().unwrap(),
    );
    assert_eq!(folder.open().unwrap().read("a").unwrap(), [1, 2]);
    let after = (
        fs::read(&path).unwrap(),
        fs::metadata(&path).unwrap().modified().unwrap(),
    );
    assert_eq!(before, after);
    let names: BTreeMap<_, _> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| (e.unwrap().path(), ()))
        .collect();
    assert_eq!(names.len(), 1);
}

// ---- over what is in memory already

#[test]
fn memory_is_overwritten_with_what_fill_gives() {
    let bytes = bytes_of(&[("a", &[1, 2, 3, 4]), ("b", &[5, 6])]);
    let checkpoint = Checkpoint::from_bytes(bytes).unwrap();
    let (mut a, mut b) = ([9; 2], [9; 2]);
    let part = |name: &str, ranges, destination| Fill {
        name: name.to_owned(),
        ranges,
        cast: None,
        destination,
    };
    let middle = vec![DimRange::from(1u64..3)];
    let parts = vec![
        part("b", None, &mut b[..]),
        part("a", Some(middle), &mut a[..]),
    ];
    checkpoint
        .overwrite(parts, &ReadOptions::default())
        .unwrap();
    assert_eq!((a, b), ([2, 3], [5, 6]));
}

#[test]
fn a_wrong_request_overwrites_nothing() {
    let bytes = bytes_of(&[("a", &[1, 2, 3, 4]), ("b", &[5, 6])]);
    let checkpoint = Checkpoint::from_bytes(bytes).unwrap();
    let cast = Cast::new(Dtype::F32, Dtype::F64);
    for (name, ranges, cast, len, code) in [
        ("c", None, None, 2, Code::TensorMissing),
        ("b", None, None, 3, Code::BufferSize),
        (
            "b",
            Some(vec![DimRange::from(1u64..4)]),
            None,
            2,
            Code::SliceRange,
        ),
        ("b", None, cast, 2, Code::UnsupportedCast),
    ] {
        let (mut good, mut bad) = ([9; 4], vec![9; len]);
        let parts = vec![
            Fill {
                name: "a".into(),
                ranges: None,
                cast: None,
                destination: &mut good[..],
            },
            Fill {
                name: name.into(),
                ranges,
                cast,
                destination: &mut bad[..],
            },
        ];
        refused(checkpoint.overwrite(parts, &ReadOptions::default()), code);
        assert_eq!((good, bad), ([9; 4], vec![9; len]));
    }
}

/// Leaves uninitialised bytes behind and fails, or panics.
#[derive(Debug)]
struct Spoiler {
    file: Vec<u8>,
    panics: bool,
}

impl ReadAt for Spoiler {
    fn len(&self) -> u64 {
        self.file.len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let data = self.file.len() as u64 - 4;
        if offset < data {
            let start = offset as usize;
            return Ok(buf.write_copy_of_slice(&self.file[start..start + buf.len()]));
        }
        buf.fill(MaybeUninit::uninit());
        assert!(!self.panics, "as it was told to");
        Err(Error::new(Code::FileTruncated))
    }
}

#[test]
fn what_a_failing_source_leaves_behind_is_wiped() {
    for panics in [false, true] {
        // A header that needs more than the first read, so that only the tensor meets the failure.
        let mut file = by_hand(
            &format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}{}"#,
                " ".repeat(40_000)
            ),
            &[],
        );
        file.extend_from_slice(&[1, 2, 3, 4]);
        let source = Arc::new(Spoiler { file, panics });
        let sources = vec![("file".to_owned(), source as Arc<dyn ReadAt>)];
        let checkpoint = Checkpoint::from_sources(sources, &OpenOptions::default()).unwrap();
        let mut memory = [9; 4];
        let part = Fill {
            name: "a".into(),
            ranges: None,
            cast: None,
            destination: &mut memory[..],
        };
        let read = catch_unwind(AssertUnwindSafe(|| {
            checkpoint.overwrite(vec![part], &ReadOptions::default())
        }));
        match read {
            Ok(result) => drop(refused(result, Code::FileTruncated)),
            Err(_) => assert!(panics),
        }
        assert_eq!(memory, [0; 4]);
    }
}
