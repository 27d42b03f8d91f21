//! What is at a path, whatever its format.

use std::path::{Path, PathBuf};

use safeshard_core::{Checkpoint, Code, Error, FileSource, OpenOptions, Result};

use crate::options::ImportOptions;
use crate::torch;

/// Files of torch that a folder is named by, where it has no safetensors file.
const NAMES: [&str; 4] = [
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "adapter_model.bin",
    "model.pt",
];

/// Opens what is at `path`: a safetensors checkpoint, as [`Checkpoint::open`] does, or a file of torch.
///
/// Nothing in a file is executed. Only its directory and its pickle are read, and each tensor is where it
/// lies: nothing is held in memory.
///
/// # Errors
/// As [`Checkpoint::open`]; `pickle-code` where Python would run code; `ambiguous-key` where the file holds
/// several sets of tensors; and codes that begin with `zip-`, `pickle-`, `torch-`, `storage-` and `key-`.
///
/// ```no_run
/// let checkpoint = safeshard_import::open("pytorch_model.bin")?;
/// for tensor in checkpoint.tensors() {
///     println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
/// }
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
    open_with(path, &OpenOptions::default(), &ImportOptions::default())
}

/// As [`open`], with options: how safetensors files are opened, and others.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    path: impl AsRef<Path>,
    options: &OpenOptions,
    import: &ImportOptions,
) -> Result<Checkpoint> {
    let path = path.as_ref();
    if path.is_dir() {
        return Checkpoint::open_with(path, options).or_else(|error| {
            // The folder that was looked into: of a cache, that of a revision.
            match error.code() {
                Code::NoCheckpoint => match only_file(error.path().unwrap_or(path))? {
                    Some(file) => open_file(&file, options, import),
                    None => Err(error),
                },
                _ => Err(error),
            }
        });
    }
    open_file(path, options, import)
}

fn open_file(path: &Path, options: &OpenOptions, import: &ImportOptions) -> Result<Checkpoint> {
    // Under that name, everything else is a mistake or worse.
    if path.extension().is_some_and(|end| end == "safetensors") {
        return Checkpoint::open_with(path, options);
    }
    // What is no file may be a place with a scheme.
    let Ok(file) = FileSource::open(path) else {
        return Checkpoint::open_with(path, options);
    };
    match torch::is_torch(&file).map_err(|error| error.at_path(path))? {
        true => Checkpoint::from_foreign(torch::open(file, import)?),
        false => Checkpoint::open_with(path, options),
    }
}

/// The one file of torch that a folder has under a usual name.
fn only_file(folder: &Path) -> Result<Option<PathBuf>> {
    let files = NAMES.iter().map(|name| folder.join(name));
    let files: Vec<_> = files.filter(|file| file.is_file()).collect();
    match files.as_slice() {
        [] => Ok(None),
        [file] => Ok(Some(file.clone())),
        several => {
            let names = several.iter().filter_map(|file| file.file_name());
            let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
            Err(Error::new(Code::AmbiguousCheckpoint)
                .at_path(folder)
                .found(names.join(", ")))
        }
    }
}
