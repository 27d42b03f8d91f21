//! Every dtype of the format: loaded, mapped, saved, bit for bit, with torch's own idea of it.

use std::collections::HashMap;

use rstest::rstest;
use safeshard_core::Code;
use safeshard_tch::{
    Checkpoint, Kinds, LoadOptions, Support, Unsupported, VarOptions, VarStoreExt, dtype_of, load,
    load_with, map, map_from, slice, support, tensor as load_one,
};
use tch::Kind;
use tch::nn::VarStore;

use crate::support::{
    CPU, Stored, bytes, cached, mapped, name, pattern, python, shape, stored, tensor, write,
};

const ALL: [Stored; 20] = [
    Stored::BOOL,
    Stored::F4,
    Stored::U8,
    Stored::I8,
    Stored::F8_E5M2,
    Stored::F8_E4M3,
    Stored::F8_E8M0,
    Stored::F8_E4M3FNUZ,
    Stored::F8_E5M2FNUZ,
    Stored::I16,
    Stored::U16,
    Stored::F16,
    Stored::BF16,
    Stored::I32,
    Stored::U32,
    Stored::F32,
    Stored::C64,
    Stored::F64,
    Stored::I64,
    Stored::U64,
];

/// A matrix of every dtype, 6 by 4, beside its bytes.
fn matrices() -> Vec<(String, Stored, Vec<u8>)> {
    let all = ALL.into_iter();
    all.map(|dtype| {
        let bytes = pattern(dtype, 24 * dtype.bitsize() / 8);
        (dtype.to_string(), dtype, bytes)
    })
    .collect()
}

fn write_matrices(path: &std::path::Path) -> Vec<(String, Stored, Vec<u8>)> {
    let matrices = matrices();
    let views: Vec<_> = matrices
        .iter()
        .map(|(name, dtype, bytes)| (name.as_str(), *dtype, &[6, 4][..], &bytes[..]))
        .collect();
    write(path, &views);
    matrices
}

#[test]
fn every_dtype_that_libtorch_has_is_loaded_mapped_and_saved_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let matrices = write_matrices(&path);
    let loaded = load(&path, CPU).unwrap();
    // SAFETY: the file stays as it is.
    let mapped = unsafe { map(&path) }.unwrap();
    let again = folder.path().join("again.safetensors");
    for tensors in [loaded, mapped] {
        assert_eq!(tensors.len(), ALL.len());
        for (name, dtype, expected) in &matrices {
            let tensor = &tensors[name];
            assert_eq!(dtype_of(tensor).unwrap(), self::name(*dtype));
            let columns = if *dtype == Stored::F4 { 2 } else { 4 };
            assert_eq!(shape(tensor), [6, columns], "{name}");
            assert_eq!(&bytes(tensor), expected, "{name}");
        }
        let report = safeshard_tch::save_with(&tensors, &again, &cached()).unwrap();
        assert!(report.materialised.is_empty(), "{:?}", report.materialised);
        for (name, dtype, expected) in &matrices {
            let found = stored(&again, name);
            assert_eq!(found, (*dtype, vec![6, 4], expected.clone()), "{name}");
        }
    }
}

#[test]
fn torch_finds_the_same_types_shapes_and_bytes_in_what_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (path, saved) = (
        folder.path().join("a.safetensors"),
        folder.path().join("b.safetensors"),
    );
    write_matrices(&path);
    let tensors = load(&path, CPU).unwrap();
    safeshard_tch::save_with(&tensors, &saved, &cached()).unwrap();
    let code = "
import sys, torch
from safetensors.torch import load_file
a, b = load_file(sys.argv[1]), load_file(sys.argv[2])
assert a.keys() == b.keys()
for name in a:
    assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
    assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name
    print(name, a[name].dtype, a[name].element_size(), tuple(a[name].shape))
";
    let said = python(code, &[&path, &saved]);
    assert_eq!(said.lines().count(), ALL.len());
    assert!(
        said.contains("F4 torch.float4_e2m1fn_x2 1 (6, 2)"),
        "{said}"
    );
    assert!(said.contains("U64 torch.uint64 8 (6, 4)"), "{said}");
}

#[rstest]
fn views_with_strides_are_saved_in_order(
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)] dtype: usize,
) {
    let dtype = ALL[dtype];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("views.safetensors");
    let all = pattern(dtype, 24 * dtype.bitsize() / 8);
    let matrix = tensor(dtype, &[6, 4], &all);
    let views = HashMap::from([
        ("transposed", matrix.tr()),
        ("column", matrix.narrow(1, 1, 1)),
        ("rows", matrix.narrow(0, 2, 3)),
        ("broadcast", matrix.narrow(0, 1, 1).expand([5, -1], false)),
        ("scalars", matrix.narrow(0, 0, 0)),
    ]);
    let report = safeshard_tch::save_with(&views, &path, &cached()).unwrap();
    let mut materialised = report.materialised.clone();
    materialised.sort();
    assert_eq!(materialised, ["broadcast", "column", "transposed"]);

    // Naively, with as many bytes as one of libtorch's elements has.
    let size = (dtype.bitsize() / 8).max(1);
    let columns = all.len() / size / 6;
    let element = |i: usize, j: usize| all[(i * columns + j) * size..][..size].to_vec();
    let expected = |name: &str| -> Vec<u8> {
        let places: Vec<(usize, usize)> = match name {
            "transposed" => (0..columns)
                .flat_map(|j| (0..6).map(move |i| (i, j)))
                .collect(),
            "column" => (0..6).map(|i| (i, 1)).collect(),
            "rows" => (2..5)
                .flat_map(|i| (0..columns).map(move |j| (i, j)))
                .collect(),
            "broadcast" => (0..5).flat_map(|_| (0..columns).map(|j| (1, j))).collect(),
            _ => Vec::new(),
        };
        places
            .into_iter()
            .flat_map(|(i, j)| element(i, j))
            .collect()
    };
    for name in views.keys() {
        assert_eq!(stored(&path, name).2, expected(name), "{dtype} {name}");
    }
}

#[test]
fn what_libtorch_cannot_hold_fails_alone_and_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (packed, odd) = (pattern(Stored::F6_E2M3, 6), pattern(Stored::F4, 3));
    write(
        &path,
        &[
            ("six", Stored::F6_E2M3, &[8], &packed),
            ("w", Stored::U8, &[3], &odd),
        ],
    );
    let error = load(&path, CPU).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::UnsupportedDtype, Some("six"))
    );
    assert_eq!(support(safeshard_tch::Dtype::F6E2M3), Support::Never);
    let options = LoadOptions {
        unsupported: Unsupported::Skip,
        ..LoadOptions::default()
    };
    let (tensors, report) = load_with(&path, CPU, &options).unwrap();
    assert_eq!(bytes(&tensors["w"]), odd);
    assert_eq!(report.skipped, [("six".to_owned(), "F6_E2M3".to_owned())]);

    write(&path, &[("odd", Stored::F4, &[2, 3], &odd)]);
    let error = load(&path, CPU).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::UnsupportedDtype, Some("odd"))
    );
    let mut bytes = vec![0; 3];
    bytes.copy_from_slice(
        &safeshard_tch::Checkpoint::open(&path)
            .unwrap()
            .read("odd")
            .unwrap(),
    );
    assert_eq!(bytes, odd);
}

#[test]
fn kinds_that_tch_lacks_can_still_be_computed_with() {
    let values = [1u32, 7, u32::MAX].map(u32::to_le_bytes).concat();
    let tensor = tensor(Stored::U32, &[3], &values);
    assert!(tensor.f_kind().is_err());
    let wide = Vec::<i64>::try_from(tensor.to_kind(Kind::Int64)).unwrap();
    assert_eq!(wide, [1, 7, i64::from(u32::MAX)]);
}

#[test]
fn kinds_that_the_format_lacks_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let complex = tch::Tensor::zeros([2], (Kind::ComplexDouble, CPU));
    let sparse = tch::Tensor::eye(3, (Kind::Float, CPU)).to_sparse_sparse_dim(2);
    let plain = tch::Tensor::zeros([2], (Kind::Float, CPU));
    let undefined = tch::Tensor::new();
    let tensors = [
        ("complex", &complex),
        ("sparse", &sparse),
        ("plain", &plain),
        ("none", &undefined),
    ];
    let error = safeshard_tch::save(tensors, &path).unwrap_err();
    let found: Vec<_> = error
        .problems()
        .iter()
        .map(|e| (e.tensor().unwrap(), e.code()))
        .collect();
    assert_eq!(
        found,
        [
            ("complex", Code::UnsupportedDtype),
            ("sparse", Code::Framework),
            ("none", Code::Framework),
        ]
    );
    assert!(!path.exists());
}

#[test]
fn conjugated_and_negated_numbers_are_saved_as_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let parts = [1f32, 2., -3., 4.].map(f32::to_le_bytes).concat();
    let complex = tensor(Stored::C64, &[2], &parts);
    let conjugated = complex.conj();
    let imaginary = conjugated.imag();
    assert!(conjugated.is_conj() && imaginary.is_neg());
    let tensors = [
        ("conjugated", &conjugated),
        ("imaginary", &imaginary),
        ("plain", &complex),
    ];
    let report = safeshard_tch::save_with(tensors, &path, &cached()).unwrap();
    assert_eq!(report.materialised, ["conjugated", "imaginary"]);
    let floats = |values: &[f32]| {
        values
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<_>>()
    };
    assert_eq!(stored(&path, "conjugated").2, floats(&[1., -2., -3., -4.]));
    assert_eq!(stored(&path, "imaginary").2, floats(&[-2., -4.]));
    assert_eq!(stored(&path, "plain").2, parts);
}

/// libtorch takes for granted that there is no other.
#[test]
fn a_bool_that_is_neither_0_nor_1_is_refused_wherever_it_would_become_a_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let wrong = [1, 0, 1, 2, 255, 1];
    write(&path, &[("w", Stored::BOOL, &[3, 2], &wrong)]);
    let options = LoadOptions::default();
    let mut adopting = VarOptions {
        kinds: Kinds::Checkpoint,
        ..VarOptions::default()
    };
    let mut vars = VarStore::new(CPU);
    let variable = vars.root().ones_no_train("w", &[3, 2]);
    let mapping = Checkpoint::open_with(&path, &mapped().open).unwrap();
    let mut errors = vec![
        load(&path, CPU).unwrap_err(),
        load_with(&path, CPU, &options).unwrap_err(),
        load_one(&path, "w", CPU).unwrap_err(),
        slice(&path, "w", &[0..2, 0..2], CPU).unwrap_err(),
        // SAFETY: the file stays as it is.
        unsafe { map(&path) }.unwrap_err(),
        map_from(&mapping, &options).unwrap_err(),
        vars.load_checkpoint(&path, &adopting).unwrap_err(),
        vars.adopt_checkpoint(&path, &adopting).unwrap_err(),
    ];
    adopting.load.open = mapped().open;
    errors.push(vars.adopt_checkpoint(&path, &adopting).unwrap_err());
    for error in errors {
        assert_eq!((error.code(), error.tensor()), (Code::CastValue, Some("w")));
        assert!(error.to_string().contains("2 at element 3"), "{error}");
    }
    assert_eq!(variable, tch::Tensor::ones([3, 2], (Kind::Float, CPU)));
    // What is right of it can be had, and what is wrong can be looked at.
    let right = slice(&path, "w", &[0..1, 0..2], CPU).unwrap();
    assert_eq!(bytes(&right), [1, 0]);
    assert_eq!(mapping.read("w").unwrap(), wrong);
}
