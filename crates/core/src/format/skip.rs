//! Walking over JSON that nobody asked for, so that it is well-formed all the same.

use std::hash::{BuildHasher, RandomState};

use super::json::Cursor;
use crate::error::{Code, Error, Result};

/// As deep as `serde_json` goes.
const MAX_DEPTH: usize = 127;

impl Cursor<'_> {
    /// Walks over a value of any kind, checking its grammar; `depth` containers are open around it
    /// and it may be `max_len` bytes long.
    pub(crate) fn skip_value(&mut self, depth: usize, keys: &mut Keys, max_len: u64) -> Result<()> {
        let start = self.position();
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
                    self.take(bracket);
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
        if (self.position() - start) as u64 <= max_len {
            return Ok(());
        }
        Err(Error::new(Code::LimitIgnored)
            .at_offset(self.offset())
            .expected(format_args!("at most {max_len} more bytes")))
    }
}

/// A container that [`Cursor::skip_value`] is inside of.
struct Open {
    object: bool,
    first: bool,
    /// How many keys were noted when it opened.
    keys: usize,
}

/// Whether an object may repeat a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    Allow,
    Refuse,
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
}
