//! How a file of another format is opened.

/// How to open a file of another format.
///
/// ```
/// use safeshard_import::{ImportOptions, PickledCode};
///
/// let options = ImportOptions {
///     key: Some("model_state_dict".to_owned()),
///     code: PickledCode::Ignore,
///     ..ImportOptions::default()
/// };
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Under which key the tensors are that are wanted, with dots between the steps (`\.` for a dot in a
    /// key), as `model.encoder`; `.` for everything. Unless given, it is found where there is no doubt.
    pub key: Option<String>,
    /// What becomes of a pickle that would run code if Python loaded it.
    pub code: PickledCode,
    /// Whether bytes are compared with the checksums of the archive.
    pub checksums: Checksums,
    /// Bounds on what the file may make us allocate.
    pub limits: ImportLimits,
}

/// What becomes of a pickle that would run code if Python loaded it. Nothing is run in either case.
///
/// Which callables those are is a list of what no file of weights needs, such as `os.system`. It warns of
/// attacks that are known, and no such list is complete: what is not in it is not run either.
///
/// Complete: refused, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PickledCode {
    /// Refused by `pickle-code`, with the callable and its place.
    #[default]
    Refuse,
    /// Passed over, with a warning: the weights are taken.
    Ignore,
}

/// Whether bytes are compared with the checksums of the archive, which torch itself does not do.
///
/// Complete: compared, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Checksums {
    /// Before the first byte of a storage is given away, all of it is read once, and has to be right.
    #[default]
    Verify,
    /// Taken as they are.
    Skip,
}

/// Bounds that opening never exceeds, whatever a file says.
///
/// The defaults pass every file known to exist: the pickle of a model of 70 billion parameters has less
/// than a megabyte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportLimits {
    /// Length of a pickle in bytes, and of all names that are made of it; 100,000,000.
    pub pickle_bytes: u64,
    /// Values that a pickle makes, and steps on the way to its tensors; 8,000,000.
    pub values: u64,
    /// Dicts and lists inside one another, on the way to a tensor; 512.
    pub depth: u64,
    /// Tensors of one file; 2,000,000.
    pub tensors: u64,
    /// Dimensions of a tensor; 64.
    pub rank: u64,
    /// Entries of an archive; 2,000,000.
    pub zip_entries: u64,
    /// By how many bytes tensors may be larger than what they are views of, all together; 1 GiB.
    pub expansion: u64,
}

impl Default for ImportLimits {
    fn default() -> Self {
        Self {
            pickle_bytes: 100_000_000,
            values: 8_000_000,
            depth: 512,
            tensors: 2_000_000,
            rank: 64,
            zip_entries: 2_000_000,
            expansion: 1 << 30,
        }
    }
}
