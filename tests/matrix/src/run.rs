//! All cells: every case saved by every framework, and loaded by every framework.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::thread;

use safeshard_core::Dtype;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::case::{Case, Found, Layout};
use crate::framework::{Framework, Refusal, Saved, Way};
use crate::python::Process;

/// Python processes, each with torch in it.
const WORKERS: usize = 2;

const INDEX: &str = "model.safetensors.index.json";

/// A tensor's way from one framework into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) dtype: Dtype,
    pub(crate) layout: Layout,
    pub(crate) way: Way,
    pub(crate) writer: Framework,
    pub(crate) reader: Framework,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The same bytes, dtype and shape came out.
    Same,
    /// The writer cannot hold it, and said so under this name, as it must.
    NotSaved(String),
    /// The reader cannot hold it, and said so under this name, as it must.
    NotLoaded(String),
    /// Anything else.
    Wrong(String),
}

/// What became of each cell. Runs all of them at the first call.
pub(crate) fn outcomes() -> &'static BTreeMap<Cell, Outcome> {
    static OUTCOMES: OnceLock<BTreeMap<Cell, Outcome>> = OnceLock::new();
    OUTCOMES.get_or_init(|| {
        let dtypes = Mutex::new(Dtype::ALL.iter());
        let work = || {
            let mut python = Process::start();
            let mut outcomes = BTreeMap::new();
            while let Some(&dtype) = { dtypes.lock().unwrap().next() } {
                run(&mut python, dtype, &mut outcomes);
            }
            outcomes
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
            let outcomes = workers.into_iter().map(|worker| worker.join().unwrap());
            outcomes.flatten().collect()
        })
    })
}

fn run(python: &mut Process, dtype: Dtype, outcomes: &mut BTreeMap<Cell, Outcome>) {
    for layout in Layout::ALL {
        let case = Case::new(dtype, layout);
        for way in Way::ALL {
            for writer in Framework::ALL {
                pass_on(python, &case, way, writer, outcomes);
            }
        }
    }
}

/// From one framework into all others.
fn pass_on(
    python: &mut Process,
    case: &Case,
    way: Way,
    writer: Framework,
    outcomes: &mut BTreeMap<Cell, Outcome>,
) {
    let readers = Framework::ALL.into_iter();
    let mut readers = readers.filter(|&to| way.connects(writer, to)).peekable();
    if readers.peek().is_none() {
        return;
    }
    let saved = save(python, case, way, writer);
    for reader in readers {
        let outcome = match &saved {
            Ok(saved) => load(python, case, saved, reader),
            Err(not_saved) => not_saved.clone(),
        };
        let cell = Cell {
            dtype: case.dtype,
            layout: case.layout,
            way,
            writer,
            reader,
        };
        outcomes.insert(cell, outcome);
    }
}

fn save(python: &mut Process, case: &Case, way: Way, writer: Framework) -> Result<Saved, Outcome> {
    let refusal = writer.refuses_to_save(case.dtype, case.layout);
    match (writer.save(python, case, way), refusal) {
        (Ok(saved), None) => {
            if let Some(folder) = saved.folder() {
                check_files(case, folder, way).map_err(Outcome::Wrong)?;
            }
            Ok(saved)
        }
        (Err(refused), Some(name)) if refused.name == name => Err(Outcome::NotSaved(refused.name)),
        (saved, refusal) => Err(wrong("saving", saved.map(drop), refusal)),
    }
}

fn load(python: &mut Process, case: &Case, saved: &Saved, reader: Framework) -> Outcome {
    let refusal = reader.refuses_to_load(case.dtype);
    match (reader.load(python, saved), refusal) {
        (Ok(found), None) => match differences(&found, &case.expected()) {
            None => Outcome::Same,
            Some(differences) => Outcome::Wrong(differences),
        },
        (Err(refused), Some(name)) if refused.name == name => Outcome::NotLoaded(refused.name),
        (loaded, refusal) => wrong("loading", loaded.map(drop), refusal),
    }
}

fn wrong(step: &str, result: Result<(), Refusal>, expected: Option<&str>) -> Outcome {
    let found = match result {
        Ok(()) => "went well".to_owned(),
        Err(Refusal { name, message }) => format!("failed with {name}: {message}"),
    };
    Outcome::Wrong(match expected {
        None => format!("{step} {found}"),
        Some(name) => format!("{step} {found}, and had to fail with {name}"),
    })
}

/// What a checkpoint holds according to the reference, which knows nothing of whoever saved it.
fn check_files(case: &Case, folder: &Path, way: Way) -> Result<(), String> {
    let mut stored = BTreeMap::new();
    let mut aliases = BTreeMap::new();
    let mut placed = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let bytes = fs::read(folder.join(&name)).unwrap();
        if name == INDEX {
            let index: Value = serde_json::from_slice(&bytes).unwrap();
            let records = index["metadata"].as_object().unwrap();
            let strings =
                |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
            aliases.extend(records.iter().filter_map(strings));
            let weight_map = index["weight_map"].as_object().unwrap();
            placed.extend(weight_map.iter().filter_map(strings));
            continue;
        }
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| error.to_string())?;
        aliases.extend(header.metadata().clone().unwrap_or_default());
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| error.to_string())?;
        for (tensor, view) in tensors.iter() {
            let found = Found {
                dtype: view.dtype().to_string(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            stored.insert(tensor.to_owned(), (name.clone(), found));
        }
    }
    let is_placed = match way {
        Way::File | Way::Memory => stored.values().all(|(file, _)| file == "model.safetensors"),
        Way::Shards => {
            let places = stored.iter().map(|(name, (file, _))| (name, file));
            placed
                .values()
                .any(|file| Some(file) != placed.values().next())
                && places.eq(placed.iter())
        }
    };
    if !is_placed {
        return Err(format!(
            "the files hold {stored:?} and the index {placed:?}"
        ));
    }
    let mut found: BTreeMap<_, _> = stored
        .into_iter()
        .map(|(name, (_, found))| (name, found))
        .collect();
    for (dropped, kept) in aliases {
        if let Some(tied) = found.get(&kept).cloned() {
            found.entry(dropped).or_insert(tied);
        }
    }
    match differences(&found, &case.expected()) {
        None => Ok(()),
        Some(differences) => Err(format!("in the files, {differences}")),
    }
}

fn differences(
    found: &BTreeMap<String, Found>,
    expected: &BTreeMap<String, Found>,
) -> Option<String> {
    (found != expected).then(|| format!("found {found:?}, expected {expected:?}"))
}
