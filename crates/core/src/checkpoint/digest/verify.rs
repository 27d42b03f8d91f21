//! Whether a checkpoint's bytes are those that a manifest vouches for.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{Algorithm, Digest, Manifest, ManifestEntry, hash, whole_source};
use crate::checkpoint::{Checkpoint, check};
use crate::io::pool::{FilePool, PooledFile};
use crate::io::source::ReadAt;
use crate::{Code, Dtype, Error, Finding, ReadOptions, Result, Verification, VerifyOptions};

/// Says everything that is wrong with the structure of the checkpoint at a path, as
/// [`verify`](crate::verify) does, and in which files or tensors it is not what a manifest vouches for.
///
/// Of a folder, every file that the manifest names is looked at, others than the checkpoint's too; of
/// a file or an index, only what belongs to it. Names are taken from the checkpoint's folder. A file
/// or a tensor of the checkpoint that the manifest does not name is an error, an index a warning.
///
/// What the manifest names is read once, in blocks of 384 KiB a thread. A digest that does not say
/// which one it is is told by trying both on the smallest file.
///
/// # Errors
/// As [`verify`](crate::verify); `io` where a file cannot be read.
pub fn verify_digests(
    path: impl AsRef<Path>,
    manifest: &Manifest,
    options: &VerifyOptions,
) -> Result<Verification> {
    let path = path.as_ref();
    let (mut verification, checkpoint) = check::structure(path, &options.open)?;
    let vouched = Vouched::by(manifest);
    let findings = &mut verification.findings;
    if !vouched.files.is_empty() {
        vouched.check_files(path, checkpoint.as_ref(), &options.read, findings)?;
    }
    if let Some(checkpoint) = &checkpoint {
        vouched.check_unlisted(checkpoint, findings);
        if !vouched.tensors.is_empty() {
            vouched.check_tensors(checkpoint, &options.read, findings)?;
        }
    }
    Ok(verification)
}

/// What a manifest vouches for.
struct Vouched<'m> {
    files: Vec<(&'m str, Option<Algorithm>, Digest)>,
    tensors: Vec<Tensor<'m>>,
}

struct Tensor<'m> {
    name: &'m str,
    dtype: Dtype,
    shape: &'m [u64],
    algorithm: Algorithm,
    digest: Digest,
}

/// A file that the manifest names.
struct Listed<'m> {
    name: &'m str,
    source: PooledFile,
    path: PathBuf,
    algorithm: Option<Algorithm>,
    digest: Digest,
}

impl<'m> Vouched<'m> {
    fn by(manifest: &'m Manifest) -> Self {
        let (mut files, mut tensors) = (Vec::new(), Vec::new());
        for entry in &manifest.entries {
            match entry {
                ManifestEntry::File {
                    name,
                    algorithm,
                    digest,
                } => files.push((name.strip_prefix("./").unwrap_or(name), *algorithm, *digest)),
                ManifestEntry::Tensor {
                    name,
                    dtype,
                    shape,
                    algorithm,
                    digest,
                } => tensors.push(Tensor {
                    name,
                    dtype: *dtype,
                    shape,
                    algorithm: *algorithm,
                    digest: *digest,
                }),
            }
        }
        Self { files, tensors }
    }

    fn check_files(
        &self,
        path: &Path,
        checkpoint: Option<&Checkpoint>,
        options: &ReadOptions,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let whole_folder = path.is_dir();
        let folder = folder_of(path, checkpoint);
        let own = own_names(path, checkpoint);
        let pool = Arc::<FilePool>::default();
        let mut listed = Vec::new();
        for &(name, algorithm, digest) in &self.files {
            if !whole_folder && !own.contains(name) {
                continue;
            }
            let path = folder.join(name);
            if !stays_below(name) {
                let problem = Error::new(Code::ManifestName).at_path(&folder);
                findings.push(Finding::error(problem.found(format_args!("{name:?}"))));
                continue;
            }
            match pool.source(&path) {
                Ok(source) => listed.push(Listed {
                    name,
                    source,
                    path,
                    algorithm,
                    digest,
                }),
                Err(error) if error.code() == Code::NotFound => {
                    let problem = Error::new(Code::DigestMissing).at_path(&path);
                    findings.push(Finding::error(problem));
                }
                Err(error) => return Err(error),
            }
        }
        let untold = algorithm_by_trial(&listed, options)?;
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let of_it = |file: &&Listed<'_>| file.algorithm.unwrap_or(untold) == algorithm;
            let files: Vec<_> = listed.iter().filter(of_it).collect();
            let spans: Vec<_> = files
                .iter()
                .map(|file| whole_source(&file.source, &file.path))
                .collect();
            let digests = hash::each(&spans, algorithm, options)?;
            for (file, found) in files.iter().zip(digests) {
                file.source.check_unchanged()?;
                if found != file.digest {
                    let problem = mismatch(algorithm, file.digest, found).at_path(&file.path);
                    findings.push(Finding::error(problem));
                }
            }
        }
        Ok(())
    }

    /// What the checkpoint has and the manifest does not name.
    fn check_unlisted(&self, checkpoint: &Checkpoint, findings: &mut Vec<Finding>) {
        let unlisted = |path: &Path| Error::new(Code::DigestUnlisted).at_path(path);
        if !self.files.is_empty() {
            let named: HashSet<_> = self.files.iter().map(|(name, ..)| *name).collect();
            let files = checkpoint.files().iter();
            let files = files.filter(|file| !named.contains(file.name()));
            findings.extend(files.map(|file| Finding::error(unlisted(file.place()))));
            if let Some(index) = checkpoint.index() {
                let name = index.path().file_name().unwrap_or_default();
                if !named.contains(&*name.to_string_lossy()) {
                    findings.push(Finding::warning(unlisted(index.path())));
                }
            }
        }
        if !self.tensors.is_empty() || self.files.is_empty() {
            let named: HashSet<_> = self.tensors.iter().map(|tensor| tensor.name).collect();
            let tensors = checkpoint.tensors();
            for tensor in tensors.filter(|tensor| !named.contains(tensor.name)) {
                let file = checkpoint.file_of(tensor.name);
                let place = file.map_or(Path::new(""), |file| file.place());
                findings.push(Finding::error(unlisted(place).in_tensor(tensor.name)));
            }
        }
    }

    fn check_tensors(
        &self,
        checkpoint: &Checkpoint,
        options: &ReadOptions,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let mut there = Vec::new();
        for tensor in &self.tensors {
            let info = match checkpoint.info(tensor.name) {
                Ok(info) => info,
                Err(error) => {
                    findings.push(Finding::error(error));
                    continue;
                }
            };
            let about = |code| {
                let file = checkpoint.file_of(tensor.name);
                let place = file.map_or(Path::new(""), |file| file.place());
                Error::new(code).at_path(place).in_tensor(tensor.name)
            };
            if info.dtype != tensor.dtype {
                let problem = about(Code::DtypeMismatch)
                    .expected(tensor.dtype)
                    .found(info.dtype);
                findings.push(Finding::error(problem));
            } else if info.shape != tensor.shape {
                let problem = about(Code::ShapeMismatch)
                    .expected(format_args!("{:?}", tensor.shape))
                    .found(format_args!("{:?}", info.shape));
                findings.push(Finding::error(problem));
            } else if let Some(span) = checkpoint.span_of(&info) {
                there.push((tensor, span, about(Code::DigestMismatch)));
            }
        }
        let mut found = HashMap::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let of_it = there
                .iter()
                .filter(|(tensor, ..)| tensor.algorithm == algorithm);
            let (names, spans): (Vec<_>, Vec<_>) =
                of_it.map(|(tensor, span, _)| (tensor.name, *span)).unzip();
            found.extend(
                names
                    .into_iter()
                    .zip(hash::each(&spans, algorithm, options)?),
            );
        }
        checkpoint.check_files_unchanged()?;
        for (tensor, _, problem) in there {
            if let Some(&found) = found.get(tensor.name)
                && found != tensor.digest
            {
                let problem = says(problem, tensor.algorithm, tensor.digest, found);
                findings.push(Finding::error(problem));
            }
        }
        Ok(())
    }
}

fn mismatch(algorithm: Algorithm, expected: Digest, found: Digest) -> Error {
    says(Error::new(Code::DigestMismatch), algorithm, expected, found)
}

fn says(problem: Error, algorithm: Algorithm, expected: Digest, found: Digest) -> Error {
    problem
        .expected(format_args!("{algorithm} {expected}"))
        .found(found)
}

/// The folder that the names of a manifest are in.
fn folder_of(path: &Path, checkpoint: Option<&Checkpoint>) -> PathBuf {
    let index = checkpoint.and_then(|checkpoint| checkpoint.index());
    let file = checkpoint.and_then(|checkpoint| checkpoint.files().first());
    let below = |path: &Path| path.parent().unwrap_or(Path::new("")).to_path_buf();
    match (index, file) {
        // Of a repository in a cache, a folder below it.
        (Some(index), _) => below(index.path()),
        (None, Some(file)) => below(file.place()),
        (None, None) if path.is_dir() => path.to_path_buf(),
        (None, None) => below(path),
    }
}

/// What belongs to the checkpoint.
fn own_names(path: &Path, checkpoint: Option<&Checkpoint>) -> HashSet<String> {
    let name = path.file_name().unwrap_or_default();
    let files = checkpoint.map_or(&[][..], Checkpoint::files).iter();
    let names = files.map(|file| file.name().to_owned());
    names.chain([name.to_string_lossy().into_owned()]).collect()
}

/// Whether a name leads to something below the folder, by what it says.
fn stays_below(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Which digest those are that do not say: both have 64 digits.
fn algorithm_by_trial(listed: &[Listed<'_>], options: &ReadOptions) -> Result<Algorithm> {
    let mut untold: Vec<_> = listed
        .iter()
        .filter(|file| file.algorithm.is_none())
        .collect();
    untold.sort_by_key(|file| (file.source.len(), file.name));
    let quiet = ReadOptions {
        progress: None,
        ..options.clone()
    };
    for file in untold {
        let span = whole_source(&file.source, &file.path);
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            if hash::each(&[span], algorithm, &quiet)? == [file.digest] {
                return Ok(algorithm);
            }
        }
    }
    Ok(Algorithm::default())
}
