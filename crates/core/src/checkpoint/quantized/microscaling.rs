//! 4-bit floats with a scale for a few of them: MXFP4 of gpt-oss and of compressed-tensors, NVFP4 of
//! compressed-tensors and of modelopt.

use super::{Beside, Builder, QuantizedTensor, Role, Scheme};
use crate::format::dtype::Dtype;
use crate::format::header::TensorInfo;

/// Bytes of a block of MXFP4.
const BLOCK: u64 = 16;

pub(super) fn recognise(tensor: &TensorInfo<'_>, beside: Beside<'_>) -> Option<QuantizedTensor> {
    let name = tensor.name;
    if let Some(stem) = name.strip_suffix("_blocks") {
        let is_block = tensor.shape.len() >= 3 && tensor.shape.last() == Some(&BLOCK);
        let weight = Builder::new(tensor, stem, Scheme::Mxfp4, beside);
        let weight = weight.required(&["_scales"], Role::Scale).build();
        return (is_block || weight.missing.is_empty()).then_some(weight);
    }
    if let Some(stem) = name.strip_suffix("_packed") {
        let weight = Builder::new(tensor, stem, scheme(beside, stem), beside)
            .required(&["_scale"], Role::Scale)
            .optional(&["_global_scale"], Role::Scale);
        return with_activations(tensor, stem, weight.build_if_scaled()?, beside);
    }
    // modelopt keeps the weight's name.
    let scale = beside.info(&format!("{name}_scale"))?;
    let is_nvfp4 = scale.dtype == Dtype::F8E4M3;
    if !is_nvfp4 && tensor.dtype != Dtype::F4 {
        return None;
    }
    let scheme = match is_nvfp4 {
        true => Scheme::Nvfp4,
        false => Scheme::Mxfp4,
    };
    let weight = Builder::new(tensor, name, scheme, beside)
        .required(&["_scale"], Role::Scale)
        .optional(&["_scale_2", "_global_scale"], Role::Scale);
    with_activations(tensor, name, weight.build(), beside)
}

fn scheme(beside: Beside<'_>, stem: &str) -> Scheme {
    let scale = beside.info(&format!("{stem}_scale"));
    match scale.is_some_and(|scale| scale.dtype == Dtype::F8E4M3) {
        true => Scheme::Nvfp4,
        false => Scheme::Mxfp4,
    }
}

fn with_activations(
    tensor: &TensorInfo<'_>,
    stem: &str,
    mut weight: QuantizedTensor,
    beside: Beside<'_>,
) -> Option<QuantizedTensor> {
    if let Some(module) = stem.strip_suffix("weight") {
        let activations = Builder::new(tensor, module, weight.scheme, beside).optional(
            &["input_scale", "input_global_scale"],
            Role::ActivationScale,
        );
        weight.companions.extend(activations.build().companions);
    }
    Some(weight)
}
