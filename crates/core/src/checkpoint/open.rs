//! Opening a checkpoint: every header read, everything checked before anything is handed out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::capped::Capped;
use super::index::Index;
use super::locate::{Listing, Located, Prefer, index_at_a_glance};
use super::names::{natural_order, sample};
use super::owners::Owners;
use super::reopen::{Seen, settled};
use super::unusual::{warn_of_other_files, warn_of_total_size, warn_of_unlisted_tensors};
use super::{Checkpoint, CheckpointKind, ShardFile};
use crate::error::{Code, Error, Result};
use crate::format::header::{Header, HeaderOptions, Prefix, Profile, UnknownDtype};
use crate::io::access::Access;
use crate::io::folder::{Folder, FolderFile, Place, Resolve};
use crate::io::mmap::MappedSource;
use crate::io::pool::FilePool;
use crate::io::source::{FileSource, MEMORY, MemorySource, ReadAt, read_vec};
use crate::io::workers::{Workers, threads};
use crate::limits::Limits;

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
    /// What knows places with a scheme, such as `hf://org/name`; without it, there are only paths.
    pub resolver: Option<Arc<dyn Resolve>>,
}

impl OpenOptions {
    /// The same, but that a dtype of tomorrow stops nothing.
    pub(super) fn keeping_unknown(&self) -> Self {
        Self {
            unknown_dtype: UnknownDtype::Keep,
            ..self.clone()
        }
    }

    pub(super) fn header(&self) -> HeaderOptions {
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

/// Opens what is at a path, or behind a scheme.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    let mut checkpoint = settled(|seen| {
        let place = Place::at(path, options.resolver.as_deref())?;
        open_once(&place, options, seen)
    })?;
    checkpoint.path = Some(path.into());
    Ok(checkpoint)
}

/// Opens what is at a place.
pub(super) fn open_place(place: &Place, options: &OpenOptions) -> Result<Checkpoint> {
    settled(|seen| open_once(place, options, seen))
}

fn open_once(place: &Place, options: &OpenOptions, seen: &mut Seen) -> Result<Checkpoint> {
    let folder = &place.folder;
    let opener = Opener::new(options);
    match (&place.name, place.index()) {
        (_, Some(index)) => return opener.index(FolderFile::open(folder, index)?, seen),
        (Some(file), None) => return opener.file(folder, file),
        (None, None) => {}
    }
    if options.only.is_some()
        && options.variant.is_none()
        // Nobody is going to be warned of other files.
        && let Some(index) = index_at_a_glance(folder)
    {
        return opener.index(index, seen);
    }
    let listing = seen.listing.insert(Listing::of(folder)?);
    let mut checkpoint = match listing.choose(options.variant.as_deref())? {
        Located::File(file) => opener.file(folder, &file)?,
        Located::Index(index) => opener.index(FolderFile::open(folder, &index)?, seen)?,
        Located::Both { index, single } => {
            opener.both(FolderFile::open(folder, &index)?, &single, seen)?
        }
    };
    if let Some(listing) = &seen.listing
        && options.only.is_none()
    {
        warn_of_other_files(&mut checkpoint, listing);
    }
    Ok(checkpoint)
}

/// Opens a list of files as one checkpoint.
pub(super) fn open_files(paths: &[PathBuf], options: &OpenOptions) -> Result<Checkpoint> {
    limit_shards(paths.len(), options)?;
    let opener = Opener::new(options);
    let open = |path: &PathBuf| {
        let place = Place::of_file(path, options.resolver.as_deref())?;
        let name = place.name.unwrap_or_default();
        let called = path.to_string_lossy().into_owned();
        Ok((opener.open(&place.folder, &name, called)?, place.folder))
    };
    // The first one says how the others want to be read.
    let (first, others) = paths.split_at(paths.len().min(1));
    let first: Vec<_> = first.iter().map(open).collect();
    let mut access = first.iter().flatten().map(|(file, _)| file.source.access());
    let access = access.next().unwrap_or_default();
    let others = side_by_side(others, access, open)?;
    let (mut files, mut folder) = (Vec::new(), None);
    for opened in first.into_iter().chain(others) {
        files.push(opened.map(|(file, its_folder)| {
            folder.get_or_insert(its_folder);
            file
        }));
    }
    let mut checkpoint = of_files(files)?;
    checkpoint.folder = folder;
    Ok(checkpoint)
}

/// Opens sources of any kind as one checkpoint.
pub(super) fn open_sources(
    sources: Vec<(String, Arc<dyn ReadAt>)>,
    options: &OpenOptions,
) -> Result<Checkpoint> {
    limit_shards(sources.len(), options)?;
    let access = sources.first().map(|(_, source)| source.access());
    let files = side_by_side(sources, access.unwrap_or_default(), |(name, source)| {
        let header = read_header(&*source, &options.header());
        let header = header.map_err(|error| error.at_path(&name))?;
        Ok(ShardFile::new(name, source, header))
    })?;
    of_files(files)
}

/// A file in memory.
pub(super) fn open_bytes(bytes: MemorySource, options: &OpenOptions) -> Result<Checkpoint> {
    let source = Arc::new(bytes);
    let header = read_header(&*source, &options.header())?;
    let file = ShardFile::new(MEMORY.into(), source, header);
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

    fn file(&self, folder: &Arc<dyn Folder>, name: &str) -> Result<Checkpoint> {
        let file = self.open(folder, name, name.to_owned())?;
        let mut checkpoint = Checkpoint::new(CheckpointKind::File, vec![file], None, None);
        checkpoint.folder = Some(Arc::clone(folder));
        Ok(checkpoint)
    }

    /// A folder with an index and a single file of its name: fine if the index names the file, or if only
    /// one of the two can be opened at all.
    fn both(&self, file: FolderFile, single: &str, seen: &mut Seen) -> Result<Checkpoint> {
        let folder = &file.folder;
        if self.options.prefer == Prefer::Single {
            return self.file(folder, single);
        }
        let index = self.read_index(&file);
        let is_meant = match &index {
            Ok(index) => {
                let mut shards = index.shards();
                self.options.prefer == Prefer::Index || shards.any(|shard| shard == single)
            }
            Err(_) => self.options.prefer == Prefer::Index,
        };
        if is_meant {
            let file = seen.index.insert(file);
            return self.shards(index?, file);
        }
        let index = index.and_then(|index| self.shards(index, &file));
        let (mut taken, other) = match (index, self.file(folder, single)) {
            (Ok(_), Ok(_)) => return Err(ambiguous(&file, single)),
            (Ok(taken), Err(other)) | (Err(other), Ok(taken)) => (taken, other),
            (Err(error), Err(_)) => return Err(error),
        };
        // Unless a save is just replacing the one by the other.
        let holds_still = seen.listing.as_ref().is_none_or(Listing::still_holds);
        if !says_what_is_there(&other) || !holds_still {
            return Err(other);
        }
        taken.warn([other]);
        seen.index = Some(file);
        Ok(taken)
    }

    fn index(&self, file: FolderFile, seen: &mut Seen) -> Result<Checkpoint> {
        let file = seen.index.insert(file);
        self.shards(self.read_index(file)?, file)
    }

    fn read_index(&self, file: &FolderFile) -> Result<Index> {
        let only = self.options.only.as_deref();
        Index::read(file, &self.options.limits, only)
    }

    fn shards(&self, mut index: Index, file: &FolderFile) -> Result<Checkpoint> {
        let mut tensors_of = vec![Vec::new(); index.shards.len()];
        for (tensor, file) in index.weight_map.iter() {
            if let Some(tensors) = tensors_of.get_mut(file as usize) {
                tensors.push(tensor);
            }
        }
        let opened = side_by_side(&index.shards, file.source.access(), |shard| {
            self.open(&file.folder, shard.as_str(), shard.to_string())
        })?;
        let mut problems = Vec::new();
        let mut files = Vec::new();
        for (file, tensors) in opened.into_iter().zip(&mut tensors_of) {
            let file = file.map_err(|error| problems.push(lost(error, tensors)));
            files.push(file.ok());
        }
        problems.extend(check_map(&files, &tensors_of));
        if !problems.is_empty() {
            return Err(Error::all(problems).at_path(index.path()));
        }
        drop(tensors_of);
        let files = files.into_iter().flatten().collect();
        let warnings = std::mem::take(&mut index.warnings);
        let owners = std::mem::take(&mut index.weight_map);
        let mut checkpoint =
            Checkpoint::new(CheckpointKind::Index, files, Some(owners), Some(index));
        checkpoint.folder = Some(Arc::clone(&file.folder));
        checkpoint.warnings = warnings.into();
        if self.options.only.is_none() {
            warn_of_unlisted_tensors(&mut checkpoint);
            warn_of_total_size(&mut checkpoint);
        }
        Ok(checkpoint)
    }

    /// Opens one file and reads its header; errors name its place.
    fn open(&self, folder: &Arc<dyn Folder>, name: &str, called: String) -> Result<ShardFile> {
        let place = folder.place(name);
        let source = match self.options.io.0 {
            IoKind::Pread => self.pool.open(&**folder, name),
            // SAFETY: whoever made `Io::mmap` promised what this asks for.
            #[allow(unsafe_code)]
            IoKind::Mmap => folder
                .open(name)
                .and_then(|source| unsafe { mapped(source) }),
        };
        let opened = source.and_then(|source| {
            let header = read_header(&*source, &self.header_options)?;
            Ok(ShardFile::new(called, source, header))
        });
        match opened {
            Ok(file) => Ok(file.in_folder(&**folder, place)),
            Err(error) => Err(error.at_path(place)),
        }
    }
}

/// A local file, mapped; any other source as it is.
///
/// # Safety
/// As [`MappedSource::open`].
#[allow(unsafe_code)]
unsafe fn mapped(source: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
    match FileSource::of(source) {
        // SAFETY: passed on.
        Ok(file) => Ok(Arc::new(unsafe { MappedSource::of(&file) }?)),
        Err(source) => Ok(source),
    }
}

/// Opens files or sources, as many at once as they want to be read by; results come in order.
///
/// # Errors
/// `limit-memory`.
fn side_by_side<I: Send, T: Send>(
    items: impl IntoIterator<Item = I, IntoIter: ExactSizeIterator + Send>,
    access: Access,
    open: impl Fn(I) -> Result<T> + Sync,
) -> Result<Vec<Result<T>>> {
    /// So many local files are opened before another thread has started.
    const WORTH_A_THREAD: usize = 64;
    let items = items.into_iter();
    let threads = match (access.streams, items.len() / WORTH_A_THREAD) {
        (Some(streams), _) => streams.get(),
        (None, worth @ 2..) => threads(None).min(worth),
        (None, _) => 1,
    };
    let workers = Workers::new(threads, None, None, 0);
    workers.each(items, || (), |item, ()| Ok(open(item)))
}

/// The error of a folder that holds two checkpoints of one name.
fn ambiguous(index: &FolderFile, single: &str) -> Error {
    Error::new(Code::AmbiguousCheckpoint)
        .at_path(index.folder.place(""))
        .found(format_args!(
            "`{}`, and `{single}` that it does not name",
            index.name
        ))
        .help(
            "one of them is out of date: pass the path of the one you mean, or choose with \
             `Prefer::Index` or `Prefer::Single`",
        )
}

/// Whether an error is about what is in files, and not about how they were read.
fn says_what_is_there(error: &Error) -> bool {
    let is_failure = matches!(error.code(), Code::Io | Code::FileChanged);
    !is_failure && error.problems().iter().all(says_what_is_there)
}

/// Reads and parses a header: one or two reads, and as much memory for the time of it.
pub(super) fn read_header(source: &dyn ReadAt, options: &HeaderOptions) -> Result<Header> {
    let len = source.len();
    let first_read = source.access().bounded().first_read;
    let start = read_vec(source, 0, len.min(first_read.max(Prefix::WANTED as u64)))?;
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
fn of_files(list: Vec<Result<ShardFile>>) -> Result<Checkpoint> {
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
    let mut owners = Owners::default();
    for (position, file) in files.iter().enumerate() {
        for tensor in file.names() {
            let Err(other) = owners.insert(tensor, position as u32) else {
                continue;
            };
            problems.push(|| {
                let other = files.get(other as usize).map_or("", |file| &file.name);
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
fn lost(error: Error, tensors: &mut [&str]) -> Error {
    tensors.sort_unstable_by(|a, b| natural_order(a, b));
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
        let missing = tensors.iter().filter(|tensor| !has(file, tensor));
        let mut missing: Vec<_> = missing.collect();
        missing.sort_unstable_by(|a, b| natural_order(a, b));
        for tensor in missing {
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

fn limit_shards(found: usize, options: &OpenOptions) -> Result<()> {
    let limit = options.limits.shards.min(u64::from(u32::MAX));
    if found as u64 <= limit {
        return Ok(());
    }
    let error = Error::new(Code::LimitShards);
    Err(error.expected(format_args!("at most {limit}")).found(found))
}
