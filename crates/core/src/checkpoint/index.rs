//! The index of a sharded checkpoint: `model.safetensors.index.json`.
//!
//! There is no written specification of it; this reads what transformers, huggingface_hub,
//! accelerate and torch's distributed checkpoints write, and refuses what readers disagree on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::shard_name::ShardName;
use crate::format::json::{Cursor, Keys, Repeats};
use crate::io::source::{FileSource, ReadAt, read_vec};
use crate::{Code, Error, Finding, Limits, Result};

/// Containers open around the value of a key of the index.
const OPEN_IN_INDEX: usize = 1;

/// Which shard holds which tensor.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    metadata: Map<String, Value>,
    pub(crate) shards: Vec<ShardName>,
    /// Positions in `shards`; the checkpoint takes it.
    pub(crate) weight_map: HashMap<String, u32>,
    pub(crate) warnings: Vec<Finding>,
}

impl Index {
    /// Reads and parses an index file.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let file = FileSource::open(path)?;
        if file.len() > limits.index_bytes {
            return Err(Error::new(Code::LimitIndex)
                .at_path(path)
                .expected(format_args!("at most {} bytes", limits.index_bytes))
                .found(file.len()));
        }
        let json = read_vec(&file, 0, file.len())?;
        Self::parse(&json, path, limits).map_err(|error| error.at_path(path))
    }

    /// Parses an index; its shards come in natural order.
    pub(crate) fn parse(json: &[u8], path: &Path, limits: &Limits) -> Result<Self> {
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
            metadata: None,
            weight_map: None,
            shards: Shards::default(),
            warnings: Vec::new(),
        };
        parser.document()?;
        let weight_map = parser
            .weight_map
            .ok_or_else(|| Error::new(Code::IndexNoMap))?;
        if weight_map.is_empty() {
            return Err(Error::new(Code::IndexEmpty));
        }
        let metadata = parser.metadata.unwrap_or_else(|| {
            let warning = Error::new(Code::IndexMetadata).at_path(path).found("none");
            parser.warnings.push(Finding::warning(warning));
            Map::new()
        });
        Ok(Self {
            path: path.to_path_buf(),
            metadata,
            shards: parser.shards.names,
            weight_map,
            warnings: parser.warnings,
        })
    }

    /// Where the index is, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `metadata`: `total_size`, `total_parameters`, and for tied tensors `dropped: kept`.
    /// Empty where the index has none.
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// The shards' names.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shards.iter().map(ShardName::as_str)
    }
}

struct Parser<'a> {
    json: Cursor<'a>,
    limits: &'a Limits,
    metadata: Option<Map<String, Value>>,
    weight_map: Option<HashMap<String, u32>>,
    shards: Shards,
    warnings: Vec<Finding>,
}

impl Parser<'_> {
    fn document(&mut self) -> Result<()> {
        if self.json.peek() != Some(b'{') {
            return Err(self.json.unexpected("an object"));
        }
        self.json.expect(b'{')?;
        let mut seen_metadata = false;
        let mut first = true;
        while let Some((key, offset)) = self.json.next_key(&mut first)? {
            match &*key {
                "weight_map" if self.weight_map.is_some() => return Err(twice(&key, offset)),
                "weight_map" => self.weight_map()?,
                "metadata" if seen_metadata => return Err(twice(&key, offset)),
                "metadata" => {
                    seen_metadata = true;
                    self.metadata()?;
                }
                _ => {
                    let warning = Error::new(Code::IndexExtraKey).at_offset(offset);
                    let warning = warning.found(format_args!("`{key}`"));
                    self.warnings.push(Finding::warning(warning));
                    self.skip()?;
                }
            }
        }
        match self.json.peek() {
            None => Ok(()),
            Some(_) => Err(self.json.unexpected("nothing behind the index")),
        }
    }

    fn metadata(&mut self) -> Result<()> {
        let first = self.json.peek();
        let (start, offset) = (self.json.position(), self.json.offset());
        self.skip()?;
        if first != Some(b'{') {
            return Ok(());
        }
        let parsed = serde_json::from_str(self.json.since(start));
        self.metadata = Some(
            parsed.map_err(|error| Error::new(Code::IndexSyntax).at_offset(offset).found(error))?,
        );
        Ok(())
    }

    fn weight_map(&mut self) -> Result<()> {
        if self.json.peek() != Some(b'{') {
            let error = self.json.unexpected("an object for `weight_map`");
            return Err(error.recode(Code::IndexType));
        }
        self.json.expect(b'{')?;
        let mut map = HashMap::new();
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
            let shard = match self.shards.position(&name, self.limits) {
                Ok(shard) => shard,
                Err(error) if error.code() == Code::ShardName => {
                    // One such entry a name is enough to say so.
                    problems.push(error.in_tensor(tensor).at_offset(offset));
                    continue;
                }
                Err(error) => return Err(error.at_offset(offset)),
            };
            if map.insert(tensor.to_string(), shard).is_some() {
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

    fn skip(&mut self) -> Result<()> {
        let mut keys = Keys::new(Repeats::Refuse, usize::MAX);
        self.json.skip_value(OPEN_IN_INDEX, &mut keys, u64::MAX)
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
    positions: HashMap<String, u32>,
}

impl Shards {
    fn position(&mut self, name: &str, limits: &Limits) -> Result<u32> {
        if let Some(&position) = self.positions.get(name) {
            return Ok(position);
        }
        let shard = ShardName::parse(name)?;
        if self.names.len() as u64 >= limits.shards.min(u64::from(u32::MAX)) {
            let error = Error::new(Code::LimitShards);
            return Err(error.expected(format_args!("at most {}", limits.shards)));
        }
        let position = self.names.len() as u32;
        self.names.push(shard);
        self.positions.insert(name.to_owned(), position);
        Ok(position)
    }
}
