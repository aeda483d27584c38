//! Texts one after the other, found by content: the dictionary of an output column while it is made.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Distinct texts by code, in the order they came; or, by [`TextDictionary::push`], any texts.
#[derive(Default)]
pub(super) struct TextDictionary {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Hash and code.
    table: HashTable<(u64, u32)>,
    /// Seeded at random: texts come from outside.
    hasher: RandomState,
}

impl TextDictionary {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all texts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>() + self.table.allocation_size()
    }

    pub(super) fn get(&self, code: u32) -> &[u8] {
        let at = code as usize;
        let from = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[from..self.ends[at]]
    }

    pub(super) fn reserve(&mut self, texts: usize, bytes: usize) {
        self.ends.reserve_exact(texts);
        self.bytes.reserve_exact(bytes);
    }

    /// When no text is looked for any more.
    pub(super) fn forget_table(&mut self) {
        self.table = HashTable::new();
    }

    /// Adds a text without looking for it.
    pub(super) fn push(&mut self, text: &[u8]) -> u32 {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
        self.ends.len() as u32 - 1
    }

    /// The code of a text, which is added if it is new.
    pub(super) fn code(&mut self, text: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(text);
        if let Some((_, code)) = self.table.find(hash, |(known, code)| *known == hash && self.get(*code) == text) {
            return *code;
        }
        let code = self.push(text);
        self.table.insert_unique(hash, (hash, code), |(hash, _)| *hash);
        code
    }

    /// All texts by code.
    pub(super) fn texts(&self) -> Vec<&[u8]> {
        (0..self.len() as u32).map(|code| self.get(code)).collect()
    }
}
