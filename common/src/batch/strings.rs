//! The string table of a batch: every name, key and text value once, addressed by [`Sym`].

use std::hash::BuildHasher;
use std::ops::Range;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// A string of one [`Strings`] table. Meaningless in any other table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sym(pub u32);

impl Sym {
    /// The empty string, first in every table. Also stands for "not set" where the wire cannot tell the two apart.
    pub const EMPTY: Self = Self(0);

    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An append-only arena of byte strings. What came from a text field is valid UTF-8, checked before it was added.
#[derive(Clone, Debug)]
pub struct Strings {
    bytes: Vec<u8>,
    /// End of string `i` in `bytes`; it starts where the one before ends.
    ends: Vec<u32>,
}

impl Default for Strings {
    fn default() -> Self {
        Self { bytes: Vec::new(), ends: vec![0] }
    }
}

impl Strings {
    /// Number of strings, the empty one included.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.len() == 1
    }

    pub fn get(&self, sym: Sym) -> &[u8] {
        &self.bytes[self.range(sym)]
    }

    /// The string as text. Bytes that never were text (unknown fields) come back empty.
    pub fn text(&self, sym: Sym) -> &str {
        std::str::from_utf8(self.get(sym)).unwrap_or_default()
    }

    fn range(&self, sym: Sym) -> Range<usize> {
        let at = sym.index();
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        start..self.ends[at] as usize
    }

    /// Adds without looking whether it is there already.
    pub fn push(&mut self, value: &[u8]) -> Sym {
        let sym = Sym(self.ends.len() as u32);
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len() as u32);
        sym
    }

    /// Bytes this table holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * 4
    }

    /// Bytes of all strings together: batches stay far below the 4 GiB that offsets can address.
    pub fn content_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets all but the empty string and keeps the room.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.truncate(1);
    }

    /// Gives back room that growing left over, where it is more than a quarter.
    pub fn shrink(&mut self) {
        if self.bytes.capacity() > self.bytes.len() + self.bytes.len() / 4 {
            self.bytes.shrink_to_fit();
        }
        if self.ends.capacity() > self.ends.len() + self.ends.len() / 4 {
            self.ends.shrink_to_fit();
        }
    }
}

/// Finds a string's [`Sym`] by content. Kept apart from [`Strings`] because only building needs it; reused between batches.
#[derive(Debug, Default)]
pub struct Interner {
    table: HashTable<(u32, Sym)>,
    /// Seeded at random: texts come from outside, and with a fixed seed a sender could choose ones that collide.
    hasher: RandomState,
}

impl Interner {
    /// The string's symbol, and whether it is new to `strings`. `admit` checks new strings before they are added.
    pub fn intern<E>(
        &mut self,
        strings: &mut Strings,
        value: &[u8],
        admit: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<Sym, E> {
        if value.is_empty() {
            return Ok(Sym::EMPTY);
        }
        let hash = self.hasher.hash_one(value);
        let tag = (hash >> 32) as u32;
        if let Some((_, sym)) = self.table.find(hash, |(t, sym)| *t == tag && strings.get(*sym) == value) {
            return Ok(*sym);
        }
        admit(value)?;
        let sym = strings.push(value);
        // The upper half of the hash is kept beside the symbol; growing rehashes from content.
        let hasher = &self.hasher;
        let strings = &*strings;
        self.table.insert_unique(hash, (tag, sym), |(_, sym)| hasher.hash_one(strings.get(*sym)));
        Ok(sym)
    }

    /// The string's symbol, where new strings need no check.
    pub fn add(&mut self, strings: &mut Strings, value: &[u8]) -> Sym {
        let Ok(sym) = self.intern(strings, value, |_| Ok::<(), std::convert::Infallible>(()));
        sym
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.table.allocation_size()
    }

    /// Forgets everything but keeps the room, unless it grew beyond what the next batch is likely to need.
    pub fn reset(&mut self) {
        if self.table.capacity() > 1 << 16 {
            self.table = HashTable::new();
        } else {
            self.table.clear();
        }
    }
}
