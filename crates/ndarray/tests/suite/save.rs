//! What can be saved, in which order, and from which memory.

use std::collections::{BTreeMap, HashMap};

use ndarray::{Array1, Array2, ArrayViewD, Axis, CowArray, Ix1, Ix2, IxDyn, arr0, arr1, s};
use proptest::prelude::*;
use safeshard_core::{Ties, write_to};
use safeshard_ndarray::{
    Code, DynArray, SaveOptions, load, save, save_with, tensor, tensor_to_save, write_array,
};

use crate::support::bytes;

#[test]
fn every_kind_of_array_and_collection_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let w = Array2::<f32>::from_shape_fn((3, 4), |(i, j)| (i * 4 + j) as f32);
    let expected = w.clone();
    let check = |name: &str, expected: &Array2<f32>| {
        assert_eq!(tensor::<f32, Ix2>(path, name).unwrap(), expected);
    };
    save(HashMap::from([("w".to_owned(), w.clone())]), path).unwrap();
    check("w", &expected);
    save(&BTreeMap::from([("x".to_owned(), w.clone())]), path).unwrap();
    check("x", &expected);
    save(vec![("y", w.view())], path).unwrap();
    check("y", &expected);
    save([("z", w.clone().into_shared())], path).unwrap();
    check("z", &expected);
    save([("c", CowArray::from(w.view()))], path).unwrap();
    check("c", &expected);
    save([("d", DynArray::from(w.clone()))], path).unwrap();
    check("d", &expected);
    write_array(path, "e", &w).unwrap();
    check("e", &expected);
    let mut changed = w;
    write_array(path, "f", &changed.slice_mut(s![..;-1, ..])).unwrap();
    check("f", &expected.slice(s![..;-1, ..]).to_owned());
}

#[test]
fn order_of_the_iterator_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["layer.10.w", "layer.2.w", "a"];
    let mut files = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let arrays = order.map(|i| (names[i], Array1::from_elem(5, i as f32)));
        let options = SaveOptions {
            max_shard_size: "20B".parse().unwrap(),
            ..SaveOptions::default()
        };
        let report = save_with(arrays, folder.path().join(order[0].to_string()), &options).unwrap();
        let folder = folder.path().join(order[0].to_string());
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        files.push(
            report
                .files
                .iter()
                .map(|file| read(&file.name))
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(files[0].len(), 3);
    assert!(files.iter().all(|others| *others == files[0]));
}

#[test]
fn ties_are_arrays_at_the_same_memory_in_the_same_layout() {
    let folder = tempfile::tempdir().unwrap();
    let w = Array2::<f32>::ones((2, 2));
    let views = [
        ("a", w.view()),
        ("b", w.view()),
        ("row", w.slice(s![..1, ..])),
        ("t", w.t()),
    ];
    let report = save(views, folder.path()).unwrap();
    assert_eq!(report.aliases.len(), 1);
    assert_eq!(report.aliases["b"], "a");
    assert_eq!(report.materialised, ["t"]);
    assert_eq!(load(folder.path()).unwrap().len(), 4);
    let options = SaveOptions {
        ties: Ties::Error,
        ..SaveOptions::default()
    };
    let error = save_with(views, folder.path(), &options).unwrap_err();
    assert_eq!(error.code(), Code::TiedTensors);
    // What is empty shares nothing.
    let none = Array1::<f32>::zeros(0);
    assert!(
        save([("a", &none), ("b", &none)], folder.path())
            .unwrap()
            .aliases
            .is_empty()
    );
}

#[test]
fn two_arrays_of_one_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = save([("w", arr0(1u8)), ("w", arr0(2))], folder.path()).unwrap_err();
    assert_eq!(error.code(), Code::NameCollision);
}

/// Pieces are 8 MiB; the shape is such that halves are uneven.
#[test]
fn large_arrays_in_another_order_are_gathered_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let w = Array2::from_shape_fn((2049, 1531), |(i, j)| (i * 4096 + j) as u32);
    let mut pieces = 0;
    let to_save = tensor_to_save("t", w.t());
    let mut gathered = Vec::new();
    to_save
        .data
        .write_to(&mut |piece| {
            assert!(piece.len() <= 8 << 20);
            pieces += 1;
            gathered.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
    assert!(pieces > 1);
    assert!(gathered == bytes(&w.t()));
    save([("t", w.t())], &path).unwrap();
    assert!(tensor::<u32, Ix2>(&path, "t").unwrap() == w.t());
}

#[test]
fn arrays_can_be_written_to_anything_beside_others() {
    let mut file = Vec::new();
    let w = arr1(&[1f32, 2.]);
    let tensors = vec![tensor_to_save("step", arr0(7i64)), tensor_to_save("w", &w)];
    write_to(tensors, &mut file, &SaveOptions::default()).unwrap();
    let saved = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(saved.tensor("w").unwrap().data(), bytes(&w.view()));
    assert_eq!(saved.tensor("step").unwrap().data(), 7i64.to_le_bytes());
}

fn layouts() -> impl Strategy<Value = (Vec<usize>, Vec<usize>, Vec<(bool, usize)>)> {
    prop::collection::vec(0..5usize, 0..5).prop_flat_map(|dims| {
        let axes = Just((0..dims.len()).collect::<Vec<_>>()).prop_shuffle();
        let steps = prop::collection::vec((any::<bool>(), 1..4usize), dims.len());
        (Just(dims), axes, steps)
    })
}

proptest! {
    #[test]
    fn any_layout_is_saved_in_row_major_order((dims, axes, steps) in layouts()) {
        let count: usize = dims.iter().product();
        let buffer = Array1::from_iter(0..count as u32);
        let mut view: ArrayViewD<'_, u32> =
            buffer.view().into_shape_with_order(IxDyn(&dims)).unwrap().permuted_axes(axes);
        for (axis, (invert, step)) in steps.into_iter().enumerate() {
            view.slice_axis_inplace(Axis(axis), ndarray::Slice::new(0, None, step as isize));
            if invert {
                view.invert_axis(Axis(axis));
            }
        }
        let mut file = Vec::new();
        write_to(vec![tensor_to_save("w", view.view())], &mut file, &SaveOptions::default()).unwrap();
        let saved = safetensors::SafeTensors::deserialize(&file).unwrap();
        let saved = saved.tensor("w").unwrap();
        prop_assert_eq!(saved.shape(), view.shape());
        prop_assert_eq!(saved.data(), bytes(&view));
    }
}

#[test]
fn a_single_array_is_one_call() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ids.safetensors");
    let report = write_array(&path, "ids", &arr1(&[3i64, 1])).unwrap();
    assert_eq!(report.files[0].name, "ids.safetensors");
    assert_eq!(tensor::<i64, Ix1>(&path, "ids").unwrap(), arr1(&[3, 1]));
}
