//! What the Python writers made of the same tensors, byte for byte: `tests/python/save_oracle.py`
//! wrote what goes in and comes out.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::sharding::{Sized, plan};
use super::ties::{Resolved, resolve};
use super::{SaveTensor, ShardSize, Sharding, Ties};
use crate::checkpoint::Index;
use crate::checkpoint::dialect::{Dialect, IndexContents, Layout, header_metadata, index_bytes};
use crate::checkpoint::file_names::{Names, Place};
use crate::format::dtype::Dtype;
use crate::format::write::tests::with_sorted_metadata;
use crate::format::write::{DataAlignment, NewHeader, NewTensor};
use crate::limits::Limits;

fn fixtures() -> PathBuf {
    let folder = env::var_os("SAFESHARD_FIXTURES")
        .expect("SAFESHARD_FIXTURES is not set: run the tests with `cargo xtask test`");
    Path::new(&folder).join("save")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

// ---- plans and sizes

#[test]
fn plans_and_file_names_are_those_of_huggingface_hub() {
    let cases = read_json(&fixtures().join("plans.json"));
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 600);
    let names = Names::new("model", None).unwrap();
    for case in cases {
        let sizes = case["sizes"].as_array().unwrap();
        let tensors: Vec<_> = sizes.iter().map(|size| sized("", size)).collect();
        let max = ShardSize::new(case["max"].as_u64().unwrap()).unwrap();
        let shards = plan(&tensors, max, &Sharding::Greedy).unwrap();
        if sizes.is_empty() {
            assert_eq!(shards, [[0; 0]], "hub writes nothing, we an empty file");
            continue;
        }
        let theirs: Vec<Vec<usize>> = serde_json::from_value(case["shards"].clone()).unwrap();
        assert_eq!(shards, theirs, "{sizes:?} in {max}");
        let ends = match shards.len() {
            1 => [names.single(), names.single()],
            of => [1, of].map(|number| {
                names.shard(Place {
                    generation: 1,
                    of,
                    number,
                })
            }),
        };
        assert_eq!(case["ends"], Value::from(&ends[..]));
    }
}

#[test]
fn sizes_are_read_as_by_huggingface_hub_but_exactly() {
    let cases = read_json(&fixtures().join("sizes.json"));
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 500);
    for case in cases {
        let size: ShardSize = text(&case["text"]).parse().unwrap();
        assert_eq!(size.bytes(), case["exact"].as_u64().unwrap(), "{case}");
        // Floats may fall short of a whole number, and then a byte is cut off.
        let theirs = case["hub"].as_u64().unwrap();
        assert!(size.bytes().abs_diff(theirs) <= 1, "{case}");
    }
}

// ---- whole checkpoints

#[test]
fn files_and_indexes_are_those_of_the_python_writers() {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let folder = entry.unwrap().path();
        if folder.is_dir() {
            let case = Case::read(&folder);
            *seen
                .entry(text(&case.input["dialect"]).to_owned())
                .or_insert(0) += 1;
            case.compare();
        }
    }
    let seen: Vec<_> = seen
        .iter()
        .map(|(name, count)| (name.as_str(), *count))
        .collect();
    assert_eq!(seen, [("dcp", 2), ("hub", 10), ("transformers", 7)]);
}

struct Case {
    name: String,
    input: Value,
    /// The safetensors files and the index, as their writer left them.
    written: BTreeMap<String, Vec<u8>>,
}

impl Case {
    fn read(folder: &Path) -> Self {
        let files = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let files = files.filter(|path| name(path).contains(".safetensors"));
        Self {
            name: name(folder),
            input: read_json(&folder.join("input.json")),
            written: files
                .map(|path| (name(&path), fs::read(path).unwrap()))
                .collect(),
        }
    }

    fn compare(&self) {
        let dialect = match text(&self.input["dialect"]) {
            "hub" => Dialect::Hub,
            "transformers" => Dialect::Transformers,
            "dcp" => Dialect::Dcp,
            other => panic!("{other}"),
        };
        let memories = self.memories();
        let tensors = self.tensors(&memories);
        let metadata = pairs(&self.input["metadata"], |value| text(value).to_owned());
        let extra = pairs(&self.input["index_metadata"], with_floats);
        let names = Names::new("model", self.input["variant"].as_str()).unwrap();

        let Resolved { stored, aliases } = resolve(&tensors, Ties::Dedup).unwrap();
        let stored: Vec<_> = stored
            .iter()
            .map(|position| &tensors[position as usize])
            .collect();
        let sizes = stored.iter().map(|tensor| Sized {
            name: &tensor.name,
            bytes: tensor.data.byte_len().unwrap(),
        });
        let sizes: Vec<_> = sizes.collect();
        let (max, sharding) = self.sharding();
        let shards = plan(&sizes, max, &sharding).unwrap();
        let layout = match shards.len() {
            1 => Layout::Single,
            _ => Layout::Sharded,
        };

        let mut files = BTreeMap::new();
        let mut listed = Vec::new();
        for (number, shard) in shards.iter().enumerate() {
            let file = match layout {
                Layout::Single => names.single(),
                Layout::Sharded => names.shard(Place {
                    generation: 1,
                    of: shards.len(),
                    number: number + 1,
                }),
            };
            let shard: Vec<_> = shard.iter().map(|&position| stored[position]).collect();
            let header = header_metadata(dialect, &metadata, &aliases, layout).unwrap();
            files.insert(file.clone(), file_bytes(&shard, &header));
            listed.push((
                file,
                shard.iter().map(|tensor| tensor.name.as_str()).collect(),
            ));
        }
        if layout == Layout::Sharded {
            let contents = IndexContents {
                total_size: sizes.iter().map(|tensor| tensor.bytes).sum(),
                shards: listed,
                metadata: &metadata,
                extra: &extra,
                aliases: &aliases,
            };
            let index = index_bytes(dialect, &contents).unwrap();
            self.reread(dialect, &index, contents);
            files.insert(names.index(), index);
        }
        self.same_files(dialect, &files);
    }

    fn same_files(&self, dialect: Dialect, ours: &BTreeMap<String, Vec<u8>>) {
        let case = &self.name;
        assert!(
            ours.keys().eq(self.written.keys()),
            "{case}: {:?}",
            ours.keys()
        );
        for (name, theirs) in &self.written {
            if name.ends_with(".json") {
                same_lines(&format!("{case}: {name}"), &ours[name], theirs);
            } else if dialect != Dialect::Dcp {
                // torch's headers are its own: metadata for its own reader, or no padding.
                assert_eq!(ours[name], with_sorted_metadata(theirs), "{case}: {name}");
            }
        }
    }

    /// An index that is read and written again stays as it was, whoever wrote it.
    fn reread(&self, dialect: Dialect, index: &[u8], contents: IndexContents<'_>) {
        let read = Index::parse(index, Path::new(""), &Limits::default()).unwrap();
        let aliases: BTreeMap<_, _> = contents.aliases.iter().cloned().collect();
        assert_eq!(read.aliases, aliases, "{}", self.name);
        let metadata = read.metadata().iter();
        let extra: Vec<_> = metadata
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let again = IndexContents {
            metadata: &[],
            extra: &extra,
            ..contents
        };
        same_lines(&self.name, &index_bytes(dialect, &again).unwrap(), index);
    }

    /// The bytes of each memory, from the file that holds one of its tensors.
    fn memories(&self) -> HashMap<u64, Vec<u8>> {
        let mut memories = HashMap::new();
        let files = self
            .written
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors"));
        for (_, bytes) in files {
            let file = SafeTensors::deserialize(bytes).unwrap();
            for tensor in self.input["tensors"].as_array().unwrap() {
                if let Ok(view) = file.tensor(text(&tensor["name"])) {
                    memories.insert(tensor["memory"].as_u64().unwrap(), view.data().to_vec());
                }
            }
        }
        memories
    }

    fn tensors<'m>(&self, memories: &'m HashMap<u64, Vec<u8>>) -> Vec<SaveTensor<'m>> {
        let tensors = self.input["tensors"].as_array().unwrap().iter();
        let tensor = |tensor: &Value| {
            let dtype = Dtype::from_name(text(&tensor["dtype"])).unwrap();
            let shape: Vec<u64> = serde_json::from_value(tensor["shape"].clone()).unwrap();
            let bytes = memories[&tensor["memory"].as_u64().unwrap()].as_slice();
            SaveTensor::new(text(&tensor["name"]), dtype, shape, bytes)
        };
        tensors.map(tensor).collect()
    }

    fn sharding(&self) -> (ShardSize, Sharding) {
        match self.input["max_shard_size"].as_str() {
            Some(size) => (size.parse().unwrap(), Sharding::Greedy),
            None => {
                let shards = serde_json::from_value(self.input["shards"].clone()).unwrap();
                (ShardSize::UNLIMITED, Sharding::Explicit(shards))
            }
        }
    }
}

fn file_bytes(tensors: &[&SaveTensor<'_>], metadata: &BTreeMap<&str, &str>) -> Vec<u8> {
    let new = |at: usize| {
        tensors.get(at).map(|tensor| NewTensor {
            name: &tensor.name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
        })
    };
    let header = NewHeader::new(tensors.len(), new, metadata, DataAlignment::Word).unwrap();
    let mut file = header.bytes().to_vec();
    for &position in header.order() {
        let mut write = |bytes: &[u8]| {
            file.extend_from_slice(bytes);
            Ok(())
        };
        tensors[position as usize]
            .data
            .write_to(&mut write)
            .unwrap();
    }
    assert_eq!(file.len() as u64, header.file_len());
    file
}

/// As `assert_eq`, for texts whose difference would be lost in their length.
fn same_lines(what: &str, ours: &[u8], theirs: &[u8]) {
    let [ours, theirs] = [ours, theirs].map(|text| str::from_utf8(text).unwrap());
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs, "{what}");
    }
    assert!(ours == theirs, "{what}: one of them ends earlier");
}

fn sized<'n>(name: &'n str, bytes: &Value) -> Sized<'n> {
    let bytes = bytes.as_u64().unwrap();
    Sized { name, bytes }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn pairs<V>(value: &Value, parse: impl Fn(&Value) -> V) -> Vec<(String, V)> {
    let pairs = value.as_array().unwrap().iter();
    pairs
        .map(|pair| (text(&pair[0]).to_owned(), parse(&pair[1])))
        .collect()
}

/// The value with `{"float": BITS}` as the float itself.
fn with_floats(value: &Value) -> Value {
    match value {
        Value::Array(members) => members.iter().map(with_floats).collect(),
        Value::Object(members) => match members.get("float").and_then(Value::as_str) {
            Some(bits) => f64::from_bits(u64::from_str_radix(bits, 16).unwrap()).into(),
            None => {
                let members = members.iter();
                let members = members.map(|(key, member)| (key.clone(), with_floats(member)));
                Value::Object(members.collect::<Map<_, _>>())
            }
        },
        plain => plain.clone(),
    }
}
