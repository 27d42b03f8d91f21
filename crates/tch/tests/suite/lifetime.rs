//! Nothing leaks, nothing dangles, whichever thread drops what and in whatever order.

use std::fs;
use std::thread;

use safeshard_tch::{Checkpoint, load, map, map_from};

use crate::support::{CPU, floats, mapped, numbers, write_floats};

fn mappings(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.ends_with(name)).count()
}

fn expected(name: &str, len: usize) -> Vec<f32> {
    let bytes = numbers(name, len);
    let numbers = bytes
        .chunks(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    numbers.collect()
}

#[test]
fn views_outlive_the_checkpoint_and_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outlived.safetensors");
    write_floats(&path, &[("w", &[64, 1024])]);
    let checkpoint = Checkpoint::open_with(&path, &mapped().open).unwrap();
    let (mut tensors, _) = map_from(&checkpoint, &mapped()).unwrap();
    drop(checkpoint);
    fs::remove_file(&path).unwrap();
    let w = tensors.remove("w").unwrap();
    let view = w.get(3).view([32, 32]).tr();
    drop((tensors, w));
    assert_eq!(
        floats(&view.tr()),
        expected("w", 64 * 1024)[3 * 1024..4 * 1024]
    );
}

#[test]
fn threads_drop_mapped_tensors_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let name = "dropped-in-any-order.safetensors";
    let path = folder.path().join(name);
    let names: Vec<_> = (0..32).map(|i| format!("t{i}")).collect();
    let all: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), &[300][..]))
        .collect();
    write_floats(&path, &all);
    // SAFETY: the file stays as it is.
    let tensors = unsafe { map(&path) }.unwrap();
    assert_eq!(mappings(name), 1);
    thread::scope(|scope| {
        for (i, (name, tensor)) in tensors.into_iter().enumerate() {
            scope.spawn(move || {
                let view = tensor.narrow(0, 10, 5);
                if i % 2 == 0 {
                    drop(tensor);
                    assert_eq!(floats(&view), expected(&name, 300)[10..15]);
                } else {
                    drop(view);
                    assert_eq!(floats(&tensor), expected(&name, 300));
                }
            });
        }
    });
    assert_eq!(mappings(name), 0, "the last one takes the mapping away");
}

#[test]
fn mapping_and_loading_again_and_again_leaks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let name = "again-and-again.safetensors";
    let path = folder.path().join(name);
    write_floats(&path, &[("a", &[1 << 18]), ("b", &[1 << 18])]);
    let resident = || {
        let status = fs::read_to_string("/proc/self/statm").unwrap();
        let pages = status.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
        pages * 4096
    };
    let once = || {
        // SAFETY: the file stays as it is.
        let mapped = unsafe { map(&path) }.unwrap();
        let loaded = load(&path, CPU).unwrap();
        assert_eq!(mapped["a"], loaded["a"]);
        drop((mapped, loaded));
    };
    once();
    let before = resident();
    (0..200).for_each(|_| once());
    assert_eq!(mappings(name), 0);
    // Other tests run meanwhile; 200 times 4 MiB would be 800 MiB.
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes more");
}
