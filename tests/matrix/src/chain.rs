//! Whole checkpoints from hand to hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use rstest::rstest;
use safeshard_core::{Checkpoint, SaveOptions};

use crate::python::Process;

/// Files of a checkpoint: the shards and their index.
fn checkpoint_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_of_checkpoint = |path: &PathBuf| path.to_string_lossy().contains(".safetensors");
    let files = paths.filter(is_of_checkpoint).map(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read(path).unwrap())
    });
    files.collect()
}

/// Loads all of `from` and saves it like it is to `to`.
type Hand = fn(from: &Path, to: &Path);

const HANDS: [(&str, Hand); 3] = [
    ("candle", through_candle),
    ("tch", through_tch),
    ("ndarray", through_ndarray),
];

fn through_candle(from: &Path, to: &Path) {
    let options = SaveOptions::like(&Checkpoint::open(from).unwrap());
    let tensors = safeshard_candle::load(from, &Device::Cpu).unwrap();
    safeshard_candle::save_with(&tensors, to, &options).unwrap();
}

fn through_tch(from: &Path, to: &Path) {
    let options = SaveOptions::like(&Checkpoint::open(from).unwrap());
    let tensors = safeshard_tch::load(from, tch::Device::Cpu).unwrap();
    safeshard_tch::save_with(&tensors, to, &options).unwrap();
}

fn through_ndarray(from: &Path, to: &Path) {
    let options = SaveOptions::like(&Checkpoint::open(from).unwrap());
    let arrays = safeshard_ndarray::load(from).unwrap();
    safeshard_ndarray::save_with(&arrays, to, &options).unwrap();
}

/// From hand to hand; returns the folder of the last.
fn pass(from: &Path, temporary: &Path) -> PathBuf {
    let original = checkpoint_files(from);
    let mut from = from.to_path_buf();
    for (name, hand) in HANDS {
        let to = temporary.join(name);
        hand(&from, &to);
        assert_same(&checkpoint_files(&to), &original, name);
        from = to;
    }
    from
}

fn assert_same(
    found: &BTreeMap<String, Vec<u8>>,
    original: &BTreeMap<String, Vec<u8>>,
    hand: &str,
) {
    assert!(original.len() > 1, "shards and an index");
    assert!(
        found.keys().eq(original.keys()),
        "{hand}: {:?}",
        found.keys()
    );
    for (name, bytes) in original {
        assert!(found[name] == *bytes, "{name} differs after {hand}");
    }
}

fn fixtures() -> PathBuf {
    std::env::var_os("SAFESHARD_FIXTURES")
        .expect("SAFESHARD_FIXTURES is not set: run `cargo xtask test`")
        .into()
}

/// sentence-transformers/all-MiniLM-L6-v2, sharded by transformers, and in the end saved by it again.
#[test]
fn a_real_model_comes_back_to_python_byte_for_byte() {
    let original = fixtures().join("all-minilm-l6-v2");
    let temporary = tempfile::tempdir().unwrap();
    let last = pass(&original, temporary.path());
    fs::copy(original.join("config.json"), last.join("config.json")).unwrap();
    let python = temporary.path().join("python");
    Process::start().resave(&last, &python, "20MB");
    let (python, original) = (checkpoint_files(&python), checkpoint_files(&original));
    assert_same(&python, &original, "python");
}

/// Of other writers, with tied tensors and several dtypes.
#[rstest]
#[case("gpt2-tied-sharded")]
#[case("llama-untied-sharded")]
#[case("hub-tied-sharded")]
#[case("accelerate-sharded")]
fn what_others_wrote_goes_from_hand_to_hand_byte_for_byte(#[case] name: &str) {
    let temporary = tempfile::tempdir().unwrap();
    pass(&fixtures().join("interop").join(name), temporary.path());
}
