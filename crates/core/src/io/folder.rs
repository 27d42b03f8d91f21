//! Where the files of a checkpoint lie: anything in which names lead to sources.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::source::{FileSource, MEMORY, MemorySource, ReadAt, open_error};
use super::version::{Identity, Version};
use crate::error::{Code, Error, Result};

/// Files by name: a folder on a disk, in memory, a snapshot of a hub, a prefix of an object store.
///
/// Names are those of files in it, or of files below it: then `/` separates. Implement it for a place of
/// your own and open it with [`Checkpoint::open_place`](crate::Checkpoint::open_place);
/// `contract::check_folder`, with the feature `contract`, checks what is asked for here.
pub trait Folder: Any + Debug + Send + Sync {
    /// The names of what is in it, in any order: of files, and of folders where it has them, but of nothing
    /// that is in these. Where nobody can list it, those of the usual names that are there will do.
    ///
    /// # Errors
    /// What keeps it from being listed.
    fn names(&self) -> Result<Vec<String>>;

    /// Opens a file. Called from several threads at once.
    ///
    /// # Errors
    /// `not-found` for a name that leads to nothing, or out of the folder; `not-a-regular-file`; `io`.
    fn open(&self, name: &str) -> Result<Arc<dyn ReadAt>>;

    /// What errors call a file of this name, there or not; of the empty name, the folder. No secrets: it is
    /// shown to people.
    fn place(&self, name: &str) -> PathBuf;

    /// The version that a name leads to now, to be compared with that of a [source](ReadAt::version) that was
    /// opened by it; of the empty name, that of the list of names. `None` where nothing ever changes, or
    /// where nobody can say.
    ///
    /// # Errors
    /// As [`Folder::open`].
    fn version(&self, name: &str) -> Result<Option<Version>> {
        let _unchanging = name;
        Ok(None)
    }
}

impl dyn Folder {
    /// The path of a folder on a disk.
    pub(crate) fn local(&self) -> Option<&Path> {
        let folder: &dyn Any = self;
        Some(&folder.downcast_ref::<DiskFolder>()?.path)
    }
}

/// A file of a folder, open. A local one stays open, so that no other file can be taken for it: nothing else
/// tells it for certain from one that came later.
#[derive(Clone, Debug)]
pub(crate) struct FolderFile {
    pub(crate) folder: Arc<dyn Folder>,
    pub(crate) name: String,
    /// What errors call it.
    pub(crate) place: PathBuf,
    pub(crate) source: Arc<dyn ReadAt>,
}

impl FolderFile {
    /// Opens it.
    ///
    /// # Errors
    /// As [`Folder::open`], with its place.
    pub(crate) fn open(folder: &Arc<dyn Folder>, name: &str) -> Result<Self> {
        let place = folder.place(name);
        match folder.open(name) {
            Ok(source) => Ok(Self {
                folder: Arc::clone(folder),
                name: name.to_owned(),
                place,
                source,
            }),
            Err(error) => Err(error.at_path(place)),
        }
    }

    /// Opens a file on a disk.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let (folder, name) = DiskFolder::of_file(path);
        let folder: Arc<dyn Folder> = Arc::new(folder);
        Self::open(&folder, &name)
    }

    /// Says whether its name still leads to it.
    ///
    /// # Errors
    /// `file-changed`; as [`Folder::version`].
    pub(crate) fn check_in_place(&self) -> Result<()> {
        let Some(opened) = self.source.version() else {
            return Ok(());
        };
        let checked = match self.folder.version(&self.name) {
            Ok(now) => now.map_or(Ok(()), |now| opened.check(&now)),
            Err(gone) if gone.code() == Code::NotFound => {
                Err(gone.recode(Code::FileChanged).found("no file any more"))
            }
            Err(error) => Err(error),
        };
        checked.map_err(|error| error.at_path(&self.place))
    }
}

/// A place where a checkpoint may be: a folder, or one file of it.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) folder: Arc<dyn Folder>,
    /// A file, or an index if it ends in `.json`.
    pub(crate) name: Option<String>,
}

impl Place {
    /// A folder, of whose names one is to be chosen.
    pub fn folder(folder: Arc<dyn Folder>) -> Self {
        let name = None;
        Self { folder, name }
    }

    /// A file that lies in the folder itself; an index, if its name ends in `.json`: what it names is looked
    /// for from this folder on.
    pub fn file(folder: Arc<dyn Folder>, name: impl Into<String>) -> Self {
        let name = Some(name.into());
        Self { folder, name }
    }
}

/// What knows places with a scheme, such as `hf://org/name`.
///
/// ```
/// use std::sync::Arc;
/// use safeshard_core::{
///     Checkpoint, Dtype, MemoryFolder, OpenOptions, Place, Resolve, Result, SaveTensor, write_to,
/// };
///
/// #[derive(Debug)]
/// struct Memory(Arc<MemoryFolder>);
///
/// impl Resolve for Memory {
///     fn resolve(&self, place: &str) -> Result<Option<Place>> {
///         let is_ours = place == "memory://model";
///         Ok(is_ours.then(|| Place::folder(self.0.clone())))
///     }
/// }
///
/// let mut file = Vec::new();
/// write_to(vec![SaveTensor::new("w", Dtype::U8, [2], vec![7, 8])], &mut file, &Default::default())?;
/// let folder = MemoryFolder::from_iter([("model.safetensors", file)]);
/// let options = OpenOptions {
///     resolver: Some(Arc::new(Memory(Arc::new(folder)))),
///     ..OpenOptions::default()
/// };
/// let checkpoint = Checkpoint::open_with("memory://model", &options)?;
/// assert_eq!(checkpoint.read("w")?, [7, 8]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub trait Resolve: Debug + Send + Sync {
    /// What a place with a scheme stands for; `None` where it has a scheme that is not known here.
    ///
    /// # Errors
    /// Why it cannot be found out.
    fn resolve(&self, place: &str) -> Result<Option<Place>>;
}

/// The scheme of a place such as `hf://org/name`, and all of it.
pub(crate) fn scheme_of(place: &Path) -> Option<(&str, &str)> {
    let place = place.to_str()?;
    let (scheme, _) = place.split_once("://")?;
    let mut letters = scheme.chars();
    let is_scheme = letters.next()?.is_ascii_alphabetic()
        && letters.all(|it| it.is_ascii_alphanumeric() || matches!(it, '+' | '-' | '.'));
    // One letter is a drive.
    (is_scheme && scheme.len() > 1).then_some((scheme, place))
}

/// A folder on a disk. Links are followed, wherever they lead; names never lead out of it.
#[derive(Clone, Debug)]
pub struct DiskFolder {
    path: PathBuf,
    /// The file that is meant, where no string can be its name, and what it is called here.
    unnameable: Option<(String, OsString)>,
}

impl DiskFolder {
    /// The folder of this path. Whether it is there is found out by whoever uses it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            unnameable: None,
        }
    }

    /// The folder that a file is in, and what the file is called in it.
    pub(crate) fn of_file(path: &Path) -> (Self, String) {
        let mut folder = Self::new(path.parent().unwrap_or(Path::new("")));
        let file = path.file_name().unwrap_or(path.as_os_str());
        let name = file.to_string_lossy().into_owned();
        if file.to_str().is_none() {
            folder.unnameable = Some((name.clone(), file.to_owned()));
        }
        (folder, name)
    }
}

impl Folder for DiskFolder {
    fn names(&self) -> Result<Vec<String>> {
        let failed = |error| Error::io(Code::Io, error).at_path(&self.path);
        let mut names = Vec::new();
        for entry in fs::read_dir(or_here(&self.path)).map_err(failed)? {
            // A name that is not UTF-8 cannot be named by an index or by Hugging Face's rules.
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        let path = self.place(name);
        match stays_below(name) {
            true => Ok(Arc::new(FileSource::open(path)?)),
            false => Err(Error::new(Code::NotFound)
                .at_path(path)
                .expected("the name of a file below the folder")),
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        match &self.unnameable {
            Some((called, file)) if called == name => self.path.join(file),
            // Joining nothing would put a separator behind it.
            _ if name.is_empty() => self.path.clone(),
            _ => self.path.join(name),
        }
    }

    fn version(&self, name: &str) -> Result<Option<Version>> {
        let path = self.place(name);
        match fs::metadata(or_here(&path)) {
            Ok(metadata) => Ok(Some(Identity::of(&metadata).into())),
            Err(error) => Err(open_error(error).at_path(path)),
        }
    }
}

/// A path for the system; without a folder, that of a file is just its name.
fn or_here(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }
}

/// Whether a name leads to something below its folder, by what it says.
pub(crate) fn stays_below(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    // No file has a NUL in its name.
    !name.is_empty()
        && !name.contains('\0')
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Files in memory, which clones share.
///
/// ```
/// use std::sync::Arc;
/// use safeshard_core::{Checkpoint, Dtype, MemoryFolder, OpenOptions, Place, SaveTensor, write_to};
///
/// # let tensor = SaveTensor::new("w", Dtype::U8, [2], vec![7, 8]);
/// let mut file = Vec::new();
/// write_to(vec![tensor], &mut file, &Default::default())?;
/// let folder = MemoryFolder::from_iter([("model.safetensors", file)]);
/// let checkpoint = Checkpoint::open_place(&Place::folder(Arc::new(folder)), &OpenOptions::default())?;
/// assert_eq!(checkpoint.read("w")?, [7, 8]);
/// # Ok::<(), safeshard_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryFolder {
    files: BTreeMap<String, MemorySource>,
}

impl MemoryFolder {
    /// An empty folder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a file into it, in place of one of the same name. The bytes are not copied, whoever owns them.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
    ) {
        self.files.insert(name.into(), MemorySource::new(bytes));
    }
}

impl<N: Into<String>, B: AsRef<[u8]> + Send + Sync + 'static> FromIterator<(N, B)>
    for MemoryFolder
{
    fn from_iter<F: IntoIterator<Item = (N, B)>>(files: F) -> Self {
        let mut folder = Self::new();
        for (name, bytes) in files {
            folder.insert(name, bytes);
        }
        folder
    }
}

impl Folder for MemoryFolder {
    fn names(&self) -> Result<Vec<String>> {
        let names = self.files.keys().filter(|name| !name.contains('/'));
        Ok(names.cloned().collect())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        match self.files.get(name) {
            Some(file) => Ok(Arc::new(file.clone())),
            None => Err(Error::new(Code::NotFound).at_path(self.place(name))),
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        match name.is_empty() {
            true => MEMORY.into(),
            false => Path::new(MEMORY).join(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_told_from_a_path() {
        let scheme = |place: &str| scheme_of(Path::new(place)).map(|(scheme, _)| scheme.to_owned());
        for (place, expected) in [
            ("hf://org/name", Some("hf")),
            ("s3+http://bucket", Some("s3+http")),
            ("HTTPS://host/model.safetensors", Some("HTTPS")),
            ("x-1.y://", Some("x-1.y")),
            ("model.safetensors", None),
            ("/a/b://c", None),
            ("./hf://org", None),
            ("C://models", None),
            ("://x", None),
            ("1a://x", None),
            ("hf:/org/name", None),
            ("", None),
        ] {
            assert_eq!(scheme(place).as_deref(), expected, "{place}");
        }
    }
}
