//! Readers beside a writer see whole checkpoints only, and writers come one after another.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rstest::rstest;
use safeshard_core::SaveReport;
use safeshard_core::{Cancel, Checkpoint, Code, Durability, Result};
use support::generations::{Generation, Layout, Scene, generation_at, model_in};

const FIRST: Generation = Generation(1);
const SECOND: Generation = Generation(2);
const THIRD: Generation = Generation(3);

#[rstest]
fn readers_see_the_old_or_the_new_while_a_writer_alternates(
    #[values(Layout::Single, Layout::Shards(3))] first: Layout,
    #[values(Layout::Single, Layout::Shards(3))] second: Layout,
) {
    const SAVES: usize = 200;
    const READING_THREADS: usize = 8;
    const READING_PROCESSES: usize = 2;
    const STOP: &str = "stop";
    if let Some(root) = support::child_folder() {
        let stop = root.join(STOP);
        read_until(&model_in(&root), || stop.exists());
        return;
    }
    let scene = Scene::new(None);
    scene.save(FIRST, first);
    let children: Vec<_> = (0..READING_PROCESSES)
        .map(|_| start(scene.root()))
        .collect();
    let model = scene.model();
    let write = || {
        for turn in 0..SAVES {
            let (generation, layout) = match turn % 2 {
                0 => (SECOND, second),
                _ => (FIRST, first),
            };
            let report = generation.save(&model, layout, Durability::Cached);
            let report = report.unwrap_or_else(|error| panic!("{error}"));
            assert!(report.left_behind.is_empty());
        }
    };
    let stop = AtomicBool::new(false);
    let read = || read_until(&model, || stop.load(Ordering::Relaxed));
    let seen = thread::scope(|scope| {
        let readers: Vec<_> = (0..READING_THREADS).map(|_| scope.spawn(read)).collect();
        let written = scope.spawn(write).join();
        stop.store(true, Ordering::Relaxed);
        written.unwrap();
        let seen = readers.into_iter().map(|reader| reader.join().unwrap());
        seen.flatten().collect::<BTreeSet<_>>()
    });
    assert_eq!(seen, BTreeSet::from([FIRST.0, SECOND.0]));
    fs::write(scene.root().join(STOP), "").unwrap();
    children.into_iter().for_each(finish);
    scene.holds_only_whole(FIRST, first);
}

/// Opens and reads all of it again and again; the generations that were seen.
fn read_until(model: &Path, stop: impl Fn() -> bool) -> BTreeSet<u8> {
    let mut seen = BTreeSet::new();
    loop {
        let checkpoint = Checkpoint::open(model).unwrap_or_else(|error| panic!("{error}"));
        match Generation::of(&checkpoint) {
            Ok(generation) => drop(seen.insert(generation.0)),
            Err(error) => assert_eq!(error.code(), Code::FileChanged, "{error}"),
        }
        if stop() && !seen.is_empty() {
            return seen;
        }
        // Leaves the writer some time, however few cores there are.
        thread::sleep(Duration::from_millis(3));
    }
}

/// Two processes save to one place, as often as they can, in layouts of their own.
#[rstest]
fn of_two_writers_one_wins_whole(
    #[values(Layout::Single, Layout::Shards(3))] first: Layout,
    #[values(Layout::Single, Layout::Shards(2))] second: Layout,
) {
    const SAVES: usize = 50;
    if let Some(root) = support::child_folder() {
        // The first to come takes the first part.
        let is_first = fs::create_dir(root.join("taken")).is_ok();
        let (generation, layout) = match is_first {
            true => (FIRST, first),
            false => (SECOND, second),
        };
        for _ in 0..SAVES {
            let report = generation.save(model_in(&root), layout, Durability::Cached);
            let report = report.unwrap_or_else(|error| panic!("{error}"));
            assert!(report.left_behind.is_empty());
        }
        return;
    }
    let scene = Scene::new(None);
    let children = [start(scene.root()), start(scene.root())];
    children.into_iter().for_each(finish);
    match scene.generation().unwrap() {
        FIRST => scene.holds_only_whole(FIRST, first),
        last => scene.holds_only_whole(last, second),
    }
}

/// One process saves a checkpoint into a folder, another one a file of its own, which it stages there
/// without waiting for the first.
#[test]
fn a_file_of_another_name_in_the_folder_disturbs_nobody() {
    const SAVES: usize = 100;
    const OTHER: &str = "other.safetensors";
    let is_saved = |report: Result<SaveReport>| assert!(report.unwrap().left_behind.is_empty());
    if let Some(root) = support::child_folder() {
        for _ in 0..SAVES {
            is_saved(SECOND.save(
                model_in(&root).join(OTHER),
                Layout::Single,
                Durability::Cached,
            ));
        }
        return;
    }
    let scene = Scene::new(None);
    let child = start(scene.root());
    for turn in 0..SAVES {
        let layout = [Layout::Single, Layout::Shards(3)][turn % 2];
        is_saved(FIRST.save(scene.model(), layout, Durability::Cached));
    }
    finish(child);
    let other = scene.model().join(OTHER);
    assert_eq!(generation_at(&other), Some(SECOND));
    fs::remove_file(other).unwrap();
    scene.holds_only_whole(FIRST, Layout::Shards(3));
}

#[derive(Clone, Copy, Debug)]
enum End {
    Done,
    Killed,
}

/// Files by which parent and child wait for each other.
const INSIDE: &str = "inside";
const GO: &str = "go";

#[rstest]
fn a_save_waits_for_the_one_before_it(
    #[values(End::Done, End::Killed)] end: End,
    #[values(Layout::Single, Layout::Shards(3))] layout: Layout,
) {
    if let Some(root) = support::child_folder() {
        return hold(&root, layout);
    }
    let scene = Scene::new(Some(layout));
    let mut holder = start_holding(&scene);
    // Who reads does not wait.
    assert_eq!(scene.generation(), Some(FIRST));

    let cancel = Cancel::default();
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let cancel = Some(cancel.clone());
            THIRD.save_after(scene.model(), layout, cancel, || Ok(()))
        });
        thread::sleep(Duration::from_millis(100));
        cancel.cancel();
        let error = waits.join().unwrap().unwrap_err();
        assert_eq!(error.code(), Code::Cancelled, "{error}");
    });
    assert_eq!(scene.generation(), Some(FIRST));

    thread::scope(|scope| {
        let model = scene.model();
        let waits = scope.spawn(|| THIRD.save(model, layout, Durability::Cached));
        thread::sleep(Duration::from_millis(100));
        assert!(!waits.is_finished(), "did not wait");
        match end {
            End::Done => fs::write(scene.root().join(GO), "").unwrap(),
            End::Killed => holder.kill().unwrap(),
        }
        let report = waits.join().unwrap().unwrap();
        scene.holds_only(THIRD, layout, &report);
    });
    match end {
        End::Done => finish(holder),
        End::Killed => drop(holder.wait().unwrap()),
    }
}

/// In the child: a save that has everything staged but its last tensor, and waits.
fn hold(root: &Path, layout: Layout) {
    let wait = || {
        fs::write(root.join(INSIDE), "").unwrap();
        // Ends too when the parent has removed everything.
        while root.exists() && !root.join(GO).exists() {
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    };
    let report = SECOND.save_after(model_in(root), layout, None, wait);
    assert!(report.unwrap().left_behind.is_empty());
}

fn start_holding(scene: &Scene) -> Child {
    let mut child = start(scene.root());
    while !scene.root().join(INSIDE).exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child has ended");
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(generation_at(&scene.model()), Some(FIRST));
    child
}

/// Starts the test that calls this as a [`support::child`], beside this process.
fn start(root: &Path) -> Child {
    let mut command = support::child_command(&[], root);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[track_caller]
fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(
        support::passed(&output),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
