//! Numbers and text, as pickles spell them.

/// Little-endian, two's complement; `None` where it does not fit.
pub(super) fn signed(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let (low, high) = bytes.split_at_checked(8).unwrap_or((bytes, &[]));
    let mut word = [fill; 8];
    word.get_mut(..low.len())?.copy_from_slice(low);
    let number = i64::from_le_bytes(word);
    let fits = high.iter().all(|byte| *byte == fill) && (number < 0) == negative;
    fits.then_some(number)
}

/// Whether it is a number in decimal digits.
pub(super) fn is_decimal(digits: &[u8]) -> bool {
    let digits = digits.strip_prefix(b"-").unwrap_or(digits);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

/// Text of which each byte is a character.
pub(super) fn latin1(bytes: &[u8]) -> Box<str> {
    bytes
        .iter()
        .copied()
        .map(char::from)
        .collect::<String>()
        .into()
}

/// Whether it is what Python writes for text that UTF-8 has no bytes for.
pub(super) fn is_utf8_with_surrogates(mut bytes: &[u8]) -> bool {
    while let Err(error) = std::str::from_utf8(bytes) {
        let rest = bytes.get(error.valid_up_to()..).unwrap_or_default();
        match rest {
            [0xed, 0xa0..=0xbf, 0x80..=0xbf, rest @ ..] => bytes = rest,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_length_are_what_python_makes_of_them() {
        // `pickle.encode_long`, and what it does not write: more bytes than needed.
        for (number, bytes) in [
            (0, &[][..]),
            (255, &[0xff, 0]),
            (-128, &[0x80]),
            (-1, &[0xff; 40]),
            (i64::MAX, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            (i64::MIN, &[0, 0, 0, 0, 0, 0, 0, 0x80]),
            (1, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(signed(bytes), Some(number), "{bytes:?}");
        }
        assert_eq!(signed(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0]), None);
        assert_eq!(signed(&[0xff; 8].map(|byte: u8| byte)), Some(-1));
        assert_eq!(
            signed(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff]),
            None
        );
    }

    #[test]
    fn surrogates_are_told_from_what_is_no_text() {
        assert!(is_utf8_with_surrogates(b"a\xed\xa0\x80b\xed\xbf\xbf"));
        assert!(!is_utf8_with_surrogates(b"a\xed\xa0"));
        assert!(!is_utf8_with_surrogates(b"\xff"));
    }
}
