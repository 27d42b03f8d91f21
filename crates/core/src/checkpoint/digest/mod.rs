//! Digests: what a checkpoint's bytes are, in 64 digits a file or a tensor, and whether they still are.

mod hash;
mod manifest;
mod verify;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::{Checkpoint, ShardFile};
use crate::io::scan::Span;
use crate::io::source::{FileSource, ReadAt};
use crate::{Code, Error, ReadOptions, Result, TensorInfo};

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
    /// Those of reading; `file-changed`, `cancelled`.
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
        let index = self.index().map(|index| FileSource::open(index.path()));
        let index = index.transpose()?;
        let shards = self.files().iter();
        let mut files: Vec<_> = shards
            .map(|file| (file.name().to_owned(), whole(file)))
            .collect();
        files.extend(index.as_ref().map(|index| {
            let name = index.path().file_name().unwrap_or_default();
            let span = whole_source(index, index.path());
            (name.to_string_lossy().into_owned(), span)
        }));
        let spans: Vec<_> = files.iter().map(|(_, span)| *span).collect();
        let digests = hash::each(&spans, options.algorithm, &options.read)?;
        self.check_files_unchanged()?;
        let entries = files.into_iter().zip(digests).map(|((name, _), digest)| {
            let algorithm = Some(options.algorithm);
            ManifestEntry::File {
                name,
                algorithm,
                digest,
            }
        });
        Ok(entries.collect())
    }

    fn digest_tensors(&self, options: &DigestOptions) -> Result<Vec<ManifestEntry>> {
        let tensors = self.tensors();
        let tensors = tensors.filter_map(|tensor| Some((tensor, self.span_of(&tensor)?)));
        let tensors: Vec<_> = tensors.collect();
        let spans: Vec<_> = tensors.iter().map(|(_, span)| *span).collect();
        let digests = hash::each(&spans, options.algorithm, &options.read)?;
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

    fn span_of(&self, tensor: &TensorInfo<'_>) -> Option<Span<'_>> {
        let file = self.file_of(tensor.name)?;
        Some(Span {
            source: &*file.source,
            path: file.place(),
            start: file.header.data_start() + tensor.start,
            len: tensor.byte_len(),
        })
    }

    fn check_files_unchanged(&self) -> Result<()> {
        let mut files = self.files().iter();
        files.try_for_each(|file| file.source.check_unchanged())
    }
}

fn whole(file: &ShardFile) -> Span<'_> {
    whole_source(&*file.source, file.place())
}

fn whole_source<'s>(source: &'s dyn ReadAt, path: &'s Path) -> Span<'s> {
    Span {
        source,
        path,
        start: 0,
        len: source.len(),
    }
}
