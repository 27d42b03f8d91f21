//! Loading: one copy, in any layout, with options, or not at all.

use std::sync::{Arc, Mutex};

use safeshard_core::{Cancel, Code};
use safeshard_tch::{Checkpoint, LoadOptions, floats_as, load, load_with, slice, tensor};
use tch::{Kind, Tensor};

use crate::support::{
    CPU, Stored, floats, numbers, pattern, shape, write, write_floats, write_shards,
};

#[test]
fn shards_are_loaded_by_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let shards: [&[(&str, &[usize])]; 2] = [&[("a", &[2, 3]), ("b", &[])], &[("c", &[5])]];
    write_shards(folder.path(), &shards);
    let tensors = load(folder.path(), CPU).unwrap();
    assert_eq!(tensors.len(), 3);
    for (name, expected) in shards.concat() {
        assert_eq!(shape(&tensors[name]), expected);
        let reference = Tensor::from_slice(
            &numbers(name, expected.iter().product())
                .chunks(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                .collect::<Vec<_>>(),
        );
        assert_eq!(floats(&tensors[name]), floats(&reference));
    }
    assert_eq!(shape(&tensor(folder.path(), "c", CPU).unwrap()), [5]);
}

#[test]
fn loaded_tensors_are_libtorchs_own_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[4])]);
    let mut w = load(&path, CPU).unwrap().remove("w").unwrap();
    // Only memory that is libtorch's can grow.
    let _ = w.resize_([1000]);
    let _ = w.fill_(1);
    assert_eq!(w.sum(Kind::Float).double_value(&[]), 1000.);
}

#[test]
fn names_filters_and_kinds_are_the_options() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let ones = [0x80, 0x3f].repeat(4);
    let ids = pattern(Stored::I64, 16);
    write(
        &path,
        &[
            ("model.w", Stored::BF16, &[4], &ones),
            ("model.ids", Stored::I64, &[2], &ids),
            ("optimizer.w", Stored::BF16, &[4], &ones),
        ],
    );
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut options = LoadOptions {
        filter: Some(Arc::new(|name| name.starts_with("model."))),
        rename: Some(Arc::new(|name| name.replace("model.", "my."))),
        ..floats_as(Kind::Double)
    };
    let progress = Arc::clone(&seen);
    options.read.progress = Some(Arc::new(move |at| progress.lock().unwrap().push(at)));
    let (tensors, report) = load_with(&path, CPU, &options).unwrap();
    assert_eq!(report.loaded, ["my.ids", "my.w"]);
    assert_eq!(tensors["my.w"].kind(), Kind::Double);
    assert_eq!(floats(&tensors["my.w"]), [1.; 4]);
    assert_eq!(tensors["my.ids"].kind(), Kind::Int64);
    assert_eq!(report.cast.len(), 1);
    let last = *seen.lock().unwrap().last().unwrap();
    assert_eq!((last.done, last.total), (24, 24));

    let cancel = Cancel::default();
    cancel.cancel();
    options.read.cancel = Some(cancel);
    let error = load_with(&path, CPU, &options).unwrap_err();
    assert_eq!(error.code(), Code::Cancelled);
}

#[test]
fn tied_tensors_are_one_tensor_under_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let shared = Tensor::arange(6, (Kind::Float, CPU));
    let tied = [
        ("head", shared.shallow_clone()),
        ("embed", shared.shallow_clone()),
    ];
    safeshard_tch::save(tied, &path).unwrap();
    let tensors = load(&path, CPU).unwrap();
    assert_eq!(tensors["head"].data_ptr(), tensors["embed"].data_ptr());
    assert_eq!(tensors["head"], shared);
}

#[test]
fn slices_are_what_narrowing_gives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[6, 5, 4])]);
    let whole = tensor(&path, "w", CPU).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (rows, columns, depth) in [
        (0..6, 0..5, 0..4),
        (1..4, 2..3, 0..4),
        (2..2, 0..5, 1..2),
        (5..6, 0..1, 3..4),
    ] {
        let part = slice(
            &checkpoint,
            "w",
            &[rows.clone(), columns.clone(), depth.clone()],
            CPU,
        );
        let expected = [rows, columns, depth]
            .iter()
            .enumerate()
            .fold(whole.shallow_clone(), |part, (dim, range)| {
                part.narrow(dim as i64, range.start as i64, range.len() as i64)
            });
        let part = part.unwrap();
        assert_eq!(part.size(), expected.size());
        assert_eq!(floats(&part), floats(&expected.contiguous()));
    }
    let error = slice(&path, "w", &[0..7, 0..1], CPU).unwrap_err();
    assert_eq!(error.code(), Code::SliceRange);
    let error = tensor(&path, "v", CPU).unwrap_err();
    assert_eq!(error.code(), Code::TensorMissing);
}

#[test]
fn shapes_of_nothing_and_of_one_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let shapes: [(&str, &[usize]); 4] = [
        ("scalar", &[]),
        ("one", &[1, 1, 1]),
        ("none", &[0]),
        ("holes", &[3, 0, 2]),
    ];
    write_floats(&path, &shapes);
    let tensors = load(&path, CPU).unwrap();
    for (name, expected) in shapes {
        assert_eq!(shape(&tensors[name]), expected, "{name}");
    }
}

#[test]
fn tensors_pass_from_framework_to_framework_in_memory() {
    let w = Tensor::arange(12, (Kind::BFloat16, CPU)).view([3, 4]);
    let tensors = [("w", w.shallow_clone()), ("t", w.tr())];
    let tensors = tensors.map(|(name, tensor)| safeshard_tch::tensor_to_save(name, &tensor));
    let tensors = tensors.into_iter().collect::<Result<_, _>>().unwrap();
    let checkpoint = Checkpoint::from_tensors(tensors).unwrap();
    let (loaded, _) = load_with(&checkpoint, CPU, &floats_as(Kind::Float)).unwrap();
    assert_eq!(loaded["w"], w.to_kind(Kind::Float));
    assert_eq!(loaded["t"], w.tr().to_kind(Kind::Float));
}
