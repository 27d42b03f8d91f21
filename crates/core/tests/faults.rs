//! Reading while the kernel refuses, interrupts and answers half: injected with `strace` into a
//! process of its own.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use safeshard_core::{Checkpoint, Code};
use support::{FIRST, Folder, SECOND, trace};

/// So large that a buffer for it asks for huge pages.
const LARGE: usize = 5_000_000;

fn folder() -> Folder {
    let folder = Folder::new();
    folder
        .shard(FIRST, &[("a", b"abcdefghij"), ("large", &vec![7; LARGE])])
        .shard(SECOND, &[("c", &[4, 5, 6])])
        .index(&[("a", FIRST), ("large", FIRST), ("c", SECOND)]);
    folder
}

/// Runs the test that calls this as a [`support::child`] with this fault, which must have struck;
/// with paths, only calls that concern these files are hit.
#[track_caller]
fn inject(fault: &str, paths: &[&Path], folder: &Folder) {
    if !trace::works(fault) {
        return;
    }
    let log = folder.join("strace.log");
    let inject = format!("inject={fault}");
    let mut words = vec!["strace", "-f", "-o", log.to_str().unwrap(), "-e", &inject];
    for path in paths {
        words.extend(["-P", path.to_str().unwrap()]);
    }
    support::child(&words, folder.path());
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.contains("(INJECTED"),
        "the fault did not strike:\n{log}"
    );
}

#[test]
fn interrupted_reads_are_made_again() {
    if let Some(folder) = support::child_folder() {
        return reads_it_all(&folder);
    }
    let folder = folder();
    let files = [
        folder.join(FIRST),
        folder.join(SECOND),
        folder.join(support::INDEX),
    ];
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    inject("pread64:error=EINTR:when=1+2", &paths, &folder);
}

#[test]
fn short_reads_are_continued() {
    if let Some(folder) = support::child_folder() {
        let checkpoint = Checkpoint::open(folder).unwrap();
        return assert_eq!(checkpoint.read("a").unwrap(), b"abcdefghij");
    }
    let folder = folder();
    // The second read of the file is that of `a`; three of its ten bytes arrive.
    let fault = r"pread64:retval=3:poke_exit=@arg2=616263:when=2";
    inject(fault, &[&folder.join(FIRST)], &folder);
}

#[test]
fn huge_pages_that_are_refused_are_done_without() {
    if let Some(folder) = support::child_folder() {
        return reads_it_all(&folder);
    }
    let folder = folder();
    inject("madvise:error=EINVAL", &[], &folder);
}

#[test]
fn a_file_system_that_does_not_say_what_it_is_is_read_all_the_same() {
    if let Some(folder) = support::child_folder() {
        return reads_it_all(&folder);
    }
    let folder = folder();
    inject("fstatfs:error=EIO", &[], &folder);
}

#[test]
fn descriptors_that_run_out_once_are_found_again() {
    if let Some(folder) = support::child_folder() {
        return reads_it_all(&folder);
    }
    let folder = folder();
    let second = folder.join(SECOND);
    inject("openat:error=EMFILE:when=1", &[&second], &folder);
}

fn reads_it_all(folder: &Path) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    assert_eq!(checkpoint.read("a").unwrap(), b"abcdefghij");
    assert_eq!(checkpoint.read("c").unwrap(), [4, 5, 6]);
    assert!(checkpoint.read("large").unwrap() == vec![7; LARGE]);
}

#[test]
fn a_medium_that_fails_while_reading_is_named() {
    if let Some(folder) = support::child_folder() {
        return meets_a_failing_medium(&folder);
    }
    let folder = folder();
    let second = folder.join(SECOND);
    inject("pread64:error=EIO:when=2", &[&second], &folder);
}

fn meets_a_failing_medium(folder: &Path) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    assert_eq!(checkpoint.read("a").unwrap(), b"abcdefghij");
    let error = support::refused(checkpoint.read("c"), Code::Io);
    assert_eq!(error.path(), Some(&*folder.join(SECOND)));
    assert_eq!(error.tensor(), Some("c"));
    let start = checkpoint.file_of("c").unwrap().header().data_start();
    assert_eq!(error.offset(), Some(start));
    assert_eq!(error.io_error().unwrap().raw_os_error(), Some(5));
}

#[test]
fn a_medium_that_fails_while_opening_is_named() {
    if let Some(folder) = support::child_folder() {
        return cannot_open(&folder);
    }
    let folder = folder();
    let second = folder.join(SECOND);
    inject("pread64:error=EIO:when=1", &[&second], &folder);
    inject("openat:error=EACCES:when=1", &[&second], &folder);
    inject("openat:error=EMFILE:when=1+", &[&second], &folder);
}

fn cannot_open(folder: &Path) {
    let error = support::refused(Checkpoint::open(folder), Code::Io);
    assert_eq!(error.path(), Some(&*folder.join(SECOND)));
    assert!(error.io_error().is_some());
    assert!(
        error
            .to_string()
            .contains("the index places 1 tensor in it: c"),
        "{error}"
    );
}
