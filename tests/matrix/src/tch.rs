//! tch, with safeshard's adapter.

use std::collections::BTreeMap;

use safeshard_core::{Checkpoint, Dtype, LoadOptions, SaveTensor};
use safeshard_tch::{load_with, tensor_to_save};
use safetensors::tensor::TensorView;
use tch::{Device, Kind, TchError, Tensor};

use crate::case::{Case, ELEMENTS, Found, Layout, View, anchors};
use crate::framework::{NO_SUCH_VIEW, Refusal};

/// The tensors of a case and the anchors.
pub(crate) fn tensors(case: &Case) -> Result<Vec<SaveTensor<'static>>, Refusal> {
    let buffer = buffer(case)?;
    let mut tensors = Vec::new();
    for view in &case.views {
        tensors.push((view.name, strided(&buffer, case.dtype, view)?));
    }
    for (name, bytes) in anchors() {
        tensors.push((name, Tensor::f_from_slice(&bytes)?));
    }
    let tensors = tensors.iter();
    let to_save = tensors.map(|(name, tensor)| Ok(tensor_to_save(*name, tensor)?));
    to_save.collect()
}

pub(crate) fn load(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Found>, Refusal> {
    let (tensors, _) = load_with(checkpoint, Device::Cpu, &LoadOptions::default())?;
    let found = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, found(&tensor)?)));
    found.collect()
}

pub(crate) fn refuses_to_save(dtype: Dtype, layout: Layout) -> Option<&'static str> {
    use Layout::{Fortran, NegativeStrides, Scalar};
    match (dtype, layout) {
        _ if refuses_to_load(dtype).is_some() => refuses_to_load(dtype),
        // An element of libtorch's is two of the format's.
        (Dtype::F4, Scalar | Fortran | NegativeStrides) => Some(NO_SUCH_VIEW),
        (_, NegativeStrides) => Some("TchError"),
        _ => None,
    }
}

pub(crate) fn refuses_to_load(dtype: Dtype) -> Option<&'static str> {
    matches!(dtype, Dtype::F6E2M3 | Dtype::F6E3M2).then_some("unsupported-dtype")
}

/// The buffer as a tensor. tch has no call that makes one of a type it has no name for, so it comes from
/// a file of the reference's.
fn buffer(case: &Case) -> Result<Tensor, Refusal> {
    if let Some(kind) = safeshard_tch::to_kind(case.dtype) {
        let tensor = Tensor::f_from_data_size(&case.buffer, &[ELEMENTS as i64], kind)?;
        return Ok(tensor);
    }
    let dtype = serde_json::from_value(case.dtype.name().into()).unwrap();
    let view = TensorView::new(dtype, vec![ELEMENTS], &case.buffer).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("buffer.safetensors");
    safetensors::serialize_to_file([("buffer", view)], None, &path).unwrap();
    Ok(safeshard_tch::tensor(&path, "buffer", Device::Cpu)?)
}

fn strided(buffer: &Tensor, dtype: Dtype, view: &View) -> Result<Tensor, Refusal> {
    let mut dims: Vec<_> = view.dims.iter().map(|&dim| dim as i64).collect();
    let mut strides: Vec<_> = view.strides.iter().map(|&stride| stride as i64).collect();
    let mut offset = view.offset as i64;
    if dtype == Dtype::F4 {
        let divides = || Refusal::no_such_view("libtorch holds pairs of F4, and it divides one");
        let (last, outer) = strides.split_last_mut().ok_or_else(divides)?;
        let whole = dims.last_mut().ok_or_else(divides)?;
        let is_even = |number: i64| number % 2 == 0;
        let pairs = outer.iter().all(|&stride| is_even(stride));
        if *last != 1 || !pairs || !is_even(*whole) || !is_even(offset) {
            return Err(divides());
        }
        outer.iter_mut().for_each(|stride| *stride /= 2);
        *whole /= 2;
        offset /= 2;
    }
    Ok(buffer.f_as_strided(dims, strides, offset)?)
}

fn found(tensor: &Tensor) -> Result<Found, Refusal> {
    assert!(tensor.is_contiguous());
    let dtype = safeshard_tch::dtype_of(tensor)?;
    let mut shape: Vec<_> = tensor.size().iter().map(|&dim| dim as usize).collect();
    if let (Dtype::F4, Some(last)) = (dtype, shape.last_mut()) {
        *last *= 2;
    }
    let bytes = tensor.f_view([-1])?.f_view_dtype(Kind::Uint8)?;
    Ok(Found {
        dtype: dtype.name().to_owned(),
        shape,
        bytes: Vec::try_from(bytes)?,
    })
}

impl From<TchError> for Refusal {
    fn from(error: TchError) -> Self {
        let message = error.to_string();
        Self {
            name: "TchError".to_owned(),
            message: message.lines().next().unwrap_or_default().to_owned(),
        }
    }
}
