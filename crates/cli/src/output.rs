//! Standard output: in colour and as wide as a terminal is, plain in a pipe, or JSON.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use anstream::adapter::StripBytes;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use terminal_size::{Width, terminal_size_of};

use crate::failure::Result;

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

/// Text for a person. Colours are written always, and taken out where they are not wanted: in a pipe,
/// and under `NO_COLOR`.
pub(crate) struct Output {
    stream: BufWriter<Stdout>,
    strip: Option<StripBytes>,
}

/// Bytes that are written at once: standard output by itself writes each line.
const BUFFER: usize = 64 << 10;

impl Output {
    /// Standard output.
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let plain = AutoStream::choice(&stdout) == ColorChoice::Never;
        Self {
            stream: BufWriter::with_capacity(BUFFER, stdout),
            strip: plain.then(StripBytes::new),
        }
    }

    /// Writes what is still held back.
    pub(crate) fn finish(mut self) -> Result<()> {
        Ok(self.stream.flush()?)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(strip) = &mut self.strip else {
            return self.stream.write(bytes);
        };
        for plain in strip.strip_next(bytes) {
            self.stream.write_all(plain)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
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

/// Writes a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let mut stream = BufWriter::new(io::stdout().lock());
    serde_json::to_writer(&mut stream, value).map_err(io::Error::from)?;
    stream.write_all(b"\n")?;
    Ok(stream.flush()?)
}
