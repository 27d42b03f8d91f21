//! What saving costs in memory: nothing that grows with the tensors.

#[path = "support/counting.rs"]
mod counting;

use std::num::NonZeroUsize;
use std::{io, path::Path};

use counting::{Cost, MEASURED};
use safeshard_core::{Checkpoint, Dtype, Durability, SaveOptions, SaveTensor, save, write_to};

const MIB: u64 = 1 << 20;

/// Four shards' worth.
const LEN: usize = 24 * MIB as usize;

fn tensors(bytes: &[u8]) -> Vec<SaveTensor<'_>> {
    let tensors = ["a", "b", "c", "d"].map(|name| {
        // Each at a place of its own, or they would be stored once.
        let bytes = &bytes[usize::from(name.as_bytes()[0] - b'a')..][..LEN];
        SaveTensor::new(name, Dtype::U8, [LEN as u64], bytes)
    });
    tensors.into()
}

fn options(durability: Durability) -> SaveOptions {
    SaveOptions {
        max_shard_size: LEN.to_string().parse().unwrap(),
        threads: NonZeroUsize::new(2),
        durability,
        ..SaveOptions::default()
    }
}

/// Saves in four shards on two threads, and returns how many bytes it took at the most.
fn cost(tensors: Vec<SaveTensor<'_>>, path: &Path, durability: Durability) -> u64 {
    let options = options(durability);
    let save = || {
        let report = save(tensors, path, &options).unwrap();
        assert_eq!(report.files.len(), 4);
    };
    let cost = Cost::of(save).peak;
    println!("{durability:?}: {} KiB", cost >> 10);
    cost
}

#[test]
fn a_save_holds_no_copy_of_a_tensor() {
    let _alone = MEASURED.lock();
    let folder = tempfile::tempdir().unwrap();
    let bytes = vec![7; LEN + 4];
    let path = folder.path().join("cached");
    assert!(cost(tensors(&bytes), &path, Durability::Cached) < 4 * MIB);
    let path = folder.path().join("durable");
    assert!(cost(tensors(&bytes), &path, Durability::Durable) < 64 * MIB);

    let cost = Cost::of(|| {
        let tensors = tensors(&bytes);
        write_to(tensors, io::sink(), &SaveOptions::default()).unwrap();
    });
    assert!(cost.peak < MIB);
}

#[test]
fn a_checkpoint_that_is_saved_again_is_read_in_pieces() {
    let _alone = MEASURED.lock();
    let folder = tempfile::tempdir().unwrap();
    let bytes = vec![7; LEN + 4];
    save(tensors(&bytes), folder.path(), &options(Durability::Cached)).unwrap();
    drop(bytes);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("again");
    assert!(cost(checkpoint.save_tensors(), &path, Durability::Cached) < 20 * MIB);
}
