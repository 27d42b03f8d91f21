//! bitsandbytes: int8 with `SCB`, and 4 bits with `absmax`, `quant_map` and a state, itself quantised
//! (nested) or not.

use super::{Beside, Builder, QuantizedTensor, Role, Scheme};
use crate::format::header::TensorInfo;

pub(super) fn recognise_int8(
    tensor: &TensorInfo<'_>,
    beside: Beside<'_>,
) -> Option<QuantizedTensor> {
    let stem = tensor.name.strip_suffix("weight")?;
    Builder::new(tensor, stem, Scheme::BitsandbytesInt8, beside)
        .required(&["SCB"], Role::Scale)
        .optional(&["weight_format"], Role::Description)
        .build_if_scaled()
}

pub(super) fn recognise_4bit(
    tensor: &TensorInfo<'_>,
    beside: Beside<'_>,
) -> Option<QuantizedTensor> {
    // All are packed into one column, or one row.
    if !tensor.shape.contains(&1) || tensor.name.contains(".quant_state.") {
        return None;
    }
    let weight = Builder::new(tensor, tensor.name, Scheme::Bitsandbytes4bit, beside)
        .required(&[".absmax"], Role::Scale)
        .required(&[".quant_map"], Role::Table)
        .required(
            &[
                ".quant_state.bitsandbytes__nf4",
                ".quant_state.bitsandbytes__fp4",
            ],
            Role::Description,
        )
        .optional(&[".nested_absmax"], Role::Scale)
        .optional(&[".nested_quant_map"], Role::Table)
        .build();
    (!weight.companions.is_empty()).then_some(weight)
}
