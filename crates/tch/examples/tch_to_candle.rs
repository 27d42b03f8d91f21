//! Hands tensors from tch to candle and to ndarray in memory: one copy of each byte, no file.
//!
//! ```console
//! $ cargo run --package safeshard-tch --example tch_to_candle
//! ```

use std::error::Error;

use candle_core as candle;
use ndarray::IxDyn;
use safeshard::candle::Weights;
use safeshard::ndarray::DynArray;
use safeshard::tch::{support, tensor_to_save};
use safeshard::{Checkpoint, Dtype, LoadOptions, Support, Unsupported};
use tch::{Device, Kind, Tensor};

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

/// The kinds that models are made of.
const KINDS: [Kind; 14] = [
    Kind::Float,
    Kind::Double,
    Kind::Half,
    Kind::BFloat16,
    Kind::Uint8,
    Kind::Int8,
    Kind::Int16,
    Kind::Int,
    Kind::Int64,
    Kind::Bool,
    Kind::Float8e4m3fn,
    Kind::Float8e5m2,
    Kind::Float8e4m3fnuz,
    Kind::Float8e5m2fnuz,
];

fn main() -> Result {
    // Tensors of tch, one with strides.
    let numbers = Tensor::arange(12, (Kind::Float, Device::Cpu)) * 0.25;
    let matrix = numbers.view([3, 4]).tr();
    let tensors = KINDS.map(|kind| (format!("{kind:?}"), matrix.to_kind(kind)));

    // What this is about: the tensors as they lie in memory are a checkpoint that every adapter loads
    // from, with all its options. candle lacks some kinds; those become wider ones.
    let to_save = tensors
        .iter()
        .map(|(name, tensor)| tensor_to_save(name, tensor));
    let checkpoint = Checkpoint::from_tensors(to_save.collect::<Result<_, _>>()?)?;
    let options = LoadOptions {
        unsupported: Unsupported::Widen,
        ..LoadOptions::default()
    };
    let (arrays, _) = safeshard::ndarray::load_with(&checkpoint, &options)?;
    let weights = Weights::open_with(checkpoint, &options)?;
    let (in_candle, report) = weights.load(&candle::Device::Cpu)?;

    println!("{:16} {:12} ndarray", "tch", "candle");
    for (name, tensor) in &tensors {
        let expected =
            Vec::<f64>::try_from(tensor.to_kind(Kind::Double).contiguous().flatten(0, -1))?;
        let candle = &in_candle[name];
        let array = &arrays[name];
        println!("{name:16} {:12} {}", candle.dtype().as_str(), array.dtype());
        if candle.dims() != [4, 3] || in_f64(candle)? != expected {
            return Err(format!("{name}: candle has something else").into());
        }
        if array.shape() != [4, 3] || array_in_f64(array)? != expected {
            return Err(format!("{name}: ndarray has something else").into());
        }
    }
    println!("{} wider in candle: {report}", report.cast.len());
    assert_eq!(support(Dtype::Bf16), Support::Native);

    // The way back, and a candle model over tch's weights, are the same two lines.
    let back = in_candle
        .iter()
        .map(|(name, tensor)| safeshard::candle::tensor_to_save(name, tensor));
    let checkpoint = Checkpoint::from_tensors(back.collect::<Result<_, _>>()?)?;
    let (again, _) = safeshard::tch::load_with(&checkpoint, Device::Cpu, &LoadOptions::default())?;
    let identical = tensors.iter().all(|(name, tensor)| {
        let wide = again[name].to_kind(Kind::Double);
        wide == tensor.to_kind(Kind::Double)
    });
    match identical {
        true => println!("and back: identical"),
        false => return Err("what came back is something else".into()),
    }
    Ok(())
}

fn in_f64(tensor: &candle::Tensor) -> Result<Vec<f64>> {
    let mut flat = tensor.flatten_all()?;
    if flat.dtype() == candle::DType::F8E4M3 {
        // candle's way from there to F64 does not end for every number.
        flat = flat.to_dtype(candle::DType::F32)?;
    }
    Ok(flat.to_dtype(candle::DType::F64)?.to_vec1()?)
}

fn array_in_f64(array: &DynArray) -> Result<Vec<f64>> {
    // Integers are never cast, so they are read as what they are.
    let numbers: Vec<f64> = match array {
        DynArray::U8(array) => array.iter().map(|&x| x.into()).collect(),
        DynArray::I8(array) => array.iter().map(|&x| x.into()).collect(),
        DynArray::I16(array) => array.iter().map(|&x| x.into()).collect(),
        DynArray::I32(array) => array.iter().map(|&x| x.into()).collect(),
        DynArray::I64(array) => array.iter().map(|&x| x as f64).collect(),
        DynArray::Bool(array) => array.iter().map(|&x| f64::from(u8::from(x))).collect(),
        floats => floats
            .cast::<f64>()?
            .view::<f64, IxDyn>()?
            .iter()
            .copied()
            .collect(),
    };
    Ok(numbers)
}
