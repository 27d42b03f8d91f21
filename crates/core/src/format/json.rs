//! A pull reader for the little JSON that headers and indexes are made of.
//!
//! It walks the text once, never recurses and allocates only for strings with escapes. The grammar
//! is RFC 8259's, to the letter: what `serde_json` refuses is refused here, at the same byte.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};

use crate::{Code, Error, Result};

/// As deep as `serde_json` goes.
const MAX_DEPTH: usize = 127;

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

    /// Walks over a value of any kind, checking its grammar; `depth` containers are open around it
    /// and it may be `max_len` bytes long.
    pub(crate) fn skip_value(&mut self, depth: usize, keys: &mut Keys, max_len: u64) -> Result<()> {
        let start = self.at;
        // One bit of state a container (is it an object?) instead of one stack frame.
        let mut open: Vec<Open> = Vec::new();
        loop {
            match self.peek() {
                Some(bracket @ (b'{' | b'[')) => {
                    if depth + open.len() >= MAX_DEPTH {
                        return Err(Error::new(Code::JsonDepth)
                            .at_offset(self.offset())
                            .expected(format_args!("at most {MAX_DEPTH} levels")));
                    }
                    self.at += 1;
                    open.push(Open {
                        object: bracket == b'{',
                        first: true,
                        keys: keys.len(),
                    });
                }
                Some(b'"') => drop(self.string()?),
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => return Err(self.unexpected("a value")),
            }
            self.check_skipped(start, max_len)?;
            // Close what ends here; stop at the next value to walk over.
            loop {
                let Some(top) = open.last_mut() else {
                    return self.check_skipped(start, max_len);
                };
                let more = if top.object {
                    match self.next_key(&mut top.first)? {
                        Some((key, offset)) => {
                            keys.add(&key, offset)?;
                            true
                        }
                        None => false,
                    }
                } else {
                    self.next_item(&mut top.first)?
                };
                if more {
                    break;
                }
                keys.close(top.keys)?;
                open.pop();
            }
        }
    }

    fn check_skipped(&self, start: usize, max_len: u64) -> Result<()> {
        if (self.at - start) as u64 <= max_len {
            return Ok(());
        }
        Err(Error::new(Code::LimitIgnored)
            .at_offset(self.offset())
            .expected(format_args!("at most {max_len} more bytes")))
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

    /// A number of any form whose value a double can hold.
    fn number(&mut self) -> Result<()> {
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

/// Whether an object may repeat a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    Allow,
    Refuse,
}

/// A container that [`Cursor::skip_value`] is inside of.
struct Open {
    object: bool,
    first: bool,
    /// How many keys were noted when it opened.
    keys: usize,
}

/// The keys of the objects that are open, as keyed hashes: 64 bits cannot be made to collide from
/// outside.
pub(crate) struct Keys {
    repeats: Repeats,
    max: usize,
    hasher: RandomState,
    /// Each with the byte at which it stands.
    hashes: Vec<(u64, u64)>,
}

impl Keys {
    /// Remembers at most `max` keys at once.
    pub(crate) fn new(repeats: Repeats, max: usize) -> Self {
        Self {
            repeats,
            max,
            hasher: RandomState::new(),
            hashes: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }

    pub(crate) fn add(&mut self, key: &str, offset: u64) -> Result<()> {
        if self.repeats == Repeats::Allow {
            return Ok(());
        }
        if self.len() >= self.max {
            return Err(Error::new(Code::LimitIgnored)
                .at_offset(offset)
                .expected(format_args!("at most {} keys", self.max)));
        }
        self.hashes.push((self.hasher.hash_one(key), offset));
        Ok(())
    }

    /// Checks and forgets the keys from the `from`th on: those of one object.
    pub(crate) fn close(&mut self, from: usize) -> Result<()> {
        let own = self.hashes.get_mut(from..).unwrap_or_default();
        own.sort_unstable();
        for pair in own.windows(2) {
            if let [(a, _), (b, offset)] = pair
                && a == b
            {
                return Err(Error::new(Code::DuplicateKey).at_offset(*offset));
            }
        }
        self.hashes.truncate(from);
        Ok(())
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

    /// Our verdict on a whole document must be `serde_json`'s.
    fn accepts(text: &str) -> bool {
        let mut cursor = cursor(text);
        cursor
            .skip_value(0, &mut Keys::new(Repeats::Allow, 0), u64::MAX)
            .is_ok()
            && cursor.peek().is_none()
    }

    fn reference_accepts(text: &str) -> bool {
        serde_json::from_str::<serde_json::Value>(text).is_ok()
    }

    #[test]
    fn grammar_is_serde_jsons() {
        for text in [
            "{}",
            "[]",
            "{,}",
            "[,]",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{\"a\":}",
            "[1 2]",
            "01",
            "-",
            "-0",
            "-01",
            "1.",
            ".5",
            "1.5",
            "1e",
            "1e5",
            "1E+5",
            "1e-5",
            "1e400",
            "-1e400",
            "1e-400",
            "+1",
            "0x1",
            "NaN",
            "Infinity",
            "tru",
            "true",
            "nulll",
            "\"",
            "\"a",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u+123\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\ud83d\\ude00\"",
            "\"\\udc00\"",
            "\"\u{1}\"",
            "\"\u{7f}\"",
            "\"é😀\"",
            " [ 1 , 2 ] ",
            "\u{feff}{}",
            "{}{}",
            "",
            " ",
            "{\"a\":[{\"b\":[]}]}",
            "[[",
            "]",
            "}",
            "{\"a\":1 \"b\":2}",
            "{1:2}",
            "'a'",
            "[1]\u{b}",
            "\"abcdefgh\\n\"",
            "\"abcdefg\u{1f}h\"",
            "18446744073709551616",
        ] {
            assert_eq!(accepts(text), reference_accepts(text), "{text:?}");
        }
    }

    #[test]
    fn depth_is_serde_jsons() {
        for depth in 120..135 {
            let text = "[".repeat(depth) + &"]".repeat(depth);
            assert_eq!(accepts(&text), reference_accepts(&text), "{depth}");
        }
        // Would overflow the stack of a recursive reader.
        let bomb = "[".repeat(1_000_000);
        let error = cursor(&bomb)
            .skip_value(0, &mut Keys::new(Repeats::Allow, 0), u64::MAX)
            .unwrap_err();
        assert_eq!(error.code(), Code::JsonDepth);
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
    fn duplicate_keys_are_found_at_any_depth_and_spelling() {
        let skip =
            |text: &str| cursor(text).skip_value(0, &mut Keys::new(Repeats::Refuse, 5), u64::MAX);
        skip(r#"{"a":{"a":1},"b":[{"a":1},{"a":1}]}"#).unwrap();
        let error = skip(r#"[{"x":{"a":1,"b":2,"\u0061":3}}]"#).unwrap_err();
        assert_eq!(error.code(), Code::DuplicateKey);
        assert_eq!(error.offset(), Some(19), "the second `a`");
        let error =
            skip(r#"{"a":{"b":{}},"c":{"d":0,"e":0},"f":0,"g":0,"h":0,"i":0}"#).unwrap_err();
        assert_eq!(error.code(), Code::LimitIgnored);
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
