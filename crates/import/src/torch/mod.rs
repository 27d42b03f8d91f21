//! Files that `torch.save` writes, and TorchScript, of every version.

mod archive;
mod legacy;
mod select;
mod storage;
mod tensor;
mod view;

use std::path::Path;
use std::sync::Arc;

use safeshard_core::{Code, Error, FileSource, Finding, ForeignFile, ReadAt, Result};

use select::select;
use storage::Storages;
use tensor::Tensors;

use crate::input::read;
use crate::options::{ImportOptions, PickledCode};
use crate::pickle::Pickle;

/// What the pickle of a file says, and where its storages are.
struct Loaded {
    pickle: Pickle,
    container: Container,
    storages: Box<dyn Storages>,
}

/// What torch writes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Zip,
    /// TorchScript, in a zip archive.
    Script,
    Legacy,
}

/// Whether a file begins like one of torch's.
///
/// # Errors
/// Those of reading it.
pub(crate) fn is_torch(source: &dyn ReadAt) -> Result<bool> {
    /// The longest beginning.
    const START: u64 = 32;
    let start = read(source, 0, START.min(source.len()))?;
    Ok(is_archive(&start) || legacy::begins(&start))
}

fn is_archive(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

/// So many problems of one file are told; there may be one for each of millions of tensors.
const PROBLEMS: usize = 100;

/// Opens one of torch's files as what it holds.
///
/// # Errors
/// With the path; see [`open`](crate::open).
pub(crate) fn open(file: FileSource, options: &ImportOptions) -> Result<ForeignFile> {
    let path: Arc<Path> = file.path().into();
    let opened = open_source(Arc::new(file), path.clone(), options);
    opened.map_err(|error| error.at_path(path))
}

fn open_source(
    source: Arc<dyn ReadAt>,
    path: Arc<Path>,
    options: &ImportOptions,
) -> Result<ForeignFile> {
    let start = read(&*source, 0, source.len().min(4))?;
    let loaded = match is_archive(&start) {
        true => archive::open(source.clone(), path.clone(), options)?,
        false => legacy::open(source.clone(), path.clone(), options)?,
    };
    let pickle = &loaded.pickle;
    let mut file = ForeignFile::new(&*path, source.clone());
    let mut warn = |warning: Error| file.warnings.push(Finding::warning(warning.at_path(&path)));
    if let Some(code) = pickle.code().next() {
        let error = Error::new(Code::PickleCode)
            .at_offset(code.offset)
            .found(code);
        match options.code {
            PickledCode::Refuse => return Err(error),
            PickledCode::Ignore => warn(error.help("none of it was run")),
        }
    }
    let selected = select(pickle, options)?;
    if let Some(others) = sample(selected.left_out.iter().map(String::as_str)) {
        warn(Error::new(Code::UnselectedTensor).found(others));
    }
    if let Some(objects) = sample(selected.strangers.iter().map(String::as_str)) {
        warn(Error::new(Code::PickleObject).found(objects));
    }
    if loaded.container == Container::Script {
        warn(Error::new(Code::TorchscriptAttributes));
    }
    let mut tensors = Tensors::new(pickle, &*loaded.storages, &options.limits);
    let mut problems = Vec::new();
    for (name, id) in selected.tensors {
        // As tch reads what it writes.
        let name = match loaded.container {
            Container::Script => name.replace('|', "."),
            Container::Zip | Container::Legacy => name,
        };
        match tensors.make(name, id) {
            Ok(tensor) => file.tensors.push(tensor),
            Err(problem) => problems.push(problem),
        }
        if problems.len() >= PROBLEMS {
            break;
        }
    }
    if !problems.is_empty() {
        return Err(Error::all(problems));
    }
    if file.tensors.is_empty() {
        return Err(Error::new(Code::NotWeights).found("a pickle without tensors"));
    }
    file.metadata.insert("format".to_owned(), "pt".to_owned());
    source.check_unchanged()?;
    Ok(file)
}

/// The first of some names, and how many more there are.
fn sample<'n>(mut names: impl Iterator<Item = &'n str>) -> Option<String> {
    /// More would hide what else is said.
    const SHOWN: usize = 5;
    let mut text = names.by_ref().take(SHOWN).collect::<Vec<_>>().join(", ");
    let more = names.count();
    if more > 0 {
        text += &format!(" and {more} more");
    }
    (!text.is_empty()).then_some(text)
}
