//! Checkpoints with other dtypes, names or fewer tensors: against torch, and by the rules of names.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use rstest::rstest;
use safeshard_core::{
    Checkpoint, Code, ConvertOptions, Dtype, Durability, ReshardOptions, ReshardReport, Result,
    SaveOptions, SaveTensor, Shards, SideFiles, convert, save,
};
use serde_json::json;
use support::python::{self, fixtures};
use support::tensors::{cached, contents, vectors};
use support::{Folder, refused};

/// What is wanted, without waiting for the medium.
fn quick(options: ConvertOptions) -> ConvertOptions {
    ConvertOptions {
        reshard: ReshardOptions {
            durability: Durability::Cached,
            ..options.reshard
        },
        ..options
    }
}

fn to_dtype(name: &str) -> ConvertOptions {
    quick(ConvertOptions::floats_as(Dtype::from_name(name).unwrap()))
}

#[test]
fn floats_become_what_torch_makes_of_them_and_all_else_stays() {
    let folder = Folder::new();
    let mut jobs = Vec::new();
    for fixture in [
        "bert-sharded",
        "bert-bf16-sharded",
        "hub-tied-sharded",
        "gpt2-tied-sharded",
        "all-dtypes",
    ] {
        let original = fixtures().join("interop").join(fixture);
        let checkpoint = Checkpoint::open(&original).unwrap();
        for (dtype, torch) in [
            ("F16", "float16"),
            ("BF16", "bfloat16"),
            ("F32", "float32"),
            ("F64", "float64"),
        ] {
            for shards in [Shards::Keep, Shards::Single] {
                let saved = folder.join(jobs.len().to_string());
                let mut options = to_dtype(dtype);
                options.reshard.shards = shards;
                let report = convert(&checkpoint, &saved, &options).unwrap();
                let tensors = checkpoint.tensors().count();
                let unchanged = report.unchanged.values().sum::<u64>();
                assert_eq!(report.cast.len() as u64 + unchanged, tensors as u64);
                jobs.push(json!({"saved": saved, "original": original, "dtype": torch}));
            }
        }
    }
    python::run("load_converted.py", &jobs, folder.path());
}

/// In transformers, which reads the dtype it is told.
#[test]
fn python_loads_the_model_that_it_was() {
    let folder = Folder::new();
    let mut jobs = Vec::new();
    // The original is BF16, and so is the way there and back.
    let original = fixtures().join("interop/bert-bf16-sharded");
    let mut from = original.clone();
    for dtype in ["F32", "F64", "BF16"] {
        let saved = folder.join(dtype);
        let mut options = to_dtype(dtype);
        options.reshard.side_files = SideFiles::Carry;
        convert(&Checkpoint::open(&from).unwrap(), &saved, &options).unwrap();
        from = saved;
    }
    jobs.push(json!({
        "saved": from,
        "original": original,
        "architecture": "BertModel",
        "variant": null,
    }));
    python::run("load_saved.py", &jobs, folder.path());
}

// ---- rules

/// `a` and `b` of F32, `tied` as another name of `b`, `count` of I64, `flag` of BOOL.
fn mixed() -> Folder {
    let floats: Vec<u8> = [1.0f32, 1e6, f32::INFINITY, -1e6]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let tensor = |name: &str, dtype, shape: &[u64], bytes: &'static [u8]| {
        SaveTensor::new(name, dtype, shape, bytes)
    };
    let tensors = vec![
        SaveTensor::new("a", Dtype::F32, [2, 2], &floats[..]),
        SaveTensor::new("b", Dtype::F32, [2], &floats[..8]),
        SaveTensor::new("tied", Dtype::F32, [2], &floats[..8]),
        tensor("count", Dtype::I64, &[], &[7, 0, 0, 0, 0, 0, 0, 0]),
        tensor("flag", Dtype::Bool, &[1], &[1]),
    ];
    let folder = Folder::new();
    let options = SaveOptions {
        max_shard_size: "16".parse().unwrap(),
        ..cached()
    };
    save(tensors, folder.path(), &options).unwrap();
    folder
}

fn converted(folder: &Folder, options: ConvertOptions) -> Result<(ReshardReport, Checkpoint)> {
    let to = folder.join("to");
    let report = convert(&folder.open()?, &to, &quick(options))?;
    Ok((report, Checkpoint::open(to)?))
}

fn keeping(filter: impl Fn(&str) -> bool + Send + Sync + 'static) -> ConvertOptions {
    ConvertOptions {
        filter: Some(Arc::new(filter)),
        ..ConvertOptions::default()
    }
}

fn renaming(rename: impl Fn(&str) -> String + Send + Sync + 'static) -> ConvertOptions {
    ConvertOptions {
        rename: Some(Arc::new(rename)),
        ..ConvertOptions::default()
    }
}

#[test]
fn what_changed_and_what_did_not_is_reported() {
    let folder = mixed();
    let (report, checkpoint) = converted(&folder, to_dtype("F16")).unwrap();
    let cast: Vec<_> = report
        .cast
        .iter()
        .map(|cast| (&*cast.name, cast.from, cast.to))
        .collect();
    assert_eq!(
        cast,
        [("a", Dtype::F32, Dtype::F16), ("b", Dtype::F32, Dtype::F16)]
    );
    let unchanged: Vec<_> = report.unchanged.into_iter().collect();
    assert_eq!(unchanged, [(Dtype::Bool, 1), (Dtype::I64, 1)]);
    // Half precision ends at 65504; what was infinite is no news.
    assert_eq!(
        report.overflowed,
        [("a".to_owned(), 2), ("b".to_owned(), 1)]
    );
    assert_eq!(checkpoint.aliases()["tied"], "b");
    assert_eq!(
        checkpoint.read("a").unwrap(),
        [0x00, 0x3C, 0x00, 0x7C, 0x00, 0x7C, 0x00, 0xFC]
    );
    assert_eq!(checkpoint.read("tied").unwrap(), [0x00, 0x3C, 0x00, 0x7C]);
}

#[test]
fn a_rule_may_name_tensors_and_other_dtypes() {
    let options = ConvertOptions {
        dtype: Some(Arc::new(|name, dtype| match (name, dtype) {
            ("a", _) => Some(Dtype::F64),
            (_, Dtype::Bool) => Some(Dtype::U8),
            _ => None,
        })),
        ..ConvertOptions::default()
    };
    let (report, checkpoint) = converted(&mixed(), options).unwrap();
    assert_eq!(report.cast.len(), 2);
    assert_eq!(checkpoint.info("a").unwrap().dtype, Dtype::F64);
    assert_eq!(checkpoint.info("b").unwrap().dtype, Dtype::F32);
    assert_eq!(checkpoint.info("flag").unwrap().dtype, Dtype::U8);
}

#[test]
fn casts_that_are_not_offered_are_refused_all_at_once_and_by_name() {
    let options = ConvertOptions {
        dtype: Some(Arc::new(|_, _| Some(Dtype::I32))),
        ..ConvertOptions::default()
    };
    let error = refused(converted(&mixed(), options), Code::SeveralProblems);
    let problems = error.problems().iter();
    // The one with two names is asked for twice.
    let refused: BTreeSet<_> = problems
        .map(|problem| (problem.code().as_str(), problem.tensor().unwrap()))
        .collect();
    let expected = ["a", "b", "count", "flag"].map(|name| ("unsupported-cast", name));
    assert_eq!(refused, BTreeSet::from(expected));
}

#[test]
fn a_value_that_does_not_fit_is_found_while_writing_and_leaves_nothing() {
    let folder = Folder::new();
    let values: Vec<u8> = (0..100_000u64)
        .chain([u64::MAX])
        .flat_map(u64::to_le_bytes)
        .collect();
    let tensor = SaveTensor::new("w", Dtype::U64, [100_001], &values[..]);
    save(vec![tensor], folder.path(), &cached()).unwrap();
    let options = ConvertOptions {
        dtype: Some(Arc::new(|_, _| Some(Dtype::I64))),
        ..ConvertOptions::default()
    };
    let error = refused(converted(&folder, options), Code::CastValue);
    assert_eq!(error.tensor(), Some("w"));
    assert!(error.to_string().contains("in element 100000"), "{error}");
    assert_eq!(contents(&folder.join("to")).len(), 0);
}

#[rstest]
#[case::all(&[], &["a", "b", "count", "flag", "tied"], Some("b"))]
#[case::without_the_recorded_name(&["tied"], &["a", "b", "count", "flag"], None)]
#[case::without_the_name_that_was_kept(&["b"], &["a", "count", "flag", "tied"], None)]
#[case::one(&["a", "b", "count", "tied"], &["flag"], None)]
fn names_are_filtered_recorded_ones_too(
    #[case] excluded: &'static [&'static str],
    #[case] expected: &[&str],
    #[case] tied_to: Option<&str>,
    #[values(Shards::Keep, Shards::Single)] shards: Shards,
) {
    let folder = mixed();
    let mut options = keeping(|name| !excluded.contains(&name));
    options.reshard.shards = shards;
    let (report, checkpoint) = converted(&folder, options).unwrap();
    assert_eq!(checkpoint.names(), expected);
    assert_eq!(
        checkpoint.aliases().get("tied").map(String::as_str),
        tied_to
    );
    let original = folder.open().unwrap();
    for name in expected {
        assert_eq!(checkpoint.read(name).unwrap(), original.read(name).unwrap());
    }
    assert_eq!(report.left_out, excluded);
}

#[test]
fn names_are_changed_recorded_ones_too() {
    for shards in [Shards::Keep, Shards::Single] {
        let mut options = renaming(|name| format!("model.{name}"));
        options.reshard.shards = shards;
        let (report, checkpoint) = converted(&mixed(), options).unwrap();
        let names = ["a", "b", "count", "flag", "tied"].map(|name| format!("model.{name}"));
        assert_eq!(checkpoint.names(), names.each_ref());
        assert_eq!(checkpoint.aliases()["model.tied"], "model.b");
        let renamed =
            ["a", "b", "count", "flag"].map(|name| (name.to_owned(), format!("model.{name}")));
        assert_eq!(report.renamed, renamed);
    }
}

#[test]
fn two_names_do_not_become_one() {
    for (one, other) in [("a", "b"), ("b", "tied"), ("count", "tied")] {
        let rename = move |name: &str| match name == one || name == other {
            true => "same".to_owned(),
            false => name.to_owned(),
        };
        let error = refused(converted(&mixed(), renaming(rename)), Code::NameCollision);
        assert_eq!(error.tensor(), Some(other));
        assert!(error.to_string().contains(&format!("`{one}`")), "{error}");
    }
}

#[test]
fn nothing_is_not_written_over_something() {
    let folder = mixed();
    let before = contents(folder.path());
    let nothing = quick(keeping(|_| false));
    refused(
        convert(&folder.open().unwrap(), folder.path(), &nothing),
        Code::NothingLeft,
    );
    assert!(contents(folder.path()) == before);
}

#[test]
fn the_number_of_parameters_is_counted_again() {
    let folder = Folder::new();
    let options = SaveOptions {
        max_shard_size: "1".parse().unwrap(),
        index_metadata: vec![("total_parameters".into(), 6.into())],
        ..cached()
    };
    save(
        vectors(&[&[1, 2, 3], &[4], &[5, 6]]),
        folder.path(),
        &options,
    )
    .unwrap();
    let (_, checkpoint) = converted(&folder, keeping(|name| name != "a")).unwrap();
    let metadata = checkpoint.index().unwrap().metadata();
    assert_eq!(metadata["total_parameters"], 3);
    assert_eq!(metadata["total_size"], 3);
}
