//! Saving what cannot be saved: nothing is there before all of it is, and what was there stays.

mod support;

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rstest::rstest;
use safeshard_core::{
    Cancel, Code, Dtype, Durability, Error, Result, SaveOptions, SaveTensor, Ties, WriteBytes,
    save, write_to,
};
use support::tensors::{MIB, cached, contents, made, names, noise, shards_of, vector, vectors};
use support::{Folder, refused};

/// Runs a save that must fail over an old checkpoint, of which nothing may change.
#[track_caller]
fn fails<'t>(
    code: Code,
    options: &SaveOptions,
    tensors: impl Fn() -> Vec<SaveTensor<'t>>,
) -> Error {
    let folder = Folder::new();
    let old = vectors(&[&[1], &[2]]);
    save(old, folder.path(), &shards_of(1)).unwrap();
    save(vectors(&[&[3]]), folder.join("x.safetensors"), &cached()).unwrap();
    let before = contents(folder.path());
    refused(save(tensors(), folder.path(), options), code);
    assert_eq!(contents(folder.path()), before);
    let error = refused(save(tensors(), folder.join("x.safetensors"), options), code);
    assert_eq!(contents(folder.path()), before);
    // A folder that is not there yet: nothing in it, if it was made at all.
    let absent = folder.join("absent");
    refused(save(tensors(), &absent, options), code);
    assert!(!absent.exists() || names(&absent).is_empty());
    error
}

#[test]
fn what_no_reader_could_read_is_refused_before_anything_is_written() {
    let nothing: &[u8] = &[];
    let tensor = |name: &str, dtype, shape: &[u64]| SaveTensor::new(name, dtype, shape, nothing);
    let checked = |code, tensors: &dyn Fn() -> Vec<SaveTensor<'static>>| {
        let error = fails(code, &SaveOptions::default(), tensors);
        assert!(error.tensor().is_some(), "{error}");
        let absent = Folder::new();
        refused(save(tensors(), absent.join("new"), &cached()), code);
        assert!(names(absent.path()).is_empty(), "not even a folder");
        refused(write_to(tensors(), io::sink(), &cached()), code);
    };
    checked(Code::NameCollision, &|| {
        vectors(&[&[1], &[2]])
            .into_iter()
            .chain([vector("a", &[3])])
            .collect()
    });
    checked(Code::ReservedName, &|| vec![vector("__metadata__", &[3])]);
    checked(Code::ShapeOverflow, &|| {
        vec![tensor("w", Dtype::F32, &[1 << 62, 4])]
    });
    checked(Code::SubByteRemainder, &|| {
        vec![tensor("w", Dtype::F4, &[3])]
    });
    checked(Code::TensorShort, &|| {
        vec![SaveTensor::new("w", Dtype::F32, [2], &[1u8; 7][..])]
    });
    checked(Code::TensorLong, &|| {
        vec![SaveTensor::new("w", Dtype::F32, [2], &[1u8; 9][..])]
    });
    let tied = [1, 2];
    let options = SaveOptions {
        ties: Ties::Error,
        ..cached()
    };
    fails(Code::TiedTensors, &options, || vectors(&[&tied, &tied]));
    let options = SaveOptions {
        metadata: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
        ..shards_of(1)
    };
    fails(Code::MetadataClash, &options, || vectors(&[&[1], &[2]]));
}

#[test]
fn an_index_that_clashes_is_refused_before_there_is_a_folder() {
    let folder = Folder::new();
    let options = SaveOptions {
        index_metadata: vec![("total_size".into(), 7.into())],
        ..shards_of(1)
    };
    let saved = save(vectors(&[&[1], &[2]]), folder.join("new"), &options);
    refused(saved, Code::MetadataClash);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn all_wrong_sizes_come_at_once() {
    let tensors = vec![
        SaveTensor::new("short", Dtype::F32, [2], &[1u8; 7][..]),
        vector("right", &[1]),
        SaveTensor::new("long", Dtype::F32, [2], &[1u8; 9][..]),
    ];
    let error = refused(
        write_to(tensors, io::sink(), &cached()),
        Code::SeveralProblems,
    );
    let problems = error.problems().iter();
    let problems: Vec<_> = problems
        .map(|error| (error.tensor().unwrap(), error.code()))
        .collect();
    assert_eq!(
        problems,
        [("short", Code::TensorShort), ("long", Code::TensorLong)]
    );
}

/// How data are given.
type Writes = fn(&mut WriteBytes<'_>) -> Result<()>;

#[rstest]
#[case::short(Code::TensorShort, |write: &mut WriteBytes<'_>| write(&[1, 2, 3]))]
#[case::nothing(Code::TensorShort, |_: &mut WriteBytes<'_>| Ok(()))]
#[case::long(Code::TensorLong, |write: &mut WriteBytes<'_>| write(&[1, 2, 3, 4, 5]))]
#[case::long_in_parts(Code::TensorLong, |write: &mut WriteBytes<'_>| {
    write(&[1, 2, 3])?;
    write(&[4, 5])
})]
#[case::failing(Code::Framework, |write: &mut WriteBytes<'_>| {
    write(&[1, 2, 3])?;
    Err(Error::new(Code::Framework))
})]
#[case::long_and_silent_about_it(Code::TensorShort, |write: &mut WriteBytes<'_>| {
    let _ignored = write(&[1, 2, 3, 4, 5]);
    write(&[1, 2, 3, 4])
})]
#[case::long_and_content_with_it(Code::TensorShort, |write: &mut WriteBytes<'_>| {
    let _ignored = write(&[1, 2, 3, 4, 5]);
    Ok(())
})]
fn data_that_are_not_as_said_leave_nothing(
    #[case] code: Code,
    #[case] data: Writes,
    #[values(Durability::Durable, Durability::Cached)] durability: Durability,
) {
    let large = noise(17 * MIB);
    let options = SaveOptions {
        durability,
        ..shards_of(18 * MIB as u64)
    };
    for others in [&[1, 2, 3][..], &large] {
        let tensors = || {
            vec![
                vector("first", others),
                made("wrong", data),
                vector("z", &[7]),
            ]
        };
        let error = fails(code, &options, tensors);
        assert_eq!(error.tensor(), Some("wrong"), "{error}");
        refused(write_to(tensors(), io::sink(), &options), code);
    }
}

#[test]
fn a_panic_of_the_data_leaves_nothing() {
    let folder = Folder::new();
    let panics = || vec![vector("a", &[1]), made("b", |_| panic!("on purpose"))];
    for path in [folder.path().to_owned(), folder.join("x.safetensors")] {
        let saved = AssertUnwindSafe(|| save(panics(), &path, &shards_of(1)));
        assert!(catch_unwind(saved).is_err());
        assert!(names(folder.path()).is_empty());
    }
    // The folder is not locked any more either.
    save(vectors(&[&[1]]), folder.path(), &cached()).unwrap();
}

#[rstest]
fn cancelling_leaves_what_was_there(#[values(1, 2)] threads: usize, #[values(0, 2)] after: u64) {
    let large = noise(9 * MIB);
    let tensors = || vectors(&[&large, &large, &large[1..], &large[2..]]);
    let options = || {
        let cancel = Cancel::default();
        SaveOptions {
            cancel: Some(cancel.clone()),
            progress: Some(Arc::new(move |progress| {
                if progress.done > after * MIB as u64 * 9 {
                    cancel.cancel();
                }
            })),
            threads: NonZeroUsize::new(threads),
            ties: Ties::Duplicate,
            ..shards_of(10 * MIB as u64)
        }
    };
    // `fails` uses options several times, but a switch is used once.
    let folder = Folder::new();
    save(vectors(&[&[1], &[2]]), folder.path(), &shards_of(1)).unwrap();
    let before = contents(folder.path());
    refused(save(tensors(), folder.path(), &options()), Code::Cancelled);
    assert_eq!(contents(folder.path()), before);
    let path = folder.join("x.safetensors");
    refused(save(tensors(), &path, &options()), Code::Cancelled);
    assert_eq!(contents(folder.path()), before);
    refused(write_to(tensors(), io::sink(), &options()), Code::Cancelled);
}

#[test]
fn cancelling_at_the_very_end_counts_too() {
    let folder = Folder::new();
    let cancel = Cancel::default();
    let options = SaveOptions {
        cancel: Some(cancel.clone()),
        progress: Some(Arc::new(move |progress| {
            if progress.done == progress.total {
                cancel.cancel();
            }
        })),
        ..cached()
    };
    refused(
        save(vectors(&[&[1]]), folder.path(), &options),
        Code::Cancelled,
    );
    let saved = save(vectors(&[&[1]]), folder.join("x.safetensors"), &options);
    refused(saved, Code::Cancelled);
    assert!(names(folder.path()).is_empty());
}
