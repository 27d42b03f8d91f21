use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use rstest::rstest;

use super::super::testing::*;
use super::*;

const FP16_INDEX: &str = "model.safetensors.index.fp16.json";

fn owned(world: &World) -> ReplacedFiles {
    of(&world.folder(), &plain()).unwrap()
}

/// Without looking for tensors that would be lost.
fn of(folder: &Path, names: &Names) -> Result<ReplacedFiles> {
    ReplacedFiles::of(folder, names, Losses::Accept)
}

/// What goes when shards come.
fn superseded(world: &World) -> Vec<String> {
    let superseded = owned(world).superseded_by("the new index");
    superseded.into_iter().map(|entry| entry.name).collect()
}

#[test]
fn a_checkpoint_owns_what_its_index_names_and_its_single_file() {
    let world = World::new(Old::Both);
    world.write("x/s.safetensors", "");
    for foreign in [
        "model-extra-00001-of-00002.safetensors",
        "model-00001-of-00003.safetensors",
        "model.fp16.safetensors",
        "model-00001-of-00002.bin",
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "x/model-00001-of-00002.safetensors",
    ] {
        world.write(foreign, "");
    }
    let [first, second] = canonical(2).try_into().unwrap();
    assert_eq!(superseded(&world), [INDEX, SINGLE, &first, &second]);
    let replaced = owned(&world).superseded_by(SINGLE);
    assert_eq!(replaced.len(), 3);
    assert!(superseded(&World::new(Old::Nothing)).is_empty());
    let below = superseded(&World::new(Old::Below));
    assert_eq!(below, [INDEX, "x/a.safetensors", "x/y/b.safetensors"]);
    assert_eq!(superseded(&World::new(Old::Gone)), [INDEX]);
    let names = ["mtp.safetensors", "out.safetensors"];
    world.shards(INDEX, &names, OLD);
    assert_eq!(superseded(&world), [INDEX, SINGLE, names[0], names[1]]);
}

#[rstest]
#[case::broken("{")]
#[case::hostile(
    r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../x.safetensors"}}"#
)]
#[case::absolute(r#"{"weight_map": {"a": "/tmp/x.safetensors"}}"#)]
#[case::of_pickles(r#"{"weight_map": {"a": "pytorch_model.bin"}}"#)]
#[case::empty("")]
fn an_index_that_nobody_may_read_owns_only_itself(#[case] index: &str) {
    let world = World::new(Old::Same);
    world.write("pytorch_model.bin", "");
    world.write(INDEX, index);
    assert_eq!(superseded(&world), [INDEX]);
}

#[rstest]
#[case::readable(r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}"#)]
#[case::twice(r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "a": "x.safetensors", "b": "model-00001-of-00002.safetensors"}}"#)]
#[case::round_about(r#"{"weight_map": {"a": "./x/../model-00001-of-00002.safetensors"}}"#)]
#[case::in_capitals(r#"{"weight_map": {"a": "MODEL-00001-of-00002.safetensors"}}"#)]
fn what_another_index_names_stays(#[case] index: &str) {
    let world = World::new(Old::Same);
    world.write(FP16_INDEX, index);
    let [first, second] = canonical(2).try_into().unwrap();
    assert_eq!(superseded(&world), [INDEX, &second]);
    let owned = owned(&world);
    assert_eq!(Vec::from_iter(owned.shared(INDEX)), [&first]);
    // Nobody could have told what a broken one names.
    world.write(FP16_INDEX, "{");
    assert_eq!(superseded(&world).len(), 3);
}

#[test]
fn other_checkpoints_stay_whoever_names_them() {
    let world = World::empty();
    let names = [
        "adapter_model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "x.safetensors",
    ];
    world.shards(INDEX, &names, OLD);
    assert_eq!(superseded(&world), [INDEX, "x.safetensors"]);
    assert_eq!(Vec::from_iter(owned(&world).shared(INDEX)), names[..2]);
    // Another variant is made of this single file.
    let world = World::new(Old::Single);
    world.shards(FP16_INDEX, &[SINGLE], OLD);
    assert!(superseded(&world).is_empty());
    assert_eq!(Vec::from_iter(owned(&world).shared(INDEX)), [SINGLE]);
    assert_eq!(owned(&world).shared(SINGLE).count(), 0, "it is replaced");
}

#[test]
fn links_go_and_what_they_lead_to_stays() {
    let world = World::new(Old::LinkedShards);
    assert_eq!(superseded(&world).len(), 3);
    // A link to a folder leads elsewhere: what is in there is not in here.
    let world = World::new(Old::Below);
    fs::rename(world.at("x"), world.root().join("elsewhere")).unwrap();
    symlink("../elsewhere", world.at("x")).unwrap();
    assert_eq!(ours(&world.folder(), None), Some(OLD));
    assert_eq!(superseded(&world), [INDEX]);
}

#[test]
fn every_spelling_of_the_index_is_owned_and_no_other_index() {
    let world = World::empty();
    let spellings = [
        "model.fp16.safetensors.index.json",
        "model.safetensors.fp16.index.json",
        FP16_INDEX,
    ];
    for (name, spelling) in ["a.safetensors", "b.safetensors", "c.safetensors"]
        .iter()
        .zip(spellings)
    {
        world.shards(spelling, &[name], OLD);
    }
    world.shards(INDEX, &["a.safetensors"], OLD);
    world.shards("model.safetensors.index.bf16.json", &["d.safetensors"], OLD);
    let owned = of(&world.folder(), &fp16()).unwrap();
    let superseded = owned.superseded_by("model.fp16.safetensors");
    let names: Vec<_> = superseded.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(
        names,
        [&spellings[..], &["b.safetensors", "c.safetensors"]].concat()
    );
}

#[test]
fn names_that_are_taken_or_named_are_not_free() {
    let world = World::new(Old::Gone);
    world.write("there.safetensors", "");
    symlink("nowhere", world.at("link.safetensors")).unwrap();
    fs::create_dir(world.at("folder.safetensors")).unwrap();
    world.write(FP16_INDEX, r#"{"weight_map": {"a": "Theirs.safetensors"}}"#);
    let owned = owned(&world);
    let is_free = |name: &str| owned.is_free(&world.folder(), name).unwrap();
    for name in [
        "there",
        "link",
        "folder",
        "theirs",
        "THEIRS",
        "Model-00001-of-00002",
    ] {
        assert!(!is_free(&format!("{name}.safetensors")), "{name}");
    }
    assert!(is_free("new.safetensors"));
    let error = owned
        .is_free(&world.folder(), &"x".repeat(300))
        .unwrap_err();
    assert_eq!(error.code(), Code::Io);
}

#[test]
fn a_single_file_among_shards_is_not_replaced() {
    let world = World::empty();
    world.shards(INDEX, &[SINGLE, "mtp.safetensors"], OLD);
    let error = owned(&world)
        .check_single(&world.folder(), TENSORS)
        .unwrap_err();
    assert_eq!(error.code(), Code::IndexedSingle);
    assert_eq!(error.path(), Some(&*world.at(INDEX)));
    for old in [Old::Single, Old::Both, Old::Indexed, Old::Nothing] {
        owned(&World::new(old))
            .check_single(Path::new(""), TENSORS)
            .unwrap();
    }
}

#[test]
fn the_mode_is_what_all_files_have() {
    let world = World::new(Old::LinkedShards);
    let mode = || match owned(&world).rights() {
        Rights::Kept(kept) => kept.mode,
        rights => panic!("{rights:?}"),
    };
    let chmod =
        |name: &str, mode| fs::set_permissions(world.at(name), Permissions::from_mode(mode));
    let [first, second] = canonical(2).try_into().unwrap();
    chmod(&first, 0o640).unwrap();
    chmod(&second, 0o604).unwrap();
    chmod(INDEX, 0o444).unwrap();
    assert_eq!(mode(), 0o600);
    symlink("nowhere", world.at(SINGLE)).unwrap();
    assert_eq!(mode(), 0o600);
    assert_eq!(owned(&World::new(Old::Gone)).rights(), &Rights::New);
}

#[test]
fn what_is_no_file_is_not_replaced() {
    for name in [SINGLE, INDEX] {
        let world = World::empty();
        fs::create_dir(world.at(name)).unwrap();
        let error = of(&world.folder(), &plain()).unwrap_err();
        assert_eq!(error.code(), Code::NotRegularFile);
        assert_eq!(error.path(), Some(&*world.at(name)));
    }
    let world = World::new(Old::Same);
    fs::create_dir(world.at(FP16_INDEX)).unwrap();
    assert_eq!(
        superseded(&world).len(),
        3,
        "a folder is no index of another"
    );
}
