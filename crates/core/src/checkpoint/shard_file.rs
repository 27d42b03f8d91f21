//! One file of a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Header;
use crate::io::source::ReadAt;

/// One file of a checkpoint.
#[derive(Debug)]
pub struct ShardFile {
    pub(super) name: String,
    pub(super) path: Option<PathBuf>,
    pub(super) source: Arc<dyn ReadAt>,
    pub(super) header: Header,
}

impl ShardFile {
    /// Its name, as the index spells it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, if it is a file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Which tensors it holds, those not served included, and its metadata.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What errors call it.
    pub(super) fn place(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(&self.name))
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
}
