//! What this crate implements of its own traits does what they ask for, and the checks notice what does not.
#![cfg(feature = "contract")]

mod support;

use std::fs;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use rstest::rstest;
use safeshard_core::contract::{
    check_data, check_destination, check_folder, check_folder_changes, check_source,
};
use safeshard_core::{
    Checkpoint, Code, DiskFolder, Dtype, Error, FileSource, Located, MappedSource, MemoryFolder,
    MemorySource, ReadAt, Result, SaveOptions, SaveTensor, TensorData, TypedBuffer, Version,
    WriteBytes, write_to,
};
use support::Folder;

fn numbers(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[rstest]
fn every_source_of_this_crate(#[values(0, 1, 100_000)] len: usize) {
    let folder = Folder::new();
    let bytes = numbers(len);
    folder.write("x", &bytes);
    let path = folder.join("x");
    check_source(&FileSource::open(&path).unwrap(), &bytes);
    // SAFETY: nobody writes to the file.
    check_source(&unsafe { MappedSource::open(&path) }.unwrap(), &bytes);
    check_source(&MemorySource::new(bytes.clone()), &bytes);
}

#[test]
fn files_of_checkpoints_and_their_tensors() {
    let folder = Folder::new();
    let located: Arc<dyn ReadAt> = Arc::new(MemorySource::new(numbers(5000)));
    let located = || Located::new(located.clone(), "there", 9..709);
    let lazy: Vec<u8> = (0..1000).map(|at| (at % 7) as u8).collect();
    let tensors = || {
        vec![
            SaveTensor::new("a", Dtype::U8, [3, 1000], numbers(3000)),
            SaveTensor::new("b", Dtype::U8, [700], located()),
            SaveTensor::new("c", Dtype::U8, [1000], Lazy),
            SaveTensor::new("d", Dtype::U8, [0], Vec::new()),
        ]
    };
    let known = [numbers(3000), numbers(709)[9..].to_vec(), lazy, Vec::new()];
    let mut file = Vec::new();
    write_to(tensors(), &mut file, &SaveOptions::default()).unwrap();
    // As the reference reads it.
    let reference = safetensors::SafeTensors::deserialize(&file).unwrap();
    for (name, known) in ["a", "b", "c", "d"].into_iter().zip(&known) {
        assert!(reference.tensor(name).unwrap().data() == known, "{name}");
    }
    folder.write("model.safetensors", &file);
    let opened = folder.open().unwrap();
    check_source(&**opened.files()[0].source(), &file);
    let in_memory = Checkpoint::from_tensors(tensors()).unwrap();
    let whole = &in_memory.files()[0];
    let mut room = vec![MaybeUninit::uninit(); whole.source().len() as usize];
    let whole_file = whole.source().read_at(0, &mut room).unwrap().to_vec();
    let data = whole.header().data_start() as usize;
    assert!(whole_file[data..] == known.concat());
    check_source(&**whole.source(), &whole_file);
    for checkpoint in [opened, in_memory] {
        for (tensor, known) in checkpoint.save_tensors().iter().zip(&known) {
            check_data(&*tensor.data, known);
        }
    }
}

/// Bytes that are computed.
struct Lazy;

impl TensorData for Lazy {
    fn byte_len(&self) -> Option<u64> {
        Some(1000)
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let bytes: Vec<_> = range.map(|at| (at % 7) as u8).collect();
        bytes.chunks(64).try_for_each(write)
    }
}

#[rstest]
fn every_kind_of_bytes(#[values(0, 1, 9_000_000)] len: usize) {
    let bytes = numbers(len);
    check_data(&&bytes[..], &bytes);
    check_data(&bytes, &bytes);
    check_data(&Arc::<[u8]>::from(&bytes[..]), &bytes);
    let longer = numbers(len + 20);
    let folder = Folder::new();
    folder.write("x", &longer);
    let sources: [Arc<dyn ReadAt>; 2] = [
        Arc::new(MemorySource::new(longer.clone())),
        Arc::new(FileSource::open(folder.join("x")).unwrap()),
    ];
    for source in sources {
        let located = Located::new(source, "x", 13..13 + len as u64);
        check_data(&located, &longer[13..13 + len]);
    }
}

#[test]
fn destinations() {
    check_destination(&mut TypedBuffer::new(Dtype::F64, 80).unwrap(), 80);
    check_destination(&mut &mut [MaybeUninit::uninit(); 9][..], 9);
}

/// Something that is not as it should be.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Longer,
    Shorter,
    Elsewhere,
    NoEnd,
    SwallowsErrors,
}

#[derive(Debug)]
struct Faulty(Fault, Vec<u8>);

impl ReadAt for Faulty {
    fn len(&self) -> u64 {
        let len = self.1.len() as u64;
        match self.0 {
            Fault::Longer => len + 1,
            Fault::Shorter => len - 1,
            _ => len,
        }
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let at = match self.0 {
            Fault::Elsewhere => offset as usize / 2,
            _ => offset as usize,
        };
        match self.1.get(at..at.saturating_add(buf.len())) {
            Some(bytes) => Ok(buf.write_copy_of_slice(bytes)),
            None if matches!(self.0, Fault::NoEnd) => {
                let zeros = vec![0; buf.len()];
                Ok(buf.write_copy_of_slice(&zeros))
            }
            None => Err(Error::new(Code::FileTruncated)),
        }
    }
}

impl TensorData for Faulty {
    fn byte_len(&self) -> Option<u64> {
        Some(self.1.len() as u64)
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let (start, end) = (range.start as usize, range.end as usize);
        let written = match self.0 {
            Fault::Longer => write(&self.1),
            Fault::Shorter => write(&self.1[start..end.saturating_sub(1).max(start)]),
            Fault::Elsewhere => write(&self.1[..end - start]),
            Fault::NoEnd | Fault::SwallowsErrors => write(&self.1[start..end]),
        };
        match self.0 {
            Fault::SwallowsErrors => Ok(()),
            _ => written,
        }
    }
}

#[rstest]
fn a_source_that_breaks_the_contract_is_noticed(
    #[values(Fault::Longer, Fault::Shorter, Fault::Elsewhere, Fault::NoEnd)] fault: Fault,
) {
    let bytes = numbers(1000);
    let faulty = Faulty(fault, bytes.clone());
    assert!(catch_unwind(|| check_source(&faulty, &bytes)).is_err());
}

#[rstest]
fn data_that_break_the_contract_are_noticed(
    #[values(Fault::Longer, Fault::Shorter, Fault::Elsewhere, Fault::SwallowsErrors)] fault: Fault,
) {
    let bytes = numbers(1000);
    let faulty = Faulty(fault, bytes.clone());
    assert!(catch_unwind(|| check_data(&faulty, &bytes)).is_err());
}

const FILES: [(&str, usize); 4] = [
    ("model.safetensors", 1000),
    ("empty", 0),
    ("below/it/model.safetensors", 30),
    ("with a space.json", 3),
];

#[test]
fn every_folder_of_this_crate() {
    let files = FILES.map(|(name, len)| (name, numbers(len)));
    let listed: Vec<_> = files
        .iter()
        .map(|(name, bytes)| (*name, &**bytes))
        .collect();
    let disk = Folder::new();
    for (name, bytes) in &listed {
        disk.write(name, bytes);
    }
    check_folder(&DiskFolder::new(disk.path()), &listed);
    // As the Hugging Face cache has them.
    let linked = Folder::new();
    fs::create_dir(linked.join("below")).unwrap();
    symlink(disk.join("below/it"), linked.join("below/it")).unwrap();
    for (name, _) in listed.iter().filter(|(name, _)| !name.contains('/')) {
        symlink(disk.join(name), linked.join(name)).unwrap();
    }
    check_folder(&DiskFolder::new(linked.path()), &listed);
    check_folder(&MemoryFolder::from_iter(files.clone()), &listed);
}

#[test]
fn a_disk_notices_what_becomes_of_a_file() {
    let disk = Folder::new();
    let folder = DiskFolder::new(disk.path());
    let write = |name: &str, len: usize| {
        disk.write(name, numbers(len));
    };
    let (x, y) = (disk.join("x"), disk.join("y"));
    let changes: [&dyn Fn(); 4] = [
        &|| write("x", 11),
        &|| fs::rename(&y, &x).unwrap(),
        &|| fs::remove_file(&x).unwrap(),
        &|| {
            fs::remove_file(&x).unwrap();
            symlink(&y, &x).unwrap();
        },
    ];
    for change in changes {
        for name in ["x", "y"] {
            let _absent = fs::remove_file(disk.join(name));
            write(name, 10);
        }
        check_folder_changes(&folder, "x", change);
    }
}

/// A folder that is not as it should be.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Unlisted,
    Twice,
    OtherBytes,
    LeadsOut,
    OtherVersion,
    OnePlace,
}

#[derive(Debug)]
struct WrongFolder(Wrong, MemoryFolder);

impl safeshard_core::Folder for WrongFolder {
    fn names(&self) -> Result<Vec<String>> {
        let mut names = self.1.names()?;
        match self.0 {
            Wrong::Unlisted => names.truncate(1),
            Wrong::Twice => names.extend_from_within(..1),
            _ => {}
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        match self.0 {
            Wrong::OtherBytes => self.1.open("a"),
            Wrong::LeadsOut => self.1.open(name.trim_start_matches(['.', '/'])),
            Wrong::OtherVersion => Ok(Arc::new(Versioned)),
            _ => self.1.open(name),
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        match self.0 {
            Wrong::OnePlace => "memory".into(),
            _ => self.1.place(name),
        }
    }

    fn version(&self, _: &str) -> Result<Option<Version>> {
        Ok(Some(Version::new("2")))
    }
}

/// No bytes, of the first version.
#[derive(Debug)]
struct Versioned;

impl ReadAt for Versioned {
    fn len(&self) -> u64 {
        0
    }

    fn read_at<'b>(&self, _: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        match buf.len() {
            0 => Ok(buf.write_copy_of_slice(&[])),
            _ => Err(Error::new(Code::FileTruncated)),
        }
    }

    fn version(&self) -> Option<Version> {
        Some(Version::new("1"))
    }
}

#[rstest]
fn a_folder_that_breaks_the_contract_is_noticed(
    #[values(
        Wrong::Unlisted,
        Wrong::Twice,
        Wrong::OtherBytes,
        Wrong::LeadsOut,
        Wrong::OtherVersion,
        Wrong::OnePlace
    )]
    wrong: Wrong,
) {
    let bytes = match wrong {
        // So that nothing else is wrong.
        Wrong::OtherVersion => [Vec::new(), Vec::new()],
        _ => [numbers(10), numbers(20)],
    };
    let [a, b] = &bytes;
    let folder = MemoryFolder::from_iter([("a", a.clone()), ("b", b.clone())]);
    check_folder(&folder, &[("a", a), ("b", b)]);
    let folder = WrongFolder(wrong, folder);
    let checked = catch_unwind(AssertUnwindSafe(|| {
        check_folder(&folder, &[("a", a), ("b", b)]);
    }));
    assert!(checked.is_err());
}

#[test]
fn a_folder_that_notices_no_change_is_noticed() {
    let folder = WrongFolder(Wrong::OtherVersion, MemoryFolder::new());
    check_folder_changes(&folder, "a", || {});
    let unchanged = Folder::new();
    unchanged.write("x", "x");
    let unchanged = DiskFolder::new(unchanged.path());
    let checked = catch_unwind(AssertUnwindSafe(|| {
        check_folder_changes(&unchanged, "x", || {});
    }));
    assert!(checked.is_err());
}
