//! Integers of a few bits that compressed-tensors packs into 32: `weight_packed`, `weight_scale`,
//! `weight_shape`, `weight_zero_point`, `weight_g_idx`.

use super::{Beside, Builder, QuantizedTensor, Role, Scheme};
use crate::format::header::TensorInfo;

pub(super) fn recognise(tensor: &TensorInfo<'_>, beside: Beside<'_>) -> Option<QuantizedTensor> {
    let stem = tensor.name.strip_suffix("_packed")?;
    let weight = Builder::new(tensor, stem, Scheme::PackedInt, beside)
        .required(&["_scale"], Role::Scale)
        .required(&["_shape"], Role::Description)
        .optional(&["_zero_point"], Role::ZeroPoint)
        .optional(&["_g_idx"], Role::GroupIndex)
        .build();
    // By the end of its name alone it could be anything.
    (!weight.companions.is_empty() || stem.ends_with("weight")).then_some(weight)
}
