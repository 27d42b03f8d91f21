//! Random numbers that are the same every time.

/// xorshift64*: fast enough to fill gigabytes, and good enough that no two tensors are equal.
pub(crate) struct Random(u64);

impl Random {
    /// A sequence of its own for each text.
    pub(crate) fn of(text: &str) -> Self {
        let mut state: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in text.bytes() {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Self(state | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_keeps_every_item_and_is_repeatable() {
        let shuffled = || {
            let mut items: Vec<u32> = (0..20).collect();
            Random::of("a").shuffle(&mut items);
            items
        };
        let mut items = shuffled();
        assert_eq!(items, shuffled());
        assert_ne!(items, (0..20).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
    }
}
