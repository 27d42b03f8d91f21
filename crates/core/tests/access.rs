//! How many calls a source gets, and how many at once: a source that counts says what reading costs.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use safeshard_core::{
    Access, Checkpoint, Code, DimRange, Dtype, Error, LoadOptions, OpenOptions, ReadAt,
    ReadOptions, Result, SaveOptions, SaveTensor, Support, TypedVec, write_to,
};

/// What the sources of a test have in common.
#[derive(Debug, Default)]
struct Counts {
    calls: AtomicUsize,
    /// How many calls are under way, and how many were at most.
    at_once: Mutex<(usize, usize)>,
    /// So many calls are waited for, for a while, before any of them is answered.
    awaited: AtomicUsize,
    changed: Condvar,
}

impl Counts {
    /// Forgets what was counted; calls are answered when so many are under way.
    fn reset(&self, awaited: usize) {
        self.calls.store(0, SeqCst);
        self.awaited.store(awaited, SeqCst);
        *self.at_once.lock().unwrap() = (0, 0);
    }

    fn seen(&self) -> (usize, usize) {
        (self.calls.load(SeqCst), self.at_once.lock().unwrap().1)
    }

    fn call(&self) {
        self.calls.fetch_add(1, SeqCst);
        let mut at_once = self.at_once.lock().unwrap();
        at_once.0 += 1;
        at_once.1 = at_once.1.max(at_once.0);
        self.changed.notify_all();
        let too_few = |at_once: &mut (usize, usize)| at_once.1 < self.awaited.load(SeqCst);
        let waited = self
            .changed
            .wait_timeout_while(at_once, Duration::from_secs(20), too_few);
        waited.unwrap().0.0 -= 1;
    }
}

#[derive(Debug)]
struct Counting {
    bytes: Vec<u8>,
    access: Access,
    counts: Arc<Counts>,
}

impl ReadAt for Counting {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        self.counts.call();
        let at = offset as usize;
        Ok(buf.write_copy_of_slice(&self.bytes[at..at + buf.len()]))
    }

    fn access(&self) -> Access {
        self.access
    }
}

/// A server whose answers take long.
fn far(streams: usize) -> Access {
    let streams = NonZeroUsize::new(streams).unwrap();
    Access::default().streams(streams).gap(1 << 20)
}

fn numbers(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// A file of tensors of this shape, one behind the other.
fn file(names: &[String], shape: [u64; 2]) -> Vec<u8> {
    let len = (shape[0] * shape[1]) as usize;
    let bytes = numbers(names.len() * len);
    let tensors = names.iter().zip(bytes.chunks(len));
    let tensors = tensors.map(|(name, bytes)| SaveTensor::new(name, Dtype::U8, shape, bytes));
    let mut file = Vec::new();
    write_to(tensors.collect(), &mut file, &SaveOptions::default()).unwrap();
    file
}

/// Files of these tensors each, behind one count.
fn opened(
    files: &[Vec<String>],
    shape: [u64; 2],
    access: Access,
    awaited: usize,
) -> (Checkpoint, Arc<Counts>) {
    let counts = Arc::<Counts>::default();
    counts.reset(awaited);
    let sources = files.iter().enumerate().map(|(at, names)| {
        let source: Arc<dyn ReadAt> = Arc::new(Counting {
            bytes: file(names, shape),
            access,
            counts: counts.clone(),
        });
        (format!("file {at}"), source)
    });
    let opened = Checkpoint::from_sources(sources.collect(), &OpenOptions::default());
    (opened.unwrap(), counts)
}

/// Reads all tensors in one go; each under its name.
fn read_all(checkpoint: &Checkpoint, options: &ReadOptions) -> Vec<(String, Vec<u8>)> {
    let plan = checkpoint
        .plan(&LoadOptions::default(), |_| Support::Native)
        .unwrap();
    let read = checkpoint.read_planned(&plan.tensors, options).unwrap();
    let named = plan.tensors.into_iter().zip(read).map(|(planned, read)| {
        let TypedVec::U8(bytes) = read else {
            panic!("{read:?}");
        };
        (planned.name, bytes)
    });
    named.collect()
}

fn one_each(count: usize) -> Vec<Vec<String>> {
    (0..count).map(|at| vec![format!("t{at}")]).collect()
}

#[test]
fn fifty_files_are_opened_and_read_with_all_in_flight() {
    let (checkpoint, counts) = opened(&one_each(50), [4, 1024], far(50), 50);
    assert_eq!(counts.seen(), (50, 50));
    counts.reset(50);
    read_all(&checkpoint, &ReadOptions::default());
    assert_eq!(counts.seen(), (50, 50));
}

#[test]
fn threads_that_were_asked_for_are_used_however_little_there_is_to_read() {
    let (checkpoint, counts) = opened(&one_each(50), [4, 1024], Access::default(), 0);
    counts.reset(32);
    let options = ReadOptions {
        threads: NonZeroUsize::new(32),
        ..ReadOptions::default()
    };
    read_all(&checkpoint, &options);
    assert_eq!(counts.seen(), (50, 32));
}

#[test]
fn small_neighbours_are_read_together() {
    const COUNT: usize = 10_000;
    let names = vec![(0..COUNT).map(|at| format!("t{at}")).collect()];
    let (checkpoint, counts) = opened(&names, [1, 4096], Access::default(), 0);
    counts.reset(0);
    read_all(&checkpoint, &ReadOptions::default());
    let (calls, _) = counts.seen();
    assert!(calls <= COUNT * 4096 / (8 << 20) + 1, "{calls}");
}

/// That all tensors of one file have the bytes that were written.
fn check(names: &[String], shape: [u64; 2], access: Access) {
    let (checkpoint, _) = opened(&[names.to_vec()], shape, access, 0);
    let len = (shape[0] * shape[1]) as usize;
    let written = numbers(names.len() * len);
    let written: HashMap<_, _> = names.iter().zip(written.chunks(len)).collect();
    let read = read_all(&checkpoint, &ReadOptions::default());
    assert_eq!(read.len(), names.len());
    for (name, bytes) in read {
        assert!(bytes == written[&name], "{name}");
    }
}

#[test]
fn what_is_read_together_is_the_same() {
    let names: Vec<_> = (0..300).map(|at| format!("t{at}")).collect();
    check(&names, [3, 700], Access::default());
    check(&names, [3, 7], Access::default().gap(64));
    check(&names, [3, 700], far(8));
}

/// Fails behind a byte of the file.
#[derive(Debug)]
struct Failing(Vec<u8>, u64);

impl ReadAt for Failing {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let end = offset + buf.len() as u64;
        if end > self.1 {
            return Err(Error::new(Code::FileTruncated).at_offset(self.1.max(offset)));
        }
        Ok(buf.write_copy_of_slice(&self.0[offset as usize..end as usize]))
    }

    /// So that the header is all that is read when it is opened.
    fn access(&self) -> Access {
        Access::default().first_read(1)
    }
}

#[test]
fn of_tensors_that_are_read_together_the_one_is_named_that_cannot_be_read() {
    let names: Vec<_> = (0..300).map(|at| format!("t{at:03}")).collect();
    let bytes = file(&names, [1, 100]);
    let data_start = bytes.len() as u64 - 300 * 100;
    // In the middle of this tensor, which is not the first of those that are read together.
    let fails = data_start + 250 * 100 + 50;
    let source: Arc<dyn ReadAt> = Arc::new(Failing(bytes, fails));
    let sources = vec![("file".to_owned(), source)];
    let checkpoint = Checkpoint::from_sources(sources, &OpenOptions::default()).unwrap();
    let plan = checkpoint
        .plan(&LoadOptions::default(), |_| Support::Native)
        .unwrap();
    let read = checkpoint.read_planned(&plan.tensors, &ReadOptions::default());
    let error = read.unwrap_err();
    assert_eq!(error.code(), Code::FileTruncated);
    assert_eq!(
        (error.tensor(), error.offset()),
        (Some("t250"), Some(fails))
    );
}

#[test]
fn half_of_each_row_takes_a_few_calls_where_calls_are_dear() {
    let (checkpoint, counts) = opened(&[vec!["w".into()]], [256, 64 << 10], far(4), 0);
    counts.reset(0);
    let half = [DimRange::all(256), DimRange::from(0u64..32 << 10)];
    let read = checkpoint.read_slice("w", &half).unwrap();
    let rows = numbers(256 * (64 << 10));
    let expected: Vec<u8> = rows
        .chunks(64 << 10)
        .flat_map(|row| &row[..32 << 10])
        .copied()
        .collect();
    assert!(read == expected);
    let (calls, _) = counts.seen();
    assert!(calls <= 8, "{calls}");
}

#[test]
fn whatever_a_source_says_of_itself_its_bytes_are_read() {
    for extreme in [0, 1, u64::MAX] {
        let access = Access::default()
            .piece(extreme)
            .gap(extreme)
            .first_read(extreme);
        let names: Vec<_> = (0..20).map(|at| format!("t{at}")).collect();
        check(&names, [300, 700], access);
    }
}

#[test]
fn a_large_tensor_is_shared_by_all_streams() {
    let (checkpoint, counts) = opened(&[vec!["w".into()]], [64, 1 << 20], far(16), 0);
    counts.reset(16);
    checkpoint.read("w").unwrap();
    assert_eq!(counts.seen(), (16, 16));
}
