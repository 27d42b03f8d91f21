//! What is at a path: a file, an index, or a folder with one of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::file_names::{END, Names, STEMS, index_of, is_rank_file, is_shard};
use super::journal::Journal;
use super::names::sample;
use crate::error::{Code, Error, Result};
use crate::io::source::open_error;

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

/// What a path turned out to be.
#[derive(Debug)]
pub(crate) enum Place {
    File(PathBuf),
    Index(PathBuf),
    Folder(Listing),
}

/// What to open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Located {
    File(PathBuf),
    Index(PathBuf),
    /// Only the index's contents can tell whether the file belongs to it.
    Both {
        index: PathBuf,
        single: PathBuf,
    },
}

impl Place {
    /// What is at `path`.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|error| open_error(error).at_path(path))?;
        if metadata.is_dir() {
            let folder = cache_snapshot(path).unwrap_or_else(|| path.to_path_buf());
            return Ok(Self::Folder(Listing::read(&folder)?));
        }
        let is_index = path
            .extension()
            .is_some_and(|extension| extension == "json");
        Ok(match is_index {
            true => Self::Index(path.to_path_buf()),
            false => Self::File(path.to_path_buf()),
        })
    }
}

/// The index of a folder that has `model.safetensors.index.json` and no `model.safetensors`, found without
/// listing it: most folders of many shards are like that.
pub(crate) fn index_at_a_glance(folder: &Path) -> Option<PathBuf> {
    let [stem, ..] = STEMS;
    let names = Names::unchecked(stem, None);
    let (index, single) = (folder.join(names.index()), folder.join(names.single()));
    (index.is_file() && matches!(single.try_exists(), Ok(false))).then_some(index)
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
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    folder: PathBuf,
    names: Vec<String>,
    /// When the last name was added or removed, at the latest: the same names may have come again.
    changed: (i64, i64),
}

impl Listing {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let failed = |error| Error::io(Code::Io, error).at_path(folder);
        let metadata = fs::metadata(folder).map_err(failed)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            // A name that is not UTF-8 cannot be named by an index or by Hugging Face's rules.
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(Self {
            folder: folder.to_path_buf(),
            names,
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    /// Safetensors files in the folder, except those that `used` says belong to the checkpoint.
    pub(crate) fn others(&self, used: impl Fn(&Path) -> bool) -> impl Iterator<Item = PathBuf> {
        self.safetensors()
            .map(|name| self.folder.join(name))
            .filter(move |path| !used(path))
    }

    /// The checkpoint of the folder.
    pub(crate) fn choose(&self, variant: Option<&str>) -> Result<Located> {
        let located = self.located(variant);
        located.map_err(|error| error.at_path(&self.folder))
    }

    /// Whether the folder holds what it held.
    pub(crate) fn still_holds(&self) -> bool {
        Self::read(&self.folder).is_ok_and(|now| now == *self)
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
        let path = |name: &str| self.folder.join(name);
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
            ([], [single]) => Ok(Some(Located::File(path(single)))),
            ([], several) => ambiguous(&mut several.iter()),
            ([index], _) => {
                let same = index_of(index);
                let same = singles.iter().find(|name| Some(*name) == same.as_ref());
                Ok(Some(match same {
                    None => Located::Index(path(index)),
                    Some(single) => Located::Both {
                        index: path(index),
                        single: path(single),
                    },
                }))
            }
            (several, _) => ambiguous(&mut several.iter()),
        }
    }

    /// Those files that are not the checkpoint any more, or not yet, because somebody is saving, or
    /// was when his process died.
    fn overruled(&self, indexes: &[String], singles: &[String]) -> Result<Vec<String>> {
        let names: Vec<&str> = indexes.iter().chain(singles).map(String::as_str).collect();
        let of_indexes = indexes.iter().filter_map(|name| index_of(name));
        let checkpoints: BTreeSet<String> = of_indexes.chain(singles.iter().cloned()).collect();
        let mut overruled = Vec::new();
        for single in checkpoints {
            if !self.has(&Journal::name(&single)) {
                continue;
            }
            let journal = match Journal::read(&self.folder, &single) {
                // There is no doubt which file is meant.
                Err(_) if names.len() < 2 => None,
                journal => journal?,
            };
            if let Some(journal) = journal {
                overruled.extend(journal.overruled(&self.folder, &names)?);
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
        let folder = PathBuf::new();
        let changed = (0, 0);
        let listing = Listing {
            folder,
            names,
            changed,
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
