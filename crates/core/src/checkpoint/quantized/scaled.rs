//! Numbers of 8 bits and their scales: FP8 of transformers, DeepSeek, compressed-tensors, modelopt and
//! ComfyUI, int8 of compressed-tensors.

use super::{Beside, Builder, QuantizedTensor, Role, Scheme};
use crate::format::dtype::Dtype;
use crate::format::header::TensorInfo;

pub(super) fn recognise(tensor: &TensorInfo<'_>, beside: Beside<'_>) -> Option<QuantizedTensor> {
    if is_scale(tensor.name) {
        return None;
    }
    let scheme = scheme(tensor);
    let named = Builder::new(tensor, tensor.name, scheme, beside)
        .required(&["_scale_inv", "_scale"], Role::Scale)
        .optional(&["_zero_point"], Role::ZeroPoint)
        .optional(&["_g_idx"], Role::GroupIndex)
        .build_if_scaled();
    let Some(stem) = tensor.name.strip_suffix("weight") else {
        return named;
    };
    // Of the module's name, as ComfyUI and DeepSeek have them.
    let named = named.or_else(|| {
        Builder::new(tensor, stem, scheme, beside)
            .required(&["scale_weight", "scale"], Role::Scale)
            .build_if_scaled()
    })?;
    let activations = Builder::new(tensor, stem, scheme, beside).optional(
        &["input_scale", "scale_input", "input_zero_point"],
        Role::ActivationScale,
    );
    let mut weight = named;
    weight.companions.extend(activations.build().companions);
    Some(weight)
}

/// Whether it looks like such a weight, but for the scale.
pub(super) fn is_bare(tensor: &TensorInfo<'_>) -> bool {
    let is_weight = tensor.name.ends_with("weight") && tensor.shape.len() >= 2;
    is_weight && matches!(scheme(tensor), Scheme::Fp8 | Scheme::Int8) && is_8bit(tensor.dtype)
}

/// A weight whose scale is not there.
pub(super) fn half(tensor: &TensorInfo<'_>) -> QuantizedTensor {
    QuantizedTensor {
        name: tensor.name.to_owned(),
        scheme: scheme(tensor),
        companions: Vec::new(),
        missing: vec![format!("{}_scale", tensor.name)],
    }
}

fn scheme(tensor: &TensorInfo<'_>) -> Scheme {
    match tensor.dtype {
        Dtype::I8 => Scheme::Int8,
        _ => Scheme::Fp8,
    }
}

fn is_8bit(dtype: Dtype) -> bool {
    use Dtype::{F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, I8};
    matches!(dtype, F8E4M3 | F8E5M2 | F8E4M3Fnuz | F8E5M2Fnuz | I8)
}

/// Scales may have 8 bits too.
fn is_scale(name: &str) -> bool {
    let ends = ["scale", "scale_inv", "scales", "zero_point", "scale_2"];
    ends.iter().any(|end| name.ends_with(end))
}
