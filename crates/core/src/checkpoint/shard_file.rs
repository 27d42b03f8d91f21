//! One file of a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scattered::Scattered;
use crate::format::header::{Header, TensorInfo};
use crate::io::extent::Extent;
use crate::io::folder::Folder;
use crate::io::source::ReadAt;

/// One file of a checkpoint.
#[derive(Debug)]
pub struct ShardFile {
    pub(super) name: String,
    /// What errors call it, where that is not its name.
    place: Option<PathBuf>,
    is_on_disk: bool,
    pub(super) source: Arc<dyn ReadAt>,
    pub(super) header: Header,
    /// Where the tensors lie, where that is not behind the header.
    scattered: Option<Arc<Scattered>>,
    /// What it is on a disk, where that is no safetensors file.
    foreign: Option<Arc<dyn ReadAt>>,
}

impl ShardFile {
    pub(super) fn new(name: String, source: Arc<dyn ReadAt>, header: Header) -> Self {
        Self {
            name,
            place: None,
            is_on_disk: false,
            source,
            header,
            scattered: None,
            foreign: None,
        }
    }

    /// A file of a folder.
    pub(super) fn in_folder(self, folder: &dyn Folder, place: PathBuf) -> Self {
        Self {
            place: Some(place),
            is_on_disk: folder.local().is_some(),
            ..self
        }
    }

    /// A file whose tensors lie elsewhere.
    pub(super) fn scattered(name: String, header: Header, file: Scattered) -> Self {
        let file = Arc::new(file);
        Self {
            scattered: Some(file.clone()),
            ..Self::new(name, file, header)
        }
    }

    /// A file of another format.
    pub(super) fn foreign(self, file: Arc<dyn ReadAt>) -> Self {
        Self {
            foreign: Some(file),
            ..self
        }
    }

    /// Its name, as the index spells it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, if it is a file on a disk.
    pub fn path(&self) -> Option<&Path> {
        self.place.as_deref().filter(|_| self.is_on_disk)
    }

    /// Which tensors it holds, those not served included, and its metadata.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What errors call it.
    pub(super) fn place(&self) -> &Path {
        self.place.as_deref().unwrap_or(Path::new(&self.name))
    }

    /// The names of all its tensors, in data order, those of unknown dtype behind the others.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let known = self.header.tensors().map(|tensor| tensor.name);
        known.chain(self.header.unsupported().map(|tensor| tensor.name))
    }

    /// Its bytes.
    pub fn source(&self) -> &Arc<dyn ReadAt> {
        &self.source
    }

    /// The bytes that others find under its name: those of [`ShardFile::source`], unless it is a file of
    /// another format.
    pub fn on_disk(&self) -> &Arc<dyn ReadAt> {
        self.foreign.as_ref().unwrap_or(&self.source)
    }

    /// Where one of its tensors lies.
    pub(super) fn extent(&self, tensor: &TensorInfo<'_>) -> Extent<'_> {
        let data = self.header.data_start();
        let range = data + tensor.start..data + tensor.end;
        let elsewhere = self.scattered.as_ref().and_then(|file| file.extent(&range));
        elsewhere.unwrap_or_else(|| Extent {
            source: &self.source,
            path: self.place(),
            start: range.start,
            len: range.end - range.start,
        })
    }
}
