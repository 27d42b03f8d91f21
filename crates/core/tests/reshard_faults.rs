//! Re-sharding and converting in place, and to another folder, killed at every system call and with every
//! call failing: readers find what was there or what is to be there, whole, and the next run tidies up.

mod support;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use rstest::rstest;
use safeshard_core::{
    Checkpoint, Code, ConvertOptions, Dtype, ReshardOptions, ReshardReport, Result, Shards,
    SideFiles, convert,
};
use support::generations::{Layout, OTHER_VARIANT, Scene, model_in};
use support::python::values_in;
use support::tensors::names;
use support::trace::{self, Call, Times};

/// What every tensor holds, whatever its dtype.
const VALUE: f32 = 1.0;

/// What is done, and where to.
#[derive(Clone, Copy, Debug)]
struct Work {
    layout: Layout,
    dtype: Dtype,
    to: To,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    InPlace,
    /// With the files beside the checkpoint.
    Elsewhere,
}

/// What a folder holds: dtype and number of files.
type State = Option<(Dtype, usize)>;

impl Work {
    fn run(self, root: &Path) -> Result<ReshardReport> {
        let shards = match self.layout {
            Layout::Single => Shards::Single,
            Layout::Shards(count) => {
                let all = 6 * self.dtype.size().unwrap();
                Shards::Limit((all / count as u64).to_string().parse().unwrap())
            }
        };
        let reshard = ReshardOptions {
            shards,
            side_files: SideFiles::Carry,
            threads: NonZeroUsize::new(1),
            ..ReshardOptions::default()
        };
        let options = ConvertOptions {
            reshard,
            ..ConvertOptions::floats_as(self.dtype)
        };
        convert(
            &Checkpoint::open(model_in(root))?,
            self.folder(root),
            &options,
        )
    }

    fn folder(self, root: &Path) -> PathBuf {
        match self.to {
            To::InPlace => model_in(root),
            To::Elsewhere => root.join("to"),
        }
    }

    fn after(self) -> State {
        let files = match self.layout {
            Layout::Single => 1,
            Layout::Shards(count) => count,
        };
        Some((self.dtype, files))
    }

    /// Runs once more, which must succeed and leave nothing else.
    #[track_caller]
    fn goes_on(self, scene: &Scene) {
        let report = self.run(scene.root()).unwrap();
        let folder = self.folder(scene.root());
        assert_eq!(state(&folder), self.after());
        let saved = report.saved.files.into_iter().map(|file| file.name);
        let mut expected: BTreeSet<_> = saved.chain(report.saved.index).collect();
        match self.to {
            To::InPlace => expected.extend(names(&Scene::new(None).model())),
            To::Elsewhere => expected.extend(report.carried),
        }
        assert_eq!(names(&folder), Vec::from_iter(expected));
        scene.foreign_is_untouched();
    }
}

/// What is there, all of it; `None` where there is no checkpoint.
#[track_caller]
fn state(folder: &Path) -> State {
    let checkpoint = match Checkpoint::open(folder) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            let none = [Code::NoCheckpoint, Code::IndexMissing, Code::NotFound];
            assert!(none.contains(&error.code()), "{error}");
            return None;
        }
    };
    assert_eq!(checkpoint.names(), ["a", "b", "c", "d", "e", "f"]);
    let dtype = checkpoint.info("a").unwrap().dtype;
    for tensor in checkpoint.tensors() {
        assert_eq!(tensor.dtype, dtype);
        let bytes = checkpoint.read(tensor.name).unwrap();
        let upper = VALUE.to_bits() >> 16;
        match dtype {
            Dtype::F32 => assert_eq!(bytes, VALUE.to_le_bytes()),
            _ => assert_eq!(bytes, (upper as u16).to_le_bytes()),
        }
    }
    Some((dtype, checkpoint.files().len()))
}

const FIRST_SHARDS: Layout = Layout::Shards(3);

#[rstest]
#[case::split(Layout::Single, Layout::Shards(3), Dtype::F32, To::InPlace)]
#[case::merged(FIRST_SHARDS, Layout::Single, Dtype::F32, To::InPlace)]
#[case::of_the_same_number(FIRST_SHARDS, Layout::Shards(3), Dtype::F32, To::InPlace)]
#[case::of_another_number(FIRST_SHARDS, Layout::Shards(2), Dtype::F32, To::InPlace)]
#[case::converted(FIRST_SHARDS, Layout::Shards(3), Dtype::Bf16, To::InPlace)]
#[case::converted_file(Layout::Single, Layout::Single, Dtype::Bf16, To::InPlace)]
#[case::elsewhere(FIRST_SHARDS, Layout::Single, Dtype::F32, To::Elsewhere)]
#[case::converted_elsewhere(Layout::Single, Layout::Shards(2), Dtype::Bf16, To::Elsewhere)]
fn whatever_happens_there_is_the_old_or_the_new(
    #[case] old: Layout,
    #[case] layout: Layout,
    #[case] dtype: Dtype,
    #[case] to: To,
) {
    let work = Work { layout, dtype, to };
    if let Some(root) = support::child_folder() {
        // Whether it succeeds or fails, and how, is for the parent to see from what it leaves.
        let outcome = match trace::traced(|| work.run(&root)) {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        return fs::write(root.join(OUTCOME), outcome).unwrap();
    }
    if !trace::works("re-sharding that is killed or fails") {
        return;
    }
    let sweep = Sweep::new(Scene::new(Some(old)), work);
    sweep.kill_everywhere();
    sweep.fail_everywhere("ENOSPC");
    sweep.fail_everywhere("EIO");
}

const OUTCOME: &str = "outcome";

struct Sweep {
    before: Scene,
    work: Work,
    calls: Vec<Call>,
    commit: usize,
}

impl Sweep {
    fn new(before: Scene, work: Work) -> Self {
        let scene = before.again();
        let calls = trace::calls(scene.root());
        assert_eq!(state(&work.folder(scene.root())), work.after());
        let main = work.layout.main();
        let commit = calls.iter().rposition(|call| call.publishes(main)).unwrap();
        Self {
            before,
            work,
            calls,
            commit,
        }
    }

    fn expected(&self, made: usize) -> State {
        match (made > self.commit, self.work.to) {
            (true, _) => self.work.after(),
            (false, To::InPlace) => state(&self.before.model()),
            (false, To::Elsewhere) => None,
        }
    }

    fn kill_everywhere(&self) {
        let mut seen = HashSet::new();
        for (made, call) in self.calls.iter().enumerate() {
            let scene = self.before.again();
            trace::kill(scene.root(), call);
            let folder = self.work.folder(scene.root());
            let expected = self.expected(made);
            assert_eq!(state(&folder), expected, "on the way into {call:?}");
            let mut files = scene.files();
            files.retain(|name, _| !name.starts_with('.'));
            if self.work.to == To::InPlace && seen.insert(files) {
                self.python_agrees(&scene.again(), call);
            }
            self.work.goes_on(&scene);
        }
    }

    fn python_agrees(&self, scene: &Scene, call: &Call) {
        // huggingface_hub wants to find one safetensors file, where there is no index.
        fs::remove_file(scene.model().join(OTHER_VARIANT)).unwrap();
        for (reader, found) in values_in(&scene.model()).as_object().unwrap() {
            assert_eq!(
                found.as_f64(),
                Some(VALUE.into()),
                "{reader} on the way into {call:?}"
            );
        }
    }

    fn fail_everywhere(&self, errno: &str) {
        let mut ends = HashSet::new();
        for (at, call) in self
            .calls
            .iter()
            .enumerate()
            .filter(|(_, call)| may_fail(call))
        {
            let scene = self.before.again();
            trace::strike(scene.root(), call, &format!("error={errno}"), Times::Once);
            let outcome = fs::read_to_string(scene.root().join(OUTCOME)).unwrap();
            let is_ok = outcome == "ok";
            let found = state(&self.work.folder(scene.root()));
            let committed = is_ok || at > self.commit;
            let expected = self.expected(if committed { self.calls.len() } else { 0 });
            assert_eq!(found, expected, "{call:?}, {errno}: {outcome}");
            let names_a_file = outcome.contains(scene.root().to_str().unwrap());
            assert!(is_ok || names_a_file, "{outcome}");
            if call.name == "copy_file_range" {
                // Only a lack of space is final.
                assert_eq!(is_ok, errno == "EIO", "{outcome}");
            }
            ends.insert(is_ok);
            self.work.goes_on(&scene);
        }
        assert_eq!(ends.len(), 2, "some faults end it, some do not");
    }
}

/// Debug builds of the standard library panic where closing fails.
fn may_fail(call: &Call) -> bool {
    call.name != "close"
        || call
            .descriptor()
            .is_some_and(|path| path.ends_with(".partial"))
}
