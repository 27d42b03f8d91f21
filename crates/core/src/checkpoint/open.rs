//! Opening a checkpoint: every header read, everything checked before anything is handed out.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::index::{Index, Owner};
use super::locate::{Listing, Located, Place, Prefer, index_at_a_glance};
use super::names::{natural_order, sample};
use super::settle::{Seen, settled};
use super::{Checkpoint, CheckpointKind, ShardFile};
use crate::io::mmap::MappedSource;
use crate::io::pool::FilePool;
use crate::io::source::{FileSource, MemorySource, ReadAt, read_vec};
use crate::{
    Code, Error, Finding, Header, HeaderOptions, Limits, Prefix, Profile, Result, UnknownDtype,
};

/// Read along with the length of a header, so that most headers take one call.
const FIRST_READ: u64 = 16 << 10;

/// How to open a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Which variant of a folder's checkpoint, such as `fp16`; `None` for the plain one.
    pub variant: Option<String>,
    /// What to open where a folder has both an index and a single file.
    pub prefer: Prefer,
    /// Which rules headers are held to.
    pub profile: Profile,
    /// Bounds on what the files may make us allocate.
    pub limits: Limits,
    /// What to do with dtypes that nobody knows.
    pub unknown_dtype: UnknownDtype,
    /// How files are read.
    pub io: Io,
    /// Of shards with an index, serve only these tensors (or aliases) and open only the shards that
    /// hold them; `None` for all. Nothing else is checked, served or warned of, which saves most of
    /// the time of opening where one tensor is wanted.
    pub only: Option<Vec<String>>,
}

impl OpenOptions {
    fn header(&self) -> HeaderOptions {
        HeaderOptions {
            profile: self.profile,
            limits: self.limits,
            unknown_dtype: self.unknown_dtype,
        }
    }
}

/// How files are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io(IoKind);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum IoKind {
    #[default]
    Pread,
    Mmap,
}

impl Io {
    /// Positioned reads: the default. A file that is cut off while it is read is an error.
    pub fn pread() -> Self {
        Self(IoKind::Pread)
    }

    /// Mapped files, for borrowing bytes without reading them; see [`MappedSource`].
    ///
    /// # Safety
    /// As [`MappedSource::open`]: nobody may write to or truncate the files while the checkpoint
    /// opened with this, or anything borrowed or mapped from it, is alive.
    #[allow(unsafe_code)]
    pub unsafe fn mmap() -> Self {
        Self(IoKind::Mmap)
    }
}

/// Opens what is at a path.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    settled(|seen| open_once(path, options, seen))
}

fn open_once(path: &Path, options: &OpenOptions, seen: &mut Seen) -> Result<Checkpoint> {
    let opener = Opener::new(options);
    // Nobody is going to be warned of other files.
    let glance = options.only.is_some() && options.variant.is_none();
    let index = glance.then(|| index_at_a_glance(path)).flatten();
    // It may be gone again, if a single file takes its place.
    let index = index.and_then(|index| FileSource::open(index).ok());
    let mut checkpoint = match index {
        Some(index) => opener.opened_index(index, seen)?,
        None => match Place::at(path)? {
            Place::File(file) => opener.file(&file)?,
            Place::Index(index) => opener.index(&index, seen)?,
            Place::Folder(listing) => {
                let listing = seen.listing.insert(listing);
                match listing.choose(options.variant.as_deref())? {
                    Located::File(file) => opener.file(&file)?,
                    Located::Index(index) => opener.index(&index, seen)?,
                    Located::Both { index, single } => opener.both(&index, &single, seen)?,
                }
            }
        },
    };
    checkpoint.path = Some(path.to_path_buf());
    if let Some(listing) = &seen.listing
        && options.only.is_none()
    {
        warn_of_other_files(&mut checkpoint, listing);
    }
    Ok(checkpoint)
}

/// Opens a list of files as one checkpoint.
pub(super) fn open_files(paths: &[PathBuf], options: &OpenOptions) -> Result<Checkpoint> {
    let opener = Opener::new(options);
    limit_shards(paths.len(), options)?;
    let files = paths.iter();
    of_files(files.map(|path| opener.open(path.to_string_lossy().into_owned(), path)))
}

/// Opens sources of any kind as one checkpoint.
pub(super) fn open_sources(
    sources: Vec<(String, Arc<dyn ReadAt>)>,
    options: &OpenOptions,
) -> Result<Checkpoint> {
    limit_shards(sources.len(), options)?;
    let files = sources.into_iter().map(|(name, source)| {
        let header = read_header(&*source, &options.header());
        Ok(ShardFile {
            header: header.map_err(|error| error.at_path(&name))?,
            path: None,
            name,
            source,
        })
    });
    of_files(files)
}

/// A file in memory.
pub(super) fn open_bytes(bytes: Arc<[u8]>, options: &OpenOptions) -> Result<Checkpoint> {
    let source = Arc::new(MemorySource::new(bytes));
    let header = read_header(&*source, &options.header())?;
    let file = ShardFile {
        name: "memory".into(),
        path: None,
        source,
        header,
    };
    Ok(Checkpoint::new(
        CheckpointKind::File,
        vec![file],
        None,
        None,
    ))
}

struct Opener<'o> {
    options: &'o OpenOptions,
    header_options: HeaderOptions,
    pool: Arc<FilePool>,
}

impl<'o> Opener<'o> {
    fn new(options: &'o OpenOptions) -> Self {
        Self {
            options,
            header_options: options.header(),
            pool: Arc::default(),
        }
    }

    fn file(&self, path: &Path) -> Result<Checkpoint> {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let file = self.open(name.to_string_lossy().into_owned(), path)?;
        Ok(Checkpoint::new(
            CheckpointKind::File,
            vec![file],
            None,
            None,
        ))
    }

    /// A folder with an index and a single file of its name: fine if the index names the file.
    fn both(&self, index_path: &Path, single: &Path, seen: &mut Seen) -> Result<Checkpoint> {
        if self.options.prefer == Prefer::Single {
            return self.file(single);
        }
        let file = FileSource::open(index_path)?;
        let index = self.read_index(&file)?;
        let folder = index_path.parent().unwrap_or(Path::new(""));
        let listed = index
            .shards
            .iter()
            .any(|shard| shard.below(folder) == single);
        if !listed && self.options.prefer == Prefer::Neither {
            let name = |path: &Path| {
                path.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned()
            };
            return Err(Error::new(Code::AmbiguousCheckpoint)
                .at_path(folder)
                .found(format_args!(
                    "`{}`, and `{}` that it does not name",
                    name(index_path),
                    name(single)
                ))
                .help(
                    "one of them is out of date: pass the path of the one you mean, or choose with \
                     `Prefer::Index` or `Prefer::Single`",
                ));
        }
        seen.index = Some(file);
        self.shards(index)
    }

    fn index(&self, path: &Path, seen: &mut Seen) -> Result<Checkpoint> {
        self.opened_index(FileSource::open(path)?, seen)
    }

    fn opened_index(&self, file: FileSource, seen: &mut Seen) -> Result<Checkpoint> {
        let file = seen.index.insert(file);
        self.shards(self.read_index(file)?)
    }

    fn read_index(&self, file: &FileSource) -> Result<Index> {
        Index::read(file, &self.options.limits, self.options.only.as_deref())
    }

    fn shards(&self, mut index: Index) -> Result<Checkpoint> {
        let folder = index.path().parent().unwrap_or(Path::new("")).to_path_buf();
        let mut tensors_of = vec![Vec::new(); index.shards.len()];
        for (tensor, owner) in &index.weight_map {
            if let Some(tensors) = tensors_of.get_mut(owner.file as usize) {
                tensors.push(tensor.as_str());
            }
        }
        let mut problems = Vec::new();
        let mut files = Vec::new();
        for (shard, tensors) in index.shards.iter().zip(&mut tensors_of) {
            tensors.sort_unstable_by(|a, b| natural_order(a, b));
            let file = self.open(shard.to_string(), &shard.below(&folder));
            let file = file.map_err(|error| problems.push(lost(error, tensors)));
            files.push(file.ok());
        }
        problems.extend(check_map(&files, &tensors_of));
        if !problems.is_empty() {
            return Err(Error::all(problems).at_path(index.path()));
        }
        let files = files.into_iter().flatten().collect();
        let warnings = std::mem::take(&mut index.warnings);
        let owners = std::mem::take(&mut index.weight_map);
        let mut checkpoint =
            Checkpoint::new(CheckpointKind::Index, files, Some(owners), Some(index));
        checkpoint.warnings = warnings;
        if self.options.only.is_none() {
            warn_of_unlisted_tensors(&mut checkpoint);
            warn_of_total_size(&mut checkpoint);
        }
        Ok(checkpoint)
    }

    /// Opens one file and reads its header; errors name the path.
    fn open(&self, name: String, path: &Path) -> Result<ShardFile> {
        let source: Arc<dyn ReadAt> = match self.options.io.0 {
            IoKind::Pread => Arc::new(self.pool.source(path)?),
            // SAFETY: whoever made `Io::mmap` promised what this asks for.
            #[allow(unsafe_code)]
            IoKind::Mmap => Arc::new(unsafe { MappedSource::open(path) }?),
        };
        let header = read_header(&*source, &self.header_options);
        Ok(ShardFile {
            name,
            header: header.map_err(|error| error.at_path(path))?,
            path: Some(path.to_path_buf()),
            source,
        })
    }
}

/// Reads and parses a header: one or two reads, and as much memory for the time of it.
pub(super) fn read_header(source: &dyn ReadAt, options: &HeaderOptions) -> Result<Header> {
    let len = source.len();
    let start = read_vec(source, 0, len.min(FIRST_READ))?;
    let sniffed = start.get(..Prefix::WANTED).unwrap_or(&start);
    let prefix = Prefix::parse(sniffed, Some(len), options)?;
    if prefix.header_range().end <= start.len() as u64 {
        return Header::parse(&start, Some(len), options);
    }
    let json = read_vec(source, 8, prefix.header_len())?;
    drop(start);
    prefix.header(&json, options)
}

/// A list of files: every name in one of them only.
fn of_files(list: impl Iterator<Item = Result<ShardFile>>) -> Result<Checkpoint> {
    let mut problems = Capped::default();
    let mut files = Vec::new();
    for file in list {
        match file {
            Ok(file) => files.push(file),
            Err(error) => problems.push(|| error),
        }
    }
    if files.is_empty() && problems.is_empty() {
        return Err(Error::new(Code::NoCheckpoint).expected("at least one file"));
    }
    let mut owners: HashMap<String, Owner> = HashMap::new();
    for (position, file) in files.iter().enumerate() {
        for tensor in file.names() {
            let owner = Owner {
                file: position as u32,
                rank: u32::try_from(owners.len()).unwrap_or(u32::MAX),
            };
            let Some(other) = owners.insert(tensor.to_owned(), owner) else {
                continue;
            };
            problems.push(|| {
                let other = files.get(other.file as usize).map_or("", |file| &file.name);
                let found = format!("`{other}` and `{}`", file.name);
                let error = Error::new(Code::DuplicateAcrossFiles).in_tensor(tensor);
                error.found(found)
            });
        }
    }
    let problems = problems.into_vec();
    if !problems.is_empty() {
        return Err(Error::all(problems));
    }
    Ok(Checkpoint::new(
        CheckpointKind::Files,
        files,
        Some(owners),
        None,
    ))
}

/// What is wrong with a shard, and which tensors are lost with it.
fn lost(error: Error, tensors: &[&str]) -> Error {
    let error = match error.code() {
        Code::NotFound => error.recode(Code::ShardMissing),
        _ => error,
    };
    let names = sample(tensors.iter().copied());
    let count = match tensors.len() {
        1 => "1 tensor".to_owned(),
        count => format!("{count} tensors"),
    };
    let separator = if error.advice().is_empty() { "" } else { "; " };
    let help = format!(
        "the index places {count} in it: {names}{separator}{}",
        error.advice()
    );
    error.help(help)
}

/// Every tensor that the index places in a shard must be there; a shard that is `None` could not be
/// opened.
fn check_map(files: &[Option<ShardFile>], tensors_of: &[Vec<&str>]) -> Vec<Error> {
    let mut problems = Capped::default();
    let opened = || files.iter().flatten();
    let all_opened = opened().count() == files.len();
    for (file, tensors) in files.iter().zip(tensors_of) {
        let Some(file) = file else {
            continue;
        };
        let has = |file: &ShardFile, tensor: &str| file.header.position(tensor).is_some();
        for tensor in tensors.iter().filter(|tensor| !has(file, tensor)) {
            problems.push(|| {
                let error = Error::new(Code::TensorNotInShard)
                    .at_path(file.place())
                    .in_tensor(*tensor);
                match opened().find(|other| has(other, tensor)) {
                    Some(other) => {
                        error.found(format_args!("one of this name in `{}`", other.name))
                    }
                    None if all_opened => error.help("no shard of the checkpoint has it"),
                    None => error,
                }
            });
        }
    }
    problems.into_vec()
}

/// Errors up to a number: a file of a megabyte can be wrong in a million places.
#[derive(Default)]
struct Capped {
    errors: Vec<Error>,
    more: usize,
}

impl Capped {
    const MOST: usize = 1000;

    fn push(&mut self, error: impl FnOnce() -> Error) {
        match self.errors.len() {
            Self::MOST.. => self.more += 1,
            _ => self.errors.push(error()),
        }
    }

    fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The errors; the last one says how many were left out.
    fn into_vec(mut self) -> Vec<Error> {
        if self.more > 0 {
            let last = self.errors.last().map(Error::code);
            let more = Error::new(last.unwrap_or(Code::SeveralProblems));
            let more = more.found(format_args!("{} more like the one before", self.more));
            self.errors.push(more);
        }
        self.errors
    }
}

fn limit_shards(found: usize, options: &OpenOptions) -> Result<()> {
    let limit = options.limits.shards.min(u64::from(u32::MAX));
    if found as u64 <= limit {
        return Ok(());
    }
    let error = Error::new(Code::LimitShards);
    Err(error.expected(format_args!("at most {limit}")).found(found))
}

/// Tensors of a shard that the index does not place there are not served, but said.
fn warn_of_unlisted_tensors(checkpoint: &mut Checkpoint) {
    let mut warnings = Capped::default();
    for (position, file) in checkpoint.files.iter().enumerate() {
        for tensor in file.names() {
            let owner = checkpoint.owner(tensor);
            if owner == Some(position) {
                continue;
            }
            warnings.push(|| {
                let warning = Error::new(Code::UnlistedTensor)
                    .at_path(file.place())
                    .in_tensor(tensor);
                match owner.and_then(|owner| checkpoint.files.get(owner)) {
                    Some(owner) => {
                        warning.found(format_args!("the index places it in `{}`", owner.name))
                    }
                    None => warning,
                }
            });
        }
    }
    let warnings = warnings.into_vec().into_iter().map(Finding::warning);
    checkpoint.warnings.extend(warnings);
}

fn warn_of_total_size(checkpoint: &mut Checkpoint) {
    let Some(index) = &checkpoint.index else {
        return;
    };
    // Absent is common; torch and mflux leave it out or disagree on tied tensors.
    let Some(stated) = index.metadata().get("total_size") else {
        return;
    };
    let unknown = checkpoint.unsupported();
    let unknown = unknown.map(|tensor| tensor.end - tensor.start).sum::<u64>();
    let actual = checkpoint.totals().bytes.saturating_add(unknown);
    if stated.as_u64() != Some(actual) {
        let warning = Error::new(Code::TotalSize)
            .at_path(index.path())
            .expected(actual)
            .found(stated);
        checkpoint.warnings.push(Finding::warning(warning));
    }
}

fn warn_of_other_files(checkpoint: &mut Checkpoint, listing: &Listing) {
    let used: HashSet<_> = checkpoint.files.iter().map(ShardFile::place).collect();
    let mut warnings = Capped::default();
    for path in listing.others(|path| used.contains(path)) {
        warnings.push(|| Error::new(Code::UnlistedFile).at_path(path));
    }
    let warnings = warnings.into_vec().into_iter().map(Finding::warning);
    checkpoint.warnings.extend(warnings);
}
