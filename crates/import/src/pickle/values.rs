//! The values of a pickle: all in one list, so that they refer to each other however they like, and are
//! dropped without recursion.

use std::fmt;

/// A value's place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id(u32);

impl Id {
    /// Its position, for lists beside the one of values.
    pub(crate) fn position(self) -> usize {
        self.0 as usize
    }
}

/// A value.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(Box<str>),
    /// What no tensor is made of, by what it is.
    Other(&'static str),
    Tuple(Box<[Id]>),
    /// Or a set.
    List(Vec<Id>),
    /// In the order given, keys that come twice too. Keys are never hashed.
    Dict(Vec<(Id, Id)>),
    Global(Box<Global>),
    /// What is not in the pickle, such as a storage, by what it is called.
    Persistent(Id),
    Object(Box<Object>),
}

/// Something of a Python module.
#[derive(Debug)]
pub(crate) struct Global {
    pub(crate) module: Box<str>,
    pub(crate) name: Box<str>,
    /// Where in the file it is named.
    pub(crate) offset: u64,
}

/// What Python would make by a call.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) callable: Id,
    pub(crate) args: Id,
    pub(crate) state: Option<Id>,
    pub(crate) items: Vec<Id>,
    pub(crate) pairs: Vec<(Id, Id)>,
    /// Where in the file it would be made.
    pub(crate) offset: u64,
}

impl Value {
    /// What it is, in words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Int(_) => "an integer",
            Self::Text(_) => "text",
            Self::Other(kind) => kind,
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a callable",
            Self::Persistent(_) => "a storage",
            Self::Object(_) => "an object",
        }
    }
}

impl Global {
    /// Its module, as Python 3 and today's torch call it.
    pub(crate) fn module(&self) -> &str {
        match &*self.module {
            "__builtin__" => "builtins",
            "copy_reg" => "copyreg",
            "torch.tensor" => "torch._tensor",
            module => module,
        }
    }

    /// Its module and name.
    pub(crate) fn path(&self) -> (&str, &str) {
        (self.module(), &self.name)
    }
}

impl fmt::Display for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// All values of a pickle.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<Value>);

impl Values {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Keeps a value; the caller sees to it that there are not too many.
    pub(super) fn push(&mut self, value: Value) -> Id {
        let id = Id(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        self.0.push(value);
        id
    }

    /// The value at a place.
    pub(crate) fn get(&self, id: Id) -> &Value {
        self.0.get(id.position()).unwrap_or(&Value::None)
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Value> {
        self.0.get_mut(id.position())
    }

    /// All, in the order in which they were made.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &Value)> {
        (0..).map(Id).zip(&self.0)
    }

    /// The global at a place, if it is one.
    pub(crate) fn global(&self, id: Id) -> Option<&Global> {
        match self.get(id) {
            Value::Global(global) => Some(global),
            _ => None,
        }
    }

    /// The object at a place, if it is one.
    pub(crate) fn object(&self, id: Id) -> Option<&Object> {
        match self.get(id) {
            Value::Object(object) => Some(object),
            _ => None,
        }
    }

    /// Text, if it is some.
    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What a tuple or a list holds.
    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            Value::List(items) => Some(items),
            _ => None,
        }
    }
}
