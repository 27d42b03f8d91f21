//! Tensors where they lie: nothing is copied, and what cannot be used in place is refused by reason.

use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;

use ndarray::{CowArray, Ix1, Ix2, arr1};
use rstest::rstest;
use safeshard_core::ReadAt;
use safeshard_ndarray::{
    Checkpoint, CheckpointExt, Code, Dtype, DynArray, Element, Io, MappedArray, OpenOptions, Result,
};

use crate::support::{Stored, bytes, in_memory, misaligned, write};

fn mapped(path: &Path) -> Checkpoint {
    let options = OpenOptions {
        // SAFETY: the tests replace the file at most.
        io: unsafe { Io::mmap() },
        ..OpenOptions::default()
    };
    Checkpoint::open_with(path, &options).unwrap()
}

fn code<T>(result: Result<T>) -> Code {
    result.err().map(|error| error.code()).unwrap()
}

fn is_inside<A>(elements: *const A, checkpoint: &Checkpoint) -> bool {
    let all = checkpoint.files()[0].source().as_bytes().unwrap();
    all.as_ptr_range().contains(&elements.cast())
}

#[test]
fn views_are_the_checkpoints_own_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let stored = [
        Stored::new("w", Dtype::F64, &[3, 4]),
        Stored::new("b", Dtype::Bool, &[5]),
    ];
    write(&path, &stored);
    let from_bytes = Checkpoint::from_bytes(std::fs::read(&path).unwrap()).unwrap();
    for checkpoint in [mapped(&path), from_bytes] {
        let view = checkpoint.view::<f64, Ix2>("w").unwrap();
        assert!(is_inside(view.as_ptr(), &checkpoint));
        assert!(is_inside(
            checkpoint.view::<bool, Ix1>("b").unwrap().as_ptr(),
            &checkpoint
        ));
        let cow = checkpoint.cow::<f64, Ix2>("w").unwrap();
        assert!(cow.is_view() && is_inside(cow.as_ptr(), &checkpoint));
        let array = checkpoint.mapped::<f64, Ix2>("w").unwrap();
        assert!(is_inside(array.view().as_ptr(), &checkpoint));
        assert_eq!(bytes(&view), stored[0].bytes);
    }
}

#[test]
fn a_mapped_array_outlives_checkpoint_and_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let stored = Stored::new("w", Dtype::I32, &[3, 4]);
    write(&path, std::slice::from_ref(&stored));
    let array: MappedArray<i32, Ix2> = mapped(&path).mapped("w").unwrap();
    let again = array.clone();
    std::fs::remove_file(&path).unwrap();
    drop(folder);
    let thread = std::thread::spawn(move || bytes(&array.view()));
    assert_eq!(thread.join().unwrap(), stored.bytes);
    assert_eq!(
        (again.shape(), bytes(&again.view())),
        (&[3, 4][..], stored.bytes)
    );
}

#[test]
fn what_cannot_be_used_in_place_says_why() {
    let stored = [
        Stored::new("w", Dtype::F32, &[2, 3]),
        Stored::new("bytes", Dtype::U8, &[3]),
    ];
    let checkpoint = in_memory(&stored);
    assert_eq!(code(checkpoint.view::<i32, Ix2>("w")), Code::DtypeMismatch);
    assert_eq!(code(checkpoint.view::<f32, Ix1>("w")), Code::RankMismatch);
    assert_eq!(code(checkpoint.view::<f32, Ix1>("v")), Code::TensorMissing);
    assert_eq!(code(checkpoint.cow::<i32, Ix2>("w")), Code::DtypeMismatch);
    assert_eq!(code(checkpoint.mapped::<f32, Ix1>("w")), Code::RankMismatch);

    let checkpoint = Checkpoint::from_bytes(misaligned(&stored)).unwrap();
    assert_eq!(code(checkpoint.view::<f32, Ix2>("w")), Code::Misaligned);
    assert_eq!(code(checkpoint.mapped::<f32, Ix2>("w")), Code::Misaligned);
    let cow = checkpoint.cow::<f32, Ix2>("w").unwrap();
    assert!(cow.is_owned());
    assert_eq!(bytes(&cow.view()), stored[0].bytes);
    // Bytes may lie anywhere.
    assert!(checkpoint.view::<u8, Ix1>("bytes").is_ok());
}

#[test]
fn nothing_may_lie_anywhere() {
    let stored = [Stored::new("none", Dtype::F64, &[0, 3])];
    let checkpoint = Checkpoint::from_bytes(misaligned(&stored)).unwrap();
    assert_eq!(checkpoint.view::<f64, Ix2>("none").unwrap().shape(), [0, 3]);
}

#[test]
fn a_checkpoint_that_reads_its_files_has_no_views() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let stored = Stored::new("w", Dtype::F32, &[2, 3]);
    write(&path, std::slice::from_ref(&stored));
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(code(checkpoint.view::<f32, Ix2>("w")), Code::NotInMemory);
    assert_eq!(code(checkpoint.mapped::<f32, Ix2>("w")), Code::NotInMemory);
    let cow: CowArray<'_, f32, Ix2> = checkpoint.cow("w").unwrap();
    assert!(cow.is_owned());
    assert_eq!(bytes(&cow.view()), stored.bytes);
}

#[test]
fn an_alias_is_a_view_of_what_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let w = arr1(&[1f32, 2.]);
    safeshard_ndarray::save([("a", &w), ("b", &w)], &path).unwrap();
    let checkpoint = mapped(&path);
    let [a, b] = ["a", "b"].map(|name| checkpoint.view::<f32, Ix1>(name).unwrap());
    assert_eq!((a.as_ptr(), b), (b.as_ptr(), w.view()));
}

/// A source that says more than it has.
#[derive(Debug)]
struct Liar(Vec<u8>);

impl ReadAt for Liar {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let offset = offset as usize;
        Ok(buf.write_copy_of_slice(&self.0[offset..offset + buf.len()]))
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        Some(&self.0[..9])
    }
}

#[rstest]
#[case(Dtype::F32)]
fn a_source_with_fewer_bytes_than_it_says_is_an_error(#[case] dtype: Dtype) {
    let file = crate::support::file(&[Stored::new("w", dtype, &[2])]);
    let source: Arc<dyn ReadAt> = Arc::new(Liar(file));
    let sources = vec![("model.safetensors".to_owned(), source)];
    let checkpoint = Checkpoint::from_sources(sources, &OpenOptions::default()).unwrap();
    assert_eq!(code(checkpoint.view::<f32, Ix1>("w")), Code::FileTruncated);
}

#[test]
fn everything_can_be_sent_and_shared() {
    fn check<T: Send + Sync + 'static>() {}
    fn check_element<A: Element>() {
        check::<MappedArray<A, Ix2>>();
    }
    check_element::<f32>();
    check_element::<bool>();
    check::<DynArray>();
}
