//! Python's torch and numpy, behind pipes: one process for many requests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use safeshard_core::Dtype;
use serde_json::{Map, Value, json};

use crate::case::{Case, Found, Layout, SHARD_BYTES, View};
use crate::framework::{Framework, Refusal, Way};

/// A Python that serves requests as `tests/python/matrix_oracle.py` documents them.
pub(crate) struct Process {
    child: Child,
    requests: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(crate) fn start() -> Self {
        let python = std::env::var_os("SAFESHARD_PYTHON")
            .expect("SAFESHARD_PYTHON is not set: run `cargo xtask test`");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut child = Command::new(python)
            .arg(root.join("tests/python/matrix_oracle.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            requests: child.stdin.take(),
            answers,
            child,
        }
    }

    pub(crate) fn save(
        &mut self,
        framework: Framework,
        case: &Case,
        folder: &Path,
        way: Way,
    ) -> Result<(), Refusal> {
        let tensor = |view: &View| {
            json!({
                "name": view.name,
                "offset": view.offset,
                "dims": view.dims,
                "strides": view.strides,
            })
        };
        let answer = self.ask(&json!({
            "do": "save",
            "framework": name(framework),
            "folder": folder,
            "shard_bytes": (way == Way::Shards).then_some(SHARD_BYTES),
            "dtype": case.dtype.name(),
            "buffer": to_hex(&case.buffer),
            "tensors": case.views.iter().map(tensor).collect::<Vec<_>>(),
        }));
        answer.map(drop)
    }

    pub(crate) fn load(
        &mut self,
        framework: Framework,
        folder: &Path,
    ) -> Result<BTreeMap<String, Found>, Refusal> {
        let answer = self.ask(&json!({
            "do": "load",
            "framework": name(framework),
            "folder": folder,
        }))?;
        let tensors = answer["tensors"].as_object().unwrap();
        let found = tensors.iter().map(|(name, tensor)| {
            let found = Found {
                dtype: tensor["dtype"].as_str().unwrap().to_owned(),
                shape: serde_json::from_value(tensor["shape"].clone()).unwrap(),
                bytes: from_hex(tensor["bytes"].as_str().unwrap()),
            };
            (name.clone(), found)
        });
        Ok(found.collect())
    }

    /// Loads a model with transformers and saves it again.
    pub(crate) fn resave(&mut self, from: &Path, to: &Path, max_shard_size: &str) {
        let request = json!({
            "do": "resave",
            "from": from,
            "to": to,
            "max_shard_size": max_shard_size,
        });
        self.ask(&request).unwrap();
    }

    fn ask(&mut self, request: &Value) -> Result<Map<String, Value>, Refusal> {
        let requests = self.requests.as_mut().unwrap();
        writeln!(requests, "{request}").unwrap();
        let answer = self.answers.next().expect("Python ended").unwrap();
        let answer: Map<String, Value> = serde_json::from_str(&answer).unwrap();
        match (answer.get("error"), answer.get("message")) {
            (Some(Value::String(name)), Some(Value::String(message))) => Err(Refusal {
                name: name.clone(),
                message: message.clone(),
            }),
            _ => Ok(answer),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.requests = None;
        let _ended = self.child.wait();
    }
}

/// What the oracle calls it.
fn name(framework: Framework) -> &'static str {
    match framework {
        Framework::Torch => "torch",
        Framework::Numpy => "numpy",
        other => panic!("{other} is not Python's"),
    }
}

pub(crate) fn torch_refuses_to_save(dtype: Dtype, layout: Layout) -> Option<&'static str> {
    match (dtype, layout) {
        (Dtype::F6E2M3 | Dtype::F6E3M2, _) => Some("AttributeError"),
        (_, Layout::NegativeStrides) if dtype != Dtype::F4 => Some("RuntimeError"),
        // An element of torch's is two of the format's.
        (Dtype::F4, Layout::Scalar | Layout::Fortran | Layout::NegativeStrides) => {
            Some("ValueError")
        }
        _ => None,
    }
}

pub(crate) fn torch_refuses_to_load(dtype: Dtype) -> Option<&'static str> {
    matches!(dtype, Dtype::F6E2M3 | Dtype::F6E3M2).then_some("SafetensorError")
}

pub(crate) fn numpy_refuses_to_save(dtype: Dtype) -> Option<&'static str> {
    numpy_refuses_to_load(dtype).and(Some("TypeError"))
}

/// numpy has none of the small floats; each of them is missed in another way.
pub(crate) fn numpy_refuses_to_load(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::Bf16 => Some("TypeError"),
        Dtype::F6E2M3 | Dtype::F6E3M2 => Some("SafetensorError"),
        _ if dtype.is_float() && dtype.bits() <= 8 => Some("AttributeError"),
        _ => None,
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks_exact(2);
    let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}
