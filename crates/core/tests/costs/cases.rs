//! The operations, each on an input that may have any number of something.

use std::num::NonZeroUsize;
use std::sync::Arc;

use safeshard_core::{
    Checkpoint, ConvertOptions, DiffOptions, Dtype, Durability, LoadOptions, MetadataChange,
    OpenOptions, ReadOptions, Result, SaveOptions, SaveTensor, Shards, Support, VerifyLevel,
    VerifyOptions, change_metadata, change_shard_metadata, convert, diff, reshard, save, verify,
    write_index, write_to,
};

#[cfg(feature = "digest")]
use crate::inputs::MANIFEST;
use crate::inputs::{Input, Place, key};

/// An operation on an input that may have any number of something.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) input: Input,
    /// How many times the input's text it may have in memory, besides [`SLACK`].
    pub(crate) most: u64,
    pub(crate) run: fn(&Place) -> Result<()>,
}

pub(crate) const CASES: &[Case] = &[
    case("open", Input::Tensors, 2, open),
    case("open", Input::LongNames, 4, open),
    case("open", Input::InTenShards, 2, open),
    case("open", Input::Shards, 2, open),
    case("open", Input::Keys, 2, open),
    case("open", Input::KeysOfIndex, 10, open),
    case("open", Input::Aliases, 2, open),
    case("open files", Input::InTenShards, 3, open_files),
    case("plan", Input::Tensors, 3, plan),
    case("plan", Input::Aliases, 6, plan),
    case("plan with new names", Input::Tensors, 5, plan_renamed),
    case("verify", Input::Tensors, 2, verify_structure),
    case("verify", Input::Shards, 2, verify_structure),
    case("verify contents", Input::Tensors, 5, verify_contents),
    case("diff", Input::Tensors, 8, diff_with_itself),
    case("diff", Input::Shards, 12, diff_with_itself),
    case("diff", Input::Aliases, 10, diff_with_itself),
    case("reshard", Input::Tensors, 2, reshard_as_it_is),
    case("reshard", Input::LongNames, 4, reshard_as_it_is),
    case("reshard", Input::InTenShards, 2, reshard_as_it_is),
    case("reshard", Input::Shards, 2, reshard_as_it_is),
    case("reshard", Input::Keys, 4, reshard_as_it_is),
    case("reshard", Input::KeysOfIndex, 26, reshard_as_it_is),
    case("reshard", Input::KeysThatDiffer, 8, reshard_as_it_is),
    case("reshard", Input::Aliases, 6, reshard_as_it_is),
    case("reshard in place", Input::Tensors, 3, reshard_in_place),
    case("reshard in place", Input::Shards, 4, reshard_in_place),
    case("merge", Input::InTenShards, 2, merge),
    case("merge", Input::Shards, 2, merge),
    case("merge", Input::KeysOfIndex, 13, merge),
    case("split", Input::Tensors, 2, split),
    case("split", Input::LongNames, 4, split),
    case("convert", Input::Tensors, 2, to_bf16),
    case("convert", Input::InTenShards, 2, to_bf16),
    case("convert with new names", Input::Tensors, 2, renamed),
    case("convert without some", Input::Tensors, 2, filtered),
    case("convert without some", Input::Aliases, 6, filtered),
    case("save", Input::Tensors, 3, save_again),
    case("save", Input::Shards, 2, save_again),
    case("write", Input::Tensors, 3, write_again),
    case("from tensors", Input::Tensors, 7, from_tensors),
    case("set metadata", Input::Tensors, 2, set_metadata),
    case("set metadata", Input::LongNames, 4, set_metadata),
    case("set metadata", Input::Keys, 2, set_metadata),
    case("set metadata", Input::InTenShards, 2, set_metadata),
    case("set metadata", Input::KeysOfIndex, 11, set_metadata),
    case(
        "set metadata of shards",
        Input::InTenShards,
        4,
        set_shard_metadata,
    ),
    case("set much metadata", Input::Keys, 10, set_much_metadata),
    case("index", Input::InTenShards, 3, index),
    case("index", Input::Shards, 2, index),
    #[cfg(feature = "digest")]
    case("digest files", Input::Shards, 2, digests::of_files),
    #[cfg(feature = "digest")]
    case("digest tensors", Input::Tensors, 5, digests::of_tensors),
    #[cfg(feature = "digest")]
    case("verify digests", Input::LinesOfOneFile, 2, digests::verify),
    #[cfg(feature = "digest")]
    case("verify digests", Input::LinesOfNothing, 2, digests::verify),
    #[cfg(feature = "digest")]
    case(
        "verify digests",
        Input::Tensors,
        16,
        digests::verify_own_tensors,
    ),
];

const fn case(name: &'static str, input: Input, most: u64, run: fn(&Place) -> Result<()>) -> Case {
    Case {
        name,
        input,
        most,
        run,
    }
}

fn open(place: &Place) -> Result<()> {
    let checkpoint = place.open()?;
    assert!(checkpoint.totals().tensors > 0);
    Ok(())
}

fn open_files(place: &Place) -> Result<()> {
    let files = place.open()?;
    let paths: Vec<_> = files
        .files()
        .iter()
        .filter_map(|file| file.path())
        .collect();
    Checkpoint::open_files(&paths, &Default::default()).map(drop)
}

fn plan(place: &Place) -> Result<()> {
    let plan = place
        .open()?
        .plan(&LoadOptions::default(), |_| Support::Native)?;
    assert!(!plan.tensors.is_empty());
    Ok(())
}

fn plan_renamed(place: &Place) -> Result<()> {
    let options = LoadOptions {
        rename: Some(Arc::new(|name| format!("x{name}"))),
        ..LoadOptions::default()
    };
    let checkpoint = place.open()?;
    checkpoint.plan(&options, |_| Support::Native)?;
    checkpoint.new_names(&options).map(drop)
}

fn verify_structure(place: &Place) -> Result<()> {
    let verification = verify(&place.input, &VerifyOptions::default())?;
    assert!(verification.is_accepted());
    Ok(())
}

fn verify_contents(place: &Place) -> Result<()> {
    let options = VerifyOptions {
        level: VerifyLevel::Content,
        read: read_options(),
        ..VerifyOptions::default()
    };
    verify(&place.input, &options).map(drop)
}

fn diff_with_itself(place: &Place) -> Result<()> {
    let options = DiffOptions {
        read: read_options(),
        ..DiffOptions::default()
    };
    let (a, b) = (place.open()?, place.open()?);
    assert!(diff(&a, &b, &options)?.is_equal());
    Ok(())
}

fn reshard_as_it_is(place: &Place) -> Result<()> {
    reshard(
        &place.open()?,
        &place.output,
        &options(Shards::Keep).reshard,
    )
    .map(drop)
}

fn reshard_in_place(place: &Place) -> Result<()> {
    let checkpoint = place.open()?;
    reshard(&checkpoint, &place.input, &options(Shards::Keep).reshard).map(drop)
}

fn merge(place: &Place) -> Result<()> {
    reshard(
        &place.open()?,
        &place.output,
        &options(Shards::Single).reshard,
    )
    .map(drop)
}

fn split(place: &Place) -> Result<()> {
    let checkpoint = place.open()?;
    let a_tenth = checkpoint.totals().bytes.div_ceil(10).to_string();
    let options = options(Shards::Limit(a_tenth.parse()?));
    let report = reshard(&checkpoint, &place.output, &options.reshard)?;
    assert_eq!(report.saved.files.len(), 10);
    Ok(())
}

fn to_bf16(place: &Place) -> Result<()> {
    let options = ConvertOptions {
        reshard: options(Shards::Keep).reshard,
        ..ConvertOptions::floats_as(Dtype::Bf16)
    };
    convert(&place.open()?, &place.output, &options).map(drop)
}

fn renamed(place: &Place) -> Result<()> {
    let options = ConvertOptions {
        rename: Some(Arc::new(|name| format!("x{name}"))),
        ..options(Shards::Keep)
    };
    convert(&place.open()?, &place.output, &options).map(drop)
}

fn filtered(place: &Place) -> Result<()> {
    let options = ConvertOptions {
        filter: Some(Arc::new(|name| !name.ends_with('0'))),
        ..options(Shards::Keep)
    };
    convert(&place.open()?, &place.output, &options).map(drop)
}

fn save_again(place: &Place) -> Result<()> {
    let checkpoint = place.open()?;
    let options = SaveOptions {
        durability: Durability::Cached,
        threads: NonZeroUsize::new(1),
        ..SaveOptions::like(&checkpoint)
    };
    save(checkpoint.save_tensors(), &place.output, &options).map(drop)
}

fn write_again(place: &Place) -> Result<()> {
    let checkpoint = place.open()?;
    let options = SaveOptions::like(&checkpoint);
    write_to(checkpoint.save_tensors(), std::io::sink(), &options)
}

fn from_tensors(place: &Place) -> Result<()> {
    static BYTES: [u8; 4 * 100_000] = [0; 4 * 100_000];
    let tensors = (0..place.count).map(|at| {
        let bytes = BYTES.get(4 * at..4 * at + 4).unwrap();
        SaveTensor::new(format!("t{at}"), Dtype::F32, [1], bytes)
    });
    Checkpoint::from_tensors(tensors.collect()).map(drop)
}

fn set_shard_metadata(place: &Place) -> Result<()> {
    let set = MetadataChange::Set("note".to_owned(), "new".to_owned());
    let open = OpenOptions::default();
    change_shard_metadata(&place.input, &[set], &open, &read_options()).map(drop)
}

fn set_metadata(place: &Place) -> Result<()> {
    let set = MetadataChange::Set("author".to_owned(), "me".to_owned());
    change_metadata(
        &place.input,
        &[set],
        &OpenOptions::default(),
        &read_options(),
    )?;
    let unset = MetadataChange::Unset("author".to_owned());
    change_metadata(
        &place.input,
        &[unset],
        &OpenOptions::default(),
        &read_options(),
    )
    .map(drop)
}

fn set_much_metadata(place: &Place) -> Result<()> {
    let changes = (0..place.count).map(|at| match at % 2 {
        0 => MetadataChange::Set(key(at), "other".to_owned()),
        _ => MetadataChange::Set(format!("new-{at}"), String::new()),
    });
    change_metadata(
        &place.input,
        &changes.collect::<Vec<_>>(),
        &OpenOptions::default(),
        &read_options(),
    )
    .map(drop)
}

fn index(place: &Place) -> Result<()> {
    write_index(&place.input, &Default::default(), None).map(drop)
}

#[cfg(feature = "digest")]
mod digests {
    use safeshard_core::{DigestOf, DigestOptions, Manifest, verify_digests};

    use super::*;

    pub(super) fn of_files(place: &Place) -> Result<()> {
        digest(place, DigestOf::Files).map(drop)
    }

    pub(super) fn of_tensors(place: &Place) -> Result<()> {
        let text = digest(place, DigestOf::Tensors)?.to_string();
        assert!(text.parse::<Manifest>().is_ok());
        Ok(())
    }

    pub(super) fn verify_own_tensors(place: &Place) -> Result<()> {
        let manifest = digest(place, DigestOf::Tensors)?;
        assert!(verify_digests(&place.input, &manifest, &options())?.is_accepted());
        Ok(())
    }

    pub(super) fn verify(place: &Place) -> Result<()> {
        let manifest = Manifest::open(place.input.join(MANIFEST))?;
        verify_digests(&place.input, &manifest, &options()).map(drop)
    }

    fn digest(place: &Place, of: DigestOf) -> Result<Manifest> {
        place.open()?.digest(&DigestOptions {
            of,
            read: read_options(),
            ..DigestOptions::default()
        })
    }

    fn options() -> VerifyOptions {
        VerifyOptions {
            read: read_options(),
            ..VerifyOptions::default()
        }
    }
}

/// In the calling thread, which is the one that is watched.
fn read_options() -> ReadOptions {
    ReadOptions {
        threads: NonZeroUsize::new(1),
        ..ReadOptions::default()
    }
}

fn options(shards: Shards) -> ConvertOptions {
    let mut options = ConvertOptions::default();
    options.reshard.shards = shards;
    options.reshard.durability = Durability::Cached;
    options.reshard.threads = NonZeroUsize::new(1);
    options
}
