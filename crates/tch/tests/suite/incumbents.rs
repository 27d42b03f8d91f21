//! What tch 0.26 gets wrong, first shown and then not done here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use safeshard_core::Code;
use safeshard_tch::{Kinds, VarOptions, VarStoreExt, load, load_with};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::support::{
    CPU, Stored, bytes, cached, floats, numbers, pattern, stored, write, write_floats,
};

fn one_variable(name: &str, shape: &[i64]) -> (VarStore, Tensor) {
    let vars = VarStore::new(CPU);
    let variable = vars.root().zeros(name, shape);
    (vars, variable)
}

#[test]
fn a_smaller_tensor_is_not_broadcast_over_a_variable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[2, 2])]);
    let (mut theirs, _) = one_variable("w", &[3, 2, 2]);
    assert!(
        theirs.load(&path).is_ok(),
        "tch repeats the file's tensor three times"
    );

    let (mut ours, w) = one_variable("w", &[3, 2, 2]);
    let error = ours
        .load_checkpoint(&path, &VarOptions::default())
        .unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::ShapeMismatch, Some("w"))
    );
    assert_eq!(floats(&w.detach()), [0.; 12]);
}

#[test]
fn bf16_keeps_its_value() {
    let values = [1.5f32, -0.1, 3e38].map(half::bf16::from_f32);
    let theirs = Tensor::from_slice(&values[..1]);
    assert_eq!(
        theirs.double_value(&[0]),
        1.9375,
        "tch takes the bits for an f16"
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let stored_bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    write(&path, &[("w", Stored::BF16, &[3], &stored_bytes)]);
    let w = load(&path, CPU).unwrap().remove("w").unwrap();
    assert_eq!(w.kind(), Kind::BFloat16);
    assert_eq!(floats(&w), values.map(half::bf16::to_f32));
    safeshard_tch::save_with([("w", &w)], &path, &cached()).unwrap();
    assert_eq!(stored(&path, "w").2, stored_bytes);
}

#[test]
fn trainable_variables_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[2])]);
    let (theirs, _) = one_variable("w", &[2]);
    assert!(
        theirs.read_safetensors(&path).is_err(),
        "an in-place operation on a leaf"
    );
    assert!(theirs.fill_safetensors(&path).is_err());

    let (mut ours, w) = one_variable("w", &[2]);
    ours.load_checkpoint(&path, &VarOptions::default()).unwrap();
    assert_eq!(floats(&w.detach()), floats(&load(&path, CPU).unwrap()["w"]));
    assert!(w.requires_grad());
}

#[test]
fn one_tensor_of_a_new_dtype_does_not_hide_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (dtype, kind) in [
        (Stored::F8_E4M3, Some(Kind::Float8e4m3fn)),
        (Stored::F8_E5M2, Some(Kind::Float8e5m2)),
        (Stored::C64, Some(Kind::ComplexFloat)),
        (Stored::U16, None),
        (Stored::U64, None),
    ] {
        let odd = pattern(dtype, 4 * dtype.bitsize() / 8);
        write(
            &path,
            &[
                ("odd", dtype, &[4], &odd),
                ("w", Stored::F32, &[2], &numbers("w", 2)),
            ],
        );
        assert!(
            Tensor::read_safetensors(&path).is_err(),
            "tch opens nothing of it: {dtype}"
        );
        let tensors = load(&path, CPU).unwrap();
        assert_eq!(bytes(&tensors["odd"]), odd);
        assert_eq!(bytes(&tensors["w"]), numbers("w", 2));
        assert_eq!(tensors["odd"].f_kind().ok(), kind);
    }
}

#[test]
fn a_variables_kind_is_its_own_unless_asked_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let halves: Vec<u8> = [1f32, 2.]
        .iter()
        .flat_map(|x| half::f16::from_f32(*x).to_le_bytes())
        .collect();
    write(&path, &[("w", Stored::F16, &[2], &halves)]);
    let (mut theirs, w) = one_variable("w", &[2]);
    theirs.load(&path).unwrap();
    assert_eq!(
        w.kind(),
        Kind::Half,
        "tch changes the model's precision unasked"
    );

    let (mut ours, w) = one_variable("w", &[2]);
    let report = ours.load_checkpoint(&path, &VarOptions::default()).unwrap();
    assert_eq!(w.kind(), Kind::Float);
    assert_eq!(floats(&w.detach()), [1., 2.]);
    assert_eq!(report.cast.len(), 1, "and the report says so");
    let options = VarOptions {
        kinds: Kinds::Checkpoint,
        ..VarOptions::default()
    };
    ours.load_checkpoint(&path, &options).unwrap();
    assert_eq!(w.kind(), Kind::Half);
}

#[test]
fn integers_for_a_float_variable_are_an_error_with_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[("w", Stored::I32, &[2], &pattern(Stored::I32, 8))]);
    let (mut theirs, _) = one_variable("w", &[2]);
    let died = catch_unwind(AssertUnwindSafe(|| theirs.load(&path)));
    assert!(died.is_err(), "tch panics");

    let (mut ours, w) = one_variable("w", &[2]);
    let error = ours
        .load_checkpoint(&path, &VarOptions::default())
        .unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::DtypeMismatch, Some("w"))
    );
    assert_eq!(floats(&w.detach()), [0.; 2]);
}

#[test]
fn a_load_that_fails_half_way_changes_no_variable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let names: Vec<_> = (0..20).map(|i| format!("v{i}")).collect();
    let vars = || {
        let vars = VarStore::new(CPU);
        let all: Vec<_> = names
            .iter()
            .map(|name| vars.root().zeros(name, &[2]))
            .collect();
        (vars, all)
    };
    let present: Vec<_> = names[..19]
        .iter()
        .map(|name| (name.as_str(), &[2][..]))
        .collect();
    write_floats(&path, &present);
    let (mut ours, all) = vars();
    let error = ours
        .load_checkpoint(&path, &VarOptions::default())
        .unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::TensorMissing, Some("v19"))
    );
    assert!(
        all.iter()
            .all(|variable| floats(&variable.detach()) == [0., 0.])
    );
}

#[test]
fn the_length_of_bytes_is_checked_before_libtorch_sees_them() {
    // tch's own `from_data_size` reads behind the end of a slice that is too short.
    let bytes: &'static [u8] = &[0; 8];
    let short = safeshard_core::SaveTensor::new("w", safeshard_tch::Dtype::F32, [3], bytes);
    let error = safeshard_tch::Checkpoint::from_tensors(vec![short])
        .and_then(|checkpoint| load_with(&checkpoint, CPU, &Default::default()))
        .unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::BufferSize, Some("w"))
    );
}

#[test]
fn strides_ties_and_new_kinds_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let w = Tensor::arange(6, (Kind::Float, CPU)).view([2, 3]);
    let turned = w.tr();
    let small = w.to_kind(Kind::Float8e4m3fn);
    assert!(Tensor::write_safetensors(&[("w", &turned)], &path).is_err());
    assert!(Tensor::write_safetensors(&[("w", &small)], &path).is_err());
    let tied = [("a", &w), ("b", &w)];
    Tensor::write_safetensors(&tied, &path).unwrap();
    let theirs = std::fs::metadata(&path).unwrap().len();

    let report = safeshard_tch::save_with(tied, &path, &cached()).unwrap();
    assert_eq!(report.total_size, 24);
    assert!(std::fs::metadata(&path).unwrap().len() < theirs + 100);
    safeshard_tch::save_with([("turned", &turned), ("small", &small)], &path, &cached()).unwrap();
    assert_eq!(stored(&path, "turned").1, [3, 2]);
    assert_eq!(stored(&path, "small").0, Stored::F8_E4M3);
}
