//! Every dtype of the format loads as it is, or by a rule that has to be asked for.

use std::slice;

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use safeshard_candle::{LoadOptions, Unsupported, from_candle, to_candle};
use safeshard_core::Code;
use safetensors::Dtype;

use crate::support::{Probe, Stored, bytes, file};

const CPU: &Device = &Device::Cpu;

fn widen() -> LoadOptions {
    LoadOptions {
        unsupported: Unsupported::Widen,
        ..LoadOptions::default()
    }
}

/// Eight elements of any bytes.
fn eight(dtype: Dtype) -> Stored {
    let len = dtype.bitsize();
    let bytes: Vec<u8> = (0..len).map(|i| (i * 37 + 11) as u8).collect();
    Stored::new("w", dtype, &[2, 4], bytes)
}

#[rstest]
#[case(Dtype::F4, DType::F4)]
#[case(Dtype::F6_E2M3, DType::F6E2M3)]
#[case(Dtype::F6_E3M2, DType::F6E3M2)]
#[case(Dtype::U8, DType::U8)]
#[case(Dtype::F8_E4M3, DType::F8E4M3)]
#[case(Dtype::F8_E8M0, DType::F8E8M0)]
#[case(Dtype::I16, DType::I16)]
#[case(Dtype::F16, DType::F16)]
#[case(Dtype::BF16, DType::BF16)]
#[case(Dtype::I32, DType::I32)]
#[case(Dtype::U32, DType::U32)]
#[case(Dtype::F32, DType::F32)]
#[case(Dtype::F64, DType::F64)]
#[case(Dtype::I64, DType::I64)]
fn what_candle_has_is_loaded_bit_for_bit(#[case] dtype: Dtype, #[case] candle: DType) {
    let stored = eight(dtype);
    let weights = Probe::new(slice::from_ref(&stored)).weights(&LoadOptions::default());
    let (all, report) = weights.load(CPU).unwrap();
    let vb = weights.var_builder(candle, CPU);
    for tensor in [
        &all["w"],
        &weights.tensor("w", None, CPU).unwrap(),
        &vb.get((2, 4), "w").unwrap(),
        &vb.get_unchecked("w").unwrap(),
    ] {
        assert_eq!((tensor.dtype(), tensor.dims()), (candle, &[2, 4][..]));
        assert_eq!(bytes(tensor), stored.bytes);
    }
    assert!(report.cast.is_empty() && report.skipped.is_empty());

    let theirs =
        candle_core::safetensors::load_buffer(&file(slice::from_ref(&stored)), CPU).unwrap();
    assert_eq!(theirs["w"].dtype(), candle);
    assert_eq!(bytes(&theirs["w"]), stored.bytes);
    assert_eq!(from_candle(candle).and_then(to_candle), Some(candle));
}

fn f16(values: &[f32]) -> Vec<u8> {
    let values = values.iter().map(|&value| half::f16::from_f32(value));
    values.flat_map(half::f16::to_le_bytes).collect()
}

fn le<const N: usize>(elements: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    elements.into_iter().flatten().collect()
}

#[rstest]
#[case(Dtype::BOOL, vec![0, 1], DType::U8, vec![0, 1])]
#[case(Dtype::I8, vec![0x80, 0x7F], DType::I16, le([(-128_i16).to_le_bytes(), 127_i16.to_le_bytes()]))]
#[case(Dtype::U16, vec![0, 0x80, 0xFF, 0xFF], DType::U32, le([0x8000_u32.to_le_bytes(), 0xFFFF_u32.to_le_bytes()]))]
#[case(Dtype::U64, le([7_u64.to_le_bytes(), (i64::MAX as u64).to_le_bytes()]), DType::I64, le([7_i64.to_le_bytes(), i64::MAX.to_le_bytes()]))]
#[case(Dtype::F8_E5M2, vec![0x3C, 0xFB], DType::F16, f16(&[1.0, -57344.0]))]
#[case(Dtype::F8_E4M3FNUZ, vec![0x40, 0xFF], DType::F16, f16(&[1.0, -240.0]))]
#[case(Dtype::F8_E5M2FNUZ, vec![0x40, 0xFF], DType::F16, f16(&[1.0, -57344.0]))]
fn what_candle_lacks_fails_alone_or_widens(
    #[case] dtype: Dtype,
    #[case] stored: Vec<u8>,
    #[case] candle: DType,
    #[case] expected: Vec<u8>,
) {
    let probe = Probe::new(&[
        Stored::new("odd", dtype, &[2], stored),
        Stored::f32("w", &[2]),
    ]);
    let strict = probe.weights(&LoadOptions::default());
    let error = strict.tensor("odd", None, CPU).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::UnsupportedDtype, Some("odd"))
    );
    assert!(error.to_string().contains("Unsupported::Widen"), "{error}");
    assert!(strict.tensor("w", None, CPU).is_ok());
    let vb = strict.var_builder(DType::F32, CPU);
    assert!(vb.get(2, "w").is_ok());

    let wide = probe.weights(&widen());
    let (all, report) = wide.load(CPU).unwrap();
    for tensor in [&all["odd"], &wide.tensor("odd", None, CPU).unwrap()] {
        assert_eq!((tensor.dtype(), bytes(tensor)), (candle, expected.clone()));
    }
    let [record] = &report.cast[..] else {
        panic!("no record of the cast");
    };
    assert_eq!(record.from.name(), dtype.to_string());
}

#[test]
fn complex_numbers_become_pairs() {
    let stored = le([1.0_f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes));
    let probe = Probe::new(&[Stored::new("c", Dtype::C64, &[2], stored.clone())]);
    let vb = probe
        .weights(&LoadOptions::default())
        .var_builder(DType::F32, CPU);
    let message = vb.get((2, 2), "c").unwrap_err().to_string();
    assert!(message.contains("Unsupported::Widen"), "{message}");

    let wide = probe.weights(&widen());
    let pairs = wide.var_builder(DType::F32, CPU).get((2, 2), "c").unwrap();
    assert_eq!(pairs.to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.]]);
    let second = wide
        .slice("c", slice::from_ref(&(1..2)), None, CPU)
        .unwrap();
    assert_eq!(second.to_vec2::<f32>().unwrap(), [[3., 4.]]);
}

#[rstest]
#[case(Dtype::BOOL, vec![1, 2], "2 in element 1")]
#[case(Dtype::U64, le([1, u64::MAX].map(u64::to_le_bytes)), "element 1")]
fn a_value_that_does_not_fit_is_refused(
    #[case] dtype: Dtype,
    #[case] stored: Vec<u8>,
    #[case] message: &str,
) {
    let probe = Probe::new(&[
        Stored::new("odd", dtype, &[2], stored),
        Stored::f32("w", &[2]),
    ]);
    let weights = probe.weights(&widen());
    let error = weights.tensor("odd", None, CPU).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::CastValue, Some("odd"))
    );
    assert!(error.to_string().contains(message), "{error}");
    let vb = weights.var_builder(DType::F32, CPU);
    assert!(vb.get(2, "w").is_ok(), "the other one is not affected");
    assert!(vb.get(2, "odd").is_err());
}

/// Values that all of these dtypes hold exactly, so that candle's own cast is an oracle.
#[rstest]
fn floats_are_cast_as_candle_casts_them(
    #[values(DType::F16, DType::BF16, DType::F32, DType::F64, DType::F8E4M3)] from: DType,
    #[values(DType::F16, DType::BF16, DType::F32, DType::F64)] to: DType,
) {
    let values = Tensor::new(&[[0_f32, 1., -2.], [0.5, 48., -0.25]], CPU).unwrap();
    let stored = values.to_dtype(from).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    stored.save_safetensors("w", &path).unwrap();

    let weights = safeshard_candle::Weights::open(&path).unwrap();
    // By way of F32, because candle never returns from F8_E4M3 to F64.
    let single = stored.to_dtype(DType::F32).unwrap();
    let expected = bytes(&single.to_dtype(to).unwrap());
    for tensor in [
        weights.var_builder(to, CPU).get((2, 3), "w").unwrap(),
        weights.tensor("w", Some(to), CPU).unwrap(),
        safeshard_candle::load_with(&path, CPU, &safeshard_candle::floats_as(to))
            .unwrap()
            .0["w"]
            .clone(),
    ] {
        assert_eq!((tensor.dtype(), bytes(&tensor)), (to, expected.clone()));
    }
}

#[rstest]
#[case(Dtype::U8, DType::U8)]
#[case(Dtype::I16, DType::I16)]
#[case(Dtype::U32, DType::U32)]
#[case(Dtype::I32, DType::I32)]
#[case(Dtype::I64, DType::I64)]
fn integers_are_never_cast(#[case] dtype: Dtype, #[case] candle: DType) {
    let stored = eight(dtype);
    let weights = Probe::new(slice::from_ref(&stored)).weights(&LoadOptions::default());
    let vb = weights.var_builder(DType::F32, CPU);
    let tensor = vb.get((2, 4), "w").unwrap();
    assert_eq!((tensor.dtype(), bytes(&tensor)), (candle, stored.bytes));
    let exact = vb.get_with_hints_dtype((2, 4), "w", Default::default(), candle);
    assert_eq!(exact.unwrap().dtype(), candle);

    let other = if candle == DType::I64 {
        DType::U32
    } else {
        DType::I64
    };
    let error = vb.get_with_hints_dtype((2, 4), "w", Default::default(), other);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("integers are never cast")
    );
    let error = weights.tensor("w", Some(DType::F32), CPU).unwrap_err();
    assert_eq!(error.code(), Code::UnsupportedCast);
    assert!(weights.report().cast.is_empty());
}

#[test]
fn floats_never_become_integers() {
    let weights = Probe::new(&[Stored::f32("w", &[2])]).weights(&LoadOptions::default());
    assert!(weights.var_builder(DType::I64, CPU).get(2, "w").is_err());
    assert!(weights.tensor("w", Some(DType::U8), CPU).is_err());
}

#[rstest]
fn what_no_cast_reads_says_how_to_load_it(
    #[values(Dtype::F4, Dtype::F6_E2M3, Dtype::F6_E3M2)] dtype: Dtype,
) {
    let weights = Probe::new(&[eight(dtype)]).weights(&LoadOptions::default());
    let vb = weights.var_builder(DType::F32, CPU);
    let message = vb.get((2, 4), "w").unwrap_err().to_string();
    assert!(
        message.contains(&format!("load it as {dtype}")),
        "{message}"
    );
}

#[test]
fn a_dtype_that_nobody_knows_stops_only_its_tensor() {
    let header = br#"{"new":{"dtype":"F2","shape":[4],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(&[1, 2]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, file).unwrap();

    let vb = safeshard_candle::var_builder(&path, DType::U8, CPU).unwrap();
    assert_eq!(vb.get(1, "w").unwrap().to_vec1::<u8>().unwrap(), [2]);
    let message = vb.get(4, "new").unwrap_err().to_string();
    assert!(
        message.contains("`new`") && message.contains("`F2`"),
        "{message}"
    );
}
