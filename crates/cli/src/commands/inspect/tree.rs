//! What is in a checkpoint, module by module.

use std::io;

use safeshard_core::Printable;

use super::{Sums, Tensor, View, overview};
use crate::output::Output;
use crate::table::{Align, Table};
use crate::text::{number, shape, size};

/// Modules inside each other; deeper ones are not told apart.
const DEPTH: usize = 32;

/// Writes the modules and tensors, as the dots in their names nest them.
pub(super) fn write(view: &View<'_>, out: &mut Output, width: Option<usize>) -> io::Result<()> {
    overview::title(view, out)?;
    let mut root = Module::default();
    for tensor in &view.tensors {
        root.add(tensor, tensor.name, DEPTH);
    }
    let mut table = Table::new(&[
        ("module", Align::Left),
        ("dtype", Align::Left),
        ("shape", Align::Left),
        ("parameters", Align::Right),
        ("size", Align::Right),
    ]);
    root.rows(&mut String::new(), &mut table);
    table.write(out, width)?;
    overview::rest(view, out)
}

/// What has the beginning of its name in common.
#[derive(Default)]
struct Module<'c> {
    sums: Sums,
    /// In the order of the tensors, which is natural.
    parts: Vec<(&'c str, Part<'c>)>,
}

enum Part<'c> {
    Module(Module<'c>),
    Tensor(&'c Tensor<'c>),
}

impl<'c> Module<'c> {
    fn add(&mut self, tensor: &'c Tensor<'c>, rest: &'c str, depth: usize) {
        self.sums.add(tensor);
        let Some((first, rest)) = rest.split_once('.').filter(|_| depth > 0) else {
            self.parts.push((rest, Part::Tensor(tensor)));
            return;
        };
        // Names with a beginning in common follow each other.
        if let Some((name, Part::Module(module))) = self.parts.last_mut()
            && *name == first
        {
            return module.add(tensor, rest, depth - 1);
        }
        let mut module = Self::default();
        module.add(tensor, rest, depth - 1);
        self.parts.push((first, Part::Module(module)));
    }

    /// Adds the rows of all its parts, each behind the lines that lead to it.
    fn rows(&self, lines: &mut String, table: &mut Table) {
        let len = lines.len();
        for (number, (name, part)) in self.parts.iter().enumerate() {
            let is_last = number + 1 == self.parts.len();
            let branch = if is_last { "└─ " } else { "├─ " };
            let name = format!("{lines}{branch}{}", Printable::of(name));
            match part {
                Part::Tensor(tensor) => table.row([
                    name,
                    Printable::of(tensor.dtype).to_string(),
                    shape(tensor.shape),
                    self::number(tensor.elements()),
                    size(tensor.byte_len()),
                ]),
                Part::Module(module) => {
                    table.row([
                        name,
                        String::new(),
                        String::new(),
                        self::number(module.sums.parameters),
                        size(module.sums.bytes),
                    ]);
                    lines.push_str(if is_last { "   " } else { "│  " });
                    module.rows(lines, table);
                    lines.truncate(len);
                }
            }
        }
    }
}
