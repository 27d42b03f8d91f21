//! What candle's own loaders get wrong, one test each.

use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::{Init, VarBuilder, VarMap};
use safeshard_candle::{
    Checkpoint, LoadOptions, Unsupported, VarMapExt, Weights, load, load_with, var_builder,
};
use safeshard_core::{Code, OpenOptions};
use safetensors::Dtype;

use crate::support::{Probe, Stored, bytes, write, write_index, write_shards};

const CPU: &Device = &Device::Cpu;

/// candle: `vb.pp("m").rename_f(..)` asks for `m.m.foo`.
#[test]
fn rename_under_a_prefix_does_not_double_it() {
    let probe = Probe::new(&[Stored::f32("old.m.foo", &[3])]);
    let options = LoadOptions {
        rename: Some(Arc::new(|name| name.replacen("old.", "new.", 1))),
        ..LoadOptions::default()
    };
    let vb = probe.weights(&options).var_builder(DType::F32, CPU);
    let m = vb.pp("new").pp("m");
    assert!(m.contains_tensor("foo"));
    assert_eq!(m.get(3, "foo").unwrap().dims(), [3]);
    assert_eq!(m.get_unchecked("foo").unwrap().dims(), [3]);
    assert!(!vb.contains_tensor("old.m.foo"));
}

/// candle: `get_unchecked` of a builder whose dtype was changed gives the old dtype.
#[test]
fn a_builder_gives_the_dtype_it_was_asked_for() {
    let weights = Probe::new(&[Stored::f32("w", &[2])]).weights(&LoadOptions::default());
    let half = weights.var_builder(DType::F16, CPU);
    let double = weights.var_builder(DType::F64, CPU);
    assert_eq!(half.get_unchecked("w").unwrap().dtype(), DType::F16);
    assert_eq!(double.get_unchecked("w").unwrap().dtype(), DType::F64);
    let brain = half.get_unchecked_dtype("w", DType::BF16).unwrap();
    assert_eq!(brain.dtype(), DType::BF16);
    let single = half.to_dtype(DType::F32).get(2, "w").unwrap();
    assert_eq!(single.dtype(), DType::F32);
    let single = half.set_dtype(DType::F32).get_unchecked("w").unwrap();
    assert_eq!(single.dtype(), DType::F32);
}

/// candle: of two shards that hold a name, the one that comes last in a hash set wins.
#[test]
fn the_index_decides_between_shards_that_hold_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut stale = Stored::f32("w", &[2]);
    stale.bytes.fill(0xFF);
    let current = Stored::f32("w", &[2]);
    write(
        folder.path().join("a.safetensors"),
        slice::from_ref(&current),
    );
    write(
        folder.path().join("b.safetensors"),
        &[stale, Stored::f32("x", &[1])],
    );
    let map = [("w", "a.safetensors"), ("x", "b.safetensors")];
    let map = map.map(|(name, file)| (name.to_owned(), file.to_owned()));
    write_index(folder.path(), &BTreeMap::from(map));

    assert_eq!(
        bytes(&load(folder.path(), CPU).unwrap()["w"]),
        current.bytes
    );
    let vb = var_builder(folder.path(), DType::F32, CPU).unwrap();
    assert_eq!(bytes(&vb.get(2, "w").unwrap()), current.bytes);
}

#[test]
fn the_same_name_in_two_files_without_an_index_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| folder.path().join(format!("{name}.safetensors")));
    for path in &paths {
        write(path, &[Stored::f32("w", &[2])]);
    }
    let error = Checkpoint::open_files(&paths, &OpenOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::DuplicateAcrossFiles);
}

/// candle: a single BOOL or I8 tensor makes the whole file unreadable.
#[test]
fn a_dtype_that_candle_lacks_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mask = Stored::new("mask", Dtype::BOOL, &[2], [0, 1]);
    write_shards(folder.path(), &[&[mask, Stored::f32("w", &[2])]]);

    let vb = var_builder(folder.path(), DType::F32, CPU).unwrap();
    assert!(vb.get(2, "w").is_ok());
    let message = vb.get(2, "mask").unwrap_err().to_string();
    assert!(
        message.contains("`mask`") && message.contains("Unsupported::Widen"),
        "{message}"
    );

    let message = load(folder.path(), CPU).unwrap_err().to_string();
    assert!(
        message.contains("`mask`") && message.contains("Unsupported::Widen"),
        "{message}"
    );
    let skip = LoadOptions {
        unsupported: Unsupported::Skip,
        ..LoadOptions::default()
    };
    let (tensors, report) = load_with(folder.path(), CPU, &skip).unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["w"]);
    assert_eq!(report.skipped, [("mask".to_owned(), "BOOL".to_owned())]);
}

/// candle: `VarMap::load` of BF16 tensors into F32 variables fails.
#[test]
fn a_bf16_file_fits_f32_variables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values = [1.5, -2.0].map(half::bf16::from_f32);
    let stored: Vec<u8> = values
        .into_iter()
        .flat_map(half::bf16::to_le_bytes)
        .collect();
    write(&path, &[Stored::new("w", Dtype::BF16, &[2], stored)]);

    let vars = VarMap::new();
    let w = vars.get(2, "w", Init::Const(0.), DType::F32, CPU).unwrap();
    let report = vars
        .load_checkpoint(&path, &LoadOptions::default())
        .unwrap();
    assert_eq!(w.to_vec1::<f32>().unwrap(), [1.5, -2.0]);
    assert_eq!(report.cast.len(), 1);
}

/// candle: `VarMap::load` has set some of the variables when it finds that another is missing.
#[test]
fn a_var_map_is_never_half_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let names: Vec<_> = (0..20).map(|i| format!("w{i}")).collect();
    let stored: Vec<_> = names.iter().map(|name| Stored::f32(name, &[4])).collect();
    write(&path, &stored[..19]);

    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, CPU);
    let tensors = names
        .iter()
        .map(|name| vb.get_with_hints(4, name, Init::Const(7.)).unwrap());
    let tensors: Vec<_> = tensors.collect();
    let error = vars
        .load_checkpoint(&path, &LoadOptions::default())
        .unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::TensorMissing, Some("w19"))
    );

    // All are there, but the file is cut off behind our back.
    write(&path, &stored);
    let weights = Weights::open(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 8).unwrap();
    vars.load_weights(&weights, safeshard_candle::Fit::Exact)
        .unwrap_err();
    for tensor in tensors {
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [7.; 4]);
    }
}

/// candle: U16 becomes U32, and nobody is told.
#[test]
fn u16_is_widened_only_when_asked_and_reported() {
    let probe = Probe::new(&[Stored::new("ids", Dtype::U16, &[2], [1, 0, 0xFF, 0xFF])]);
    let strict = probe.weights(&LoadOptions::default());
    for error in [
        strict.load(CPU).unwrap_err().to_string(),
        strict.tensor("ids", None, CPU).unwrap_err().to_string(),
        strict
            .var_builder(DType::F32, CPU)
            .get(2, "ids")
            .unwrap_err()
            .to_string(),
        strict
            .var_builder(DType::U32, CPU)
            .get(2, "ids")
            .unwrap_err()
            .to_string(),
    ] {
        assert!(
            error.contains("U16") && error.contains("Unsupported::Widen"),
            "{error}"
        );
    }
    let widen = probe.weights(&LoadOptions {
        unsupported: Unsupported::Widen,
        ..LoadOptions::default()
    });
    let vb = widen.var_builder(DType::F32, CPU);
    assert_eq!(
        vb.get(2, "ids").unwrap().to_vec1::<u32>().unwrap(),
        [1, 0xFFFF]
    );
    let [record] = &widen.report().cast[..] else {
        panic!("no record of the cast");
    };
    assert_eq!((record.from.name(), record.to.name()), ("U16", "U32"));
}

/// candle: a wrong shape is noticed after the whole tensor was read and cast.
#[test]
fn a_wrong_shape_costs_no_read() {
    let probe = Probe::new(&[Stored::f32("w", &[2, 3])]);
    let weights = probe.weights(&LoadOptions::default());
    let vb = weights.var_builder(DType::F32, CPU);
    let message = vb.get((3, 2), "w").unwrap_err().to_string();
    assert!(
        message.contains("[3, 2]") && message.contains("[2, 3]"),
        "{message}"
    );
    assert_eq!(probe.bytes_read(), 0);
    let mismatched = weights.report().mismatched;
    assert_eq!(
        (&mismatched[0].expected[..], &mismatched[0].found[..]),
        (&[3, 2][..], &[2, 3][..])
    );
}
