//! Changing the metadata of a checkpoint that is there, and nothing else.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::commit::locked_folder::{Contents, LockedFolder, Target, folder_of};
use crate::checkpoint::dialect::Dialect;
use crate::checkpoint::index::Index;
use crate::checkpoint::locate::cache_snapshot;
use crate::checkpoint::open::{OpenOptions, read_header};
use crate::error::{Code, Error, Result};
use crate::format::header::Header;
use crate::format::json_edit::{Document, Order, with_metadata};
use crate::io::engine::ReadOptions;
use crate::io::source::{FileSource, ReadAt, read_vec};

/// A change of metadata.
///
/// Complete: a key is there afterwards, or it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataChange {
    /// The key gets this value.
    Set(String, String),
    /// The key goes, if it is there.
    Unset(String),
}

/// How metadata were changed.
///
/// Complete: the file is the old one or a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataWrite {
    /// They were like that already.
    Nothing,
    /// The file was written anew and took the place of the old one.
    Replaced,
}

/// Changes the metadata of the checkpoint at a path: `__metadata__` of a single file, or `metadata` of
/// an index. The headers of shards stay as they are, and so do tensors of unknown dtypes.
///
/// The file is written anew, and takes the place of the old one when it is on the disk, so that at every
/// instant whoever reads finds the old metadata or the new ones. The system copies the tensors, and shares
/// them where the file system can. Other saves into the folder are waited for, and what one of them left
/// that died is finished or undone first. In an index, a value that is not text stays so where it can:
/// `total_size=8` stays a number.
///
/// # Errors
/// As [`Checkpoint::open`]; `io`, `cancelled`; `file-changed`; `broken-journal`; what our own reader would
/// refuse, such as `limit-metadata`.
///
/// ```
/// use safeshard_core::{
///     Checkpoint, Dtype, MetadataChange, OpenOptions, ReadOptions, SaveOptions, SaveTensor,
///     change_metadata, save,
/// };
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// save(vec![SaveTensor::new("w", Dtype::U8, [1], &[7][..])], &path, &SaveOptions::default())?;
/// let author = MetadataChange::Set("author".into(), "me".into());
/// change_metadata(&path, &[author], &OpenOptions::default(), &ReadOptions::default())?;
/// assert_eq!(Checkpoint::open(&path)?.metadata_value("author"), Some("me"));
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn change_metadata(
    path: impl AsRef<Path>,
    changes: &[MetadataChange],
    open: &OpenOptions,
    read: &ReadOptions,
) -> Result<MetadataWrite> {
    let path = path.as_ref();
    // Whatever its dtype: no tensor is touched.
    let open = open.keeping_unknown();
    let folder = match path.is_dir() {
        true => cache_snapshot(path).unwrap_or_else(|| path.to_path_buf()),
        false => folder_of(path).to_path_buf(),
    };
    // Before anything is read, so that nothing is edited that another save is about to replace.
    let locked = LockedFolder::open(&folder, read.cancel.as_ref())?;
    let checkpoint = Checkpoint::open_with(path, &open)?;
    let index = checkpoint.index();
    let index = index.map(|index| (index.path().to_path_buf(), index.dialect));
    let single = match checkpoint.files() {
        [file] => Some(file.path().map(Path::to_path_buf)),
        _ => None,
    };
    // What was opened is not needed any more, and may be as large as what is read now.
    drop(checkpoint);
    let edit = Edit {
        locked,
        changes,
        open: &open,
        read,
    };
    match (index, single) {
        (Some((path, dialect)), _) => edit.index(&path, dialect),
        (None, Some(Some(path))) => edit.header(&path),
        (None, Some(None)) => Err(Error::new(Code::NotRegularFile)),
        (None, None) => Err(Error::new(Code::IndexMissing)),
    }
}

/// A change that is being made.
struct Edit<'e> {
    locked: LockedFolder,
    changes: &'e [MetadataChange],
    open: &'e OpenOptions,
    read: &'e ReadOptions,
}

impl Edit<'_> {
    fn index(self, path: &Path, dialect: Dialect) -> Result<MetadataWrite> {
        let target = Target::at(path)?;
        let source = FileSource::open(path)?;
        let json = read_vec(&source, 0, source.len())?;
        source.check_unchanged()?;
        let order = match dialect {
            Dialect::Transformers => Order::Sorted,
            Dialect::Hub | Dialect::Dcp => Order::AsTheyAre,
        };
        let Some(text) = edited(&json, Document::Index(order), self.changes, path)? else {
            return Ok(MetadataWrite::Nothing);
        };
        drop(json);
        Index::check(text.as_bytes(), &self.open.limits).map_err(|error| error.at_path(path))?;
        let contents = Contents::Bytes(text.as_bytes());
        self.locked.replace_file(target, contents, self.read)?;
        Ok(MetadataWrite::Replaced)
    }

    /// Writes the file anew, with another header before the same data.
    fn header(self, path: &Path) -> Result<MetadataWrite> {
        let target = Target::at(path)?;
        let source = FileSource::open(path)?;
        let Some(start) = NewStart::of(&source, self.changes, self.open)? else {
            return Ok(MetadataWrite::Nothing);
        };
        let contents = start.before(&source);
        self.locked.replace_file(target, contents, self.read)?;
        Ok(MetadataWrite::Replaced)
    }
}

/// What a file is to begin with, up to its data.
pub(super) struct NewStart {
    bytes: Vec<u8>,
    /// Where the data of the old file begin.
    data_start: u64,
}

impl NewStart {
    /// Of a file with other metadata, if they differ.
    pub(super) fn of(
        source: &FileSource,
        changes: &[MetadataChange],
        open: &OpenOptions,
    ) -> Result<Option<Self>> {
        let path = source.path();
        let at_path = |error: Error| error.at_path(path);
        let header_options = open.header();
        let header = read_header(source, &header_options).map_err(at_path)?;
        let (header_len, data_start) = (header.header_len(), header.data_start());
        let data_len = header.data_len();
        drop(header);
        let mut json = read_vec(source, 8, header_len).map_err(at_path)?;
        source.check_unchanged()?;
        json.truncate(json.trim_ascii_end().len());
        let Some(text) = edited(&json, Document::Header, changes, path)? else {
            return Ok(None);
        };
        drop(json);
        // Tensors keep the alignment that they have.
        let alignment = [4096, 64, 8]
            .into_iter()
            .find(|alignment| data_start.is_multiple_of(*alignment))
            .unwrap_or(8);
        let new_start = (8 + text.len() as u64).next_multiple_of(alignment);
        let mut bytes = (new_start - 8).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        drop(text);
        bytes.resize(new_start as usize, b' ');
        let len = new_start + data_len;
        Header::parse(&bytes, Some(len), &header_options).map_err(at_path)?;
        Ok(Some(Self { bytes, data_start }))
    }

    /// The new file: this, then the data of the old one.
    pub(super) fn before<'c>(&'c self, source: &'c FileSource) -> Contents<'c> {
        Contents::Rest(&self.bytes, source, self.data_start)
    }
}

/// The text of a file with other metadata, if they differ.
fn edited(
    json: &[u8],
    document: Document,
    changes: &[MetadataChange],
    path: &Path,
) -> Result<Option<String>> {
    let changes = changes.iter().map(|change| match change {
        MetadataChange::Set(key, value) => (&**key, Some(&**value)),
        MetadataChange::Unset(key) => (&**key, None),
    });
    // It was valid when it was opened a moment ago.
    let json = str::from_utf8(json).map_err(|_| Error::new(Code::FileChanged).at_path(path))?;
    with_metadata(json, document, &changes.collect::<Vec<_>>()).map_err(|error| error.at_path(path))
}
