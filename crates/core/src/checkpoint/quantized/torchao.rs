//! torchao: the parts of a tensor subclass are tensors, and metadata under the weight's name says how
//! they are put together.

use super::{Beside, Builder, QuantizedTensor, Role, Scheme};
use crate::format::header::TensorInfo;

pub(super) fn recognise(tensor: &TensorInfo<'_>, beside: Beside<'_>) -> Option<QuantizedTensor> {
    let stem = tensor.name.strip_suffix("qdata")?;
    let weight = Builder::new(tensor, stem, Scheme::Torchao, beside)
        .required(&["scale"], Role::Scale)
        .optional(&["zero_point"], Role::ZeroPoint)
        .optional(&["per_tensor_scale"], Role::Scale)
        .optional(&["act_per_tensor_scale"], Role::ActivationScale)
        .build();
    // Half of one, if the metadata says that it is one.
    let of_module = stem.strip_suffix("._weight_");
    let says_so = of_module.is_some_and(|module| {
        let entry = beside.0.metadata_value(&format!("{module}.weight"));
        entry.is_some_and(|entry| entry.contains("\"_type\""))
    });
    (weight.missing.is_empty() || says_so).then_some(weight)
}
