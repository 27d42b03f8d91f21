//! What bytes are read from: files that change, are cut or are no files, and sources of one's own.

mod support;

use std::fs::{self, File, FileTimes, OpenOptions as FsOptions};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rstest::rstest;
use rustix::fs::{CWD, FileType, mknodat};
use safeshard_core::{
    Checkpoint, CheckpointKind, Code, DimRange, FileSource, Io, Kind, MappedSource, MemorySource,
    OpenOptions, ReadAt, Result,
};
use support::{FIRST, Folder, INDEX, SECOND, by_hand, bytes_of, healthy, refused, warnings};

/// Reads `len` bytes through the trait.
fn read(source: &dyn ReadAt, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![MaybeUninit::uninit(); len];
    source.read_at(offset, &mut buf).map(|bytes| bytes.to_vec())
}

/// Sets when a file was modified, so that no test depends on how finely a file system counts time.
fn set_modified(path: &Path, modified: SystemTime) {
    let file = FsOptions::new().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(modified))
        .unwrap();
}

fn an_hour_ago() -> SystemTime {
    SystemTime::now() - Duration::from_secs(3600)
}

// ---- what is no regular file

#[derive(Clone, Copy, Debug)]
enum NoFile {
    Fifo,
    Socket,
    Folder,
    Zero,
    Null,
}

impl NoFile {
    fn put(self, at: &Path) -> Option<UnixListener> {
        match self {
            Self::Fifo => mknodat(CWD, at, FileType::Fifo, 0o600.into(), 0).unwrap(),
            Self::Socket => return Some(UnixListener::bind(at).unwrap()),
            Self::Folder => fs::create_dir(at).unwrap(),
            Self::Zero => symlink("/dev/zero", at).unwrap(),
            Self::Null => symlink("/dev/null", at).unwrap(),
        }
        None
    }
}

#[rstest]
fn what_is_no_file_is_refused_without_blocking(
    #[values(
        NoFile::Fifo,
        NoFile::Socket,
        NoFile::Folder,
        NoFile::Zero,
        NoFile::Null
    )]
    kind: NoFile,
) {
    let folder = healthy();
    for name in [SECOND, INDEX] {
        fs::remove_file(folder.join(name)).unwrap();
        let _listening = kind.put(&folder.join(name));
        // As a shard, as an index, and by its own path.
        let error = folder.refused(Code::NotRegularFile);
        assert_eq!(error.path(), Some(&*folder.join(name)));
        refused(FileSource::open(folder.join(name)), Code::NotRegularFile);
        if !matches!(kind, NoFile::Folder) {
            refused(Checkpoint::open(folder.join(name)), Code::NotRegularFile);
        }
        let list = Checkpoint::open_files(&[folder.join(name)], &OpenOptions::default());
        refused(list, Code::NotRegularFile);
    }
}

#[test]
fn a_fifo_as_the_only_file_of_a_folder() {
    let folder = Folder::new();
    NoFile::Fifo.put(&folder.join("model.safetensors"));
    folder.refused(Code::NotRegularFile);
}

#[test]
fn what_is_not_there() {
    for path in ["", "no/such/folder", "/dev/null/x"] {
        let error = refused(Checkpoint::open(path), Code::NotFound);
        assert_eq!(
            (error.path(), error.kind()),
            (Some(Path::new(path)), Kind::Io)
        );
        refused(FileSource::open(path), Code::NotFound);
    }
    let folder = Folder::new();
    symlink("loop", folder.join("loop")).unwrap();
    let error = refused(Checkpoint::open(folder.join("loop")), Code::NotRegularFile);
    assert_eq!(error.finding(), Some("a link that leads to itself"));
}

// ---- files that change

#[test]
fn a_file_cut_after_opening_is_an_error_and_no_signal() {
    let folder = Folder::new();
    let bytes = vec![7; 100_000];
    folder.shard("model.safetensors", &[("a", &bytes[..10]), ("b", &bytes)]);
    let checkpoint = folder.open().unwrap();
    let path = folder.join("model.safetensors");
    let file = FsOptions::new().write(true).open(&path).unwrap();
    file.set_len(50_000).unwrap();
    let error = refused(checkpoint.read("b"), Code::FileTruncated);
    assert_eq!((error.path(), error.tensor()), (Some(&*path), Some("b")));
    assert_eq!(error.offset(), Some(50_000), "where the file now ends");
    // What is still there is no longer what was checked.
    refused(checkpoint.read("a"), Code::FileChanged);
    file.set_len(0).unwrap();
    refused(checkpoint.read("a"), Code::FileTruncated);
}

#[rstest]
#[case::other_bytes(|file: &mut File| file.write_all(&bytes_of(&[("a", &[9, 9])])).unwrap())]
#[case::nothing_but_its_time(|file: &mut File| file.set_modified(SystemTime::now()).unwrap())]
#[case::appended(|file: &mut File| { file.set_len(file.metadata().unwrap().len() + 1).unwrap() })]
fn a_file_written_in_place_is_noticed(#[case] write: fn(&mut File)) {
    let folder = Folder::new();
    folder.shard("model.safetensors", &[("a", &[1, 2])]);
    let path = folder.join("model.safetensors");
    set_modified(&path, an_hour_ago());
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.read("a").unwrap(), [1, 2]);
    write(&mut FsOptions::new().write(true).open(&path).unwrap());
    let error = refused(checkpoint.read("a"), Code::FileChanged);
    assert_eq!(error.path(), Some(&*path));
    assert!(error.to_string().contains("open the checkpoint again"));
    folder
        .open()
        .map(drop)
        .unwrap_or_else(|error| assert_eq!(error.code(), Code::TrailingBytes));
}

#[test]
fn a_file_replaced_after_opening_is_read_as_it_was() {
    let folder = healthy();
    let checkpoint = folder.open().unwrap();
    folder.shard("new", &[("a", &[8, 8]), ("b", &[8])]);
    fs::rename(folder.join("new"), folder.join(FIRST)).unwrap();
    assert_eq!(checkpoint.read("a").unwrap(), [1, 2]);
    fs::remove_file(folder.join(FIRST)).unwrap();
    assert_eq!(checkpoint.read("a").unwrap(), [1, 2]);
}

/// As many shards as this are more than a checkpoint keeps open.
const MANY: u8 = 60;

fn shard_of(i: u8) -> (String, String) {
    (
        format!("t{i}"),
        format!("model-{:05}-of-00060.safetensors", i + 1),
    )
}

fn many_shards() -> Folder {
    let folder = Folder::new();
    let names: Vec<_> = (0..MANY).map(shard_of).collect();
    for (i, (tensor, shard)) in (0..).zip(&names) {
        folder.shard(shard, &[(tensor, &[i; 3])]);
    }
    let map = names
        .iter()
        .map(|(tensor, shard)| (tensor.as_str(), shard.as_str()));
    folder.index(&map.collect::<Vec<_>>());
    folder
}

#[test]
fn a_shard_replaced_while_its_descriptor_was_given_up_is_never_read() {
    // It was refused once, and served from then on: the new file had been kept before the check.
    let folder = many_shards();
    let checkpoint = folder.open().unwrap();
    for i in 0..MANY {
        let (tensor, shard) = shard_of(i);
        folder.shard("new", &[(&tensor, &[200; 3])]);
        fs::rename(folder.join("new"), folder.join(shard)).unwrap();
    }
    let mut changed = 0;
    for i in 0..MANY {
        for _ in 0..2 {
            match checkpoint.read(&shard_of(i).0) {
                Ok(bytes) => assert_eq!(bytes, [i; 3]),
                Err(error) => {
                    assert_eq!(error.code(), Code::FileChanged);
                    assert_eq!(error.path(), Some(&*folder.join(shard_of(i).1)));
                    changed += 1;
                }
            }
        }
    }
    assert!(changed >= 2 * (u32::from(MANY) - 24), "{changed}");
}

#[test]
fn a_shard_removed_while_its_descriptor_was_given_up_has_changed() {
    let folder = many_shards();
    let checkpoint = folder.open().unwrap();
    let (tensor, shard) = shard_of(0);
    fs::remove_file(folder.join(shard)).unwrap();
    let error = refused(checkpoint.read(&tensor), Code::FileChanged);
    assert!(error.to_string().contains("no file any more"), "{error}");
}

#[test]
fn shards_are_opened_again_when_needed() {
    let folder = many_shards();
    let checkpoint = folder.open().unwrap();
    for i in (0..MANY).chain((0..MANY).rev()) {
        assert_eq!(checkpoint.read(&shard_of(i).0).unwrap(), [i; 3]);
    }
    let threads = 8;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let checkpoint = &checkpoint;
            scope.spawn(move || {
                for i in (0..MANY).cycle().skip(thread * 7).take(300) {
                    assert_eq!(checkpoint.read(&shard_of(i).0).unwrap(), [i; 3]);
                }
            });
        }
    });
}

#[test]
fn a_thousand_shards_and_a_half_with_64_descriptors() {
    const SHARDS: u64 = 1500;
    if let Some(folder) = support::child_folder() {
        return reads_every_shard(&folder);
    }
    let folder = Folder::new();
    let mut map = serde_json::Map::new();
    for i in 0..SHARDS {
        let name = format!("model-{:05}-of-{SHARDS:05}.safetensors", i + 1);
        let header = format!(r#"{{"t{i}":{{"dtype":"U64","shape":[],"data_offsets":[0,8]}}}}"#);
        folder.write(&name, by_hand(&header, &i.to_le_bytes()));
        map.insert(format!("t{i}"), name.into());
    }
    folder.index_json(&serde_json::json!({"metadata": {}, "weight_map": map}));
    let limit = ["sh", "-c", r#"ulimit -n 64 && exec "$0" "$@""#];
    support::child(&limit, folder.path());
}

fn reads_every_shard(folder: &Path) {
    use safeshard_core::{Dtype, Fill, ReadOptions, TypedBuffer, TypedVec};
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let open_files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert!(
        open_files.split_whitespace().any(|word| word == "64"),
        "{open_files}"
    );
    let mapped = OpenOptions {
        // SAFETY: nobody writes to the files.
        io: unsafe { Io::mmap() },
        ..OpenOptions::default()
    };
    for options in [OpenOptions::default(), mapped] {
        // Two at once, and one more that was forgotten.
        let checkpoint = Checkpoint::open_with(folder, &options).unwrap();
        let _other = Checkpoint::open_with(folder, &options).unwrap();
        let names: Vec<String> = checkpoint.names().into_iter().map(str::to_owned).collect();
        assert_eq!(names.len(), 1500);
        for threads in [1, 8, 64] {
            let fills = names.iter().map(|name| Fill {
                name: name.clone(),
                ranges: None,
                cast: None,
                destination: TypedBuffer::new(Dtype::U64, 8).unwrap(),
            });
            let read = ReadOptions {
                threads: std::num::NonZero::new(threads),
                ..ReadOptions::default()
            };
            let filled = checkpoint.fill(fills.collect(), &read).unwrap();
            for (name, value) in names.iter().zip(filled) {
                let expected: u64 = name[1..].parse().unwrap();
                assert_eq!(value, TypedVec::U64(vec![expected]));
            }
        }
        // From many threads of the caller at the same time.
        std::thread::scope(|scope| {
            for thread in 0..40 {
                let (checkpoint, names) = (&checkpoint, &names);
                scope.spawn(move || {
                    for name in names.iter().skip(thread).step_by(40) {
                        checkpoint.read(name).unwrap();
                    }
                });
            }
        });
    }
}

// ---- memory, maps, sources of one's own

#[test]
fn bytes_in_memory() {
    let bytes = bytes_of(&[("a", &[1, 2, 3])]);
    let checkpoint = Checkpoint::from_bytes(bytes.clone()).unwrap();
    assert_eq!(checkpoint.kind(), CheckpointKind::File);
    assert_eq!(checkpoint.path(), None);
    assert_eq!(checkpoint.read("a").unwrap(), [1, 2, 3]);
    let file = &checkpoint.files()[0];
    assert_eq!(file.source().as_bytes(), Some(&*bytes));
    refused(
        Checkpoint::from_bytes(bytes[..bytes.len() - 1].to_vec()),
        Code::FileTruncated,
    );
    refused(Checkpoint::from_bytes(Vec::new()), Code::HeaderTooShort);
}

#[test]
fn every_source_gives_the_same_bytes_and_ends() {
    let folder = Folder::new();
    let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    folder.write("x", &bytes).write("empty", "");
    // SAFETY: nobody writes to the files.
    let mapped = |name| unsafe { MappedSource::open(folder.join(name)) }.unwrap();
    let sources: [(Box<dyn ReadAt>, Box<dyn ReadAt>); 3] = [
        (
            Box::new(FileSource::open(folder.join("x")).unwrap()),
            Box::new(FileSource::open(folder.join("empty")).unwrap()),
        ),
        (
            Box::new(MemorySource::new(bytes.clone())),
            Box::new(MemorySource::new(Vec::new())),
        ),
        (Box::new(mapped("x")), Box::new(mapped("empty"))),
    ];
    for (source, empty) in &sources {
        assert_eq!(source.len(), 100_000);
        assert_eq!(read(&**source, 0, 100_000).unwrap(), bytes);
        assert_eq!(read(&**source, 4095, 4098).unwrap(), bytes[4095..8193]);
        assert!(read(&**source, 100_000, 0).unwrap().is_empty());
        for (offset, len) in [(0, 100_001), (99_999, 2), (100_000, 1), (1 << 40, 1)] {
            refused(read(&**source, offset, len), Code::FileTruncated);
        }
        assert!(read(&**source, u64::MAX, 1).is_err());
        source.check_unchanged().unwrap();
        assert!(empty.is_empty());
        assert!(read(&**empty, 0, 0).unwrap().is_empty());
        refused(read(&**empty, 0, 1), Code::FileTruncated);
    }
    let lying_in_memory = sources.map(|(source, _)| source.as_bytes().is_some());
    assert_eq!(lying_in_memory, [false, true, true]);
}

#[test]
fn mapped_files_give_the_same_checkpoint() {
    let folder = healthy();
    let options = OpenOptions {
        // SAFETY: nobody writes to the files.
        io: unsafe { Io::mmap() },
        ..OpenOptions::default()
    };
    let (mapped, plain) = (folder.open_with(&options).unwrap(), folder.open().unwrap());
    assert_eq!(mapped.names(), plain.names());
    for name in plain.names() {
        assert_eq!(mapped.read(name).unwrap(), plain.read(name).unwrap());
        let info = mapped.info(name).unwrap();
        let file = mapped.file_of(name).unwrap();
        let start = (file.header().data_start() + info.start) as usize;
        let whole = file.source().as_bytes().unwrap();
        assert_eq!(
            whole[start..start + info.byte_len() as usize],
            plain.read(name).unwrap()
        );
    }
    folder.write(SECOND, "");
    refused(folder.open_with(&options), Code::HeaderTooShort);
    fs::remove_file(folder.join(SECOND)).unwrap();
    refused(folder.open_with(&options), Code::ShardMissing);
    NoFile::Fifo.put(&folder.join(SECOND));
    refused(folder.open_with(&options), Code::NotRegularFile);
}

/// A source that does something wrong, or odd, on the way.
#[derive(Debug)]
struct Odd {
    bytes: Vec<u8>,
    kind: Oddity,
    calls: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Oddity {
    /// Gives a buffer of its own, as long as the right one.
    Liar,
    /// Gives nothing.
    Idle,
    /// Gives a few bytes at a time.
    Short,
    /// Is interrupted at every other call.
    Interrupted,
    /// Fails behind this byte.
    Fails(u64),
    /// Says that it is longer than it is.
    Boasts,
    /// Lends fewer bytes than it has.
    Stingy,
}

impl ReadAt for Odd {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        use safeshard_core::Error;
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let good = &self.bytes[offset as usize..][..buf.len()];
        // The header is read in peace.
        if call == 0 {
            return Ok(buf.write_copy_of_slice(good));
        }
        match self.kind {
            Oddity::Liar => Ok(Box::leak(vec![0; buf.len()].into_boxed_slice())),
            Oddity::Idle => Ok(&mut []),
            Oddity::Short => {
                let len = buf.len().min(1 + call % 7);
                Ok(buf[..len].write_copy_of_slice(&good[..len]))
            }
            Oddity::Interrupted if call % 2 == 1 => {
                Err(Error::io(Code::Io, std::io::ErrorKind::Interrupted.into()))
            }
            Oddity::Fails(end) if offset + buf.len() as u64 > end => {
                Err(Error::io(Code::Io, std::io::Error::from_raw_os_error(5)).at_offset(end))
            }
            Oddity::Boasts => Err(Error::new(Code::FileTruncated).at_offset(offset)),
            Oddity::Interrupted | Oddity::Fails(_) | Oddity::Stingy => {
                Ok(buf.write_copy_of_slice(good))
            }
        }
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        (self.kind == Oddity::Stingy).then(|| &self.bytes[..LENT_BY_THE_STINGY])
    }
}

const LENT_BY_THE_STINGY: usize = 40_000;

fn odd(kind: Oddity) -> Checkpoint {
    let a: Vec<u8> = (0..30_000u32).map(|i| (i % 253) as u8).collect();
    let b: Vec<u8> = a.iter().rev().copied().collect();
    let shape = vec![100, 300];
    let bytes = support::typed(vec![
        ("a", safetensors::Dtype::U8, shape.clone(), &a),
        ("b", safetensors::Dtype::U8, shape, &b),
    ]);
    let source = Odd {
        bytes,
        kind,
        calls: AtomicUsize::new(0),
    };
    let sources: Vec<(String, Arc<dyn ReadAt>)> = vec![("odd".into(), Arc::new(source))];
    Checkpoint::from_sources(sources, &OpenOptions::default()).unwrap()
}

/// Every way through the engine: all of it, its rows, its columns, every other element.
fn ways() -> [Vec<DimRange>; 4] {
    let every_other = DimRange {
        start: 1,
        stop: 300,
        step: 2,
    };
    [
        vec![],
        vec![DimRange::from(10u64..90)],
        vec![DimRange::all(100), DimRange::from(10u64..200)],
        vec![DimRange::all(100), every_other],
    ]
}

#[rstest]
#[case(Oddity::Liar)]
#[case(Oddity::Idle)]
fn a_source_that_fills_another_buffer_is_refused(#[case] kind: Oddity) {
    // Scattered slices took the bytes of whatever buffer the source returned.
    for way in ways() {
        let error = refused(odd(kind).read_slice("b", &way), Code::BufferSize);
        assert_eq!(error.path(), Some(Path::new("odd")));
        assert_eq!(error.tensor(), Some("b"));
        assert!(error.to_string().contains("another buffer"), "{error}");
    }
}

#[rstest]
#[case(Oddity::Short)]
#[case(Oddity::Interrupted)]
fn short_and_interrupted_reads_are_continued(#[case] kind: Oddity) {
    let memory = odd(Oddity::Fails(u64::MAX));
    for way in ways() {
        for name in ["a", "b"] {
            let expected = memory.read_slice(name, &way).unwrap();
            assert_eq!(odd(kind).read_slice(name, &way).unwrap(), expected);
        }
    }
}

#[test]
fn a_source_that_fails_half_way_names_file_tensor_and_byte() {
    for way in ways() {
        let checkpoint = odd(Oddity::Fails(40_000));
        let a = checkpoint.read_slice("a", &way).unwrap();
        assert!(!a.is_empty());
        let error = refused(checkpoint.read_slice("b", &way), Code::Io);
        assert_eq!(error.path(), Some(Path::new("odd")));
        assert_eq!((error.tensor(), error.offset()), (Some("b"), Some(40_000)));
        assert_eq!(error.io_error().unwrap().raw_os_error(), Some(5));
    }
    let error = refused(odd(Oddity::Boasts).read("b"), Code::FileTruncated);
    assert_eq!(error.path(), Some(Path::new("odd")));
}

#[test]
fn a_source_that_lends_too_little_is_an_error() {
    let [_, _, columns, every_other] = ways();
    for way in [columns, every_other] {
        let checkpoint = odd(Oddity::Stingy);
        let expected = odd(Oddity::Fails(u64::MAX)).read_slice("a", &way).unwrap();
        assert_eq!(checkpoint.read_slice("a", &way).unwrap(), expected);
        let error = refused(checkpoint.read_slice("b", &way), Code::FileTruncated);
        assert_eq!(error.path(), Some(Path::new("odd")));
        assert_eq!(error.tensor(), Some("b"));
    }
}

#[test]
fn sources_are_checked_all_and_together() {
    let source = |bytes: Vec<u8>| -> Arc<dyn ReadAt> { Arc::new(MemorySource::new(bytes)) };
    let open = |list: Vec<(&str, Arc<dyn ReadAt>)>| {
        let list = list
            .into_iter()
            .map(|(name, source)| (name.to_owned(), source));
        Checkpoint::from_sources(list.collect(), &OpenOptions::default())
    };
    let good = || source(bytes_of(&[("a", &[1])]));
    let checkpoint = open(vec![("x", good()), ("y", source(bytes_of(&[("b", &[2])])))]).unwrap();
    assert_eq!(checkpoint.read("b").unwrap(), [2]);
    assert_eq!(warnings(&checkpoint), []);
    assert_eq!(checkpoint.file_of("b").unwrap().name(), "y");
    // Only the first problem was reported.
    let bad = || source(b"PK\x03\x04 zip".to_vec());
    let error = refused(
        open(vec![("x", bad()), ("y", good()), ("z", bad())]),
        Code::SeveralProblems,
    );
    let paths: Vec<PathBuf> = error
        .problems()
        .iter()
        .map(|p| p.path().unwrap().into())
        .collect();
    assert_eq!(paths, [Path::new("x"), Path::new("z")]);
    refused(
        open(vec![("x", good()), ("y", good())]),
        Code::DuplicateAcrossFiles,
    );
}
