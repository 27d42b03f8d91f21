//! Tensors into files: bit for bit, whatever their layout, and tied ones once.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, Var};
use candle_nn::{Init, VarMap};
use rstest::rstest;
use safeshard_candle::{
    LoadOptions, SaveOptions, VarMapExt, load, save, save_with, tensor_to_save, to_candle,
};
use safeshard_core::{Code, Durability, Ties};
use safetensors::{Dtype, SafeTensors};

use crate::support::{Probe, Stored, bytes, same_memory};

const CPU: &Device = &Device::Cpu;

fn options() -> SaveOptions {
    SaveOptions {
        durability: Durability::Cached,
        ..SaveOptions::default()
    }
}

/// As candle's own loader would have it: the storage's bytes are the stored ones.
fn tensor(stored: &Stored) -> Tensor {
    let weights = Probe::new(std::slice::from_ref(stored)).weights(&LoadOptions::default());
    weights.tensor(&stored.name, None, CPU).unwrap()
}

/// Bytes that do not repeat, of this many elements.
fn any(dtype: Dtype, shape: &[usize]) -> Stored {
    let bits = shape.iter().product::<usize>() * dtype.bitsize();
    let bytes: Vec<u8> = (0..bits / 8)
        .map(|i| (i * 37 + i / 256 + 11) as u8)
        .collect();
    Stored::new("w", dtype, shape, bytes)
}

/// Saves, and looks with the reference's eyes.
fn saved(path: &Path, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
    let file = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let view = file.tensor(name).unwrap();
    (view.dtype(), view.shape().to_vec(), view.data().to_vec())
}

/// Row-major, by candle's own copy.
fn row_major(view: &Tensor) -> Vec<u8> {
    bytes(&view.force_contiguous().unwrap())
}

#[rstest]
#[case(Dtype::F4)]
#[case(Dtype::F6_E2M3)]
#[case(Dtype::F6_E3M2)]
#[case(Dtype::U8)]
#[case(Dtype::F8_E4M3)]
#[case(Dtype::F8_E8M0)]
#[case(Dtype::I16)]
#[case(Dtype::F16)]
#[case(Dtype::BF16)]
#[case(Dtype::I32)]
#[case(Dtype::U32)]
#[case(Dtype::F32)]
#[case(Dtype::F64)]
#[case(Dtype::I64)]
fn every_dtype_is_saved_bit_for_bit(#[case] dtype: Dtype) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let scalar: &[usize] = if dtype.bitsize() < 8 { &[8] } else { &[] };
    for shape in [&[2, 4][..], &[3, 1, 8], &[0, 8], scalar] {
        let stored = any(dtype, shape);
        let tensor = tensor(&stored);
        let report = save_with([("w", &tensor)], &path, &options()).unwrap();
        assert_eq!(report.total_size, stored.bytes.len() as u64);
        assert!(report.materialised.is_empty());
        let (found, found_shape, found_bytes) = saved(&path, "w");
        assert_eq!((found, &found_shape[..]), (dtype, shape));
        assert_eq!(found_bytes, stored.bytes);
        let loaded = &load(&path, CPU).unwrap()["w"];
        assert_eq!((loaded.dtype(), loaded.dims()), (tensor.dtype(), shape));
        assert_eq!(bytes(loaded), stored.bytes);
    }
}

#[rstest]
fn views_are_saved_in_row_major_order(
    #[values(
        Dtype::U8,
        Dtype::F8_E4M3,
        Dtype::BF16,
        Dtype::F32,
        Dtype::I64,
        Dtype::F64
    )]
    dtype: Dtype,
) {
    let w = tensor(&any(dtype, &[4, 6]));
    let cube = w.reshape((2, 2, 6)).unwrap();
    let row = w.narrow(0, 1, 1).unwrap();
    let strided = [
        ("transposed", w.t().unwrap()),
        ("columns", w.narrow(1, 2, 3).unwrap()),
        ("permuted", cube.permute((2, 0, 1)).unwrap()),
        ("inner rows", cube.narrow(1, 1, 1).unwrap()),
        (
            "rows of the transposed",
            w.t().unwrap().narrow(0, 4, 2).unwrap(),
        ),
        ("broadcast", row.broadcast_as((5, 6)).unwrap()),
        ("broadcast left", w.broadcast_left(3).unwrap()),
        (
            "one element everywhere",
            w.narrow(0, 3, 1)
                .unwrap()
                .narrow(1, 5, 1)
                .unwrap()
                .broadcast_as((2, 3))
                .unwrap(),
        ),
    ];
    let whole = [
        ("as it is", w.clone()),
        ("rows", w.narrow(0, 1, 2).unwrap()),
        ("one row", row.squeeze(0).unwrap()),
        ("an element", row.narrow(1, 3, 1).unwrap()),
        ("no rows", w.narrow(0, 2, 0).unwrap()),
        ("unsqueezed", w.unsqueeze(1).unwrap()),
        ("flat", w.flatten_all().unwrap()),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let all = strided.iter().chain(&whole).cloned();
    let report = save_with(all, &path, &options()).unwrap();
    let mut copied = strided.each_ref().map(|(name, _)| *name);
    copied.sort_unstable();
    let mut reported = report.materialised.clone();
    reported.sort_unstable();
    assert_eq!(reported, copied);
    assert!(report.aliases.is_empty());
    let loaded = load(&path, CPU).unwrap();
    for (name, view) in strided.iter().chain(&whole) {
        let (found, shape, found_bytes) = saved(&path, name);
        assert_eq!((found, &shape[..]), (dtype, view.dims()), "{name}");
        assert_eq!(found_bytes, row_major(view), "{name}");
        assert_eq!(bytes(&loaded[*name]), found_bytes, "{name}");
    }
}

/// Views that are larger than what is gathered at a time, cut along one or several dimensions.
#[test]
fn large_views_are_saved_piece_by_piece() {
    const MIB: usize = 1 << 20;
    let bytes = (0..20 * MIB)
        .map(|i| (i * 31 + i / 251 + i / 65_521) as u8)
        .collect::<Vec<_>>();
    let w = Tensor::from_vec(bytes, (20, MIB), CPU).unwrap();
    let cube = w.reshape((2, 5, 2, MIB)).unwrap();
    let views = [
        ("transposed", w.t().unwrap()),
        (
            "two long rows",
            w.narrow(1, 3, MIB - 5).unwrap().narrow(0, 0, 9).unwrap(),
        ),
        (
            "outermost of one",
            cube.transpose(1, 2).unwrap().unsqueeze(0).unwrap(),
        ),
        (
            "broadcast",
            w.narrow(0, 7, 1).unwrap().broadcast_as((17, MIB)).unwrap(),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    save_with(views.clone(), &path, &options()).unwrap();
    for (name, view) in views {
        let (_, _, found) = saved(&path, name);
        assert!(found == row_major(&view), "{name}");
    }
}

/// Candle counts the elements of these, several of which share a byte.
#[test]
fn parts_of_packed_elements_are_saved_where_they_are_whole_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for (dtype, row) in [(Dtype::F4, 4), (Dtype::F6_E2M3, 6), (Dtype::F6_E3M2, 6)] {
        let stored = any(dtype, &[5, 8]);
        let rows = tensor(&stored).narrow(0, 2, 2).unwrap();
        save_with([("rows", &rows)], &path, &options()).unwrap();
        let expected = stored.bytes[2 * row..4 * row].to_vec();
        assert_eq!(saved(&path, "rows"), (dtype, vec![2, 8], expected));
    }
}

#[test]
fn what_candle_cannot_copy_is_refused_by_name_before_anything_is_written() {
    let f4 = tensor(&any(Dtype::F4, &[4, 8]));
    let scales = tensor(&any(Dtype::F8_E8M0, &[4, 8]));
    let short = Storage::Cpu(CpuStorage::F32(vec![1.; 5]));
    let refused = [
        (
            "half a byte",
            f4.flatten_all().unwrap().narrow(0, 1, 4).unwrap(),
            Code::SliceSubByte,
        ),
        ("strided scales", scales.t().unwrap(), Code::Framework),
        ("strided f4", f4.narrow(1, 0, 4).unwrap(), Code::Framework),
        ("too short", Tensor::from((short, (2, 3))), Code::Framework),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let tensors = refused.iter().map(|(name, tensor, _)| (*name, tensor));
    let error = save(tensors.chain([("fine", &f4)]), &path).unwrap_err();
    let found = error
        .problems()
        .iter()
        .map(|e| (e.tensor().unwrap(), e.code()));
    assert!(
        found.eq(refused.iter().map(|(name, _, code)| (*name, *code))),
        "{error}"
    );
    assert!(!path.exists());

    // Where they are whole, rows of scales are no different from any other.
    let rows = scales.narrow(0, 1, 2).unwrap();
    save_with([("rows", rows)], &path, &options()).unwrap();
    let stored = any(Dtype::F8_E8M0, &[4, 8]).bytes[8..24].to_vec();
    let file = path.join("model.safetensors");
    assert_eq!(saved(&file, "rows"), (Dtype::F8_E8M0, vec![2, 8], stored));
}

#[test]
fn tied_tensors_are_stored_once_and_loaded_as_one() {
    let fused = tensor(&any(Dtype::F32, &[6, 4]));
    let embed = fused.narrow(0, 0, 3).unwrap();
    let tensors = BTreeMap::from([
        ("embed", embed.clone()),
        ("head", embed),
        // The same bytes, by a view of its own.
        ("again", fused.narrow(0, 0, 3).unwrap()),
        // Other bytes of the same storage, or the same ones in another shape.
        ("rest", fused.narrow(0, 3, 3).unwrap()),
        (
            "flat",
            fused.narrow(0, 0, 3).unwrap().flatten_all().unwrap(),
        ),
        ("overlapping", fused.narrow(0, 1, 3).unwrap()),
    ]);
    let folder = tempfile::tempdir().unwrap();
    for max_shard_size in ["5GB", "60B"] {
        let options = SaveOptions {
            max_shard_size: max_shard_size.parse().unwrap(),
            ..options()
        };
        let report = save_with(&tensors, folder.path(), &options).unwrap();
        assert_eq!(
            report.files.len(),
            if max_shard_size == "5GB" { 1 } else { 4 }
        );
        let kept = |name: &str| (name.to_owned(), "again".to_owned());
        assert_eq!(report.aliases, BTreeMap::from(["embed", "head"].map(kept)));
        assert_eq!(report.total_size, 4 * 12 * 4);
        let loaded = load(folder.path(), CPU).unwrap();
        assert_eq!(loaded.len(), tensors.len());
        for (name, tensor) in &tensors {
            assert_eq!(bytes(&loaded[*name]), row_major(tensor), "{name}");
        }
        assert!(same_memory(&loaded["embed"], &loaded["again"]));
        assert!(same_memory(&loaded["head"], &loaded["again"]));
        assert!(!same_memory(&loaded["flat"], &loaded["again"]));
    }

    let duplicated = SaveOptions {
        ties: Ties::Duplicate,
        ..options()
    };
    let report = save_with(&tensors, folder.path(), &duplicated).unwrap();
    assert!(report.aliases.is_empty());
    assert_eq!(report.total_size, 6 * 12 * 4);
    let error = save_with(
        &tensors,
        folder.path(),
        &SaveOptions {
            ties: Ties::Error,
            ..options()
        },
    );
    assert!(error.is_err());
    assert_eq!(load(folder.path(), CPU).unwrap().len(), tensors.len());
}

/// They have no bytes to share, wherever their empty vectors point.
#[test]
fn empty_tensors_are_not_tied() {
    let empty = || Tensor::zeros((0, 3), DType::F32, CPU).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tensors = [("a", empty()), ("b", empty())];
    let report = save_with(tensors, folder.path(), &options()).unwrap();
    assert!(report.aliases.is_empty());
    assert_eq!(load(folder.path(), CPU).unwrap()["b"].dims(), [0, 3]);
}

#[test]
fn the_result_does_not_depend_on_the_collection() {
    let tensors = (0..12).map(|i| {
        let tensor = Tensor::full(i as f32, (i + 1, 4), CPU).unwrap();
        (format!("layer.{i}.weight"), tensor)
    });
    let tensors: Vec<_> = tensors.collect();
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        max_shard_size: "300B".parse().unwrap(),
        ..options()
    };
    let files = |name: &str| {
        let files = fs::read_dir(folder.path().join(name)).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let files = files.map(|path| {
            (
                path.file_name().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        });
        files.collect::<BTreeMap<_, _>>()
    };
    let hashed: HashMap<_, _> = tensors.iter().cloned().collect();
    let sorted: BTreeMap<_, _> = tensors.iter().cloned().collect();
    let to = |name: &str| folder.path().join(name);
    save_with(&hashed, to("&HashMap"), &options).unwrap();
    save_with(hashed, to("HashMap"), &options).unwrap();
    save_with(&sorted, to("&BTreeMap"), &options).unwrap();
    save_with(sorted, to("BTreeMap"), &options).unwrap();
    save_with(
        tensors.iter().rev().map(|(name, tensor)| (name, tensor)),
        to("iterator"),
        &options,
    )
    .unwrap();
    let ordered = tensors
        .iter()
        .map(|(name, tensor)| tensor_to_save(name, tensor));
    let ordered = ordered.collect::<Result<_, _>>().unwrap();
    safeshard_core::save(ordered, to("core"), &options).unwrap();
    save_with(tensors, to("Vec"), &options).unwrap();

    let first = files("Vec");
    assert!(first.len() > 4);
    for other in [
        "&HashMap",
        "HashMap",
        "&BTreeMap",
        "BTreeMap",
        "iterator",
        "core",
    ] {
        assert_eq!(files(other), first, "{other}");
    }
}

#[test]
fn the_same_name_twice_is_refused() {
    let w = tensor(&any(Dtype::F32, &[2]));
    let folder = tempfile::tempdir().unwrap();
    let error = save([("w", &w), ("w", &w)], folder.path()).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::NameCollision, Some("w"))
    );
}

/// The tensors in memory are not views of the file that is replaced.
#[test]
fn a_checkpoint_is_saved_over_itself() {
    let folder = tempfile::tempdir().unwrap();
    let options = |max: &str| SaveOptions {
        max_shard_size: max.parse().unwrap(),
        ..options()
    };
    let tensors = (0..8).map(|i| (format!("w{i}"), Tensor::full(i as f32, 64, CPU).unwrap()));
    let mut tensors: HashMap<_, _> = tensors.collect();
    for max in ["600B", "600B", "5GB", "300B", "600B"] {
        save_with(&tensors, folder.path(), &options(max)).unwrap();
        let loaded = load(folder.path(), CPU).unwrap();
        assert_eq!(loaded.len(), tensors.len());
        for (name, tensor) in &tensors {
            assert_eq!(bytes(&loaded[name]), bytes(tensor), "{name}");
        }
        tensors = loaded
            .into_iter()
            .map(|(name, w)| (name, (w + 1.).unwrap()))
            .collect();
    }
}

#[test]
fn candles_own_loader_reads_the_shards() {
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        max_shard_size: "100B".parse().unwrap(),
        ..options()
    };
    let all = [
        Dtype::F4,
        Dtype::F6_E2M3,
        Dtype::F6_E3M2,
        Dtype::U8,
        Dtype::F8_E4M3,
        Dtype::F8_E8M0,
        Dtype::I16,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I32,
        Dtype::U32,
        Dtype::F32,
        Dtype::F64,
        Dtype::I64,
    ];
    let stored = all.map(|dtype| any(dtype, &[2, 8]));
    let tensors = stored
        .iter()
        .map(|stored| (stored.dtype.to_string(), tensor(stored)));
    let report = save_with(tensors, folder.path(), &options).unwrap();
    assert!(report.files.len() > 3);
    let paths: Vec<_> = report
        .files
        .iter()
        .map(|file| folder.path().join(&file.name))
        .collect();
    // SAFETY: nobody else changes the files.
    let theirs = unsafe { MmapedSafetensors::multi(&paths) }.unwrap();
    assert_eq!(theirs.tensors().len(), stored.len());
    for stored in &stored {
        let loaded = theirs.load(&stored.dtype.to_string(), CPU).unwrap();
        let ours = safeshard_core::Dtype::from_name(&stored.dtype.to_string());
        assert_eq!(Some(loaded.dtype()), ours.and_then(to_candle));
        assert_eq!(bytes(&loaded), stored.bytes);
    }
}

#[test]
fn a_models_variables_are_saved_and_loaded() {
    let vars = VarMap::new();
    let init = Init::Uniform { lo: -1., up: 1. };
    for i in 0..5 {
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            let name = format!("layer.{i}.{}", dtype.as_str());
            vars.get((3, i + 1), &name, init, dtype, CPU).unwrap();
        }
    }
    let tied = vars.data().lock().unwrap()["layer.4.f32"].clone();
    vars.data().lock().unwrap().insert("head".to_owned(), tied);
    let values = |vars: &VarMap| {
        let data = vars.data().lock().unwrap();
        let values = data.iter().map(|(name, var)| (name.clone(), bytes(var)));
        values.collect::<BTreeMap<_, _>>()
    };
    let before = values(&vars);

    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        max_shard_size: "100B".parse().unwrap(),
        ..options()
    };
    let report = vars.save_checkpoint(folder.path(), &options).unwrap();
    assert!(report.index.is_some() && report.materialised.is_empty());
    assert_eq!(report.aliases["layer.4.f32"], "head");

    let (rebuilt, _) =
        VarMap::from_checkpoint(folder.path(), &LoadOptions::default(), CPU).unwrap();
    assert_eq!(values(&rebuilt), before);
    let shared = rebuilt.data().lock().unwrap().clone();
    assert!(same_memory(&shared["head"], &shared["layer.4.f32"]));

    for var in vars.all_vars() {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    assert_ne!(values(&vars), before);
    vars.load_checkpoint(folder.path(), &LoadOptions::default())
        .unwrap();
    assert_eq!(values(&vars), before);
}

/// One that is set while it is saved is saved as it was before or after.
#[test]
fn a_variable_is_never_saved_half_set() {
    let var = Var::zeros(1 << 20, DType::F32, CPU).unwrap();
    let vars = VarMap::new();
    vars.data()
        .lock()
        .unwrap()
        .insert("w".to_owned(), var.clone());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::thread::scope(|scope| {
        let setter = scope.spawn(|| {
            for i in 0..30 {
                var.set(&Tensor::full(i as f32, 1 << 20, CPU).unwrap())
                    .unwrap();
            }
        });
        while !setter.is_finished() {
            vars.save_checkpoint(&path, &options()).unwrap();
            let saved = load(&path, CPU).unwrap()["w"].to_vec1::<f32>().unwrap();
            assert!(saved.iter().all(|value| *value == saved[0]));
        }
    });
}
