//! Names and values as people can be shown them: nothing in them moves, hides, recolours or reorders
//! what a terminal shows beside them.

use std::ffi::OsStr;
use std::fmt;

/// Text from outside (a name, a value, a path), to be shown to a person. It stays in its line, and what
/// would be obeyed or not be seen is written as an escape: controls as `\n` or `\u{1b}`, bytes that are
/// not UTF-8 as `\xff`. All else is shown as it is.
///
/// Not for programs and files, which want names exactly: several names may look the same.
///
/// ```
/// use safeshard_core::Printable;
///
/// let name = "layer\u{1b}[31m\n";
/// assert_eq!(Printable::of(name).to_string(), r"layer\u{1b}[31m\n");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Printable<'t>(&'t [u8]);

impl<'t> Printable<'t> {
    /// Text or a path.
    pub fn of(text: &'t (impl AsRef<OsStr> + ?Sized)) -> Self {
        Self(text.as_ref().as_encoded_bytes())
    }

    /// Whether a character is written as an escape.
    pub fn escapes(c: char) -> bool {
        let c = u32::from(c);
        // Mostly it is a letter, a digit or a dot.
        if matches!(c, 0x20..0x7F) {
            return false;
        }
        let next = ESCAPED.partition_point(|&(_, last)| last < c);
        let in_table = ESCAPED.get(next).is_some_and(|&(first, _)| first <= c);
        // The last two of every plane are no characters.
        in_table || c & 0xFFFE == 0xFFFE
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for part in chunk.valid().split_inclusive(Self::escapes) {
                let shown = part.trim_end_matches(Self::escapes);
                f.write_str(shown)?;
                for c in part.chars().skip(shown.chars().count()) {
                    write!(f, "{}", c.escape_default())?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// What is obeyed or not seen, by Unicode 17.0: `General_Category` Cc, Cf, Zl and Zp, spaces (Zs) other
/// than the usual one, `Default_Ignorable_Code_Point`, `Bidi_Control`, and the noncharacters of the first
/// plane; all of these in `UnicodeData.txt`, `DerivedCoreProperties.txt` and `PropList.txt`. Also the
/// empty pattern of Braille.
const ESCAPED: [(u32, u32); 31] = [
    (0x0000, 0x001F),
    (0x007F, 0x00A0),
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x0600, 0x0605),
    (0x061C, 0x061C),
    (0x06DD, 0x06DD),
    (0x070F, 0x070F),
    (0x0890, 0x0891),
    (0x08E2, 0x08E2),
    (0x115F, 0x1160),
    (0x1680, 0x1680),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2000, 0x200F),
    (0x2028, 0x202F),
    (0x205F, 0x206F),
    (0x2800, 0x2800),
    (0x3000, 0x3000),
    (0x3164, 0x3164),
    (0xFDD0, 0xFDEF),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB),
    (0x1_10BD, 0x1_10BD),
    (0x1_10CD, 0x1_10CD),
    (0x1_3430, 0x1_343F),
    (0x1_BCA0, 0x1_BCA3),
    (0x1_D173, 0x1_D17A),
    (0xE_0000, 0xE_0FFF),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_is_shown_as_it_is() {
        for text in [
            "",
            "layer.0.weight",
            "a b",
            "日本",
            "e\u{301}",
            "🦀",
            r"a\n",
        ] {
            assert_eq!(Printable::of(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_obeyed_or_not_seen_is_escaped() {
        for (text, shown) in [
            ("\u{1b}[31m\r\n\t", r"\u{1b}[31m\r\n\t"),
            ("a\u{202e}b\u{2028}", r"a\u{202e}b\u{2028}"),
            (
                "\u{3164}\u{e0041}x\u{7f}\u{9b}",
                r"\u{3164}\u{e0041}x\u{7f}\u{9b}",
            ),
        ] {
            assert_eq!(Printable::of(text).to_string(), shown);
        }
    }

    #[test]
    #[cfg(unix)]
    fn bytes_that_are_not_utf8_are_told_apart() {
        use std::os::unix::ffi::OsStrExt;
        let name = OsStr::from_bytes(b"a\xffb\xe2\x80\n\xef\xbf\xbd");
        assert_eq!(
            Printable::of(name).to_string(),
            "a\\xffb\\xe2\\x80\\n\u{fffd}"
        );
    }
}
