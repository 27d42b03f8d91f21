//! Names what a file is when it is no safetensors file.

/// What the first bytes of a file say it is, and what to do; `None` if nothing is recognised.
///
/// 16 bytes are enough for all but HTML, which may begin with a comment or white space.
pub(crate) fn foreign_format(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let text = start.trim_ascii_start().to_ascii_lowercase();
    let is_html = [b"<!doctype".as_slice(), b"<html", b"<?xml", b"<!--"]
        .iter()
        .any(|mark| text.starts_with(mark));
    match start {
        _ if start.starts_with(b"version https://git-lfs") => Some((
            "a git-lfs pointer",
            "the real file was not fetched: run `git lfs pull`",
        )),
        _ if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") => Some((
            "a zip archive (a PyTorch .pt or .bin file, or .npz)",
            "convert it to safetensors first",
        )),
        _ if start.starts_with(b"GGUF") => Some(("a GGUF file", "convert it to safetensors first")),
        _ if start.starts_with(b"\x93NUMPY") => {
            Some(("a .npy file", "convert it to safetensors first"))
        }
        _ if start.starts_with(b"\x89HDF\r\n") => {
            Some(("an HDF5 file", "convert it to safetensors first"))
        }
        _ if start.starts_with(b"\x1f\x8b") => Some(("a gzip archive", "unpack it first")),
        [0x80, 2..=5, ..] => Some((
            "a Python pickle",
            "a pickle can run code: convert it where it is trusted",
        )),
        _ if is_html => Some(("a web page", "the download failed: fetch the file again")),
        _ if text.starts_with(b"{\"error") => Some((
            "an error message of a server",
            "the download failed: fetch the file again",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_not_taken_for_something_else() {
        // The length of a header is little-endian, so its first bytes can be any.
        assert_eq!(foreign_format(b"\x40\0\0\0\0\0\0\0{\"a\":{"), None);
    }

    #[test]
    fn web_pages_may_begin_with_white_space() {
        assert!(foreign_format(b"\r\n <!DOCTYPE html>").is_some());
    }
}
