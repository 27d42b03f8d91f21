//! A command, killed on its way into each call that changes files.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

use crate::journals::{is_journal, name_copies, timeless};
use crate::operations::{Operation, Scene, Sources};
use crate::strace::{Stages, log_in};

/// All that change files or their names.
const CHANGES: &str = "openat,write,pwrite64,writev,pwritev,?copy_file_range,?sendfile,fallocate,\
    ftruncate,fchmod,?chmod,fchmodat,fchown,fsetxattr,utimensat,?rename,?renameat,renameat2,?link,\
    linkat,?symlink,symlinkat,?unlink,unlinkat,?mkdir,mkdirat,?rmdir";

/// What changes nothing that another process sees: the next call finds the folder as it was here.
const SILENT: &str = "fsync,fdatasync,flock";

/// Whether all is to be explored, and not just what may happen within minutes.
pub(crate) fn explores_all() -> bool {
    env::var_os("SAFESHARD_EXPLORE").is_some_and(|value| value == "all")
}

/// A call that changes the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    name: String,
    /// Which of its thread's of this name, from one.
    nth: usize,
    arguments: String,
}

/// The calls of a command that change its folder, in their order; the folder afterwards.
pub(crate) fn let_through(operation: &Operation, sources: &Sources) -> (Vec<Call>, Scene) {
    let scene = Scene::new(operation.old);
    let output = run(operation, &scene, sources, None);
    assert!(output.status.success(), "{operation:?}: {output:?}");
    (calls(&scene), scene)
}

/// The folder that the command leaves when it is killed on its way into the call.
pub(crate) fn kill(operation: &Operation, call: &Call, sources: &Sources) -> Scene {
    let scene = Scene::new(operation.old);
    let output = run(operation, &scene, sources, Some(call));
    assert_eq!(output.status.signal(), Some(9), "{operation:?}: {output:?}");
    // Another thread that has not begun yet may be shown as if it had made the call.
    let is_it =
        |last: Call| (last.name, last.arguments) == (call.name.clone(), call.arguments.clone());
    let log = || fs::read_to_string(log_in(scene.root())).unwrap();
    assert!(
        calls(&scene).pop().is_some_and(is_it),
        "killed elsewhere: {operation:?}\n{}",
        log()
    );
    scene
}

fn run(operation: &Operation, scene: &Scene, sources: &Sources, call: Option<&Call>) -> Output {
    let log = log_in(scene.root());
    let trace = match explores_all() {
        true => format!("trace={CHANGES},{SILENT}"),
        false => format!("trace={CHANGES}"),
    };
    let words = ["strace", "-f", "-y", "-s", "0", "-qq", "-e", &trace, "-o"];
    let mut words: Vec<_> = words.map(str::to_owned).to_vec();
    words.push(log.to_str().unwrap().to_owned());
    if let Some(Call { name, nth, .. }) = call {
        let kill = format!("inject={name}:signal=KILL:when={nth}");
        words.extend(["-e".to_owned(), kill]);
    }
    let mut command = scene.command(&words, &operation.args, sources);
    // Cargo's list of folders makes the loader try hundreds of files.
    command.env_remove("LD_LIBRARY_PATH").output().unwrap()
}

fn calls(scene: &Scene) -> Vec<Call> {
    let log = fs::read_to_string(log_in(scene.root())).unwrap();
    let stages = Stages::of(scene.root());
    let model = scene.model();
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        // The end of a call that another thread interrupted, and ends of threads.
        let Some((name, rest)) = rest.split_once('(').filter(|_| !rest.starts_with('<')) else {
            continue;
        };
        let nth = counts.entry((thread, name)).or_default();
        *nth += 1;
        let reads = name == "openat" && !rest.contains("O_CREAT");
        if reads || !rest.contains(model.to_str().unwrap()) {
            continue;
        }
        // Of the call that it was killed on, there is no end.
        let arguments = rest.split(" <unfinished").next().unwrap_or(rest);
        let arguments = arguments.split(" = ").next().unwrap_or(arguments);
        // The times in a journal make it longer or shorter.
        let arguments = arguments.split("\"\"").next().unwrap_or(arguments);
        let arguments = arguments.trim_end().trim_end_matches(')');
        let arguments = arguments.replace(scene.root().to_str().unwrap(), "");
        calls.push(Call {
            name: name.to_owned(),
            nth: *nth,
            arguments: stages.places_in(&arguments),
        });
    }
    calls
}

impl Scene {
    /// The names and bytes of the folder, without what differs from run to run.
    pub(crate) fn state(&self) -> u64 {
        let stages = Stages::of(self.root());
        let mut hasher = DefaultHasher::new();
        for (name, bytes) in files(&self.model()) {
            let bytes = match str::from_utf8(&bytes) {
                Ok(text) if is_journal(&name) => timeless(&stages.places_in(text)).into(),
                _ => bytes,
            };
            (stages.places_in(&name), bytes).hash(&mut hasher);
        }
        self.model().exists().hash(&mut hasher);
        hasher.finish()
    }

    /// The same folder once more: a journal in it knows the copies as it knew the files.
    pub(crate) fn again(&self) -> Self {
        let again = Self::bare();
        if self.model().exists() {
            copy(&self.model(), &again.model(), Times::Kept);
            name_copies(&self.model(), &again.model(), str::to_owned);
        }
        again
    }

    /// As `cp -r` makes it, which journals do not know.
    pub(crate) fn copied(&self) -> Self {
        let copied = Self::bare();
        if self.model().exists() {
            copy(&self.model(), &copied.model(), Times::New);
        }
        copied
    }
}

/// The files of a folder.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return BTreeMap::new();
    };
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    entries.map(|entry| file(entry.unwrap())).collect()
}

#[derive(PartialEq, Eq)]
enum Times {
    Kept,
    New,
}

fn copy(from: &Path, to: &Path, times: Times) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let copy = to.join(entry.file_name());
        fs::copy(entry.path(), &copy).unwrap();
        if times == Times::Kept {
            let file = fs::File::options().append(true).open(&copy).unwrap();
            let modified = entry.metadata().unwrap().modified().unwrap();
            file.set_modified(modified).unwrap();
        }
    }
}
