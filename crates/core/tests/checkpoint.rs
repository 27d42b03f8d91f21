//! What a checkpoint that opened answers: names, aliases, dtypes that nobody knows, and what was
//! probably meant.

mod support;

use std::sync::Arc;

use rstest::rstest;
use safeshard_core::{
    Checkpoint, Code, Dtype, Error, Header, LoadOptions, MemorySource, OpenOptions, ReadAt,
    ShardFile, Support, UnknownDtype,
};
use serde_json::json;
use support::{FIRST, Folder, SECOND, by_hand, healthy, refused, warnings, with_metadata};

// ---- tied tensors

fn tied_single() -> Folder {
    let folder = Folder::new();
    let metadata = [
        ("format", "pt"),
        ("head.weight", "embed.weight"),
        ("note", "embed"),
    ];
    let tensors: [(&str, &[u8]); 2] = [("embed.weight", &[1, 2]), ("norm", &[3])];
    folder.write("model.safetensors", with_metadata(&tensors, &metadata));
    folder
}

fn tied_shards() -> Folder {
    let folder = Folder::new();
    folder
        .shard(FIRST, &[("embed.weight", &[1, 2])])
        .shard(SECOND, &[("norm", &[3])]);
    folder.index_json(&json!({
        "metadata": {"total_size": 3, "head.weight": "embed.weight", "note": "x", "norm": "embed.weight"},
        "weight_map": {"embed.weight": FIRST, "norm": SECOND},
    }));
    folder
}

#[rstest]
#[case::in_the_header_of_a_single_file(tied_single())]
#[case::in_the_index_of_shards(tied_shards())]
fn tied_tensors_are_served_under_both_names(#[case] folder: Folder) {
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.names(), ["embed.weight", "head.weight", "norm"]);
    let aliases: Vec<_> = checkpoint.aliases().iter().collect();
    assert_eq!(
        aliases,
        [(&"head.weight".to_owned(), &"embed.weight".to_owned())]
    );
    assert!(checkpoint.contains("head.weight"));
    assert_eq!(checkpoint.info("head.weight").unwrap().name, "embed.weight");
    assert_eq!(checkpoint.read("head.weight").unwrap(), [1, 2]);
    let slice = checkpoint.read_slice("head.weight", &[(1u64..2).into()]);
    assert_eq!(slice.unwrap(), [2]);
    // A stored tensor is never replaced by a record of the same name.
    assert_eq!(checkpoint.read("norm").unwrap(), [3]);
    assert_eq!(checkpoint.tensors().count(), 2);
    assert_eq!(checkpoint.totals().bytes, 3);
    assert_eq!(warnings(&checkpoint), []);
}

// ---- names

#[test]
fn names_come_in_natural_order_whatever_the_files_say() {
    let folder = Folder::new();
    folder
        .shard(
            FIRST,
            &[
                ("layer.10.w", &[1]),
                ("layer.9.w", &[1]),
                ("layer.2.w", &[1]),
            ],
        )
        .shard(SECOND, &[("layer.1.w", &[1]), ("layer.2.b", &[1])])
        .index(&[
            ("layer.1.w", SECOND),
            ("layer.9.w", FIRST),
            ("layer.10.w", FIRST),
            ("layer.2.b", SECOND),
            ("layer.2.w", FIRST),
        ]);
    let checkpoint = folder.open().unwrap();
    let names = [
        "layer.1.w",
        "layer.2.b",
        "layer.2.w",
        "layer.9.w",
        "layer.10.w",
    ];
    assert_eq!(checkpoint.names(), names);
    assert!(checkpoint.tensors().map(|tensor| tensor.name).eq(names));
    let files: Vec<_> = checkpoint.files().iter().map(ShardFile::name).collect();
    assert_eq!(files, [SECOND, FIRST], "in the order of the index");
}

#[test]
fn a_name_that_was_probably_meant_is_named() {
    let folder = Folder::new();
    folder.shard(
        FIRST,
        &[
            ("bert.pooler.dense.weight", &[1]),
            ("bert.pooler.dense.bias", &[1]),
        ],
    );
    folder.index(&[
        ("bert.pooler.dense.weight", FIRST),
        ("bert.pooler.dense.bias", FIRST),
    ]);
    let checkpoint = folder.open().unwrap();
    for wrong in [
        "pooler.dense.weight",
        "model.bert.pooler.dense.weight",
        "bert.pooler.dense.wieght",
    ] {
        let error = refused(checkpoint.info(wrong), Code::TensorMissing);
        assert_eq!(
            (error.path(), error.tensor()),
            (Some(folder.path()), Some(wrong))
        );
        let message = error.to_string();
        assert!(
            message.ends_with("did you mean `bert.pooler.dense.weight`?"),
            "{message}"
        );
        assert!(
            message.contains("nothing of this name in the index"),
            "{message}"
        );
    }
    let message = refused(checkpoint.info("lm_head"), Code::TensorMissing).to_string();
    assert!(!message.contains("did you mean"), "{message}");
}

#[test]
fn metadata_of_the_files() {
    let folder = tied_single();
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.metadata_value("format"), Some("pt"));
    assert_eq!(checkpoint.metadata_value("absent"), None);
    assert_eq!(healthy().open().unwrap().metadata_value("format"), None);
}

// ---- dtypes that nobody knows

const UNKNOWN: &str = r#"{"new":{"dtype":"F2","shape":[4],"data_offsets":[0,1]},"old":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;

fn keep() -> OpenOptions {
    OpenOptions {
        unknown_dtype: UnknownDtype::Keep,
        ..OpenOptions::default()
    }
}

/// The same two tensors as a single file, as shards, and as a list of files.
#[rstest]
fn a_dtype_that_nobody_knows_stops_only_its_own_tensor(
    #[values("file", "index", "list")] as_what: &str,
) {
    let folder = Folder::new();
    folder.write("x.safetensors", by_hand(UNKNOWN, &[9, 1, 2]));
    let index = json!({
        "metadata": {"total_size": 3},
        "weight_map": {"new": "x.safetensors", "old": "x.safetensors"},
    });
    let open = |options: &OpenOptions| match as_what {
        "file" => Checkpoint::open_with(folder.join("x.safetensors"), options),
        "index" => folder.index_json(&index).open_with(options),
        _ => Checkpoint::open_files(&[folder.join("x.safetensors")], options),
    };
    refused(open(&OpenOptions::default()), Code::UnknownDtype);
    let checkpoint = open(&keep()).unwrap();
    assert_eq!(checkpoint.read("old").unwrap(), [1, 2]);
    // In a list of files it was missing altogether; in an index its bytes were, from the sum.
    assert_eq!(warnings(&checkpoint), []);
    let unknown: Vec<_> = checkpoint
        .unsupported()
        .map(|tensor| (tensor.name, tensor.dtype))
        .collect();
    assert_eq!(unknown, [("new", "F2")]);
    let error = refused(checkpoint.read("new"), Code::UnknownDtype);
    assert_eq!(error.tensor(), Some("new"));
    assert!(error.to_string().contains("`F2`"), "{error}");
}

#[test]
fn a_list_may_not_repeat_a_name_of_unknown_dtype_either() {
    let source =
        || -> Arc<dyn ReadAt> { Arc::new(MemorySource::new(by_hand(UNKNOWN, &[9, 1, 2]))) };
    let sources = vec![("x".to_owned(), source()), ("y".to_owned(), source())];
    let error = refused(
        Checkpoint::from_sources(sources, &keep()),
        Code::SeveralProblems,
    );
    let names: Vec<_> = error.problems().iter().map(Error::tensor).collect();
    assert_eq!(names, [Some("old"), Some("new")]);
}

#[test]
fn unknown_dtypes_that_the_index_does_not_list_are_reported() {
    let folder = Folder::new();
    folder
        .write("x.safetensors", by_hand(UNKNOWN, &[9, 1, 2]))
        .index(&[("old", "x.safetensors")]);
    let checkpoint = folder.open_with(&keep()).unwrap();
    assert_eq!(warnings(&checkpoint), [Code::UnlistedTensor]);
    assert_eq!(checkpoint.warnings()[0].problem.tensor(), Some("new"));
    assert_eq!(checkpoint.unsupported().count(), 0);
}

// ---- what may be handed around

#[test]
fn a_checkpoint_is_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Checkpoint>();
    shared::<Header>();
    let checkpoint = healthy().open().unwrap();
    let debug = format!("{checkpoint:?}");
    assert!(debug.contains("files: 2"), "{debug}");
    // Planning reads nothing: the folder is gone.
    let plan = checkpoint.plan(&LoadOptions::default(), |dtype| match dtype {
        Dtype::U8 => Support::Native,
        _ => Support::Never,
    });
    assert_eq!(plan.unwrap().tensors.len(), 4);
}

// ---- a part of the shards

fn only(names: &[&str]) -> OpenOptions {
    OpenOptions {
        only: Some(names.iter().map(|&name| name.to_owned()).collect()),
        ..OpenOptions::default()
    }
}

#[test]
fn only_the_shards_of_the_named_tensors_are_opened() {
    let folder = healthy();
    // What is not opened may be anything.
    folder.write(SECOND, b"not a shard");
    refused(folder.open(), Code::NotSafetensors);
    let checkpoint = folder.open_with(&only(&["b"])).unwrap();
    assert_eq!(checkpoint.names(), ["b"]);
    assert_eq!(checkpoint.read("b").unwrap(), [3]);
    assert_eq!(warnings(&checkpoint), []);
    // Whether an index names `a` once was not looked at.
    refused(checkpoint.read("a"), Code::TensorMissing);
    refused(checkpoint.read("c"), Code::TensorMissing);
    refused(folder.open_with(&only(&["b", "c"])), Code::NotSafetensors);
}

#[test]
fn a_part_of_the_shards_serves_aliases_and_takes_no_tensor_for_one() {
    let folder = tied_shards();
    std::fs::remove_file(folder.join(SECOND)).unwrap();
    let checkpoint = folder.open_with(&only(&["head.weight"])).unwrap();
    assert_eq!(checkpoint.read("head.weight").unwrap(), [1, 2]);
    // `norm` is a tensor of the shard that was not opened, though metadata says otherwise.
    refused(checkpoint.read("norm"), Code::TensorMissing);
}

#[test]
fn for_an_unknown_name_all_shards_are_opened_to_say_which_was_meant() {
    let folder = healthy();
    let checkpoint = folder.open_with(&only(&["weight"])).unwrap();
    assert_eq!(checkpoint.names(), ["a", "b", "c", "d"]);
    refused(checkpoint.read("weight"), Code::TensorMissing);
}

#[test]
fn a_folder_with_two_checkpoints_is_refused_also_for_one_tensor() {
    let folder = support::healthy();
    let options = only(&["b"]);
    assert_eq!(folder.open_with(&options).unwrap().files().len(), 1);
    folder.shard("model.safetensors", &[("b", &[9])]);
    refused(folder.open_with(&options), Code::AmbiguousCheckpoint);
}
