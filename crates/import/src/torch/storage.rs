//! Storages: the stretches of bytes that torch's tensors are views of.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safeshard_core::{Code, Dtype, Error, ReadAt, Result};

use crate::pickle::{Id, Pickle, Value};

/// What a storage or a tensor is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Element {
    pub(super) kind: Kind,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// What becomes of an element in a safetensors file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Dense(Dtype),
    /// Bytes: the tensor says what they mean.
    Untyped,
    /// Nothing, by torch's name for it.
    None(&'static str),
    /// Numbers that mean nothing without a scale.
    Quantised,
}

impl Element {
    /// By the name of a storage's class.
    fn of_storage(class: &str) -> Option<Self> {
        let (kind, size) = match class {
            "DoubleStorage" => (Kind::Dense(Dtype::F64), 8),
            "FloatStorage" => (Kind::Dense(Dtype::F32), 4),
            "HalfStorage" => (Kind::Dense(Dtype::F16), 2),
            "BFloat16Storage" => (Kind::Dense(Dtype::Bf16), 2),
            "LongStorage" => (Kind::Dense(Dtype::I64), 8),
            "IntStorage" => (Kind::Dense(Dtype::I32), 4),
            "ShortStorage" => (Kind::Dense(Dtype::I16), 2),
            "CharStorage" => (Kind::Dense(Dtype::I8), 1),
            "ByteStorage" => (Kind::Dense(Dtype::U8), 1),
            "BoolStorage" => (Kind::Dense(Dtype::Bool), 1),
            "ComplexFloatStorage" => (Kind::Dense(Dtype::C64), 8),
            "ComplexDoubleStorage" => (Kind::None("complex128"), 16),
            "ComplexHalfStorage" => (Kind::None("complex32"), 4),
            "UntypedStorage" => (Kind::Untyped, 1),
            "QInt32Storage" => (Kind::Quantised, 4),
            "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => {
                (Kind::Quantised, 1)
            }
            _ => return None,
        };
        Some(Self { kind, size })
    }

    /// By the name of a dtype, as tensors of untyped storages give it.
    pub(super) fn of_dtype(name: &str) -> Option<Self> {
        let (kind, size) = match name {
            "float64" | "double" => (Kind::Dense(Dtype::F64), 8),
            "float32" | "float" => (Kind::Dense(Dtype::F32), 4),
            "float16" | "half" => (Kind::Dense(Dtype::F16), 2),
            "bfloat16" => (Kind::Dense(Dtype::Bf16), 2),
            "int64" | "long" => (Kind::Dense(Dtype::I64), 8),
            "int32" | "int" => (Kind::Dense(Dtype::I32), 4),
            "int16" | "short" => (Kind::Dense(Dtype::I16), 2),
            "int8" => (Kind::Dense(Dtype::I8), 1),
            "uint8" => (Kind::Dense(Dtype::U8), 1),
            "uint16" => (Kind::Dense(Dtype::U16), 2),
            "uint32" => (Kind::Dense(Dtype::U32), 4),
            "uint64" => (Kind::Dense(Dtype::U64), 8),
            "bool" => (Kind::Dense(Dtype::Bool), 1),
            "complex64" | "cfloat" => (Kind::Dense(Dtype::C64), 8),
            "complex128" | "cdouble" => (Kind::None("complex128"), 16),
            "complex32" | "chalf" => (Kind::None("complex32"), 4),
            "float8_e4m3fn" => (Kind::Dense(Dtype::F8E4M3), 1),
            "float8_e5m2" => (Kind::Dense(Dtype::F8E5M2), 1),
            "float8_e4m3fnuz" => (Kind::Dense(Dtype::F8E4M3Fnuz), 1),
            "float8_e5m2fnuz" => (Kind::Dense(Dtype::F8E5M2Fnuz), 1),
            "float8_e8m0fnu" => (Kind::Dense(Dtype::F8E8M0), 1),
            // Two numbers in a byte.
            "float4_e2m1fn_x2" => (Kind::Dense(Dtype::F4), 1),
            _ => return None,
        };
        Some(Self { kind, size })
    }
}

/// What a pickle says of a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) key: String,
    pub(super) element: Element,
    /// How many elements it has.
    pub(super) numel: u64,
}

impl Declared {
    /// How many bytes it has, if that can be.
    pub(super) fn byte_len(&self) -> Option<u64> {
        self.numel.checked_mul(self.element.size)
    }
}

/// A storage as a tensor refers to it.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) declared: Declared,
    /// The elements of it that the tensor's places are relative to; all, except in very old files.
    pub(super) window: Range<u64>,
}

impl Reference {
    /// Reads the name by which a pickle refers to a storage: `("storage", class, key, location, numel)` and,
    /// in legacy files, a view.
    pub(super) fn parse(pickle: &Pickle, name: Id, offset: u64) -> Result<Self> {
        let values = &pickle.values;
        let wrong = |code| Error::new(code).at_offset(offset);
        let (class, key, numel, view) = match values.sequence(name) {
            Some(&[tag, class, key, _, numel]) if values.text(tag) == Some("storage") => {
                (class, key, numel, None)
            }
            Some(&[tag, class, key, _, numel, view]) if values.text(tag) == Some("storage") => {
                (class, key, numel, Some(view))
            }
            _ => {
                let found = values.get(name).kind();
                return Err(wrong(Code::PicklePersistent).found(found));
            }
        };
        let class = values
            .global(class)
            .ok_or_else(|| wrong(Code::PicklePersistent))?;
        let element = match class.path() {
            ("torch" | "torch.cuda" | "torch.storage", name) => Element::of_storage(name),
            _ => None,
        };
        let element = element.ok_or_else(|| wrong(Code::TorchDtype).found(class))?;
        let key = match values.get(key) {
            Value::Text(key) => key.to_string(),
            Value::Int(key) => key.to_string(),
            other => return Err(wrong(Code::PicklePersistent).found(other.kind())),
        };
        let numel = count(values.get(numel)).ok_or_else(|| wrong(Code::TorchArguments))?;
        let window = match view.map(|view| (values.get(view), values.sequence(view))) {
            None | Some((Value::None, _)) => 0..numel,
            Some((_, Some(&[_, start, len]))) => {
                let start = count(values.get(start));
                let end = start.zip(count(values.get(len)));
                let end = end.and_then(|(start, len)| start.checked_add(len));
                match start.zip(end) {
                    Some((start, end)) if end <= numel => start..end,
                    _ => return Err(wrong(Code::StorageRange)),
                }
            }
            Some((other, _)) => return Err(wrong(Code::PicklePersistent).found(other.kind())),
        };
        Ok(Self {
            declared: Declared {
                key,
                element,
                numel,
            },
            window,
        })
    }
}

/// A number of things, none of which is negative.
pub(super) fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Int(count) => u64::try_from(*count).ok(),
        _ => None,
    }
}

/// Where the bytes of a storage lie.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) source: Arc<dyn ReadAt>,
    pub(super) range: Range<u64>,
}

/// The storages of a file.
pub(super) trait Storages {
    /// Where the bytes of a storage lie, which are as many as it declares.
    ///
    /// # Errors
    /// `storage-missing`, `storage-size`, `zip-method`.
    fn find(&self, declared: &Declared) -> Result<Stored>;

    /// What errors call the file.
    fn path(&self) -> &Arc<Path>;

    /// Whether numbers are stored with their most significant byte first.
    fn is_big_endian(&self) -> bool;
}
