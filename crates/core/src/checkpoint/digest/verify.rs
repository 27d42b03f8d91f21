//! Whether a checkpoint's bytes are those that a manifest vouches for.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Algorithm, Digest, Manifest, ManifestEntry, hash, listed, listed_name};
use crate::checkpoint::capped::Capped;
use crate::checkpoint::check::{Verification, VerifyOptions};
use crate::checkpoint::{Checkpoint, Index, check};
use crate::error::{Code, Error, Finding, Result};
use crate::format::dtype::Dtype;
use crate::format::header::TensorInfo;
use crate::io::engine::ReadOptions;
use crate::io::extent::Extent;
use crate::io::folder::{Folder, Place, stays_below};
use crate::io::pool::FilePool;
use crate::io::source::ReadAt;

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
    let checkpoint = checkpoint.as_ref();
    let findings = &mut verification.findings;
    let say = |findings: &mut Vec<_>, problems: Capped| {
        findings.extend(problems.into_vec().into_iter().map(Finding::error));
    };
    let mut problems = Capped::default();
    let place = Place::at(path, options.open.resolver.as_deref())?;
    let list = FileList::of(&place, manifest, checkpoint, &mut problems)?;
    list.check(&options.read, &mut problems)?;
    say(findings, problems);
    if let Some(checkpoint) = checkpoint {
        say(findings, unlisted_files(checkpoint, manifest));
        let index = checkpoint.index();
        let index = index.filter(|index| !vouches_for_index(manifest, index));
        findings.extend(index.map(|index| Finding::warning(unlisted(index.path()))));
        say(findings, unlisted_tensors(checkpoint, manifest));
        say(
            findings,
            check_tensors(checkpoint, manifest, &options.read)?,
        );
    }
    Ok(verification)
}

/// The files that a manifest names, each once, and all that it says of them.
struct FileList<'m> {
    files: Vec<ListedFile<'m>>,
    claims: Vec<Claim<'m>>,
}

/// A file that the manifest names.
struct ListedFile<'m> {
    name: &'m str,
    source: Arc<dyn ReadAt>,
    path: PathBuf,
    /// What its bytes are by each of [`ALGORITHMS`], as far as that was found out.
    found: [Option<Digest>; ALGORITHMS.len()],
}

/// What one line says of a file.
struct Claim<'m> {
    /// The position of the file.
    file: usize,
    algorithm: Option<Algorithm>,
    digest: &'m Digest,
}

/// In this order, digests are tried that do not say which one they are.
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Blake3];

impl<'m> FileList<'m> {
    /// Opens the files, and says which of them are not there.
    fn of(
        place: &Place,
        manifest: &'m Manifest,
        checkpoint: Option<&Checkpoint>,
        problems: &mut Capped,
    ) -> Result<Self> {
        // That of the checkpoint, if there is one: what is at the place may be another one by now.
        let folder = checkpoint.and_then(|checkpoint| checkpoint.folder.as_ref());
        let folder = &**folder.unwrap_or(&place.folder);
        let own = own_names(place, checkpoint);
        let pool = Arc::<FilePool>::default();
        let mut list = Self {
            files: Vec::new(),
            claims: Vec::new(),
        };
        // By their parts, so that `a/b` and `a//b` are one; `None` for those that are not there.
        let mut positions: HashMap<&Path, Option<usize>> = HashMap::new();
        for (name, algorithm, digest) in files(manifest) {
            if place.name.is_some() && !own.contains(name) {
                continue;
            }
            if !stays_below(name) {
                problems.push(|| {
                    let problem = Error::new(Code::ManifestName).at_path(folder.place(""));
                    problem.found(format_args!("{name:?}"))
                });
                continue;
            }
            let file = match positions.get(Path::new(name)) {
                Some(&known) => known,
                None => {
                    let file = list.open(&pool, folder, name, problems)?;
                    positions.insert(Path::new(name), file);
                    file
                }
            };
            list.claims.extend(file.map(|file| Claim {
                file,
                algorithm,
                digest,
            }));
        }
        Ok(list)
    }

    /// Its position, if it is there.
    fn open(
        &mut self,
        pool: &Arc<FilePool>,
        folder: &dyn Folder,
        name: &'m str,
        problems: &mut Capped,
    ) -> Result<Option<usize>> {
        let path = folder.place(name);
        let source = match pool.open(folder, name) {
            Ok(source) => source,
            Err(error) if error.code() == Code::NotFound => {
                problems.push(|| Error::new(Code::DigestMissing).at_path(&path));
                return Ok(None);
            }
            // A folder, or a link that leads nowhere, is the checkpoint's fault.
            Err(error) if error.code() == Code::NotRegularFile => {
                problems.push(|| error);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.files.push(ListedFile {
            name,
            source,
            path,
            found: [None; ALGORITHMS.len()],
        });
        Ok(Some(self.files.len() - 1))
    }

    /// Compares what the lines say with what the files are. Each file is read once for each digest that
    /// any line has of it, however many lines there are.
    fn check(mut self, options: &ReadOptions, problems: &mut Capped) -> Result<()> {
        let untold = self.algorithm_by_trial(options)?;
        for algorithm in ALGORITHMS {
            let of_it = |claim: &&Claim<'_>| claim.algorithm.unwrap_or(untold) == algorithm;
            let files = self.claims.iter().filter(of_it).map(|claim| claim.file);
            let files: Vec<_> = files.collect();
            self.digest(files, algorithm, options)?;
            for claim in self.claims.iter().filter(of_it) {
                let file = self.files.get(claim.file);
                let found = file.and_then(|file| Some((file, file.found(algorithm)?)));
                if let Some((file, found)) = found.filter(|(_, found)| found != claim.digest) {
                    problems.push(|| {
                        let problem = Error::new(Code::DigestMismatch).at_path(&file.path);
                        says(problem, algorithm, *claim.digest, found)
                    });
                }
            }
        }
        Ok(())
    }

    /// Which digest those are that do not say: both have 64 digits.
    fn algorithm_by_trial(&mut self, options: &ReadOptions) -> Result<Algorithm> {
        let untold = self.claims.iter().filter(|claim| claim.algorithm.is_none());
        let mut untold: Vec<_> = untold.map(|claim| (claim.file, claim.digest)).collect();
        untold.sort_by_key(|&(file, _)| file);
        let of_a_file = untold.chunk_by(|(a, _), (b, _)| a == b);
        let mut candidates: Vec<_> = of_a_file
            .filter_map(|claims| Some((claims.first()?.0, claims)))
            .collect();
        candidates.sort_by_key(|&(file, _)| {
            let file = self.files.get(file);
            file.map(|file| (file.source.len(), file.name))
        });
        let quiet = ReadOptions {
            progress: None,
            ..options.clone()
        };
        for (file, claims) in candidates {
            for algorithm in ALGORITHMS {
                self.digest(vec![file], algorithm, &quiet)?;
                let found = self.files.get(file).and_then(|file| file.found(algorithm));
                if claims.iter().any(|(_, digest)| Some(**digest) == found) {
                    return Ok(algorithm);
                }
            }
        }
        Ok(Algorithm::default())
    }

    /// Finds out the digests of these files, unless they are known.
    fn digest(
        &mut self,
        mut files: Vec<usize>,
        algorithm: Algorithm,
        options: &ReadOptions,
    ) -> Result<()> {
        files.sort_unstable();
        files.dedup();
        let at = |at: &usize| self.files.get(*at);
        files.retain(|file| at(file).is_some_and(|file| file.found(algorithm).is_none()));
        let extents: Vec<_> = files
            .iter()
            .filter_map(at)
            .map(|file| Extent::whole(&file.source, &file.path))
            .collect();
        let digests = hash::each(&extents, algorithm, options)?;
        for (file, digest) in files.into_iter().zip(digests) {
            if let Some(file) = self.files.get_mut(file) {
                file.source.check_unchanged()?;
                let place = ALGORITHMS.iter().position(|&known| known == algorithm);
                if let Some(found) = place.and_then(|place| file.found.get_mut(place)) {
                    *found = Some(digest);
                }
            }
        }
        Ok(())
    }
}

impl ListedFile<'_> {
    fn found(&self, algorithm: Algorithm) -> Option<Digest> {
        let mut found = ALGORITHMS.iter().zip(self.found);
        found.find(|(known, _)| **known == algorithm)?.1
    }
}

/// What a manifest says of files: name, digest, and which one.
fn files(manifest: &Manifest) -> impl Iterator<Item = (&str, Option<Algorithm>, &Digest)> {
    manifest.entries.iter().filter_map(|entry| match entry {
        ManifestEntry::File {
            name,
            algorithm,
            digest,
        } => Some((name.strip_prefix("./").unwrap_or(name), *algorithm, digest)),
        ManifestEntry::Tensor { .. } => None,
    })
}

/// What a manifest says of tensors.
fn tensors(manifest: &Manifest) -> impl Iterator<Item = TensorClaim<'_>> {
    manifest.entries.iter().filter_map(|entry| match entry {
        ManifestEntry::Tensor {
            name,
            dtype,
            shape,
            algorithm,
            digest,
        } => Some(TensorClaim {
            name,
            dtype: *dtype,
            shape,
            algorithm: *algorithm,
            digest,
        }),
        ManifestEntry::File { .. } => None,
    })
}

/// What one line says of a tensor.
struct TensorClaim<'m> {
    name: &'m str,
    dtype: Dtype,
    shape: &'m [u64],
    algorithm: Algorithm,
    digest: &'m Digest,
}

fn unlisted(path: &Path) -> Error {
    Error::new(Code::DigestUnlisted).at_path(path)
}

/// The files that the checkpoint has and a manifest of files does not name.
fn unlisted_files(checkpoint: &Checkpoint, manifest: &Manifest) -> Capped {
    let mut problems = Capped::default();
    let named: HashSet<_> = files(manifest).map(|(name, ..)| name).collect();
    if !named.is_empty() {
        let files = checkpoint.files().iter();
        let is_named = |name: Option<&str>| name.is_some_and(|name| named.contains(name));
        for file in files.filter(|file| !is_named(listed_name(file))) {
            problems.push(|| unlisted(file.place()));
        }
    }
    problems
}

/// Whether a manifest names the index, or no file at all.
fn vouches_for_index(manifest: &Manifest, index: &Index) -> bool {
    let index = listed(&index.name, index.path());
    let mut files = files(manifest).peekable();
    files.peek().is_none() || files.any(|(name, ..)| Some(name) == index)
}

/// The tensors that the checkpoint has and a manifest of tensors does not name.
fn unlisted_tensors(checkpoint: &Checkpoint, manifest: &Manifest) -> Capped {
    let mut problems = Capped::default();
    let named: HashSet<_> = tensors(manifest).map(|tensor| tensor.name).collect();
    if named.is_empty() && files(manifest).next().is_some() {
        return problems;
    }
    let tensors = checkpoint.tensors();
    for tensor in tensors.filter(|tensor| !named.contains(tensor.name)) {
        problems.push(|| unlisted(place_of(checkpoint, tensor.name)).in_tensor(tensor.name));
    }
    problems
}

/// Compares what the lines say of tensors with what they are; each tensor is read once for each digest
/// that any line has of it.
fn check_tensors(
    checkpoint: &Checkpoint,
    manifest: &Manifest,
    options: &ReadOptions,
) -> Result<Capped> {
    let mut problems = Capped::default();
    let mut found = HashMap::new();
    for algorithm in ALGORITHMS {
        let (mut names, mut extents) = (HashSet::new(), Vec::new());
        for tensor in tensors(manifest).filter(|tensor| tensor.algorithm == algorithm) {
            if let Ok(info) = checkpoint.info(tensor.name)
                && tensor.differs(&info).is_none()
                && names.insert(tensor.name)
            {
                extents.push((tensor.name, checkpoint.extent(tensor.name)?));
            }
        }
        drop(names);
        let (names, extents): (Vec<_>, Vec<_>) = extents.into_iter().unzip();
        let digests = hash::each(&extents, algorithm, options)?;
        found.extend(names.into_iter().map(|name| (name, algorithm)).zip(digests));
    }
    checkpoint.check_files_unchanged()?;
    for tensor in tensors(manifest) {
        // Which name may have been meant is not looked for: each search takes all names.
        if !checkpoint.contains(tensor.name) {
            let place = checkpoint.path().unwrap_or(Path::new(""));
            problems.push(|| {
                Error::new(Code::TensorMissing)
                    .at_path(place)
                    .in_tensor(tensor.name)
            });
            continue;
        }
        let info = match checkpoint.info(tensor.name) {
            Ok(info) => info,
            Err(error) => {
                problems.push(|| error);
                continue;
            }
        };
        let found = found.get(&(tensor.name, tensor.algorithm));
        let digest = |found: &Digest| {
            let problem = Error::new(Code::DigestMismatch);
            (found != tensor.digest)
                .then(|| says(problem, tensor.algorithm, *tensor.digest, *found))
        };
        let problem = tensor.differs(&info).or_else(|| digest(found?));
        if let Some(problem) = problem {
            let place = place_of(checkpoint, tensor.name);
            problems.push(|| problem.at_path(place).in_tensor(tensor.name));
        }
    }
    Ok(problems)
}

impl TensorClaim<'_> {
    /// What is another than the line says, so that its bytes are not worth looking at.
    fn differs(&self, found: &TensorInfo<'_>) -> Option<Error> {
        if found.dtype != self.dtype {
            let problem = Error::new(Code::DtypeMismatch);
            return Some(problem.expected(self.dtype).found(found.dtype));
        }
        (found.shape != self.shape).then(|| {
            Error::new(Code::ShapeMismatch)
                .expected(format_args!("{:?}", self.shape))
                .found(format_args!("{:?}", found.shape))
        })
    }
}

/// What errors call the file of a tensor.
fn place_of<'c>(checkpoint: &'c Checkpoint, tensor: &str) -> &'c Path {
    let file = checkpoint.file_of(tensor);
    file.map_or(Path::new(""), |file| file.place())
}

fn says(problem: Error, algorithm: Algorithm, expected: Digest, found: Digest) -> Error {
    problem
        .expected(format_args!("{algorithm} {expected}"))
        .found(found)
}

/// What belongs to the checkpoint.
fn own_names(place: &Place, checkpoint: Option<&Checkpoint>) -> HashSet<String> {
    let files = checkpoint.map_or(&[][..], Checkpoint::files).iter();
    let named = place.name.as_deref();
    let named = named.and_then(|name| listed(name, &place.folder.place(name)));
    let names = files.filter_map(listed_name).chain(named);
    names.map(str::to_owned).collect()
}
