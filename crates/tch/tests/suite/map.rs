//! Mapping: nothing copied that lies right, everything else copied and said, files never changed.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use rstest::rstest;
use safeshard_core::Code;
use safeshard_tch::{Checkpoint, DimRange, LoadOptions, floats_as, load, map, map_from, map_with};
use tch::{Kind, Tensor};

use crate::support::{
    CPU, Stored, bytes, cached, floats, mapped, pattern, write_at, write_floats, write_shards,
};

/// Bytes of this process that are its own and not the page cache's, in the mappings of this file.
fn private_bytes(file: &std::path::Path) -> (usize, usize) {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let (mut size, mut private, mut inside) = (0, 0, false);
    for line in maps.lines() {
        let kib = || {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<usize>()
                .unwrap()
        };
        let is_range = line
            .split_once(' ')
            .is_some_and(|(first, _)| first.contains('-'));
        match line {
            _ if is_range => inside = line.ends_with(name),
            _ if inside && line.starts_with("Size:") => size += kib() << 10,
            _ if inside && line.starts_with("Anonymous:") => private += kib() << 10,
            _ => {}
        }
    }
    (size, private)
}

#[test]
fn a_mapping_copies_nothing_until_something_is_written() {
    const ROWS: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nothing-is-copied.safetensors");
    write_floats(&path, &[("w", &[ROWS, 4]), ("v", &[ROWS])]);
    let before = fs::read(&path).unwrap();
    // SAFETY: the file stays as it is.
    let (mut tensors, report) = unsafe { map_with(&path, &LoadOptions::default()) }.unwrap();
    assert!(report.copied.is_empty());
    assert_eq!(report.load.loaded, ["v", "w"]);
    let expected = load(&path, CPU).unwrap();
    assert_eq!(tensors["w"], expected["w"]);
    let (size, private) = private_bytes(&path);
    assert!(size >= 20 * ROWS, "one mapping has them all, {size}");
    assert_eq!(private, 0, "reading copies nothing");

    let w = tensors.get_mut("w").unwrap();
    let _ = w.get(0).fill_(-1);
    let (_, private) = private_bytes(&path);
    assert!(
        (1..64 << 10).contains(&private),
        "{private} bytes for one row"
    );
    assert_eq!(floats(&w.get(0)), [-1.; 4]);
    assert_eq!(floats(&w.get(1)), floats(&expected["w"].get(1)));
    assert_eq!(fs::read(&path).unwrap(), before, "the file does not change");

    // Views of one tensor keep the mapping, and nothing else does.
    let view = tensors.remove("w").unwrap().narrow(0, 5, 1);
    drop(tensors);
    assert_eq!(floats(&view), floats(&expected["w"].get(5)));
    drop(view);
    assert_eq!(private_bytes(&path), (0, 0), "the mapping goes away");
}

#[test]
fn each_tensor_has_a_storage_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("a", &[3]), ("b", &[5])]);
    // SAFETY: the file stays as it is.
    let tensors = unsafe { map(&path) }.unwrap();
    for (name, len) in [("a", 3), ("b", 5)] {
        assert_eq!(tensors[name].storage_offset(), 0);
        // A pickle has the whole storage of a tensor.
        let pickled = folder.path().join(name);
        tensors[name].save(&pickled).unwrap();
        assert!(
            fs::metadata(&pickled).unwrap().len() < 4096,
            "{len} numbers"
        );
    }
}

#[rstest]
fn what_lies_wrong_is_copied_and_said(
    #[values("U8", "F16", "F32", "I64", "C64", "F4")] dtype: &str,
    #[values(0, 1, 2, 3, 4, 5, 6, 7)] offset: usize,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (size, columns) = match dtype {
        "U8" => (1, 4),
        "F4" => (1, 8),
        "F16" => (2, 4),
        "F32" => (4, 4),
        _ => (8, 4),
    };
    let expected = pattern(Stored::U8, 3 * 4 * size);
    write_at(&path, dtype, &[3, columns], &expected, offset);
    // SAFETY: the file stays as it is.
    let (tensors, report) = unsafe { map_with(&path, &LoadOptions::default()) }.unwrap();
    assert_eq!(bytes(&tensors["w"]), expected);
    assert_eq!(report.copied.is_empty(), offset.is_multiple_of(size));
    assert_eq!(tensors["w"].data_ptr().addr() % size, 0);
}

#[test]
fn casts_and_names_work_as_in_a_load() {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &[&[("a", &[2])], &[("b", &[3])]]);
    let options = LoadOptions {
        rename: Some(Arc::new(|name| format!("model.{name}"))),
        dtype: Some(Arc::new(|name, _| {
            (name == "a").then_some(safeshard_tch::Dtype::F64)
        })),
        ..LoadOptions::default()
    };
    // SAFETY: the files stay as they are.
    let (tensors, report) = unsafe { map_with(folder.path(), &options) }.unwrap();
    assert_eq!(report.copied, ["model.a"]);
    assert_eq!(tensors["model.a"].kind(), Kind::Double);
    let (loaded, _) = safeshard_tch::load_with(folder.path(), CPU, &options).unwrap();
    for name in ["model.a", "model.b"] {
        assert_eq!(tensors[name], loaded[name]);
    }
}

#[test]
fn a_share_of_a_tensor_is_read() {
    // A mapping has whole tensors only: the first elements of the tensor were taken for the part's.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("b", &[2]), ("w", &[4, 2])]);
    let options = LoadOptions {
        part: Some(Arc::new(|_, shape| match *shape {
            [_, _] => vec![DimRange::from(2u64..4)],
            _ => vec![],
        })),
        ..LoadOptions::default()
    };
    // SAFETY: the file stays as it is.
    let (tensors, report) = unsafe { map_with(&path, &options) }.unwrap();
    assert_eq!(report.copied, ["w"]);
    let (loaded, _) = safeshard_tch::load_with(&path, CPU, &options).unwrap();
    let whole: HashMap<_, _> = Tensor::read_safetensors(&path)
        .unwrap()
        .into_iter()
        .collect();
    for tensors in [&tensors, &loaded] {
        assert_eq!(tensors["b"], whole["b"]);
        assert_eq!(tensors["w"], whole["w"].narrow(0, 2, 2));
    }
}

#[test]
fn mapped_tensors_are_trained_like_any_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[3, 2])]);
    let before = fs::read(&path).unwrap();
    // SAFETY: the file stays as it is.
    let w = unsafe { map(&path) }.unwrap().remove("w").unwrap();
    let mut w = w.set_requires_grad(true);
    let loss = (&w * 2.).sum(Kind::Float);
    loss.backward();
    let expected = floats(&w.detach())
        .iter()
        .map(|x| x - 0.5 * 2.)
        .collect::<Vec<_>>();
    tch::no_grad(|| {
        let step = w.grad() * 0.5;
        w -= step;
    });
    assert_eq!(floats(&w.detach()), expected);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn saving_over_a_mapped_checkpoint_leaves_its_tensors_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let first = Tensor::arange(100_000, (Kind::Float, CPU));
    safeshard_tch::save_with([("w", &first)], &path, &cached()).unwrap();
    // SAFETY: saves replace the file.
    let mapped = unsafe { map(&path) }.unwrap();
    let second = &first + 1.;
    safeshard_tch::save_with([("w", &second)], &path, &cached()).unwrap();
    assert_eq!(mapped["w"], first);
    // Onto itself, from the mapping.
    safeshard_tch::save_with(&mapped, &path, &cached()).unwrap();
    assert_eq!(load(&path, CPU).unwrap()["w"], first);
    assert_eq!(mapped["w"], first);
}

#[test]
fn a_checkpoint_that_reads_its_files_is_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[2])]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let error = map_from(&checkpoint, &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::NotInMemory);
}

#[test]
fn a_file_that_took_the_place_of_the_opened_one_is_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[2])]);
    let checkpoint = Checkpoint::open_with(&path, &mapped().open).unwrap();
    let other = folder.path().join("other.safetensors");
    write_floats(&other, &[("w", &[2])]);
    fs::rename(&other, &path).unwrap();
    let error = map_from(&checkpoint, &floats_as(Kind::Float)).unwrap_err();
    assert_eq!(error.code(), Code::FileChanged);
}

/// The mapping is nobody's to free, so libtorch may not move it.
#[test]
fn mapped_tensors_stay_in_their_mapping_and_are_saved_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[300])]);
    // SAFETY: the file stays as it is.
    let mut w = unsafe { map(&path) }.unwrap().remove("w").unwrap();
    let saved = safeshard_tch::tensor_to_save("w", &w).unwrap();
    let place = w.data_ptr();
    assert!(w.f_resize_([1000]).is_err());
    assert_eq!(w.data_ptr(), place);
    drop(w);
    let checkpoint = Checkpoint::from_tensors(vec![saved]).unwrap();
    assert_eq!(
        checkpoint.read("w").unwrap(),
        crate::support::numbers("w", 300)
    );
}
