//! torch's files before 1.6: five pickles, and behind them the storages.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safeshard_core::{Code, Error, ReadAt, Result};

use super::storage::{Declared, Reference, Storages, Stored};
use super::{Container, Loaded};
use crate::input::Input;
use crate::options::ImportOptions;
use crate::pickle::{self, Pickle, Value};

/// The only version there is.
const VERSION: i64 = 1001;

/// torch's magic number, 0x1950A86A20F9469CFC6C, as protocols 2 and later write it, and those before.
const MAGIC: [&[u8]; 2] = [
    b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.",
    b"L119547037146038801333356L\n.",
];

/// Whether a file begins as such files do.
pub(super) fn begins(start: &[u8]) -> bool {
    let start = match start {
        [0x80, 4..=5, 0x95, _, _, _, _, _, _, _, _, rest @ ..] | [0x80, 2..=5, rest @ ..] => rest,
        start => start,
    };
    MAGIC.iter().any(|magic| start.starts_with(magic))
}

/// Opens such a file, all of which is accounted for.
///
/// # Errors
/// `torch-version`, `storage-…`, `file-truncated`, `trailing-bytes`, `pickle-…`, `limit-pickle`; `io`.
pub(super) fn open(
    source: Arc<dyn ReadAt>,
    path: Arc<Path>,
    options: &ImportOptions,
) -> Result<Loaded> {
    let limits = &options.limits;
    let mut input = Input::new(&*source, 0..source.len());
    let _magic = pickle::load(&mut input, limits)?;
    let version = pickle::load(&mut input, limits)?;
    match version.values.get(version.top) {
        Value::Int(VERSION) => {}
        other => return Err(Error::new(Code::TorchVersion).found(other.kind())),
    }
    let system = pickle::load(&mut input, limits)?;
    let pickle = pickle::load(&mut input, limits)?;
    let keys_at = input.at();
    let keys = pickle::load(&mut input, limits)?;
    // Only the object itself can be of anything but numbers and text.
    for other in [&version, &system, &keys] {
        if let Some((_, value)) = other.values.iter().find(|(_, value)| is_made(value)) {
            let error = Error::new(Code::PickleType).at_offset(keys_at);
            return Err(error.found(value.kind()));
        }
    }
    let declared = declared(&pickle)?;
    let ranges = ranges(&mut input, &keys, keys_at, &declared)?;
    Ok(Loaded {
        pickle,
        container: Container::Legacy,
        storages: Box::new(Legacy {
            source,
            path,
            ranges,
        }),
    })
}

fn is_made(value: &Value) -> bool {
    matches!(
        value,
        Value::Global(_) | Value::Object(_) | Value::Persistent(_)
    )
}

/// All storages that the object declares.
fn declared(pickle: &Pickle) -> Result<HashMap<String, Declared>> {
    let mut declared: HashMap<String, Declared> = HashMap::new();
    for (_, value) in pickle.values.iter() {
        let Value::Persistent(name) = value else {
            continue;
        };
        if is_module(pickle, value) {
            continue;
        }
        let storage = Reference::parse(pickle, *name, 0)?.declared;
        match declared.get(&storage.key) {
            Some(known) if *known != storage => {
                return Err(Error::new(Code::StorageDtype).found(format_args!("`{}`", storage.key)));
            }
            Some(_) => {}
            None => drop(declared.insert(storage.key.clone(), storage)),
        }
    }
    Ok(declared)
}

/// Whether it is a class, with its source beside it: `("module", class, file, source)`.
fn is_module(pickle: &Pickle, value: &Value) -> bool {
    let Value::Persistent(name) = value else {
        return false;
    };
    let name = pickle.values.sequence(*name);
    let tag = name.and_then(|name| pickle.values.text(*name.first()?));
    tag == Some("module")
}

/// Where the storages lie: for each key the number of its elements, and they.
fn ranges(
    input: &mut Input<'_>,
    keys: &Pickle,
    keys_at: u64,
    declared: &HashMap<String, Declared>,
) -> Result<HashMap<String, Range<u64>>> {
    let Value::List(list) = keys.values.get(keys.top) else {
        let error = Error::new(Code::PickleType).at_offset(keys_at);
        return Err(error.expected("a list of storages"));
    };
    let mut ranges = HashMap::new();
    for &key in list {
        let key = match keys.values.get(key) {
            Value::Text(key) => key.to_string(),
            Value::Int(key) => key.to_string(),
            other => {
                let error = Error::new(Code::PickleType).at_offset(keys_at);
                return Err(error.expected("a storage's name").found(other.kind()));
            }
        };
        let at = input.at();
        let wrong = |code| {
            Error::new(code)
                .at_offset(at)
                .found(format_args!("`{key}`"))
        };
        let storage = declared.get(&key);
        let storage = storage.ok_or_else(|| wrong(Code::StorageMissing))?;
        let left = input.left();
        let numel = input.array().map(i64::from_le_bytes).map_err(|_| {
            Error::new(Code::FileTruncated)
                .at_offset(at + left)
                .expected(format_args!("8 bytes at {at}"))
        })?;
        if u64::try_from(numel) != Ok(storage.numel) {
            return Err(Error::new(Code::StorageSize)
                .at_offset(at)
                .expected(format_args!("{} elements", storage.numel))
                .found(numel));
        }
        let len = storage.byte_len().ok_or_else(|| wrong(Code::StorageSize))?;
        let start = input.at();
        if len > input.left() {
            return Err(Error::new(Code::FileTruncated)
                .at_offset(start + input.left())
                .expected(format_args!("{len} bytes at {start}")));
        }
        input.skip(len)?;
        if ranges.insert(key.clone(), start..start + len).is_some() {
            return Err(wrong(Code::StorageDuplicate));
        }
    }
    if let Some(missing) = declared.keys().find(|key| !ranges.contains_key(*key)) {
        return Err(Error::new(Code::StorageMissing).found(format_args!("`{missing}`")));
    }
    match input.left() {
        0 => Ok(ranges),
        left => Err(Error::new(Code::TrailingBytes)
            .at_offset(input.at())
            .found(format_args!("{left} bytes behind the last storage"))),
    }
}

struct Legacy {
    source: Arc<dyn ReadAt>,
    path: Arc<Path>,
    ranges: HashMap<String, Range<u64>>,
}

impl Storages for Legacy {
    fn find(&self, declared: &Declared) -> Result<Stored> {
        let range = self.ranges.get(&declared.key).cloned();
        let range = range.ok_or_else(|| Error::new(Code::StorageMissing))?;
        Ok(Stored {
            source: self.source.clone(),
            range,
        })
    }

    fn path(&self) -> &Arc<Path> {
        &self.path
    }

    fn is_big_endian(&self) -> bool {
        // Whatever the file says of the machine: torch swaps on those that are not.
        false
    }
}
