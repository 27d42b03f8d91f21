//! What a pickle says of a tensor, and the tensor that it is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use safeshard_core::{Code, Dtype, Error, Located, ReadAt, Result, SaveTensor};

use super::storage::{Declared, Element, Kind, Reference, Storages, Stored, count};
use super::view::{Change, View};
use crate::options::ImportLimits;
use crate::pickle::{Id, Object, Pickle, Value, Values};

/// Whether a value is a tensor, of a kind that can be read or of another one.
pub(super) fn is_tensor(values: &Values, id: Id) -> bool {
    made_by(values, id).is_some()
}

/// How Python would make a tensor.
enum Maker {
    /// `_rebuild_tensor` and its successors: how many arguments there are at least.
    Rebuild { arguments: usize },
    /// What wraps another tensor: its first argument.
    Wrap,
    /// A function and its arguments are the first and the third argument.
    Subclass,
    /// Something that is no dense tensor.
    Other,
}

fn made_by(values: &Values, id: Id) -> Option<(Maker, &Object)> {
    let object = values.object(id)?;
    Some((maker(values, object.callable)?, object))
}

fn maker(values: &Values, callable: Id) -> Option<Maker> {
    let maker = match values.global(callable)?.path() {
        ("torch._utils", "_rebuild_tensor") => Maker::Rebuild { arguments: 4 },
        ("torch._utils", "_rebuild_tensor_v2") => Maker::Rebuild { arguments: 6 },
        ("torch._utils", "_rebuild_tensor_v3") => Maker::Rebuild { arguments: 7 },
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
        | ("torch.nn.parameter", "Parameter" | "Buffer") => Maker::Wrap,
        ("torch._tensor", "_rebuild_from_type_v2") => Maker::Subclass,
        (
            "torch._utils",
            "_rebuild_qtensor"
            | "_rebuild_sparse_tensor"
            | "_rebuild_sparse_csr_tensor"
            | "_rebuild_nested_tensor"
            | "_rebuild_meta_tensor_no_storage"
            | "_rebuild_wrapper_subclass"
            | "_rebuild_device_tensor_from_numpy"
            | "_rebuild_device_tensor_from_cpu_tensor"
            | "_rebuild_xla_tensor",
        )
        | ("torch.nn.parameter", "UninitializedParameter" | "UninitializedBuffer") => Maker::Other,
        _ => return None,
    };
    Some(maker)
}

/// A view of a storage, as torch describes it.
struct Described {
    reference: Reference,
    /// In elements, of the reference's window.
    offset: u64,
    shape: Vec<u64>,
    /// In elements.
    strides: Vec<u64>,
    dtype: Dtype,
    width: u64,
    conj: bool,
    neg: bool,
}

/// Reads a tensor's description.
fn describe(pickle: &Pickle, id: Id, limits: &ImportLimits) -> Result<Described> {
    /// So often a tensor is wrapped in files that torch writes, and once more.
    const WRAPPED: usize = 4;
    let values = &pickle.values;
    let mut id = id;
    for _ in 0..WRAPPED {
        let Some((made, object)) = made_by(values, id) else {
            break;
        };
        let args = match values.get(object.args) {
            Value::Tuple(args) => &**args,
            _ => &[],
        };
        if !object.items.is_empty() || !object.pairs.is_empty() {
            let error = Error::new(Code::PickleType).at_offset(object.offset);
            return Err(error.found("a tensor that is filled like a dict or a list"));
        }
        match (made, args) {
            (Maker::Rebuild { arguments }, _) => {
                return rebuild(pickle, args, arguments, object.offset, limits);
            }
            (Maker::Wrap, &[tensor, ..]) => id = tensor,
            (Maker::Subclass, &[function, _, arguments, _]) => {
                if let (Some(Maker::Rebuild { arguments: least }), Value::Tuple(args)) =
                    (maker(values, function), values.get(arguments))
                {
                    return rebuild(pickle, args, least, object.offset, limits);
                }
                break;
            }
            _ => break,
        }
    }
    let error = Error::new(Code::TorchTensorKind);
    Err(match made_by(values, id) {
        Some((_, object)) => {
            let error = error.at_offset(object.offset);
            match values.global(object.callable) {
                Some(callable) => error.found(callable),
                None => error,
            }
        }
        None => error.found(values.get(id).kind()),
    })
}

/// Of `(storage, offset, size, stride, requires_grad, hooks, dtype, metadata)`, as far as the function of so
/// many arguments has them.
fn rebuild(
    pickle: &Pickle,
    args: &[Id],
    least: usize,
    at: u64,
    limits: &ImportLimits,
) -> Result<Described> {
    let values = &pickle.values;
    let wrong = |what: &str| {
        Error::new(Code::TorchArguments)
            .at_offset(at)
            .found(format_args!("no {what}"))
    };
    let &[storage, offset, shape, strides, ..] = args else {
        return Err(wrong("storage, offset, size and stride"));
    };
    if args.len() < least {
        return Err(wrong("complete arguments"));
    }
    let Value::Persistent(name) = values.get(storage) else {
        return Err(wrong("storage"));
    };
    let reference = Reference::parse(pickle, *name, at)?;
    let offset = count(values.get(offset)).ok_or_else(|| wrong("offset"))?;
    let counts = |id: Id| -> Option<Vec<u64>> {
        let items = values.sequence(id)?.iter();
        items.map(|&item| count(values.get(item))).collect()
    };
    let (shape, strides) = match (counts(shape), counts(strides)) {
        (Some(shape), Some(strides)) if shape.len() == strides.len() => (shape, strides),
        _ => return Err(wrong("size and stride")),
    };
    if shape.len() as u64 > limits.rank {
        return Err(Error::new(Code::LimitRank)
            .at_offset(at)
            .expected(format_args!("at most {}", limits.rank))
            .found(shape.len()));
    }
    let element = match args.get(6) {
        Some(&dtype) if least == 7 => {
            let dtype = values
                .global(dtype)
                .filter(|global| global.module() == "torch");
            let dtype = dtype.ok_or_else(|| wrong("dtype"))?;
            Element::of_dtype(&dtype.name)
                .ok_or_else(|| Error::new(Code::TorchDtype).at_offset(at).found(dtype))?
        }
        _ => reference.declared.element,
    };
    let dtype = match element.kind {
        Kind::Dense(dtype) => dtype,
        // As torch takes it.
        Kind::Untyped => Dtype::U8,
        Kind::None(name) => return Err(Error::new(Code::TorchDtype).at_offset(at).found(name)),
        Kind::Quantised => {
            let error = Error::new(Code::TorchTensorKind).at_offset(at);
            return Err(error.found("a quantised one"));
        }
    };
    let flags = match args.get(least) {
        Some(&metadata) => flags(values, metadata, at)?,
        None => [false, false],
    };
    let [conj, neg] = flags;
    Ok(Described {
        reference,
        offset,
        shape,
        strides,
        dtype,
        width: element.size,
        conj,
        neg,
    })
}

/// Whether a tensor is to be conjugated, and whether it is to be negated.
fn flags(values: &Values, metadata: Id, at: u64) -> Result<[bool; 2]> {
    let mut flags = [false, false];
    let pairs = match values.get(metadata) {
        Value::Dict(pairs) => pairs,
        Value::None => return Ok(flags),
        other => {
            let error = Error::new(Code::TorchArguments).at_offset(at);
            return Err(error.expected("a dict of flags").found(other.kind()));
        }
    };
    for &(key, value) in pairs {
        let is_set = match values.get(value) {
            Value::Bool(is_set) => *is_set,
            Value::None => false,
            _ => true,
        };
        match values.text(key) {
            Some("conj") => flags[0] = is_set,
            Some("neg") => flags[1] = is_set,
            _ if !is_set => {}
            key => {
                let error = Error::new(Code::TorchTensorKind).at_offset(at);
                let key = key.unwrap_or("something that is no text");
                return Err(error.found(format_args!("one with the flag `{key}`")));
            }
        }
    }
    Ok(flags)
}

/// Makes the tensors of a file, and keeps what they share.
pub(super) struct Tensors<'p> {
    pickle: &'p Pickle,
    storages: &'p dyn Storages,
    limits: &'p ImportLimits,
    /// One key means one storage.
    known: HashMap<String, (Declared, Stored)>,
    /// Views that were made, so that tied tensors have one source.
    views: HashMap<ViewKey, Arc<dyn ReadAt>>,
    /// By how many bytes tensors are larger than their storages, all together.
    expansion: u64,
}

/// What makes two views the same.
#[derive(PartialEq, Eq, Hash)]
struct ViewKey {
    start: u64,
    shape: Vec<u64>,
    strides: Vec<u64>,
    width: u64,
    change: Change,
}

impl<'p> Tensors<'p> {
    pub(super) fn new(
        pickle: &'p Pickle,
        storages: &'p dyn Storages,
        limits: &'p ImportLimits,
    ) -> Self {
        Self {
            pickle,
            storages,
            limits,
            known: HashMap::new(),
            views: HashMap::new(),
            expansion: 0,
        }
    }

    /// The tensor that a value is, under a name.
    ///
    /// # Errors
    /// With the name: `torch-…`, `storage-…`, `limit-expansion`, `limit-rank`, `pickle-…`, `zip-method`.
    pub(super) fn make(&mut self, name: String, id: Id) -> Result<SaveTensor<'static>> {
        let described = describe(self.pickle, id, self.limits);
        let made = described.and_then(|described| self.lay_out(&name, described));
        made.map_err(|error| error.in_tensor(name).at_path(self.storages.path()))
    }

    fn lay_out(&mut self, name: &str, described: Described) -> Result<SaveTensor<'static>> {
        let Described {
            reference,
            offset,
            shape,
            strides,
            dtype,
            width,
            conj,
            neg,
        } = described;
        let saved_shape = match dtype {
            Dtype::F4 => with_halves(&shape)?,
            _ => shape.clone(),
        };
        if shape.contains(&0) {
            return Ok(SaveTensor::new(name, dtype, saved_shape, Vec::new()));
        }
        let stored = self.stored(&reference.declared)?;
        let element = reference.declared.element;
        let window = [reference.window.start, reference.window.end];
        let [first, end] = window.map(|place| place.saturating_mul(element.size));
        let start = offset
            .checked_mul(width)
            .and_then(|start| start.checked_add(first));
        let last = last_element(&shape, &strides).and_then(|last| last.checked_mul(width));
        let reach = start
            .zip(last)
            .and_then(|(start, last)| start.checked_add(last));
        let reach = reach.and_then(|last| last.checked_add(width));
        let (Some(start), Some(_)) = (start, reach.filter(|reach| *reach <= end)) else {
            return Err(Error::new(Code::StorageRange)
                .expected(format_args!("{} bytes", end.saturating_sub(first)))
                .found(format_args!(
                    "shape {shape:?}, strides {strides:?}, from element {offset} on"
                )));
        };
        let len = dtype.byte_len(&saved_shape);
        let len = len.ok_or_else(|| Error::new(Code::ShapeOverflow))?;
        self.expand(len.saturating_sub(end - first))?;
        let change = Change::new(dtype, width, self.storages.is_big_endian(), conj, neg);
        let change = change.ok_or_else(|| {
            let error = Error::new(Code::TorchTensorKind);
            error.found(format_args!("one of {dtype} with its sign changed"))
        })?;
        let path = self.storages.path().to_path_buf();
        if change.is_none() && is_contiguous(&shape, &strides) {
            let start = stored.range.start + start;
            let data = Located::new(stored.source, path, start..start + len);
            return Ok(SaveTensor::new(name, dtype, saved_shape, data));
        }
        let view = View {
            // Those of one element are not used.
            strides: strides
                .iter()
                .map(|stride| stride.saturating_mul(width))
                .collect(),
            shape,
            stored,
            start,
            width,
            change,
        };
        let key = ViewKey {
            start: view.stored.range.start + view.start,
            shape: view.shape.clone(),
            strides: view.strides.clone(),
            width,
            change,
        };
        let source = self.views.entry(key).or_insert_with(|| Arc::new(view));
        let data = Located::new(source.clone(), path, 0..len);
        Ok(SaveTensor::new(name, dtype, saved_shape, data))
    }

    fn stored(&mut self, declared: &Declared) -> Result<Stored> {
        match self.known.entry(declared.key.clone()) {
            Entry::Occupied(known) if known.get().0 == *declared => Ok(known.get().1.clone()),
            Entry::Occupied(_) => {
                Err(Error::new(Code::StorageDtype).found(format_args!("`{}`", declared.key)))
            }
            Entry::Vacant(new) => {
                let stored = self.storages.find(declared)?;
                Ok(new.insert((declared.clone(), stored)).1.clone())
            }
        }
    }

    fn expand(&mut self, bytes: u64) -> Result<()> {
        self.expansion = self.expansion.saturating_add(bytes);
        if self.expansion <= self.limits.expansion {
            return Ok(());
        }
        Err(Error::new(Code::LimitExpansion)
            .expected(format_args!("at most {} bytes", self.limits.expansion))
            .found(self.expansion))
    }
}

/// The shape of a tensor whose elements are two numbers each.
fn with_halves(shape: &[u64]) -> Result<Vec<u64>> {
    let mut shape = shape.to_vec();
    let doubled = shape.last_mut().and_then(|last| {
        *last = last.checked_mul(2)?;
        Some(())
    });
    match doubled {
        Some(()) => Ok(shape),
        None => {
            Err(Error::new(Code::TorchDtype).found("two numbers of 4 bits without a dimension"))
        }
    }
}

/// How far from the first element the last one is, in elements of the storage.
fn last_element(shape: &[u64], strides: &[u64]) -> Option<u64> {
    let mut dims = shape.iter().zip(strides);
    dims.try_fold(0u64, |last, (&count, &stride)| {
        last.checked_add(count.saturating_sub(1).checked_mul(stride)?)
    })
}

fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut step = 1u64;
    let mut dims = shape.iter().zip(strides).rev();
    dims.all(|(&count, &stride)| {
        let fits = count == 1 || stride == step;
        step = step.saturating_mul(count);
        fits
    })
}
