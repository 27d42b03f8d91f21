//! How much a JSON text holds, found out before it is parsed.
//!
//! What is kept of a header goes into vectors that are sized once: growing them would take three
//! times the memory at the worst moment. So the text is walked over first, 64 bytes at a time.

/// What stands in a JSON text, its grammar not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Opening braces, outside of strings as all but `text`.
    pub(super) objects: usize,
    pub(super) colons: usize,
    pub(super) commas: usize,
    /// Bytes in strings, escapes as they are written.
    pub(super) text: usize,
}

impl Counts {
    pub(super) fn new(json: &[u8]) -> Self {
        let mut counter = Counter::default();
        let (blocks, tail) = json.as_chunks::<64>();
        for block in blocks {
            if counter.escaped || positions(block, b'\\') != 0 {
                counter.bytes(block);
            } else {
                counter.block(block);
            }
        }
        counter.bytes(tail);
        counter.counts
    }
}

#[derive(Default)]
struct Counter {
    counts: Counts,
    in_string: bool,
    /// Whether the byte before was a backslash that is itself not escaped.
    escaped: bool,
}

impl Counter {
    /// A block without backslashes: one bit a byte.
    fn block(&mut self, block: &[u8; 64]) {
        let quotes = positions(block, b'"');
        // From each opening quote, that included, to its closing one.
        let inside = parity(quotes) ^ if self.in_string { u64::MAX } else { 0 };
        self.in_string = inside >> 63 == 1;
        let outside = |byte| (positions(block, byte) & !inside).count_ones() as usize;
        self.counts.objects += outside(b'{');
        self.counts.colons += outside(b':');
        self.counts.commas += outside(b',');
        self.counts.text += (inside & !quotes).count_ones() as usize;
    }

    /// The same, byte by byte.
    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let ends_or_begins = byte == b'"' && !self.escaped;
            self.in_string ^= ends_or_begins;
            self.escaped = self.in_string && byte == b'\\' && !self.escaped;
            let outside = !self.in_string;
            self.counts.objects += usize::from(outside && byte == b'{');
            self.counts.colons += usize::from(outside && byte == b':');
            self.counts.commas += usize::from(outside && byte == b',');
            self.counts.text += usize::from(self.in_string && !ends_or_begins);
        }
    }
}

/// Where in a block `byte` stands: bit 0 for the first.
fn positions(block: &[u8; 64], byte: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const LOWS: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    /// Moves the lowest bit of each byte into the highest byte, in order.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let (words, _) = block.as_chunks::<8>();
    words.iter().rev().fold(0, |bits, word| {
        let zero_where_equal = u64::from_le_bytes(*word) ^ (ONES * u64::from(byte));
        let high_where_not = ((zero_where_equal & LOWS) + LOWS) | zero_where_equal;
        let low_where_equal = (!high_where_not >> 7) & ONES;
        bits << 8 | low_where_equal.wrapping_mul(GATHER) >> 56
    })
}

/// For each bit, whether the number of bits set up to and including it is odd.
fn parity(mut bits: u64) -> u64 {
    for shift in [1, 2, 4, 8, 16, 32] {
        bits ^= bits << shift;
    }
    bits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_count_what_bytes_count(text in r#"[a{:,"\\]{0,300}"#) {
            let mut one_by_one = Counter::default();
            one_by_one.bytes(text.as_bytes());
            prop_assert_eq!(Counts::new(text.as_bytes()), one_by_one.counts);
        }
    }

    #[test]
    fn strings_hide_what_they_hold() {
        let json = br#"{"a{:,\"\\":{"b":[1,2]},"":"{}"}"#;
        let counts = Counts {
            objects: 2,
            colons: 3,
            commas: 2,
            text: 11,
        };
        assert_eq!(Counts::new(json), counts);
        // The same across the edge of a block.
        let padded = [vec![b' '; 55], json.to_vec()].concat();
        assert_eq!(Counts::new(&padded), counts);
    }
}
