//! Checkpoints in other shards: what Python wrote, unchanged in any, and found by Python again.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::symlink;

use rstest::rstest;
use safeshard_core::{
    Cancel, Checkpoint, Code, Dialect, Durability, Losses, ReshardOptions, ReshardReport,
    SaveOptions, SaveTensor, Sharding, Shards, SideFiles, Ties, reshard, save,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use support::python::{self, Written, fixtures};
use support::tensors::{MIB, SINGLE, cached, contents, names, noise, vectors};
use support::trace::Times;
use support::{FIRST, Folder, INDEX, SECOND, healthy, refused, trace, with_metadata};

fn into(shards: Shards) -> ReshardOptions {
    ReshardOptions {
        shards,
        durability: Durability::Cached,
        ..ReshardOptions::default()
    }
}

/// File, key and value of what is left of metadata.
fn left(report: &ReshardReport) -> Vec<[&str; 3]> {
    let left = report.metadata_left.iter();
    left.map(|left| [&*left.file, &*left.key, &*left.value])
        .collect()
}

fn limit(bytes: u64) -> Shards {
    Shards::Limit(bytes.to_string().parse().unwrap())
}

#[test]
fn what_python_wrote_is_split_and_merged_without_changing_a_byte() {
    for written in Written::all() {
        println!("{}", written.folder.display());
        let folder = Folder::new();
        let mut before = written.open();
        // From folder to folder, and then in the last one.
        for (number, shards) in [
            limit(20_000),
            Shards::Single,
            limit(7_000),
            Shards::Keep,
            limit(20_000),
            Shards::Single,
        ]
        .into_iter()
        .enumerate()
        {
            let to = folder.join(number.min(3).to_string());
            let report = reshard(&before, &to, &into(shards)).unwrap();
            assert!(report.saved.left_behind.is_empty());
            assert!(report.cast.is_empty() && report.renamed.is_empty());
            before = Checkpoint::open_with(&to, &written.open_options()).unwrap();
            assert!(before.warnings().is_empty(), "{:?}", before.warnings());
            written.is_in(&before);
            match shards {
                Shards::Single => assert_eq!(names(&to).len(), 1),
                Shards::Limit(size) => {
                    for file in before.files() {
                        let tensors = file.header().tensors();
                        let sizes: Vec<_> = tensors.map(|tensor| tensor.byte_len()).collect();
                        let all: u64 = sizes.iter().sum();
                        assert!(all <= size.bytes() || sizes.len() == 1);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Like it is means the very bytes, but for the order of metadata, and the headers of torch's own
/// writer, which are wider.
#[test]
fn what_python_wrote_is_kept_as_it_is() {
    for case in fs::read_dir(fixtures().join("save")).unwrap() {
        let original = case.unwrap().path();
        if !original.is_dir() {
            continue;
        }
        let checkpoint = match Checkpoint::open(&original) {
            // Of a variant, or whatever else is not opened without being told.
            Err(_) => continue,
            Ok(checkpoint) => checkpoint,
        };
        let folder = Folder::new();
        let report = reshard(&checkpoint, folder.path(), &into(Shards::Keep)).unwrap();
        // Torch says of each shard which ranks its tensors were on.
        let mut left = report.metadata_left.iter().map(|left| &*left.key);
        assert!(left.all(|key| key == "DCP_SHARDING_INFO"));
        let input = fs::read(original.join("input.json")).unwrap();
        let input: Value = serde_json::from_slice(&input).unwrap();
        for (name, bytes) in contents(folder.path()) {
            if input["dialect"] == "dcp" && name != INDEX {
                continue;
            }
            let original = fs::read(original.join(&name)).unwrap();
            let is_same = in_order(&bytes) == in_order(&original);
            assert!(is_same, "{name} of {:?}", checkpoint.path());
        }
        assert_eq!(
            names(folder.path()).len(),
            checkpoint.files().len() + report.saved.index.iter().count()
        );
    }
}

/// A file with its header's metadata in a certain order: the reference's is random.
fn in_order(file: &[u8]) -> (Option<Value>, &[u8]) {
    let Some((len, rest)) = file.split_first_chunk().filter(|_| !file.starts_with(b"{")) else {
        return (None, file);
    };
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    (Some(serde_json::from_slice(header).unwrap()), data)
}

#[test]
fn a_merged_file_is_what_the_reference_writes() {
    let checkpoint = Checkpoint::open(fixtures().join("interop/bert-sharded")).unwrap();
    let folder = Folder::new();
    reshard(&checkpoint, folder.path(), &into(Shards::Single)).unwrap();
    let shards: Vec<_> = checkpoint
        .files()
        .iter()
        .map(|file| fs::read(file.path().unwrap()).unwrap())
        .collect();
    let shards: Vec<_> = shards
        .iter()
        .map(|shard| SafeTensors::deserialize(shard).unwrap())
        .collect();
    let tensors = shards.iter().flat_map(SafeTensors::tensors);
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let expected = safetensors::serialize(tensors, Some(metadata)).unwrap();
    assert!(fs::read(folder.join(SINGLE)).unwrap() == expected);
}

#[test]
fn python_loads_it_from_whatever_shards() {
    let folder = Folder::new();
    let mut jobs = Vec::new();
    for (fixture, architecture) in [
        ("bert-sharded", "BertModel"),
        ("bert-bf16-sharded", "BertModel"),
        ("bert-single", "BertModel"),
        ("llama-untied-sharded", "LlamaForCausalLM"),
        ("llama-tied-single", "LlamaForCausalLM"),
        ("gpt2-tied-sharded", "GPT2LMHeadModel"),
    ] {
        let original = fixtures().join("interop").join(fixture);
        let checkpoint = Checkpoint::open(&original).unwrap();
        let dialects = [Dialect::Transformers, Dialect::Hub, Dialect::Dcp];
        let ways = dialects.map(|dialect| (limit(30_000), Some(dialect)));
        for (shards, dialect) in ways
            .into_iter()
            .chain([(Shards::Single, None), (Shards::Keep, None)])
        {
            let saved = folder.join(jobs.len().to_string());
            let options = ReshardOptions {
                dialect,
                side_files: SideFiles::Carry,
                ..into(shards)
            };
            let report = reshard(&checkpoint, &saved, &options).unwrap();
            assert!(report.carried.contains(&"config.json".to_owned()));
            jobs.push(json!({
                "saved": saved,
                "original": original,
                "architecture": architecture,
                "variant": null,
            }));
        }
    }
    python::run("load_saved.py", &jobs, folder.path());
}

// ---- how bytes travel

/// Three files of 20 MiB in neighbouring tensors, as one.
fn large(folder: &Folder) -> Checkpoint {
    let bytes = noise(12 * MIB + 3);
    let parts: Vec<_> = (0..9).map(|at| &bytes[at..][..4 * MIB - at]).collect();
    let options = SaveOptions {
        max_shard_size: (12 * MIB).to_string().parse().unwrap(),
        ..cached()
    };
    save(vectors(&parts), folder.join("from"), &options).unwrap();
    Checkpoint::open(folder.join("from")).unwrap()
}

/// Whether two checkpoints hold the same tensors.
#[track_caller]
fn same(one: &Checkpoint, other: &Checkpoint) {
    assert_eq!(one.names(), other.names());
    for tensor in one.tensors() {
        let there = other.info(tensor.name).unwrap();
        assert_eq!((there.dtype, there.shape), (tensor.dtype, tensor.shape));
        assert!(
            other.read(tensor.name).unwrap() == one.read(tensor.name).unwrap(),
            "{}",
            tensor.name
        );
    }
}

#[rstest]
fn the_system_copies_neighbours_together(
    #[values(Durability::Durable, Durability::Cached)] durability: Durability,
) {
    if let Some(root) = support::child_folder() {
        let checkpoint = Checkpoint::open(root.join("from")).unwrap();
        let options = ReshardOptions {
            durability,
            threads: NonZeroUsize::new(1),
            ..into(Shards::Single)
        };
        trace::traced(|| reshard(&checkpoint, root.join("to"), &options)).unwrap();
        return;
    }
    if !trace::works("copies by the system") {
        return;
    }
    let folder = Folder::new();
    let checkpoint = large(&folder);
    let calls = trace::calls(folder.path());
    same(&checkpoint, &Checkpoint::open(folder.join("to")).unwrap());
    let copies = calls
        .iter()
        .filter(|call| call.name == "copy_file_range")
        .count();
    // A call for each 8 MiB of the new file, and for each file that they come from.
    assert!((5..=5 + 3).contains(&copies), "{copies} calls");
    let written = calls.iter().filter(|call| call.name.contains("write"));
    let lengths = written.map(|call| {
        call.arguments
            .rsplit(", ")
            .find_map(|word| word.parse::<u64>().ok())
    });
    let written: u64 = lengths.map(Option::unwrap).sum();
    assert!(written < 10_000, "{written} bytes went through memory");
}

#[rstest]
fn where_the_system_does_not_copy_nothing_is_different(
    #[values("ENOSYS", "EXDEV", "EINVAL", "EOPNOTSUPP", "EPERM", "EIO")] errno: &str,
    #[values(Times::Once, Times::FromThenOn)] times: Times,
) {
    fail_to_copy(errno, times);
}

#[test]
fn a_copy_that_is_interrupted_goes_on() {
    fail_to_copy("EINTR", Times::Once);
}

fn fail_to_copy(errno: &str, times: Times) {
    if let Some(root) = support::child_folder() {
        let checkpoint = Checkpoint::open(root.join("from")).unwrap();
        let options = ReshardOptions {
            threads: NonZeroUsize::new(1),
            ..into(Shards::Single)
        };
        trace::traced(|| reshard(&checkpoint, root.join("to"), &options)).unwrap();
        return;
    }
    if !trace::works("copies that the system refuses") {
        return;
    }
    let folder = Folder::new();
    let checkpoint = large(&folder);
    let calls = trace::calls(folder.path());
    let copies: Vec<_> = calls
        .iter()
        .filter(|call| call.name == "copy_file_range")
        .collect();
    // At first, between, and at the last.
    for call in [copies[0], copies[2], copies[copies.len() - 1]] {
        fs::remove_dir_all(folder.join("to")).unwrap();
        trace::strike(folder.path(), call, &format!("error={errno}"), times);
        same(&checkpoint, &Checkpoint::open(folder.join("to")).unwrap());
    }
}

#[test]
fn mapped_files_and_bytes_in_memory_are_written_too() {
    let folder = Folder::new();
    let checkpoint = large(&folder);
    reshard(&checkpoint, folder.join("one"), &into(Shards::Single)).unwrap();
    let bytes = fs::read(folder.join("one").join(SINGLE)).unwrap();
    let in_memory = Checkpoint::from_bytes(bytes).unwrap();
    reshard(
        &in_memory,
        folder.join("split"),
        &into(limit(5 * MIB as u64)),
    )
    .unwrap();
    same(
        &checkpoint,
        &Checkpoint::open(folder.join("split")).unwrap(),
    );
    let options = safeshard_core::OpenOptions {
        // SAFETY: nobody else has these files.
        io: unsafe { safeshard_core::Io::mmap() },
        ..Default::default()
    };
    let mapped = Checkpoint::open_with(folder.join("split"), &options).unwrap();
    reshard(&mapped, folder.join("split"), &into(Shards::Single)).unwrap();
    same(
        &checkpoint,
        &Checkpoint::open(folder.join("split")).unwrap(),
    );
}

#[test]
fn the_bytes_are_the_same_on_any_number_of_threads() {
    let folder = Folder::new();
    let checkpoint = large(&folder);
    let mut seen = Vec::new();
    for threads in [1, 2, 7] {
        let options = ReshardOptions {
            threads: NonZeroUsize::new(threads),
            ..into(limit(9_000_000))
        };
        let to = folder.join(threads.to_string());
        reshard(&checkpoint, &to, &options).unwrap();
        seen.push(contents(&to));
    }
    assert!(seen[0] == seen[1] && seen[0] == seen[2]);
}

// ---- files that change

#[test]
fn a_file_that_is_cut_off_or_grows_is_an_error_and_leaves_nothing() {
    for change in [-1, 1_i64] {
        let folder = Folder::new();
        let checkpoint = large(&folder);
        let file = checkpoint.files()[1].path().unwrap().to_owned();
        let open = File::options().write(true).open(&file).unwrap();
        let len = open.metadata().unwrap().len();
        open.set_len(len.checked_add_signed(change * 1000).unwrap())
            .unwrap();
        let code = match change {
            -1 => Code::FileTruncated,
            _ => Code::FileChanged,
        };
        for (to, left) in [("to", None), ("from", Some(4))] {
            let error = refused(
                reshard(&checkpoint, folder.join(to), &into(Shards::Single)),
                code,
            );
            assert_eq!(error.path(), Some(&*file));
            assert_eq!(error.tensor(), (change < 0).then_some("f"));
            let left = left.unwrap_or_default();
            assert_eq!(
                names(&folder.join(to)).len(),
                left,
                "{:?}",
                names(&folder.join(to))
            );
        }
    }
}

#[test]
fn a_cancelled_run_leaves_what_was_there() {
    let folder = Folder::new();
    let checkpoint = large(&folder);
    let before = contents(&folder.join("from"));
    let cancel = Cancel::default();
    let switch = cancel.clone();
    let options = ReshardOptions {
        cancel: Some(cancel),
        progress: Some(std::sync::Arc::new(move |_| switch.cancel())),
        ..into(Shards::Single)
    };
    refused(
        reshard(&checkpoint, folder.join("from"), &options),
        Code::Cancelled,
    );
    assert!(contents(&folder.join("from")) == before);
}

// ---- metadata, names, places

fn entries(metadata: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    metadata.iter().map(owned).collect()
}

fn metadata_of(checkpoint: &Checkpoint) -> Vec<BTreeMap<String, String>> {
    let files = checkpoint.files().iter();
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    files
        .map(|file| file.header().metadata().map(owned).collect())
        .collect()
}

#[test]
fn metadata_that_differs_is_reported_and_all_other_is_kept() {
    let folder = Folder::new();
    let first = [("all", "1"), ("some", "2"), ("rank", "0"), ("format", "pt")];
    let second = [("all", "1"), ("rank", "1")];
    folder
        .write(FIRST, with_metadata(&[("a", &[1])], &first))
        .write(SECOND, with_metadata(&[("b", &[2])], &second))
        .index_json(&json!({
            "metadata": {"total_size": 2, "total_parameters": 2, "note": "3", "number": 4},
            "weight_map": {"a": FIRST, "b": SECOND},
        }));
    let checkpoint = folder.open().unwrap();
    let ranks = [[FIRST, "rank", "0"], [SECOND, "rank", "1"]];

    let report = reshard(&checkpoint, folder.join("single"), &into(Shards::Single)).unwrap();
    let of_index = [INDEX, "number", "4"];
    assert_eq!(left(&report), [&ranks[..], &[of_index]].concat());
    let single = Checkpoint::open(folder.join("single")).unwrap();
    let kept = [("all", "1"), ("some", "2"), ("format", "pt"), ("note", "3")];
    assert_eq!(metadata_of(&single), [entries(&kept)]);

    for (to, shards) in [("kept", Shards::Keep), ("limit", limit(1))] {
        let options = ReshardOptions {
            dialect: Some(Dialect::Transformers),
            ..into(shards)
        };
        let report = reshard(&checkpoint, folder.join(to), &options).unwrap();
        assert_eq!(left(&report), ranks);
        let sharded = Checkpoint::open(folder.join(to)).unwrap();
        assert_eq!(
            metadata_of(&sharded),
            [entries(&kept[..3]), entries(&kept[..3])]
        );
        let metadata = sharded.index().unwrap().metadata();
        let expected = json!({"total_size": 2, "total_parameters": 2, "note": "3", "number": 4});
        assert_eq!(Value::from(metadata.clone()), expected);
    }
}

#[test]
fn what_the_index_does_not_serve_is_reported() {
    let folder = healthy();
    folder.index(&[("a", FIRST), ("b", FIRST), ("d", SECOND)]);
    let checkpoint = folder.open().unwrap();
    let report = reshard(&checkpoint, folder.join("to"), &into(Shards::Single)).unwrap();
    assert_eq!(report.unlisted, [(SECOND.to_owned(), "c".to_owned())]);

    // In place it would be gone.
    let error = reshard(&checkpoint, folder.path(), &into(Shards::Single)).unwrap_err();
    assert_eq!(error.code(), Code::WouldBeLost);
    assert_eq!(error.path(), Some(&*folder.join(SECOND)));
    assert!(error.to_string().contains(": c that its index"), "{error}");
    assert_eq!(folder.open().unwrap().names(), ["a", "b", "d"]);
    assert!(folder.join(SECOND).exists());
    let options = ReshardOptions {
        losses: Losses::Accept,
        ..into(Shards::Single)
    };
    let report = reshard(&checkpoint, folder.path(), &options).unwrap();
    assert_eq!(report.unlisted, [(SECOND.to_owned(), "c".to_owned())]);
    assert_eq!(folder.open().unwrap().names(), ["a", "b", "d"]);
}

#[test]
fn files_get_the_names_that_are_looked_for() {
    let folder = Folder::new();
    folder.write(
        "llama.safetensors",
        with_metadata(&[("a", &[1]), ("b", &[2])], &[]),
    );
    folder.write(
        "adapter_model.fp16.safetensors",
        with_metadata(&[("a", &[1]), ("b", &[2])], &[]),
    );
    let open = |name: &str| Checkpoint::open(folder.join(name)).unwrap();
    let shards = ["00001-of-00002", "00002-of-00002"];
    for (from, to, stem, index) in [
        ("llama.safetensors", "a", "model", INDEX),
        (
            "adapter_model.fp16.safetensors",
            "b",
            "adapter_model.fp16",
            "adapter_model.safetensors.index.fp16.json",
        ),
        (
            "llama.safetensors",
            "",
            "llama",
            "llama.safetensors.index.json",
        ),
    ] {
        let report = reshard(&open(from), folder.join(to), &into(limit(1))).unwrap();
        let files: Vec<_> = report.saved.files.iter().map(|file| &file.name).collect();
        assert_eq!(
            files,
            shards
                .map(|shard| format!("{stem}-{shard}.safetensors"))
                .each_ref()
        );
        assert_eq!(report.saved.index.as_deref(), Some(index));
    }
    assert!(
        !folder.join("llama.safetensors").exists(),
        "it was replaced"
    );
    assert_eq!(open("llama.safetensors.index.json").read("b").unwrap(), [2]);
}

#[test]
fn one_file_goes_where_its_path_says() {
    let folder = healthy();
    let checkpoint = folder.open().unwrap();
    let before = names(folder.path());
    // There, it would be a second checkpoint.
    let error = refused(
        reshard(&checkpoint, folder.join(SINGLE), &into(Shards::Single)),
        Code::AmbiguousCheckpoint,
    );
    assert_eq!(error.path(), Some(&*folder.join(SINGLE)));
    assert_eq!(names(folder.path()), before);
    reshard(
        &checkpoint,
        folder.join("other.safetensors"),
        &into(Shards::Single),
    )
    .unwrap();
    same(
        &checkpoint,
        &Checkpoint::open(folder.join("other.safetensors")).unwrap(),
    );
    same(&checkpoint, &folder.open().unwrap());
}

#[test]
fn every_tensor_stays_where_it_is_if_shards_are_kept() {
    let folder = healthy();
    let checkpoint = folder.open().unwrap();
    reshard(&checkpoint, folder.join("kept"), &into(Shards::Keep)).unwrap();
    let kept = Checkpoint::open(folder.join("kept")).unwrap();
    for tensor in checkpoint.tensors() {
        let file =
            |checkpoint: &Checkpoint| checkpoint.file_of(tensor.name).unwrap().name().to_owned();
        assert_eq!(file(&kept), file(&checkpoint));
    }
}

// ---- the files beside it

fn carrying() -> ReshardOptions {
    ReshardOptions {
        side_files: SideFiles::Carry,
        ..into(Shards::Single)
    }
}

#[test]
fn small_files_go_along_and_weights_do_not() {
    let folder = healthy();
    for name in [
        "config.json",
        "tokenizer.model",
        "LICENSE",
        "pytorch_model.bin",
        "other.safetensors",
        ".git/config",
        "onnx/model.onnx",
    ] {
        folder.write(name, name);
    }
    folder.write("blobs/tokenizer.json", "linked");
    symlink("blobs/tokenizer.json", folder.join("tokenizer.json")).unwrap();
    let to = folder.join("to");
    let checkpoint = folder.open().unwrap();
    let report = reshard(&checkpoint, &to, &carrying()).unwrap();
    let along = [
        "LICENSE",
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
    ];
    assert_eq!(report.carried, along);
    assert_eq!(
        report.not_carried,
        ["blobs", "onnx", "other.safetensors", "pytorch_model.bin"]
    );
    let mut expected: Vec<_> = along.map(str::to_owned).into();
    expected.insert(2, SINGLE.to_owned());
    assert_eq!(names(&to), expected);
    assert_eq!(fs::read(to.join("tokenizer.json")).unwrap(), b"linked");
    assert!(!to.join("tokenizer.json").is_symlink());

    // Once more: they are there already.
    assert_eq!(
        reshard(&checkpoint, &to, &carrying()).unwrap().carried,
        along
    );
    // To where they are, they need not go.
    assert!(
        reshard(&checkpoint, folder.path(), &carrying())
            .unwrap()
            .carried
            .is_empty()
    );
}

#[test]
fn a_file_that_says_something_else_is_not_replaced() {
    for other in ["other", "Config", "config.longer"] {
        let folder = healthy();
        folder
            .write("config.json", "config")
            .write("a-file", "")
            .write("to/config.json", other);
        let error = refused(
            reshard(&folder.open().unwrap(), folder.join("to"), &carrying()),
            Code::SideFileDiffers,
        );
        assert_eq!(error.path(), Some(&*folder.join("to/config.json")));
        assert_eq!(names(&folder.join("to")), ["config.json"]);
        assert_eq!(
            fs::read(folder.join("to/config.json")).unwrap(),
            other.as_bytes()
        );
    }
}

#[test]
fn ties_and_the_order_of_shards_are_not_invented() {
    // The same bytes twice, in one file of memory, are two tensors still.
    let folder = Folder::new();
    let bytes = [1, 2, 3];
    let tensors =
        ["a", "b"].map(|name| SaveTensor::new(name, safeshard_core::Dtype::U8, [3], &bytes[..]));
    let options = SaveOptions {
        ties: Ties::Duplicate,
        sharding: Sharding::Explicit(vec![vec!["b".into()], vec!["a".into()]]),
        ..cached()
    };
    save(tensors.into(), folder.path(), &options).unwrap();
    let report = reshard(&folder.open().unwrap(), folder.path(), &into(Shards::Keep)).unwrap();
    assert!(report.saved.aliases.is_empty());
    let checkpoint = folder.open().unwrap();
    assert!(
        checkpoint
            .file_of("b")
            .unwrap()
            .name()
            .contains("-00001-of-")
    );
}
