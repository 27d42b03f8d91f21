//! A manifest: digests and what they are of, in lines that `sha256sum --check` reads too.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::{Algorithm, Digest};
use crate::checkpoint::commit::locked_folder::{Contents, LockedFolder, Target, folder_of};
use crate::error::{Code, Error, Kind, Result};
use crate::format::dtype::Dtype;
use crate::io::engine::ReadOptions;
use crate::io::rights::Rights;
use crate::io::source::{FileSource, ReadAt, read_vec};
use crate::io::workers::Cancel;
use crate::limits::Limits;

/// No line that vouches for something is shorter: 64 digits, two spaces, a name.
const SHORTEST_LINE: usize = 67;

/// Where the line of a tensor begins; a comment to `sha256sum`.
const TENSOR: &str = "# tensor ";

/// Digests, and what they are of.
///
/// A file is a line as `sha256sum` and `b3sum` write it: the digits, two spaces, the name. A tensor is
/// a line behind `#`: `# tensor sha256 DIGITS F32 [2,3] "name"`. Other lines behind `#` say nothing.
/// So manifests can be joined by joining their lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    pub(super) entries: Vec<ManifestEntry>,
}

/// A digest, and what it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ManifestEntry {
    /// A whole file.
    File {
        /// Its name, from the checkpoint's folder.
        name: String,
        /// Which digest, where the line says; one that only has digits is told by trying.
        algorithm: Option<Algorithm>,
        /// The digest.
        digest: Digest,
    },
    /// The bytes of a tensor.
    Tensor {
        /// Its name.
        name: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Which digest.
        algorithm: Algorithm,
        /// The digest.
        digest: Digest,
    },
}

impl Manifest {
    /// Reads a manifest from a file.
    ///
    /// # Errors
    /// Those of opening a file; `manifest-syntax` with the line; `limit-index` where it is larger than
    /// an index may be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = FileSource::open(path)?;
        let limit = Limits::default().index_bytes;
        if file.len() > limit {
            let error = Error::new(Code::LimitIndex).at_path(path);
            return Err(error
                .expected(format_args!("at most {limit} bytes"))
                .found(file.len()));
        }
        let bytes = read_vec(&file, 0, file.len())?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let offset = error.utf8_error().valid_up_to() as u64;
            let error = Error::new(Code::ManifestSyntax).at_path(path);
            error.at_offset(offset).found("bytes that are not UTF-8")
        })?;
        text.parse().map_err(|error: Error| error.at_path(path))
    }

    /// Writes it to a file, which takes the place of another manifest when it is on the disk.
    ///
    /// # Errors
    /// `not-a-manifest` where something else is there, such as a model; `checkpoint-name` for a name that
    /// is not UTF-8; `io`, `cancelled`; `not-a-regular-file`; `broken-journal` where a save that died in
    /// the folder left something that cannot be understood.
    pub fn write_file(&self, path: impl AsRef<Path>, cancel: Option<&Cancel>) -> Result<()> {
        let path = path.as_ref();
        let locked = LockedFolder::open(folder_of(path), cancel)?;
        let target = Target::at(path)?;
        if let Rights::Kept(_) = target.rights {
            Self::open(path).map_err(|error| match error.kind() {
                Kind::Io => error,
                _ => Error::new(Code::NotAManifest).at_path(path),
            })?;
        }
        let text = self.to_string();
        let contents = Contents::Bytes(text.as_bytes());
        locked.replace_file(target, contents, &ReadOptions::default())
    }

    /// What it vouches for, in its order.
    pub fn entries(&self) -> &[ManifestEntry] {
        &self.entries
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries
            .iter()
            .try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

impl fmt::Display for ManifestEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, digest, .. } => {
                let escaped = escaped(name);
                let mark = if escaped == *name { "" } else { "\\" };
                write!(f, "{mark}{digest}  {escaped}")
            }
            Self::Tensor {
                name,
                dtype,
                shape,
                algorithm,
                digest,
            } => {
                let (shape, name) = (serde_json::json!(shape), serde_json::json!(name));
                write!(f, "{TENSOR}{algorithm} {digest} {dtype} {shape} {name}")
            }
        }
    }
}

impl FromStr for Manifest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Growing would take three times the memory at the worst moment.
        let mut entries = Vec::with_capacity(text.lines().count().min(text.len() / SHORTEST_LINE));
        for (number, line) in text.lines().enumerate() {
            let entry = entry(line).map_err(|wrong| {
                let found = format!("line {}: {:?}", number + 1, shortened(line));
                wrong.found(found)
            });
            entries.extend(entry?);
        }
        Ok(Self { entries })
    }
}

fn entry(line: &str) -> Result<Option<ManifestEntry>> {
    let wrong = || Error::new(Code::ManifestSyntax);
    if let Some(tensor) = line.strip_prefix(TENSOR) {
        return tensor_entry(tensor).map(Some);
    }
    if line.trim().is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    for (algorithm, tag) in [
        (Algorithm::Sha256, "SHA256 ("),
        (Algorithm::Blake3, "BLAKE3 ("),
    ] {
        if let Some(rest) = line.strip_prefix(tag) {
            let (name, digits) = rest.rsplit_once(") = ").ok_or_else(wrong)?;
            return Ok(Some(ManifestEntry::File {
                name: name.to_owned(),
                algorithm: Some(algorithm),
                digest: digits.parse()?,
            }));
        }
    }
    let (is_escaped, line) = match line.strip_prefix('\\') {
        Some(line) => (true, line),
        None => (false, line),
    };
    let (digits, name) = line.split_once(' ').ok_or_else(wrong)?;
    // What `sha256sum` read as text, or as binary: no difference here.
    let name = name.strip_prefix([' ', '*']).ok_or_else(wrong)?;
    Ok(Some(ManifestEntry::File {
        name: match is_escaped {
            true => unescaped(name).ok_or_else(wrong)?,
            false => name.to_owned(),
        },
        algorithm: None,
        digest: digits.parse()?,
    }))
}

fn tensor_entry(line: &str) -> Result<ManifestEntry> {
    let wrong = || Error::new(Code::ManifestSyntax).expected("the line of a tensor");
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().ok_or_else(wrong);
    let algorithm = match word()? {
        "sha256" => Algorithm::Sha256,
        "blake3" => Algorithm::Blake3,
        _ => return Err(wrong()),
    };
    let digest = word()?.parse()?;
    let dtype = Dtype::from_name(word()?).ok_or_else(wrong)?;
    let rest = word()?;
    let (shape, name) = rest.split_once("] ").ok_or_else(wrong)?;
    let shape = serde_json::from_str::<Vec<u64>>(&format!("{shape}]"));
    let name = serde_json::from_str::<String>(name);
    let (Ok(shape), Ok(name)) = (shape, name) else {
        return Err(wrong());
    };
    Ok(ManifestEntry::Tensor {
        name,
        dtype,
        shape,
        algorithm,
        digest,
    })
}

/// A name in one line, as `sha256sum` writes it.
fn escaped(name: &str) -> String {
    let name = name.replace('\\', "\\\\");
    name.replace('\n', "\\n").replace('\r', "\\r")
}

fn unescaped(name: &str) -> Option<String> {
    let mut plain = String::with_capacity(name.len());
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                '\\' => '\\',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}

fn shortened(line: &str) -> &str {
    let end = line.char_indices().nth(80).map(|(at, _)| at);
    end.and_then(|end| line.get(..end)).unwrap_or(line)
}
