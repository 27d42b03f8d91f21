//! Journals of folders that are compared, or made again elsewhere. A journal knows files by what no copy
//! has; here it says of each whether it is the old one or the new one.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

const END: &str = ".commit";

/// Which save a file is of; in seconds, as the time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Age {
    Old = 1,
    New = 2,
}

/// Whether a file is a journal, or the stage of one.
pub fn is_journal(name: &str) -> bool {
    name.contains(END)
}

/// A journal that says the length and the [`Age`] of each file.
pub fn timeless(journal: &str) -> String {
    changed(journal, |part, _, mark| {
        let age = match part {
            "superseded" => Age::Old,
            _ => Age::New,
        };
        *mark = json!({"len": mark["len"], "age": age as u64});
    })
}

/// Lets the journals of a folder, which are timeless, name the files that have these lengths and ages.
pub fn name_files(folder: &Path) {
    each_journal(folder, |journal| {
        changed(journal, |part, names, mark| {
            let (len, age) = (mark["len"].as_u64().unwrap(), mark["age"].as_i64().unwrap());
            let found = names.iter().find_map(|name| {
                let found = fs::symlink_metadata(folder.join(name)).ok()?;
                (found.len() == len && found.mtime() == age).then_some(found)
            });
            *mark = mark_of(found.as_ref(), part);
        })
    });
}

/// Lets the journals of a copy name the copies of what they named in the first folder; `renamed` is what
/// the copy of a file is called.
pub fn name_copies(from: &Path, to: &Path, renamed: impl Fn(&str) -> String) {
    let Ok(entries) = fs::read_dir(from) else {
        return;
    };
    let originals: HashMap<String, PathBuf> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (renamed(path.file_name().unwrap().to_str().unwrap()), path)
        })
        .collect();
    each_journal(to, |journal| {
        changed(journal, |part, names, mark| {
            let is_it = |name: &&String| {
                let original = originals.get(*name);
                let found = original.map(|path| fs::symlink_metadata(path).unwrap());
                found.is_some_and(|found| mark_of(Some(&found), part) == *mark)
            };
            let copy = names.iter().find(is_it);
            let copy = copy.map(|name| fs::symlink_metadata(to.join(name)).unwrap());
            *mark = mark_of(copy.as_ref(), part);
        })
    });
}

/// As a journal names a file of this part of it; none has the mark of what is not there.
pub fn mark_of(file: Option<&Metadata>, part: &str) -> Value {
    let Some(file) = file else {
        return json!({"len": 0, "inode": 0, "born": 0, "modified": 0, "changed": 0});
    };
    let born = file.created().ok().map(|born| {
        let born = born.duration_since(UNIX_EPOCH).unwrap();
        born.as_nanos() as i64
    });
    let time = |seconds: i64, nanoseconds: i64| seconds * 1_000_000_000 + nanoseconds;
    json!({
        "len": file.len(),
        "inode": file.ino(),
        "born": born,
        "modified": time(file.mtime(), file.mtime_nsec()),
        "changed": (part == "superseded").then(|| time(file.ctime(), file.ctime_nsec())),
    })
}

fn each_journal(folder: &Path, change: impl Fn(&str) -> String) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if is_journal(path.file_name().unwrap().to_str().unwrap()) {
            let journal = fs::read_to_string(&path).unwrap();
            fs::write(&path, change(&journal)).unwrap();
        }
    }
}

/// The journal with other marks; `change` gets the part, and what the file may be called.
fn changed(journal: &str, change: impl Fn(&str, &[String], &mut Value)) -> String {
    let Ok(mut journal) = serde_json::from_str::<Value>(journal) else {
        // Not written yet.
        return journal.to_owned();
    };
    for part in ["main", "new", "along", "stand_in", "superseded"] {
        let files = match &mut journal[part] {
            Value::Array(files) => files.iter_mut().collect(),
            Value::Null => vec![],
            file => vec![file],
        };
        for file in files {
            let stage = file
                .get("stage")
                .map(|stage| stage.as_str().unwrap().to_owned());
            let entry = match stage {
                Some(_) => &mut file["entry"],
                None => file,
            };
            let mut names = vec![entry["name"].as_str().unwrap().to_owned()];
            names.extend(stage);
            change(part, &names, &mut entry["mark"]);
        }
    }
    journal.to_string()
}
