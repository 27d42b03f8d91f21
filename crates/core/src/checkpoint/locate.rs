//! What is at a path: a file, an index, or a folder with one of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file_names::{END, Names, STEMS, index_of, is_rank_file, is_shard};
use super::journal::Journal;
use super::names::sample;
use crate::error::{Code, Error, Result};
use crate::io::folder::{DiskFolder, Folder, FolderFile, Place, Resolve, scheme_of};
use crate::io::source::open_error;
use crate::io::version::Version;

/// What to do in a folder that has both an index and a single file of the same name.
///
/// It does not matter in a folder that a save of this library is at work in, or died in: that knows
/// which of the two counts.
///
/// Complete: neither of the two, or one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Prefer {
    /// Refuse: one of the two is out of date, and nothing says which.
    #[default]
    Neither,
    /// Open the index, as huggingface_hub does.
    Index,
    /// Open the single file, as transformers does.
    Single,
}

/// What to open, by name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Located {
    File(String),
    Index(String),
    /// Only the index's contents can tell whether the file belongs to it.
    Both {
        index: String,
        single: String,
    },
}

impl Place {
    /// What is at `path`, on a disk or behind a scheme.
    ///
    /// # Errors
    /// `scheme-not-built-in`, and those of the resolver; `not-found`, `io`.
    pub(crate) fn at(path: &Path, resolver: Option<&dyn Resolve>) -> Result<Self> {
        if let Some(place) = Self::with_scheme(path, resolver)? {
            return Ok(place);
        }
        let metadata = fs::metadata(path).map_err(|error| open_error(error).at_path(path))?;
        if !metadata.is_dir() {
            return Ok(Self::disk_file(path));
        }
        let folder = cache_snapshot(path).unwrap_or_else(|| path.to_path_buf());
        Ok(Self::folder(Arc::new(DiskFolder::new(folder))))
    }

    /// What is at the path of a file, whatever it is.
    ///
    /// # Errors
    /// As [`Place::at`]; `not-a-regular-file` for a folder behind a scheme.
    pub(crate) fn of_file(path: &Path, resolver: Option<&dyn Resolve>) -> Result<Self> {
        let place = match Self::with_scheme(path, resolver)? {
            Some(place) => place,
            None => Self::disk_file(path),
        };
        if place.name.is_none() {
            let error = Error::new(Code::NotRegularFile).at_path(path);
            return Err(error.found("a folder"));
        }
        Ok(place)
    }

    fn disk_file(path: &Path) -> Self {
        let (folder, name) = DiskFolder::of_file(path);
        Self::file(Arc::new(folder), name)
    }

    fn with_scheme(path: &Path, resolver: Option<&dyn Resolve>) -> Result<Option<Self>> {
        let Some((scheme, place)) = scheme_of(path) else {
            return Ok(None);
        };
        let resolved = resolver.map(|resolver| resolver.resolve(place));
        let resolved = resolved.transpose().map_err(|error| error.at_path(path))?;
        match resolved.flatten() {
            Some(place) => Ok(Some(place)),
            None => {
                let error = Error::new(Code::SchemeNotBuiltIn).at_path(path);
                Err(error.found(format_args!("`{scheme}`")))
            }
        }
    }

    /// The file that is meant, if it is an index.
    pub(crate) fn index(&self) -> Option<&str> {
        let name = self.name.as_deref()?;
        let extension = Path::new(name).extension()?;
        (extension == "json").then_some(name)
    }
}

/// The index of a folder that has `model.safetensors.index.json` and no `model.safetensors`, found without
/// listing it: most folders of many shards are like that.
pub(crate) fn index_at_a_glance(folder: &Arc<dyn Folder>) -> Option<FolderFile> {
    let [stem, ..] = STEMS;
    let names = Names::unchecked(stem, None);
    let single = folder.version(&names.single()).err()?;
    let index = || FolderFile::open(folder, &names.index()).ok();
    (single.code() == Code::NotFound).then(index).flatten()
}

/// Of a repository in the Hugging Face cache, the folder of its main revision.
pub(crate) fn cache_snapshot(path: &Path) -> Option<PathBuf> {
    const LONGEST_REVISION: u64 = 100;
    let main = path.join("refs").join("main");
    let metadata = fs::metadata(&main).ok()?;
    // A FIFO would block, a device might never end.
    if !metadata.is_file() || metadata.len() > LONGEST_REVISION {
        return None;
    }
    let revision = fs::read_to_string(main).ok()?;
    let revision = revision.trim();
    let is_hash = !revision.is_empty() && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    let snapshot = path.join("snapshots").join(revision);
    (is_hash && snapshot.is_dir()).then_some(snapshot)
}

/// The names in a folder, sorted.
#[derive(Debug)]
pub(crate) struct Listing {
    folder: Arc<dyn Folder>,
    names: Vec<String>,
    /// When the last name was added or removed, at the latest: the same names may have come again.
    version: Option<Version>,
}

impl Listing {
    pub(crate) fn of(folder: &Arc<dyn Folder>) -> Result<Self> {
        let at_folder = |error: Error| error.at_path(folder.place(""));
        let version = folder.version("").map_err(at_folder)?;
        let mut names = folder.names().map_err(at_folder)?;
        names.sort_unstable();
        Ok(Self {
            folder: Arc::clone(folder),
            names,
            version,
        })
    }

    /// Of a folder on a disk.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let folder: Arc<dyn Folder> = Arc::new(DiskFolder::new(folder));
        Self::of(&folder)
    }

    /// Safetensors files in the folder, except those that `used` says belong to the checkpoint.
    pub(crate) fn others(&self, used: impl Fn(&Path) -> bool) -> impl Iterator<Item = PathBuf> {
        self.safetensors()
            .map(|name| self.folder.place(name))
            .filter(move |path| !used(path))
    }

    /// The checkpoint of the folder.
    pub(crate) fn choose(&self, variant: Option<&str>) -> Result<Located> {
        let located = self.located(variant);
        located.map_err(|error| error.at_path(self.folder.place("")))
    }

    /// Whether the folder holds what it held.
    pub(crate) fn still_holds(&self) -> bool {
        let is_same = |now: &Self| match (&self.version, &now.version) {
            (Some(then), Some(now)) => then.is_same(now),
            _ => true,
        };
        Self::of(&self.folder).is_ok_and(|now| now.names == self.names && is_same(&now))
    }

    /// The names, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    fn located(&self, variant: Option<&str>) -> Result<Located> {
        for stem in STEMS {
            if let Some(located) = self.of_stem(stem, variant)? {
                return Ok(located);
            }
        }
        match variant {
            Some(variant) => self.only_one_of_variant(variant),
            None => self.only_one(),
        }
    }

    /// The checkpoint of a stem such as `model`, if there is one.
    fn of_stem(&self, stem: &str, variant: Option<&str>) -> Result<Option<Located>> {
        let names = Names::unchecked(stem, variant);
        let (single, prefix) = (names.single(), names.shard_prefix());
        let indexes = names.indexes().into_iter().filter(|name| self.has(name));
        let indexes = indexes.collect();
        let single = self.has(&single).then_some(single);
        // An index of another name may name them.
        let orphans = !self.names.iter().any(|name| index_of(name).is_some());
        let shards = self.shards();
        let shards = shards.filter(|name| orphans && name.starts_with(&prefix));
        self.decide(
            indexes,
            single.into_iter().collect(),
            shards.map(str::to_owned).collect(),
        )
    }

    /// Whatever its name: the only checkpoint of the folder.
    fn only_one(&self) -> Result<Located> {
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        let names = self.names.iter().map(String::as_str);
        let indexes = names.filter(|name| index_of(name).is_some()).collect();
        let singles = self.safetensors().filter(|name| !is_shard(name)).collect();
        let shards = self.shards().collect();
        let located = self.decide(owned(indexes), owned(singles), owned(shards))?;
        located.ok_or_else(|| self.nothing())
    }

    fn only_one_of_variant(&self, variant: &str) -> Result<Located> {
        let single = format!(".{variant}.safetensors");
        let owned = |keep: &dyn Fn(&str) -> bool| {
            let names = self.names.iter().filter(|name| keep(name));
            names.cloned().collect::<Vec<_>>()
        };
        let indexes = owned(&|name| index_of(name).is_some_and(|of| of.ends_with(&single)));
        let singles = owned(&|name| name.ends_with(&single));
        self.decide(indexes, singles, Vec::new())?.ok_or_else(|| {
            let error = Error::new(Code::VariantMissing)
                .expected(format_args!("files of the variant `{variant}`"));
            match self.safetensors().next() {
                Some(_) => error.found(sample(self.safetensors())),
                None => error.found("no safetensors file"),
            }
        })
    }

    /// One index, or one single file, or both of one name; anything else is for the caller to say.
    fn decide(
        &self,
        mut indexes: Vec<String>,
        mut singles: Vec<String>,
        shards: Vec<String>,
    ) -> Result<Option<Located>> {
        let overruled = self.overruled(&indexes, &singles)?;
        indexes.retain(|name| !overruled.contains(name));
        singles.retain(|name| !overruled.contains(name));
        let ambiguous = |names: &mut dyn Iterator<Item = &String>| {
            let error = Error::new(Code::AmbiguousCheckpoint);
            Err(error.found(sample(names.map(String::as_str))))
        };
        match (indexes.as_slice(), singles.as_slice()) {
            ([], []) if shards.is_empty() => Ok(None),
            ([], []) => {
                let found = sample(shards.iter().map(String::as_str));
                let error = Error::new(Code::IndexMissing).found(found);
                Err(match shards.iter().any(|name| is_rank_file(name)) {
                    true => error.help(
                        "these are the parts that torch's distributed checkpoints save, one set a \
                         rank: consolidate them with torch first",
                    ),
                    false => error,
                })
            }
            ([], [single]) => Ok(Some(Located::File(single.clone()))),
            ([], several) => ambiguous(&mut several.iter()),
            ([index], _) => {
                let same = index_of(index);
                let same = singles.iter().find(|name| Some(*name) == same.as_ref());
                let index = index.clone();
                Ok(Some(match same.cloned() {
                    None => Located::Index(index),
                    Some(single) => Located::Both { index, single },
                }))
            }
            (several, _) => ambiguous(&mut several.iter()),
        }
    }

    /// Those files that are not the checkpoint any more, or not yet, because somebody is saving, or
    /// was when his process died.
    fn overruled(&self, indexes: &[String], singles: &[String]) -> Result<Vec<String>> {
        // Nobody saves anywhere else, and a journal says nothing of a copy of its folder.
        let Some(folder) = self.folder.local() else {
            return Ok(Vec::new());
        };
        let names: Vec<&str> = indexes.iter().chain(singles).map(String::as_str).collect();
        let of_indexes = indexes.iter().filter_map(|name| index_of(name));
        let checkpoints: BTreeSet<String> = of_indexes.chain(singles.iter().cloned()).collect();
        let mut overruled = Vec::new();
        for single in checkpoints {
            if !self.has(&Journal::name(&single)) {
                continue;
            }
            let journal = match Journal::read(folder, &single) {
                // There is no doubt which file is meant.
                Err(_) if names.len() < 2 => None,
                journal => journal?,
            };
            if let Some(journal) = journal {
                overruled.extend(journal.overruled(folder, &names)?);
            }
        }
        Ok(overruled)
    }

    fn nothing(&self) -> Error {
        let error = Error::new(Code::NoCheckpoint);
        let names = self.names.iter().map(String::as_str);
        let others = names.filter(|name| {
            [
                ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".npz", ".h5", ".msgpack",
            ]
            .iter()
            .any(|end| name.ends_with(end))
        });
        match others.clone().next() {
            Some(_) => error
                .found(format_args!("only {}", sample(others)))
                .help("convert it to safetensors first"),
            None => error.expected("a .safetensors file or a .safetensors.index.json"),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.names
            .binary_search_by(|other| other.as_str().cmp(name))
            .is_ok()
    }

    /// Safetensors files, finished ones.
    pub(crate) fn safetensors(&self) -> impl Iterator<Item = &str> {
        let names = self.names.iter().map(String::as_str);
        // A hidden name is a download or a save that is not finished.
        names.filter(|name| name.ends_with(END) && !name.starts_with('.'))
    }

    fn shards(&self) -> impl Iterator<Item = &str> {
        self.safetensors().filter(|name| is_shard(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(names: &[&str], variant: Option<&str>) -> Result<Located> {
        let mut names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        names.sort_unstable();
        let listing = Listing {
            folder: Arc::new(DiskFolder::new("")),
            names,
            version: None,
        };
        listing.choose(variant)
    }

    fn file(name: &str) -> Located {
        Located::File(name.into())
    }

    fn index(name: &str) -> Located {
        Located::Index(name.into())
    }

    #[test]
    fn plain_names() {
        let shard = "model-00001-of-00001.safetensors";
        assert_eq!(
            choose(&["model.safetensors"], None).unwrap(),
            file("model.safetensors")
        );
        let located = choose(&["model.safetensors.index.json", shard], None).unwrap();
        assert_eq!(located, index("model.safetensors.index.json"));
        // Beside the model, an adapter, another format's copy, a variant.
        let names = [
            "model.safetensors",
            "adapter_model.safetensors",
            "consolidated.safetensors",
            "model.fp16.safetensors",
        ];
        assert_eq!(choose(&names, None).unwrap(), file("model.safetensors"));
        assert_eq!(
            choose(&["lora.v1.safetensors"], None).unwrap(),
            file("lora.v1.safetensors")
        );
    }

    #[test]
    fn both_spellings_of_a_variant() {
        for name in [
            "model.safetensors.index.fp16.json",
            "model.safetensors.fp16.index.json",
            "model.fp16.safetensors.index.json",
        ] {
            let names = [
                name,
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
            ];
            assert_eq!(choose(&names, Some("fp16")).unwrap(), index(name));
        }
        let names = [
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(choose(&names, Some("fp16")).unwrap(), file(names[0]));
        assert_eq!(
            choose(&["lora.fp16.safetensors"], Some("fp16")).unwrap(),
            file("lora.fp16.safetensors")
        );
        let missing = choose(&names, Some("bf16")).unwrap_err();
        assert_eq!(missing.code(), Code::VariantMissing);
    }

    #[test]
    fn the_only_index_of_a_folder_is_found_whatever_its_name() {
        // Was taken for shards whose index is gone.
        let names = [
            "model.fp16-00001-of-00001.safetensors",
            "model.safetensors.index.fp16.json",
        ];
        assert_eq!(choose(&names, None).unwrap(), index(names[1]));
        let names = [
            "model-00001-of-00001.safetensors",
            "out.safetensors.index.json",
        ];
        assert_eq!(choose(&names, None).unwrap(), index(names[1]));
    }

    #[test]
    fn a_single_file_of_another_variant_does_not_make_an_index_ambiguous() {
        let names = ["out.fp16.safetensors", "out.safetensors.index.json"];
        assert_eq!(choose(&names, None).unwrap(), index(names[1]));
        let names = ["out.safetensors", "out.safetensors.index.json"];
        assert!(matches!(choose(&names, None), Ok(Located::Both { .. })));
        let names = ["out.fp16.safetensors", "out.safetensors.index.fp16.json"];
        let both = choose(&names, Some("fp16"));
        assert!(matches!(both, Ok(Located::Both { .. })));
    }

    #[test]
    fn what_is_unclear_is_said() {
        let code = |names: &[&str]| choose(names, None).unwrap_err().code();
        assert_eq!(code(&[]), Code::NoCheckpoint);
        assert_eq!(code(&["pytorch_model.bin"]), Code::NoCheckpoint);
        assert_eq!(
            code(&["a.safetensors", "b.safetensors"]),
            Code::AmbiguousCheckpoint
        );
        assert_eq!(
            code(&[
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors"
            ]),
            Code::IndexMissing
        );
        // An adapter must not be taken for the model whose index is gone.
        assert_eq!(
            code(&[
                "model-00001-of-00002.safetensors",
                "adapter_model.safetensors"
            ]),
            Code::IndexMissing
        );
        let both = choose(&["model.safetensors", "model.safetensors.index.json"], None).unwrap();
        assert!(matches!(both, Located::Both { .. }));
    }

    #[test]
    fn shards_without_an_index_do_not_hide_a_whole_single_file() {
        // What an interrupted save leaves: the old checkpoint is whole.
        let names = ["model.safetensors", "model-00001-of-00002.safetensors"];
        assert_eq!(choose(&names, None).unwrap(), file("model.safetensors"));
    }
}
