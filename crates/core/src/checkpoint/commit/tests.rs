//! Every state of a folder between the old checkpoint and the new one, seen by every kind of reader;
//! and what the next save makes of each.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rstest::rstest;
use serde_json::{Value, json};

use super::folder_changes::watch::{Failing, watched};
use super::testing::*;
use super::*;
use crate::checkpoint::open::OpenOptions;

mod others;

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
    let mut worlds = Vec::new();
    for old in [
        Old::Nothing,
        Old::Single,
        Old::Same,
        Old::Both,
        Old::Indexed,
    ] {
        for new in [New::Single, New::Shards] {
            let world = World::new(old);
            let (_, mut states) = states_of(&world, || world.save(new).unwrap());
            // Hidden files are nothing to them.
            let visible = |state: &World| {
                let names = state.names().into_iter();
                names
                    .filter(|name| !name.starts_with('.'))
                    .collect::<Vec<_>>()
            };
            states.dedup_by_key(|state| (visible(state), views(&state.folder())));
            worlds.append(&mut states);
        }
    }
    let found = load_with_python(&worlds);
    assert_eq!(found.len(), worlds.len());
    for (found, world) in found.iter().zip(worlds) {
        // What the models of these readers say is checked above.
        let [_, by_single, by_index] = views(&world.folder()).map(|value| match value {
            None => Value::Null,
            Some(BROKEN) => json!("broken"),
            Some(value) => json!(f64::from(value)),
        });
        let shown = || format!("{found} {:?}", world.names());
        assert_eq!(found["transformers"], by_single, "{}", shown());
        assert_eq!(found["accelerate"], by_single, "{}", shown());
        assert_eq!(found["huggingface_hub"], by_index, "{}", shown());
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
    let answers = str::from_utf8(&output.stdout).unwrap().lines();
    answers
        .map(|answer| serde_json::from_str(answer).unwrap())
        .collect()
}

#[test]
fn readers_and_writers_at_once_never_see_a_mixture() {
    const FIRST: u8 = BROKEN + 1;
    const LAST: u8 = 160;
    let world = World::empty();
    let (folder, done) = (world.folder(), AtomicBool::new(false));
    let save = |value| {
        let new = match value % 4 {
            0 => New::Single,
            _ => New::Shards,
        };
        save(&folder, plain(), new, value, Durability::Cached).unwrap();
    };
    save(FIRST);
    let read = |only: Option<Vec<String>>| {
        let options = OpenOptions {
            only,
            ..OpenOptions::default()
        };
        let mut last = FIRST;
        while !done.load(Ordering::Relaxed) {
            let now = ours_with(&folder, &options).expect("a checkpoint at every instant");
            assert!(now != BROKEN && now >= last, "{now} after {last}");
            last = now;
        }
    };
    let read = &read;
    thread::scope(|scope| {
        // Of all tensors, and without looking at the whole folder.
        let readers = [None, Some(TENSORS.map(str::to_owned).to_vec())];
        let readers = readers.map(|only| scope.spawn(move || read(only)));
        // Two writers, which wait for each other.
        let next = Mutex::new(FIRST + 1);
        let write = || loop {
            let mut next = next.lock().unwrap();
            if *next > LAST {
                return;
            }
            save(*next);
            *next += 1;
        };
        thread::scope(|scope| [scope.spawn(write), scope.spawn(write)].map(drop));
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert_eq!(views(&folder), [Some(LAST); 3]);
    assert_eq!(world.names().len(), New::Single.files());
}

#[test]
fn saves_at_once_wait_for_each_other() {
    let world = World::empty();
    thread::scope(|scope| {
        for value in 10..26 {
            let folder = world.folder();
            let new = [New::Single, New::Shards][usize::from(value % 2)];
            scope.spawn(move || save(&folder, plain(), new, value, Durability::Cached).unwrap());
        }
    });
    let [value, others @ ..] = views(&world.folder());
    assert!((10..26).contains(&value.unwrap()));
    assert_eq!(others, [value; 2]);
}

#[rstest]
fn foreign_files_stay_as_they_are(#[values(Old::Single, Old::Same, Old::Both)] old: Old) {
    let world = World::new(old);
    let foreign = [
        "model-extra-00001-of-00002.safetensors",
        "model-00001-of-00009.safetensors",
        "model-00001-of-00002.bin",
        "model_encoder-00001-of-00002.safetensors",
        "model.bf16.safetensors",
        "pytorch_model.bin.index.json",
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "config.json",
        ".gitattributes",
        "x/model-00001-of-00002.safetensors",
        ".model.safetensors.partial",
    ];
    for name in foreign {
        world.write(name, name);
    }
    world.shards(
        "model.safetensors.index.fp16.json",
        &["model.fp16-00001-of-00001.safetensors"],
        STALE,
    );
    let mine = [SINGLE, INDEX]
        .into_iter()
        .map(str::to_owned)
        .chain(canonical(2));
    let mine: BTreeSet<_> = mine.collect();
    let theirs = || {
        let names = world
            .names()
            .into_iter()
            .filter(|name| !mine.contains(name) && !name.contains("-g2-"));
        let looked_at = |name: String| {
            let entry = Entry::at(&world.folder(), &name).unwrap();
            (name, entry)
        };
        names.map(looked_at).collect::<Vec<_>>()
    };
    let before = theirs();
    assert_eq!(before.len(), foreign.len() + 2);
    for new in [
        New::Shards,
        New::Shards,
        New::Single,
        New::Single,
        New::Shards,
    ] {
        let removed = world.save(new).unwrap();
        assert!(removed.left_behind.is_empty());
        assert_eq!(theirs(), before);
        assert_eq!(ours(&world.folder(), Some("fp16")), Some(STALE));
        assert_eq!(single_first(&world.folder(), &plain()), Some(NEW));
    }
}

#[rstest]
fn blobs_of_the_cache_are_neither_written_nor_removed(
    #[values(Old::LinkedSingle, Old::LinkedShards)] old: Old,
    #[values(New::Single, New::Shards)] new: New,
) {
    let world = World::new(old);
    let blobs = world.root().join("blobs");
    for blob in fs::read_dir(&blobs).unwrap() {
        fs::set_permissions(blob.unwrap().path(), Permissions::from_mode(0o640)).unwrap();
    }
    let looked_at = |name: String| Entry::at(&blobs, &name).unwrap().unwrap();
    let before: Vec<_> = names_in(&blobs).into_iter().map(looked_at).collect();
    let removed = world.save(new).unwrap();
    assert!(removed.left_behind.is_empty());
    let after: Vec<_> = names_in(&blobs).into_iter().map(looked_at).collect();
    assert_eq!(after, before);
    for name in world.names() {
        let metadata = fs::symlink_metadata(world.at(&name)).unwrap();
        assert!(metadata.is_file(), "{name}");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640, "{name}");
    }
}

#[test]
fn what_stays_because_others_need_it_is_told() {
    let world = World::new(Old::Same);
    let first = &canonical(2)[0];
    world.write(
        "model.safetensors.index.fp16.json",
        index_of_shards(&[first]),
    );
    let removed = world.save(New::Single).unwrap();
    let folder = world.folder().canonicalize().unwrap();
    assert_eq!(removed.left_behind, [folder.join(first)]);
    assert_eq!(world.names().len(), 3);
}

#[test]
fn a_single_file_among_shards_can_be_replaced_by_shards_only() {
    let world = World::empty();
    world.shards(INDEX, &[SINGLE, "mtp.safetensors"], OLD);
    let names = world.names();
    let error = world.save(New::Single).unwrap_err();
    assert_eq!(error.code(), Code::IndexedSingle);
    assert_eq!(world.names(), names);
    world.save(New::Shards).unwrap();
    assert_eq!(views(&world.folder()), [Some(NEW); 3]);
    assert_eq!(world.names().len(), New::Shards.files());
}

#[test]
fn a_single_rename_needs_no_journal() {
    for old in [Old::Nothing, Old::Single] {
        let world = World::new(old);
        let (_, states) = states_of(&world, || world.save(New::Single).unwrap());
        assert_eq!(states.len(), 1, "one change");
    }
}
