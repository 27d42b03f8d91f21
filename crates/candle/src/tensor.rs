//! Elements in memory become tensors and variables, without another copy.

use candle_core::{CpuStorage, Device, Storage, Tensor, Var};
use float8::F8E4M3;
use safeshard_core::{Code, Dtype, Error, Planned, Result, TypedVec};

/// A candle tensor of what was read for `planned`.
///
/// On the CPU the tensor owns the very vector that the bytes were read into.
pub(crate) fn tensor(planned: &Planned, elements: TypedVec, device: &Device) -> Result<Tensor> {
    let storage = Storage::Cpu(storage(planned, elements)?);
    Tensor::from((storage, shape(planned)?))
        .to_device(device)
        .map_err(|error| framework(&error).in_tensor(&planned.name))
}

/// As [`tensor`], for a variable.
pub(crate) fn var(planned: &Planned, elements: TypedVec, device: &Device) -> Result<Var> {
    let dims = shape(planned)?;
    let var = match storage(planned, elements)? {
        CpuStorage::U8(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::U32(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::I16(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::I32(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::I64(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::BF16(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::F16(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::F32(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::F64(vec) => Var::from_vec(vec, dims, device),
        CpuStorage::F8E4M3(vec) => Var::from_vec(vec, dims, device),
        _ => return Err(unsupported(planned)),
    };
    var.map_err(|error| framework(&error).in_tensor(&planned.name))
}

fn storage(planned: &Planned, elements: TypedVec) -> Result<CpuStorage> {
    Ok(match (planned.dtype, elements) {
        (Dtype::F4, TypedVec::U8(bytes)) => CpuStorage::F4(bytes),
        (Dtype::F6E2M3, TypedVec::U8(bytes)) => CpuStorage::F6E2M3(bytes),
        (Dtype::F6E3M2, TypedVec::U8(bytes)) => CpuStorage::F6E3M2(bytes),
        (Dtype::F8E8M0, TypedVec::U8(bytes)) => CpuStorage::F8E8M0(bytes),
        // `collect` writes into the vector it takes from: same length, same alignment.
        (Dtype::F8E4M3, TypedVec::U8(bytes)) => {
            CpuStorage::F8E4M3(bytes.into_iter().map(F8E4M3::from_bits).collect())
        }
        (Dtype::U8, TypedVec::U8(vec)) => CpuStorage::U8(vec),
        (Dtype::I16, TypedVec::I16(vec)) => CpuStorage::I16(vec),
        (Dtype::F16, TypedVec::F16(vec)) => CpuStorage::F16(vec),
        (Dtype::Bf16, TypedVec::Bf16(vec)) => CpuStorage::BF16(vec),
        (Dtype::I32, TypedVec::I32(vec)) => CpuStorage::I32(vec),
        (Dtype::U32, TypedVec::U32(vec)) => CpuStorage::U32(vec),
        (Dtype::F32, TypedVec::F32(vec)) => CpuStorage::F32(vec),
        (Dtype::F64, TypedVec::F64(vec)) => CpuStorage::F64(vec),
        (Dtype::I64, TypedVec::I64(vec)) => CpuStorage::I64(vec),
        _ => return Err(unsupported(planned)),
    })
}

fn shape(planned: &Planned) -> Result<Vec<usize>> {
    let dims: Result<_, _> = planned.shape.iter().map(|&dim| dim.try_into()).collect();
    dims.map_err(|_| Error::new(Code::ShapeOverflow).in_tensor(&planned.name))
}

fn unsupported(planned: &Planned) -> Error {
    let error = Error::new(Code::UnsupportedDtype).in_tensor(&planned.name);
    error.found(planned.dtype)
}

/// What candle refused.
pub(crate) fn framework(error: &candle_core::Error) -> Error {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => framework(inner),
        refused => Error::new(Code::Framework).found(refused),
    }
}

/// Our error where candle wants one of its own: the same message, without a backtrace.
pub(crate) fn into_candle(error: Error) -> candle_core::Error {
    candle_core::Error::Wrapped(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safeshard_core::{Checkpoint, Unsupported};

    fn planned(dtype: Dtype) -> Planned {
        let json = format!(
            r#"{{"w":{{"dtype":"{dtype}","shape":[64],"data_offsets":[0,{}]}}}}"#,
            dtype.byte_len(&[64]).unwrap()
        );
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.resize(file.len() + dtype.byte_len(&[64]).unwrap() as usize, 0);
        let checkpoint = Checkpoint::from_bytes(file).unwrap();
        let plan = checkpoint.plan_one("w", &[], None, Unsupported::Refuse, crate::support);
        plan.unwrap()
    }

    #[test]
    fn eight_bit_floats_keep_their_memory() {
        let bytes: Vec<u8> = (0..64).collect();
        let address = bytes.as_ptr();
        let CpuStorage::F8E4M3(floats) =
            storage(&planned(Dtype::F8E4M3), TypedVec::U8(bytes)).unwrap()
        else {
            panic!("another storage");
        };
        assert_eq!(floats.as_ptr().cast(), address);
        assert!((0..64).eq(floats.iter().map(F8E4M3::to_bits)));
    }

    #[test]
    fn elements_of_another_type_are_refused() {
        let error = storage(&planned(Dtype::F32), TypedVec::U8(vec![0])).unwrap_err();
        assert_eq!(error.code(), Code::UnsupportedDtype);
    }
}
