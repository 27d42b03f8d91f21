//! Digests: what a checkpoint's bytes are, in 64 digits a file or a tensor, and whether they still are.

mod hash;
mod manifest;
mod verify;

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::{Checkpoint, ShardFile};
use crate::error::{Code, Error, Result};
use crate::io::engine::ReadOptions;
use crate::io::extent::Extent;
use crate::io::folder::FolderFile;

pub use manifest::{Manifest, ManifestEntry};
pub use verify::verify_digests;

/// Which digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256, as `sha256sum` and the Hugging Face hub have it. One thread a file.
    #[default]
    Sha256,
    /// BLAKE3, as `b3sum` has it: several times as fast on one thread, and on several threads for a
    /// single file too.
    Blake3,
}

impl Algorithm {
    /// Its name on a command line and in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// 32 bytes that stand for any number of bytes; shown in 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(digits: &str) -> Result<Self> {
        let wrong = || Error::new(Code::ManifestSyntax).expected("64 hexadecimal digits");
        let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
            return Err(wrong());
        };
        let mut digest = [0; 32];
        if pairs.len() != digest.len() {
            return Err(wrong());
        }
        for (byte, pair) in digest.iter_mut().zip(pairs) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            let [high, low] = pair.map(digit);
            let (high, low) = high.zip(low).ok_or_else(wrong)?;
            *byte = (high << 4 | low) as u8;
        }
        Ok(Self(digest))
    }
}

/// How to digest a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct DigestOptions {
    /// Which digest.
    pub algorithm: Algorithm,
    /// Of what.
    pub of: DigestOf,
    /// Threads, progress, cancelling.
    pub read: ReadOptions,
}

/// Of what to make digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DigestOf {
    /// Every file, the index included: what downloads and copies are checked against.
    #[default]
    Files,
    /// Every tensor's bytes: they stay the same however the checkpoint is sharded.
    Tensors,
}

impl Checkpoint {
    /// The digests of its files or tensors. Everything is read once, in blocks of 384 KiB a thread.
    ///
    /// # Errors
    /// Those of reading; `file-changed`, `cancelled`; `checkpoint-name` where the name of a file is not
    /// UTF-8, as a manifest is.
    ///
    /// ```
    /// use safeshard_core::{Checkpoint, DigestOf, DigestOptions, Dtype, SaveTensor, write_to};
    ///
    /// # let tensor = SaveTensor::new("w", Dtype::U8, [3], &b"abc"[..]);
    /// # let mut file = Vec::new();
    /// # write_to(vec![tensor], &mut file, &Default::default())?;
    /// let checkpoint = Checkpoint::from_bytes(file)?;
    /// let options = DigestOptions { of: DigestOf::Tensors, ..Default::default() };
    /// let manifest = checkpoint.digest(&options)?;
    /// // What `printf abc | sha256sum` says.
    /// assert!(manifest.to_string().contains("ba7816bf8f01cfea414140de5dae2223b00361a3"));
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn digest(&self, options: &DigestOptions) -> Result<Manifest> {
        let entries = match options.of {
            DigestOf::Files => self.digest_files(options)?,
            DigestOf::Tensors => self.digest_tensors(options)?,
        };
        Ok(Manifest { entries })
    }

    fn digest_files(&self, options: &DigestOptions) -> Result<Vec<ManifestEntry>> {
        let index = match (self.index(), &self.folder) {
            (Some(index), Some(folder)) => Some(FolderFile::open(folder, &index.name)?),
            _ => None,
        };
        let shards = self.files().iter();
        let mut names: Vec<_> = shards
            .map(|file| listed_name(file).ok_or_else(|| no_name(file.place())))
            .collect::<Result<_>>()?;
        let files = self.files().iter();
        let mut extents: Vec<_> = files
            .map(|file| Extent::whole(file.on_disk(), file.place()))
            .collect();
        if let Some(index) = &index {
            let name = listed(&index.name, &index.place);
            names.push(name.ok_or_else(|| no_name(&index.place))?);
            extents.push(Extent::whole(&index.source, &index.place));
        }
        let digests = hash::each(&extents, options.algorithm, &options.read)?;
        self.check_files_unchanged()?;
        let entries = names.into_iter().zip(digests).map(|(name, digest)| {
            let algorithm = Some(options.algorithm);
            ManifestEntry::File {
                name: name.to_owned(),
                algorithm,
                digest,
            }
        });
        Ok(entries.collect())
    }

    fn digest_tensors(&self, options: &DigestOptions) -> Result<Vec<ManifestEntry>> {
        let tensors = self.tensors();
        let tensors = tensors.map(|tensor| Ok((tensor, self.extent(tensor.name)?)));
        let tensors: Vec<_> = tensors.collect::<Result<_>>()?;
        let extents: Vec<_> = tensors.iter().map(|(_, extent)| *extent).collect();
        let digests = hash::each(&extents, options.algorithm, &options.read)?;
        self.check_files_unchanged()?;
        let entries =
            tensors
                .iter()
                .zip(digests)
                .map(|((tensor, _), digest)| ManifestEntry::Tensor {
                    name: tensor.name.to_owned(),
                    dtype: tensor.dtype,
                    shape: tensor.shape.to_vec(),
                    algorithm: options.algorithm,
                    digest,
                });
        Ok(entries.collect())
    }

    fn check_files_unchanged(&self) -> Result<()> {
        let mut files = self.files().iter();
        files.try_for_each(|file| file.source.check_unchanged())
    }
}

/// What a manifest calls a file of a checkpoint.
fn listed_name(file: &ShardFile) -> Option<&str> {
    listed(file.name(), file.place())
}

/// What a manifest calls a file of this name; `None` where its real name is not UTF-8.
fn listed<'n>(name: &'n str, place: &Path) -> Option<&'n str> {
    let real = place.file_name().and_then(OsStr::to_str);
    real.map(|_| name)
}

fn no_name(path: &Path) -> Error {
    Error::new(Code::CheckpointName)
        .at_path(path)
        .found("a name that is not UTF-8, as a manifest is")
        .help("give the file another name")
}
