//! Positions of names that somebody else keeps: 5 bytes each, and some room.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::error::Result;
use crate::limits::no_room;

/// Positions by name. The hash is keyed, so that no file can make its names collide.
#[derive(Default)]
pub(crate) struct NameTable {
    hasher: RandomState,
    table: HashTable<u32>,
}

impl NameTable {
    /// An empty table with room for so many names.
    ///
    /// # Errors
    /// `limit-memory`.
    pub(crate) fn with_room(names: usize) -> Result<Self> {
        let mut table = HashTable::new();
        // There is nothing to be moved, and so nothing to be hashed again.
        let reserved = table.try_reserve(names, |_| 0);
        reserved.map_err(|_| no_room::<u32>(names))?;
        Ok(Self {
            hasher: RandomState::new(),
            table,
        })
    }

    /// Adds a position, or returns the one that already has its name.
    pub(crate) fn insert<'t>(
        &mut self,
        position: usize,
        name_of: impl Fn(usize) -> &'t str,
    ) -> Result<(), usize> {
        let name = name_of(position);
        let same = |&other: &u32| name_of(other as usize) == name;
        let hash_of = |&other: &u32| self.hasher.hash_one(name_of(other as usize));
        match self.table.entry(self.hasher.hash_one(name), same, hash_of) {
            Entry::Occupied(slot) => Err(*slot.get() as usize),
            Entry::Vacant(slot) => {
                // A header of 4 GiB at most cannot hold 2^32 entries.
                slot.insert(position as u32);
                Ok(())
            }
        }
    }

    /// The position of a name.
    pub(crate) fn find<'t>(&self, name: &str, name_of: impl Fn(usize) -> &'t str) -> Option<usize> {
        let hash = self.hasher.hash_one(name);
        let found = self.table.find(hash, |&at| name_of(at as usize) == name);
        found.map(|&at| at as usize)
    }
}
