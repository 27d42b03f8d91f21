//! What is unusual about a checkpoint, but stops nothing.

use std::collections::HashSet;

use super::capped::Capped;
use super::locate::Listing;
use super::{Checkpoint, ShardFile};
use crate::error::{Code, Error};

/// Tensors of a shard that the index does not place there are not served, but said.
pub(super) fn warn_of_unlisted_tensors(checkpoint: &mut Checkpoint) {
    if checkpoint.serves_all {
        return;
    }
    let mut warnings = Capped::default();
    for (position, file) in checkpoint.files.iter().enumerate() {
        for tensor in file.names() {
            let owner = checkpoint.owner(tensor);
            if owner == Some(position) {
                continue;
            }
            warnings.push(|| {
                let warning = Error::new(Code::UnlistedTensor)
                    .at_path(file.place())
                    .in_tensor(tensor);
                match owner.and_then(|owner| checkpoint.files.get(owner)) {
                    Some(owner) => {
                        warning.found(format_args!("the index places it in `{}`", owner.name))
                    }
                    None => warning,
                }
            });
        }
    }
    checkpoint.warn(warnings.into_vec());
}

/// A `total_size` that is not that of the tensors.
pub(super) fn warn_of_total_size(checkpoint: &mut Checkpoint) {
    let Some(index) = &checkpoint.index else {
        return;
    };
    // Absent is common; torch and mflux leave it out or disagree on tied tensors.
    let Some(stated) = index.metadata().get("total_size") else {
        return;
    };
    let unknown = checkpoint.unsupported();
    let unknown = unknown.map(|tensor| tensor.end - tensor.start).sum::<u64>();
    let actual = checkpoint.totals().bytes.saturating_add(unknown);
    if stated.as_u64() != Some(actual) {
        let warning = Error::new(Code::TotalSize)
            .at_path(index.path())
            .expected(actual)
            .found(stated);
        checkpoint.warn([warning]);
    }
}

/// Safetensors files in the folder that the checkpoint does not use.
pub(super) fn warn_of_other_files(checkpoint: &mut Checkpoint, listing: &Listing) {
    let used: HashSet<_> = checkpoint.files.iter().map(ShardFile::place).collect();
    let mut warnings = Capped::default();
    for path in listing.others(|path| used.contains(path)) {
        warnings.push(|| Error::new(Code::UnlistedFile).at_path(path));
    }
    checkpoint.warn(warnings.into_vec());
}
