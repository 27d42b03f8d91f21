//! What we save, in Python's readers; and what Python's writers wrote, saved by us.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use safeshard_candle::{Checkpoint, LoadOptions, SaveOptions, Unsupported, Weights, save_with};
use safeshard_core::{Dialect, Durability, Ties};
use serde_json::{Value, json};

use crate::support::{expectations, fixtures};

const CPU: &Device = &Device::Cpu;

fn options() -> SaveOptions {
    SaveOptions {
        durability: Durability::Cached,
        ..SaveOptions::default()
    }
}

/// One file, and shards in every spelling of the index.
fn layouts() -> Vec<SaveOptions> {
    let shards = [Dialect::Transformers, Dialect::Hub, Dialect::Dcp].map(|dialect| SaveOptions {
        max_shard_size: "30KB".parse().unwrap(),
        dialect,
        ..options()
    });
    shards.into_iter().chain([options()]).collect()
}

/// Saved checkpoints for `load_saved.py` to load.
struct Jobs {
    folder: tempfile::TempDir,
    jobs: Vec<Value>,
}

impl Jobs {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            jobs: Vec::new(),
        }
    }

    /// A place to save what was loaded from a fixture; no model if there is no architecture.
    fn add(&mut self, fixture: &str, architecture: Option<&str>, variant: Option<&str>) -> PathBuf {
        let name = format!("{}-{fixture}", self.jobs.len());
        let saved = self.folder.path().join(name);
        self.jobs.push(json!({
            "saved": saved,
            "original": fixtures().join(fixture),
            "architecture": architecture,
            "variant": variant,
        }));
        saved
    }

    /// Saves a model that transformers saved, beside its `config.json`.
    fn save(
        &mut self,
        fixture: &str,
        architecture: &str,
        tensors: &HashMap<String, Tensor>,
        options: &SaveOptions,
    ) {
        let saved = self.add(fixture, Some(architecture), options.variant.as_deref());
        let report = save_with(tensors, &saved, options).unwrap();
        assert_eq!(report.index.is_some(), report.files.len() > 1);
        let config = fixtures().join(fixture).join("config.json");
        fs::copy(config, saved.join("config.json")).unwrap();
    }

    /// Lets every reader load every job and compare it with the original.
    fn load(self) {
        let path = self.folder.path().join("jobs.json");
        fs::write(&path, Value::from(self.jobs.clone()).to_string()).unwrap();
        let python = std::env::var_os("SAFESHARD_PYTHON");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/load_saved.py");
        let output =
            Command::new(python.expect("SAFESHARD_PYTHON is not set: run `cargo xtask test`"))
                .arg(script)
                .arg(path)
                .output()
                .unwrap();
        let (stdout, stderr) = (output.stdout, output.stderr);
        let stdout = String::from_utf8_lossy(&stdout);
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(output.status.success(), "{stdout}\n{stderr}");
        let loaded = stdout.lines().filter(|line| line.starts_with("loaded "));
        assert_eq!(loaded.count(), self.jobs.len(), "{stdout}");
    }
}

fn loaded(fixture: &str, options: &LoadOptions) -> HashMap<String, Tensor> {
    let weights = Weights::open_with(fixtures().join(fixture), options).unwrap();
    weights.load(CPU).unwrap().0
}

#[test]
fn python_loads_models_that_we_save() {
    let mut jobs = Jobs::new();
    for (fixture, architecture) in [
        ("bert-sharded", "BertModel"),
        ("bert-bf16-sharded", "BertModel"),
        ("llama-untied-sharded", "LlamaForCausalLM"),
    ] {
        let tensors = loaded(fixture, &LoadOptions::default());
        for options in layouts() {
            jobs.save(fixture, architecture, &tensors, &options);
        }
    }
    let mut load = LoadOptions::default();
    load.open.variant = Some("fp16".to_owned());
    let tensors = loaded("bert-two-variants", &load);
    for options in layouts() {
        let variant = load.open.variant.clone();
        let options = SaveOptions { variant, ..options };
        jobs.save("bert-two-variants", "BertModel", &tensors, &options);
    }
    jobs.load();
}

/// A model in candle has its tied tensor under one name, as transformers stores it, or under both.
#[test]
fn python_loads_tied_models_that_we_save() {
    let mut jobs = Jobs::new();
    for (fixture, architecture, embeddings) in [
        (
            "gpt2-tied-sharded",
            "GPT2LMHeadModel",
            "transformer.wte.weight",
        ),
        (
            "llama-tied-single",
            "LlamaForCausalLM",
            "model.embed_tokens.weight",
        ),
    ] {
        let one_name = loaded(fixture, &LoadOptions::default());
        let mut both = one_name.clone();
        both.insert("lm_head.weight".to_owned(), both[embeddings].clone());
        for options in layouts() {
            let duplicate = SaveOptions {
                ties: Ties::Duplicate,
                ..options.clone()
            };
            jobs.save(fixture, architecture, &one_name, &options);
            jobs.save(fixture, architecture, &both, &options);
            jobs.save(fixture, architecture, &both, &duplicate);
        }
    }
    jobs.load();
}

/// A checkpoint that Python wrote.
struct Original {
    fixture: String,
    checkpoint: Checkpoint,
    load: LoadOptions,
    /// Its files, the index included.
    files: BTreeMap<String, Vec<u8>>,
}

fn originals() -> Vec<Original> {
    let originals = expectations().into_iter().map(|(folder, expected)| {
        let path = folder.join(expected["path"].as_str().unwrap());
        let mut load = LoadOptions {
            unsupported: Unsupported::Skip,
            ..LoadOptions::default()
        };
        load.open.variant = expected["variant"].as_str().map(str::to_owned);
        let names = expected["files"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str);
        let names = names.chain(expected["index"].as_str());
        Original {
            fixture: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            checkpoint: Checkpoint::open_with(&path, &load.open).unwrap(),
            load,
            files: names
                .map(|name| (name.to_owned(), fs::read(path.join(name)).unwrap()))
                .collect(),
        }
    });
    let originals: Vec<_> = originals.collect();
    assert!(originals.len() >= 18, "{} fixtures", originals.len());
    originals
}

/// Torch's distributed reader looks at headers and never at an index.
#[test]
fn torch_loads_what_python_wrote_and_we_saved_again() {
    let mut jobs = Jobs::new();
    for Original {
        fixture,
        checkpoint,
        load,
        ..
    } in originals()
    {
        // It knows no variants, reads no folder with a file that has F4 in it, and the cache is what
        // another fixture is.
        let known = fixture != "all-dtypes" && load.open.variant.is_none();
        if !known || fixture == "hf-cache" {
            continue;
        }
        let saved = jobs.add(&fixture, None, None);
        let like = SaveOptions {
            durability: Durability::Cached,
            ..SaveOptions::like(&checkpoint)
        };
        safeshard_core::save(checkpoint.save_tensors(), &saved, &like).unwrap();
    }
    assert!(jobs.jobs.len() >= 12, "{}", jobs.jobs.len());
    jobs.load();
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths
        .map(|path| (name(&path), fs::read(&path).unwrap()))
        .collect()
}

/// The header, without regard to order, and the bytes behind it.
fn parts(file: &[u8]) -> (Value, &[u8]) {
    let (len, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

#[test]
fn what_python_wrote_is_saved_again_byte_for_byte() {
    for original in originals() {
        let Original {
            fixture,
            checkpoint,
            files: wanted,
            ..
        } = &original;
        let folder = tempfile::tempdir().unwrap();
        let like = SaveOptions {
            durability: Durability::Cached,
            ..SaveOptions::like(checkpoint)
        };
        safeshard_core::save(checkpoint.save_tensors(), folder.path(), &like).unwrap();
        let saved = files(folder.path());
        match fixture.as_str() {
            // Python's header has its metadata in a random order where there is more than one key.
            "all-dtypes" | "hub-tied-single" => {
                assert!(saved.keys().eq(wanted.keys()), "{fixture}");
                for (file, bytes) in wanted {
                    assert_eq!(parts(&saved[file]), parts(bytes), "{fixture}: {file}");
                    assert_eq!(saved[file].len(), bytes.len(), "{fixture}: {file}");
                }
            }
            // The consolidating writer puts no metadata into headers, does not pad them and has its
            // tensors in another order: only the index and the tensors can be the same.
            "dcp-consolidated" => {
                assert!(saved.keys().eq(wanted.keys()), "{fixture}");
                let index = "model.safetensors.index.json";
                assert_eq!(saved[index], wanted[index], "{fixture}");
            }
            // One shard with an index, which is a single file for everybody else.
            "dcp-consolidated-one" => assert!(saved.keys().eq(["model.safetensors"])),
            // Each shard says where its tensors began in the ranks' memory. All began at 0 here,
            // which is what torch takes where nothing is said, and what holds after any re-sharding.
            "dcp-rank0" => {
                assert!(saved.keys().eq(wanted.keys()), "{fixture}");
                for (file, bytes) in wanted {
                    if file.ends_with(".json") {
                        assert_eq!(saved[file], *bytes, "{fixture}: {file}");
                        continue;
                    }
                    let (mut wanted, data) = parts(bytes);
                    let metadata = wanted["__metadata__"].as_object_mut().unwrap();
                    metadata.remove("DCP_SHARDING_INFO").unwrap();
                    assert_eq!(parts(&saved[file]), (wanted, data), "{fixture}: {file}");
                }
            }
            _ => assert!(
                saved == *wanted,
                "{fixture}: {:?}",
                differing(&saved, wanted)
            ),
        }
        same_tensors(
            checkpoint,
            &Checkpoint::open_with(folder.path(), &original.load.open).unwrap(),
        );
    }
}

fn differing<'a>(
    a: &'a BTreeMap<String, Vec<u8>>,
    b: &'a BTreeMap<String, Vec<u8>>,
) -> Vec<&'a str> {
    let names = a.keys().chain(b.keys());
    names
        .filter(|&name| a.get(name) != b.get(name))
        .map(String::as_str)
        .collect()
}

fn same_tensors(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.names(), b.names());
    for name in a.names() {
        let (of_a, of_b) = (a.info(name).unwrap(), b.info(name).unwrap());
        assert_eq!((of_a.dtype, of_a.shape), (of_b.dtype, of_b.shape), "{name}");
        assert_eq!(a.read(name).unwrap(), b.read(name).unwrap(), "{name}");
    }
}

/// By way of candle's tensors, in any order, wherever candle has all of the dtypes.
#[test]
fn what_python_wrote_is_the_same_after_a_stay_in_candle() {
    let mut same = 0;
    for original in originals() {
        let Original {
            fixture,
            checkpoint,
            load,
            files: wanted,
        } = original;
        let weights = Weights::open_with(&checkpoint, &load).unwrap();
        let (tensors, report) = weights.load(CPU).unwrap();
        if !report.skipped.is_empty() || fixture.starts_with("dcp") || fixture == "hub-tied-single"
        {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let like = SaveOptions {
            durability: Durability::Cached,
            ..SaveOptions::like(&checkpoint)
        };
        save_with(&tensors, folder.path(), &like).unwrap();
        let saved = files(folder.path());
        assert!(saved.keys().eq(wanted.keys()), "{fixture}");
        for (file, wanted) in &wanted {
            let (saved, json) = (&saved[file], |bytes| {
                serde_json::from_slice::<Value>(bytes).unwrap()
            });
            if file.ends_with(".json") {
                assert_eq!(json(saved), json(wanted), "{fixture}: {file}");
            } else {
                assert!(saved == wanted, "{fixture}: {file}");
            }
        }
        same += 1;
    }
    assert!(same >= 12, "{same} checkpoints");
}
