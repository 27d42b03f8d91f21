//! `reshard` and `convert` killed at every system call, with every call failing, with files that change
//! meanwhile, and interrupted: what was there or what is to be there, whole.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rstest::rstest;
use safeshard_core::Checkpoint;
use tempfile::{TempDir, tempdir};

use crate::strace;
use crate::support::*;

/// The calls that change a folder or what is in it.
const CALLS: &str = "openat,write,pwrite64,fallocate,ftruncate,copy_file_range,fsync,flock,fchmod,\
    ?rename,?renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat,linkat";

/// Longer than anything here may take.
const SOON: Duration = Duration::from_secs(60);

/// Starts the binary behind `strace`, which does this to it.
fn traced(folder: &Path, args: &str, inject: Option<&str>) -> Child {
    let trace = format!("trace={CALLS}");
    let mut words = vec!["-f", "-qq", "-o", "trace.log", "-e", &trace];
    let inject = inject.map(|inject| format!("inject={inject}"));
    words.extend(inject.iter().flat_map(|inject| ["-e", inject]));
    Command::new("strace")
        .args(words)
        .arg(SAFESHARD)
        .args(args.split(' '))
        .args(["--threads", "1"])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// How often a thread makes each of the calls, at most.
fn calls(folder: &Path) -> BTreeMap<String, usize> {
    let log = fs::read_to_string(folder.join("trace.log")).unwrap();
    let mut counts: HashMap<(String, String), usize> = HashMap::new();
    for line in log.lines().filter(|line| !line.contains("resumed>")) {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        if let Some((name, _)) = rest.trim_start().split_once('(') {
            *counts
                .entry((thread.to_owned(), name.to_owned()))
                .or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, name), count) in counts {
        let known = most.entry(name).or_default();
        *known = count.max(*known);
    }
    most
}

/// What a folder holds, by name of the tensor: its dtype and bytes.
type Tensors = BTreeMap<String, (String, Vec<u8>)>;

#[track_caller]
fn tensors(path: &Path) -> Tensors {
    let checkpoint = Checkpoint::open(path).unwrap();
    let read = |name: &str| {
        let dtype = checkpoint.info(name).unwrap().dtype.to_string();
        (name.to_owned(), (dtype, checkpoint.read(name).unwrap()))
    };
    checkpoint.names().into_iter().map(read).collect()
}

/// A folder with a copy of a small checkpoint.
fn scene() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempdir())
        .unwrap();
    let bert = bert_in(folder.path());
    (folder, bert)
}

/// What is done in place, with what was there and what is to be there.
struct InPlace {
    args: &'static str,
    old: Tensors,
    new: Tensors,
    names: Vec<String>,
    calls: BTreeMap<String, usize>,
}

impl InPlace {
    fn new(args: &'static str) -> Self {
        let (folder, bert) = scene();
        let old = tensors(&bert);
        let output = traced(folder.path(), args, None)
            .wait_with_output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Self {
            args,
            old,
            new: tensors(&bert),
            names: names(&bert),
            calls: calls(folder.path()),
        }
    }

    /// Once for each call: whatever is done to it, the old or the new is there, and the next run puts
    /// everything right.
    fn everywhere(&self, what: &str, check: impl Fn(Run, bool)) -> usize {
        let mut struck = 0;
        for (call, &count) in &self.calls {
            for number in 1..=count {
                let (folder, bert) = scene();
                let inject = format!("{call}:{what}:when={number}");
                let child = traced(folder.path(), self.args, Some(&inject));
                let run = Run::from(child.wait_with_output().unwrap());
                let found = tensors(&bert);
                // The next run takes over a lock that could not be removed.
                let mut left = names(&bert);
                left.retain(|name| name != ".safeshard.lock");
                let is_new = found == self.new && self.old != self.new
                    || self.old == self.new && left == self.names;
                assert!(is_new || found == self.old, "{inject}");
                struck += 1;
                check(run, is_new);
                self.goes_on(&folder, &bert);
            }
        }
        struck
    }

    #[track_caller]
    fn goes_on(&self, folder: &TempDir, bert: &Path) {
        let line = format!("safeshard {}", self.args);
        shell(folder.path(), &line).ended(0);
        assert!(tensors(bert) == self.new);
        // Shards may be of another generation.
        assert_eq!(names(bert).len(), self.names.len(), "{:?}", names(bert));
        assert!(
            !names(bert).iter().any(|name| name.starts_with('.')),
            "{:?}",
            names(bert)
        );
    }
}

#[rstest]
#[case::merged("reshard bert bert --single")]
#[case::split("reshard bert bert --max-shard-size 30KB")]
#[case::converted("convert bert bert --dtype BF16")]
fn killed_anywhere_it_leaves_the_old_or_the_new(#[case] args: &'static str) {
    if !strace::works("commands in which calls fail") {
        return;
    }
    let work = InPlace::new(args);
    let struck = work.everywhere("signal=KILL", |_, _| {});
    assert!(struck > 50, "{struck} calls");
}

#[rstest]
fn a_call_that_fails_anywhere_leaves_the_old_or_the_new(
    #[values("reshard bert bert --single", "convert bert bert --dtype BF16")] args: &'static str,
    #[values("ENOSPC", "EIO")] errno: &str,
) {
    if !strace::works("commands in which calls fail") {
        return;
    }
    let mut work = InPlace::new(args);
    // The loader's and the standard library's own are not ours to survive.
    work.calls.remove("openat");
    work.calls.remove("write");
    work.everywhere(&format!("error={errno}"), |run, is_new| match run.code {
        // Where the old files cannot be removed, they are named.
        Some(0) => assert!(is_new || run.stderr.contains("could not be removed")),
        Some(2) => assert!(run.stderr.starts_with("error["), "{}", run.stderr),
        _ => panic!("{run:?}"),
    });
}

#[test]
fn a_full_medium_is_an_error_that_names_the_file() {
    if !strace::works("commands in which calls fail") {
        return;
    }
    for call in ["fallocate", "copy_file_range"] {
        let (folder, bert) = scene();
        let before = names(&bert);
        let inject = format!("{call}:error=ENOSPC:when=1");
        let child = traced(folder.path(), "reshard bert to --single", Some(&inject));
        let run = Run::from(child.wait_with_output().unwrap()).ended(2);
        assert!(run.stderr.starts_with("error[io]: "), "{}", run.stderr);
        assert!(
            run.stderr.contains("to/model.safetensors"),
            "{}",
            run.stderr
        );
        assert!(
            run.stderr.contains("No space left on device"),
            "{}",
            run.stderr
        );
        assert!(names(&folder.path().join("to")).is_empty());
        assert_eq!(names(&bert), before);
    }
}

/// Two shards of 20 MiB, copied with half a second before each piece.
fn slow(to: &str) -> Option<(TempDir, Child)> {
    if !strace::works("commands in which calls fail") {
        return None;
    }
    let folder = tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    let (one, two) = crate::writing::shards();
    let values = vec![1.0; 5 << 20];
    write(&from.join(one), &[floats("a", &values)]);
    write(&from.join(two), &[floats("b", &values)]);
    let index = format!(r#"{{"metadata": {{}}, "weight_map": {{"a": "{one}", "b": "{two}"}}}}"#);
    fs::write(from.join("model.safetensors.index.json"), index).unwrap();
    let args = format!("reshard from {to} --single");
    let child = traced(
        folder.path(),
        &args,
        Some("copy_file_range:delay_enter=500000"),
    );
    let begun = Instant::now();
    let copies = || fs::read_to_string(folder.path().join("trace.log")).unwrap_or_default();
    while !copies().contains("copy_file_range(") {
        assert!(begun.elapsed() < SOON, "it does not copy");
        thread::sleep(Duration::from_millis(1));
    }
    Some((folder, child))
}

#[rstest]
#[case::cut_off(15 << 20, "error[file-truncated]")]
#[case::grown(25 << 20, "error[file-changed]")]
fn a_file_that_changes_meanwhile_is_an_error(
    #[case] len: u64,
    #[case] code: &str,
    #[values("to", "from")] to: &str,
) {
    let Some((folder, child)) = slow(to) else {
        return;
    };
    let from = folder.path().join("from");
    let (_, second) = crate::writing::shards();
    let file = File::options().write(true).open(from.join(second)).unwrap();
    file.set_len(len).unwrap();
    let run = Run::from(child.wait_with_output().unwrap()).ended(2);
    assert!(run.stderr.starts_with(code), "{}", run.stderr);
    assert!(run.stderr.contains(second), "{}", run.stderr);
    let left = names(&folder.path().join(to)).len();
    assert_eq!(left, if to == "from" { 3 } else { 0 });
}

#[rstest]
fn a_signal_leaves_no_stage(
    #[values(("INT", 130), ("TERM", 143))] signal: (&str, i32),
    #[values("to", "from")] to: &str,
) {
    let Some((folder, child)) = slow(to) else {
        return;
    };
    let (signal, code) = signal;
    let trace = fs::read_to_string(folder.path().join("trace.log")).unwrap();
    let (id, _) = trace.split_once(' ').unwrap();
    shell(folder.path(), &format!("kill -{signal} {id}")).ended(0);
    let run = Run::from(child.wait_with_output().unwrap()).ended(code);
    assert_eq!((&*run.stdout, &*run.stderr), ("", ""));
    let left = names(&folder.path().join(to)).len();
    assert_eq!(left, if to == "from" { 3 } else { 0 });
}
