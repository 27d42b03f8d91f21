//! Checkpoints in folders that are not on a disk: the same as on one, opened side by side, and never a mixture.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rstest::rstest;
use safeshard_core::{
    Access, Checkpoint, Code, DiskFolder, Error, Finding, Folder, LoadOptions, MemoryFolder,
    OpenOptions, Place, Prefer, ReadAt, ReadOptions, Resolve, Result, Support, VerifyLevel,
    VerifyOptions, Version, verify,
};
use serde_json::json;
use support::{FIRST, Folder as Disk, INDEX, SECOND, bytes_of, healthy, refused};

/// Knows `memory://model`.
#[derive(Debug)]
struct Resolver(Arc<dyn Folder>);

const MODEL: &str = "memory://model";

impl Resolve for Resolver {
    fn resolve(&self, place: &str) -> Result<Option<Place>> {
        let name = place.strip_prefix(MODEL);
        Ok(name.map(|name| match name.strip_prefix('/') {
            Some(file) => Place::file(self.0.clone(), file),
            None => Place::folder(self.0.clone()),
        }))
    }
}

/// Options with which `memory://model` is this folder.
fn at_model(folder: impl Folder, options: OpenOptions) -> OpenOptions {
    OpenOptions {
        resolver: Some(Arc::new(Resolver(Arc::new(folder)))),
        ..options
    }
}

/// All files in and below a folder on a disk.
fn in_memory(folder: &Path) -> MemoryFolder {
    fn add(folder: &Path, below: &str, to: &mut MemoryFolder) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let name = format!("{below}{name}");
            match path.is_dir() {
                true => add(&path, &format!("{name}/"), to),
                false => to.insert(name, fs::read(&path).unwrap()),
            }
        }
    }
    let mut memory = MemoryFolder::new();
    add(folder, "", &mut memory);
    memory
}

// ---- in memory as on a disk

/// Every folder of the small fixtures with weights in it.
fn folders_with_weights() -> Vec<PathBuf> {
    fn look(folder: &Path, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(folder).unwrap();
        let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        let is_weights = |path: &PathBuf| path.extension().is_some_and(|end| end == "safetensors");
        if entries.iter().any(is_weights) {
            found.push(folder.to_path_buf());
        }
        for entry in entries.iter().filter(|entry| entry.is_dir()) {
            look(entry, found);
        }
    }
    let fixtures = std::env::var_os("SAFESHARD_FIXTURES")
        .expect("SAFESHARD_FIXTURES is not set: run the tests with `cargo xtask test`");
    let mut found = Vec::new();
    for of in ["interop", "save", "bert-family"] {
        look(&Path::new(&fixtures).join(of), &mut found);
    }
    found
}

#[rstest]
fn every_fixture_is_the_same_in_memory(
    #[values(None, Some("fp16"))] variant: Option<&str>,
    #[values(Prefer::Neither, Prefer::Single)] prefer: Prefer,
) {
    let (mut opened, mut refused) = (0, 0);
    for folder in folders_with_weights() {
        println!("{}", folder.display());
        let options = OpenOptions {
            variant: variant.map(str::to_owned),
            prefer,
            ..OpenOptions::default()
        };
        match is_the_same(&folder, options) {
            true => opened += 1,
            false => refused += 1,
        }
    }
    let (enough, some) = if variant.is_none() { (30, 0) } else { (2, 30) };
    assert!(opened >= enough && refused >= some, "{opened}, {refused}");
}

/// That a folder is opened, verified, hashed and loaded from memory as from the disk; whether it can be.
fn is_the_same(folder: &Path, options: OpenOptions) -> bool {
    let memory = at_model(in_memory(folder), options.clone());
    let level = VerifyLevel::Content;
    let found = |path: &Path, open: &OpenOptions| {
        let options = VerifyOptions {
            open: open.clone(),
            level,
            ..VerifyOptions::default()
        };
        told(&verify(path, &options).unwrap().findings, folder)
    };
    assert_eq!(
        found(folder, &options),
        found(Path::new(MODEL), &memory),
        "findings"
    );
    let disk = match Checkpoint::open_with(folder, &options) {
        Ok(disk) => disk,
        Err(error) => {
            let error_in_memory = Checkpoint::open_with(MODEL, &memory).unwrap_err();
            assert_eq!(error_in_memory.code(), error.code());
            return false;
        }
    };
    let memory = Checkpoint::open_with(MODEL, &memory).unwrap();
    is_the_same_checkpoint(&disk, &memory, folder);
    true
}

fn is_the_same_checkpoint(disk: &Checkpoint, memory: &Checkpoint, folder: &Path) {
    assert_eq!(memory.path(), Some(Path::new(MODEL)));
    assert_eq!(memory.kind(), disk.kind());
    assert_eq!(memory.names(), disk.names());
    assert_eq!(memory.aliases(), disk.aliases());
    assert_eq!(memory.totals(), disk.totals());
    let index = |it: &Checkpoint| it.index().map(|index| index.metadata().clone());
    assert_eq!(index(memory), index(disk));
    let warnings = [memory, disk].map(|it| told(it.warnings(), folder));
    assert_eq!(warnings[0], warnings[1]);
    let files = memory.files().iter().zip(disk.files());
    for (in_memory, on_disk) in files {
        assert_eq!(in_memory.name(), on_disk.name());
        assert_eq!(in_memory.path(), None);
        assert_eq!(
            fs::read(on_disk.path().unwrap()).unwrap(),
            all_bytes(in_memory.source())
        );
    }
    for name in disk.names() {
        assert!(
            memory.read(name).unwrap() == disk.read(name).unwrap(),
            "{name}"
        );
    }
    let load = |it: &Checkpoint| {
        let plan = it
            .plan(&LoadOptions::default(), |_| Support::Native)
            .unwrap();
        let read = it.read_planned(&plan.tensors, &ReadOptions::default());
        let named = plan.tensors.into_iter().map(|planned| planned.name);
        named.zip(read.unwrap()).collect::<Vec<_>>()
    };
    // As text, since NaN is not equal to itself.
    assert!(
        format!("{:?}", load(memory)) == format!("{:?}", load(disk)),
        "other tensors"
    );
    #[cfg(feature = "digest")]
    digests::are_the_same(disk, memory);
}

fn all_bytes(source: &Arc<dyn ReadAt>) -> Vec<u8> {
    let mut room = vec![MaybeUninit::uninit(); source.len() as usize];
    source.read_at(0, &mut room).unwrap().to_vec()
}

/// What findings say, each about a file of `folder`, or of one in memory.
fn told(findings: &[Finding], folder: &Path) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
    let told = findings.iter().map(|finding| {
        let problem = &finding.problem;
        let file = problem.path().map(|path| {
            let file = path.strip_prefix(folder).or(path.strip_prefix("memory"));
            file.unwrap().to_owned()
        });
        let found = problem.finding().map(str::to_owned);
        let tensor = problem.tensor().map(str::to_owned);
        let place = (file, tensor, problem.offset());
        (finding.severity, problem.code(), place, found)
    });
    told.collect()
}

#[cfg(feature = "digest")]
mod digests {
    use safeshard_core::{Algorithm, Checkpoint, DigestOf, DigestOptions, Manifest};

    pub(super) fn of(checkpoint: &Checkpoint, of: DigestOf, algorithm: Algorithm) -> Manifest {
        let options = DigestOptions {
            of,
            algorithm,
            ..DigestOptions::default()
        };
        checkpoint.digest(&options).unwrap()
    }

    pub(super) fn are_the_same(disk: &Checkpoint, memory: &Checkpoint) {
        for what in [DigestOf::Files, DigestOf::Tensors] {
            for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
                assert_eq!(of(memory, what, algorithm), of(disk, what, algorithm));
            }
        }
    }
}

#[cfg(feature = "digest")]
#[test]
fn a_manifest_holds_in_memory_as_on_a_disk() {
    use safeshard_core::{Algorithm, DigestOf, Manifest, verify_digests};

    let disk = healthy();
    let on_disk = disk.open().unwrap();
    let manifests = [DigestOf::Files, DigestOf::Tensors]
        .map(|what| digests::of(&on_disk, what, Algorithm::default()));
    let check = |folder: MemoryFolder, place: &str, manifest: &Manifest| {
        let options = VerifyOptions {
            open: at_model(folder, OpenOptions::default()),
            ..VerifyOptions::default()
        };
        let findings = verify_digests(place, manifest, &options).unwrap().findings;
        let told = findings.iter().map(|finding| finding.problem.code());
        told.collect::<Vec<_>>()
    };
    let index = format!("{MODEL}/{INDEX}");
    for manifest in &manifests {
        for place in [MODEL, &*index] {
            assert_eq!(check(in_memory(disk.path()), place, manifest), []);
        }
    }
    let [files, tensors] = &manifests;
    let mut changed = in_memory(disk.path());
    let mut bytes = fs::read(disk.join(SECOND)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    changed.insert(SECOND, bytes);
    for manifest in [files, tensors] {
        let found = check(changed.clone(), MODEL, manifest);
        assert_eq!(found, [Code::DigestMismatch]);
    }
    let absent = format!("{files}{}  absent.json\n", "0".repeat(64));
    let found = check(in_memory(disk.path()), MODEL, &absent.parse().unwrap());
    assert_eq!(found, [Code::DigestMissing]);
    let outside = format!("{files}{}  ../x\n", "0".repeat(64));
    let found = check(in_memory(disk.path()), MODEL, &outside.parse().unwrap());
    assert_eq!(found, [Code::ManifestName]);
}

#[test]
fn what_is_wrong_is_said_in_memory_as_on_a_disk() {
    let breaks: [fn(&Disk) -> &Disk; 8] = [
        |disk| disk,
        |disk| disk.remove(SECOND),
        |disk| disk.remove(INDEX),
        |disk| disk.write(FIRST, "<!DOCTYPE html>"),
        |disk| disk.write(INDEX, "{"),
        |disk| disk.index(&[("a", "../elsewhere.safetensors")]),
        |disk| disk.shard("model.safetensors", &[("a", &[1])]),
        |disk| disk.shard("extra.safetensors", &[("a", &[1])]),
    ];
    for (number, break_it) in breaks.into_iter().enumerate() {
        let disk = healthy();
        break_it(&disk);
        let opened = is_the_same(disk.path(), OpenOptions::default());
        assert_eq!(opened, matches!(number, 0 | 7), "{number}");
    }
}

#[test]
fn a_journal_says_nothing_where_nobody_saves() {
    let disk = healthy();
    disk.shard("model.safetensors", &[("a", &[1])]);
    disk.write(".model.safetensors.commit", "{");
    disk.refused(Code::BrokenJournal);
    let copy = at_model(in_memory(disk.path()), OpenOptions::default());
    let error = refused(
        Checkpoint::open_with(MODEL, &copy),
        Code::AmbiguousCheckpoint,
    );
    assert_eq!(error.path(), Some(Path::new("memory")));
}

#[test]
fn a_file_and_an_index_of_a_folder_are_places_too() {
    let disk = healthy();
    let folder: Arc<dyn Folder> = Arc::new(in_memory(disk.path()));
    let open = |name: &str| {
        let place = Place::file(folder.clone(), name);
        Checkpoint::open_place(&place, &OpenOptions::default())
    };
    let names = disk.open().unwrap().names().len();
    assert_eq!(open(INDEX).unwrap().names().len(), names);
    let file = open(FIRST).unwrap();
    assert!((1..names).contains(&file.names().len()));
    refused(open("absent.safetensors"), Code::NotFound);
    // On a disk, a place is what its path is.
    let place = Place::folder(Arc::new(DiskFolder::new(disk.path())));
    let opened = Checkpoint::open_place(&place, &OpenOptions::default()).unwrap();
    assert_eq!(opened.files()[0].path(), Some(&*disk.join(FIRST)));
}

#[test]
fn one_tensor_of_a_folder_opens_its_shard_alone() {
    let disk = healthy();
    let options = OpenOptions {
        only: Some(vec!["a".to_owned()]),
        ..OpenOptions::default()
    };
    let on_disk = disk.open_with(&options).unwrap();
    let place = Place::folder(Arc::new(in_memory(disk.path())));
    let in_memory = Checkpoint::open_place(&place, &options).unwrap();
    assert_eq!(in_memory.files().len(), 1);
    assert_eq!(in_memory.names(), on_disk.names());
}

// ---- schemes

#[test]
fn a_scheme_that_nobody_knows_is_an_error_of_its_own() {
    let known = at_model(MemoryFolder::new(), OpenOptions::default());
    for options in [OpenOptions::default(), known] {
        for place in ["hf://org/name", "s3://bucket/model.safetensors"] {
            let error = refused(
                Checkpoint::open_with(place, &options),
                Code::SchemeNotBuiltIn,
            );
            assert_eq!(error.path(), Some(Path::new(place)));
            let found = error.finding().unwrap();
            assert!(found.contains(place.split_once(':').unwrap().0), "{found}");
            let opened = Checkpoint::open_files(&[place], &options);
            refused(opened, Code::SchemeNotBuiltIn);
            let options = VerifyOptions {
                open: options.clone(),
                ..VerifyOptions::default()
            };
            let error = verify(place, &options).unwrap_err();
            assert_eq!(error.code(), Code::SchemeNotBuiltIn);
        }
    }
}

#[test]
fn a_list_may_be_of_files_anywhere() {
    let disk = healthy();
    let options = at_model(in_memory(disk.path()), OpenOptions::default());
    let list = [disk.join(FIRST), format!("{MODEL}/{SECOND}").into()];
    let checkpoint = Checkpoint::open_files(&list, &options).unwrap();
    assert_eq!(checkpoint.names(), disk.open().unwrap().names());
    let paths = checkpoint.files().iter().map(|file| file.path());
    assert_eq!(paths.collect::<Vec<_>>(), [Some(&*list[0]), None]);
    let folder = Checkpoint::open_files(&[MODEL], &options);
    refused(folder, Code::NotRegularFile);
}

#[test]
fn what_a_resolver_met_is_the_error() {
    #[derive(Debug)]
    struct Fails;
    impl Resolve for Fails {
        fn resolve(&self, _: &str) -> Result<Option<Place>> {
            Err(Error::new(Code::VariantMissing))
        }
    }
    let options = OpenOptions {
        resolver: Some(Arc::new(Fails)),
        ..OpenOptions::default()
    };
    let error = refused(
        Checkpoint::open_with("any://where", &options),
        Code::VariantMissing,
    );
    assert_eq!(error.path(), Some(Path::new("any://where")));
}

// ---- many at once

/// A folder whose files are far away: it counts what is under way, and waits for so many.
#[derive(Debug)]
struct Far {
    files: MemoryFolder,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicUsize,
    read: AtomicUsize,
    /// Opening, or reading, right now and at most.
    at_once: Mutex<(usize, usize)>,
    awaited: AtomicUsize,
    changed: Condvar,
}

impl Counts {
    fn reset(&self, awaited: usize) {
        self.awaited.store(awaited, SeqCst);
        self.opened.store(0, SeqCst);
        self.read.store(0, SeqCst);
        *self.at_once.lock().unwrap() = (0, 0);
    }

    fn most_at_once(&self) -> usize {
        self.at_once.lock().unwrap().1
    }

    /// Is over when so many are under way, or nobody comes for a while.
    fn under_way(&self) {
        let mut at_once = self.at_once.lock().unwrap();
        at_once.0 += 1;
        at_once.1 = at_once.1.max(at_once.0);
        self.changed.notify_all();
        let too_few = |at_once: &mut (usize, usize)| at_once.1 < self.awaited.load(SeqCst);
        let wait = Duration::from_secs(20);
        let waited = self.changed.wait_timeout_while(at_once, wait, too_few);
        waited.unwrap().0.0 -= 1;
    }
}

impl Folder for Far {
    fn names(&self) -> Result<Vec<String>> {
        self.files.names()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        let is_index = name.ends_with(".json");
        if !is_index {
            self.counts.opened.fetch_add(1, SeqCst);
            self.counts.under_way();
        }
        Ok(Arc::new(FarFile {
            bytes: all_bytes(&self.files.open(name)?),
            counts: (!is_index).then(|| self.counts.clone()),
        }))
    }

    fn place(&self, name: &str) -> PathBuf {
        Path::new("far://away").join(name)
    }
}

#[derive(Debug)]
struct FarFile {
    bytes: Vec<u8>,
    counts: Option<Arc<Counts>>,
}

const STREAMS: usize = 50;

impl ReadAt for FarFile {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        if let Some(counts) = &self.counts {
            counts.read.fetch_add(1, SeqCst);
            counts.under_way();
        }
        let at = offset as usize;
        Ok(buf.write_copy_of_slice(&self.bytes[at..at + buf.len()]))
    }

    fn access(&self) -> Access {
        let streams = NonZeroUsize::new(STREAMS).unwrap();
        Access::default().streams(streams).gap(1 << 20)
    }
}

/// Fifty shards of so many tensors of this length, far away; the first `awaited` openings wait for each other.
fn far_checkpoint(tensors: usize, len: usize, awaited: usize) -> (Checkpoint, Arc<Counts>) {
    let mut files = MemoryFolder::new();
    let mut map = BTreeMap::new();
    for shard in 0..STREAMS {
        let name = format!("model-{:05}-of-00050.safetensors", shard + 1);
        let names: Vec<_> = (0..tensors).map(|at| format!("t{shard}.{at}")).collect();
        let bytes = vec![shard as u8; len];
        let held: Vec<_> = names.iter().map(|name| (&**name, &*bytes)).collect();
        files.insert(&name, bytes_of(&held));
        map.extend(names.into_iter().map(|tensor| (tensor, name.clone())));
    }
    files.insert(INDEX, json!({"weight_map": map}).to_string());
    let counts = Arc::<Counts>::default();
    counts.reset(awaited);
    let far = Far {
        files,
        counts: counts.clone(),
    };
    let opened = Checkpoint::open_place(&Place::folder(Arc::new(far)), &OpenOptions::default());
    (opened.unwrap(), counts)
}

#[test]
fn fifty_shards_are_opened_with_all_in_flight() {
    let (checkpoint, counts) = far_checkpoint(1, 1000, STREAMS);
    assert_eq!(checkpoint.files().len(), STREAMS);
    assert_eq!(counts.opened.load(SeqCst), STREAMS);
    // A call for each header.
    assert_eq!(counts.read.load(SeqCst), STREAMS);
    assert_eq!(counts.most_at_once(), STREAMS);
}

#[cfg(feature = "digest")]
#[test]
fn hashing_and_comparing_take_as_many_streams_as_the_source_wants_and_few_calls() {
    use safeshard_core::{Algorithm, DiffOptions, DigestOf, diff};

    let (checkpoint, counts) = far_checkpoint(100, 500, 0);
    for of in [DigestOf::Files, DigestOf::Tensors] {
        counts.reset(STREAMS);
        digests::of(&checkpoint, of, Algorithm::Blake3);
        // A call for each file: its small tensors lie side by side.
        assert_eq!(counts.read.load(SeqCst), STREAMS, "{of:?}");
        assert_eq!(counts.most_at_once(), STREAMS, "{of:?}");
    }
    let (same, others) = far_checkpoint(100, 500, 0);
    counts.reset(0);
    others.reset(0);
    let options = DiffOptions::default();
    assert!(diff(&checkpoint, &same, &options).unwrap().is_equal());
    assert_eq!(counts.read.load(SeqCst), STREAMS);
    assert_eq!(others.read.load(SeqCst), STREAMS);
}

#[cfg(feature = "digest")]
#[test]
fn long_tensors_far_away_are_hashed_in_long_calls() {
    use safeshard_core::{Algorithm, DigestOf};
    use sha2::{Digest, Sha256};

    const LEN: usize = 20 << 20;
    let bytes: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
    let file = MemoryFolder::from_iter([("model.safetensors", bytes_of(&[("w", &bytes)]))]);
    let counts = Arc::<Counts>::default();
    let far = Far {
        files: file,
        counts: counts.clone(),
    };
    let place = Place::folder(Arc::new(far));
    let checkpoint = Checkpoint::open_place(&place, &OpenOptions::default()).unwrap();
    counts.reset(0);
    let manifest = digests::of(&checkpoint, DigestOf::Tensors, Algorithm::Sha256);
    let expected: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(manifest.to_string().contains(&expected));
    let calls = counts.read.load(SeqCst);
    assert!(calls <= LEN / (8 << 20) + 1, "{calls}");
}

// ---- somebody saves meanwhile

/// A folder that gets another checkpoint while the first shard of the old one is opened, so many times.
#[derive(Debug)]
struct Changing {
    generation: AtomicUsize,
    changes: usize,
}

const SHARD: &str = "model-00001-of-00001.safetensors";

impl Changing {
    fn bytes(name: &str, generation: usize) -> Vec<u8> {
        let tensor = format!("of generation {generation}");
        match name {
            INDEX => json!({"weight_map": {tensor: SHARD}}).to_string().into(),
            _ => bytes_of(&[(&tensor, &[generation as u8])]),
        }
    }
}

impl Folder for Changing {
    fn names(&self) -> Result<Vec<String>> {
        Ok(vec![INDEX.to_owned(), SHARD.to_owned()])
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        let now = self.generation.load(SeqCst);
        if name == SHARD && now < self.changes {
            self.generation.fetch_add(1, SeqCst);
        }
        let now = self.generation.load(SeqCst);
        Ok(Arc::new(Versioned(Self::bytes(name, now), now)))
    }

    fn place(&self, name: &str) -> PathBuf {
        Path::new("store://bucket").join(name)
    }

    fn version(&self, _: &str) -> Result<Option<Version>> {
        let now = self.generation.load(SeqCst);
        Ok(Some(Version::new(format!("\"{now}\""))))
    }
}

#[derive(Debug)]
struct Versioned(Vec<u8>, usize);

impl ReadAt for Versioned {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let at = offset as usize;
        Ok(buf.write_copy_of_slice(&self.0[at..at + buf.len()]))
    }

    fn version(&self) -> Option<Version> {
        Some(Version::new(format!("\"{}\"", self.1)))
    }
}

#[test]
fn a_checkpoint_that_is_replaced_meanwhile_is_opened_again_wherever_it_is() {
    let changing = |changes| {
        let generation = AtomicUsize::new(0);
        Arc::new(Changing {
            generation,
            changes,
        })
    };
    for changes in [0, 1, 5] {
        let folder = changing(changes);
        let place = Place::folder(folder.clone());
        let opened = Checkpoint::open_place(&place, &OpenOptions::default()).unwrap();
        assert_eq!(opened.names(), [format!("of generation {changes}")]);
        assert_eq!(folder.generation.load(SeqCst), changes);
    }
    let place = Place::folder(changing(usize::MAX));
    let opened = Checkpoint::open_place(&place, &OpenOptions::default());
    let error = refused(opened, Code::FileChanged);
    assert_eq!(
        error.path(),
        Some(&*Path::new("store://bucket").join(INDEX))
    );
    let versions = error.to_string();
    assert!(versions.contains("version"), "{versions}");
}
