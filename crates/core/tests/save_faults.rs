//! Saving while any one of the system calls fails: injected with `strace` into a process of its own. An
//! error says where, and the old checkpoint is as it was; or the new one is there, whole.

mod support;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use rstest::rstest;
use rustix::io::Errno;
use safeshard_core::{Durability, Error, SaveReport};
use serde_json::{Value, json};
use support::generations::{Generation, Layout, Scene, Target};
use support::trace::{self, Call, Times};

const OLD: Generation = Generation(1);
const NEW: Generation = Generation(2);
const NEXT: Generation = Generation(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Full,
    Broken,
    /// From then on.
    BrokenForGood,
    Interrupted,
}

impl Fault {
    fn errno(self) -> Errno {
        match self {
            Self::Full => Errno::NOSPC,
            Self::Broken | Self::BrokenForGood => Errno::IO,
            Self::Interrupted => Errno::INTR,
        }
    }

    fn strike(self, root: &Path, call: &Call) {
        let times = match self {
            Self::BrokenForGood => Times::FromThenOn,
            _ => Times::Once,
        };
        let fault = format!("error={}", self.errno().raw_os_error());
        trace::strike(root, call, &fault, times);
    }
}

/// What the child says its save came to.
const OUTCOME: &str = "outcome.json";

#[derive(Debug)]
enum Outcome {
    Saved { left_behind: Vec<PathBuf> },
    Failed(Failure),
}

#[derive(Debug)]
struct Failure {
    path: String,
    errno: Option<i32>,
    message: String,
}

impl Outcome {
    fn write(root: &Path, result: Result<SaveReport, Error>) {
        let value = match result {
            Ok(report) => json!({"left_behind": report.left_behind}),
            Err(error) => json!({
                "path": error.path(),
                "errno": error.io_error().and_then(io::Error::raw_os_error),
                "message": error.to_string(),
            }),
        };
        fs::write(root.join(OUTCOME), value.to_string()).unwrap();
    }

    fn read(root: &Path) -> Self {
        let value: Value = serde_json::from_slice(&fs::read(root.join(OUTCOME)).unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        match &value["left_behind"] {
            Value::Array(left_behind) => Self::Saved {
                left_behind: left_behind.iter().map(text).map(PathBuf::from).collect(),
            },
            _ => Self::Failed(Failure {
                path: text(&value["path"]),
                errno: value["errno"].as_i64().map(|errno| errno as i32),
                message: text(&value["message"]),
            }),
        }
    }
}

#[rstest]
fn a_call_that_fails_leaves_the_old_or_the_new(
    #[values(None, Some(Layout::Single), Some(Layout::Shards(3)))] old: Option<Layout>,
    #[values(Layout::Single, Layout::Shards(3))] new: Layout,
    #[values(Fault::Full, Fault::Broken, Fault::BrokenForGood, Fault::Interrupted)] fault: Fault,
) {
    fail_everywhere(old, new, Target::Folder, fault);
}

#[rstest]
fn a_call_that_fails_in_the_save_of_one_file_leaves_the_old_or_the_new(
    #[values(None, Some(Layout::Single))] old: Option<Layout>,
    #[values(Fault::Full, Fault::Broken, Fault::BrokenForGood, Fault::Interrupted)] fault: Fault,
) {
    fail_everywhere(old, Layout::Single, Target::File, fault);
}

fn fail_everywhere(old: Option<Layout>, new: Layout, target: Target, fault: Fault) {
    if let Some(root) = support::child_folder() {
        return save_traced(&root, target, new);
    }
    if !trace::works("saves in which calls fail") {
        return;
    }
    let before = Scene::new(old);
    let calls = trace::calls(before.again().root());
    let commit = calls.iter().rposition(|call| call.publishes(new.main()));
    let mut successes = HashSet::new();
    for (at, call) in calls.iter().enumerate().filter(|(_, call)| may_fail(call)) {
        // Listing a folder closes it, too.
        if fault == Fault::BrokenForGood && call.name == "close" {
            continue;
        }
        let scene = before.again();
        fault.strike(scene.root(), call);
        let outcome = Outcome::read(scene.root());
        println!("{call:?}, call {at}, {fault:?}: {outcome:?}");
        let committed = at > commit.unwrap();
        // A lock that is not ours, for all we know, or that cannot be removed, stays for the next save.
        if call.is_of_lock() && ["flock", "unlink"].contains(&call.name.as_str()) {
            let _taken_over = fs::remove_file(scene.model().join(trace::LOCK));
        }
        match outcome {
            Outcome::Saved { left_behind } if left_behind.is_empty() => {
                assert!(!must_be_told(call, fault));
                scene.holds_only_whole(NEW, new);
                successes.insert(true);
            }
            Outcome::Saved { left_behind } => {
                assert!(committed && !must_be_continued(call, fault));
                assert!(left_behind.iter().all(|path| path.exists()));
                assert_eq!(scene.generation(), Some(NEW));
                successes.insert(true);
            }
            Outcome::Failed(failure) => {
                assert!(!must_be_continued(call, fault));
                assert_eq!(failure.errno, Some(fault.errno().raw_os_error()));
                assert!(Path::new(&failure.path).starts_with(scene.root()));
                assert!(failure.message.contains(&failure.path));
                let is_said = failure.message.contains("is in its place");
                // What fails for good from before the commit on may strike behind it.
                if committed || fault == Fault::BrokenForGood && is_said {
                    assert!(is_said);
                    assert_eq!(scene.generation(), Some(NEW));
                } else if fault == Fault::BrokenForGood && scene.has_journal() {
                    // Where nothing can be undone any more, the next save has to.
                    assert_eq!(scene.generation(), before.generation());
                } else {
                    scene.holds_the_same_as(&before);
                }
                successes.insert(false);
            }
        }
        let next = match target {
            Target::Folder => [Layout::Single, Layout::Shards(3)][at % 2],
            Target::File => Layout::Single,
        };
        scene.save_to(&target.path(scene.root()), NEXT, next);
    }
    if fault != Fault::Interrupted {
        assert_eq!(successes.len(), 2, "some faults end a save, some do not");
    }
}

/// What the child does.
fn save_traced(root: &Path, target: Target, layout: Layout) {
    let path = target.path(root);
    let result = trace::traced(|| NEW.save(path, layout, Durability::Durable));
    // In another thread, whose calls do not fail.
    thread::scope(|scope| {
        scope.spawn(|| Outcome::write(root, result));
    });
}

/// Closing a folder that was only listed cannot fail, and the standard library insists on that.
fn may_fail(call: &Call) -> bool {
    call.name != "close"
        || call
            .descriptor()
            .is_some_and(|path| path.ends_with(".partial"))
}

/// Whether a save must not just succeed after this: something is not there, or may not be there
/// after a power failure.
fn must_be_told(call: &Call, fault: Fault) -> bool {
    let writes = matches!(
        call.name.as_str(),
        "write"
            | "pwrite64"
            | "writev"
            | "pwritev"
            | "ftruncate"
            | "fsync"
            | "fdatasync"
            | "rename"
            | "renameat"
            | "renameat2"
            | "link"
            | "linkat"
            | "mkdir"
            | "mkdirat"
            | "unlink"
            | "unlinkat"
    );
    let creates = call.name.starts_with("open") && call.arguments.contains("O_CREAT");
    let reserves = call.name == "fallocate" && fault == Fault::Full;
    // What nobody needs any more, the next save takes over.
    let gives_back = call.is_of_lock() && call.name.starts_with("unlink");
    fault != Fault::Interrupted && !gives_back && (writes || creates || reserves)
}

/// Whether POSIX lets a signal interrupt this call, which is then to be made again; listing a folder
/// it does not.
fn must_be_continued(call: &Call, fault: Fault) -> bool {
    let may_be_interrupted = matches!(
        call.name.as_str(),
        "open"
            | "openat"
            | "write"
            | "pwrite64"
            | "writev"
            | "pwritev"
            | "ftruncate"
            | "fallocate"
            | "fsync"
            | "fdatasync"
            | "flock"
            | "fcntl"
            | "close"
    );
    let lists = call.arguments.contains("O_NONBLOCK") && call.arguments.contains("O_DIRECTORY");
    fault == Fault::Interrupted && may_be_interrupted && !lists
}

/// The next save has to finish or undo a killed one first, and there too a call may fail.
#[rstest]
fn a_call_that_fails_while_a_killed_save_is_tidied_up_changes_nothing(
    #[values(Layout::Single, Layout::Shards(3))] old: Layout,
    #[values(Killed::BeforeTheCommit, Killed::AfterIt)] killed: Killed,
) {
    let new = Layout::Shards(3);
    if let Some(root) = support::child_folder() {
        return save_traced(&root, Target::Folder, new);
    }
    if !trace::works("saves in which calls fail") {
        return;
    }
    let before = Scene::new(Some(old));
    let calls = trace::calls(before.again().root());
    let commit = calls.iter().rposition(|call| call.publishes(new.main()));
    let commit = commit.unwrap();
    let (at, left) = match killed {
        Killed::BeforeTheCommit => (commit, OLD),
        Killed::AfterIt => (commit + 1, NEW),
    };
    trace::kill(before.root(), &calls[at]);
    let calls = trace::calls(before.again().root());
    let tidies: Vec<_> = calls.iter().take_while(|call| !call.stages()).collect();
    assert!(tidies.iter().any(|call| call.name.starts_with("unlink")));
    for call in tidies.into_iter().filter(|call| may_fail(call)) {
        let scene = before.again();
        Fault::Broken.strike(scene.root(), call);
        let outcome = Outcome::read(scene.root());
        println!("{call:?}: {outcome:?}");
        match outcome {
            Outcome::Saved { .. } => assert_eq!(scene.generation(), Some(NEW)),
            Outcome::Failed { .. } => assert_eq!(scene.generation(), Some(left)),
        }
        scene.save(NEXT, new);
    }
}

#[derive(Clone, Copy, Debug)]
enum Killed {
    BeforeTheCommit,
    AfterIt,
}
