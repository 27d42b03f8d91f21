//! What is in a checkpoint, for programs.

use std::collections::BTreeMap;

use safeshard_core::{Checkpoint, CheckpointKind, ShardFile};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Tensor, View};
use crate::findings::JsonFinding;

/// The document; its form is a promise, and `version` would change with it.
#[derive(Serialize)]
pub(super) struct Inspection<'c> {
    version: u32,
    path: String,
    kind: &'static str,
    totals: Totals,
    files: Vec<File<'c>>,
    index: Option<Index<'c>>,
    aliases: &'c BTreeMap<String, String>,
    #[serde(serialize_with = "tensors")]
    tensors: &'c [Tensor<'c>],
    quantization: Option<Quantization<'c>>,
    findings: Vec<JsonFinding<'c>>,
}

#[derive(Serialize)]
struct Totals {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct File<'c> {
    name: &'c str,
    bytes: u64,
    header_bytes: u64,
    tensors: usize,
    #[serde(serialize_with = "metadata")]
    metadata: &'c ShardFile,
}

#[derive(Serialize)]
struct Index<'c> {
    name: String,
    metadata: &'c Map<String, Value>,
}

/// What is quantised, where anything is.
#[derive(Serialize)]
struct Quantization<'c> {
    method: Option<&'c str>,
    schemes: BTreeMap<&'static str, u64>,
    tensors: Vec<Quantized<'c>>,
}

#[derive(Serialize)]
struct Quantized<'c> {
    name: &'c str,
    scheme: &'static str,
    companions: Vec<&'c str>,
    missing: &'c [String],
}

#[derive(Serialize)]
struct JsonTensor<'c> {
    name: &'c str,
    dtype: &'c str,
    shape: &'c [u64],
    bytes: u64,
    file: &'c str,
    offsets: [u64; 2],
}

impl<'c> Inspection<'c> {
    pub(super) fn of(view: &'c View<'c>) -> Self {
        let checkpoint = view.checkpoint;
        let totals = view.totals();
        let files = checkpoint.files().iter().map(|file| File {
            name: file.name(),
            bytes: file.on_disk().len(),
            header_bytes: file.header().header_len(),
            tensors: file.header().len(),
            metadata: file,
        });
        let index = checkpoint.index().map(|index| {
            let name = index.path().file_name().unwrap_or_default();
            Index {
                name: name.to_string_lossy().into_owned(),
                metadata: index.metadata(),
            }
        });
        let findings = view.findings.iter();
        Self {
            version: 1,
            path: view.path.to_string_lossy().into_owned(),
            kind: match checkpoint.kind() {
                CheckpointKind::File => "file",
                CheckpointKind::Index => "index",
                CheckpointKind::Files => "files",
            },
            totals: Totals {
                tensors: totals.tensors,
                parameters: totals.parameters,
                bytes: totals.bytes,
            },
            files: files.collect(),
            index,
            aliases: checkpoint.aliases(),
            tensors: &view.tensors,
            quantization: Quantization::of(checkpoint),
            findings: findings
                .map(|finding| JsonFinding::new(finding, view.path))
                .collect(),
        }
    }
}

impl<'c> Quantization<'c> {
    fn of(checkpoint: &'c Checkpoint) -> Option<Self> {
        let found = checkpoint.quantization();
        if found.is_empty() {
            return None;
        }
        let schemes = found.counts().into_iter();
        let tensors = found.tensors.iter().map(|weight| Quantized {
            name: &weight.name,
            scheme: weight.scheme.name(),
            companions: weight
                .companions
                .iter()
                .map(|it| it.name.as_str())
                .collect(),
            missing: &weight.missing,
        });
        Some(Self {
            method: found.method.as_deref(),
            schemes: schemes
                .map(|(scheme, count)| (scheme.name(), count))
                .collect(),
            tensors: tensors.collect(),
        })
    }
}

fn tensors<S: Serializer>(tensors: &[Tensor<'_>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(tensors.iter().map(|tensor| JsonTensor {
        name: tensor.name,
        dtype: tensor.dtype,
        shape: tensor.shape,
        bytes: tensor.byte_len(),
        file: tensor.file,
        offsets: [tensor.start, tensor.end],
    }))
}

fn metadata<S: Serializer>(file: &ShardFile, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(file.header().metadata())
}
