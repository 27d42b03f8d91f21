//! `inspect` says what the `safetensors` crate says.

use std::fs;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::*;

#[test]
fn json_is_what_the_safetensors_crate_reads() {
    let path = bert();
    let found = safeshard(["inspect", path.to_str().unwrap(), "--json"])
        .ended(0)
        .json();
    assert_eq!(found["version"], 1);
    assert_eq!(found["kind"], "index");
    assert_eq!(found["path"], path.to_str().unwrap());
    assert_eq!(found["findings"], json!([]));
    assert_eq!(found["aliases"], json!({}));

    let index = fs::read(path.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(found["index"]["name"], "model.safetensors.index.json");
    assert_eq!(found["index"]["metadata"], index["metadata"]);
    assert_eq!(found["totals"]["bytes"], index["metadata"]["total_size"]);
    assert_eq!(
        found["totals"]["parameters"],
        index["metadata"]["total_parameters"]
    );

    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!(found["totals"]["tensors"], tensors.len());
    assert_eq!(
        tensors.len(),
        index["weight_map"].as_object().unwrap().len()
    );
    for file in found["files"].as_array().unwrap() {
        let name = file["name"].as_str().unwrap();
        let bytes = fs::read(path.join(name)).unwrap();
        let (header_len, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(file["bytes"], bytes.len());
        assert_eq!(file["header_bytes"], header_len);
        assert_eq!(file["metadata"], json!({"format": "pt"}));
        let theirs = metadata.tensors();
        assert_eq!(file["tensors"], theirs.len());
        for (tensor, info) in theirs {
            let ours = tensors
                .iter()
                .find(|ours| ours["name"] == tensor.as_str())
                .unwrap();
            let (start, end) = info.data_offsets;
            let expected = json!({
                "name": tensor,
                "dtype": info.dtype,
                "shape": info.shape,
                "bytes": end - start,
                "file": index["weight_map"][&tensor],
                "offsets": [start, end],
            });
            assert_eq!(*ours, expected);
        }
    }
}

#[test]
fn tensors_are_in_natural_order() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let names = ["layer.10.w", "layer.2.w", "layer.1.w", "a"];
    write(&path, &names.map(|name| floats(name, &[1.0])));
    let found = safeshard(["inspect", "--json", path.to_str().unwrap()])
        .ended(0)
        .json();
    let order: Vec<_> = found["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["name"])
        .collect();
    assert_eq!(order, ["a", "layer.1.w", "layer.2.w", "layer.10.w"]);
    assert_eq!(found["kind"], "file");
    assert_eq!(found["index"], Value::Null);
}

#[test]
fn aliases_and_unknown_dtypes_are_shown() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"__metadata__":{"lm_head":"embed"},"embed":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"q":{"dtype":"Q3_K","shape":[8],"data_offsets":[2,5]}}"#;
    write_by_hand(&path, header, &[1, 2, 3, 4, 5]);
    let found = safeshard(["inspect", "--json", path.to_str().unwrap()])
        .ended(0)
        .json();
    assert_eq!(found["aliases"], json!({"lm_head": "embed"}));
    assert_eq!(found["tensors"][1]["dtype"], "Q3_K");
    assert_eq!(found["findings"][0]["code"], "unknown-dtype");
    assert_eq!(found["findings"][0]["severity"], "error");
    let text = safeshard(["inspect", path.to_str().unwrap()])
        .ended(0)
        .stdout;
    assert!(text.contains("lm_head -> embed"), "{text}");
    assert!(text.contains("error[unknown-dtype]"), "{text}");
}

#[test]
fn a_tree_is_as_deep_as_its_names_and_no_deeper_than_a_stack() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let deep = "a.".repeat(20_000);
    write(&path, &[floats(&deep, &[1.0]), floats("b.c", &[2.0, 3.0])]);
    let text = safeshard(["inspect", "--tree", path.to_str().unwrap()])
        .ended(0)
        .stdout;
    let b: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("└─ b"))
        .collect();
    let [b] = b.as_slice() else {
        panic!("{} lines", b.len());
    };
    assert!(b.split_whitespace().eq(["└─", "b", "2", "8", "B"]));
}

#[test]
fn several_files_are_one_checkpoint_without_an_index() {
    let folder = tempdir().unwrap();
    let paths = ["a", "b"].map(|name| folder.path().join(format!("{name}.safetensors")));
    for (path, name) in paths.iter().zip(["x", "y"]) {
        write(path, &[floats(name, &[1.0])]);
    }
    let args = [
        "inspect".as_ref(),
        "--json".as_ref(),
        paths[0].as_os_str(),
        paths[1].as_os_str(),
    ];
    let found = safeshard(args).ended(0).json();
    assert_eq!(found["kind"], "files");
    assert_eq!(found["totals"]["tensors"], 2);
}
