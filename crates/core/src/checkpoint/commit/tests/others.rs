//! Files of others that are in the way of a save, or come while it is at work.

use std::fs;

use super::super::folder_changes::watch::{Watch, watched};
use super::super::testing::*;
use super::super::*;

#[test]
fn a_name_that_somebody_takes_meanwhile_is_left_to_him() {
    let world = World::new(Old::Single);
    let names = canonical(2);
    let to = world.open(plain()).unwrap();
    let staged = |name: &str, bytes: &[u8]| to.stage(name, bytes, Durability::Cached);
    let shards = names
        .iter()
        .map(|name| staged(name, b"shard").unwrap())
        .collect();
    let main = staged(INDEX, b"index").unwrap();
    world.write(&names[1], "foreign");
    let new = NewFiles {
        main,
        shards,
        along: Vec::new(),
    };
    let error = to.commit(new, Durability::Cached).unwrap_err();
    assert_eq!(error.code(), Code::FileChanged);
    assert_eq!(error.path(), Some(&*to.folder().join(&names[1])));
    drop(to);
    assert_eq!(world.names(), [SINGLE, &names[1]].map(str::to_owned).into());
    assert_eq!(fs::read(world.at(&names[1])).unwrap(), b"foreign");
}

#[test]
fn a_single_file_that_must_stay_is_no_place_for_shards() {
    let world = World::new(Old::Single);
    world.shards("model.safetensors.index.fp16.json", &[SINGLE], OLD);
    let names = world.names();
    let error = world.save(New::Shards).unwrap_err();
    assert_eq!(error.code(), Code::OldCheckpointLeft);
    assert!(error.to_string().contains("nothing was written"), "{error}");
    assert_eq!(world.names(), names);
}

/// Does something at a change of this number.
struct At<F>(usize, F);

impl<F: FnMut()> Watch for At<F> {
    fn before(&mut self) -> Result<()> {
        self.0 = self.0.wrapping_sub(1);
        if self.0 == 0 {
            self.1();
        }
        Ok(())
    }

    fn after(&mut self) {}
}

#[test]
fn a_save_does_not_succeed_where_a_reader_finds_what_somebody_put_there_meanwhile() {
    let mut failed = 0;
    for at in 1..12 {
        let world = World::new(Old::Single);
        let other = file(&TENSORS, STALE);
        let single = world.at(SINGLE);
        let put = move || fs::write(&single, &other).unwrap();
        let saved = watched(At(at, put), || world.save(New::Shards));
        let found = single_first(&world.folder(), &plain());
        match saved {
            Ok(_) => assert_eq!(found, Some(NEW), "put there at change {at}"),
            Err(error) => {
                assert_eq!(error.code(), Code::OldCheckpointLeft);
                assert_eq!(found, Some(STALE), "nobody's file is removed");
                failed += 1;
            }
        }
    }
    assert!(failed > 3, "{failed}");
}
