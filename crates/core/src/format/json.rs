//! A pull reader for the little JSON that headers and indexes are made of.
//!
//! It walks the text once, never recurses and allocates only for strings with escapes. The grammar
//! is RFC 8259's, to the letter: what `serde_json` refuses is refused here, at the same byte.

use std::borrow::Cow;

use crate::error::{Code, Error, Result};

/// A position in a JSON text.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    /// Where the text begins in its file, so that errors name bytes of the file.
    base: u64,
    syntax: Code,
}

impl<'a> Cursor<'a> {
    /// Reads `text`, which begins at byte `base` of its file; `syntax` is the code for bad JSON.
    pub(crate) fn new(text: &'a str, base: u64, syntax: Code) -> Self {
        Self {
            text,
            at: 0,
            base,
            syntax,
        }
    }

    /// The byte of the file that comes next.
    pub(crate) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Where in the text the next byte is.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The text from `start` to here.
    pub(crate) fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// The text from here to the end.
    pub(crate) fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The bytes from here to the end that are in no string, opening quotes included; unchecked.
    pub(crate) fn outside_strings(&self) -> impl Iterator<Item = u8> {
        let mut cursor = self.clone();
        std::iter::from_fn(move || {
            let byte = cursor.byte()?;
            cursor.at += 1;
            if byte == b'"' {
                cursor.skip_string();
            }
            Some(byte)
        })
    }

    /// The next byte, white space skipped.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(self.at) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Takes `byte` if it comes next, white space skipped.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let taken = self.peek() == Some(byte);
        self.at += usize::from(taken);
        taken
    }

    /// Takes `byte`, which must come next.
    pub(crate) fn expect(&mut self, byte: u8) -> Result<()> {
        if self.take(byte) {
            return Ok(());
        }
        Err(self.unexpected(format_args!("`{}`", char::from(byte))))
    }

    /// Takes `text` if exactly that comes next.
    #[inline]
    pub(crate) fn take_text(&mut self, text: &str) -> Option<()> {
        let rest = self.text.as_bytes().get(self.at..)?;
        let taken = rest.starts_with(text.as_bytes());
        self.at += if taken { text.len() } else { 0 };
        taken.then_some(())
    }

    /// Takes the letters, digits and underscores that come next.
    #[inline]
    pub(crate) fn take_word(&mut self) -> &'a str {
        let start = self.at;
        while self
            .byte()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            self.at += 1;
        }
        self.since(start)
    }

    /// Takes an unsigned integer of at most 19 digits, which cannot overflow, if one comes next.
    #[inline]
    pub(crate) fn take_digits(&mut self) -> Option<u64> {
        const MOST: usize = 19;
        let start = self.at;
        let mut value = 0;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            if self.at - start == MOST {
                return None;
            }
            value = value * 10 + u64::from(digit - b'0');
            self.at += 1;
        }
        let bytes = self.text.as_bytes();
        let leading_zero = self.at - start > 1 && bytes.get(start) == Some(&b'0');
        (self.at > start && !leading_zero).then_some(value)
    }

    /// The next key of an object and the byte of its opening quote, or `None` at the object's end.
    /// The brace was taken before the first call.
    pub(crate) fn next_key(&mut self, first: &mut bool) -> Result<Option<(Cow<'a, str>, u64)>> {
        if self.take(b'}') {
            return Ok(None);
        }
        if !std::mem::take(first) {
            self.expect(b',')?;
        }
        self.peek();
        let offset = self.offset();
        let key = self.string()?;
        self.expect(b':')?;
        Ok(Some((key, offset)))
    }

    /// Whether an array has another item; the bracket was taken before the first call.
    pub(crate) fn next_item(&mut self, first: &mut bool) -> Result<bool> {
        if self.take(b']') {
            return Ok(false);
        }
        if !std::mem::take(first) {
            self.expect(b',')?;
        }
        Ok(true)
    }

    /// A string; borrowed from the text unless it has escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>> {
        self.expect(b'"')?;
        let start = self.at;
        self.skip_plain();
        let plain = self.since(start);
        if self.byte() == Some(b'"') {
            self.at += 1;
            return Ok(Cow::Borrowed(plain));
        }
        // The text is no longer than its escapes; growing would take three times as much.
        let mut end = self.clone();
        end.skip_string();
        let mut text = String::with_capacity(end.at - start);
        text.push_str(plain);
        self.rest_of_string(&mut text)?;
        Ok(Cow::Owned(text))
    }

    /// Appends a string to `text`, without a copy in between.
    pub(crate) fn string_onto(&mut self, text: &mut String) -> Result<()> {
        self.expect(b'"')?;
        self.rest_of_string(text)
    }

    fn rest_of_string(&mut self, text: &mut String) -> Result<()> {
        loop {
            let start = self.at;
            self.skip_plain();
            text.push_str(self.since(start));
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    text.push(self.escape()?);
                }
                Some(control) => {
                    let found = format!("the control character 0x{control:02x}");
                    return Err(self.error("a string").found(found));
                }
                None => return Err(self.error("the end of a string")),
            }
        }
    }

    /// An integer without sign, fraction or exponent that fits 64 bits.
    pub(crate) fn unsigned(&mut self) -> Result<u64> {
        self.peek();
        let start = self.at;
        let mut value = 0u64;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            let next = value
                .checked_mul(10)
                .and_then(|tens| tens.checked_add(u64::from(digit - b'0')));
            let Some(next) = next else {
                return Err(self.error("an integer of at most 64 bits"));
            };
            value = next;
            self.at += 1;
        }
        let digits = self.since(start);
        let malformed = digits.is_empty()
            || (digits.len() > 1 && digits.starts_with('0'))
            || matches!(self.byte(), Some(b'.' | b'e' | b'E'));
        if malformed {
            self.at = start;
            return Err(self.unexpected("an unsigned integer"));
        }
        Ok(value)
    }

    /// A number of any form whose value a double can hold.
    pub(super) fn number(&mut self) -> Result<()> {
        let start = self.at;
        self.at += usize::from(self.byte() == Some(b'-'));
        let whole = self.digits()?;
        if whole.len() > 1 && whole.starts_with('0') {
            return Err(self.error("a number without leading zeros"));
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            self.at += usize::from(matches!(self.byte(), Some(b'+' | b'-')));
            self.digits()?;
        }
        match self.since(start).parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(()),
            _ => Err(self.error("a number within the range of a double")),
        }
    }

    /// Takes a word such as `null`.
    pub(crate) fn literal(&mut self, word: &'static str) -> Result<()> {
        self.peek();
        if !self.rest().starts_with(word) {
            return Err(self.unexpected(format_args!("`{word}`")));
        }
        self.at += word.len();
        Ok(())
    }

    /// An error here: `expected` is missing, and whatever comes next is what was found.
    pub(crate) fn unexpected(&mut self, expected: impl std::fmt::Display) -> Error {
        let error = self.error(expected);
        match self.rest().chars().next() {
            Some(found) => error.found(format_args!("`{}`", found.escape_default())),
            None => error.found("the end of the text"),
        }
    }

    fn error(&self, expected: impl std::fmt::Display) -> Error {
        Error::new(self.syntax)
            .at_offset(self.offset())
            .expected(expected)
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Moves behind the string that began here, whatever it holds.
    fn skip_string(&mut self) {
        loop {
            self.skip_plain();
            match self.byte() {
                None => return,
                Some(b'"') => {
                    self.at += 1;
                    return;
                }
                // An escaped quote does not end it.
                Some(b'\\') => self.at = (self.at + 2).min(self.text.len()),
                Some(_) => self.at += 1,
            }
        }
    }

    /// Moves to the next quote, backslash or control character.
    fn skip_plain(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(word) = bytes.get(self.at..).and_then(|rest| rest.first_chunk()) {
            let special = special_bytes(u64::from_le_bytes(*word));
            if special != 0 {
                self.at += (special.trailing_zeros() / 8) as usize;
                return;
            }
            self.at += 8;
        }
        let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
        while self.byte().is_some_and(plain) {
            self.at += 1;
        }
    }

    /// What a backslash, already taken, stands for.
    fn escape(&mut self) -> Result<char> {
        let letter = self.byte();
        let plain = match letter {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => return Err(self.unexpected("an escape")),
        };
        self.at += 1;
        Ok(plain)
    }

    /// Four hex digits, and four more where the first are half of a surrogate pair.
    fn unicode_escape(&mut self) -> Result<char> {
        let first = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&first) {
            if !self.rest().starts_with("\\u") {
                return Err(self.unexpected("the second half of a surrogate pair"));
            }
            self.at += 2;
            let second = self.hex4()?;
            if !(0xdc00..0xe000).contains(&second) {
                return Err(self.error("the second half of a surrogate pair"));
            }
            0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        } else {
            first
        };
        char::from_u32(code).ok_or_else(|| self.error("a code point, not half a surrogate pair"))
    }

    fn hex4(&mut self) -> Result<u32> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        let all_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        match u32::from_str_radix(digits, 16) {
            Ok(value) if all_hex => {
                self.at += 4;
                Ok(value)
            }
            _ => Err(self.error("four hex digits")),
        }
    }

    fn digits(&mut self) -> Result<&'a str> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.unexpected("a digit"));
        }
        Ok(self.since(start))
    }
}

/// The high bit of every byte of `word` that ends a plain run: below 0x20, `"` or `\`.
///
/// A byte above the first marked one may be marked wrongly (borrows run upwards), so only the
/// lowest mark counts.
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let equal = |byte: u8| {
        let zero_where_equal = word ^ (ONES * u64::from(byte));
        zero_where_equal.wrapping_sub(ONES) & !zero_where_equal
    };
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (control | equal(b'"') | equal(b'\\')) & HIGHS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(text: &str) -> Cursor<'_> {
        Cursor::new(text, 0, Code::JsonSyntax)
    }

    #[test]
    fn unsigned_takes_integer_tokens_only() {
        assert_eq!(cursor("18446744073709551615").unsigned().unwrap(), u64::MAX);
        assert_eq!(cursor(" 0").unsigned().unwrap(), 0);
        for text in [
            "18446744073709551616",
            "1.0",
            "1e0",
            "-0",
            "-1",
            "00",
            "01",
            "",
            "x",
            "\"1\"",
        ] {
            assert!(cursor(text).unsigned().is_err(), "{text:?}");
        }
    }

    #[test]
    fn marks_the_first_special_byte_only_where_there_is_one() {
        for position in 0..8 {
            for byte in 0..=255u8 {
                let mut word = *b"abcdefgh";
                word[position] = byte;
                let marks = special_bytes(u64::from_le_bytes(word));
                let special = byte < 0x20 || byte == b'"' || byte == b'\\';
                let first = (marks != 0).then(|| marks.trailing_zeros() / 8);
                assert_eq!(
                    first,
                    special.then_some(position as u32),
                    "byte {byte} at {position}"
                );
            }
        }
    }
}
