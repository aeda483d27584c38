//! Attributes of spans, events or links as columns: typed columns for the keys that matter, a shape that keeps order, a rest.
//!
//! The *shape* of an item lists its keys in order, as a JSON array: a plain string where the value is in the key's column, a
//! string in an array (`["key"]`) where it is the next entry of the rest. A key's first value of the column's type goes to the
//! column; repeats, other types and keys without column go to the rest.

use std::collections::HashMap;
use std::hash::BuildHasher;

use foldhash::fast::{FixedState, RandomState};
use hashbrown::HashTable;

use super::gather::Global;
use super::schema::TypedKey;
use crate::batch::{Attr, ValueKind};
use crate::caps::MAX_TYPED_COLUMNS;
use crate::model::typed_json;

/// How often each key occurs with each kind of value.
#[derive(Debug, Default)]
pub(crate) struct KeyCounts(HashMap<u32, [u32; 5], RandomState>);

impl KeyCounts {
    pub(crate) fn add(&mut self, key: u32, kind: ValueKind, count: u32) {
        self.0.entry(key).or_default()[kind as usize] += count;
    }

    /// The keys that get a column: at least one item in 200 has them, the most frequent first if there are too many. Of keys
    /// that differ only in case, the most frequent: column names of SQL engines do not tell them apart.
    pub(crate) fn choose<'a>(&self, items: usize, global: &Global<'a>) -> Vec<TypedKey> {
        let least = (items / 200).max(1) as u32;
        let mut candidates: Vec<(u32, &'a str, ValueKind)> = self
            .0
            .iter()
            .filter_map(|(key, kinds)| {
                let scalar = [ValueKind::Str, ValueKind::Int, ValueKind::Double, ValueKind::Bool];
                let kind = scalar.into_iter().max_by_key(|kind| kinds[*kind as usize])?;
                let count = kinds[kind as usize];
                let name = global.text(*key);
                let plain = !name.is_empty() && name.len() <= 256 && !name.chars().any(char::is_control);
                (count >= least && plain).then_some((count, name, kind))
            })
            .collect();
        candidates.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let mut taken = std::collections::HashSet::new();
        candidates.retain(|(_, name, _)| taken.insert(name.to_lowercase()));
        candidates.truncate(MAX_TYPED_COLUMNS);
        candidates.sort_unstable_by_key(|(_, name, _)| *name);
        candidates.into_iter().map(|(_, key, kind)| TypedKey { key: key.to_owned(), kind }).collect()
    }

    /// Keys with their counts by kind, for the summary.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &[u32; 5])> {
        self.0.iter().map(|(key, kinds)| (*key, kinds))
    }
}

/// Values of one typed column: which items have one, and its bits (a global symbol for text).
#[derive(Debug, Default)]
pub(crate) struct TypedColumn {
    pub(crate) items: Vec<u32>,
    pub(crate) bits: Vec<u64>,
}

/// Collects the attributes of items in order.
#[derive(Debug)]
pub(crate) struct AttrColumns {
    kinds: Vec<ValueKind>,
    pub(crate) typed: Vec<TypedColumn>,
    /// By global symbol of a key: slot in `typed`.
    slots: Vec<u32>,
    item: u32,
    /// Last item that filled each slot, plus one: finds repeats of a key.
    filled: Vec<u32>,
    /// Shape of each item; [`NO_SHAPE`] for items without attributes.
    pub(crate) shapes: Vec<u32>,
    shape_table: HashTable<(u64, u32)>,
    /// Elements of all distinct shapes: key's global symbol times two, plus one if its value is in the rest.
    shape_elements: Vec<u32>,
    shape_ends: Vec<u32>,
    current: Vec<u32>,
    /// Rest entries: item, key's global symbol, range of the value's typed JSON in `rest_text`.
    pub(crate) rest: Vec<RestEntry>,
    rest_text: String,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RestEntry {
    pub(crate) item: u32,
    pub(crate) key: u32,
    from: u32,
    to: u32,
}

pub(crate) const NO_SHAPE: u32 = u32::MAX;
const NO_SLOT: u32 = u32::MAX;

impl AttrColumns {
    pub(crate) fn new(keys: &[TypedKey], global: &Global<'_>) -> Self {
        let mut slots = Vec::new();
        for (slot, key) in keys.iter().enumerate() {
            let Some(symbol) = global.symbol_of(key.key.as_bytes()) else { continue };
            let symbol = symbol as usize;
            if slots.len() <= symbol {
                slots.resize(symbol + 1, NO_SLOT);
            }
            slots[symbol] = slot as u32;
        }
        Self {
            kinds: keys.iter().map(|k| k.kind).collect(),
            typed: keys.iter().map(|_| TypedColumn::default()).collect(),
            slots,
            item: 0,
            filled: vec![0; keys.len()],
            shapes: Vec::new(),
            shape_table: HashTable::new(),
            shape_elements: Vec::new(),
            shape_ends: Vec::new(),
            current: Vec::new(),
            rest: Vec::new(),
            rest_text: String::new(),
        }
    }

    /// Number of items so far.
    pub(crate) fn items(&self) -> usize {
        self.item as usize
    }

    /// Adds the next item with its attributes, which come from batch `batch`.
    pub(crate) fn push(&mut self, batch: u32, attrs: &[Attr], global: &mut Global<'_>) {
        self.current.clear();
        for attr in attrs {
            let key = global.symbol(batch, attr.key);
            let slot = self.slots.get(key as usize).copied().unwrap_or(NO_SLOT) as usize;
            let fits = self.kinds.get(slot) == Some(&attr.kind) && self.filled[slot] != self.item + 1;
            if fits {
                self.filled[slot] = self.item + 1;
                let bits = match attr.kind {
                    ValueKind::Str | ValueKind::Json => u64::from(global.symbol(batch, attr.sym())),
                    ValueKind::Int | ValueKind::Double | ValueKind::Bool => attr.bits,
                };
                let column = &mut self.typed[slot];
                column.items.push(self.item);
                column.bits.push(bits);
                self.current.push(key << 1);
            } else {
                let from = self.rest_text.len() as u32;
                push_typed(batch, attr, global, &mut self.rest_text);
                self.rest.push(RestEntry { item: self.item, key, from, to: self.rest_text.len() as u32 });
                self.current.push(key << 1 | 1);
            }
        }
        let shape = if attrs.is_empty() { NO_SHAPE } else { self.intern_shape() };
        self.shapes.push(shape);
        self.item += 1;
    }

    fn intern_shape(&mut self) -> u32 {
        let hash = FixedState::default().hash_one(&self.current[..]);
        let elements = &self.shape_elements;
        let ends = &self.shape_ends;
        let range = |id: u32| {
            let from = id.checked_sub(1).map_or(0, |before| ends[before as usize]);
            from as usize..ends[id as usize] as usize
        };
        if let Some((_, id)) = self.shape_table.find(hash, |(h, id)| *h == hash && elements[range(*id)] == self.current[..])
        {
            return *id;
        }
        let id = self.shape_ends.len() as u32;
        self.shape_elements.extend_from_slice(&self.current);
        self.shape_ends.push(self.shape_elements.len() as u32);
        self.shape_table.insert_unique(hash, (hash, id), |(h, _)| *h);
        id
    }

    /// JSON of every distinct shape, by its number.
    pub(crate) fn shape_texts(&self, global: &Global<'_>) -> Vec<String> {
        let mut from = 0;
        let mut texts = Vec::with_capacity(self.shape_ends.len());
        for end in &self.shape_ends {
            let mut text = String::from("[");
            for (at, element) in self.shape_elements[from..*end as usize].iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                let key = global.text(element >> 1);
                if element & 1 == 0 {
                    typed_json::push_str(key, &mut text);
                } else {
                    text.push('[');
                    typed_json::push_str(key, &mut text);
                    text.push(']');
                }
            }
            text.push(']');
            texts.push(text);
            from = *end as usize;
        }
        texts
    }

    /// Typed JSON of a rest entry's value.
    pub(crate) fn rest_value(&self, entry: &RestEntry) -> &str {
        &self.rest_text[entry.from as usize..entry.to as usize]
    }
}

fn push_typed(batch: u32, attr: &Attr, global: &Global<'_>, out: &mut String) {
    match attr.kind {
        ValueKind::Str => typed_json::push_str(global.local_text(batch, attr.sym()), out),
        ValueKind::Json => out.push_str(global.local_text(batch, attr.sym())),
        ValueKind::Int => typed_json::push_i64(attr.bits as i64, out),
        ValueKind::Double => typed_json::push_f64(f64::from_bits(attr.bits), out),
        ValueKind::Bool => typed_json::push_bool(attr.bits != 0, out),
    }
}
