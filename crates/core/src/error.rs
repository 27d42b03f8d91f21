//! One error type for everything, and the stable codes behind it.
//!
//! [`Error`] is one pointer wide. It says where (path, tensor, byte), what was expected, what was
//! found and what to do; [`Code`] names the rule for programs, [`Kind`] says who is at fault.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Printable;

mod code;

pub use code::{Code, Kind};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what to do about it.
///
/// ```
/// use safeshard_core::{Code, Header, HeaderOptions, Kind};
///
/// let error = Header::parse(b"PK\x03\x04 a zip file", None, &HeaderOptions::default()).unwrap_err();
/// assert_eq!(error.code(), Code::NotSafetensors);
/// assert_eq!(error.kind(), Kind::Format);
/// assert!(error.to_string().contains("zip"));
/// ```
#[derive(Clone)]
pub struct Error(Box<Repr>);

#[derive(Clone)]
struct Repr {
    code: Code,
    path: Option<PathBuf>,
    tensor: Option<String>,
    offset: Option<u64>,
    expected: Option<String>,
    found: Option<String>,
    help: Option<Cow<'static, str>>,
    io: Option<Arc<io::Error>>,
    problems: Vec<Error>,
}

impl Error {
    /// An error with a code and nothing else yet; the methods below add the details.
    pub fn new(code: Code) -> Self {
        Self(Box::new(Repr {
            code,
            path: None,
            tensor: None,
            offset: None,
            expected: None,
            found: None,
            help: None,
            io: None,
            problems: Vec::new(),
        }))
    }

    /// A failed call to the operating system.
    pub fn io(code: Code, source: io::Error) -> Self {
        let mut error = Self::new(code);
        error.0.io = Some(Arc::new(source));
        error
    }

    /// Several problems as one error; a single problem stays itself.
    pub fn all(mut problems: Vec<Self>) -> Self {
        match problems.pop() {
            Some(only) if problems.is_empty() => only,
            last => {
                problems.extend(last);
                let mut error = Self::new(Code::SeveralProblems);
                error.0.problems = problems;
                error
            }
        }
    }

    /// The same place and finding under a more telling code.
    #[must_use]
    pub(crate) fn recode(mut self, code: Code) -> Self {
        self.0.code = code;
        self
    }

    /// Names the file or folder, unless an inner layer already did.
    #[must_use]
    pub fn at_path(mut self, path: impl AsRef<Path>) -> Self {
        self.0
            .path
            .get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Names the tensor, unless an inner layer already did.
    #[must_use]
    pub fn in_tensor(mut self, name: impl Into<String>) -> Self {
        self.0.tensor.get_or_insert_with(|| name.into());
        self
    }

    /// Says at which byte of the file, unless an inner layer already did.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Says what should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// Says what was there instead.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    /// Replaces the code's general advice with one that fits this case.
    #[must_use]
    pub fn help(mut self, help: impl Into<Cow<'static, str>>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// The stable name of the rule that was broken.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Who is at fault: the machine, the file, the checkpoint, the caller, or a limit.
    pub fn kind(&self) -> Kind {
        self.0.code.kind()
    }

    /// The file or folder concerned.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The tensor concerned.
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The byte of the file at which the problem shows.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// What should have been there, in words.
    pub fn expectation(&self) -> Option<&str> {
        self.0.expected.as_deref()
    }

    /// What was there instead, in words.
    pub fn finding(&self) -> Option<&str> {
        self.0.found.as_deref()
    }

    /// The operating system's error behind this one.
    pub fn io_error(&self) -> Option<&io::Error> {
        self.0.io.as_deref()
    }

    /// What to do, in words; may be empty.
    pub fn advice(&self) -> &str {
        self.0.help.as_deref().unwrap_or(self.0.code.advice())
    }

    /// The single problems, or the error itself where it is the only one.
    pub(crate) fn into_problems(mut self) -> Vec<Self> {
        match self.0.problems.is_empty() {
            true => vec![self],
            false => std::mem::take(&mut self.0.problems),
        }
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.io_error()
            .is_some_and(|error| error.kind() == io::ErrorKind::Interrupted)
    }

    /// The single problems of an error that carries several; empty otherwise.
    pub fn problems(&self) -> &[Self] {
        &self.0.problems
    }

    /// The message with its [advice](Error::advice), and that of each of its problems, in other words: for
    /// programs whose users do not write Rust.
    ///
    /// ```
    /// use safeshard_core::{Code, Error};
    ///
    /// let error = Error::new(Code::LimitRank).found(65);
    /// let message = error.worded(|advice| advice.replace("`Limits::rank`", "--limit rank").into());
    /// assert!(message.to_string().ends_with("raise --limit rank if the file is trusted"));
    /// ```
    pub fn worded<'e>(
        &'e self,
        words: impl Fn(&'e str) -> Cow<'e, str> + 'e,
    ) -> impl fmt::Display + 'e {
        Worded { error: self, words }
    }

    fn write<'e>(
        &'e self,
        f: &mut fmt::Formatter<'_>,
        words: &dyn Fn(&'e str) -> Cow<'e, str>,
    ) -> fmt::Result {
        let repr = &*self.0;
        if let Some(path) = &repr.path {
            write!(f, "{}: ", Printable::of(path))?;
        }
        match (repr.tensor.as_deref().map(Printable::of), repr.offset) {
            (Some(tensor), Some(offset)) => write!(f, "tensor `{tensor}`, byte {offset}: ")?,
            (Some(tensor), None) => write!(f, "tensor `{tensor}`: ")?,
            (None, Some(offset)) => write!(f, "byte {offset}: ")?,
            (None, None) => {}
        }
        f.write_str(repr.code.title())?;
        let said = [&repr.expected, &repr.found];
        match said.map(|said| said.as_deref().map(Printable::of)) {
            [Some(expected), Some(found)] => write!(f, ": expected {expected}, found {found}")?,
            [Some(expected), None] => write!(f, ": expected {expected}")?,
            [None, Some(found)] => write!(f, ": {found}")?,
            [None, None] => {}
        }
        if let Some(io) = &repr.io {
            write!(f, ": {}", Printable::of(&io.to_string()))?;
        }
        if !self.advice().is_empty() {
            write!(f, "; {}", Printable::of(&*words(self.advice())))?;
        }
        if !repr.problems.is_empty() {
            write!(f, ": {} in all", repr.problems.len())?;
        }
        for problem in repr.problems.iter().take(SHOWN_PROBLEMS) {
            f.write_str("\n  - ")?;
            problem.write(f, words)?;
        }
        if repr.problems.len() > SHOWN_PROBLEMS {
            write!(f, "\n  - and {} more", repr.problems.len() - SHOWN_PROBLEMS)?;
        }
        Ok(())
    }
}

/// An error with its advice in other words.
struct Worded<'e, W> {
    error: &'e Error,
    words: W,
}

impl<'e, W: Fn(&'e str) -> Cow<'e, str>> fmt::Display for Worded<'e, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.write(f, &self.words)
    }
}

/// For people: what comes from outside is [`Printable`], and only several problems make several lines.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &Cow::from)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.0.code.as_str())
    }
}

/// The message has the words of the system's error already, where they belong in the sentence. So whoever
/// prints the message needs no chain of causes; the chain is for programs that look for an [`io::Error`].
impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.io_error().map(|io| io as _)
    }
}

/// How many problems of a broken checkpoint the message spells out; [`Error::problems`] has all.
const SHOWN_PROBLEMS: usize = 20;

/// How much a [`Finding`] matters.
///
/// Complete: a finding stops whoever wants the checkpoint, or it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The checkpoint must not be used.
    Error,
    /// The checkpoint works; something about it is unusual.
    Warning,
}

/// Something noticed about a checkpoint, with the same codes as errors.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What and where.
    pub problem: Error,
}

impl Finding {
    /// A reason not to use the checkpoint.
    pub fn error(problem: Error) -> Self {
        Self {
            severity: Severity::Error,
            problem,
        }
    }

    /// A remark that stops nothing.
    pub fn warning(problem: Error) -> Self {
        Self {
            severity: Severity::Warning,
            problem,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}", self.problem)
    }
}

#[cfg(test)]
mod tests;
