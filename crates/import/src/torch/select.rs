//! Which of the values of a pickle are the tensors that are wanted, and under which names.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;

use safeshard_core::{Code, Error, Result};

use super::tensor::is_tensor;
use crate::options::{ImportLimits, ImportOptions};
use crate::pickle::{Global, Id, Pickle, Value, Values};

/// Keys under which people keep the weights, beside other things.
const WELL_KNOWN: [&str; 13] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "params_ema",
    "params",
    "ema_state_dict",
    "ema",
    "net",
    "network",
    "generator",
    "weights",
];

/// The tensors that are wanted.
#[derive(Debug)]
pub(super) struct Selected {
    pub(super) tensors: Vec<(String, Id)>,
    /// Keys beside the one that was taken that hold tensors too.
    pub(super) left_out: Vec<String>,
    /// Callables of objects of which nothing was taken.
    pub(super) strangers: BTreeSet<String>,
}

/// Finds the tensors that are wanted.
///
/// # Errors
/// `key-missing`, `ambiguous-key`, `key-type`, `name-collision`, `limit-tensors`, `limit-pickle`.
pub(super) fn select(pickle: &Pickle, options: &ImportOptions) -> Result<Selected> {
    let tree = Tree::new(pickle);
    let (root, left_out) = match &options.key {
        Some(key) => (tree.at_key(pickle.top, key)?, Vec::new()),
        None => tree.well_known(pickle.top)?,
    };
    let tensors = match is_tensor(tree.values, root) {
        true => vec![("tensor".to_owned(), root)],
        false => tree.flatten(root, &options.limits)?,
    };
    let mut names = HashSet::new();
    match tensors.iter().find(|(name, _)| !names.insert(&**name)) {
        Some((name, _)) => Err(Error::new(Code::NameCollision).in_tensor(name).help(
            "readers disagree on which one counts: take another part of the file by its key",
        )),
        None => Ok(Selected {
            tensors,
            left_out,
            strangers: tree.strangers(),
        }),
    }
}

/// The values of a pickle, as what leads to tensors.
struct Tree<'p> {
    values: &'p Values,
    /// Which values are tensors or lead to one.
    holds: Vec<bool>,
}

/// Under what something is kept.
#[derive(Clone, Copy)]
enum Key<'p> {
    Name(&'p str),
    Number(i64),
    /// Something else, by what it is.
    Other(&'static str),
}

impl Key<'_> {
    fn is(&self, step: &str) -> bool {
        match self {
            Self::Name(name) => *name == step,
            Self::Number(number) => step.parse() == Ok(*number),
            Self::Other(_) => false,
        }
    }
}

impl<'p> Tree<'p> {
    /// Marks what leads to tensors from the top, each value once.
    fn new(pickle: &'p Pickle) -> Self {
        let mut tree = Self {
            values: &pickle.values,
            holds: vec![false; pickle.values.len()],
        };
        let mut seen = vec![false; pickle.values.len()];
        let (mut parents, mut tensors, mut open) = (Vec::new(), Vec::new(), vec![pickle.top]);
        while let Some(id) = open.pop() {
            match seen.get_mut(id.position()) {
                Some(seen @ false) => *seen = true,
                _ => continue,
            }
            if is_tensor(tree.values, id) {
                tensors.push(id);
                continue;
            }
            for (_, child) in tree.children(id) {
                if tree.may_hold(child) {
                    parents.push((child, id));
                    open.push(child);
                }
            }
        }
        parents.sort_unstable();
        while let Some(id) = tensors.pop() {
            match tree.holds.get_mut(id.position()) {
                Some(holds @ false) => *holds = true,
                _ => continue,
            }
            let start = parents.partition_point(|(child, _)| *child < id);
            let of_it = parents
                .iter()
                .skip(start)
                .take_while(|(child, _)| *child == id);
            tensors.extend(of_it.map(|(_, parent)| *parent));
        }
        tree
    }

    fn may_hold(&self, id: Id) -> bool {
        matches!(
            self.values.get(id),
            Value::Tuple(_) | Value::List(_) | Value::Dict(_) | Value::Object(_)
        )
    }

    fn holds(&self, id: Id) -> bool {
        self.holds.get(id.position()).copied().unwrap_or_default()
    }

    /// The children that lead to tensors.
    fn holding(&self, id: Id) -> impl Iterator<Item = (Key<'p>, Id)> {
        let children = self.children(id).into_iter();
        children.filter(|(_, child)| self.holds(*child))
    }

    /// What a value holds, in order. A tensor holds nothing.
    fn children(&self, id: Id) -> Vec<(Key<'p>, Id)> {
        let values = self.values;
        if is_tensor(values, id) {
            return Vec::new();
        }
        let numbered = |items: &[Id]| {
            let keys = (0..).map(Key::Number);
            keys.zip(items.iter().copied()).collect::<Vec<_>>()
        };
        let object = match values.get(id) {
            Value::Tuple(items) => return numbered(items),
            Value::List(items) => return numbered(items),
            Value::Dict(pairs) => return self.keyed(pairs),
            Value::Object(object) => object,
            _ => return Vec::new(),
        };
        let mut children = match self.dict_arguments(id) {
            Some(pairs) => self.keyed(&pairs),
            None => match object.state {
                Some(state) => self.of_state(state),
                None => Vec::new(),
            },
        };
        children.extend(self.keyed(&object.pairs));
        children.extend(numbered(&object.items));
        children
    }

    /// Of an object that is a dict, what it was made of; attributes that it has besides are none of its
    /// entries.
    fn dict_arguments(&self, id: Id) -> Option<Vec<(Id, Id)>> {
        let object = self.values.object(id)?;
        let callable = self.values.global(object.callable)?;
        if !is_dict(callable) {
            return None;
        }
        let first = self.values.sequence(object.args).and_then(<[Id]>::first);
        let items = first.and_then(|&items| self.values.sequence(items));
        let pair = |item: &Id| match self.values.sequence(*item) {
            Some(&[key, value]) => Some((key, value)),
            _ => None,
        };
        Some(items.unwrap_or_default().iter().filter_map(pair).collect())
    }

    /// What an object's attributes are: of a module, what `state_dict()` says.
    fn of_state(&self, state: Id) -> Vec<(Key<'p>, Id)> {
        // Attributes, and those with slots.
        let state = match self.values.sequence(state) {
            Some(&[attributes, _]) => attributes,
            _ => state,
        };
        let Value::Dict(attributes) = self.values.get(state) else {
            return Vec::new();
        };
        match self.of_module(attributes) {
            Some(children) => children,
            None => self.keyed(attributes),
        }
    }

    fn of_module(&self, attributes: &[(Id, Id)]) -> Option<Vec<(Key<'p>, Id)>> {
        let attribute = |name| {
            let mut pairs = attributes.iter();
            pairs.find(|(key, _)| self.values.text(*key) == Some(name))
        };
        let table = |name| {
            let (_, table) = attribute(name)?;
            self.dict(*table)
        };
        let (parameters, buffers) = (table("_parameters")?, table("_buffers")?);
        let modules = table("_modules")?;
        let passing = attribute("_non_persistent_buffers_set");
        let passing = passing.and_then(|(_, names)| self.set(*names));
        let passing: HashSet<_> = passing
            .unwrap_or_default()
            .iter()
            .filter_map(|&name| self.values.text(name))
            .collect();
        let is_kept = |key: &Key<'_>| match key {
            Key::Name(name) => !passing.contains(name),
            _ => true,
        };
        let mut children = parameters;
        children.extend(buffers.into_iter().filter(|(key, _)| is_kept(key)));
        children.extend(modules);
        Some(children)
    }

    /// The entries of a dict, whether it is a plain one or one of `collections`.
    fn dict(&self, id: Id) -> Option<Vec<(Key<'p>, Id)>> {
        match self.values.get(id) {
            Value::Dict(pairs) => Some(self.keyed(pairs)),
            Value::Object(object) => {
                let mut pairs = self.dict_arguments(id)?;
                pairs.extend(&object.pairs);
                Some(self.keyed(&pairs))
            }
            _ => None,
        }
    }

    /// The elements of a set, which protocols before 4 make of a list.
    fn set(&self, id: Id) -> Option<&'p [Id]> {
        match self.values.get(id) {
            Value::Object(object) => {
                let first = self.values.sequence(object.args)?.first();
                self.values.sequence(*first?)
            }
            _ => self.values.sequence(id),
        }
    }

    fn keyed(&self, pairs: &[(Id, Id)]) -> Vec<(Key<'p>, Id)> {
        let key = |key: Id| match self.values.get(key) {
            Value::Text(name) => Key::Name(name),
            Value::Int(number) => Key::Number(*number),
            other => Key::Other(other.kind()),
        };
        pairs
            .iter()
            .map(|&(name, value)| (key(name), value))
            .collect()
    }

    /// What is under a key.
    fn at_key(&self, top: Id, key: &str) -> Result<Id> {
        if key == "." {
            return Ok(top);
        }
        let mut id = top;
        for step in steps(key) {
            // Of a key that comes twice, Python keeps the last.
            let children: Vec<_> = self.holding(id).collect();
            let mut found = children.iter().filter(|(key, _)| key.is(&step));
            id = match (found.next(), found.next()) {
                (Some((_, child)), None) => *child,
                (Some(_), Some(_)) => {
                    let error = Error::new(Code::NameCollision);
                    return Err(error.found(format_args!("the key `{step}` twice")));
                }
                (None, _) => {
                    return Err(Error::new(Code::KeyMissing)
                        .expected(format_args!("`{key}`"))
                        .found(listed(children.iter().map(|(key, _)| *key))));
                }
            };
        }
        Ok(id)
    }

    /// The top, or what is under the one key of it that is well known; and which other keys hold tensors.
    fn well_known(&self, top: Id) -> Result<(Id, Vec<String>)> {
        let children: Vec<_> = self.holding(top).collect();
        let is_known = |(key, child): &&(Key<'_>, Id)| {
            let is_known = WELL_KNOWN.iter().any(|known| key.is(known));
            is_known && !is_tensor(self.values, *child)
        };
        let mut candidates = children.iter().filter(is_known);
        let Some((_, id)) = candidates.next() else {
            return Ok((top, Vec::new()));
        };
        // One dict under several keys is one.
        if candidates.any(|(_, other)| other != id) {
            let found = children.iter().filter(is_known);
            let sizes = found.map(|(key, id)| {
                let mut text = shown(*key);
                // What they hold, where it is not nested further.
                let tensors = self.holding(*id).count();
                let _infallible = write!(text, " ({tensors} entries)");
                text
            });
            let sizes: Vec<_> = sizes.collect();
            return Err(Error::new(Code::AmbiguousKey).found(sizes.join(", ")));
        }
        let others = children.iter().filter(|(_, other)| other != id);
        Ok((*id, others.map(|(key, _)| shown(*key)).collect()))
    }

    /// Gives every tensor below a value its name.
    fn flatten(&self, root: Id, limits: &ImportLimits) -> Result<Vec<(String, Id)>> {
        struct Open<'p> {
            id: Id,
            children: std::vec::IntoIter<(Key<'p>, Id)>,
            /// How long the name is.
            name: usize,
        }
        let (mut steps, mut bytes) = (0u64, 0u64);
        let most_steps = limits.values.saturating_mul(4);
        let mut open = |id, name| {
            let mut children = self.children(id);
            // What is shared is walked once for each of its names: that must end, however much is shared.
            steps = steps.saturating_add(1 + children.len() as u64);
            if steps > most_steps {
                return Err(too_many("steps on the way to tensors", most_steps));
            }
            children.retain(|(_, child)| self.holds(*child));
            let children = children.into_iter();
            Ok(Open { id, children, name })
        };
        let (mut name, mut tensors) = (String::new(), Vec::new());
        let mut way = vec![open(root, 0)?];
        let mut is_on_the_way = HashSet::from([root]);
        while let Some(last) = way.last_mut() {
            name.truncate(last.name);
            let Some((key, child)) = last.children.next() else {
                is_on_the_way.remove(&last.id);
                way.pop();
                continue;
            };
            // All behind it has a name already.
            if is_on_the_way.contains(&child) {
                continue;
            }
            if !name.is_empty() {
                name.push('.');
            }
            match key {
                Key::Name(key) => name.push_str(key),
                Key::Number(key) => {
                    let _infallible = write!(name, "{key}");
                }
                Key::Other(kind) => {
                    name.pop();
                    return Err(Error::new(Code::KeyType).found(match name.is_empty() {
                        true => format!("{kind} at the top"),
                        false => format!("{kind} under `{name}`"),
                    }));
                }
            }
            if is_tensor(self.values, child) {
                bytes += name.len() as u64;
                if tensors.len() as u64 >= limits.tensors {
                    return Err(Error::new(Code::LimitTensors)
                        .expected(format_args!("at most {}", limits.tensors)));
                }
                if bytes > limits.pickle_bytes {
                    return Err(too_many("bytes of names", limits.pickle_bytes));
                }
                tensors.push((name.clone(), child));
            } else if way.len() as u64 >= limits.depth {
                return Err(too_many("levels", limits.depth));
            } else {
                is_on_the_way.insert(child);
                way.push(open(child, name.len())?);
            }
        }
        Ok(tensors)
    }

    /// Callables of objects that are neither tensors nor lead to one, nor are what is known to hold none.
    fn strangers(&self) -> BTreeSet<String> {
        let callable = |(id, value): (Id, &Value)| {
            let Value::Object(object) = value else {
                return None;
            };
            let is_module = || {
                let state = object.state.map(|state| self.values.get(state));
                matches!(state, Some(Value::Dict(attributes)) if self.of_module(attributes).is_some())
            };
            if self.holds(id) || is_tensor(self.values, id) || is_module() {
                return None;
            }
            let callable = self.values.global(object.callable)?;
            (!is_plain(callable)).then(|| callable.to_string())
        };
        self.values.iter().filter_map(callable).collect()
    }
}

fn is_dict(callable: &Global) -> bool {
    matches!(
        callable.path(),
        ("collections", "OrderedDict" | "defaultdict" | "Counter") | ("builtins", "dict")
    )
}

/// Whether what it makes is a value like others, or part of a program in TorchScript.
fn is_plain(callable: &Global) -> bool {
    match callable.path() {
        ("torch", "Size" | "device") | ("torch.serialization", "_get_layout") => true,
        (module, _) => {
            let top = module.split('.').next().unwrap_or_default();
            ["builtins", "collections", "_codecs", "numpy", "__torch__"].contains(&top)
        }
    }
}

/// The steps of a key: dots separate them, except behind a backslash.
fn steps(key: &str) -> Vec<String> {
    let mut steps = vec![String::new()];
    let mut letters = key.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '.' => steps.push(String::new()),
            letter => {
                let letter = match letter {
                    '\\' => letters.next().unwrap_or('\\'),
                    letter => letter,
                };
                if let Some(step) = steps.last_mut() {
                    step.push(letter);
                }
            }
        }
    }
    steps
}

/// Some keys, for people.
fn listed<'k>(keys: impl Iterator<Item = Key<'k>>) -> String {
    /// Enough to see what is there.
    const SHOWN: usize = 10;
    let mut keys = keys.map(shown);
    let mut text = keys.by_ref().take(SHOWN).collect::<Vec<_>>().join(", ");
    let more = keys.count();
    if more > 0 {
        let _infallible = write!(text, " and {more} more");
    }
    match text.is_empty() {
        true => "nothing with tensors".to_owned(),
        false => text,
    }
}

fn shown(key: Key<'_>) -> String {
    match key {
        Key::Name(name) => format!("`{name}`"),
        Key::Number(number) => format!("`{number}`"),
        Key::Other(kind) => kind.to_owned(),
    }
}

fn too_many(what: &str, most: u64) -> Error {
    Error::new(Code::LimitPickle).expected(format_args!("at most {most} {what}"))
}
