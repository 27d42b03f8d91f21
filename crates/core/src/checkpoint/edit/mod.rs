//! Small changes to a checkpoint that is there: its metadata, its index.

pub(super) mod metadata;
pub(super) mod shard_metadata;
pub(super) mod write_index;
