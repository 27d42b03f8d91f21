//! candle, with safeshard's adapter.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, Device, Storage, Tensor};
use safeshard_candle::{Weights, tensor_to_save};
use safeshard_core::{Checkpoint, Code, Dtype, Error, LoadOptions, SaveTensor};

use crate::case::{Case, ELEMENTS, Found, Layout, anchors};
use crate::framework::{NO_SUCH_VIEW, Refusal, is_packed};

/// The tensors of a case and the anchors.
pub(crate) fn tensors(case: &Case) -> Result<Vec<SaveTensor<'static>>, Refusal> {
    let mut tensors = views(case)?;
    for (name, bytes) in anchors() {
        let anchor = Tensor::from_slice(&bytes, bytes.len(), &Device::Cpu);
        tensors.push((name, anchor.map_err(candle)?));
    }
    let tensors = tensors.iter();
    let to_save = tensors.map(|(name, tensor)| Ok(tensor_to_save(*name, tensor)?));
    to_save.collect()
}

pub(crate) fn load(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Found>, Refusal> {
    let weights = Weights::open_with(checkpoint, &LoadOptions::default())?;
    let (tensors, _) = weights.load(&Device::Cpu)?;
    Ok(tensors
        .into_iter()
        .map(|(name, tensor)| (name, found(&tensor)))
        .collect())
}

pub(crate) fn refuses_to_save(dtype: Dtype, layout: Layout) -> Option<&'static str> {
    match layout {
        _ if refuses_to_load(dtype).is_some() => refuses_to_load(dtype),
        Layout::NegativeStrides => Some(NO_SUCH_VIEW),
        Layout::Scalar if is_packed(dtype) => Some("slice-sub-byte"),
        // candle copies no elements of types that it only carries.
        Layout::Fortran | Layout::Broadcast if is_packed(dtype) || dtype == Dtype::F8E8M0 => {
            Some("framework")
        }
        _ => None,
    }
}

pub(crate) fn refuses_to_load(dtype: Dtype) -> Option<&'static str> {
    use Dtype::{Bool, C64, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, I8, U16, U64};
    matches!(
        dtype,
        Bool | I8 | U16 | U64 | C64 | F8E5M2 | F8E4M3Fnuz | F8E5M2Fnuz
    )
    .then_some("unsupported-dtype")
}

/// The tensors of a case, as candle makes such views.
fn views(case: &Case) -> Result<Vec<(&'static str, Tensor)>, Refusal> {
    let unsupported = || Error::new(Code::UnsupportedDtype).found(case.dtype);
    let dtype = safeshard_candle::to_candle(case.dtype).ok_or_else(unsupported)?;
    let buffer = Tensor::from_raw_buffer(&case.buffer, dtype, &[ELEMENTS], &Device::Cpu);
    let buffer = buffer.map_err(candle)?;
    let views = || -> candle_core::Result<Option<Vec<Tensor>>> {
        Ok(Some(match case.layout {
            Layout::Scalar => vec![buffer.narrow(0, 5, 1)?.squeeze(0)?],
            Layout::Empty => vec![buffer.narrow(0, 0, 0)?.reshape((3, 0, 2))?],
            Layout::LengthOneAxis => vec![buffer.reshape((4, 1, 6))?],
            Layout::Ordinary => vec![buffer.reshape((2, 3, 4))?],
            Layout::Fortran => vec![buffer.reshape((4, 6))?.t()?],
            Layout::NegativeStrides => return Ok(None),
            Layout::Broadcast => vec![buffer.narrow(0, 4, 4)?.broadcast_as((3, 4))?],
            Layout::SlicesOfFused => {
                let fused = buffer.reshape((6, 4))?;
                vec![fused.narrow(0, 0, 2)?, fused.narrow(0, 2, 4)?]
            }
            Layout::TiedPair => {
                let tied = buffer.reshape((2, 3, 4))?;
                vec![tied.clone(), tied]
            }
        }))
    };
    let views = views().map_err(candle)?;
    let views = views.ok_or_else(|| Refusal::no_such_view("candle's strides are `usize`"))?;
    let names = case.views.iter().map(|view| view.name);
    Ok(names.zip(views).collect())
}

/// The bytes of a tensor that was loaded: all that its storage holds.
fn found(tensor: &Tensor) -> Found {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        panic!("a tensor that is not on the CPU");
    };
    assert!(layout.is_contiguous() && layout.start_offset() == 0);
    let bytes: &[u8] = match storage {
        CpuStorage::U8(elements)
        | CpuStorage::F4(elements)
        | CpuStorage::F6E2M3(elements)
        | CpuStorage::F6E3M2(elements)
        | CpuStorage::F8E8M0(elements) => elements,
        CpuStorage::F8E4M3(elements) => bytemuck::cast_slice(elements),
        CpuStorage::I16(elements) => bytemuck::cast_slice(elements),
        CpuStorage::F16(elements) => bytemuck::cast_slice(elements),
        CpuStorage::BF16(elements) => bytemuck::cast_slice(elements),
        CpuStorage::I32(elements) => bytemuck::cast_slice(elements),
        CpuStorage::U32(elements) => bytemuck::cast_slice(elements),
        CpuStorage::F32(elements) => bytemuck::cast_slice(elements),
        CpuStorage::I64(elements) => bytemuck::cast_slice(elements),
        CpuStorage::F64(elements) => bytemuck::cast_slice(elements),
    };
    Found {
        dtype: safeshard_candle::from_candle(tensor.dtype())
            .map(|dtype| dtype.name().to_owned())
            .unwrap_or_default(),
        shape: tensor.dims().to_vec(),
        bytes: bytes.to_vec(),
    }
}

fn candle(error: candle_core::Error) -> Refusal {
    Refusal {
        name: "candle_core::Error".to_owned(),
        message: error.to_string(),
    }
}
