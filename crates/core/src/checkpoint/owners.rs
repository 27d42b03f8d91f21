//! Which file serves which tensor, by name: the names end to end, and 17 bytes each.

use std::fmt;

use crate::error::Result;
use crate::format::name_table::NameTable;
use crate::limits::room;

/// Files by the names of their tensors, in the order in which they were named.
#[derive(Default)]
pub(super) struct Owners {
    text: String,
    /// Where in the text each name ends.
    ends: Vec<usize>,
    /// The file of each tensor.
    files: Vec<u32>,
    table: NameTable,
}

/// Where a tensor is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    /// The position of its file.
    pub(super) file: u32,
    /// How many tensors are named before it: some writers give them in an order of their own.
    pub(super) rank: u32,
}

impl Owners {
    /// Room for so many names.
    ///
    /// # Errors
    /// `limit-memory`.
    pub(super) fn with_room(names: usize) -> Result<Self> {
        Ok(Self {
            text: String::new(),
            ends: room(names)?,
            files: room(names)?,
            table: NameTable::with_room(names)?,
        })
    }

    /// Adds a name, or says which file has it already.
    pub(super) fn insert(&mut self, name: &str, file: u32) -> Result<(), u32> {
        let start = self.text.len();
        self.text.push_str(name);
        self.ends.push(self.text.len());
        self.files.push(file);
        let position = self.files.len() - 1;
        let name_of = |at| name_at(&self.text, &self.ends, at);
        self.table.insert(position, name_of).map_err(|other| {
            self.text.truncate(start);
            self.ends.pop();
            self.files.pop();
            self.files.get(other).copied().unwrap_or(file)
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<Owner> {
        let at = self.table.find(name, |at| self.name(at))?;
        let file = *self.files.get(at)?;
        // A table has no more positions.
        let rank = at as u32;
        Some(Owner { file, rank })
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// How many names there are.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Names, each with its file, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        let files = self.files.iter().enumerate();
        files.map(|(at, file)| (self.name(at), *file))
    }

    fn name(&self, at: usize) -> &str {
        name_at(&self.text, &self.ends, at)
    }
}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

fn name_at<'t>(text: &'t str, ends: &[usize], at: usize) -> &'t str {
    let before = at.checked_sub(1).and_then(|before| ends.get(before));
    let start = before.copied().unwrap_or_default();
    let end = ends.get(at).copied().unwrap_or(start);
    text.get(start..end).unwrap_or_default()
}
