//! Saving around the page cache where the kernel refuses it, interrupts it or fails: injected with
//! `strace` into a process of its own.

mod support;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rstest::rstest;
use safeshard_core::{Checkpoint, Code, Dtype, SaveOptions, SaveTensor, save};
use support::{Folder, refused, trace};

/// More than all buffers hold, and no whole number of blocks.
const LEN: usize = (21 << 20) + 13;

const NAME: &str = "x.safetensors";

/// Runs the test that calls this as a [`support::child`] with this fault, which must have struck.
#[track_caller]
fn inject(fault: &str, folder: &Folder) {
    if !trace::works(fault) {
        return;
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let (log, inject) = (log.path(), format!("inject={fault}"));
    let words = ["strace", "-f", "-o", log.to_str().unwrap(), "-e", &inject];
    support::child(&words, folder.path());
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.contains("(INJECTED"),
        "the fault did not strike:\n{log}"
    );
}

fn bytes() -> Vec<u8> {
    (0..LEN).map(|at| (at >> 3) as u8 ^ at as u8).collect()
}

fn save_large(folder: &Path) -> safeshard_core::Result<safeshard_core::SaveReport> {
    let bytes = bytes();
    let tensor = SaveTensor::new("w", Dtype::U8, [LEN as u64], bytes.as_slice());
    save(vec![tensor], folder.join(NAME), &SaveOptions::default())
}

/// A thread's first system calls of a kind are those that ask for the way around the page cache, and
/// those of the threads that write.
#[rstest]
#[case::no_second_descriptor("fcntl:error=EMFILE:when=1")]
#[case::flags_unknown("fcntl:error=EINVAL:when=2")]
#[case::direct_refused("fcntl:error=EINVAL:when=3")]
#[case::first_write_refused("pwrite64:error=EINVAL:when=1")]
#[case::later_write_refused("pwrite64:error=EOPNOTSUPP:when=2")]
#[case::interrupted("pwrite64:error=EINTR:when=1+2")]
#[case::space_not_reserved("fallocate:error=EOPNOTSUPP")]
#[case::reserving_interrupted("fallocate:error=EINTR")]
#[case::no_locks("flock:error=ENOLCK")]
#[case::folders_cannot_be_synced("fsync:error=EINVAL:when=2")]
fn what_is_refused_is_done_without(#[case] fault: &str) {
    if let Some(folder) = support::child_folder() {
        save_large(&folder).unwrap();
        return;
    }
    let folder = Folder::new();
    inject(fault, &folder);
    let checkpoint = Checkpoint::open(folder.join(NAME)).unwrap();
    assert!(checkpoint.read("w").unwrap() == bytes());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[rstest]
#[case::full_at_once("fallocate:error=ENOSPC", 28)]
#[case::full_later("pwrite64:error=ENOSPC:when=2", 28)]
#[case::over_quota("pwrite64:error=EDQUOT:when=1", 122)]
#[case::broken("pwrite64:error=EIO:when=2", 5)]
#[case::broken_at_the_end("fsync:error=EIO:when=1", 5)]
fn what_fails_leaves_what_was_there(#[case] fault: &str, #[case] errno: i32) {
    if let Some(folder) = support::child_folder() {
        let error = refused(save_large(&folder), Code::Io);
        assert_eq!(error.path(), Some(&*folder.join(NAME)));
        assert_eq!(error.io_error().unwrap().raw_os_error(), Some(errno));
        return;
    }
    let folder = Folder::new();
    fs::write(folder.join(NAME), "old").unwrap();
    inject(fault, &folder);
    assert_eq!(fs::read(folder.join(NAME)).unwrap(), b"old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_medium_that_takes_nothing_is_not_asked_for_ever() {
    if let Some(folder) = support::child_folder() {
        let error = refused(save_large(&folder), Code::Io);
        assert_eq!(error.io_error().unwrap().kind(), ErrorKind::WriteZero);
        return;
    }
    let folder = Folder::new();
    inject("pwrite64:retval=0", &folder);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
