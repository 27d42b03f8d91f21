//! Standard output and standard error: in colour and as wide as a terminal is, plain in a pipe, or JSON.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use safeshard_core::Printable;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;
use terminal_size::{Width, terminal_size_of};

use crate::failure::{Failure, Result};

/// What heads a column or a section.
pub(crate) const HEADING: Style = Style::new().bold();
/// What is there to be looked up only.
pub(crate) const FAINT: Style = Style::new().dimmed();
/// What is fine.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What must be put right.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// What is unusual.
pub(crate) const ODD: Style = AnsiColor::Yellow.on_default().bold();

/// Where text goes. Colours are added where they are wanted: on a terminal, and not under `NO_COLOR`.
/// Nothing is ever taken out: names and values may be anything.
pub(crate) struct Output {
    stream: Box<dyn Write>,
    is_terminal: bool,
    colour: ColorChoice,
}

impl Output {
    /// Standard output.
    pub(crate) fn new() -> Self {
        Self::to(io::stdout())
    }

    /// Standard error.
    pub(crate) fn stderr() -> Self {
        Self::to(io::stderr())
    }

    fn to(stream: impl RawStream + 'static) -> Self {
        Self {
            is_terminal: stream.is_terminal(),
            colour: AutoStream::choice(&stream),
            stream: Box::new(buffered(stream)),
        }
    }

    /// The style, or one that writes nothing where no colours are wanted.
    pub(crate) fn style(&self, style: Style) -> Style {
        match self.colour {
            ColorChoice::Never => Style::new(),
            _ => style,
        }
    }

    /// Writes text that programs want exactly: so it is written into pipes and files. On a terminal, its
    /// lines are [`Printable`].
    pub(crate) fn exactly(&mut self, text: &str) -> io::Result<()> {
        if !self.is_terminal {
            return self.write_all(text.as_bytes());
        }
        for line in text.split_inclusive('\n') {
            let words = line.strip_suffix('\n');
            write!(self, "{}", Printable::of(words.unwrap_or(line)))?;
            if words.is_some() {
                writeln!(self)?;
            }
        }
        Ok(())
    }

    /// Writes what is still held back.
    pub(crate) fn finish(mut self) -> Result<()> {
        Ok(self.stream.flush()?)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Standard output by itself writes each line.
fn buffered<W: Write>(stream: W) -> BufWriter<W> {
    /// Bytes that are written at once.
    const BUFFER: usize = 64 << 10;
    let there_is_room = Vec::<u8>::new().try_reserve_exact(BUFFER).is_ok();
    // What little memory there is, messages can do without.
    BufWriter::with_capacity(if there_is_room { BUFFER } else { 0 }, stream)
}

/// Columns of the terminal; `None` where there is no terminal, and lines may be as long as they are.
pub(crate) fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    // A terminal that does not know its size says 0.
    let width = terminal_size_of(stdout).map(|(Width(width), _)| usize::from(width));
    Some(width.filter(|&width| width > 0).unwrap_or(80))
}

/// Refuses paths that JSON cannot have exactly; all other names are UTF-8.
pub(crate) fn check_json_paths<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Result<()> {
    let mut paths = paths.into_iter();
    match paths.find(|path| path.to_str().is_none()) {
        None => Ok(()),
        Some(path) => Err(Failure::Usage(format!(
            "{}: JSON is UTF-8, and this path is not; give it another name, or leave out --json",
            Printable::of(path)
        ))),
    }
}

/// Writes a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let mut stream = buffered(io::stdout().lock());
    let mut serializer = Serializer::with_formatter(&mut stream, Printing);
    value.serialize(&mut serializer).map_err(io::Error::from)?;
    stream.write_all(b"\n")?;
    Ok(stream.flush()?)
}

/// Short JSON, in which what a terminal would obey is written as `\u001b`: to programs the same string.
struct Printing;

impl Formatter for Printing {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for part in fragment.split_inclusive(Printable::escapes) {
            let shown = part.trim_end_matches(Printable::escapes);
            out.write_all(shown.as_bytes())?;
            for unit in part.encode_utf16().skip(shown.encode_utf16().count()) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}
