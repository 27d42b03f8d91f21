//! Whole checkpoints: names, aliases, options, reports.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarMap};
use safeshard_candle::{
    LoadOptions, VarMapExt, Weights, floats_as, load, load_with, slice, tensor, tensor_to_save,
    var_builder,
};
use safeshard_core::{Cancel, Checkpoint, Code, SaveTensor};
use safetensors::Dtype;

use crate::support::{Probe, Stored, bytes, same_memory, write, write_shards};

const CPU: &Device = &Device::Cpu;

/// `head` is an alias of `embed`, recorded as huggingface_hub does.
fn tied(folder: &std::path::Path) {
    let tensors = [Stored::f32("embed", &[4, 2]), Stored::f32("norm", &[2])];
    write_shards(folder, &[&tensors]);
    let index = folder.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let text = text.replace(r#""metadata":{}"#, r#""metadata":{"head":"embed"}"#);
    std::fs::write(index, text).unwrap();
}

#[test]
fn shards_give_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let a = [
        Stored::f32("a", &[3]),
        Stored::new("i", Dtype::I64, &[1], [1; 8]),
    ];
    let b = [Stored::f32("b", &[0, 5]), Stored::f32("s", &[])];
    write_shards(folder.path(), &[&a, &b]);
    let tensors = load(folder.path(), CPU).unwrap();
    assert_eq!(tensors.len(), 4);
    for stored in a.iter().chain(&b) {
        let loaded = &tensors[&stored.name];
        assert_eq!(
            (loaded.dims(), bytes(loaded)),
            (&stored.shape[..], stored.bytes.clone())
        );
        let alone = tensor(folder.path(), &stored.name, CPU).unwrap();
        assert_eq!(
            (alone.dtype(), bytes(&alone)),
            (loaded.dtype(), stored.bytes.clone())
        );
    }
}

/// There is no path that it could be opened by again.
#[test]
fn every_entry_point_takes_an_open_checkpoint() {
    let w = Tensor::arange(0f32, 12., CPU).unwrap();
    let w = w.reshape((3, 4)).unwrap().t().unwrap();
    let expected = w.to_vec2::<f32>().unwrap();
    let saved = tensor_to_save("w", &w).unwrap();
    let checkpoint = Checkpoint::from_tensors(vec![saved]).unwrap();

    let options = LoadOptions::default();
    let vars = VarMap::new();
    vars.get((4, 3), "w", Init::Const(0.), DType::F32, CPU)
        .unwrap();
    vars.load_checkpoint(&checkpoint, &options).unwrap();
    let (map, _) = VarMap::from_checkpoint(&checkpoint, &options, CPU).unwrap();
    let over = Tensor::zeros((4, 3), DType::F32, CPU).unwrap();
    let weights = Weights::open(&checkpoint).unwrap();
    weights.load_into([("w", &over)]).unwrap();
    let vb = var_builder(&checkpoint, DType::F32, CPU).unwrap();
    let loaded = [
        load(&checkpoint, CPU).unwrap()["w"].clone(),
        load_with(&checkpoint, CPU, &options).unwrap().0["w"].clone(),
        tensor(&checkpoint, "w", CPU).unwrap(),
        slice(&checkpoint, "w", &[0..4, 0..3], CPU).unwrap(),
        vb.get((4, 3), "w").unwrap(),
        vars.all_vars()[0].as_tensor().clone(),
        map.all_vars()[0].as_tensor().clone(),
        over,
        load(checkpoint, CPU).unwrap()["w"].clone(),
    ];
    for tensor in loaded {
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), expected);
    }
}

#[test]
fn tied_tensors_share_their_memory() {
    let folder = tempfile::tempdir().unwrap();
    tied(folder.path());
    let (tensors, report) = load_with(folder.path(), CPU, &LoadOptions::default()).unwrap();
    assert_eq!(tensors.len(), 3);
    assert!(same_memory(&tensors["head"], &tensors["embed"]));
    assert_eq!(report.aliased, [("head".to_owned(), "embed".to_owned())]);

    let weights = Weights::open(folder.path()).unwrap();
    let vb = weights.var_builder(DType::F32, CPU);
    let head = vb.get((4, 2), "head").unwrap();
    assert!(same_memory(&head, &vb.get((4, 2), "embed").unwrap()));
    assert!(same_memory(&head, &vb.get((4, 2), "head").unwrap()));
    let half = vb.get_with_hints_dtype((4, 2), "embed", Default::default(), DType::F16);
    assert_eq!(half.unwrap().dtype(), DType::F16);
    let report = weights.report();
    assert_eq!(report.unused, ["norm"]);
    assert_eq!(report.loaded, ["embed", "head"]);
    assert_eq!(report.aliased, [("head".to_owned(), "embed".to_owned())]);
}

#[test]
fn an_alias_uses_the_tensor_it_stands_for() {
    let folder = tempfile::tempdir().unwrap();
    tied(folder.path());
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!(weights.names(), ["embed", "head", "norm"]);
    weights.tensor("head", None, CPU).unwrap();
    assert_eq!(weights.report().unused, ["norm"]);

    let only_head = LoadOptions {
        filter: Some(Arc::new(|name| name == "head")),
        ..LoadOptions::default()
    };
    let (tensors, _) = load_with(folder.path(), CPU, &only_head).unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["head"]);
    let vb = Weights::open_with(folder.path(), &only_head)
        .unwrap()
        .var_builder(DType::F32, CPU);
    assert_eq!(
        bytes(&vb.get((4, 2), "head").unwrap()),
        bytes(&tensors["head"])
    );
    assert!(vb.get((4, 2), "embed").is_err());
}

#[test]
fn filter_and_rename_decide_the_names() {
    let stored = ["bert.layer.10.w", "bert.layer.2.w", "cls.w"].map(|name| Stored::f32(name, &[1]));
    let options = LoadOptions {
        filter: Some(Arc::new(|name| name.starts_with("bert."))),
        rename: Some(Arc::new(|name| name.replace("bert.", ""))),
        ..LoadOptions::default()
    };
    let weights = Probe::new(&stored).weights(&options);
    assert_eq!(weights.names(), ["layer.2.w", "layer.10.w"]);
    assert!(weights.contains("layer.2.w") && !weights.contains("cls.w"));
    let (tensors, report) = weights.load(CPU).unwrap();
    assert_eq!(report.loaded, ["layer.2.w", "layer.10.w"]);
    assert_eq!(bytes(&tensors["layer.10.w"]), stored[0].bytes);
    let error = weights.tensor("cls.w", None, CPU).unwrap_err();
    assert_eq!(error.code(), Code::TensorMissing);
    assert!(error.to_string().contains("`filter`"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &stored);
    let all_one = LoadOptions {
        rename: Some(Arc::new(|_| "same".to_owned())),
        ..LoadOptions::default()
    };
    let error = Weights::open_with(&path, &all_one).unwrap_err();
    assert_eq!(error.problems().len(), 2);
    assert_eq!(error.problems()[0].code(), Code::NameCollision);
}

#[test]
fn the_report_says_what_a_model_asked_for() {
    let stored = ["a", "b", "c", "d"].map(|name| Stored::f32(name, &[2]));
    let weights = Probe::new(&stored).weights(&LoadOptions::default());
    let vb = weights.var_builder(DType::BF16, CPU);
    vb.get(2, "b").unwrap();
    vb.get(3, "c").unwrap_err();
    let message = vb.pp("layer").get(2, "bias").unwrap_err().to_string();
    assert!(message.contains("layer.bias"), "{message}");
    assert!(!vb.contains_tensor("probed"));
    let report = weights.clone().report();
    assert_eq!(report.loaded, ["b"]);
    assert_eq!(report.unused, ["a", "d"]);
    assert_eq!(report.missing, ["layer.bias"]);
    assert_eq!(report.mismatched.len(), 1);
    assert_eq!(report.cast.len(), 1);
    assert!(!report.is_exact());
    assert_eq!(
        report.to_string(),
        "1 tensors loaded; 1 missing: layer.bias; 2 unused: a, d; 1 of another shape: c; 1 cast"
    );
}

#[test]
fn a_misspelt_name_gets_a_suggestion() {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &[&[Stored::f32("encoder.weight", &[1])]]);
    let vb = var_builder(folder.path(), DType::F32, CPU).unwrap();
    let message = vb.get(1, "encoder.wieght").unwrap_err().to_string();
    assert!(
        message.contains("did you mean `encoder.weight`?"),
        "{message}"
    );
}

#[test]
fn progress_counts_the_bytes_of_a_whole_model() {
    let stored = ["a", "b", "c"].map(|name| Stored::f32(name, &[100]));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let mut options = floats_as(DType::F16);
    options.read.progress = Some(Arc::new(move |progress| {
        seen.lock().unwrap().push((progress.done, progress.total));
    }));
    let weights = Probe::new(&stored).weights(&options);
    weights.load(CPU).unwrap();
    assert_eq!(calls.lock().unwrap().last(), Some(&(1200, 1200)));

    calls.lock().unwrap().clear();
    let vb = weights.var_builder(DType::F32, CPU);
    for name in ["a", "b", "c", "a"] {
        vb.get(100, name).unwrap();
    }
    let calls = calls.lock().unwrap();
    assert!(calls.is_sorted() && calls.iter().all(|&(done, total)| done <= total));
    assert_eq!(calls.last(), Some(&(1200, 1200)));
}

#[test]
fn a_cancelled_load_gives_nothing() {
    let cancel = Cancel::default();
    let mut options = LoadOptions::default();
    options.read.cancel = Some(cancel.clone());
    let weights = Probe::new(&[Stored::f32("a", &[4])]).weights(&options);
    let vb = weights.var_builder(DType::F32, CPU);
    cancel.cancel();
    assert_eq!(weights.load(CPU).unwrap_err().code(), Code::Cancelled);
    let message = vb.get(4, "a").unwrap_err().to_string();
    assert!(message.contains("cancelled"), "{message}");
}

#[test]
fn a_quantised_weight_is_never_cast_without_its_scale() {
    let scale = 0.5f32.to_le_bytes().to_vec();
    let tensors = vec![
        SaveTensor::new(
            "l.weight",
            safeshard_core::Dtype::F8E4M3,
            [1, 2],
            vec![0x40, 0x44],
        ),
        SaveTensor::new(
            "l.weight_scale_inv",
            safeshard_core::Dtype::F32,
            [1, 1],
            scale,
        ),
    ];
    let checkpoint = Checkpoint::from_tensors(tensors).unwrap();
    let refused = load_with(&checkpoint, CPU, &floats_as(DType::BF16)).unwrap_err();
    assert_eq!(refused.code(), Code::QuantizedWeight);
    let vb = var_builder(&checkpoint, DType::F32, CPU).unwrap();
    let refused = vb.get((1, 2), "l.weight").unwrap_err().to_string();
    assert!(refused.contains("l.weight_scale_inv"), "{refused}");
    let vars = VarMap::new();
    vars.get((1, 2), "l.weight", Init::Const(0.), DType::F32, CPU)
        .unwrap();
    vars.load_checkpoint(&checkpoint, &LoadOptions::default())
        .unwrap_err();
    // 2 and 3, halved.
    let values = checkpoint.dequantised(safeshard_core::Dtype::F32).unwrap();
    let vb = var_builder(&values, DType::F32, CPU).unwrap();
    let weight = vb.get((1, 2), "l.weight").unwrap();
    assert_eq!(weight.to_vec2::<f32>().unwrap(), [[1.0, 1.5]]);
}
