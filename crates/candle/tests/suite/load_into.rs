//! Checkpoints over tensors that are there already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};
use rstest::rstest;
use safeshard_candle::{LoadOptions, load};
use safeshard_core::{Code, Error};
use safetensors::Dtype;

use crate::support::{Probe, Stored, bytes, same_memory, write};

const CPU: &Device = &Device::Cpu;

fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, CPU).unwrap()
}

#[rstest]
#[case(Dtype::U8, 1)]
#[case(Dtype::F8_E4M3, 1)]
#[case(Dtype::F8_E8M0, 1)]
#[case(Dtype::I16, 2)]
#[case(Dtype::F16, 2)]
#[case(Dtype::BF16, 2)]
#[case(Dtype::U32, 4)]
#[case(Dtype::I32, 4)]
#[case(Dtype::F32, 4)]
#[case(Dtype::F64, 8)]
#[case(Dtype::I64, 8)]
fn every_dtype_is_read_over_what_was_there(#[case] dtype: Dtype, #[case] size: usize) {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = [1, 2].map(|seed| {
        let content: Vec<u8> = (0..6 * size).map(|i| (i * 7 + seed) as u8).collect();
        Stored::new("w", dtype, &[2, 3], content)
    });
    let path = folder.path().join("model.safetensors");
    write(&path, std::slice::from_ref(&first));
    let tensors = load(&path, CPU).unwrap();
    assert_eq!(bytes(&tensors["w"]), first.bytes);
    let before = tensors["w"].clone();

    let weights = Probe::new(std::slice::from_ref(&second)).weights(&LoadOptions::default());
    weights.load_into(&tensors).unwrap();
    assert_eq!(bytes(&tensors["w"]), second.bytes);
    assert!(same_memory(&tensors["w"], &before));
    assert!(weights.report().is_exact());
}

#[test]
fn more_tensors_than_are_locked_at_a_time() {
    let stored: Vec<_> = (0..100)
        .map(|i| Stored::f32(&format!("t{i}"), &[i % 5, 3]))
        .collect();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let mut options = LoadOptions::default();
    options.read.progress = Some(Arc::new(move |progress| {
        seen.lock().unwrap().push((progress.done, progress.total));
    }));
    let tensors: HashMap<_, _> = stored
        .iter()
        .map(|stored| (stored.name.clone(), zeros(&stored.shape, DType::F32)))
        .collect();
    Probe::new(&stored)
        .weights(&options)
        .load_into(&tensors)
        .unwrap();
    for stored in &stored {
        assert_eq!(
            bytes(&tensors[&stored.name]),
            stored.bytes,
            "{}",
            stored.name
        );
    }
    let total = stored.iter().map(|stored| stored.bytes.len() as u64).sum();
    let calls = calls.lock().unwrap();
    assert!(calls.is_sorted());
    assert_eq!(calls.last(), Some(&(total, total)));
}

#[test]
fn views_of_one_storage_get_their_own_parts() {
    let stored = [Stored::f32("top", &[2, 3]), Stored::f32("bottom", &[1, 3])];
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let fused = zeros(&[4, 3], DType::F32);
    let views = [
        ("top", fused.narrow(0, 0, 2).unwrap()),
        ("bottom", fused.narrow(0, 3, 1).unwrap()),
    ];
    // The same tensor under the same name once more: its lock must not be taken twice.
    weights
        .load_into(
            views
                .iter()
                .chain(&views)
                .map(|(name, tensor)| (name, tensor)),
        )
        .unwrap();
    let expected = [&stored[0].bytes[..], &[0; 12], &stored[1].bytes].concat();
    assert_eq!(bytes(&fused), expected);
}

#[test]
fn floats_become_what_is_there_and_variables_keep_being_variables() {
    let halves: Vec<u8> = [1f32, -2.5]
        .iter()
        .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
        .collect();
    let stored = [
        Stored::new("w", Dtype::BF16, &[2], halves),
        Stored::f32("scalar", &[]),
        Stored::f32("unused", &[1]),
    ];
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let var = Var::zeros(2, DType::F64, CPU).unwrap();
    let doubled = (var.as_tensor() * 2.).unwrap();
    let scalar = zeros(&[], DType::F32);
    weights
        .load_into([("w", var.as_tensor()), ("scalar", &scalar)])
        .unwrap();
    assert_eq!(var.to_vec1::<f64>().unwrap(), [1., -2.5]);
    assert_eq!(bytes(&scalar), stored[1].bytes);
    assert_eq!(doubled.to_vec1::<f64>().unwrap(), [0., 0.]);
    let report = weights.report();
    assert_eq!(report.unused, ["unused"]);
    assert_eq!(report.cast.len(), 1);
}

#[test]
fn all_that_does_not_fit_is_named_and_nothing_changes() {
    let stored = [
        Stored::f32("good", &[2]),
        Stored::f32("shape", &[2]),
        Stored::new("int", Dtype::I64, &[1], [1; 8]),
        Stored::f32("strides", &[2, 2]),
    ];
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let good = zeros(&[2], DType::F32);
    let tensors = [
        ("good", good.clone()),
        ("shape", zeros(&[1, 2], DType::F32)),
        ("int", zeros(&[1], DType::U32)),
        ("strides", zeros(&[2, 2], DType::F32).t().unwrap()),
        ("absent", zeros(&[1], DType::F32)),
    ];
    let error = weights.load_into(tensors).unwrap_err();
    let found: Vec<_> = error
        .problems()
        .iter()
        .map(|e| (e.tensor().unwrap(), e.code()))
        .collect();
    assert_eq!(
        found,
        [
            ("shape", Code::ShapeMismatch),
            ("int", Code::DtypeMismatch),
            ("strides", Code::Framework),
            ("absent", Code::TensorMissing),
        ]
    );
    assert_eq!(bytes(&good), [0; 8]);
}

#[test]
fn a_failing_medium_is_reported_with_the_tensor() {
    let stored = [Stored::f32("a", &[4]), Stored::f32("b", &[4])];
    let probe = Probe::new(&stored);
    let weights = probe.weights(&LoadOptions::default());
    probe.set_hook(|_| Err(Error::new(Code::FileTruncated)));
    let tensors = ["a", "b"].map(|name| (name, zeros(&[4], DType::F32)));
    let error = weights.load_into(tensors).unwrap_err();
    assert_eq!(error.code(), Code::FileTruncated);
    assert_eq!(error.tensor(), Some("a"));
}
