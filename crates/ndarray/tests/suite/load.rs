//! Loading by path and by options, and what is refused.

use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayD, Ix1, Ix2, Ix3, IxDyn, arr1, arr2, s};
use rstest::rstest;
use safeshard_ndarray::{
    Checkpoint, CheckpointExt, Code, DimRange, Dtype, DynArray, Error, LoadOptions, PackedArray,
    Result, SaveOptions, bf16, dyn_tensor, f16, load, load_with, save_with, slice, tensor,
    tensor_to_save,
};

use crate::support::{Stored, in_memory, write};

fn code<T>(result: Result<T>) -> Code {
    result.err().map(|error| error.code()).unwrap()
}

#[test]
fn shards_are_loaded_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let arrays =
        [("a", 1f32), ("b", 2.), ("c", 3.)].map(|(name, x)| (name, Array1::from_elem(100, x)));
    let options = SaveOptions {
        max_shard_size: "400B".parse().unwrap(),
        ..SaveOptions::default()
    };
    let report = save_with(arrays.clone(), folder.path(), &options).unwrap();
    assert_eq!(report.files.len(), 3);
    let loaded = load(folder.path()).unwrap();
    for (name, array) in arrays {
        assert_eq!(loaded[name].view::<f32, Ix1>().unwrap(), array);
    }
    // Only the shard with the tensor is opened.
    std::fs::remove_file(folder.path().join(&report.files[2].name)).unwrap();
    assert_eq!(
        tensor::<f32, Ix1>(folder.path(), "b").unwrap(),
        Array1::from_elem(100, 2.)
    );
    assert_eq!(
        slice::<f32, Ix1>(folder.path(), "b", s![90..])
            .unwrap()
            .len(),
        10
    );
    assert_eq!(code(load(folder.path())), Code::ShardMissing);
}

#[test]
fn options_filter_rename_and_cast() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = vec![
        tensor_to_save("model.w", arr1(&[bf16::from_f32(1.5), bf16::from_f32(-2.)])),
        tensor_to_save("model.ids", arr1(&[7i64])),
        tensor_to_save("other", arr1(&[0u8])),
    ];
    safeshard_core::save(tensors, &path, &SaveOptions::default()).unwrap();
    let options = LoadOptions {
        filter: Some(Arc::new(|name| name.starts_with("model."))),
        rename: Some(Arc::new(|name| name.replace("model.", ""))),
        ..LoadOptions::floats_as(Dtype::F64)
    };
    let (arrays, report) = load_with(&path, &options).unwrap();
    assert_eq!(arrays.len(), 2);
    assert_eq!(arrays["w"].view::<f64, Ix1>().unwrap(), arr1(&[1.5, -2.]));
    assert_eq!(arrays["ids"].dtype(), Dtype::I64);
    assert_eq!(report.cast.len(), 1);
}

#[test]
fn a_share_of_every_array_is_loaded_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let w = arr2(&[[1f32, 2., 3.], [4., 5., 6.]]);
    let b = arr1(&[7f32, 8.]);
    let tensors = vec![tensor_to_save("w", &w), tensor_to_save("b", &b)];
    safeshard_core::save(tensors, folder.path(), &SaveOptions::default()).unwrap();
    let options = LoadOptions {
        part: Some(Arc::new(|name, shape| match name {
            "w" => vec![DimRange::all(shape[0]), DimRange::from(1u64..3)],
            _ => vec![],
        })),
        ..LoadOptions::floats_as(Dtype::F64)
    };
    let (arrays, _) = load_with(folder.path(), &options).unwrap();
    assert_eq!(
        arrays["w"].view::<f64, Ix2>().unwrap(),
        arr2(&[[2., 3.], [5., 6.]])
    );
    assert_eq!(arrays["b"].view::<f64, Ix1>().unwrap(), arr1(&[7., 8.]));
}

#[test]
fn tied_tensors_share_their_elements() {
    let folder = tempfile::tempdir().unwrap();
    let w = Array2::<f32>::ones((3, 4));
    let report = safeshard_ndarray::save([("a", &w), ("b", &w)], folder.path()).unwrap();
    assert_eq!(report.aliases["b"], "a");
    let mut arrays = load(folder.path()).unwrap();
    let address = |arrays: &std::collections::HashMap<String, DynArray>, name: &str| {
        arrays[name].view::<f32, Ix2>().unwrap().as_ptr()
    };
    assert_eq!(address(&arrays, "a"), address(&arrays, "b"));

    // So they are tied again when they are saved, and change apart.
    let again = safeshard_ndarray::save(&arrays, folder.path()).unwrap();
    assert_eq!(again.aliases["b"], "a");
    let mut a: Array2<f32> = arrays.remove("a").unwrap().try_into().unwrap();
    a.fill(5.);
    assert_eq!(arrays["b"].view::<f32, Ix2>().unwrap(), w);
}

#[test]
fn an_array_that_nobody_shares_is_not_copied() {
    let array = DynArray::from(arr2(&[[1f32, 2.]]));
    let address = array.view::<f32, Ix2>().unwrap().as_ptr();
    let array: Array2<f32> = array.try_into().unwrap();
    assert_eq!(array.as_ptr(), address);
    let shared: ndarray::ArcArray2<f32> = DynArray::from(array).try_into().unwrap();
    assert_eq!(shared.as_ptr(), address);
}

#[rstest]
#[case(2)]
#[case(0x80)]
#[case(255)]
fn a_bool_is_zero_or_one(#[case] byte: u8) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(
        &path,
        &[Stored::with_bytes(
            "mask",
            Dtype::Bool,
            &[4],
            [0, 1, byte, 0],
        )],
    );
    let checkpoint = Checkpoint::from_bytes(std::fs::read(&path).unwrap()).unwrap();
    let errors: [Error; 5] = [
        load(&path).unwrap_err(),
        tensor::<bool, Ix1>(&path, "mask").unwrap_err(),
        checkpoint.view::<bool, Ix1>("mask").unwrap_err(),
        checkpoint.cow::<bool, Ix1>("mask").unwrap_err(),
        checkpoint.mapped::<bool, Ix1>("mask").unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code(), Code::CastValue);
        assert_eq!(error.tensor(), Some("mask"));
        let found = format!("{byte} at element 2");
        assert_eq!(error.finding(), Some(found.as_str()));
    }
    // The part without it is fine.
    let part = slice::<bool, Ix1>(&checkpoint, "mask", s![..2]).unwrap();
    assert_eq!(part, arr1(&[false, true]));
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_read() {
    let checkpoint = in_memory(&[Stored::new("w", Dtype::F32, &[2, 3])]);
    assert_eq!(
        code(tensor::<f64, Ix2>(&checkpoint, "w")),
        Code::DtypeMismatch
    );
    assert_eq!(
        code(tensor::<f32, Ix3>(&checkpoint, "w")),
        Code::RankMismatch
    );
    assert_eq!(
        code(tensor::<f32, Ix2>(&checkpoint, "v")),
        Code::TensorMissing
    );
    assert_eq!(
        code(slice::<f32, Ix2>(&checkpoint, "w", s![0..3])),
        Code::SliceRange
    );
    assert_eq!(
        code(slice::<f32, Ix2>(&checkpoint, "w", s![0..1, 0..1, 0..1])),
        Code::SliceRank
    );
    let error = tensor::<f32, Ix1>(&checkpoint, "w").unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `w`: the tensor has another number of dimensions than asked for: expected 1, found 2"
    );
}

/// ndarray counts the dimensions beside a 0 too.
#[test]
fn an_empty_shape_that_ndarray_refuses_is_an_error() {
    let shape = [1 << 40, 0, 1 << 40];
    let checkpoint = in_memory(&[Stored::with_bytes("w", Dtype::F32, &shape, [])]);
    assert_eq!(
        code(tensor::<f32, IxDyn>(&checkpoint, "w")),
        Code::Framework
    );
    assert_eq!(code(checkpoint.view::<f32, Ix3>("w")), Code::Framework);
    assert_eq!(code(dyn_tensor(&checkpoint, "w")), Code::Framework);
}

#[test]
fn arrays_of_any_dtype_are_converted_by_the_rules_of_casts() {
    let half = DynArray::from(arr2(&[[f16::from_f32(0.5), f16::INFINITY]]).reversed_axes());
    let single = half.cast::<f32>().unwrap();
    assert_eq!(
        single.view::<f32, Ix2>().unwrap(),
        arr2(&[[0.5], [f32::INFINITY]])
    );
    let flags = DynArray::from(arr1(&[true, false])).cast::<u8>().unwrap();
    assert_eq!(flags.view::<u8, Ix1>().unwrap(), arr1(&[1, 0]));
    let complex = DynArray::from(arr1(&[safeshard_ndarray::Complex32::new(1., -2.)]));
    let parts = complex.cast::<f32>().unwrap();
    assert_eq!(parts.view::<f32, Ix2>().unwrap(), arr2(&[[1., -2.]]));
    assert_eq!(half.cast::<f16>().unwrap(), half);

    assert_eq!(code(single.cast::<i32>()), Code::UnsupportedCast);
    assert_eq!(code(single.cast::<bool>()), Code::UnsupportedCast);
    let large = DynArray::from(arr1(&[u64::MAX]));
    assert_eq!(code(large.cast::<i64>()), Code::CastValue);
    let packed = DynArray::from(PackedArray::new(Dtype::F4, &[2], vec![0x21]).unwrap());
    assert_eq!(code(packed.cast::<f32>()), Code::UnsupportedCast);
    assert_eq!(code(packed.view::<u8, Ix1>()), Code::DtypeMismatch);
    assert_eq!(code(ArrayD::<u8>::try_from(packed)), Code::DtypeMismatch);
}

#[test]
fn packed_arrays_are_what_they_say() {
    assert_eq!(
        code(PackedArray::new(Dtype::F4, &[3], vec![0; 2])),
        Code::BufferSize
    );
    assert_eq!(
        code(PackedArray::new(Dtype::F4, &[4], vec![0; 3])),
        Code::BufferSize
    );
    assert_eq!(
        code(PackedArray::new(Dtype::U8, &[1], vec![0])),
        Code::UnsupportedDtype
    );
}
