//! What every implementation of this crate's traits has to do, as checks for its own tests (feature
//! `contract`). A check panics with what is wrong.
//!
//! ```
//! use safeshard_core::{MemoryFolder, MemorySource, contract};
//!
//! let bytes: Vec<u8> = (0..100).collect();
//! contract::check_source(&MemorySource::new(bytes.clone()), &bytes);
//! contract::check_data(&bytes, &bytes);
//! let folder = MemoryFolder::from_iter([("a", bytes.clone())]);
//! contract::check_folder(&folder, &[("a", &bytes)]);
//! ```

use std::mem::MaybeUninit;
use std::ops::Range;
use std::thread;

use crate::error::{Code, Error, Result};
use crate::io::buffer::Destination;
use crate::io::data::TensorData;
use crate::io::folder::Folder;
use crate::io::source::ReadAt;

/// Threads that ask for the same bytes at once.
const THREADS: usize = 4;

/// That a source gives exactly these bytes, whatever part is asked for, also to several threads at once; and
/// that it ends where they end.
///
/// # Panics
/// Where it does not.
pub fn check_source(source: &dyn ReadAt, bytes: &[u8]) {
    let len = bytes.len() as u64;
    assert_eq!(source.len(), len, "`len`");
    assert_eq!(source.is_empty(), bytes.is_empty(), "`is_empty`");
    at_once(|| {
        for range in parts(bytes.len()) {
            let mut room = vec![MaybeUninit::uninit(); range.len()];
            let read = read_all(source, range.start as u64, &mut room);
            let read = read.unwrap_or_else(|error| panic!("reading {range:?}: {error}"));
            assert!(read == &bytes[range.clone()], "other bytes at {range:?}");
        }
    });
    for (offset, count) in [
        (len, 1),
        (len.saturating_sub(1), 2),
        (u64::MAX, 1),
        (len + 9, 3),
    ] {
        let mut room = vec![MaybeUninit::uninit(); count];
        let read = read_all(source, offset, &mut room);
        assert!(
            read.is_err(),
            "{count} bytes at {offset}, behind the end at {len}"
        );
    }
    if let Some(lent) = source.as_bytes() {
        assert!(lent == bytes, "`as_bytes` lends other bytes");
    }
    if let Some(file) = source.as_file().expect("`as_file`") {
        let mut room = vec![MaybeUninit::uninit(); bytes.len()];
        let read = read_all(&file, 0, &mut room).expect("reading `as_file`");
        assert!(read == bytes, "`as_file` has other bytes");
    }
    let access = source.access();
    assert!(
        access.piece > 0 && access.together > 0 && access.first_read > 0,
        "{access:?}"
    );
    source.check_unchanged().expect("`check_unchanged`");
}

/// That a folder has these files, by name, `/` between folders; that it opens them, also for several threads
/// at once, and nothing else; and that it knows their versions again.
///
/// # Panics
/// Where it does not.
pub fn check_folder(folder: &dyn Folder, files: &[(&str, &[u8])]) {
    let mut names = folder.names().expect("`names`");
    names.sort_unstable();
    assert!(
        names.windows(2).all(|pair| pair[0] != pair[1]),
        "a name twice: {names:?}"
    );
    let nested = names.iter().find(|name| name.contains('/'));
    assert_eq!(nested, None, "a name of what is in a folder below");
    for (name, _) in files.iter().filter(|(name, _)| !name.contains('/')) {
        assert!(names.iter().any(|it| it == name), "{name} is not listed");
    }
    at_once(|| {
        for (name, bytes) in files {
            let opened = folder.open(name);
            let opened = opened.unwrap_or_else(|error| panic!("opening {name}: {error}"));
            check_source(&*opened, bytes);
            let now = folder.version(name);
            let now = now.unwrap_or_else(|error| panic!("the version of {name}: {error}"));
            if let (Some(opened), Some(now)) = (opened.version(), now) {
                let is_same = opened.is_same(&now) && now.is_same(&opened);
                assert!(is_same, "{name} is of version {now:?}, not {opened:?}");
            }
        }
    });
    folder
        .version("")
        .expect("the version of the list of names");
    for (name, _) in files {
        for elsewhere in [
            String::new(),
            "..".to_owned(),
            format!("absent/{name}"),
            format!("{name}.absent"),
            format!("{name}/absent"),
            format!("{name}\0"),
            format!("../{name}"),
            format!("absent/../{name}"),
            format!("/{name}"),
        ] {
            let code = folder.open(&elsewhere).err().map(|error| error.code());
            assert_eq!(code, Some(Code::NotFound), "opening {elsewhere:?}");
        }
        let place = folder.place(name);
        assert!(!place.as_os_str().is_empty(), "`place` of {name}");
        assert_ne!(place, folder.place(""), "`place` of {name}");
    }
}

/// That a folder notices when other bytes get the name of a file, as `change` gives them to it, or none.
///
/// # Panics
/// Where it does not.
pub fn check_folder_changes(folder: &dyn Folder, name: &str, change: impl FnOnce()) {
    let opened = folder.open(name).expect("opening it");
    let opened = opened.version().expect("it has no version");
    change();
    match folder.version(name) {
        Ok(now) => {
            let now = now.expect("it has no version any more");
            assert!(!opened.is_same(&now), "still of version {now:?}");
        }
        Err(error) => assert_eq!(error.code(), Code::NotFound, "{error}"),
    }
}

/// That the data of a tensor are exactly these bytes, whatever range is asked for, also by several threads at
/// once; that they agree with where they say that they lie; and that an error of whoever takes them comes
/// back.
///
/// # Panics
/// Where they do not.
pub fn check_data(data: &dyn TensorData, bytes: &[u8]) {
    let len = bytes.len() as u64;
    assert!(
        data.byte_len().is_none_or(|found| found == len),
        "`byte_len`"
    );
    let given = |range: Option<Range<u64>>| {
        let mut given = Vec::new();
        let mut take = |part: &[u8]| {
            given.extend_from_slice(part);
            Ok(())
        };
        let written = match &range {
            None => data.write_to(&mut take),
            Some(range) => data.write_range(range.clone(), &mut take),
        };
        written.unwrap_or_else(|error| panic!("writing {range:?}: {error}"));
        given
    };
    assert!(given(None) == bytes, "`write_to` gives other bytes");
    at_once(|| {
        for range in parts(bytes.len()) {
            let wanted = range.start as u64..range.end as u64;
            let expected = &bytes[range.clone()];
            assert!(
                given(Some(wanted)) == expected,
                "`write_range` of {range:?}"
            );
            let mut room = vec![MaybeUninit::uninit(); range.len()];
            let read = data.read_at(range.start as u64, &mut room);
            let read = read.unwrap_or_else(|error| panic!("`read_at` of {range:?}: {error}"));
            assert!(read == expected, "`read_at` of {range:?}");
        }
    });
    if !bytes.is_empty() {
        let refused = data.write_to(&mut |_| Err(Error::new(Code::Cancelled)));
        let code = refused.expect_err("an error of `write` is lost").code();
        assert_eq!(code, Code::Cancelled, "another error than that of `write`");
    }
    if let Some(place) = data.place() {
        assert_eq!(place.len(), bytes.len(), "`place`");
    }
    if let Some(extent) = data.extent() {
        assert_eq!(extent.len, len, "the length of `extent`");
        let mut room = vec![MaybeUninit::uninit(); bytes.len()];
        let read = read_all(&**extent.source, extent.start, &mut room).expect("reading `extent`");
        assert!(read == bytes, "`extent` has other bytes");
    }
}

/// That a destination is of this length, and stays where it is.
///
/// # Panics
/// Where it does not.
pub fn check_destination(destination: &mut impl Destination, len: usize) {
    let mut region = || {
        let bytes = destination.bytes();
        (bytes.as_ptr().addr(), bytes.len())
    };
    let first = region();
    assert_eq!(first.1, len, "the length of `bytes`");
    assert_eq!(region(), first, "`bytes` is another region");
}

/// As the engine does: short reads are continued.
fn read_all<'b>(
    source: &dyn ReadAt,
    offset: u64,
    room: &'b mut [MaybeUninit<u8>],
) -> Result<&'b mut [u8]> {
    if room.is_empty() {
        // What it answers is looked at, too.
        return source.read_at(offset, room);
    }
    crate::io::buffer::fill_all(room, |filled, rest| {
        source.read_at(offset.saturating_add(filled as u64), rest)
    })
}

/// Empty, one byte, all, and odd ones.
fn parts(len: usize) -> Vec<Range<usize>> {
    let ends = [0, 1, 2, 7, len / 3, len / 2, len.saturating_sub(1), len];
    let mut parts = Vec::new();
    for start in ends.into_iter().filter(|start| *start <= len) {
        let ends = ends.iter().filter(|end| (start..=len).contains(*end));
        parts.extend(ends.map(|&end| start..end));
        parts.push(start..len.min(start + 1));
    }
    parts
}

fn at_once(check: impl Fn() + Sync) {
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(&check);
        }
    });
}
