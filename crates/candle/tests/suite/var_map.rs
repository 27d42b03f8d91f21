//! Checkpoints into variables.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder, VarMap};
use safeshard_candle::{Fit, LoadOptions, Unsupported, VarMapExt, Weights};
use safeshard_core::{Code, Error};
use safetensors::Dtype;

use crate::support::{Probe, Stored, bytes, same_memory, write};

const CPU: &Device = &Device::Cpu;

fn var(vars: &VarMap, name: &str, shape: &[usize], dtype: DType) -> Tensor {
    vars.get(shape, name, Init::Const(7.), dtype, CPU).unwrap()
}

#[test]
fn a_model_in_training_gets_its_weights() {
    let stored = [
        Stored::f32("l.weight", &[2, 3]),
        Stored::f32("l.bias", &[2]),
        Stored::f32("x", &[1]),
    ];
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, CPU);
    let layer = candle_nn::linear(3, 2, vb.pp("l")).unwrap();
    let report = vars.load_weights(&weights, Fit::Exact).unwrap();
    assert_eq!(bytes(layer.weight()), stored[0].bytes);
    assert_eq!(bytes(layer.bias().unwrap()), stored[1].bytes);
    assert_eq!(report.loaded, ["l.bias", "l.weight"]);
    assert_eq!(report.unused, ["x"]);
}

#[test]
fn all_that_does_not_fit_is_named_and_nothing_changes() {
    let stored = [
        Stored::f32("good", &[2]),
        Stored::f32("shape", &[2]),
        Stored::new("int", Dtype::I64, &[1], [1; 8]),
        Stored::new("odd", Dtype::U16, &[1], [1, 0]),
        Stored::f32("float", &[2]),
    ];
    let probe = Probe::new(&stored);
    let weights = probe.weights(&LoadOptions::default());
    let vars = VarMap::new();
    let good = var(&vars, "good", &[2], DType::F32);
    var(&vars, "shape", &[1, 2], DType::F32);
    var(&vars, "int", &[1], DType::F32);
    var(&vars, "odd", &[1], DType::U32);
    var(&vars, "float", &[2], DType::I64);
    var(&vars, "absent", &[1], DType::F32);
    for fit in [Fit::Exact, Fit::Partial] {
        let error = vars.load_weights(&weights, fit).unwrap_err();
        let mut found: Vec<_> = error
            .problems()
            .iter()
            .map(|e| (e.tensor().unwrap(), e.code()))
            .collect();
        found.sort_unstable_by_key(|&(name, _)| name);
        let expected = [
            ("absent", Code::TensorMissing),
            ("float", Code::UnsupportedCast),
            ("int", Code::DtypeMismatch),
            ("odd", Code::UnsupportedDtype),
            ("shape", Code::ShapeMismatch),
        ];
        let tolerated = |code| {
            fit == Fit::Partial && [Code::TensorMissing, Code::ShapeMismatch].contains(&code)
        };
        let expected: Vec<_> = expected
            .into_iter()
            .filter(|&(_, code)| !tolerated(code))
            .collect();
        assert_eq!(found, expected);
    }
    assert_eq!(good.to_vec1::<f32>().unwrap(), [7., 7.]);
    assert_eq!(probe.bytes_read(), 0);
}

#[test]
fn a_partial_load_leaves_the_rest_and_reports_it() {
    let stored = [Stored::f32("good", &[2]), Stored::f32("shape", &[2])];
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let vars = VarMap::new();
    let good = var(&vars, "good", &[2], DType::F32);
    let shape = var(&vars, "shape", &[3], DType::F32);
    let absent = var(&vars, "absent", &[1], DType::F32);
    let report = vars.load_weights(&weights, Fit::Partial).unwrap();
    assert_eq!(bytes(&good), stored[0].bytes);
    assert_eq!(shape.to_vec1::<f32>().unwrap(), [7.; 3]);
    assert_eq!(absent.to_vec1::<f32>().unwrap(), [7.]);
    assert_eq!(
        (report.loaded, report.missing),
        (vec!["good".to_owned()], vec!["absent".to_owned()])
    );
    assert_eq!(report.mismatched[0].name, "shape");
}

#[test]
fn a_read_that_fails_changes_no_variable() {
    let stored: Vec<_> = (0..10)
        .map(|i| Stored::f32(&format!("w{i}"), &[4]))
        .collect();
    let probe = Probe::new(&stored);
    let weights = probe.weights(&LoadOptions::default());
    let vars = VarMap::new();
    let tensors: Vec<_> = stored
        .iter()
        .map(|s| var(&vars, &s.name, &[4], DType::F64))
        .collect();
    let size = safeshard_core::ReadAt::len(&*probe);
    probe.set_hook(move |read| match read.end == size {
        true => Err(Error::new(Code::Io)),
        false => Ok(()),
    });
    assert_eq!(
        vars.load_weights(&weights, Fit::Exact).unwrap_err().code(),
        Code::Io
    );
    for tensor in tensors {
        assert_eq!(tensor.to_vec1::<f64>().unwrap(), [7.; 4]);
    }
}

#[test]
fn integers_need_their_own_dtype() {
    let stored = [
        Stored::new("ids", Dtype::I64, &[1], [1, 0, 0, 0, 0, 0, 0, 0]),
        Stored::new("mask", Dtype::BOOL, &[2], [0, 1]),
    ];
    let vars = VarMap::new();
    let ids = var(&vars, "ids", &[1], DType::I64);
    let mask = var(&vars, "mask", &[2], DType::U8);
    let widen = LoadOptions {
        unsupported: Unsupported::Widen,
        ..LoadOptions::default()
    };
    let probe = Probe::new(&stored);
    vars.load_weights(&probe.weights(&LoadOptions::default()), Fit::Exact)
        .unwrap_err();
    let report = vars
        .load_weights(&probe.weights(&widen), Fit::Exact)
        .unwrap();
    assert_eq!(ids.to_vec1::<i64>().unwrap(), [1]);
    assert_eq!(mask.to_vec1::<u8>().unwrap(), [0, 1]);
    assert_eq!(report.cast.len(), 1);
}

/// candle: loading into an empty map loads nothing.
#[test]
fn a_map_can_be_built_from_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let stored = [
        Stored::f32("embed", &[2, 2]),
        Stored::new("scale", Dtype::F8_E8M0, &[2], [1, 2]),
        Stored::new("ids", Dtype::I64, &[1], [1; 8]),
    ];
    write(&path, &stored);
    let (vars, report) =
        VarMap::from_checkpoint(&path, &safeshard_candle::floats_as(DType::BF16), CPU).unwrap();
    assert_eq!(report.cast.len(), 2);
    let vars = vars.data().lock().unwrap();
    assert_eq!(vars["embed"].dtype(), DType::BF16);
    assert_eq!(vars["ids"].dtype(), DType::I64);
    assert!(vars.values().all(|var| var.is_variable()));

    let error = VarMap::from_checkpoint(&path, &LoadOptions::default(), CPU).err();
    let error = error.unwrap();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::UnsupportedDtype, Some("scale"))
    );
    let skip = LoadOptions {
        unsupported: Unsupported::Skip,
        ..LoadOptions::default()
    };
    let (vars, report) = VarMap::from_checkpoint(&path, &skip, CPU).unwrap();
    assert_eq!(report.skipped.len(), 1);
    let vars = vars.data().lock().unwrap();
    for stored in [&stored[0], &stored[2]] {
        assert_eq!(bytes(vars[&stored.name].as_tensor()), stored.bytes);
    }
}

#[test]
fn tied_tensors_become_one_variable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let embed = Stored::f32("embed", &[2]);
    let view = safetensors::tensor::TensorView::new(embed.dtype, vec![2], &embed.bytes).unwrap();
    let ties = [("head".to_owned(), "embed".to_owned())];
    let file = safetensors::serialize([("embed", view)], Some(ties.into())).unwrap();
    std::fs::write(&path, file).unwrap();

    let (vars, _) = VarMap::from_checkpoint(&path, &LoadOptions::default(), CPU).unwrap();
    let vars = vars.data().lock().unwrap();
    assert!(same_memory(&vars["head"], &vars["embed"]));

    let both = VarMap::new();
    let tensors = ["head", "embed"].map(|name| var(&both, name, &[2], DType::F32));
    let report = both
        .load_weights(&Weights::open(&path).unwrap(), Fit::Exact)
        .unwrap();
    assert!(report.is_exact());
    assert!(tensors.iter().all(|tensor| bytes(tensor) == embed.bytes));
}
