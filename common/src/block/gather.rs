//! One symbol space over all batches of a block, and from it the dictionary of each column.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::chunk::dictionary_pays;
use crate::batch::{SpanBatch, Sym};

const UNKNOWN: u32 = u32::MAX;

/// Symbols of the block: each distinct string of the batches once, found on first use.
pub(crate) struct Global<'a> {
    batches: &'a [Arc<SpanBatch>],
    /// By batch and local symbol.
    known: Vec<Vec<u32>>,
    table: HashTable<(u32, u32)>,
    hasher: RandomState,
    strings: Vec<&'a [u8]>,
}

impl std::fmt::Debug for Global<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Global({} strings)", self.strings.len())
    }
}

impl<'a> Global<'a> {
    pub(crate) fn new(batches: &'a [Arc<SpanBatch>]) -> Self {
        let known = batches.iter().map(|batch| vec![UNKNOWN; batch.strings.len()]).collect();
        let mut global =
            Self { batches, known, table: HashTable::new(), hasher: RandomState::default(), strings: Vec::new() };
        // The empty string is symbol 0, as in every batch.
        global.find_or_add(b"");
        global
    }

    #[inline]
    pub(crate) fn symbol(&mut self, batch: u32, sym: Sym) -> u32 {
        let known = self.known[batch as usize][sym.index()];
        if known != UNKNOWN {
            return known;
        }
        let batches = self.batches;
        let symbol = self.find_or_add(batches[batch as usize].strings.get(sym));
        self.known[batch as usize][sym.index()] = symbol;
        symbol
    }

    /// The symbol of a string, if any batch used it so far.
    pub(crate) fn symbol_of(&self, value: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(value);
        let found = self.table.find(hash, |(_, s)| self.strings[*s as usize] == value);
        found.map(|(_, symbol)| *symbol)
    }

    fn find_or_add(&mut self, value: &'a [u8]) -> u32 {
        let hash = self.hasher.hash_one(value);
        let tag = (hash >> 32) as u32;
        let strings = &self.strings;
        if let Some((_, symbol)) = self.table.find(hash, |(t, s)| *t == tag && strings[*s as usize] == value) {
            return *symbol;
        }
        let symbol = self.strings.len() as u32;
        self.strings.push(value);
        let (strings, hasher) = (&self.strings, &self.hasher);
        self.table.insert_unique(hash, (tag, symbol), |(_, s)| hasher.hash_one(strings[*s as usize]));
        symbol
    }

    pub(crate) fn bytes(&self, symbol: u32) -> &'a [u8] {
        self.strings[symbol as usize]
    }

    pub(crate) fn text(&self, symbol: u32) -> &'a str {
        std::str::from_utf8(self.bytes(symbol)).unwrap_or_default()
    }
}

/// A text column on its way to a chunk.
#[derive(Debug)]
pub(crate) enum TextColumn<'a> {
    Coded { codes: Vec<u32>, dictionary: Vec<&'a [u8]> },
    Plain(Vec<&'a [u8]>),
}

/// Makes column dictionaries out of symbols; keeps its map from column to column.
#[derive(Debug, Default)]
pub(crate) struct Dictionaries {
    /// By symbol: column generation and code.
    codes: Vec<(u32, u32)>,
    generation: u32,
}

impl Dictionaries {
    /// Codes the column if enough values repeat, else lists its values.
    pub(crate) fn column<'a>(
        &mut self,
        symbols: impl Iterator<Item = u32> + Clone,
        count: usize,
        strings: &[&'a [u8]],
    ) -> TextColumn<'a> {
        self.codes.resize(self.codes.len().max(strings.len()), (0, 0));
        self.generation += 1;
        let mut codes = Vec::with_capacity(count);
        let mut dictionary = Vec::new();
        for symbol in symbols.clone() {
            let slot = &mut self.codes[symbol as usize];
            if slot.0 != self.generation {
                *slot = (self.generation, dictionary.len() as u32);
                dictionary.push(strings[symbol as usize]);
            }
            codes.push(slot.1);
        }
        if dictionary_pays(dictionary.len(), count) {
            TextColumn::Coded { codes, dictionary }
        } else {
            TextColumn::Plain(symbols.map(|symbol| strings[symbol as usize]).collect())
        }
    }
}

impl Dictionaries {
    /// Number of distinct symbols, and bytes of their strings together.
    pub(crate) fn distinct(&mut self, symbols: &[u32], strings: &[&[u8]]) -> (usize, usize) {
        self.codes.resize(self.codes.len().max(strings.len()), (0, 0));
        self.generation += 1;
        let (mut count, mut bytes) = (0, 0);
        for symbol in symbols {
            let slot = &mut self.codes[*symbol as usize];
            if slot.0 != self.generation {
                slot.0 = self.generation;
                count += 1;
                bytes += strings[*symbol as usize].len();
            }
        }
        (count, bytes)
    }
}

impl<'a> Global<'a> {
    /// All strings by symbol.
    pub(crate) fn strings(&self) -> &[&'a [u8]] {
        &self.strings
    }
}
