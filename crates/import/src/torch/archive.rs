//! torch's files since 1.6, and TorchScript: a zip archive with a pickle and an entry for each storage.

use std::path::Path;
use std::sync::Arc;

use safeshard_core::{Code, Error, ReadAt, Result};

use super::storage::{Declared, Storages, Stored};
use super::{Container, Loaded};
use crate::checked::Checked;
use crate::input::{Input, read};
use crate::options::{Checksums, ImportOptions};
use crate::pickle;
use crate::zip::{Directory, Entry};

/// The pickle of an archive.
const PICKLE: &str = "data.pkl";

/// Opens an archive.
///
/// # Errors
/// `zip-…`, `torch-root`, `torch-byteorder`, `pickle-…`, `limit-pickle`; `io`.
pub(super) fn open(
    source: Arc<dyn ReadAt>,
    path: Arc<Path>,
    options: &ImportOptions,
) -> Result<Loaded> {
    let entries = Directory::read(&*source, &options.limits)?;
    let mut archive = Archive {
        root: root(&entries)?,
        entries,
        source,
        path,
        checksums: options.checksums,
        is_big_endian: false,
    };
    archive.is_big_endian = archive.reads_big_endian()?;
    let stored = archive.stored(PICKLE)?;
    let stored = stored.ok_or_else(|| Error::new(Code::TorchRoot))?;
    let len = stored.range.end - stored.range.start;
    if len > options.limits.pickle_bytes {
        return Err(Error::new(Code::LimitPickle)
            .expected(format_args!(
                "at most {} bytes",
                options.limits.pickle_bytes
            ))
            .found(len));
    }
    let mut input = Input::new(&*stored.source, stored.range.clone());
    let pickle = pickle::load(&mut input, &options.limits)?;
    if input.left() > 0 {
        return Err(Error::new(Code::TrailingBytes)
            .at_offset(input.at())
            .found(format_args!("{} bytes behind the pickle", input.left())));
    }
    let is_script = archive.entries.contains(&archive.name("constants.pkl"));
    Ok(Loaded {
        pickle,
        container: match is_script {
            true => Container::Script,
            false => Container::Zip,
        },
        storages: Box::new(archive),
    })
}

/// The folder that the one pickle is in, with a slash at its end; or nothing.
fn root(entries: &Directory) -> Result<String> {
    let roots = entries.names().filter_map(|name| {
        let root = name.strip_suffix(PICKLE)?;
        let is_root = root.is_empty() || root.find('/') == Some(root.len() - 1);
        is_root.then(|| root.to_owned())
    });
    let roots: Vec<_> = roots.collect();
    match roots.as_slice() {
        [root] => Ok(root.clone()),
        [] => Err(Error::new(Code::TorchRoot)
            .found("none")
            .help("this may be another kind of zip archive")),
        several => Err(Error::new(Code::TorchRoot).found(format_args!("{several:?}"))),
    }
}

struct Archive {
    root: String,
    entries: Directory,
    source: Arc<dyn ReadAt>,
    path: Arc<Path>,
    checksums: Checksums,
    is_big_endian: bool,
}

impl Archive {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    /// Where the bytes of an entry lie.
    fn stored(&self, name: &str) -> Result<Option<Stored>> {
        let entry = self.entries.get(&self.name(name))?;
        Ok(entry.map(|Entry { range, crc, .. }| {
            let (source, range) = (self.source.clone(), range.clone());
            let source = match (self.checksums, crc) {
                (Checksums::Verify, Some(crc)) => {
                    let path = self.path.clone();
                    Arc::new(Checked::new(source, path, range.clone(), *crc))
                }
                _ => source,
            };
            Stored { source, range }
        }))
    }

    fn reads_big_endian(&self) -> Result<bool> {
        /// More than any byte order has letters.
        const LONGEST: u64 = 16;
        let Some(Stored { source, range }) = self.stored("byteorder")? else {
            return Ok(false);
        };
        let len = (range.end - range.start).min(LONGEST);
        match &*read(&*source, range.start, len)? {
            b"little" => Ok(false),
            b"big" => Ok(true),
            other => Err(Error::new(Code::TorchByteorder)
                .at_offset(range.start)
                .expected("`little` or `big`")
                .found(other.escape_ascii())),
        }
    }
}

impl Storages for Archive {
    fn find(&self, declared: &Declared) -> Result<Stored> {
        let stored = self.stored(&format!("data/{}", declared.key))?;
        let named = |error: Error| error.found(format_args!("`{}`", declared.key));
        let stored = stored.ok_or_else(|| named(Error::new(Code::StorageMissing)))?;
        let len = stored.range.end - stored.range.start;
        if declared.byte_len() != Some(len) {
            return Err(Error::new(Code::StorageSize)
                .at_offset(stored.range.start)
                .expected(format_args!(
                    "{} elements of {} bytes",
                    declared.numel, declared.element.size
                ))
                .found(format_args!("{len} bytes")));
        }
        Ok(stored)
    }

    fn path(&self) -> &Arc<Path> {
        &self.path
    }

    fn is_big_endian(&self) -> bool {
        self.is_big_endian
    }
}
