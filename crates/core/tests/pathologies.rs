//! Everything that is known to go wrong with checkpoints in the wild: refused with the right code,
//! or opened and reported.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use rstest::rstest;
use safeshard_core::{Checkpoint, CheckpointKind, Code, Error, Limits, OpenOptions, Prefer};
use serde_json::{Value, json};
use support::{FIRST, Folder, INDEX, SECOND, by_hand, bytes_of, healthy, refused, warnings};

#[test]
fn a_healthy_checkpoint_has_nothing_to_report() {
    let checkpoint = healthy().open().unwrap();
    assert_eq!(checkpoint.kind(), CheckpointKind::Index);
    assert_eq!(checkpoint.names(), ["a", "b", "c", "d"]);
    assert_eq!(warnings(&checkpoint), []);
    assert_eq!(checkpoint.read("c").unwrap(), [4, 5, 6]);
}

// ---- shards that are absent, damaged or not what they should be

#[test]
fn a_missing_shard_says_which_tensors_are_lost() {
    let folder = healthy();
    fs::remove_file(folder.join(SECOND)).unwrap();
    let error = folder.refused(Code::ShardMissing);
    assert_eq!(error.path(), Some(&*folder.join(SECOND)));
    let message = error.to_string();
    assert!(message.starts_with(&folder.join(SECOND).display().to_string()));
    assert!(
        message.ends_with("the index places 2 tensors in it: c, d; fetch the missing file"),
        "{message}"
    );
}

#[test]
fn a_link_to_nothing_is_a_missing_shard() {
    let folder = healthy();
    fs::remove_file(folder.join(SECOND)).unwrap();
    symlink("blob-that-was-never-fetched", folder.join(SECOND)).unwrap();
    folder.refused(Code::ShardMissing);
}

#[rstest]
#[case::cut_by_one_byte(|whole: Vec<u8>| whole[..whole.len() - 1].to_vec(), Code::FileTruncated)]
#[case::cut_in_the_header(|whole: Vec<u8>| whole[..30].to_vec(), Code::HeaderTruncated)]
#[case::cut_in_the_length(|whole: Vec<u8>| whole[..5].to_vec(), Code::HeaderTooShort)]
#[case::empty(|_: Vec<u8>| Vec::new(), Code::HeaderTooShort)]
#[case::zeros(|whole: Vec<u8>| vec![0; whole.len()], Code::NotSafetensors)]
#[case::one_byte_too_long(|mut whole: Vec<u8>| { whole.push(0); whole }, Code::TrailingBytes)]
#[case::followed_by_itself(|whole: Vec<u8>| whole.repeat(2), Code::TrailingBytes)]
fn a_damaged_shard(#[case] damage: fn(Vec<u8>) -> Vec<u8>, #[case] code: Code) {
    let folder = healthy();
    let damaged = damage(fs::read(folder.join(SECOND)).unwrap());
    folder.write(SECOND, damaged);
    let error = folder.refused(code);
    assert_eq!(error.path(), Some(&*folder.join(SECOND)));
    let message = error.to_string();
    assert!(message.contains("the index places 2 tensors in it: c, d"));
}

#[test]
fn a_truncated_shard_says_how_much_is_missing() {
    let folder = healthy();
    let whole = fs::read(folder.join(SECOND)).unwrap();
    folder.write(SECOND, &whole[..whole.len() - 3]);
    let message = folder.refused(Code::FileTruncated).to_string();
    assert!(message.contains("3 missing"), "{message}");
    folder.write(SECOND, [whole, vec![0; 5]].concat());
    let message = folder.refused(Code::TrailingBytes).to_string();
    assert!(message.contains("5 too many"), "{message}");
}

#[test]
fn swapped_shards() {
    let folder = healthy();
    fs::rename(folder.join(FIRST), folder.join("x")).unwrap();
    fs::rename(folder.join(SECOND), folder.join(FIRST)).unwrap();
    fs::rename(folder.join("x"), folder.join(SECOND)).unwrap();
    let error = folder.refused(Code::SeveralProblems);
    assert_eq!(error.path(), Some(&*folder.join(INDEX)));
    let tensors: Vec<_> = error.problems().iter().map(Error::tensor).collect();
    assert_eq!(tensors, ["a", "b", "c", "d"].map(Some));
    for problem in error.problems() {
        assert_eq!(problem.code(), Code::TensorNotInShard);
        let other = if problem.path() == Some(&folder.join(FIRST)) {
            SECOND
        } else {
            FIRST
        };
        assert!(problem.to_string().contains(other), "{problem}");
    }
}

#[test]
fn a_foreign_shard() {
    let folder = healthy();
    folder.shard(SECOND, &[("of.another.model", &[1])]);
    let error = folder.refused(Code::SeveralProblems);
    for problem in error.problems() {
        assert_eq!(problem.code(), Code::TensorNotInShard);
        assert_eq!(problem.path(), Some(&*folder.join(SECOND)));
        assert!(
            problem
                .to_string()
                .ends_with("no shard of the checkpoint has it")
        );
    }
}

#[test]
fn a_tensor_in_the_wrong_shard_is_named_with_the_right_one() {
    let folder = healthy();
    folder.index(&[("a", SECOND), ("b", FIRST), ("c", SECOND), ("d", SECOND)]);
    let error = folder.refused(Code::TensorNotInShard);
    assert_eq!(
        (error.path(), error.tensor()),
        (Some(&*folder.join(SECOND)), Some("a"))
    );
    assert!(error.to_string().contains(FIRST), "{error}");
}

#[rstest]
#[case::lfs(
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
    "git lfs pull"
)]
#[case::html("\n<!DOCTYPE html><html><body>404</body></html>", "web page")]
#[case::server_error("{\"error\":\"Repository not found\"}", "server")]
#[case::zip("PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl", "zip")]
#[case::gguf("GGUF\x03\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00", "GGUF")]
#[case::pickle("\u{80}\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", "pickle")]
fn another_format_is_named_as_what_it_is(#[case] content: &str, #[case] named: &str) {
    // As a shard and as a single file; the characters are the bytes.
    let content: Vec<u8> = content.chars().map(|c| c as u8).collect();
    let folder = healthy();
    folder.write(SECOND, &content);
    let error = folder.refused(Code::NotSafetensors);
    assert_eq!(error.path(), Some(&*folder.join(SECOND)));
    // The advice of the format was once replaced by the list of tensors.
    assert!(error.to_string().contains(named), "{error}");
    let error = refused(Checkpoint::open(folder.join(SECOND)), Code::NotSafetensors);
    assert!(error.to_string().contains(named), "{error}");
}

#[test]
fn a_shard_that_is_a_folder() {
    let folder = healthy();
    fs::remove_file(folder.join(SECOND)).unwrap();
    fs::create_dir(folder.join(SECOND)).unwrap();
    folder.refused(Code::NotRegularFile);
}

#[test]
fn all_problems_come_in_one_error() {
    // Shards that did not open once hid tensors that were in the wrong one.
    let folder = Folder::new();
    folder
        .shard("first.safetensors", &[("a", &[1])])
        .write(
            "third.safetensors",
            "version https://git-lfs.github.com/spec/v1\n",
        )
        .shard("fourth.safetensors", &[("d", &[1])])
        .index(&[
            ("a", "first.safetensors"),
            ("lost", "first.safetensors"),
            ("b", "second.safetensors"),
            ("c", "third.safetensors"),
            ("d", "fourth.safetensors"),
        ]);
    let error = folder.refused(Code::SeveralProblems);
    let problems = error.problems().iter();
    let problems: Vec<_> = problems
        .map(|p| (p.code(), p.path().unwrap().to_owned()))
        .collect();
    assert_eq!(
        problems,
        [
            (Code::ShardMissing, folder.join("second.safetensors")),
            (Code::NotSafetensors, folder.join("third.safetensors")),
            (Code::TensorNotInShard, folder.join("first.safetensors")),
        ]
    );
    let message = error.to_string();
    assert!(message.starts_with(&folder.join(INDEX).display().to_string()));
    assert!(message.contains("3 in all"));
    assert_eq!(message.lines().count(), 4, "{message}");
}

#[test]
fn very_many_problems_are_counted_but_not_kept() {
    // Each would take some hundred bytes.
    let folder = Folder::new();
    let names: Vec<String> = (0..5000).map(|i| format!("t{i}")).collect();
    let map: Vec<_> = names.iter().map(|name| (name.as_str(), FIRST)).collect();
    folder.shard(FIRST, &[("t0", &[1])]).index(&map);
    let error = folder.refused(Code::SeveralProblems);
    assert_eq!(error.problems().len(), 1001);
    let last = error.problems().last().unwrap().to_string();
    assert!(last.contains("3999 more"), "{last}");
}

// ---- more than the index lists

#[test]
fn the_index_wins_over_duplicates_and_unlisted_tensors() {
    for _ in 0..8 {
        let folder = healthy();
        // What sorts last and first, and in the order of the files, is wrong.
        folder
            .shard(
                FIRST,
                &[
                    ("a", &[1, 2]),
                    ("b", &[3]),
                    ("c", &[9, 9, 9]),
                    ("stale", &[9]),
                ],
            )
            .shard(SECOND, &[("a", &[8, 8]), ("c", &[4, 5, 6]), ("d", &[7])]);
        let checkpoint = folder.open().unwrap();
        assert_eq!(checkpoint.names(), ["a", "b", "c", "d"]);
        assert_eq!(checkpoint.read("a").unwrap(), [1, 2]);
        assert_eq!(checkpoint.read("c").unwrap(), [4, 5, 6]);
        let found: Vec<_> = checkpoint
            .warnings()
            .iter()
            .map(|warning| (warning.problem.code(), warning.problem.tensor().unwrap()))
            .collect();
        let unlisted = ["c", "stale", "a"].map(|name| (Code::UnlistedTensor, name));
        assert_eq!(found, unlisted);
        let message = checkpoint.warnings()[0].to_string();
        assert!(message.contains(SECOND), "{message}");
        let error = refused(checkpoint.read("stale"), Code::TensorMissing);
        assert!(
            error
                .to_string()
                .contains("the index does not place it there"),
            "{error}"
        );
    }
}

#[test]
fn very_many_unlisted_tensors_are_counted_but_not_kept() {
    let folder = healthy();
    let names: Vec<String> = (0..5000).map(|i| format!("t{i}")).collect();
    let mut tensors: Vec<(&str, &[u8])> =
        names.iter().map(|name| (name.as_str(), &[][..])).collect();
    tensors.extend([("a", &[1, 2][..]), ("b", &[3])]);
    folder.shard(FIRST, &tensors);
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.warnings().len(), 1001);
    assert_eq!(checkpoint.names().len(), 4);
}

#[test]
fn files_beside_the_checkpoint_are_reported_and_never_read() {
    let folder = healthy();
    folder
        .shard("consolidated.safetensors", &[("a", &[9, 9])])
        .shard("model-00001-of-00007.safetensors", &[("a", &[9, 9])])
        .write("broken.safetensors", "nonsense");
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.read("a").unwrap(), [1, 2]);
    let paths = checkpoint.warnings().iter().map(|warning| {
        assert_eq!(warning.problem.code(), Code::UnlistedFile);
        warning.problem.path().unwrap().to_owned()
    });
    let others = [
        "broken.safetensors",
        "consolidated.safetensors",
        "model-00001-of-00007.safetensors",
    ];
    assert_eq!(
        paths.collect::<Vec<_>>(),
        others.map(|name| folder.join(name))
    );
}

// ---- more than one checkpoint in a folder

#[test]
fn a_stale_single_file_beside_an_index_is_ambiguous() {
    let folder = healthy();
    folder.shard("model.safetensors", &[("a", &[9, 9])]);
    let message = folder.refused(Code::AmbiguousCheckpoint).to_string();
    for part in [
        INDEX,
        "`model.safetensors`",
        "pass the path",
        "Prefer::Index",
        "Prefer::Single",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }

    let prefer = |prefer| {
        let options = OpenOptions {
            prefer,
            ..OpenOptions::default()
        };
        folder.open_with(&options).unwrap()
    };
    assert_eq!(prefer(Prefer::Index).read("a").unwrap(), [1, 2]);
    assert_eq!(warnings(&prefer(Prefer::Index)), [Code::UnlistedFile]);
    assert_eq!(prefer(Prefer::Single).read("a").unwrap(), [9, 9]);
    // The path of either says which.
    let by_path = |name| {
        Checkpoint::open(folder.join(name))
            .unwrap()
            .read("a")
            .unwrap()
    };
    assert_eq!(by_path(INDEX), [1, 2]);
    assert_eq!(by_path("model.safetensors"), [9, 9]);
}

#[test]
fn an_index_that_names_the_single_file_is_not_ambiguous() {
    let folder = Folder::new();
    folder
        .shard("model.safetensors", &[("a", &[1])])
        .shard("mtp.safetensors", &[("b", &[2])])
        .index(&[("a", "model.safetensors"), ("b", "mtp.safetensors")]);
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.read("b").unwrap(), [2]);
    assert_eq!(warnings(&checkpoint), []);
}

#[test]
fn shards_without_an_index() {
    let folder = healthy();
    fs::remove_file(folder.join(INDEX)).unwrap();
    let message = folder.refused(Code::IndexMissing).to_string();
    assert!(message.contains("`write_index`"), "{message}");
    assert!(message.contains("open the list of files"), "{message}");

    let options = OpenOptions::default();
    let list = [folder.join(FIRST), folder.join(SECOND)];
    let checkpoint = Checkpoint::open_files(&list, &options).unwrap();
    assert_eq!(checkpoint.kind(), CheckpointKind::Files);
    assert_eq!(checkpoint.names(), ["a", "b", "c", "d"]);
}

#[test]
fn rank_files_of_a_distributed_checkpoint_are_no_shards() {
    // The advice to write an index over them would have given parts of tensors as tensors.
    let folder = Folder::new();
    folder
        .shard(
            "shard-00001-model-00001-of-00001.safetensors",
            &[("a", &[1])],
        )
        .shard(
            "shard-00002-model-00001-of-00001.safetensors",
            &[("a", &[2])],
        );
    let message = folder.refused(Code::IndexMissing).to_string();
    assert!(message.contains("consolidate"), "{message}");
}

#[test]
fn a_list_with_a_name_twice_is_refused() {
    let folder = healthy();
    folder.shard("other.safetensors", &[("x", &[1]), ("b", &[2])]);
    let list = [FIRST, SECOND, "other.safetensors"].map(|name| folder.join(name));
    let opened = Checkpoint::open_files(&list, &OpenOptions::default());
    let error = refused(opened, Code::DuplicateAcrossFiles);
    assert_eq!(error.tensor(), Some("b"));
    let message = error.to_string();
    assert!(
        message.contains(FIRST) && message.contains("other.safetensors"),
        "{message}"
    );
    // Also one file listed twice.
    let twice = [folder.join(FIRST), folder.join(FIRST)];
    let error = refused(
        Checkpoint::open_files(&twice, &OpenOptions::default()),
        Code::SeveralProblems,
    );
    assert_eq!(error.problems()[0].code(), Code::DuplicateAcrossFiles);
}

#[test]
fn an_empty_list_is_no_checkpoint() {
    // Was an empty success.
    let options = OpenOptions::default();
    let none: [&str; 0] = [];
    refused(Checkpoint::open_files(&none, &options), Code::NoCheckpoint);
    refused(
        Checkpoint::from_sources(Vec::new(), &options),
        Code::NoCheckpoint,
    );
}

#[test]
fn only_pickles_here() {
    let folder = Folder::new();
    folder
        .write("pytorch_model.bin", "PK\x03\x04")
        .write("config.json", "{}");
    let message = folder.refused(Code::NoCheckpoint).to_string();
    assert!(message.contains("pytorch_model.bin"), "{message}");
    assert!(message.contains("convert it to safetensors"), "{message}");
    let empty = Folder::new().refused(Code::NoCheckpoint).to_string();
    assert!(empty.contains(".safetensors.index.json"), "{empty}");
}

#[rstest]
#[case::transformers(
    "model.safetensors.index.fp16.json",
    "model.fp16-00001-of-00001.safetensors"
)]
#[case::diffusers(
    "model.safetensors.fp16.index.json",
    "model-00001-of-00001.fp16.safetensors"
)]
#[case::plain(
    "model.fp16.safetensors.index.json",
    "model.fp16-00001-of-00001.safetensors"
)]
#[case::unet(
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "anything.safetensors"
)]
fn both_spellings_of_a_variant(#[case] index: &str, #[case] shard: &str) {
    let folder = healthy();
    let map = json!({"metadata": {}, "weight_map": {"half": shard}});
    folder
        .shard(shard, &[("half", &[1])])
        .write(index, map.to_string());
    let fp16 = |variant: &str| OpenOptions {
        variant: Some(variant.into()),
        ..OpenOptions::default()
    };
    let checkpoint = folder.open_with(&fp16("fp16")).unwrap();
    assert_eq!(checkpoint.names(), ["half"]);
    assert_eq!(folder.open().unwrap().names(), ["a", "b", "c", "d"]);
    let error = refused(folder.open_with(&fp16("bf16")), Code::VariantMissing);
    assert!(error.to_string().contains("bf16"), "{error}");
    assert_eq!(error.path(), Some(folder.path()));
}

#[test]
fn a_variant_as_a_single_file() {
    let folder = Folder::new();
    folder
        .shard("model.safetensors", &[("a", &[1])])
        .shard("model.fp16.safetensors", &[("a", &[2])]);
    let options = OpenOptions {
        variant: Some("fp16".into()),
        ..OpenOptions::default()
    };
    assert_eq!(folder.open_with(&options).unwrap().read("a").unwrap(), [2]);
    assert_eq!(folder.open().unwrap().read("a").unwrap(), [1]);
}

// ---- names of shards

#[rstest]
#[case::six_digits("model-00001-of-000004.safetensors")]
#[case::from_zero("model-00000-of-00002.safetensors")]
#[case::part_of_the_model("mtp.safetensors")]
#[case::no_count("out-00000.safetensors")]
#[case::subfolder("weights/deep/x.safetensors")]
#[case::not_ascii("größe-模型.safetensors")]
#[case::many_dots("model..v1.0.safetensors")]
fn odd_shard_names_work(#[case] name: &str) {
    let folder = Folder::new();
    folder.shard(name, &[("a", &[1])]).index(&[("a", name)]);
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.read("a").unwrap(), [1]);
    assert_eq!(checkpoint.file_of("a").unwrap().name(), name);
    assert_eq!(warnings(&checkpoint), []);
}

#[rstest]
#[case("../outside.safetensors")]
#[case("a/../../outside.safetensors")]
#[case("./../outside.safetensors")]
#[case("inside/../../outside.safetensors")]
#[case("ABSOLUTE")]
#[case("/ABSOLUTE")]
#[case("file://ABSOLUTE")]
#[case("..\\outside.safetensors")]
#[case("inside\\..\\..\\outside.safetensors")]
#[case("C:\\outside.safetensors")]
#[case("C:outside.safetensors")]
#[case("C:/outside.safetensors")]
#[case("\\\\host\\share\\outside.safetensors")]
#[case("//host/share/outside.safetensors")]
#[case("\\\\?\\C:\\outside.safetensors")]
#[case("%2e%2e/outside.safetensors")]
#[case("..%2Foutside.safetensors")]
#[case("..%5coutside.safetensors")]
#[case("../outside.safetensors\0.safetensors")]
#[case("nul\0.safetensors")]
#[case("NUL.safetensors")]
#[case("inside/aux.x.safetensors")]
#[case("COM1.safetensors")]
#[case("outside.safetensors:stream.safetensors")]
#[case(".. /outside.safetensors")]
#[case("")]
#[case(".")]
#[case("..")]
#[case("inside/")]
#[case("inside//x.safetensors")]
#[case("pytorch_model-00001-of-00002.bin")]
#[case("model.safetensors.bin")]
#[case("model.pt")]
#[case("model.SAFETENSORS")]
fn a_name_that_leads_elsewhere_is_refused_and_nothing_is_opened(#[case] name: &str) {
    let parent = Folder::new();
    // What the name leads to is a good shard: only the name can be what is refused.
    parent.shard("outside.safetensors", &[("a", &[1])]);
    let shard = bytes_of(&[("a", &[1])]);
    for inside in [
        "pytorch_model-00001-of-00002.bin",
        "model.safetensors.bin",
        "model.pt",
    ] {
        parent.write(&format!("model/{inside}"), &shard);
    }
    parent.write("model/inside/x.safetensors", &shard);
    let absolute = parent.join("outside.safetensors").display().to_string();
    let name = name.replace("ABSOLUTE", &absolute);
    let index = json!({"metadata": {}, "weight_map": {"a": name}});
    parent.write("model/model.safetensors.index.json", index.to_string());

    let error = refused(Checkpoint::open(parent.join("model")), Code::ShardName);
    assert_eq!(error.tensor(), Some("a"));
    assert_eq!(error.path(), Some(&*parent.join("model").join(INDEX)));
    let error = refused(
        Checkpoint::open(parent.join("model").join(INDEX)),
        Code::ShardName,
    );
    assert!(error.offset().is_some());
}

#[test]
fn a_bad_name_is_reported_once_however_many_tensors_it_has() {
    // An error for each entry took fifty times the memory of the index.
    let folder = Folder::new();
    let names: Vec<String> = (0..2000).map(|i| format!("t{i}")).collect();
    let map: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), "../x.safetensors"))
        .collect();
    folder.index(&map);
    folder.refused(Code::ShardName);
    let bad: Vec<_> = (0..30).map(|i| format!("../{i}.safetensors")).collect();
    let map: Vec<_> = names
        .iter()
        .zip(&bad)
        .map(|(name, bad)| (name.as_str(), bad.as_str()))
        .collect();
    folder.index(&map);
    let error = folder.refused(Code::SeveralProblems);
    assert_eq!(error.problems().len(), 30);
    // They count as shards, so that there cannot be millions of them either.
    let limits = Limits {
        shards: 29,
        ..Limits::default()
    };
    let options = OpenOptions {
        limits,
        ..OpenOptions::default()
    };
    refused(folder.open_with(&options), Code::LimitShards);
}

// ---- the index as a document

#[rstest]
#[case::absent(json!({"weight_map": {"a": FIRST}}), &[Code::IndexMetadata])]
#[case::null(json!({"metadata": null, "weight_map": {"a": FIRST}}), &[Code::IndexMetadata])]
#[case::array(json!({"metadata": [1], "weight_map": {"a": FIRST}}), &[Code::IndexMetadata])]
#[case::string(json!({"metadata": "x", "weight_map": {"a": FIRST}}), &[Code::IndexMetadata])]
#[case::number(json!({"metadata": 1.5, "weight_map": {"a": FIRST}}), &[Code::IndexMetadata])]
#[case::boolean(json!({"metadata": true, "weight_map": {"a": FIRST}}), &[Code::IndexMetadata])]
#[case::no_size(json!({"metadata": {}, "weight_map": {"a": FIRST}}), &[])]
#[case::right_size(json!({"metadata": {"total_size": 2}, "weight_map": {"a": FIRST}}), &[])]
#[case::wrong_size(json!({"metadata": {"total_size": 3}, "weight_map": {"a": FIRST}}), &[Code::TotalSize])]
#[case::zero_size(json!({"metadata": {"total_size": 0}, "weight_map": {"a": FIRST}}), &[Code::TotalSize])]
#[case::float_size(json!({"metadata": {"total_size": 2.125}, "weight_map": {"a": FIRST}}), &[Code::TotalSize])]
#[case::string_size(json!({"metadata": {"total_size": "2"}, "weight_map": {"a": FIRST}}), &[Code::TotalSize])]
#[case::null_size(json!({"metadata": {"total_size": null}, "weight_map": {"a": FIRST}}), &[Code::TotalSize])]
#[case::negative_size(json!({"metadata": {"total_size": -1}, "weight_map": {"a": FIRST}}), &[Code::TotalSize])]
#[case::object_size(json!({"metadata": {"total_size": {"x": [1, {}]}}, "weight_map": {"a": FIRST}}), &[Code::TotalSize])]
#[case::extra(json!({"metadata": {}, "weight_map": {"a": FIRST}, "x": [{"y": 1}], "z": 2}), &[Code::IndexExtraKey])]
#[case::order(json!({"x": 1, "weight_map": {"a": FIRST}, "metadata": {}}), &[Code::IndexExtraKey])]
fn odd_but_usable_indexes_are_opened_and_reported(#[case] index: Value, #[case] codes: &[Code]) {
    let folder = Folder::new();
    folder.shard(FIRST, &[("a", &[1, 2])]).index_json(&index);
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.read("a").unwrap(), [1, 2]);
    assert_eq!(warnings(&checkpoint), codes);
    for warning in checkpoint.warnings() {
        assert_eq!(
            warning.problem.path(),
            Some(&*folder.join(INDEX)),
            "{warning}"
        );
    }
}

#[test]
fn unknown_keys_of_an_index_are_one_warning() {
    // One each took fifty times the memory of the index.
    let folder = Folder::new();
    let mut index = json!({"metadata": {}, "weight_map": {"a": FIRST}});
    for i in 0..1000 {
        index[format!("x{i}")] = json!(i);
    }
    folder.shard(FIRST, &[("a", &[1, 2])]).index_json(&index);
    let checkpoint = folder.open().unwrap();
    assert_eq!(warnings(&checkpoint), [Code::IndexExtraKey]);
    let message = checkpoint.warnings()[0].to_string();
    assert!(message.contains("x0, x1, x2 and 997 more"), "{message}");
}

#[rstest]
#[case::empty_map(r#"{"metadata":{},"weight_map":{}}"#, Code::IndexEmpty)]
#[case::no_map(r#"{"metadata":{}}"#, Code::IndexNoMap)]
#[case::empty_object("{}", Code::IndexNoMap)]
#[case::map_is_an_array(r#"{"weight_map":["a"]}"#, Code::IndexType)]
#[case::map_is_null(r#"{"weight_map":null}"#, Code::IndexType)]
#[case::map_is_a_string(r#"{"weight_map":"model.safetensors"}"#, Code::IndexType)]
#[case::number_for_a_file(r#"{"weight_map":{"a":1}}"#, Code::IndexType)]
#[case::null_for_a_file(r#"{"weight_map":{"a":null}}"#, Code::IndexType)]
#[case::list_for_a_file(r#"{"weight_map":{"a":["x.safetensors"]}}"#, Code::IndexType)]
#[case::object_for_a_file(r#"{"weight_map":{"a":{"file":"x.safetensors"}}}"#, Code::IndexType)]
#[case::tensor_twice(
    r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#,
    Code::IndexDuplicate
)]
#[case::twice_in_the_same(
    r#"{"weight_map":{"a":"x.safetensors","a":"x.safetensors"}}"#,
    Code::IndexDuplicate
)]
#[case::twice_escaped(
    r#"{"weight_map":{"a":"x.safetensors","\u0061":"y.safetensors"}}"#,
    Code::IndexDuplicate
)]
#[case::two_maps(
    r#"{"weight_map":{"a":"x.safetensors"},"weight_map":{"b":"x.safetensors"}}"#,
    Code::DuplicateKey
)]
#[case::two_metadata(
    r#"{"metadata":{},"metadata":{},"weight_map":{"a":"x.safetensors"}}"#,
    Code::DuplicateKey
)]
#[case::two_null_metadata(
    r#"{"metadata":null,"metadata":{},"weight_map":{"a":"x.safetensors"}}"#,
    Code::DuplicateKey
)]
#[case::two_sizes(
    r#"{"metadata":{"total_size":1,"total\u005fsize":2},"weight_map":{"a":"x.safetensors"}}"#,
    Code::DuplicateKey
)]
#[case::byte_order_mark("\u{feff}{}", Code::IndexSyntax)]
#[case::nothing("", Code::IndexSyntax)]
#[case::blank("  \n", Code::IndexSyntax)]
#[case::array("[]", Code::IndexSyntax)]
#[case::string("\"x\"", Code::IndexSyntax)]
#[case::number("17", Code::IndexSyntax)]
#[case::null("null", Code::IndexSyntax)]
#[case::truncated(r#"{"metadata":{},"weight_map":{"a":"x.safete"#, Code::IndexSyntax)]
#[case::not_closed(r#"{"weight_map":{"a":"x.safetensors"}"#, Code::IndexSyntax)]
#[case::trailing_comma(r#"{"weight_map":{"a":"x.safetensors",}}"#, Code::IndexSyntax)]
#[case::two_documents(r#"{"weight_map":{"a":"x.safetensors"}}{}"#, Code::IndexSyntax)]
#[case::comment("{/*x*/}", Code::IndexSyntax)]
#[case::lfs(
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
    Code::NotSafetensors
)]
#[case::html("<!DOCTYPE html><html></html>", Code::NotSafetensors)]
#[case::server_error("{\"error\":\"Repository not found\"}", Code::NotSafetensors)]
fn an_unusable_index_is_refused(#[case] index: &str, #[case] code: Code) {
    let folder = Folder::new();
    // With the shards that it may name, so that nothing else can be wrong.
    folder.shard("x.safetensors", &[("a", &[1]), ("b", &[1])]);
    folder
        .shard("y.safetensors", &[("a", &[2])])
        .write(INDEX, index);
    let error = folder.refused(code);
    assert_eq!(error.path(), Some(&*folder.join(INDEX)), "{error}");
}

#[test]
fn an_index_cut_off_anywhere_is_refused() {
    let folder = healthy();
    let whole = fs::read(folder.join(INDEX)).unwrap();
    for len in 0..whole.len() {
        folder.write(INDEX, &whole[..len]);
        assert!(folder.open().is_err(), "cut to {len} bytes");
    }
}

#[test]
fn an_index_that_is_not_utf8() {
    let folder = healthy();
    folder.write(INDEX, b"{\"weight_map\":{\"\xff\":\"x.safetensors\"}}");
    assert_eq!(folder.refused(Code::IndexSyntax).offset(), Some(16));
}

#[test]
fn metadata_of_an_index_is_bounded() {
    // Nested values take a hundred times the memory of their text.
    let folder = healthy();
    let bomb = "[[]],".repeat(300_000);
    let index = format!(r#"{{"metadata":{{"x":[{bomb}0]}},"weight_map":{{"a":"{FIRST}"}}}}"#);
    folder.write(INDEX, index);
    folder.refused(Code::LimitIgnored);
    let long = json!({"metadata": {"x": "y".repeat(2000)}, "weight_map": {"a": FIRST}});
    folder.index_json(&long).open().unwrap();
    let limits = Limits {
        metadata_bytes: 1000,
        ..Limits::default()
    };
    let options = OpenOptions {
        limits,
        ..OpenOptions::default()
    };
    refused(folder.open_with(&options), Code::LimitMetadata);
    let deep = "[".repeat(100_000);
    folder.write(INDEX, format!(r#"{{"metadata":{{"x":{deep}"#));
    folder.refused(Code::JsonDepth);
}

#[test]
fn an_index_of_a_pickled_checkpoint() {
    let folder = Folder::new();
    let map = json!({"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00001.bin"}});
    folder
        .write("pytorch_model-00001-of-00001.bin", "PK\x03\x04")
        .write("pytorch_model.bin.index.json", map.to_string());
    folder.refused(Code::NoCheckpoint);
    let opened = Checkpoint::open(folder.join("pytorch_model.bin.index.json"));
    let message = refused(opened, Code::ShardName).to_string();
    assert!(message.contains(".safetensors"), "{message}");
}

// ---- size

#[test]
fn an_index_of_14_mb_with_140_000_tensors_opens() {
    if let Some(folder) = support::child_folder() {
        return opens_within_120_mb(&folder);
    }
    let folder = Folder::new();
    let mut map = serde_json::Map::new();
    for shard in 0..20 {
        let file = format!("model-{:05}-of-00020.safetensors", shard + 1);
        let mut header = String::from("{");
        for tensor in 0..7000 {
            let (layer, expert) = (shard * 3 + tensor % 3, tensor / 3);
            let name =
                format!("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight_scale_inv");
            let comma = if tensor > 0 { "," } else { "" };
            header += &format!(
                r#"{comma}"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{tensor},{}]}}"#,
                tensor + 1
            );
            map.insert(name, json!(file));
        }
        folder.write(&file, by_hand(&(header + "}"), &[shard as u8; 7000]));
    }
    assert_eq!(map.len(), 140_000);
    let index = json!({"metadata": {"total_size": 140_000}, "weight_map": map});
    let text = serde_json::to_vec_pretty(&index).unwrap();
    assert!(text.len() > 14_000_000, "{}", text.len());
    folder.write(INDEX, text);

    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.totals().tensors, 140_000);
    assert_eq!(warnings(&checkpoint), []);
    let name = "model.layers.58.mlp.experts.2000.down_proj.weight_scale_inv";
    assert_eq!(checkpoint.read(name).unwrap(), [19]);
    refused(
        checkpoint.read(&name.replace("down_proj", "downproj")),
        Code::TensorMissing,
    );
    drop(checkpoint);
    support::child(&[], folder.path());
}

fn opens_within_120_mb(folder: &Path) {
    let (checkpoint, growth) = memory(|| Checkpoint::open(folder).unwrap());
    assert_eq!(checkpoint.totals().tensors, 140_000);
    assert!(growth < 120_000, "{growth} kB");
}

#[test]
fn an_index_of_a_gigabyte_is_refused_unread() {
    if let Some(folder) = support::child_folder() {
        return is_refused_unread(&folder);
    }
    let folder = Folder::new();
    // Without content: reading it would take memory and find zeros.
    File::create(folder.join(INDEX))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    support::child(&[], folder.path());
    // At the limit it is read.
    let limits = Limits {
        index_bytes: 1000,
        ..Limits::default()
    };
    let options = OpenOptions {
        limits,
        ..OpenOptions::default()
    };
    File::create(folder.join(INDEX))
        .unwrap()
        .set_len(1000)
        .unwrap();
    refused(folder.open_with(&options), Code::NotSafetensors);
}

fn is_refused_unread(folder: &Path) {
    let (opened, growth) = memory(|| Checkpoint::open(folder));
    let error = refused(opened, Code::LimitIndex);
    assert_eq!(error.path(), Some(&*folder.join(INDEX)));
    assert!(error.to_string().contains("Limits::index_bytes"), "{error}");
    assert!(growth < 4000, "{growth} kB");
}

/// What `open` returns, and by how many kB it raised the most memory that this process ever had.
fn memory<T>(open: impl FnOnce() -> T) -> (T, u64) {
    let most = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = most();
    let opened = open();
    (opened, most() - before)
}

#[test]
fn too_many_shards_are_refused() {
    let folder = healthy();
    let limits = Limits {
        shards: 1,
        ..Limits::default()
    };
    let options = OpenOptions {
        limits,
        ..OpenOptions::default()
    };
    refused(folder.open_with(&options), Code::LimitShards);
    let list = [folder.join(FIRST), folder.join(SECOND)];
    refused(Checkpoint::open_files(&list, &options), Code::LimitShards);
}

// ---- the Hugging Face cache

/// A repository as huggingface_hub lays it out: everything in the snapshot is a link.
fn cache() -> Folder {
    let folder = Folder::new();
    let model = healthy();
    for (blob, name) in [("0a", FIRST), ("0b", SECOND), ("0c", INDEX)] {
        folder.write(
            &format!("blobs/{blob}"),
            fs::read(model.join(name)).unwrap(),
        );
        let snapshot = folder.join("snapshots/0123abcd");
        fs::create_dir_all(&snapshot).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    folder.write("refs/main", "0123abcd");
    folder
}

#[rstest]
#[case::snapshot("snapshots/0123abcd")]
#[case::index("snapshots/0123abcd/model.safetensors.index.json")]
#[case::repository("")]
fn a_repository_in_the_cache(#[case] path: &str) {
    let cache = cache();
    let checkpoint = Checkpoint::open(cache.join(path)).unwrap();
    assert_eq!(checkpoint.names(), ["a", "b", "c", "d"]);
    assert_eq!(checkpoint.read("d").unwrap(), [7]);
    assert_eq!(warnings(&checkpoint), []);
}

#[test]
fn a_reference_that_leads_elsewhere_is_not_followed() {
    let cache = cache();
    fs::rename(cache.join("snapshots"), cache.join("moved")).unwrap();
    for reference in ["../moved/0123abcd", "/etc", "", "../..", "main"] {
        cache.write("refs/main", reference);
        cache.refused(Code::NoCheckpoint);
    }
    fs::remove_file(cache.join("refs/main")).unwrap();
    // Opening it for reading waited for a writer.
    let fifo = cache.join("refs/main");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    cache.refused(Code::NoCheckpoint);
}
