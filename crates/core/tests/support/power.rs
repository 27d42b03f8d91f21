//! What a power failure may leave of a folder, worked out from the system calls of a save.
//!
//! A file's bytes are safe once the file was synced, a name in the folder once the folder was, and a new
//! folder once the one that it is in was. Of what was not, any part may have come to the medium and any
//! part may not: POSIX promises no order. A file that was not synced comes back whole, empty, or as long as
//! it was and full of zeros, as file systems leave it that bring lengths to the medium before bytes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use super::generations::{Files, Scene, model_in};
use super::journals::Age;
use super::trace::Call;

/// A folder after a power failure.
pub struct Crash {
    /// How many of the calls had been made; all of them when the save had returned.
    pub calls: usize,
    /// None where the folder itself is lost.
    files: Option<Contents>,
}

/// The files of a folder, and which save they are of.
type Contents = BTreeMap<String, (Vec<u8>, Age)>;

impl Crash {
    pub fn names(&self) -> Vec<&str> {
        let files = self.files.iter();
        files
            .flat_map(|files| files.keys().map(String::as_str))
            .collect()
    }

    pub fn scene(&self) -> Scene {
        let scene = Scene::empty_in_memory();
        if let Some(files) = &self.files {
            scene.put(files);
        }
        scene
    }
}

/// Every folder that a power failure could leave; `states` are the folder before each call, and
/// after the last. `new` are those files of the first that are no older than the journal in it.
pub fn crashes(calls: &[Call], states: &[Files], new: &BTreeSet<String>) -> Vec<Crash> {
    assert_eq!(states.len(), calls.len() + 1);
    let mut medium = Medium::new(&states[0], new);
    let mut crashes = Vec::new();
    let mut seen = HashSet::new();
    for (made, state) in states.iter().enumerate() {
        medium.see(state);
        for files in medium.outcomes() {
            if seen.insert((made == calls.len(), files.clone())) {
                crashes.push(Crash { calls: made, files });
            }
        }
        if let Some(call) = calls.get(made) {
            medium.apply(call);
        }
    }
    crashes
}

type Inode = usize;

struct File {
    bytes: Vec<u8>,
    synced: bool,
    age: Age,
}

/// A change of the folder.
enum Change {
    Add(String, Inode),
    Remove(String),
    Rename(String, String, Inode),
}

struct Medium {
    inodes: Vec<File>,
    /// The names as processes see them.
    live: BTreeMap<String, Inode>,
    /// Those that are safe.
    safe: BTreeMap<String, Inode>,
    /// What leads from the safe ones to those that processes see.
    pending: Vec<Change>,
    /// The folders in which one was made on the way to this one, and that were not synced since.
    made_in: BTreeSet<String>,
}

impl Medium {
    fn new(files: &Files, new: &BTreeSet<String>) -> Self {
        let inodes = files.iter().map(|(name, bytes)| File {
            bytes: bytes.clone(),
            synced: true,
            age: match new.contains(name) {
                true => Age::New,
                false => Age::Old,
            },
        });
        let names: BTreeMap<_, _> = files.keys().cloned().zip(0..).collect();
        Self {
            inodes: inodes.collect(),
            live: names.clone(),
            safe: names,
            pending: Vec::new(),
            made_in: BTreeSet::new(),
        }
    }

    /// Learns what the calls so far have written; they must have been understood.
    fn see(&mut self, files: &Files) {
        let names: Vec<_> = files.keys().collect();
        assert_eq!(self.live.keys().collect::<Vec<_>>(), names);
        for (name, inode) in &self.live {
            let file = &mut self.inodes[*inode];
            if file.bytes != files[name] {
                file.synced = false;
                file.bytes.clone_from(&files[name]);
            }
        }
    }

    fn apply(&mut self, call: &Call) {
        let names: Vec<_> = call.paths().filter_map(in_folder).collect();
        match (call.name.as_str(), names.as_slice()) {
            ("open" | "openat", [name]) if call.arguments.contains("O_CREAT") => {
                self.inodes.push(File {
                    bytes: Vec::new(),
                    synced: false,
                    age: Age::New,
                });
                self.change(Change::Add(name.clone(), self.inodes.len() - 1));
            }
            ("rename" | "renameat" | "renameat2", [from, to]) => {
                let inode = self.live[from];
                self.change(Change::Rename(from.clone(), to.clone(), inode));
            }
            ("link" | "linkat", [from, to]) => {
                self.change(Change::Add(to.clone(), self.live[from]));
            }
            ("unlink" | "unlinkat", [name]) => self.change(Change::Remove(name.clone())),
            // Of one that holds files, the call says that it is there.
            ("mkdir" | "mkdirat", _) if self.live.is_empty() => {
                let made = call.paths().next().unwrap();
                let (parent, _) = made.rsplit_once('/').unwrap();
                self.made_in.insert(parent.to_owned());
            }
            ("fsync" | "fdatasync", _) => self.sync(call.descriptor().unwrap()),
            _ => {}
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    fn sync(&mut self, path: &str) {
        self.made_in.remove(path);
        if model_in("/".as_ref()) == Path::new(path) {
            self.pending.clear();
            self.safe.clone_from(&self.live);
        } else if let Some(inode) = in_folder(path).and_then(|name| self.live.get(&name)) {
            self.inodes[*inode].synced = true;
        }
    }

    /// The folder for every choice of the pending changes, and of what became of the bytes that were not
    /// synced.
    fn outcomes(&self) -> Vec<Option<Contents>> {
        let count = self.pending.len();
        assert!(count < 12, "{count} changes wait for one sync");
        let chosen = (0..1_u32 << count).map(|chosen| {
            let mut names = self.safe.clone();
            for (at, change) in self.pending.iter().enumerate() {
                if chosen & 1 << at != 0 {
                    change.apply(&mut names);
                }
            }
            names
        });
        let lost = (!self.made_in.is_empty()).then_some(None);
        let there = chosen.flat_map(|names| self.contents(&names)).map(Some);
        there.chain(lost).collect()
    }

    /// What files of these names may hold.
    fn contents(&self, names: &BTreeMap<String, Inode>) -> Vec<Contents> {
        let mut outcomes = vec![Contents::new()];
        for (name, inode) in names {
            let File { bytes, synced, age } = &self.inodes[*inode];
            let mut may_be = vec![bytes.clone()];
            if !synced && !bytes.is_empty() {
                may_be.extend([vec![], vec![0; bytes.len()]]);
            }
            let with = |bytes: &Vec<u8>| {
                let mut outcomes = outcomes.clone();
                let file = (bytes.clone(), *age);
                outcomes
                    .iter_mut()
                    .for_each(|files| drop(files.insert(name.clone(), file.clone())));
                outcomes
            };
            outcomes = may_be.iter().flat_map(with).collect();
            assert!(outcomes.len() < 100, "too many files are not synced");
        }
        outcomes
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, Inode>) {
        match self {
            Self::Add(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

/// The name of a file of the folder, given by its path or as it is.
fn in_folder(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let is_name = !name.is_empty() && name != "." && name != "model";
    is_name.then(|| name.to_owned())
}
