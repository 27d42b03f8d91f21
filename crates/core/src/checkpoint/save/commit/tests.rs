//! Every state of a folder between the old checkpoint and the new one, seen by every kind of reader;
//! and what the next save makes of each.

use std::cell::RefCell;
use std::env;
use std::io::Write;
use std::process::{Command, Stdio};
use std::rc::Rc;

use rstest::rstest;
use serde_json::Value;

use super::super::change::watch::{Failing, Watch, watched};
use super::super::testing::*;
use super::*;

/// Keeps a copy of the world after every change.
struct Recorder {
    root: PathBuf,
    states: Rc<RefCell<Vec<World>>>,
}

impl Watch for Recorder {
    fn before(&mut self) -> Result<()> {
        Ok(())
    }

    fn after(&mut self) {
        self.states.borrow_mut().push(World::copy_of(&self.root));
    }
}

/// The states that a piece of work on a world goes through.
fn states_of<T>(world: &World, work: impl FnOnce() -> T) -> (T, Vec<World>) {
    let states = Rc::default();
    let recorder = Recorder {
        root: world.root().to_path_buf(),
        states: Rc::clone(&states),
    };
    let result = watched(recorder, work);
    (result, states.take())
}

/// What a save does before it begins.
fn recover(world: &World) {
    world.open(plain()).unwrap();
}

#[rstest]
fn every_reader_finds_one_of_two_checkpoints_at_every_instant(
    #[values(
        Old::Nothing,
        Old::Single,
        Old::Same,
        Old::Other,
        Old::Both,
        Old::Indexed,
        Old::LinkedSingle,
        Old::LinkedShards,
        Old::Below,
        Old::Gone
    )]
    old: Old,
    #[values(New::Single, New::Shards)] new: New,
) {
    let world = World::new(old);
    let (before, names_before) = (views(&world.folder()), world.names());
    let (removed, states) = states_of(&world, || world.save(new).unwrap());
    assert!(removed.left_behind.is_empty());
    let names_after = world.names();
    assert_eq!(views(&world.folder()), [Some(NEW); 3]);
    assert_eq!(names_after.len(), new.files(), "{names_after:?}");

    let mut last = before;
    for (number, state) in states.iter().enumerate() {
        let folder = state.folder();
        let now = views(&folder);
        let shown = || format!("state {number}: {:?}", state.names());
        for (reader, now) in now.into_iter().enumerate() {
            // The old one until the new one, and never back.
            let is_old = now == before[reader] && last[reader] == before[reader];
            let allowed = now == Some(NEW) || is_old;
            assert!(allowed, "reader {reader} finds {now:?}; {}", shown());
        }
        last = now;

        // The process dies here, and the next save begins; it may die as well.
        let committed = now[0] == Some(NEW);
        let (views_at_end, names_at_end) = match committed {
            true => ([Some(NEW); 3], &names_after),
            false => (before, &names_before),
        };
        let recovered = World::copy_of(state.root());
        let (_, again) = states_of(&recovered, || recover(&recovered));
        for state in again.iter().chain([&recovered]) {
            let folder = state.folder();
            for (reader, now) in views(&folder).into_iter().enumerate() {
                let allowed = now == Some(NEW) && committed || now == before[reader];
                assert!(allowed, "reader {reader} finds {now:?} after {}", shown());
            }
            recover(state);
            assert_eq!(views(&folder), views_at_end, "{}", shown());
            assert_eq!(&state.names(), names_at_end, "{}", shown());
        }
    }
}

/// transformers reads the first spelling only, so nothing is there for it before.
#[rstest]
#[case(Some(OLD), "model.safetensors.index.fp16.json")]
#[case(None, "model.safetensors.fp16.index.json")]
#[case(None, "model.fp16.safetensors.index.json")]
fn a_variant_is_replaced_whatever_the_spelling_of_its_index(
    #[case] with_transformers: Option<u8>,
    #[case] spelling: &str,
    #[values(New::Single, New::Shards)] new: New,
) {
    let world = World::empty();
    world.single(SINGLE, STALE);
    let names = ["fp16", "00002-of-00002.fp16"].map(|end| format!("model-{end}.safetensors"));
    world.shards(spelling, &names, OLD);
    let views = |world: &World| {
        let folder = world.folder();
        [ours(&folder, Some("fp16")), single_first(&folder, &fp16())]
    };
    let before = [Some(OLD), with_transformers];
    assert_eq!(views(&world), before);
    let plain_before = ours(&world.folder(), None);
    let (removed, states) = states_of(&world, || {
        save(&world.folder(), fp16(), new, NEW, Durability::Cached).unwrap()
    });
    assert!(removed.left_behind.is_empty());
    assert_eq!(views(&world), [Some(NEW); 2]);
    assert_eq!(world.names().len(), new.files() + 1);
    for state in &states {
        let shown = || format!("{:?}", state.names());
        for (now, before) in views(state).into_iter().zip(before) {
            assert!(now == before || now == Some(NEW), "{}", shown());
        }
        assert_eq!(ours(&state.folder(), None), plain_before, "{}", shown());
        // Saving the plain checkpoint finishes the other one too.
        let committed = views(state)[0] == Some(NEW);
        recover(state);
        assert_eq!(views(state)[0], Some(if committed { NEW } else { OLD }));
        assert!(
            !state.names().iter().any(|name| name.starts_with('.')),
            "{}",
            shown()
        );
    }
}

#[rstest]
#[case::once(|number, at| number == at)]
#[case::from_then_on(|number, at| number >= at)]
fn every_failure_leaves_the_old_or_the_new(
    #[case] fails: fn(usize, usize) -> bool,
    #[values(
        Old::Nothing,
        Old::Single,
        Old::Same,
        Old::Both,
        Old::Indexed,
        Old::LinkedShards,
        Old::Below
    )]
    old: Old,
    #[values(New::Single, New::Shards)] new: New,
) {
    for at in 1.. {
        let world = World::new(old);
        let (before, names_before) = (views(&world.folder()), world.names());
        let count = Rc::new(RefCell::new(0));
        let counted = Rc::clone(&count);
        let failing = Failing::new(move |number| {
            *counted.borrow_mut() = number;
            fails(number, at)
        });
        let result = watched(failing, || {
            save(&world.folder(), plain(), new, NEW, Durability::Durable)
        });
        let shown = format!("failing at {at}: {:?}", world.names());
        if *count.borrow() < at {
            result.unwrap();
            break;
        }
        let now = views(&world.folder());
        match result {
            Ok(removed) => {
                assert!(!removed.left_behind.is_empty(), "{shown}");
                assert_eq!(now[0], Some(NEW), "{shown}");
            }
            Err(error) if now[0] == Some(NEW) => {
                assert!(error.advice().contains("in its place"), "{error}");
            }
            Err(_) => {
                assert_eq!(now, before, "{shown}");
                let once = !fails(at + 1, at);
                assert!(!once || world.names() == names_before, "{shown}");
            }
        }
        for (reader, now) in now.into_iter().enumerate() {
            let allowed = now == Some(NEW) || now == before[reader];
            assert!(allowed, "reader {reader}; {shown}");
        }
        // The next save finds a way on from there.
        let removed = world.save(new).unwrap();
        assert_eq!(removed.left_behind, Vec::<PathBuf>::new(), "{shown}");
        assert_eq!(views(&world.folder()), [Some(NEW); 3], "{shown}");
        assert_eq!(world.names().len(), new.files(), "{shown}");
    }
}

#[test]
fn python_finds_one_of_two_checkpoints_at_every_instant() {
    let olds = [
        Old::Nothing,
        Old::Single,
        Old::Same,
        Old::Both,
        Old::Indexed,
    ];
    let mut worlds = Vec::new();
    let mut expected = Vec::new();
    for (old, new) in olds
        .iter()
        .flat_map(|&old| [(old, New::Single), (old, New::Shards)])
    {
        let world = World::new(old);
        let before = views(&world.folder());
        let (_, states) = states_of(&world, || world.save(new).unwrap());
        for state in states.into_iter().chain([world]) {
            let views = views(&state.folder());
            expected.push((
                format!("{old:?} {new:?} {:?}", state.names()),
                before,
                views,
            ));
            worlds.push(state);
        }
    }
    let found = load_with_python(&worlds);
    assert_eq!(found.len(), worlds.len());
    for (found, (shown, before, views)) in found.iter().zip(expected) {
        let [_, by_single, by_index] = views.map(|value| value.map_or(Value::Null, Value::from));
        // As the models of these readers above; the numbers are floats there.
        let is = |library: &str, value: &Value| found[library].as_f64() == value.as_f64();
        assert!(is("transformers", &by_single), "{found} {shown}");
        assert!(is("accelerate", &by_single), "{found} {shown}");
        assert!(is("huggingface_hub", &by_index), "{found} {shown}");
        assert!(
            views
                .into_iter()
                .zip(before)
                .all(|(now, old)| now == old || now == Some(NEW))
        );
    }
}

fn load_with_python(worlds: &[World]) -> Vec<Value> {
    let python = env::var_os("SAFESHARD_PYTHON")
        .expect("SAFESHARD_PYTHON is not set: run the tests with `cargo xtask test`");
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/python/load_folders.py"
    );
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for world in worlds {
        writeln!(stdin, "{}", world.folder().display()).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}
