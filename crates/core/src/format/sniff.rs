//! Names what a file is when it is no safetensors file.

use std::borrow::Cow;

use crate::error::{Code, Error};

/// How many bytes are worth looking at.
pub(super) const WANTED: usize = 512;

/// What a file is, and what to do about it.
pub(crate) struct Foreign {
    what: Cow<'static, str>,
    help: &'static str,
}

impl Foreign {
    /// What the first bytes of a file say it is, if they say anything.
    ///
    /// 16 bytes are enough for most. Text needs more to be told from chance, and tar archives 262.
    pub(crate) fn of(start: &[u8]) -> Option<Self> {
        let start = start.get(..WANTED).unwrap_or(start);
        let known = SIGNATURES.iter().find(|it| it.begins(start));
        let known = known.map(|it| Self::new(it.what, it.help));
        known
            .or_else(|| structured(start))
            .or_else(|| answer(start))
            .or_else(|| text(start))
    }

    /// What a file is that cannot have a header of the length that its first 8 bytes give.
    pub(crate) fn without_header(start: &[u8], header_len: u64, file_len: u64) -> Self {
        let is_json = matches!(start.trim_ascii_start(), [b'{' | b'[', ..]);
        Self::of(start).unwrap_or_else(|| match is_json {
            true => Self::new(
                "JSON",
                "it may be a configuration, or an index that has another name: pass the weights",
            ),
            false => Self::new(
                format!(
                    "of no kind that is known here; read as a header's length, its first 8 bytes say \
                     {header_len}, and the file has {file_len} bytes"
                ),
                FETCH,
            ),
        })
    }

    pub(crate) fn error(self) -> Error {
        Error::new(Code::NotSafetensors)
            .found(self.what)
            .help(self.help)
    }

    fn new(what: impl Into<Cow<'static, str>>, help: &'static str) -> Self {
        let what = what.into();
        Self { what, help }
    }
}

/// Bytes at a place, which only one kind of file has there.
struct Signature {
    at: usize,
    bytes: &'static [u8],
    what: &'static str,
    help: &'static str,
}

impl Signature {
    fn begins(&self, start: &[u8]) -> bool {
        start
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(self.bytes))
    }
}

const fn signature(bytes: &'static [u8], what: &'static str, help: &'static str) -> Signature {
    Signature {
        at: 0,
        bytes,
        what,
        help,
    }
}

const CONVERT: &str = "convert it to safetensors first";
const EXPORTED: &str =
    "it holds a program, not a checkpoint: take the weights that it was exported from";
const FETCH: &str = "fetch the file again";
const FAILED: &str = "the download failed: fetch the file again";
const NOT_WEIGHTS: &str = "pass the file with the weights";
const TRUSTED: &str = "a pickle can run code: convert it where it is trusted";
const UNPACK: &str = "unpack it first";

const SIGNATURES: &[Signature] = &[
    signature(
        b"version https://git-lfs",
        "a git-lfs pointer",
        "the real file was not fetched: run `git lfs pull`",
    ),
    signature(
        b"PK\x03\x04",
        "a zip archive (PyTorch's .pt and .bin files, .npz and .keras are such)",
        CONVERT,
    ),
    signature(b"PK\x05\x06", "a zip archive without files", FETCH),
    signature(b"GGUF", "a GGUF file", CONVERT),
    signature(b"FUGG", "a GGUF file of the other byte order", CONVERT),
    signature(b"lmgg", "a GGML file", CONVERT),
    signature(b"fmgg", "a GGML file", CONVERT),
    signature(b"tjgg", "a GGML file", CONVERT),
    signature(b"\x93NUMPY", "a .npy file", CONVERT),
    signature(
        b"\x89HDF\r\n",
        "an HDF5 file (older Keras weights are such)",
        CONVERT,
    ),
    signature(b"ARROW1", "an Arrow file", NOT_WEIGHTS),
    signature(b"PAR1", "a Parquet file", NOT_WEIGHTS),
    signature(b"SQLite format 3", "an SQLite database", NOT_WEIGHTS),
    signature(b"%PDF", "a PDF document", NOT_WEIGHTS),
    signature(b"\x89PNG", "a PNG image", NOT_WEIGHTS),
    signature(b"\xFF\xD8\xFF", "a JPEG image", NOT_WEIGHTS),
    signature(b"\x7FELF", "a program or library (ELF)", NOT_WEIGHTS),
    signature(b"MZ\x90\0", "a program or library (Windows)", NOT_WEIGHTS),
    signature(
        b"\xCF\xFA\xED\xFE",
        "a program or library (Mach-O)",
        NOT_WEIGHTS,
    ),
    signature(
        b"\0\x05\x16\x07",
        "the notes that macOS puts beside a file (AppleDouble)",
        "take the file of the same name without `._`",
    ),
    signature(
        b"\0\x05\x16\0",
        "a file with its notes from macOS (AppleSingle)",
        UNPACK,
    ),
    signature(b"\x1F\x8B", "a gzip archive", UNPACK),
    signature(b"\x28\xB5\x2F\xFD", "a zstd archive", UNPACK),
    signature(b"\xFD7zXZ\0", "an xz archive", UNPACK),
    signature(b"BZh", "a bzip2 archive", UNPACK),
    signature(b"\x04\x22\x4D\x18", "an lz4 archive", UNPACK),
    signature(b"7z\xBC\xAF\x27\x1C", "a 7z archive", UNPACK),
    signature(b"Rar!\x1A\x07", "a rar archive", UNPACK),
    Signature {
        at: 257,
        bytes: b"ustar",
        what: "a tar archive (PyTorch's oldest files are such)",
        help: "unpack it, or convert it to safetensors first",
    },
    Signature {
        at: 4,
        bytes: b"TFL3",
        what: "a TensorFlow Lite model",
        help: EXPORTED,
    },
];

/// Formats that have no signature of their own, by how they are built.
fn structured(start: &[u8]) -> Option<Foreign> {
    /// So many zeros are no chance.
    const ZEROS: usize = 16;
    match start {
        _ if start.len() >= ZEROS && start.iter().all(|&byte| byte == 0) => Some(Foreign::new(
            "nothing but zeros",
            "room was made for the file and never filled: fetch it again",
        )),
        [0x80, 2..=5, ..] => Some(Foreign::new("a Python pickle", TRUSTED)),
        // Protobuf: the version of its format, then who made it (`producer_name`) or the graph.
        [8, 1..=32, 0x12, ..] | [8, 1..=32, 0x3A, ..] => {
            Some(Foreign::new("an ONNX or Core ML model", EXPORTED))
        }
        // MessagePack: a map of few entries, of which the first has a text as its key.
        [0x81..=0x8F, 0xA1..=0xBF, letter, ..] if letter.is_ascii_alphabetic() => Some(
            Foreign::new("MessagePack (Flax keeps its weights so)", CONVERT),
        ),
        _ => None,
    }
}

/// What servers say instead of sending a file.
fn answer(start: &[u8]) -> Option<Foreign> {
    const PAGES: &[&[u8]] = &[
        b"<!doctype",
        b"<html",
        b"<head",
        b"<?xml",
        b"<!--",
        b"<error",
    ];
    const ERRORS: &[&[u8]] = &[
        b"{\"error",
        b"{\"message",
        b"{\"detail",
        b"{\"code",
        b"{\"status",
    ];
    let text = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start);
    let text = text.trim_ascii_start().to_ascii_lowercase();
    let begins = |marks: &[&[u8]]| marks.iter().any(|mark| text.starts_with(mark));
    match () {
        () if begins(PAGES) => Some(Foreign::new("a web page", FAILED)),
        () if begins(ERRORS) => Some(Foreign::new("an error message of a server", FAILED)),
        () => None,
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Text of any other kind, with its beginning; JSON is left to whoever expects it.
fn text(start: &[u8]) -> Option<Foreign> {
    /// Fewer bytes look like text by chance.
    const FEWEST: usize = 5;
    /// Characters that are shown.
    const SHOWN: usize = 60;
    if start.starts_with(b"\xFF\xFE") || start.starts_with(b"\xFE\xFF") {
        return Some(Foreign::new("text in UTF-16", FETCH));
    }
    let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start);
    let text = match str::from_utf8(start) {
        Ok(text) => text,
        // Cut inside of its last character.
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(start.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    let is_text = |char: char| !char.is_control() || matches!(char, '\t' | '\n' | '\r');
    let text = text.trim();
    if text.len() < FEWEST || !text.chars().all(is_text) || text.starts_with(['{', '[']) {
        return None;
    }
    let line = text.lines().next().unwrap_or_default();
    let shown: String = line.chars().take(SHOWN).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    Some(Foreign::new(
        format!("text, `{shown}{more}`"),
        "a download that failed leaves such a file: fetch it again",
    ))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::short(b"\x08\0\0\0\0\0\0\0{}      ")]
    #[case::usual(b"\x40\0\0\0\0\0\0\0{\"a\":{")]
    #[case::long(b"\x12\x34\x01\0\0\0\0\0{\"__metadata__\":{")]
    fn a_header_is_not_taken_for_something_else(#[case] start: &[u8]) {
        assert!(Foreign::of(start).is_none());
    }

    #[rstest]
    #[case("Entry not found", "text, `Entry not found`")]
    #[case("\u{FEFF}404: Not Found\r\nmore", "text, `404: Not Found…`")]
    #[case("Zugriff verweigert: größer", "text, `Zugriff verweigert: größer`")]
    #[case("\r\n <!DOCTYPE html>", "a web page")]
    #[case("\u{FEFF}<HTML>", "a web page")]
    #[case("{\"detail\":\"gated\"}", "an error message of a server")]
    fn text_is_named(#[case] start: &str, #[case] what: &str) {
        assert_eq!(Foreign::of(start.as_bytes()).unwrap().what, what);
        // Also where it is cut off anywhere: it is text, or too little to say.
        for end in 0..start.len() {
            let cut = Foreign::of(&start.as_bytes()[..end]);
            assert!(cut.is_none_or(|cut| !cut.what.contains("pickle")));
        }
    }
}
