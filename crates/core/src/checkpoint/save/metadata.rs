//! Changing the metadata of a checkpoint that is there, and nothing else.

use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Deserializer, Map, Value};

use super::{Dialect, Durability, commit, recover};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::index::Index;
use crate::checkpoint::open::read_header;
use crate::format::python_json::python_json;
use crate::io::buffer::fill_all;
use crate::io::lock::{FolderLock, sweep};
use crate::io::patch::patch;
use crate::io::publish::{Mode, Publish, Stage, sync_folder};
use crate::io::sink::{Origin, Sink};
use crate::io::source::{FileSource, ReadAt, read_vec};
use crate::{
    Cancel, Code, Error, Header, HeaderOptions, Limits, OpenOptions, Progress, ReadOptions, Result,
};

const METADATA_KEY: &str = "__metadata__";

/// Where a header begins that has its metadata first.
const METADATA_FIRST: &[u8] = br#"{"__metadata__":"#;

/// Bytes that are read, and then written, at a time.
const PIECE: u64 = 8 << 20;

/// A change of metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataChange {
    /// The key gets this value.
    Set(String, String),
    /// The key goes, if it is there.
    Unset(String),
}

/// How metadata were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataWrite {
    /// They were like that already.
    Nothing,
    /// A few bytes of the header were written over.
    InPlace,
    /// The file was written anew and took the place of the old one.
    Replaced,
}

/// Changes the metadata of the checkpoint at a path: `__metadata__` of a single file, or `metadata` of
/// an index. The headers of shards stay as they are.
///
/// Where the new metadata fit into the place of the old ones, within a page of the file, only that page
/// is written. Otherwise the file is copied with a new header, and takes the place of the old one when
/// it is on the medium. So at every instant, whoever reads finds the old metadata or the new ones.
/// In an index, a value that is not text stays so where it can: `total_size=8` stays a number.
///
/// # Errors
/// As [`Checkpoint::open`]; `io`, `cancelled`; `file-changed`; what our own reader would refuse, such as
/// `limit-metadata`.
///
/// ```
/// use safeshard_core::{
///     Checkpoint, Dtype, MetadataChange, ReadOptions, SaveOptions, SaveTensor, change_metadata, save,
/// };
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// save(vec![SaveTensor::new("w", Dtype::U8, [1], &[7][..])], &path, &SaveOptions::default())?;
/// let author = MetadataChange::Set("author".into(), "me".into());
/// change_metadata(&path, &[author], &ReadOptions::default())?;
/// assert_eq!(Checkpoint::open(&path)?.metadata_value("author"), Some("me"));
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn change_metadata(
    path: impl AsRef<Path>,
    changes: &[MetadataChange],
    options: &ReadOptions,
) -> Result<MetadataWrite> {
    let checkpoint = Checkpoint::open_with(path, &OpenOptions::default())?;
    match (checkpoint.index(), checkpoint.files()) {
        (Some(index), _) => change_index(index.path(), index.dialect, changes, options),
        (None, [file]) => match file.path() {
            Some(path) => HeaderEdit::open(path)?.apply(changes, options),
            None => Err(Error::new(Code::NotRegularFile)),
        },
        (None, _) => Err(Error::new(Code::IndexMissing)),
    }
}

fn change_index(
    path: &Path,
    dialect: Dialect,
    changes: &[MetadataChange],
    options: &ReadOptions,
) -> Result<MetadataWrite> {
    let source = FileSource::open(path)?;
    let json = read_vec(&source, 0, source.len())?;
    let broken = |error| Error::new(Code::IndexSyntax).at_path(path).found(error);
    let mut index: Map<String, Value> = serde_json::from_slice(&json).map_err(broken)?;
    let metadata = index.entry("metadata").or_insert(Value::Null);
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    if let Value::Object(metadata) = metadata {
        let before = metadata.clone();
        apply(changes, metadata);
        if *metadata == before {
            return Ok(MetadataWrite::Nothing);
        }
    }
    let mut index = Value::Object(index);
    let text = match dialect {
        Dialect::Transformers => {
            index.sort_all_objects();
            python_json(&index) + "\n"
        }
        Dialect::Hub | Dialect::Dcp => python_json(&index),
    };
    Index::parse(text.as_bytes(), path, &Limits::default())?;
    let cancel = options.cancel.as_ref();
    Replacement::of(path)?.write(text.len() as u64, cancel, |write| {
        write(text.as_bytes())?;
        source.check_in_place()
    })?;
    Ok(MetadataWrite::Replaced)
}

fn apply(changes: &[MetadataChange], metadata: &mut Map<String, Value>) {
    for change in changes {
        match change {
            MetadataChange::Set(key, text) => {
                let stays = metadata.get(key).is_some_and(|old| !old.is_string());
                let parsed = serde_json::from_str(text).ok().filter(|_| stays);
                let value = parsed.unwrap_or_else(|| Value::from(text.as_str()));
                metadata.insert(key.clone(), value);
            }
            MetadataChange::Unset(key) => {
                metadata.shift_remove(key);
            }
        }
    }
}

/// The header of a file that is to get other metadata.
struct HeaderEdit {
    source: FileSource,
    header: Header,
    /// The JSON, without its padding.
    json: Vec<u8>,
}

impl HeaderEdit {
    fn open(path: &Path) -> Result<Self> {
        let source = FileSource::open(path)?;
        let at_path = |error: Error| error.at_path(path);
        let options = HeaderOptions::default();
        let header = read_header(&source, &options).map_err(at_path)?;
        let mut json = read_vec(&source, 8, header.header_len()).map_err(at_path)?;
        source.check_unchanged()?;
        json.truncate(json.trim_ascii_end().len());
        Ok(Self {
            source,
            header,
            json,
        })
    }

    fn apply(&self, changes: &[MetadataChange], options: &ReadOptions) -> Result<MetadataWrite> {
        let path = self.source.path();
        let broken = |error| Error::new(Code::JsonSyntax).at_path(path).found(error);
        let mut members: Map<String, Value> = serde_json::from_slice(&self.json).map_err(broken)?;
        let old = match members.shift_remove(METADATA_KEY) {
            Some(Value::Object(metadata)) => metadata,
            _ => Map::new(),
        };
        let mut new = old.clone();
        apply(changes, &mut new);
        new.sort_keys();
        if new == old {
            return Ok(MetadataWrite::Nothing);
        }
        let metadata = Value::Object(new);
        if let Some((offset, bytes)) = self.in_place(&metadata, &members) {
            let _lock = FolderLock::acquire(folder_of(path), options.cancel.as_ref())?;
            if patch(&self.source, offset, &bytes, Durability::Durable)? {
                return Ok(MetadataWrite::InPlace);
            }
        }
        self.replace(&with_metadata(&metadata, &members), options)?;
        Ok(MetadataWrite::Replaced)
    }

    /// What to write over the header, and where, if there is room.
    fn in_place(&self, metadata: &Value, members: &Map<String, Value>) -> Option<(u64, Vec<u8>)> {
        // Only what the metadata take, so that all behind them stays where it is.
        if let Some(place) = self.metadata_place() {
            let mut bytes = metadata.to_string().into_bytes();
            if bytes.len() <= place.len() {
                bytes.resize(place.len(), b' ');
                return Some((8 + place.start as u64, bytes));
            }
        }
        // All of a header that is short.
        let mut bytes = with_metadata(metadata, members).into_bytes();
        let room = usize::try_from(self.header.header_len()).ok()?;
        (bytes.len() <= room).then(|| {
            bytes.resize(room, b' ');
            (8, bytes)
        })
    }

    /// Where the JSON has the metadata, with the spaces behind them.
    fn metadata_place(&self) -> Option<Range<usize>> {
        let value = self.json.strip_prefix(METADATA_FIRST)?;
        let mut values = Deserializer::from_slice(value).into_iter::<Value>();
        values.next()?.ok()?;
        let start = METADATA_FIRST.len();
        let end = start + values.byte_offset();
        let spaces = self
            .json
            .get(end..)?
            .iter()
            .take_while(|byte| **byte == b' ');
        Some(start..end + spaces.count())
    }

    /// Writes the file anew, with another header before the same data.
    fn replace(&self, json: &str, options: &ReadOptions) -> Result<()> {
        let path = self.source.path();
        // Tensors keep the alignment that they have.
        let alignment = [4096, 64, 8]
            .into_iter()
            .find(|alignment| self.header.data_start().is_multiple_of(*alignment))
            .unwrap_or(8);
        let data_start = (8 + json.len() as u64).next_multiple_of(alignment);
        let mut start = (data_start - 8).to_le_bytes().to_vec();
        start.extend_from_slice(json.as_bytes());
        start.resize(data_start as usize, b' ');
        let len = data_start + self.header.data_len();
        Header::parse(&start, Some(len), &HeaderOptions::default())
            .map_err(|error| error.at_path(path))?;
        let cancel = options.cancel.as_ref();
        Replacement::of(path)?.write(len, cancel, |write| {
            write(&start)?;
            self.copy_data(write, options)?;
            self.source.check_in_place()
        })
    }

    fn copy_data(
        &self,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
        options: &ReadOptions,
    ) -> Result<()> {
        let total = self.header.data_len();
        let mut memory = vec![MaybeUninit::uninit(); PIECE.min(total) as usize];
        let mut done = 0;
        while done < total {
            if options.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
                return Err(Error::new(Code::Cancelled));
            }
            let len = PIECE.min(total - done);
            let piece = memory.get_mut(..len as usize).unwrap_or_default();
            let start = self.header.data_start() + done;
            write(fill_all(piece, |filled, rest| {
                self.source.read_at(start + filled as u64, rest)
            })?)?;
            done += len;
            if let Some(progress) = &options.progress {
                progress(Progress { done, total });
            }
        }
        Ok(())
    }
}

/// A header's JSON with its metadata first, if there are any.
fn with_metadata(metadata: &Value, members: &Map<String, Value>) -> String {
    let mut all = Map::new();
    if metadata
        .as_object()
        .is_some_and(|metadata| !metadata.is_empty())
    {
        all.insert(METADATA_KEY.to_owned(), metadata.clone());
    }
    let members = members.iter();
    all.extend(members.map(|(key, value)| (key.clone(), value.clone())));
    Value::Object(all).to_string()
}

/// A file that is to take the place of another one.
struct Replacement {
    folder: PathBuf,
    name: String,
    mode: Mode,
}

impl Replacement {
    fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| {
            let error = Error::new(Code::CheckpointName).at_path(path);
            error.found("a name that is not UTF-8")
        })?;
        Ok(Self {
            folder: folder_of(path).to_path_buf(),
            name: name.to_owned(),
            mode: Mode::at(path)?,
        })
    }

    /// Writes it under the name of a stage, brings it to the medium and gives it its name.
    fn write(
        &self,
        len: u64,
        cancel: Option<&Cancel>,
        contents: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let (stage, file) = Stage::create(&self.folder, &self.name, self.mode)?;
        let write = |file: &File| {
            let mut sink = Sink::new(file, len, Durability::Durable, Origin::Memory)?;
            contents(&mut |bytes| sink.write(bytes))?;
            sink.finish()
        };
        write(&file).map_err(|error| error.at_path(stage.target()))?;
        let lock = FolderLock::acquire(&self.folder, cancel)?;
        recover::recover(&self.folder, &self.name, &lock)?;
        stage.publish(Publish::Replace)?;
        sweep(&self.folder, &lock);
        sync_folder(&self.folder).map_err(commit::not_yet_safe)
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
