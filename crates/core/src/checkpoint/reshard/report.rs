//! What became of a checkpoint that was written again.

use std::collections::BTreeMap;

use super::choice::Outcome;
use crate::checkpoint::report::CastRecord;
use crate::checkpoint::save::SaveReport;
use crate::format::dtype::Dtype;

/// What [`reshard`](crate::reshard) or [`convert`](crate::convert) did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReshardReport {
    /// What was written.
    pub saved: SaveReport,
    /// Tensors that were converted, under their new names.
    pub cast: Vec<CastRecord>,
    /// How many tensors of each dtype have the bytes that they had.
    pub unchanged: BTreeMap<Dtype, u64>,
    /// Tensors in which finite numbers became infinite, because the new dtype does not reach that far,
    /// and how many.
    pub overflowed: Vec<(String, u64)>,
    /// Tensors with a new name: the old one and the new one.
    pub renamed: Vec<(String, String)>,
    /// Names that the filter left out.
    pub left_out: Vec<String>,
    /// Tensors that are in the checkpoint's files, but were none of its own, since the index did not
    /// place them there: file and name. They were not written.
    pub unlisted: Vec<(String, String)>,
    /// Metadata that had no place any more.
    pub metadata_left: Vec<MetadataLeft>,
    /// Files beside the checkpoint that were copied along, or were there already.
    pub carried: Vec<String>,
    /// Files and folders beside the checkpoint that were to be copied along and are not of that kind.
    pub not_carried: Vec<String>,
}

/// An entry of metadata that was not written: of one of several files whose values differ, or of an
/// index, where there is none any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetadataLeft {
    /// The file or index that had it.
    pub file: String,
    /// Its key.
    pub key: String,
    /// Its value; as JSON where it is no text.
    pub value: String,
}

impl ReshardReport {
    /// Records what became of a tensor.
    pub(super) fn add(&mut self, outcome: &Outcome<'_>) {
        let (stored, name, dtype) = (&outcome.stored, outcome.name, outcome.dtype);
        match dtype == stored.dtype {
            true => *self.unchanged.entry(dtype).or_default() += 1,
            false => self.cast.push(CastRecord {
                name: name.to_owned(),
                from: stored.dtype,
                to: dtype,
            }),
        }
        if name != stored.name {
            let names = (stored.name.to_owned(), name.to_owned());
            self.renamed.push(names);
        }
        if outcome.overflows > 0 {
            self.overflowed.push((name.to_owned(), outcome.overflows));
        }
    }
}
