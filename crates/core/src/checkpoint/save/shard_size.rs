//! Sizes as people write them: `5GB`, `500 MiB`, `1.5GB`.

/// How many bytes of tensors a shard holds, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardSize(u64);

impl ShardSize {
    /// Everything in one file.
    pub const UNLIMITED: Self = Self(u64::MAX);

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Default for ShardSize {
    /// 5 GB, as huggingface_hub.
    fn default() -> Self {
        Self(5_000_000_000)
    }
}
