//! Saving what is a checkpoint already: to where it is, like it is, and in other shards.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::time::Duration;

use rstest::rstest;
use safeshard_core::{
    Checkpoint, Code, DataAlignment, Dialect, Durability, OpenOptions, Result, SaveOptions,
    SaveTensor, Sharding, TensorData, WriteBytes, save, write_to,
};
use support::tensors::{MIB, cached, contents, noise, shards_of, vector, vectors};
use support::{Folder, refused};

#[test]
fn a_checkpoint_can_be_saved_to_where_it_is() {
    let folder = Folder::new();
    let large = noise(17 * MIB + 5);
    let tensors = vectors(&[&large, &[2, 3], &large[..MIB]]);
    for (options, path) in [
        (cached(), folder.join("x.safetensors")),
        (cached(), folder.join("single")),
        (shards_of(MIB as u64), folder.join("shards")),
    ] {
        let tensors = tensors.iter();
        let tensors = tensors.map(|tensor| {
            SaveTensor::new(
                &tensor.name,
                tensor.dtype,
                tensor.shape.clone(),
                Forward(&*tensor.data),
            )
        });
        save(tensors.collect(), &path, &options).unwrap();
        for durability in [Durability::Cached, Durability::Durable] {
            let checkpoint = Checkpoint::open(&path).unwrap();
            let options = SaveOptions {
                durability,
                ..SaveOptions::like(&checkpoint)
            };
            let report = save(checkpoint.save_tensors(), &path, &options).unwrap();
            assert!(report.left_behind.is_empty() && report.materialised.is_empty());
            assert_eq!(report.files.len(), checkpoint.files().len());
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert!(checkpoint.warnings().is_empty());
            assert!(checkpoint.read("a").unwrap() == large);
            assert_eq!(checkpoint.read("b").unwrap(), [2, 3]);
            assert!(checkpoint.read("c").unwrap() == large[..MIB]);
        }
    }
}

/// Lends the data of another tensor.
struct Forward<'d>(&'d dyn TensorData);

impl TensorData for Forward<'_> {
    fn byte_len(&self) -> Option<u64> {
        self.0.byte_len()
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        self.0.write_range(range, write)
    }
}

/// Everything that options say, saved, opened and saved like that again elsewhere.
#[rstest]
fn what_is_saved_like_a_checkpoint_is_the_same(
    #[values(Dialect::Transformers, Dialect::Hub)] dialect: Dialect,
    #[values(None, Some("fp16"))] variant: Option<&str>,
    #[values(1, 1000)] max: u64,
) {
    let folder = Folder::new();
    let tied = [1, 2, 3];
    let tensors = vec![
        vector("layer.0", &tied),
        vector("layer.1", &[4]),
        vector("layer.2", &[5, 6]),
        vector("layer.3", &tied),
    ];
    let options = SaveOptions {
        stem: "adapter_model".into(),
        variant: variant.map(str::to_owned),
        dialect,
        metadata: vec![("made".into(), "here".into())],
        index_metadata: match max {
            1 => vec![("total_parameters".into(), 6.into())],
            _ => Vec::new(),
        },
        ..shards_of(max)
    };
    save(tensors, folder.join("one"), &options).unwrap();
    let open = |name| {
        let options = OpenOptions {
            variant: variant.map(str::to_owned),
            ..Default::default()
        };
        Checkpoint::open_with(folder.join(name), &options).unwrap()
    };
    let one = open("one");
    let like = SaveOptions::like(&one);
    save(one.save_tensors(), folder.join("two"), &like).unwrap();
    let (one, two) = (folder.join("one"), folder.join("two"));
    assert!(contents(&two) == contents(&one));
    assert_eq!(open("two").read("layer.3").unwrap(), tied);

    // The aliases are kept where shards become one file and one file becomes shards.
    for sizes in [1000, 2] {
        let options = SaveOptions {
            max_shard_size: sizes.to_string().parse().unwrap(),
            sharding: Sharding::Greedy,
            ..SaveOptions::like(&open("two"))
        };
        let checkpoint = open("two");
        save(checkpoint.save_tensors(), folder.join("two"), &options).unwrap();
        assert_eq!(open("two").read("layer.3").unwrap(), tied);
        assert_eq!(open("two").aliases()["layer.3"], "layer.0");
    }
}

#[test]
fn aliases_that_mean_nothing_any_more_are_left_out() {
    let folder = Folder::new();
    let alias = |dropped: &str, kept: &str| (dropped.to_owned(), kept.to_owned());
    let tied = [1, 2];
    let options = SaveOptions {
        aliases: vec![
            alias("other", "b"),
            alias("a", "c"),
            alias("gone", "nothing"),
        ],
        ..cached()
    };
    let tensors = vec![vector("a", &tied), vector("b", &tied), vector("c", &[3])];
    let report = save(tensors, folder.path(), &options).unwrap();
    let expected = BTreeMap::from([alias("b", "a"), alias("other", "a")]);
    assert_eq!(report.aliases, expected);
    assert_eq!(folder.open().unwrap().aliases(), &expected);
}

#[test]
fn a_file_that_changes_while_it_is_saved_again_is_an_error() {
    let folder = Folder::new();
    let path = folder.join("x.safetensors");
    save(vectors(&[&[1, 2], &[3]]), &path, &cached()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    save(vectors(&[&[4, 5], &[6]]), &path, &cached()).unwrap();
    // Read through the descriptor that is open: the old bytes, whole.
    save(checkpoint.save_tensors(), folder.join("copy"), &cached()).unwrap();
    let copy = Checkpoint::open(folder.join("copy")).unwrap();
    assert_eq!(copy.read("a").unwrap(), [1, 2]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(time + Duration::from_secs(1)).unwrap();
    let again = save(checkpoint.save_tensors(), folder.join("copy"), &cached());
    let error = refused(again, Code::FileChanged);
    assert_eq!(error.path(), Some(&*path));
    assert_eq!(
        Checkpoint::open(folder.join("copy"))
            .unwrap()
            .read("a")
            .unwrap(),
        [1, 2]
    );
}

/// What begins at a wider multiple only by chance is not like that: the names are as long as it takes.
#[rstest]
fn where_data_begin_is_kept(
    #[values(DataAlignment::Word, DataAlignment::CacheLine, DataAlignment::Page)]
    alignment: DataAlignment,
) {
    for len in 1..=64 {
        let folder = Folder::new();
        let (short, long) = ("a".to_owned(), "b".repeat(len));
        let tensors = vec![vector(&short, &[1, 2]), vector(&long, &[3, 4, 5])];
        let options = SaveOptions {
            alignment,
            ..shards_of(1)
        };
        save(tensors, folder.join("one"), &options).unwrap();
        let one = Checkpoint::open(folder.join("one")).unwrap();
        let like = SaveOptions::like(&one);
        save(one.save_tensors(), folder.join("two"), &like).unwrap();
        assert!(contents(&folder.join("two")) == contents(&folder.join("one")));
        if alignment == DataAlignment::Word {
            assert_eq!(like.alignment, alignment, "{len}");
        }
    }
}

#[test]
fn bytes_in_memory_are_saved_from_where_they_are() {
    let mut bytes = Vec::new();
    write_to(vectors(&[&[1, 2, 3], &[4]]), &mut bytes, &cached()).unwrap();
    let checkpoint = Checkpoint::from_bytes(bytes.clone()).unwrap();
    let tensors = checkpoint.save_tensors();
    assert!(tensors.iter().all(|tensor| tensor.data.place().is_some()));
    let mut again = Vec::new();
    write_to(tensors, &mut again, &SaveOptions::like(&checkpoint)).unwrap();
    assert_eq!(again, bytes);
}
