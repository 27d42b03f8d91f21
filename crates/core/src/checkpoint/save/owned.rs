//! What the checkpoint that a save replaces owns: exactly the files that go when the new one is there.
//!
//! Those are its single file, its index in any spelling, and the shards that the index names. Nothing
//! is ever taken for its own because of how it is called.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use serde_json::Value;

use super::shards::Names;
use crate::checkpoint::index::Index;
use crate::checkpoint::locate::{Listing, STEMS, index_of};
use crate::io::entry::{Entry, is_free};
use crate::io::publish::Mode;
use crate::io::source::{FileSource, ReadAt, read_vec};
use crate::{Code, Error, Kind, Limits, Result};

/// The files of a checkpoint that is to be replaced.
#[derive(Debug, Default)]
pub(super) struct Owned {
    single: Option<Entry>,
    /// Different spellings, of which each reader knows some.
    indexes: Vec<Entry>,
    shards: Vec<Entry>,
    /// Files that it names and others too.
    shared: BTreeSet<String>,
    /// An index that names the single file and others beside it.
    counts_single: Option<String>,
    /// What any index of the folder names, in small letters.
    named: HashSet<String>,
}

impl Owned {
    /// What the checkpoint in `folder` owns that has these names.
    ///
    /// A broken or hostile index owns nothing but itself: what it would have named stays.
    ///
    /// # Errors
    /// `not-a-regular-file` where the single file or the index is something that a save must not
    /// replace; `io`; `limit-index` for an index of another checkpoint that is too large to be read.
    pub(super) fn of(folder: &Path, names: &Names) -> Result<Self> {
        let listing = Listing::read(folder)?;
        let single = names.single();
        for name in [&single, &names.index()] {
            Mode::at(&folder.join(name))?;
        }
        let mut owned = Self::default();
        let mut ours = BTreeSet::new();
        let mut theirs = HashSet::new();
        for (name, of) in listing
            .names()
            .filter_map(|name| Some((name, index_of(name)?)))
        {
            let path = folder.join(name);
            if of != single {
                theirs.extend(named_by_another(&path)?);
                continue;
            }
            // A folder or device of this name is no index.
            let Some(index) = Entry::at(folder, name)? else {
                continue;
            };
            let shards = named_by(&path)?;
            if shards.len() > 1 && shards.contains(&single) {
                owned.counts_single = Some(index.name.clone());
            }
            owned.indexes.push(index);
            ours.extend(shards);
        }
        ours.insert(single.clone());
        for name in &ours {
            if theirs.contains(&name.to_lowercase()) || is_of_another(name, &single) {
                owned.shared.insert(name.clone());
            } else if let Some(entry) = Entry::at(folder, name)? {
                match *name == single {
                    true => owned.single = Some(entry),
                    false => owned.shards.push(entry),
                }
            }
        }
        owned.named = theirs;
        owned
            .named
            .extend(ours.iter().map(|name| name.to_lowercase()));
        Ok(owned)
    }

    /// What goes when `main`, the index or the single file, has its name. In the order in which it has
    /// to go: an index before what it names.
    pub(super) fn superseded_by(&self, main: &str) -> Vec<Entry> {
        let entries = self.indexes.iter().chain(&self.single).chain(&self.shards);
        entries
            .filter(|entry| entry.name != main)
            .cloned()
            .collect()
    }

    /// What stays although the checkpoint named it, because others do too.
    pub(super) fn shared(&self, main: &str) -> impl Iterator<Item = &str> {
        let shared = self.shared.iter().map(String::as_str);
        shared.filter(move |name| *name != main)
    }

    /// Whether a new shard may have this name: nothing has it, and no index names it, which would
    /// count the shard as its own at once.
    ///
    /// # Errors
    /// `io`.
    pub(super) fn is_free(&self, folder: &Path, name: &str) -> Result<bool> {
        Ok(!self.named.contains(&name.to_lowercase()) && is_free(folder, name)?)
    }

    /// That a single file may take the place of the checkpoint.
    ///
    /// # Errors
    /// `indexed-single`: until the index is gone, it would count the new file among the old shards.
    pub(super) fn check_single(&self, folder: &Path) -> Result<()> {
        match &self.counts_single {
            None => Ok(()),
            Some(index) => Err(Error::new(Code::IndexedSingle).at_path(folder.join(index))),
        }
    }

    /// Who may read the files with tensors: those who may read all of the old ones.
    ///
    /// # Errors
    /// As [`Mode::at`].
    pub(super) fn mode(&self, folder: &Path) -> Result<Mode> {
        let mut mode = Mode::New;
        for entry in self.single.iter().chain(&self.shards) {
            mode = match (mode, Mode::at(&folder.join(&entry.name))?) {
                (Mode::Kept(mode), Mode::Kept(another)) => Mode::Kept(mode & another),
                (mode, Mode::New) => mode,
                (Mode::New, another) => another,
            };
        }
        Ok(mode)
    }
}

/// What the indexes of a folder name, in small letters.
///
/// # Errors
/// As [`Owned::of`].
pub(super) fn named_in(folder: &Path) -> Result<HashSet<String>> {
    let listing = Listing::read(folder)?;
    let indexes = listing.names().filter(|name| index_of(name).is_some());
    let mut named = HashSet::new();
    for index in indexes {
        named.extend(named_by_another(&folder.join(index))?);
    }
    Ok(named)
}

/// Whether a name is that of the single file of another checkpoint, which an index may name but not
/// own.
fn is_of_another(name: &str, single: &str) -> bool {
    let stem = name.strip_suffix(".safetensors");
    name != single && stem.is_some_and(|stem| STEMS.contains(&stem))
}

/// The shards that an index names; none if it is broken.
fn named_by(index: &Path) -> Result<BTreeSet<String>> {
    match Index::open(index, &Limits::default()) {
        Ok(index) => Ok(index.shards().map(str::to_owned).collect()),
        Err(error) if is_failure(&error) => Err(error),
        Err(_) => Ok(BTreeSet::new()),
    }
}

/// Whatever somebody's index may name, in small letters: some readers take more than we do.
fn named_by_another(index: &Path) -> Result<Vec<String>> {
    let names: Vec<String> = match Index::open(index, &Limits::default()) {
        Ok(index) => index.shards().map(str::to_lowercase).collect(),
        Err(error) if is_failure(&error) || error.code() == Code::LimitIndex => return Err(error),
        Err(error) if error.kind() == Kind::Io => Vec::new(),
        Err(_) => {
            let file = FileSource::open(index)?;
            let json = read_vec(&file, 0, file.len())?;
            let index: Value = serde_json::from_slice(&json).unwrap_or_default();
            let map = index.get("weight_map").and_then(Value::as_object);
            let names = map.into_iter().flat_map(|map| map.values());
            let names = names.filter_map(Value::as_str);
            // However the name leads there.
            let last = |name: &str| name.rsplit('/').next().map(str::to_lowercase);
            names.filter_map(last).collect()
        }
    };
    Ok(names)
}

/// Whether a file could not be read, which says nothing about what is in it.
pub(super) fn is_failure(error: &Error) -> bool {
    matches!(error.code(), Code::Io | Code::FileChanged)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rstest::rstest;

    use super::super::testing::*;
    use super::*;

    const FP16_INDEX: &str = "model.safetensors.index.fp16.json";

    fn owned(world: &World) -> Owned {
        Owned::of(&world.folder(), &plain()).unwrap()
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
    #[case::readable(
        r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}"#
    )]
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
        let owned = Owned::of(&world.folder(), &fp16()).unwrap();
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
        let error = owned(&world).check_single(&world.folder()).unwrap_err();
        assert_eq!(error.code(), Code::IndexedSingle);
        assert_eq!(error.path(), Some(&*world.at(INDEX)));
        for old in [Old::Single, Old::Both, Old::Indexed, Old::Nothing] {
            owned(&World::new(old)).check_single(Path::new("")).unwrap();
        }
    }

    #[test]
    fn the_mode_is_what_all_files_have() {
        let world = World::new(Old::LinkedShards);
        let mode = || owned(&world).mode(&world.folder()).unwrap();
        let chmod =
            |name: &str, mode| fs::set_permissions(world.at(name), Permissions::from_mode(mode));
        let [first, second] = canonical(2).try_into().unwrap();
        chmod(&first, 0o640).unwrap();
        chmod(&second, 0o604).unwrap();
        chmod(INDEX, 0o444).unwrap();
        assert_eq!(mode(), Mode::Kept(0o600));
        symlink("nowhere", world.at(SINGLE)).unwrap();
        assert_eq!(mode(), Mode::Kept(0o600));
        assert_eq!(
            owned(&World::new(Old::Gone)).mode(Path::new("")).unwrap(),
            Mode::New
        );
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        for name in [SINGLE, INDEX] {
            let world = World::empty();
            fs::create_dir(world.at(name)).unwrap();
            let error = Owned::of(&world.folder(), &plain()).unwrap_err();
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
}
