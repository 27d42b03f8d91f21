//! The system calls of a child process, listed and struck one at a time with `strace`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

use super::strace::{STAGE_END, Stages, log_in};
use super::{child_command, passed};

pub use super::strace::works;

/// The calls that change files or let processes wait for each other, by all names that a Linux may
/// have for them; `?` is for those that it has not.
const CALLS: &str = "?open,openat,?openat2,close,write,pwrite64,writev,pwritev,pwritev2,fallocate,\
    ftruncate,fsync,fdatasync,?sync_file_range,fcntl,flock,?chmod,fchmod,fchmodat,?rename,?renameat,\
    renameat2,?link,linkat,?unlink,unlinkat,?rmdir,?mkdir,mkdirat,?symlink,symlinkat,\
    ?copy_file_range,?sendfile";

/// In seconds.
const LONGER_THAN_ANY_CHILD_TAKES: &str = "120";

pub const LOCK: &str = ".safeshard.lock";

/// Paths that are not there: opening them marks where in a trace the tested code is.
const BEGIN: &str = "/the-tested-code-begins";
const END: &str = "/the-tested-code-has-ended";

/// In the child: runs the code whose calls are listed.
pub fn traced<T>(code: impl FnOnce() -> T) -> T {
    // strace counts each thread's calls apart, and strikes whichever thread is the first to come to
    // a number: this thread's numbers are made to begin where those of starting a process end.
    const MORE_THAN_STARTING_TAKES: usize = 60;
    for _ in 0..MORE_THAN_STARTING_TAKES {
        let mut null = File::options().write(true).open("/dev/null").unwrap();
        null.write_all(b"-").unwrap();
    }
    File::open(BEGIN).unwrap_err();
    let result = code();
    File::open(END).unwrap_err();
    result
}

/// A system call of the traced code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// Which of its thread's calls of this name, from one.
    nth: usize,
    /// Its arguments as strace shows them, without what differs from run to run.
    pub arguments: String,
}

impl Call {
    /// The paths and names among the arguments.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.arguments.split('"').skip(1).step_by(2)
    }

    /// Whether this makes a file that is not to have its name yet.
    pub fn stages(&self) -> bool {
        self.arguments.contains("O_EXCL") && self.arguments.contains(STAGE_END)
    }

    /// Whether this is about the lock of a folder, which the next save takes over where it is left.
    pub fn is_of_lock(&self) -> bool {
        self.arguments.contains(LOCK)
    }

    /// Whether this gives the file its final name.
    pub fn publishes(&self, name: &str) -> bool {
        let last = self.paths().last();
        self.name.starts_with("rename") && last.is_some_and(|path| Path::new(path).ends_with(name))
    }

    /// The file or folder that its first descriptor stands for.
    pub fn descriptor(&self) -> Option<&str> {
        let (_, path) = self.arguments.split_once('<')?;
        Some(path.split_once('>')?.0)
    }
}

/// All calls of the traced code of the test that calls this, run as a [`super::child`] without a
/// fault: the same in every run.
#[track_caller]
pub fn calls(root: &Path) -> Vec<Call> {
    let output = run(root, &[]);
    assert!(passed(&output), "{}", shown(&output));
    parse(root, Ended::Yes)
}

/// Kills the child on its way into this call.
#[track_caller]
pub fn kill(root: &Path, call: &Call) {
    let output = run(root, &[injection(call, "signal=KILL", Times::Once)]);
    assert_eq!(output.status.signal(), Some(9), "{}", shown(&output));
    let last = parse(root, Ended::No).pop();
    assert_eq!(last.as_ref(), Some(call), "killed elsewhere");
}

/// How often a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    Once,
    /// And so do all later calls of its name.
    FromThenOn,
}

/// Runs the child with this fault, such as `error=EIO`, at this call, which must strike.
#[track_caller]
pub fn strike(root: &Path, call: &Call, fault: &str, times: Times) {
    let output = run(root, &[injection(call, fault, times)]);
    assert!(passed(&output), "{call:?} {fault}: {}", shown(&output));
    let calls = parse(root, Ended::Yes);
    assert!(calls.contains(call), "struck elsewhere");
    assert!(log(root).contains("(INJECTED)"), "{call:?} was not struck");
}

fn injection(call: &Call, fault: &str, times: Times) -> String {
    let on = match times {
        Times::Once => "",
        Times::FromThenOn => "+",
    };
    format!("inject={}:{fault}:when={}{on}", call.name, call.nth)
}

fn run(root: &Path, injections: &[String]) -> Output {
    let log = log_in(root);
    let trace = format!("trace={CALLS}");
    // A thread of the child's own that watched the time was now and then killed before it had begun,
    // and strace then gave it the call that the tested one was killed on.
    let mut words = vec!["timeout", LONGER_THAN_ANY_CHILD_TAKES];
    words.extend(["strace", "-f", "-y", "-s", "0"]);
    words.extend(["-o", log.to_str().unwrap(), "-e", &trace]);
    for injection in injections {
        words.extend(["-e", injection]);
    }
    child_command(&words, root)
        // Cargo's list of folders makes the loader try hundreds of files before the code begins.
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap()
}

fn log(root: &Path) -> String {
    fs::read_to_string(log_in(root)).unwrap()
}

enum Ended {
    Yes,
    No,
}

/// The calls between the marks, which must all be one thread's.
#[track_caller]
fn parse(root: &Path, ended: Ended) -> Vec<Call> {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut tested = None;
    let mut has_ended = false;
    let mut calls = Vec::new();
    let log = log(root);
    let stages = Stages::of(root);
    for line in log.lines() {
        let (thread, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim_start();
        // Ends of threads, signals, and the second half of a call that another thread interrupted.
        if rest.starts_with("+++") || rest.starts_with("---") || rest.starts_with("<...") {
            continue;
        }
        let (name, rest) = rest.split_once('(').unwrap();
        let nth = counts.entry((thread, name)).or_default();
        *nth += 1;
        if rest.contains(BEGIN) {
            tested = Some(thread);
        } else if rest.contains(END) {
            has_ended = true;
        } else if let Some(tested) = tested
            && !has_ended
            // Debug builds of the standard library look whether what they close is open.
            && !rest.contains("F_GETFD")
        {
            if thread != tested {
                // A thread that only starts or waits looks at the system, not at the folder.
                assert!(
                    !rest.contains(root.to_str().unwrap()),
                    "thread {tested} is tested, but this is of another: {line}\n{log}"
                );
                continue;
            }
            calls.push(Call {
                name: name.to_owned(),
                nth: *nth,
                arguments: arguments(rest, root, &stages),
            });
        }
    }
    let elsewhere = counts
        .iter()
        .filter(|((thread, _), _)| Some(*thread) != tested);
    for ((_, name), count) in elsewhere {
        let clash = calls
            .iter()
            .find(|call| call.name == *name && call.nth <= *count);
        assert!(clash.is_none(), "{clash:?} has the number of another call");
    }
    assert_eq!(matches!(ended, Ended::Yes), has_ended, "{log}");
    calls
}

fn arguments(rest: &str, root: &Path, stages: &Stages) -> String {
    let result = rest.rfind(" = ").unwrap_or(rest.len());
    let arguments = rest[..result].trim_end();
    let arguments = arguments.strip_suffix(')').unwrap_or(arguments);
    // Of a call on whose way in the process was killed.
    let arguments = arguments
        .strip_suffix(" <unfinished ...>")
        .unwrap_or(arguments);
    // A journal has numbers of inodes, which have more digits the more files there are.
    let arguments = match arguments.rsplit_once("\"\"..., ") {
        Some((written, _)) if written.contains(".commit.") => written,
        _ => arguments,
    };
    stages.places_in(&arguments.replace(root.to_str().unwrap(), ""))
}

fn shown(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
