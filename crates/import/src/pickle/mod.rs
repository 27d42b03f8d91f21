//! Python's pickles as values, with nothing made and nothing called.
//!
//! A pickle is a program for a small machine with a stack. This one knows the instructions of all protocols,
//! makes dicts, lists, tuples, numbers and text, and has no way to call anything: what Python would call
//! stays an [`Object`] that says of what callable and with which arguments.

mod code;
mod machine;
mod scalars;
mod values;

pub(crate) use machine::load;
pub(crate) use values::{Global, Id, Object, Value, Values};

/// What a pickle is of.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(crate) values: Values,
    /// The value that Python would return.
    pub(crate) top: Id,
}

impl Pickle {
    /// The callables that no file of weights needs, in the order in which they are named.
    pub(crate) fn code(&self) -> impl Iterator<Item = &Global> {
        let globals = self.values.iter().filter_map(|(_, value)| match value {
            Value::Global(global) => Some(&**global),
            _ => None,
        });
        globals.filter(|global| code::runs_code(global))
    }
}
