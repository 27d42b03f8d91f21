//! A save that is killed, or meets a power failure, at any moment leaves the old checkpoint or the
//! new one, for every reader, and the next save tidies up.

mod support;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::PathBuf;

use rstest::rstest;
use safeshard_core::{Code, Durability};
use support::generations::{Files, Generation, Layout, OTHER_VARIANT, Scene, Target};
use support::power::crashes;
use support::python::values_in;
use support::trace::{self, Call};

const OLD: Generation = Generation(1);
const NEW: Generation = Generation(2);
const NEXT: Generation = Generation(3);

#[rstest]
fn a_killed_save_leaves_the_old_or_the_new(
    #[values(
        None,
        Some(Layout::Single),
        Some(Layout::Shards(3)),
        Some(Layout::Shards(2))
    )]
    old: Option<Layout>,
    #[values(Layout::Single, Layout::Shards(3))] new: Layout,
) {
    end_everywhere(old, new, Target::Folder);
}

#[test]
fn a_killed_save_of_one_file_leaves_the_old_or_the_new() {
    end_everywhere(Some(Layout::Single), Layout::Single, Target::File);
}

fn end_everywhere(old: Option<Layout>, new: Layout, target: Target) {
    if let Some(root) = support::child_folder() {
        return save(target.path(&root), new);
    }
    if let Some(sweep) = Sweep::new(Scene::new(old), old, new, target) {
        let states = sweep.kill_everywhere();
        sweep.fail_of_power_everywhere(&states);
    }
}

#[rstest]
fn a_killed_save_into_a_folder_that_it_makes_leaves_nothing_or_the_new(
    #[values(Layout::Single, Layout::Shards(2))] new: Layout,
) {
    if let Some(root) = support::child_folder() {
        return save(Target::Folder.path(&root), new);
    }
    if let Some(sweep) = Sweep::new(Scene::empty(), None, new, Target::Folder) {
        let states = sweep.kill_everywhere();
        sweep.fail_of_power_everywhere(&states);
    }
}

/// What the child does.
fn save(path: PathBuf, layout: Layout) {
    trace::traced(|| NEW.save(path, layout, Durability::Durable)).unwrap();
}

/// One save, to be ended at each of its system calls.
struct Sweep {
    before: Scene,
    old: Option<Layout>,
    new: Layout,
    target: Target,
    calls: Vec<Call>,
    /// Which of the calls makes the new checkpoint the one that is opened.
    commit: usize,
}

impl Sweep {
    /// Lets the save through once; none where nothing may be traced.
    fn new(before: Scene, old: Option<Layout>, new: Layout, target: Target) -> Option<Self> {
        if !trace::works("saves that are killed") {
            return None;
        }
        let scene = before.again();
        let calls = trace::calls(scene.root());
        scene.holds_only_whole(NEW, new);
        // The file may be put there before, by another name for the old checkpoint.
        let commit = calls.iter().rposition(|call| call.publishes(new.main()));
        let commit = commit.unwrap();
        Some(Self {
            before,
            old,
            new,
            target,
            calls,
            commit,
        })
    }

    /// The generation that must be there after so many calls.
    fn expected(&self, made: usize) -> Option<Generation> {
        match made > self.commit {
            true => Some(NEW),
            false => self.old.map(|_| OLD),
        }
    }

    /// The folder before each of the calls, and after the last.
    fn kill_everywhere(&self) -> Vec<Files> {
        let mut states = Vec::new();
        let mut seen = HashSet::new();
        let mut seen_by_python = HashSet::new();
        for made in 0..=self.calls.len() {
            let scene = self.before.again();
            match self.calls.get(made) {
                Some(call) => trace::kill(scene.root(), call),
                None => assert_eq!(trace::calls(scene.root()), self.calls),
            }
            let expected = self.expected(made);
            assert_eq!(scene.generation(), expected, "{}", self.at(made));
            scene.foreign_is_untouched();
            let mut files = scene.files();
            states.push(files.clone());
            if seen.insert(files.clone()) {
                self.end_the_next_save_as_it_tidies_up(&scene, expected);
            }
            files.retain(|name, _| !name.starts_with('.'));
            if expected.is_some() && !scene.is_bare() && seen_by_python.insert(files) {
                self.python_agrees(&scene, made);
            }
            self.goes_on(&scene, expected, made);
        }
        println!(
            "{:?} -> {:?}: {} calls, {} states, {} of them for Python",
            self.old,
            self.new,
            self.calls.len(),
            seen.len(),
            seen_by_python.len()
        );
        states
    }

    fn at(&self, made: usize) -> String {
        match self.calls.get(made) {
            Some(call) => format!("on the way into {call:?}, call {made}"),
            None => "after the last call".to_owned(),
        }
    }

    /// A save that fails leaves what was there, and nothing of its own or of the killed one; a save
    /// that succeeds leaves its own and nothing else.
    fn goes_on(&self, scene: &Scene, expected: Option<Generation>, at: usize) {
        // Whichever layout comes next.
        let next = match self.target {
            Target::Folder => [Layout::Single, Layout::Shards(3), Layout::Shards(2)][at % 3],
            Target::File => Layout::Single,
        };
        let path = self.target.path(scene.root());
        let error = NEXT.fail_to_save(&path, next);
        assert_eq!(error.code(), Code::Cancelled, "{error}");
        match expected {
            // The save of a file looks at nothing else before it has all that it needs.
            expected if self.target == Target::File => assert_eq!(scene.generation(), expected),
            Some(NEW) => scene.holds_only_whole(NEW, self.new),
            Some(old) => scene.holds_only_whole(old, self.old.unwrap()),
            None => scene.holds_the_same_as(&self.before),
        }
        scene.save_to(&path, NEXT, next);
    }

    /// The first thing that a save does is to finish or undo what a killed one has begun. That may be
    /// cut off too.
    fn end_the_next_save_as_it_tidies_up(&self, killed: &Scene, expected: Option<Generation>) {
        if !killed.has_journal() {
            return;
        }
        let scene = killed.again();
        let calls = trace::calls(scene.root());
        let stages = |call: &Call| call.stages();
        let tidied = calls.iter().position(stages).unwrap();
        let mut states = Vec::new();
        for call in &calls[..=tidied] {
            let scene = killed.again();
            trace::kill(scene.root(), call);
            assert_eq!(scene.generation(), expected, "on the way into {call:?}");
            states.push(scene.files());
            scene.save(NEXT, self.new);
        }
        let before = self.before.files();
        let mut new = states[0].clone();
        new.retain(|name, bytes| before.get(name) != Some(bytes));
        let crashes = crashes(&calls[..tidied], &states, &new.into_keys().collect());
        for crash in &crashes {
            let scene = crash.scene();
            assert_eq!(scene.generation(), expected, "{:?}", crash.names());
            self.goes_on(&scene, expected, crash.calls);
        }
    }

    fn python_agrees(&self, scene: &Scene, made: usize) {
        let scene = scene.again();
        // huggingface_hub wants to find one safetensors file, where there is no index.
        fs::remove_file(scene.model().join(OTHER_VARIANT)).unwrap();
        let found = values_in(&scene.model());
        for (reader, found) in found.as_object().unwrap() {
            let generation = found.as_f64().map(|number| Generation(number as u8));
            let is_new = generation == Some(NEW);
            let is_old = generation.is_some() && generation == self.old.map(|_| OLD);
            let possible = is_new || is_old && made < self.calls.len();
            assert!(possible, "{reader} finds {found} {}", self.at(made));
        }
    }

    /// Whatever of the unsynced changes comes to the medium.
    fn fail_of_power_everywhere(&self, states: &[Files]) {
        let crashes = crashes(&self.calls, states, &BTreeSet::new());
        for crash in &crashes {
            let scene = crash.scene();
            let found = scene.generation();
            let expected = self.expected(crash.calls);
            // What is done but not yet on the medium may be lost until the save returns.
            let may_be_lost = crash.calls > self.commit && crash.calls < self.calls.len();
            let possible = found == expected || may_be_lost && found == self.old.map(|_| OLD);
            let names = crash.names();
            assert!(possible, "{found:?} of {names:?} {}", self.at(crash.calls));
            self.goes_on(&scene, found, crash.calls);
        }
        println!("{} states after a power failure", crashes.len());
    }
}
