//! GPTQ and AWQ: `qweight`, `qzeros`, `scales`, and `g_idx` of GPTQ.

use super::{Beside, Builder, QuantizedTensor, Role, Scheme};
use crate::format::header::TensorInfo;

pub(super) fn recognise(tensor: &TensorInfo<'_>, beside: Beside<'_>) -> Option<QuantizedTensor> {
    let stem = tensor.name.strip_suffix("qweight")?;
    let scales = beside.info(&format!("{stem}scales"));
    // AWQ packs the outputs, so that there are fewer than scales; GPTQ packs the inputs.
    let outputs = |shape: &[u64]| shape.last().copied();
    let is_awq = scales.is_some_and(|scales| outputs(scales.shape) != outputs(tensor.shape));
    let scheme = match is_awq {
        true => Scheme::Awq,
        false => Scheme::Gptq,
    };
    let weight = Builder::new(tensor, stem, scheme, beside)
        .required(&["scales"], Role::Scale)
        .required(&["qzeros"], Role::ZeroPoint)
        .optional(&["g_idx"], Role::GroupIndex);
    Some(weight.build())
}
