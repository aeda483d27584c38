//! Attributes of spans, events or links as columns: typed columns for the keys that matter, a shape that keeps order, a rest.
//!
//! The *shape* of an item lists its keys in order, as a JSON array: a plain string where the value is in the key's column, a
//! string in an array (`["key"]`) where it is the next entry of the rest. A key's first value of the column's type goes to the
//! column; repeats, other types and keys without column go to the rest. All this depends on keys and kinds alone, so it is
//! decided once per shape of a batch, and an item only moves its values.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::bitmap::Bitmap;
use super::gather::Global;
use super::schema::TypedKey;
use crate::batch::{AttrValues, AttrsEnd, Shape, Shapes, ValueKind};
use crate::caps::MAX_TYPED_COLUMNS;
use crate::model::typed_json;

/// How often each key occurs with each kind of value.
#[derive(Debug, Default)]
pub(crate) struct KeyCounts(HashMap<u32, [u32; 5], RandomState>);

impl KeyCounts {
    /// Adds the attributes of a batch's items, given how many items have each shape.
    pub(crate) fn add(&mut self, batch: u32, shapes: &Shapes, mut items: Vec<u32>, global: &mut Global<'_>) {
        // From the last node to the first: an item has the attributes of every node before its own.
        for (shape, node) in shapes.iter().rev() {
            let count = items.get(shape.index()).copied().unwrap_or(0);
            if count > 0 {
                items[node.before.index()] += count;
                self.0.entry(global.symbol(batch, node.key)).or_default()[node.kind as usize] += count;
            }
        }
    }

    /// The keys that get a column: see [`choose_keys`].
    pub(crate) fn choose(&self, items: usize, global: &Global<'_>) -> Vec<TypedKey> {
        choose_keys(self.0.iter().map(|(key, kinds)| (global.text(*key), kinds)), items)
    }

    /// Keys with their counts by kind, for the summary.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &[u32; 5])> {
        self.0.iter().map(|(key, kinds)| (*key, kinds))
    }
}

/// The keys that get a column, given how often each has which kind of value: at least one item in 200 has them, the most frequent
/// first if there are too many. Of keys that differ only in case, the most frequent: column names of SQL engines do not tell them
/// apart.
pub(crate) fn choose_keys<'a>(keys: impl Iterator<Item = (&'a str, &'a [u32; 5])>, items: usize) -> Vec<TypedKey> {
    let least = (items / 200).max(1) as u32;
    let candidate = |(name, kinds): (&'a str, &'a [u32; 5])| {
        let scalar = [ValueKind::Str, ValueKind::Int, ValueKind::Double, ValueKind::Bool];
        let kind = scalar.into_iter().max_by_key(|kind| kinds[*kind as usize])?;
        let count = kinds[kind as usize];
        let plain = !name.is_empty() && name.len() <= 256 && !name.chars().any(char::is_control);
        (count >= least && plain).then_some((count, name, kind))
    };
    let mut candidates: Vec<(u32, &str, ValueKind)> = keys.filter_map(candidate).collect();
    candidates.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let mut taken = HashSet::new();
    candidates.retain(|(_, name, _)| taken.insert(name.to_lowercase()));
    candidates.truncate(MAX_TYPED_COLUMNS);
    candidates.sort_unstable_by_key(|(_, name, _)| *name);
    candidates.into_iter().map(|(_, key, kind)| TypedKey { key: key.to_owned(), kind }).collect()
}

/// Values of one typed column: which items have one, and the values in order.
#[derive(Debug, Default)]
pub(crate) struct TypedColumn {
    pub(crate) present: Bitmap,
    /// Global symbols, if the column is of text.
    pub(crate) texts: Vec<u32>,
    /// Bits, if it is not.
    pub(crate) numbers: Vec<u64>,
}

/// What becomes of one attribute of a shape.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// [`REST`] for none.
    slot: u32,
    /// Global symbol of the key.
    key: u32,
    kind: ValueKind,
}

/// What becomes of the attributes of a batch's shape.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// In [`AttrColumns::steps`].
    from: u32,
    to: u32,
    /// Number of the block's shape.
    shape: u32,
}

/// Where an item's attributes are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttrsOf<'b> {
    pub(crate) batch: u32,
    pub(crate) shapes: &'b Shapes,
    pub(crate) values: &'b AttrValues,
    pub(crate) shape: Shape,
    pub(crate) start: AttrsEnd,
}

/// Collects the attributes of items in order.
#[derive(Debug)]
pub(crate) struct AttrColumns {
    kinds: Vec<ValueKind>,
    pub(crate) typed: Vec<TypedColumn>,
    /// By global symbol of a key: slot in `typed`.
    slots: Vec<u32>,
    item: u32,
    /// By batch and shape: number in `plans`.
    planned: Vec<Vec<u32>>,
    plans: Vec<Plan>,
    steps: Vec<Step>,
    /// Shape of each item; [`NO_SHAPE`] for items without attributes.
    pub(crate) shapes: Vec<u32>,
    shape_table: HashTable<(u64, u32)>,
    hasher: RandomState,
    /// Elements of all distinct shapes: key's global symbol times two, plus one if its value is in the rest.
    shape_elements: Vec<u32>,
    shape_ends: Vec<u32>,
    /// Values without column, in order.
    pub(crate) rest: Vec<RestEntry>,
    /// Typed JSON of the distinct ones, one after the other, and where each ends.
    rest_text: String,
    rest_ends: Vec<usize>,
    /// By global symbol and whether it is of typed JSON: number of the text. A large value that every span repeats is there once.
    rest_known: Vec<[u32; 2]>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RestEntry {
    pub(crate) item: u32,
    /// Global symbol.
    pub(crate) key: u32,
    /// Number of the value's text.
    pub(crate) text: u32,
}

pub(crate) const NO_SHAPE: u32 = u32::MAX;
const REST: u32 = u32::MAX;
const UNPLANNED: u32 = u32::MAX;
const UNKNOWN: u32 = u32::MAX;

impl AttrColumns {
    pub(crate) fn new(keys: &[TypedKey], global: &Global<'_>) -> Self {
        let mut slots = Vec::new();
        for (slot, key) in keys.iter().enumerate() {
            let Some(symbol) = global.symbol_of(key.key.as_bytes()) else { continue };
            let symbol = symbol as usize;
            if slots.len() <= symbol {
                slots.resize(symbol + 1, REST);
            }
            slots[symbol] = slot as u32;
        }
        Self {
            kinds: keys.iter().map(|k| k.kind).collect(),
            typed: keys.iter().map(|_| TypedColumn::default()).collect(),
            slots,
            item: 0,
            planned: Vec::new(),
            plans: Vec::new(),
            steps: Vec::new(),
            shapes: Vec::new(),
            shape_table: HashTable::new(),
            hasher: RandomState::default(),
            shape_elements: Vec::new(),
            shape_ends: Vec::new(),
            rest: Vec::new(),
            rest_text: String::new(),
            rest_ends: Vec::new(),
            rest_known: Vec::new(),
        }
    }

    /// Number of items so far.
    pub(crate) fn items(&self) -> usize {
        self.item as usize
    }

    /// Adds the next item with its attributes.
    pub(crate) fn push(&mut self, of: AttrsOf<'_>, global: &mut Global<'_>) {
        let item = self.item;
        self.item += 1;
        if of.shape == Shape::EMPTY {
            self.shapes.push(NO_SHAPE);
            return;
        }
        let plan = self.plan(&of, global);
        self.shapes.push(plan.shape);
        let (mut text, mut number) = (of.start.texts as usize, of.start.numbers as usize);
        for step in &self.steps[plan.from as usize..plan.to as usize] {
            let is_text = matches!(step.kind, ValueKind::Str | ValueKind::Json);
            if step.slot == REST {
                let bits = if is_text {
                    u64::from(global.symbol(of.batch, of.values.texts[text]))
                } else {
                    of.values.numbers[number]
                };
                let new = self.rest_ends.len() as u32;
                let text = if is_text {
                    let at = bits as usize;
                    if self.rest_known.len() <= at {
                        self.rest_known.resize(at + 1, [UNKNOWN; 2]);
                    }
                    let known = &mut self.rest_known[at][usize::from(step.kind == ValueKind::Json)];
                    if *known == UNKNOWN {
                        *known = new;
                    }
                    *known
                } else {
                    new
                };
                if text == new {
                    push_typed(step.kind, bits, global, &mut self.rest_text);
                    self.rest_ends.push(self.rest_text.len());
                }
                self.rest.push(RestEntry { item, key: step.key, text });
            } else {
                let column = &mut self.typed[step.slot as usize];
                column.present.push(item);
                if is_text {
                    column.texts.push(global.symbol(of.batch, of.values.texts[text]));
                } else {
                    column.numbers.push(of.values.numbers[number]);
                }
            }
            if is_text {
                text += 1;
            } else {
                number += 1;
            }
        }
    }

    fn plan(&mut self, of: &AttrsOf<'_>, global: &mut Global<'_>) -> Plan {
        let batch = of.batch as usize;
        if self.planned.len() <= batch {
            self.planned.resize_with(batch + 1, Vec::new);
        }
        let planned = &mut self.planned[batch];
        if planned.is_empty() {
            planned.resize(of.shapes.len(), UNPLANNED);
        }
        match planned[of.shape.index()] {
            UNPLANNED => {
                let plan = self.make_plan(of, global);
                self.planned[batch][of.shape.index()] = self.plans.len() as u32;
                self.plans.push(plan);
                plan
            }
            known => self.plans[known as usize],
        }
    }

    fn make_plan(&mut self, of: &AttrsOf<'_>, global: &mut Global<'_>) -> Plan {
        let mut elements = Vec::new();
        of.shapes.elements(of.shape, &mut elements);
        let from = self.steps.len();
        let mut shape = Vec::with_capacity(elements.len());
        let mut filled = HashSet::new();
        for (key, kind) in elements {
            let key = global.symbol(of.batch, key);
            let slot = self.slots.get(key as usize).copied().unwrap_or(REST);
            // Only the first value of a key goes to its column.
            let fits = self.kinds.get(slot as usize) == Some(&kind) && filled.insert(slot);
            self.steps.push(Step { slot: if fits { slot } else { REST }, key, kind });
            shape.push(key << 1 | u32::from(!fits));
        }
        let shape = self.intern_shape(&shape);
        Plan { from: from as u32, to: self.steps.len() as u32, shape }
    }

    fn intern_shape(&mut self, wanted: &[u32]) -> u32 {
        let hash = self.hasher.hash_one(wanted);
        let elements = &self.shape_elements;
        let ends = &self.shape_ends;
        let range = |id: u32| {
            let from = id.checked_sub(1).map_or(0, |before| ends[before as usize]);
            from as usize..ends[id as usize] as usize
        };
        if let Some((_, id)) = self.shape_table.find(hash, |(h, id)| *h == hash && elements[range(*id)] == *wanted) {
            return *id;
        }
        let id = self.shape_ends.len() as u32;
        self.shape_elements.extend_from_slice(wanted);
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

    /// Typed JSON of the distinct values of the rest, by number.
    pub(crate) fn rest_texts(&self) -> Vec<&str> {
        let starts = std::iter::once(0).chain(self.rest_ends.iter().copied());
        starts.zip(&self.rest_ends).map(|(from, to)| &self.rest_text[from..*to]).collect()
    }
}

/// Appends a value as typed JSON; `bits` is a global symbol for texts.
fn push_typed(kind: ValueKind, bits: u64, global: &Global<'_>, out: &mut String) {
    match kind {
        ValueKind::Str => typed_json::push_str(global.text(bits as u32), out),
        ValueKind::Json => out.push_str(global.text(bits as u32)),
        ValueKind::Int => typed_json::push_i64(bits as i64, out),
        ValueKind::Double => typed_json::push_f64(f64::from_bits(bits), out),
        ValueKind::Bool => typed_json::push_bool(bits != 0, out),
    }
}
