//! Edits of one file, and what goes along with a checkpoint: killed, or met by a power failure, at any
//! moment, they leave the old or the new for every reader, and the next save tidies up.

mod support;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use rstest::rstest;
#[cfg(feature = "digest")]
use safeshard_core::Manifest;
use safeshard_core::{
    Checkpoint, Code, ConvertOptions, Dtype, Durability, MetadataChange, OpenOptions, ReadOptions,
    ReshardOptions, Shards, SideFiles, change_metadata, change_shard_metadata, convert,
    write_index,
};
use support::INDEX;
use support::generations::{Files, Generation, Layout, Scene, model_in};
use support::power::crashes;
use support::tensors::SINGLE;
use support::trace::{self, Call};

const OLD: Generation = Generation(1);
const NEW: Generation = Generation(2);
const NEXT: Generation = Generation(3);

const MANIFEST: &str = "SUMS";
const TOKENIZER: (&str, &str) = ("tokenizer.json", r#"{"version": "1.0"}"#);

/// A change of one file, which leaves all others as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    MetadataOfFile,
    MetadataOfIndex,
    MetadataOfShards,
    FirstIndex,
    OtherIndex,
    #[cfg(feature = "digest")]
    FirstManifest,
    #[cfg(feature = "digest")]
    OtherManifest,
}

#[rstest]
#[case::metadata_of_a_file(Edit::MetadataOfFile)]
#[case::metadata_of_an_index(Edit::MetadataOfIndex)]
#[case::metadata_of_shards(Edit::MetadataOfShards)]
#[case::an_index_where_there_was_none(Edit::FirstIndex)]
#[case::another_index(Edit::OtherIndex)]
#[cfg_attr(
    feature = "digest",
    case::a_manifest_where_there_was_none(Edit::FirstManifest)
)]
#[cfg_attr(feature = "digest", case::another_manifest(Edit::OtherManifest))]
fn an_edit_that_is_cut_off_leaves_the_old_file_or_the_new(#[case] edit: Edit) {
    if let Some(root) = support::child_folder() {
        return trace::traced(|| edit.make(&model_in(&root)));
    }
    if let Some(sweep) = Sweep::new(edit.scene(), edit.file()) {
        sweep.end_everywhere();
    }
}

#[rstest]
fn what_goes_along_is_there_with_the_new_weights_and_not_with_the_old(
    #[values(None, Some(Layout::Single), Some(Layout::Shards(2)))] old: Option<Layout>,
    #[values(Layout::Single, Layout::Shards(3))] new: Layout,
) {
    carry_and_end_everywhere(old, new, Dtype::F32);
}

#[test]
fn what_goes_along_with_converted_weights_is_there_with_them_and_not_with_the_old() {
    carry_and_end_everywhere(Some(Layout::Single), Layout::Shards(3), Dtype::Bf16);
}

/// The weights come from files of this dtype.
fn carry_and_end_everywhere(old: Option<Layout>, new: Layout, dtype: Dtype) {
    if let Some(root) = support::child_folder() {
        let [saved, source] = ["saved", "source"].map(|name| root.join(name));
        let cached = |dtype| ConvertOptions {
            reshard: ReshardOptions {
                durability: Durability::Cached,
                ..options(Shards::Keep)
            },
            ..ConvertOptions::floats_as(dtype)
        };
        NEW.save(&saved, Layout::Shards(2), Durability::Cached)
            .unwrap();
        convert(&Checkpoint::open(saved).unwrap(), &source, &cached(dtype)).unwrap();
        fs::write(source.join(TOKENIZER.0), TOKENIZER.1).unwrap();
        let source = Checkpoint::open(source).unwrap();
        let shards = match new {
            Layout::Single => Shards::Single,
            Layout::Shards(_) => Shards::Limit("8 B".parse().unwrap()),
        };
        let options = ConvertOptions {
            reshard: options(shards),
            ..ConvertOptions::floats_as(Dtype::F32)
        };
        return trace::traced(|| drop(convert(&source, model_in(&root), &options).unwrap()));
    }
    let scene = Scene::empty();
    if let Some(layout) = old {
        scene.save(OLD, layout);
    }
    if let Some(sweep) = Sweep::new(scene, new.main()) {
        sweep.end_everywhere();
    }
}

/// In the thread of the caller, so that every run makes the same calls in the same order.
fn options(shards: Shards) -> ReshardOptions {
    ReshardOptions {
        shards,
        side_files: SideFiles::Carry,
        threads: Some(1.try_into().unwrap()),
        ..ReshardOptions::default()
    }
}

impl Edit {
    /// What is there before.
    fn scene(self) -> Scene {
        let scene = Scene::empty();
        let at = |name: &str| scene.model().join(name);
        match self {
            Self::MetadataOfFile => scene.save(OLD, Layout::Single),
            _ => scene.save(OLD, Layout::Shards(3)),
        }
        match self {
            Self::FirstIndex => fs::remove_file(at(INDEX)).unwrap(),
            Self::OtherIndex => {
                let index = fs::read_to_string(at(INDEX)).unwrap();
                fs::write(at(INDEX), index.replace("24", "7")).unwrap();
            }
            #[cfg(feature = "digest")]
            Self::OtherManifest => fs::write(at(MANIFEST), manifest('0').to_string()).unwrap(),
            _ => {}
        }
        scene
    }

    /// The file that it changes.
    fn file(self) -> &'static str {
        match self {
            Self::MetadataOfFile => SINGLE,
            Self::MetadataOfIndex
            | Self::MetadataOfShards
            | Self::FirstIndex
            | Self::OtherIndex => INDEX,
            #[cfg(feature = "digest")]
            Self::FirstManifest | Self::OtherManifest => MANIFEST,
        }
    }

    fn make(self, model: &Path) {
        let note = MetadataChange::Set("note".to_owned(), "new".to_owned());
        let (open, read) = (OpenOptions::default(), ReadOptions::default());
        match self {
            Self::MetadataOfFile | Self::MetadataOfIndex => {
                change_metadata(model, &[note], &open, &read).map(drop)
            }
            Self::MetadataOfShards => change_shard_metadata(model, &[note], &open, &read).map(drop),
            Self::FirstIndex | Self::OtherIndex => {
                write_index(model, &OpenOptions::default(), None).map(drop)
            }
            #[cfg(feature = "digest")]
            Self::FirstManifest | Self::OtherManifest => {
                manifest('1').write_file(model.join(MANIFEST), None)
            }
        }
        .unwrap();
    }
}

#[cfg(feature = "digest")]
fn manifest(digit: char) -> Manifest {
    let digest = digit.to_string().repeat(64);
    format!("{digest}  {SINGLE}\n").parse().unwrap()
}

/// What readers find in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    generation: Option<Generation>,
    /// The bytes of the file whose name makes the difference, where nothing else changes.
    edited: Option<Vec<u8>>,
    /// What goes along.
    along: Option<Vec<u8>>,
}

/// A piece of work on a folder, to be ended at each of its system calls.
struct Sweep {
    before: Scene,
    /// The file whose name makes the difference.
    file: &'static str,
    is_edit: bool,
    calls: Vec<Call>,
    /// Which of the calls makes it.
    commit: usize,
    old: Found,
    new: Found,
}

impl Sweep {
    /// Lets the work through once; none where nothing may be traced.
    fn new(before: Scene, file: &'static str) -> Option<Self> {
        if !trace::works("edits that are killed") {
            return None;
        }
        let scene = before.again();
        let calls = trace::calls(scene.root());
        let commit = calls.iter().rposition(|call| call.publishes(file));
        let is_edit = !scene.model().join(TOKENIZER.0).exists();
        let mut sweep = Self {
            file,
            is_edit,
            commit: commit.unwrap(),
            calls,
            old: Found::nothing(),
            new: Found::nothing(),
            before,
        };
        sweep.old = sweep.found(&sweep.before);
        sweep.new = sweep.found(&scene);
        assert_ne!(sweep.old, sweep.new);
        Some(sweep)
    }

    fn found(&self, scene: &Scene) -> Found {
        let read = |name: &str| fs::read(scene.model().join(name)).ok();
        Found {
            generation: scene.generation(),
            edited: self.is_edit.then(|| read(self.file)).flatten(),
            along: read(TOKENIZER.0),
        }
    }

    fn end_everywhere(&self) {
        let mut states = Vec::new();
        let mut seen = HashSet::new();
        for made in 0..=self.calls.len() {
            let scene = self.before.again();
            match self.calls.get(made) {
                Some(call) => trace::kill(scene.root(), call),
                None => assert_eq!(trace::calls(scene.root()), self.calls),
            }
            let is_new = made > self.commit;
            let found = self.found(&scene);
            let possible = [&self.old, &self.new][usize::from(is_new)];
            let as_it_should = found.generation == possible.generation
                && found.edited == possible.edited
                && self.goes_along(&found, made == self.calls.len());
            assert!(as_it_should, "{found:?} {}", self.at(made));
            states.push(scene.files());
            if seen.insert(scene.files()) && scene.has_journal() {
                self.end_the_next_as_it_tidies_up(&scene, is_new);
            }
            self.goes_on(&scene, is_new, made);
        }
        let crashes = self.fail_of_power_everywhere(&states);
        println!(
            "{} of {:?}: {} calls, {} states, {crashes} after a power failure",
            self.file,
            self.old.generation,
            self.calls.len(),
            seen.len(),
        );
    }

    /// The first thing that the next one does is to finish or undo what the killed one has begun. That
    /// may be cut off too.
    fn end_the_next_as_it_tidies_up(&self, killed: &Scene, is_new: bool) {
        let scene = killed.again();
        let calls = trace::calls(scene.root());
        // An edit that was committed already stages nothing.
        let tidied = calls.iter().position(Call::stages);
        let tidied = tidied.unwrap_or(calls.len() - 1);
        let expected = [&self.old, &self.new][usize::from(is_new)].generation;
        let check = |scene: &Scene, at: &Call| {
            let found = self.found(scene);
            assert_eq!(found.generation, expected, "tidying up, at {at:?}");
            assert!(
                self.goes_along(&found, false),
                "{found:?} tidying up, at {at:?}"
            );
        };
        let mut states = Vec::new();
        for (made, call) in calls[..=tidied].iter().enumerate() {
            let scene = killed.again();
            trace::kill(scene.root(), call);
            check(&scene, call);
            states.push(scene.files());
            self.goes_on(&scene, is_new, made);
        }
        let before = self.before.files();
        let mut new = states[0].clone();
        new.retain(|name, bytes| before.get(name) != Some(bytes));
        for crash in &crashes(&calls[..tidied], &states, &new.into_keys().collect()) {
            let scene = crash.scene();
            check(&scene, &calls[crash.calls]);
            self.goes_on(&scene, is_new, crash.calls);
        }
    }

    /// Whatever of the unsynced changes comes to the medium.
    fn fail_of_power_everywhere(&self, states: &[Files]) -> usize {
        let crashes = crashes(&self.calls, states, &BTreeSet::new());
        for crash in &crashes {
            let scene = crash.scene();
            let found = self.found(&scene);
            let is = |one: &Found| found.generation == one.generation && found.edited == one.edited;
            let has_returned = crash.calls == self.calls.len();
            let [old, new] = [is(&self.old), is(&self.new)];
            // What is done but not yet on the medium may be lost until the work returns.
            let possible = match crash.calls > self.commit {
                true => new || old && !has_returned,
                false => old,
            };
            let (names, at) = (crash.names(), self.at(crash.calls));
            assert!(possible, "{found:?} of {names:?} {at}");
            assert!(
                self.goes_along(&found, has_returned),
                "{found:?} of {names:?} {at}"
            );
            self.goes_on(&scene, new, crash.calls);
        }
        crashes.len()
    }

    /// With the old weights there is nothing new; with the new ones all, at the latest when the work is
    /// done, and where there were none before, at once.
    fn goes_along(&self, found: &Found, is_done: bool) -> bool {
        let is_new = found.generation == self.new.generation;
        let had_some = self.old.generation.is_some();
        match is_new {
            true => found.along == self.new.along || had_some && !is_done && found.along.is_none(),
            false => found.along.is_none() || !had_some && found.along == self.new.along,
        }
    }

    /// The next save finishes or undoes it first, then fails or replaces it; nothing is left.
    fn goes_on(&self, scene: &Scene, is_new: bool, at: usize) {
        let next = [Layout::Single, Layout::Shards(3), Layout::Shards(2)][at % 3];
        let error = NEXT.fail_to_save(scene.model(), next);
        assert_eq!(error.code(), Code::Cancelled, "{error}");
        let expected = [&self.old, &self.new][usize::from(is_new)];
        assert_eq!(self.found(scene), *expected, "{}", self.at(at));
        let report = NEXT.save(scene.model(), next, Durability::Cached).unwrap();
        assert!(report.left_behind.is_empty(), "{:?}", report.left_behind);
        assert_eq!(scene.generation(), Some(NEXT));
        let files = scene.files();
        let left: Vec<_> = files.keys().filter(|name| name.starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?} {}", self.at(at));
    }

    fn at(&self, made: usize) -> String {
        match self.calls.get(made) {
            Some(call) => format!("on the way into {call:?}, call {made}"),
            None => "after the last call".to_owned(),
        }
    }
}

impl Found {
    fn nothing() -> Self {
        Self {
            generation: None,
            edited: None,
            along: None,
        }
    }
}
