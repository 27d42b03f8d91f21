//! numpy and ndarray make the same arrays of each other's files.

use std::path::Path;
use std::process::Command;

use ndarray::{Array3, ArrayD, IxDyn, s};
use safeshard_core::SaveTensor;
use safeshard_ndarray::{Complex32, DynArray, Element, SaveOptions, f16, load, tensor_to_save};

/// The arrays of one element type, by the rule that numpy's side follows too.
fn arrays<A: Element>(element: fn(u8) -> A) -> Vec<(String, ArrayD<A>)> {
    let array = Array3::from_shape_fn((2, 3, 4), |(i, j, k)| element((12 * i + 4 * j + k) as u8));
    let arrays = [
        ("ordinary", array.view().into_dyn()),
        ("transposed", array.t().into_dyn()),
        ("reversed", array.slice(s![..;-1, .., ..;-1]).into_dyn()),
        ("second", array.slice(s![.., .., 1..;2]).into_dyn()),
        ("scalar", array.slice(s![1, 2, 3]).into_dyn()),
        ("empty", array.slice(s![.., ..0, ..]).into_dyn()),
    ];
    // `to_owned` keeps the order of the axes in memory.
    let mut arrays = arrays
        .map(|(layout, view)| (layout, view.to_owned()))
        .to_vec();
    let row = array.slice(s![1, 2, ..]);
    arrays.push((
        "broadcast",
        row.broadcast(IxDyn(&[3, 4])).unwrap().to_owned(),
    ));
    let name = |layout| format!("{}.{layout}", A::DTYPE);
    arrays
        .into_iter()
        .map(|(layout, array)| (name(layout), array))
        .collect()
}

/// All of them, saved or compared.
fn each(mut visit: impl FnMut(String, DynArray)) {
    fn all<A: Element>(visit: &mut impl FnMut(String, DynArray), element: fn(u8) -> A) {
        for (name, array) in arrays(element) {
            visit(name, array.into());
        }
    }
    all(&mut visit, |i| i % 3 == 1);
    all(&mut visit, |i| i);
    all(&mut visit, |i| i as i8);
    all(&mut visit, i16::from);
    all(&mut visit, u16::from);
    all(&mut visit, i32::from);
    all(&mut visit, u32::from);
    all(&mut visit, i64::from);
    all(&mut visit, u64::from);
    all(&mut visit, |i| f16::from_f32(i.into()));
    all(&mut visit, f32::from);
    all(&mut visit, f64::from);
    all(&mut visit, |i| {
        Complex32::new(i.into(), -0.5 * f32::from(i))
    });
}

#[test]
fn numpy_makes_the_same_arrays_of_our_files_and_we_of_its() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (
        folder.path().join("a.safetensors"),
        folder.path().join("b.safetensors"),
    );
    let mut tensors: Vec<SaveTensor<'_>> = Vec::new();
    each(|name, array| tensors.push(tensor_to_save(name, array)));
    let count = tensors.len();
    assert_eq!(count, 13 * 7);
    let report = safeshard_core::save(tensors, &ours, &SaveOptions::default()).unwrap();
    // Two layouts of `to_owned` are not row-major.
    assert!(report.materialised.contains(&"F32.transposed".to_owned()));

    let python = std::env::var_os("SAFESHARD_PYTHON");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/numpy_arrays.py");
    let output = Command::new(python.expect("SAFESHARD_PYTHON is not set: run `cargo xtask test`"))
        .args([&script, &ours, &theirs])
        .output()
        .unwrap();
    let (stdout, stderr) = (output.stdout, output.stderr);
    let stdout = String::from_utf8_lossy(&stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&stderr)
    );
    assert_eq!(stdout.trim(), format!("equal {count}"));

    let loaded = load(&theirs).unwrap();
    assert_eq!(loaded.len(), count);
    each(|name, array| assert_eq!(loaded[&name], array, "{name}"));
}
