//! `diff` compares tensors, not files.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::*;

fn diff(args: &[&str], a: &Path, b: &Path) -> (i32, Value) {
    let paths = [a.to_str().unwrap(), b.to_str().unwrap()];
    let run = safeshard(["diff", "--json"].iter().chain(args).chain(&paths));
    (run.code.unwrap(), run.json())
}

fn pair(folder: &Path, a: &[Tensor<'_>], b: &[Tensor<'_>]) -> [PathBuf; 2] {
    let paths = ["a", "b"].map(|name| folder.join(format!("{name}.safetensors")));
    write(&paths[0], a);
    write(&paths[1], b);
    paths
}

#[test]
fn sharding_makes_no_difference() {
    let folder = tempdir().unwrap();
    // The same tensors in one file, as the safetensors crate writes them.
    let mut all = Vec::new();
    let shards: Vec<_> = (1..=3)
        .map(|n| fs::read(bert().join(format!("model-0000{n}-of-00003.safetensors"))).unwrap())
        .collect();
    for shard in &shards {
        let shard = safetensors::SafeTensors::deserialize(shard).unwrap();
        all.extend(shard.tensors().into_iter().map(|(name, view)| {
            (
                name,
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            )
        }));
    }
    let borrowed: Vec<_> = all
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), *dtype, shape.clone(), data.clone()))
        .collect();
    let single = folder.path().join("single.safetensors");
    write(&single, &borrowed);
    let nothing = json!({"version": 1, "equal": true, "only_a": [], "only_b": [], "changed": []});
    assert_eq!(diff(&[], &bert(), &single), (0, nothing.clone()));
    assert_eq!(diff(&["--io", "mmap"], &single, &bert()), (0, nothing));
}

#[test]
fn names_dtypes_shapes_and_values_are_told_apart() {
    let folder = tempdir().unwrap();
    let [a, b] = pair(
        folder.path(),
        &[
            floats("gone", &[1.0]),
            floats("same", &[1.0]),
            floats("shape", &[1.0, 2.0]),
            floats("values.10", &[1.0, 2.0, -4.0, f32::INFINITY]),
            (
                "values.2",
                Dtype::I32,
                vec![2],
                vec![1, 0, 0, 0, 2, 0, 0, 0],
            ),
            ("dtype", Dtype::F16, vec![1], vec![0, 0x3C]),
        ],
        &[
            floats("new", &[1.0]),
            floats("same", &[1.0]),
            (
                "shape",
                Dtype::F32,
                vec![2, 1],
                [1.0f32, 2.0].map(f32::to_le_bytes).concat(),
            ),
            floats("values.10", &[1.0, 2.5, -5.0, f32::INFINITY]),
            (
                "values.2",
                Dtype::I32,
                vec![2],
                vec![1, 0, 0, 0, 2, 1, 1, 0],
            ),
            floats("dtype", &[1.0]),
        ],
    );
    let change = |name: &str, reason: &str, abs: Option<f64>, rel: Option<f64>, differing: u64| {
        json!({
            "name": name, "reason": reason, "max_abs": abs, "max_rel": rel, "differing": differing,
        })
    };
    let expected = json!({
        "version": 1,
        "equal": false,
        "only_a": ["gone"],
        "only_b": ["new"],
        "changed": [
            change("dtype", "dtype", None, None, 0),
            change("shape", "shape", None, None, 0),
            change("values.2", "values", None, None, 1),
            change("values.10", "values", Some(1.0), Some(0.2), 2),
        ],
    });
    assert_eq!(diff(&[], &a, &b), (1, expected));
    let text = safeshard([Path::new("diff"), &a, &b]).ended(1).stdout;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "- gone",
            "+ new",
            "! dtype: F16 in A, F32 in B",
            "! shape: [2] in A, [2, 1] in B",
            "! values.2: 1 element",
            "! values.10: 2 elements, by at most 1.000e0, relative 2.000e-1",
            "different: 1 the same, 4 changed, 1 only in A, 1 only in B",
        ]
    );
}

#[test]
fn tolerances_are_numpys() {
    let folder = tempdir().unwrap();
    let [a, b] = pair(
        folder.path(),
        &[floats("w", &[1.0, 100.0, f32::NAN, 0.0])],
        &[floats("w", &[1.5, 101.0, f32::NAN, -0.0])],
    );
    // numpy.isclose(a, b, rtol, atol, equal_nan=True)
    for (tolerances, differing) in [
        (&[][..], 3),
        (&["--atol", "0"], 2),
        (&["--atol", "0.5"], 1),
        (&["--rtol", "0.01"], 1),
        (&["--rtol", "0.01", "--atol", "0.49"], 0),
        (&["--atol", "1"], 0),
    ] {
        let (code, found) = diff(tolerances, &a, &b);
        assert_eq!(code, i32::from(differing > 0), "{tolerances:?}");
        let count = found["changed"][0]["differing"].as_u64().unwrap_or(0);
        assert_eq!(count, differing, "{tolerances:?}");
    }
    for wrong in ["-1", "nan", "x"] {
        safeshard(["diff", "--atol", wrong, "a", "b"]).ended(2);
    }
}

#[test]
fn dtypes_are_compared_by_value_where_that_is_asked_for() {
    let folder = tempdir().unwrap();
    let halves = [0x3C00u16, 0xC000, 0x7C00].map(u16::to_le_bytes).concat();
    let [a, b] = pair(
        folder.path(),
        &[
            ("w", Dtype::F16, vec![3], halves),
            ("i", Dtype::I8, vec![1], vec![1]),
        ],
        &[
            floats("w", &[1.0, -2.0, f32::INFINITY]),
            ("i", Dtype::U8, vec![1], vec![1]),
        ],
    );
    let (_, found) = diff(&["--cast"], &a, &b);
    assert_eq!(found["changed"].as_array().unwrap().len(), 1);
    assert_eq!(found["changed"][0]["name"], "i");
    write(
        &b,
        &[
            floats("w", &[1.0, -2.5, f32::INFINITY]),
            ("i", Dtype::I8, vec![1], vec![1]),
        ],
    );
    let (code, found) = diff(&["--cast"], &a, &b);
    assert_eq!(code, 1);
    assert_eq!(found["changed"][0]["differing"], 1);
    assert_eq!(found["changed"][0]["max_abs"], 0.5);
}

#[test]
fn what_is_not_a_number_is_null() {
    let folder = tempdir().unwrap();
    let [a, b] = pair(
        folder.path(),
        &[floats("w", &[1.0, 2.0])],
        &[floats("w", &[f32::NAN, 3.0])],
    );
    let (code, found) = diff(&["--atol", "10"], &a, &b);
    assert_eq!(code, 1);
    let expected = json!([{
        "name": "w", "reason": "values", "max_abs": null, "max_rel": null, "differing": 1,
    }]);
    assert_eq!(found["changed"], expected);
}

#[test]
fn a_difference_in_the_last_element_of_many_is_found_by_any_number_of_threads() {
    let folder = tempdir().unwrap();
    let values = vec![1.0; (5 << 20) + 3];
    let mut other = values.clone();
    *other.last_mut().unwrap() = 1.25;
    other[0] = 0.5;
    let [a, b] = pair(
        folder.path(),
        &[floats("w", &values)],
        &[floats("w", &other)],
    );
    for threads in ["1", "2", "7"] {
        let (code, found) = diff(&["--threads", threads], &a, &b);
        assert_eq!(code, 1);
        let changed = &found["changed"][0];
        assert_eq!(
            (&changed["differing"], &changed["max_abs"]),
            (&json!(2), &json!(0.5))
        );
        // Relative to B.
        assert_eq!(changed["max_rel"], 1.0);
    }
}

#[test]
fn what_cannot_be_read_is_no_difference() {
    let bert = bert();
    safeshard([Path::new("diff"), &bert, Path::new("/nonexistent")]).ended(2);
}
