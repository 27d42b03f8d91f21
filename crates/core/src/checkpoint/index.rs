//! The index of a sharded checkpoint: `model.safetensors.index.json`.
//!
//! There is no written specification of it; this reads what transformers, huggingface_hub,
//! accelerate and torch's distributed checkpoints write, and refuses what readers disagree on.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::dialect::Dialect;
use super::names::sample;
use super::owners::Owners;
use super::shard_name::ShardName;
use crate::error::{Code, Error, Finding, Result};
use crate::format::header::Prefix;
use crate::format::json::Cursor;
use crate::format::skip::{Keys, Repeats};
use crate::format::sniff::Foreign;
use crate::io::folder::FolderFile;
use crate::io::source::read_vec;
use crate::limits::Limits;

/// Containers that are open around a value of `metadata`.
const OPEN_AROUND: usize = 2;

/// Bytes of a tensor's line in an index, as a rule; a map for so many takes no more than the text.
const USUAL_ENTRY: usize = 96;

/// Which shard holds which tensor.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    /// In its folder.
    pub(super) name: String,
    metadata: Map<String, Value>,
    /// Names of tied tensors that were stored once: `dropped -> kept`.
    pub(crate) aliases: BTreeMap<String, String>,
    pub(crate) shards: Vec<ShardName>,
    /// The checkpoint takes it.
    pub(super) weight_map: Owners,
    pub(crate) warnings: Vec<Finding>,
    /// Whose spelling it is, as far as its last byte shows.
    pub(crate) dialect: Dialect,
}

impl Index {
    /// Reads and parses an index file.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::read(&FolderFile::at(path)?, limits, None)
    }

    /// As [`Index::open`], of a file that is open already; of `only` these tensors and their shards,
    /// but of all if one of the names is unknown, so that it can be said which one may have been meant.
    pub(crate) fn read(
        file: &FolderFile,
        limits: &Limits,
        only: Option<&[String]>,
    ) -> Result<Self> {
        let (source, path) = (&*file.source, &*file.place);
        if source.len() > limits.index_bytes {
            return Err(Error::new(Code::LimitIndex)
                .at_path(path)
                .expected(format_args!("at most {} bytes", limits.index_bytes))
                .found(source.len()));
        }
        let json = read_vec(source, 0, source.len());
        // Other libraries rewrite an index in place.
        let json = json.and_then(|json| source.check_unchanged().map(|()| json));
        let json = json.map_err(|error| error.at_path(path))?;
        let index = match only {
            Some(tensors) => Self::parse_only(&json, path, limits, tensors),
            None => Self::parse(&json, path, limits),
        };
        let start = json.get(..Prefix::WANTED).unwrap_or(&json);
        let named = |index| Self {
            name: file.name.clone(),
            ..index
        };
        index.map(named).map_err(|error| {
            let error = Foreign::of(start).map_or(error, Foreign::error);
            error.at_path(path)
        })
    }

    /// Parses an index; its shards come in the order of their first mention.
    pub(crate) fn parse(json: &[u8], path: &Path, limits: &Limits) -> Result<Self> {
        let index = Self::parse_part(json, path, limits, Part::All)?;
        match index.weight_map.is_empty() {
            true => Err(Error::new(Code::IndexEmpty)),
            false => Ok(index),
        }
    }

    /// Checks an index as [`Index::parse`] does, but keeps nothing of it: of a new one, whose tensors have
    /// names that differ.
    pub(crate) fn check(json: &[u8], limits: &Limits) -> Result<()> {
        let index = Self::parse_part(json, Path::new(""), limits, Part::None)?;
        match index.shards.is_empty() {
            true => Err(Error::new(Code::IndexEmpty)),
            false => Ok(()),
        }
    }

    /// Most of the time goes into names that nobody asked for, so they are passed over.
    fn parse_only(json: &[u8], path: &Path, limits: &Limits, tensors: &[String]) -> Result<Self> {
        let part = Self::parse_part(json, path, limits, Part::of(tensors))?;
        if tensors.iter().all(|name| part.weight_map.contains(name)) {
            return Ok(part);
        }
        // An alias, or unknown.
        let mut index = Self::parse(json, path, limits)?;
        index.keep_only(tensors);
        Ok(index)
    }

    fn parse_part(json: &[u8], path: &Path, limits: &Limits, part: Part<'_>) -> Result<Self> {
        if json.starts_with(b"\xef\xbb\xbf") {
            return Err(Error::new(Code::IndexSyntax)
                .at_offset(0)
                .found("a byte order mark")
                .help("save it as UTF-8 without one"));
        }
        let text = std::str::from_utf8(json).map_err(|error| {
            Error::new(Code::IndexSyntax)
                .at_offset(error.valid_up_to() as u64)
                .found("bytes that are not UTF-8")
        })?;
        let mut parser = Parser {
            json: Cursor::new(text, 0, Code::IndexSyntax),
            limits,
            part,
            metadata: None,
            weight_map: None,
            shards: Shards::default(),
            extra_keys: Vec::new(),
        };
        parser.document()?;
        let weight_map = parser
            .weight_map
            .ok_or_else(|| Error::new(Code::IndexNoMap))?;
        let mut warnings = Vec::new();
        let mut warn = |warning: Error| warnings.push(Finding::warning(warning.at_path(path)));
        let metadata = parser.metadata.unwrap_or(Metadata::Not("none"));
        let metadata = match metadata {
            Metadata::Object(metadata) => metadata,
            Metadata::Not(found) => {
                warn(Error::new(Code::IndexMetadata).found(found));
                Map::new()
            }
        };
        if !parser.extra_keys.is_empty() {
            let keys = sample(parser.extra_keys.iter().map(|key| &**key));
            warn(Error::new(Code::IndexExtraKey).found(keys));
        }
        // What names a tensor says nothing of another one; which names do, only the whole map shows.
        let is_whole = matches!(parser.part, Part::All);
        let alias = |(dropped, kept): (&String, &Value)| {
            let kept = kept.as_str()?;
            let is_alias = weight_map.contains(kept) && !weight_map.contains(dropped);
            (is_whole && is_alias).then(|| (dropped.clone(), kept.to_owned()))
        };
        Ok(Self {
            path: path.to_path_buf(),
            name: String::new(),
            aliases: metadata.iter().filter_map(alias).collect(),
            metadata,
            shards: parser.shards.names,
            weight_map,
            warnings,
            dialect: match json.ends_with(b"\n") {
                true => Dialect::Transformers,
                false => Dialect::Hub,
            },
        })
    }

    /// Keeps only these tensors and their shards, or everything if one of the names is unknown.
    fn keep_only(&mut self, tensors: &[String]) {
        let stored = |name: &String| self.aliases.get(name).unwrap_or(name).clone();
        let kept: HashSet<String> = tensors.iter().map(stored).collect();
        if !kept.iter().all(|name| self.weight_map.contains(name)) {
            return;
        }
        let all = std::mem::take(&mut self.weight_map);
        let wanted = || all.iter().filter(|(name, _)| kept.contains(*name));
        let files: BTreeSet<u32> = wanted().map(|(_, file)| file).collect();
        let positions: HashMap<_, _> = files.iter().copied().zip(0..).collect();
        for (name, file) in wanted() {
            let file = positions.get(&file).copied().unwrap_or_default();
            let _each_once = self.weight_map.insert(name, file);
        }
        let names = files
            .iter()
            .filter_map(|&file| self.shards.get(file as usize));
        self.shards = names.cloned().collect();
    }

    /// Where the index is, as it was given; what errors call it, where it is not on a disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `metadata`: `total_size`, `total_parameters`, and for tied tensors `dropped: kept`.
    /// Empty where the index has none.
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// The names of the shards that were opened.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shards.iter().map(ShardName::as_str)
    }
}

/// What is taken from the weight map.
enum Part<'a> {
    All,
    /// What it says of these tensors, in order.
    Of(Vec<&'a str>),
    /// Only which shards there are.
    None,
}

impl<'a> Part<'a> {
    fn of(tensors: &'a [String]) -> Self {
        let mut names: Vec<&str> = tensors.iter().map(String::as_str).collect();
        names.sort_unstable();
        Self::Of(names)
    }

    fn has(&self, tensor: &str) -> bool {
        match self {
            Self::All | Self::None => true,
            Self::Of(names) => names.binary_search(&tensor).is_ok(),
        }
    }
}

struct Parser<'a> {
    json: Cursor<'a>,
    limits: &'a Limits,
    part: Part<'a>,
    metadata: Option<Metadata>,
    weight_map: Option<Owners>,
    shards: Shards,
    extra_keys: Vec<Cow<'a, str>>,
}

enum Metadata {
    Object(Map<String, Value>),
    /// What is there instead.
    Not(&'static str),
}

impl Parser<'_> {
    fn document(&mut self) -> Result<()> {
        if self.json.peek() != Some(b'{') {
            return Err(self.json.unexpected("an object"));
        }
        self.json.expect(b'{')?;
        let mut first = true;
        while let Some((key, offset)) = self.json.next_key(&mut first)? {
            match &*key {
                "weight_map" if self.weight_map.is_some() => return Err(twice(&key, offset)),
                "weight_map" => self.weight_map()?,
                "metadata" if self.metadata.is_some() => return Err(twice(&key, offset)),
                "metadata" => self.metadata = Some(self.metadata()?),
                _ => {
                    // Nothing is read from it, so it may repeat its keys.
                    self.skip(Repeats::Allow, u64::MAX)?;
                    self.extra_keys.push(key);
                }
            }
        }
        match self.json.peek() {
            None => Ok(()),
            Some(_) => Err(self.json.unexpected("nothing behind the index")),
        }
    }

    /// Within limits, because values take many times the memory of their text.
    fn metadata(&mut self) -> Result<Metadata> {
        let instead = match self.json.peek() {
            Some(b'{') => return self.metadata_object().map(Metadata::Object),
            Some(b'n') => "null",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            _ => "a number",
        };
        self.skip(Repeats::Allow, u64::MAX)?;
        Ok(Metadata::Not(instead))
    }

    fn metadata_object(&mut self) -> Result<Map<String, Value>> {
        self.json.expect(b'{')?;
        let start = self.json.offset();
        let mut nested_left = self.limits.ignored_bytes;
        let mut metadata = Map::new();
        let mut first = true;
        while let Some((key, offset)) = self.json.next_key(&mut first)? {
            let value = match self.json.peek() {
                Some(b'"') => Value::String(self.json.string()?.into_owned()),
                _ => {
                    let text = self.skip(Repeats::Refuse, nested_left)?;
                    nested_left = nested_left.saturating_sub(text.len() as u64);
                    serde_json::from_str(text).map_err(|error| {
                        let wrong = Error::new(Code::IndexSyntax).at_offset(offset);
                        wrong.found(error)
                    })?
                }
            };
            if self.json.offset() - start > self.limits.metadata_bytes {
                let error = Error::new(Code::LimitMetadata).at_offset(offset);
                return Err(
                    error.expected(format_args!("at most {} bytes", self.limits.metadata_bytes))
                );
            }
            if metadata.contains_key(&*key) {
                return Err(twice(&key, offset));
            }
            metadata.insert(key.into_owned(), value);
        }
        Ok(metadata)
    }

    fn weight_map(&mut self) -> Result<()> {
        if self.json.peek() != Some(b'{') {
            let error = self.json.unexpected("an object for `weight_map`");
            return Err(error.recode(Code::IndexType));
        }
        self.json.expect(b'{')?;
        // Growing would hash every name again, several times.
        let mut map = match &self.part {
            Part::All => Owners::with_room(self.json.rest().len() / USUAL_ENTRY)?,
            Part::Of(_) | Part::None => Owners::default(),
        };
        let mut problems = Vec::new();
        let mut first = true;
        while let Some((tensor, offset)) = self.json.next_key(&mut first)? {
            if tensor.len() as u64 > self.limits.name_bytes {
                return Err(Error::new(Code::LimitName).at_offset(offset));
            }
            if self.json.peek() != Some(b'"') {
                let error = self
                    .json
                    .unexpected("the name of a file")
                    .recode(Code::IndexType);
                return Err(error.in_tensor(tensor));
            }
            let name = self.json.string()?;
            if !self.part.has(&tensor) {
                continue;
            }
            let file = match self.shards.position(&name, self.limits) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                Err(error) if error.code() == Code::ShardName => {
                    problems.push(error.in_tensor(tensor).at_offset(offset));
                    continue;
                }
                Err(error) => return Err(error.at_offset(offset)),
            };
            if matches!(self.part, Part::None) {
                continue;
            }
            if map.insert(&tensor, file).is_err() {
                return Err(Error::new(Code::IndexDuplicate)
                    .in_tensor(tensor)
                    .at_offset(offset));
            }
        }
        if !problems.is_empty() {
            return Err(Error::all(problems));
        }
        self.weight_map = Some(map);
        Ok(())
    }

    /// Walks over a value and returns its text.
    fn skip(&mut self, repeats: Repeats, max_len: u64) -> Result<&str> {
        let start = self.json.position();
        let mut keys = Keys::new(repeats, usize::MAX);
        self.json.skip_value(OPEN_AROUND, &mut keys, max_len)?;
        Ok(self.json.since(start))
    }
}

fn twice(key: &str, offset: u64) -> Error {
    Error::new(Code::DuplicateKey)
        .at_offset(offset)
        .found(format_args!("`{key}` twice"))
}

/// The names of shards, each once, in the order of their first mention.
#[derive(Default)]
struct Shards {
    names: Vec<ShardName>,
    /// Those that were refused have no position.
    positions: HashMap<String, Option<u32>>,
    /// The position found last: neighbours in an index are mostly in one shard.
    last: Option<u32>,
}

impl Shards {
    /// The position of a name; `None` if it was refused before, because an error for each of its
    /// tensors would take more memory than any limit allows.
    fn position(&mut self, name: &str, limits: &Limits) -> Result<Option<u32>> {
        let last = self.last.and_then(|last| self.names.get(last as usize));
        if last.is_some_and(|last| last.as_str() == name) {
            return Ok(self.last);
        }
        if let Some(&position) = self.positions.get(name) {
            self.last = position;
            return Ok(position);
        }
        if self.positions.len() as u64 >= limits.shards.min(u64::from(u32::MAX)) {
            let error = Error::new(Code::LimitShards);
            return Err(error.expected(format_args!("at most {}", limits.shards)));
        }
        let position = ShardName::parse(name).map(|shard| {
            self.names.push(shard);
            self.names.len() as u32 - 1
        });
        self.positions
            .insert(name.to_owned(), position.as_ref().ok().copied());
        position.map(Some)
    }
}
