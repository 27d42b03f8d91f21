//! Tensors that are to be saved or read, while safe code does to their storage whatever tch lets it do: the
//! right bytes come out, or an error, and nobody touches memory that is not there any more.
//!
//! The last test runs the others under valgrind, which sees what goes unnoticed otherwise.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use safeshard_core::{Checkpoint, Code, Durability, SaveTensor, write_to};
use safeshard_tch::{
    LoadOptions, SaveOptions, VarOptions, VarStoreExt, load, load_with, save_with, tensor_to_save,
};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const LEN: usize = 40_000;
/// More bytes than are given away at a time.
const LARGE: usize = 1_200_000;
/// More than most storages here have, so that they are moved.
const MORE: i64 = 1 << 21;

/// Numbers that differ from place to place.
fn numbers_of(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn numbers() -> Vec<u8> {
    numbers_of(LEN)
}

fn tensor() -> Tensor {
    Tensor::from_slice(&numbers())
}

/// What is done to a tensor, by name.
type Change<'c> = (&'c str, &'c dyn Fn(&mut Tensor));

fn checkpoint(tensor: &Tensor) -> Checkpoint {
    Checkpoint::from_tensors(vec![tensor_to_save("w", tensor).unwrap()]).unwrap()
}

fn cached() -> SaveOptions {
    SaveOptions {
        durability: Durability::Cached,
        ..SaveOptions::default()
    }
}

/// Everything that gives a tensor's bytes away finds these.
#[track_caller]
fn assert_bytes(checkpoint: &Checkpoint, expected: &[u8]) {
    // What was freed is soon something else.
    let _other = Tensor::full([LEN as i64], 9, (Kind::Uint8, Device::Cpu));
    assert!(checkpoint.read("w").unwrap() == expected);
    let (loaded, _) = load_with(checkpoint, Device::Cpu, &LoadOptions::default()).unwrap();
    assert!(Vec::<u8>::try_from(&loaded["w"].flatten(0, -1)).unwrap() == expected);
}

#[test]
fn a_storage_that_is_moved_is_read_where_it_is_now() {
    let template = Tensor::zeros([MORE], (Kind::Uint8, Device::Cpu));
    let moves: [Change<'_>; 6] = [
        ("resize_", &|t| drop(t.resize_([MORE]))),
        ("resize_ of a clone", &|t| {
            drop(t.shallow_clone().resize_([MORE]));
        }),
        ("resize_ of a view", &|t| {
            drop(t.narrow(0, 7, 3).resize_([MORE]));
        }),
        ("resize_ of a detached one", &|t| {
            drop(t.detach().resize_([MORE]));
        }),
        ("resize_as_", &|t| drop(t.resize_as_(&template))),
        ("resize_, twice", &|t| {
            drop(t.resize_([MORE]));
            drop(t.resize_([2 * MORE]));
        }),
    ];
    for (name, moves) in moves {
        let mut tensor = tensor();
        let checkpoint = checkpoint(&tensor);
        let before = tensor.data_ptr();
        moves(&mut tensor);
        assert_ne!(tensor.data_ptr(), before, "{name} moves nothing");
        assert_bytes(&checkpoint, &numbers());
        drop(tensor);
        assert_bytes(&checkpoint, &numbers());
    }
}

/// Without a `&mut`, and the elements are others then.
#[test]
fn the_result_of_an_operation_moves_the_storage_that_it_is_put_into() {
    let tensor = tensor();
    let checkpoint = checkpoint(&tensor);
    let before = tensor.data_ptr();
    let ones = Tensor::ones([MORE], (Kind::Uint8, Device::Cpu));
    // libtorch only fills tensors without elements without a warning.
    let empty = tensor.narrow(0, 0, 0);
    let _ = ones.f_add_out(&empty, &ones).unwrap();
    assert_ne!(tensor.data_ptr(), before);
    assert_bytes(&checkpoint, &[2; LEN]);
}

#[test]
fn a_tensor_that_gets_another_storage_leaves_the_old_one() {
    let other = Tensor::zeros([MORE], (Kind::Uint8, Device::Cpu));
    let changes: [&dyn Fn(&mut Tensor); 6] = [
        &|t| t.set_data(&other),
        &|t| drop(t.set_()),
        &|t| drop(t.set_source_tensor_(&other)),
        &|t| {
            drop(t.set_source_tensor_storage_offset_(&other, 9, [3], [2]));
        },
        &|t| t.set_data(&t.to_kind(Kind::Double)),
        &|t| *t = Tensor::new(),
    ];
    for change in changes {
        let mut tensor = tensor();
        let checkpoint = checkpoint(&tensor);
        change(&mut tensor);
        assert_bytes(&checkpoint, &numbers());
    }
}

#[test]
fn shapes_of_others_are_not_those_that_are_saved() {
    let changes: [&dyn Fn(&mut Tensor); 5] = [
        &|t| drop(t.resize_([3])),
        &|t| drop(t.resize_([0])),
        &|t| drop(t.unsqueeze_(0).transpose_(0, 1)),
        &|t| drop(t.as_strided_([5], [7], 11)),
        &|t| drop(t.requires_grad_(false).detach_()),
    ];
    for change in changes {
        let mut tensor = tensor();
        let checkpoint = checkpoint(&tensor);
        change(&mut tensor);
        assert_bytes(&checkpoint, &numbers());
    }
}

#[test]
fn what_is_changed_in_place_is_read_as_it_is_then() {
    let mut tensor = tensor();
    let checkpoint = checkpoint(&tensor);
    let _ = tensor.fill_(3);
    assert_bytes(&checkpoint, &[3; LEN]);
    let _ = tensor.narrow(0, 0, LEN as i64).zero_();
    assert_bytes(&checkpoint, &[0; LEN]);
    tensor.copy_(&Tensor::from_slice(&numbers()));
    assert_bytes(&checkpoint, &numbers());
    let lazy = tensor.internal_lazy_clone();
    let _ = tensor.fill_(4);
    assert_bytes(&checkpoint, &[4; LEN]);
    drop((tensor, lazy));
    assert_bytes(&checkpoint, &[4; LEN]);
}

#[test]
fn tensors_with_strides_follow_their_storage_too() {
    let columns = |t: &Tensor| t.view([200, 200]).tr();
    let expected = Vec::<u8>::try_from(&columns(&tensor()).contiguous().flatten(0, -1)).unwrap();
    let mut tensor = tensor();
    let checkpoint = checkpoint(&columns(&tensor));
    let _ = tensor.resize_([MORE]);
    assert_bytes(&checkpoint, &expected);
}

#[test]
fn tensors_are_read_after_everything_else_was_dropped_elsewhere() {
    let tensors: Vec<_> = (0..8).map(|_| tensor()).collect();
    let checkpoints: Vec<_> = tensors.iter().map(checkpoint).collect();
    thread::scope(|scope| {
        for mut tensor in tensors {
            scope.spawn(move || {
                let _ = tensor.resize_([MORE]);
            });
        }
    });
    thread::scope(|scope| {
        for checkpoint in checkpoints {
            scope.spawn(move || {
                assert_bytes(&checkpoint, &numbers());
                drop(checkpoint);
            });
        }
    });
}

#[test]
fn many_threads_read_one_tensor() {
    let mut tensor = tensor();
    let checkpoint = checkpoint(&tensor);
    let _ = tensor.resize_([MORE]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(checkpoint.read("w").unwrap() == numbers()));
        }
    });
}

/// A writer, or whoever is given bytes otherwise, may have the tensor.
#[test]
fn a_storage_that_is_moved_by_whoever_is_given_the_bytes() {
    let mut tensor = Tensor::from_slice(&numbers_of(LARGE));
    let saved = tensor_to_save("w", &tensor).unwrap();
    let (mut seen, mut times) = (Vec::new(), 0);
    let mut give = |bytes: &[u8]| {
        times += 1;
        let _ = tensor.resize_([times * MORE]);
        seen.extend_from_slice(bytes);
        Ok(())
    };
    saved.data.write_to(&mut give).unwrap();
    assert!(seen == numbers_of(LARGE));
    assert!(times > 1);
    let strided = tensor.resize_([200, 200]).tr();
    let expected = Vec::<u8>::try_from(&strided.contiguous().flatten(0, -1)).unwrap();
    let saved = tensor_to_save("w", &strided).unwrap();
    let mut seen = Vec::new();
    let mut give = |bytes: &[u8]| {
        let _ = tensor.resize_([9 * MORE]);
        seen.extend_from_slice(bytes);
        Ok(())
    };
    saved.data.write_to(&mut give).unwrap();
    assert!(seen == expected);
}

/// libtorch does not look whether such a view lies in the storage.
#[test]
fn elements_that_are_not_in_the_storage_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensor = tensor();
    let beyond = tensor.internal_reshape_alias([MORE], [1]);
    let last = tensor.narrow(0, LEN as i64 - 3, 3);
    let longer = last.internal_reshape_alias([4], [1]);
    let strided = tensor.internal_reshape_alias([100, 401], [1, 100]);
    for view in [beyond, longer, strided] {
        let saved = || tensor_to_save("w", &view).unwrap();
        let checkpoint = Checkpoint::from_tensors(vec![saved()]).unwrap();
        let errors = [
            saved().data.write_to(&mut |_| Ok(())).unwrap_err(),
            checkpoint.read("w").unwrap_err(),
            save_with([("w", &view)], &path, &cached()).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.code(), Code::TensorShort, "{error}");
        }
        assert!(!path.exists());
    }
    let within = tensor.internal_reshape_alias([100, 400], [1, 100]);
    let expected = Vec::<u8>::try_from(&within.contiguous().flatten(0, -1)).unwrap();
    assert_bytes(&checkpoint(&within), &expected);
}

/// Makes a tensor's storage larger at every write.
struct Moving {
    tensor: Tensor,
    written: Vec<u8>,
}

impl Write for Moving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = MORE + self.written.len() as i64;
        let _ = self.tensor.resize_([len]);
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_moves_the_storage_of_what_it_writes() {
    let tensor = Tensor::from_slice(&numbers_of(LARGE));
    let saved = vec![tensor_to_save("w", &tensor).unwrap()];
    let mut writer = Moving {
        tensor,
        written: Vec::new(),
    };
    write_to(saved, &mut writer, &SaveOptions::default()).unwrap();
    assert!(writer.written.ends_with(&numbers_of(LARGE)));
}

#[test]
fn progress_of_a_save_moves_the_storage_of_what_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // Told of in the midst of it.
    let large = numbers_of(20 << 20);
    let tensor = Tensor::from_slice(&large);
    let moved = Arc::new(Mutex::new((tensor.shallow_clone(), 0)));
    let on_progress = Arc::clone(&moved);
    let options = SaveOptions {
        progress: Some(Arc::new(move |_| {
            let (tensor, times) = &mut *on_progress.lock().unwrap();
            *times += 1;
            let _ = tensor.resize_([(32 << 20) * i64::from(*times)]);
        })),
        ..cached()
    };
    save_with([("w", tensor)], &path, &options).unwrap();
    assert!(moved.lock().unwrap().1 > 1);
    assert!(Checkpoint::open(&path).unwrap().read("w").unwrap() == large);
}

#[test]
fn tied_tensors_stay_tied_when_their_storage_moves() {
    let mut tensor = tensor();
    let tied = |tensor: &Tensor| -> Vec<SaveTensor<'static>> {
        let names = ["a", "b"].into_iter();
        names
            .map(|name| tensor_to_save(name, tensor).unwrap())
            .collect()
    };
    let before = tied(&tensor);
    let _ = tensor.resize_([MORE]);
    let _ = tensor.resize_([LEN as i64]);
    let mut all = before;
    all.extend(tensor_to_save("c", &tensor));
    let checkpoint = Checkpoint::from_tensors(all).unwrap();
    assert_eq!(checkpoint.names(), ["a", "b", "c"]);
    assert_eq!(checkpoint.totals().tensors, 1);
}

#[test]
fn variables_that_change_leave_what_is_to_be_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let mut vars = VarStore::new(Device::Cpu);
    let w = vars.root().ones("w", &[100, 100]);
    vars.save_checkpoint(&path, &cached()).unwrap();
    let taken = |vars: &VarStore| {
        let variables = vars.variables().into_iter();
        let tensors = variables.map(|(name, variable)| tensor_to_save(name, &variable).unwrap());
        Checkpoint::from_tensors(tensors.collect()).unwrap()
    };
    let floats = |checkpoint: &Checkpoint| {
        let bytes = checkpoint.read("w").unwrap();
        let floats = bytes.chunks(4).map(|bytes| bytes.try_into().unwrap());
        floats.map(f32::from_le_bytes).collect::<Vec<_>>()
    };
    let _ = tch::no_grad(|| w.shallow_clone().fill_(2));
    let adopted = taken(&vars);
    vars.adopt_checkpoint(&path, &VarOptions::default())
        .unwrap();
    assert!(floats(&adopted) == [2.; 10_000]);
    let cast = taken(&vars);
    vars.half();
    assert!(floats(&cast) == [1.; 10_000]);
}

/// Loaded tensors are moved as all others are, or refuse it.
#[test]
fn loaded_tensors_are_made_larger_or_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = numbers();
    let shape = vec![LEN as u64 / 2];
    let stored = |name, dtype| SaveTensor::new(name, dtype, shape.clone(), bytes.as_slice());
    let tensors = vec![
        stored("named", safeshard_tch::Dtype::I16),
        stored("unnamed", safeshard_tch::Dtype::U16),
    ];
    safeshard_core::save(tensors, &path, &cached()).unwrap();
    let mut loaded: HashMap<String, Tensor> = load(&path, Device::Cpu).unwrap();
    for (name, tensor) in &mut loaded {
        let saved = tensor_to_save("w", tensor).unwrap();
        let moved = tensor.f_resize_([MORE]);
        assert_eq!(moved.is_ok(), name == "named");
        let checkpoint = Checkpoint::from_tensors(vec![saved]).unwrap();
        assert!(checkpoint.read("w").unwrap() == bytes, "{name}");
    }
}

const NO_VALGRIND: &str = "WARNING: no valgrind: NOT CHECKED for memory that is not there any more";

/// Under valgrind, whoever touches memory that was freed is found, whatever it holds.
#[test]
fn valgrind_finds_nothing_wrong() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        // Past the capture of libtest, so that nobody takes it for a success.
        let _ = writeln!(io::stderr(), "{NO_VALGRIND}");
        return;
    }
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--error-exitcode=9", "--undef-value-errors=no"]);
    valgrind.arg(std::env::current_exe().unwrap());
    valgrind.args(["--test-threads=1", "--skip=valgrind_finds_nothing_wrong"]);
    // One thread an operation: the others have nothing to do with small tensors but to wait, slowly.
    let output = valgrind.env("OMP_NUM_THREADS", "1").output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("test result: ok"), "{stdout}");
}
