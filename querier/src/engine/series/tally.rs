//! Tallies: how often each value of one attribute comes, in two sets of spans, by time.
//!
//! Values are counted in the form they lie in: by code where a block has a dictionary of them, by number or text else. Which text
//! a code stands for is only asked in the end. Owns the forms of values and which of them are the same; does not own which
//! spans count.

use std::hash::Hash;
use std::sync::Arc;

use spanhouse_common::batch::{Interner, Strings, Sym};
use spanhouse_common::columns::{Present, Texts, Values};

use super::super::field::Field;
use super::super::key::Key;
use super::super::value::Cell;
use super::accumulate::label;
use super::cells::{Cells, Merge};

/// Where a span counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    /// 0 for the baseline, 1 for the selection, or [`OUT`].
    pub(super) side: u32,
    pub(super) bucket: u32,
}

/// Of spans that do not count.
pub(super) const OUT: u32 = 2;

/// Spans of the baseline and of the selection.
#[derive(Debug, Clone, Copy, Default)]
struct Pair([u64; 2]);

impl Merge for Pair {
    fn merge(&mut self, other: &Self) {
        self.0[0] += other.0[0];
        self.0[1] += other.0[1];
    }
}

/// Spans by code of a value.
#[derive(Debug)]
enum Counts {
    /// All times are one.
    Whole(Vec<Pair>),
    Timed {
        buckets: usize,
        all: Vec<Cells<Pair>>,
    },
}

impl Counts {
    fn new(buckets: usize, codes: usize) -> Self {
        match buckets {
            0 | 1 => Self::Whole(vec![Pair::default(); codes]),
            buckets => Self::Timed { buckets, all: vec![Cells::default(); codes] },
        }
    }

    fn grow(&mut self) {
        match self {
            Self::Whole(all) => all.push(Pair::default()),
            Self::Timed { all, .. } => all.push(Cells::default()),
        }
    }

    fn add(&mut self, code: u32, spot: Spot) {
        if spot.side == OUT {
            return;
        }
        let pair = match self {
            Self::Whole(all) => &mut all[code as usize],
            Self::Timed { buckets, all } => all[code as usize].at(spot.bucket, *buckets),
        };
        pair.0[spot.side as usize] += 1;
    }

    /// Adds what another one has of a value.
    fn merge(&mut self, code: u32, other: &Self, of: u32) {
        match (self, other) {
            (Self::Whole(own), Self::Whole(other)) => own[code as usize].merge(&other[of as usize]),
            (Self::Timed { buckets, all }, Self::Timed { all: other, .. }) => {
                all[code as usize].merge(&other[of as usize], *buckets);
            }
            _ => {}
        }
    }

    fn sums(&self, code: u32) -> [u64; 2] {
        match self {
            Self::Whole(all) => all[code as usize].0,
            Self::Timed { all, .. } => {
                let mut sum = Pair::default();
                all[code as usize].each(|_, pair| sum.merge(pair));
                sum.0
            }
        }
    }

    /// By bucket.
    fn values(&self, code: u32, side: usize) -> Vec<f64> {
        match self {
            Self::Whole(all) => vec![all[code as usize].0[side] as f64],
            Self::Timed { buckets, all } => {
                let mut out = vec![0.0; *buckets];
                all[code as usize].each(|bucket, pair| out[bucket] = pair.0[side] as f64);
                out
            }
        }
    }

    fn clear(&mut self, code: u32) {
        match self {
            Self::Whole(all) => all[code as usize] = Pair::default(),
            Self::Timed { all, .. } => all[code as usize] = Cells::default(),
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Whole(all) => all.capacity() * size_of::<Pair>(),
            // Looking at each would take as long as counting.
            Self::Timed { buckets, all } => {
                all.capacity() * (size_of::<Cells<Pair>>() + size_of::<(u32, Pair)>() * (*buckets).min(12))
            }
        }
    }
}

/// Values of one form with their counts.
#[derive(Debug)]
struct Table<K> {
    codes: hashbrown::HashMap<K, u32, foldhash::fast::RandomState>,
    counts: Counts,
}

impl<K: Hash + Eq> Table<K> {
    fn new(buckets: usize) -> Self {
        Self { codes: hashbrown::HashMap::default(), counts: Counts::new(buckets, 0) }
    }

    fn code(&mut self, key: K) -> u32 {
        let next = self.codes.len() as u32;
        let code = *self.codes.entry(key).or_insert(next);
        if code == next {
            self.counts.grow();
        }
        code
    }

    fn merge(&mut self, mut other: Self) {
        if self.codes.len() < other.codes.len() {
            std::mem::swap(self, &mut other);
        }
        for (key, of) in other.codes {
            let code = self.code(key);
            self.counts.merge(code, &other.counts, of);
        }
    }

    fn heap_bytes(&self) -> usize {
        self.codes.capacity() * (size_of::<(K, u32)>() + 1) + self.counts.heap_bytes()
    }
}

/// Texts with their counts. The empty one is always there, and is code 0.
#[derive(Debug)]
struct TextTable {
    strings: Strings,
    interner: Interner,
    counts: Counts,
}

impl TextTable {
    fn new(buckets: usize) -> Self {
        Self { strings: Strings::default(), interner: Interner::default(), counts: Counts::new(buckets, 1) }
    }

    fn code(&mut self, text: &[u8]) -> u32 {
        let before = self.strings.len();
        let sym = self.interner.add(&mut self.strings, text);
        if self.strings.len() > before {
            self.counts.grow();
        }
        sym.0
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        (0..self.strings.len() as u32).map(|code| (self.strings.get(Sym(code)), code))
    }

    fn merge(&mut self, mut other: Self) {
        if self.strings.len() < other.strings.len() {
            std::mem::swap(self, &mut other);
        }
        for (text, of) in other.iter() {
            let code = self.code(text);
            self.counts.merge(code, &other.counts, of);
        }
    }

    fn heap_bytes(&self) -> usize {
        self.strings.heap_bytes() + self.interner.heap_bytes() + self.counts.heap_bytes()
    }
}

/// Counts of the values of one attribute.
#[derive(Debug)]
pub(super) struct Tally {
    buckets: usize,
    /// By code in dictionaries of blocks.
    coded: Vec<(Texts, Counts)>,
    texts: TextTable,
    ints: Table<i64>,
    /// All else.
    keys: Table<Key>,
}

impl Tally {
    pub(super) fn new(buckets: usize) -> Self {
        let (ints, keys) = (Table::new(buckets), Table::new(buckets));
        Self { buckets, coded: Vec::new(), texts: TextTable::new(buckets), ints, keys }
    }

    /// Counts a value for each spot that has one.
    pub(super) fn add(&mut self, field: &Field, spots: &[Spot]) {
        if let Some(columns) = field.plain_columns() {
            columns.for_each(|(present, values)| self.add_column(present, values, spots));
            return;
        }
        let encoded = field.encode();
        let mut known = Counts::new(self.buckets, encoded.table.len());
        encoded.codes.iter().zip(spots).for_each(|(code, spot)| known.add(*code, *spot));
        for (of, cell) in (0..).zip(&encoded.table) {
            if known.sums(of) != [0, 0] {
                self.merge_value(label(cell.value()), &known, of);
            }
        }
    }

    /// Counts the values of a column.
    pub(super) fn add_column(&mut self, present: &Present, values: &Values, spots: &[Spot]) {
        match values {
            Values::Codes(codes, texts) => self.add_codes(present, codes, texts, spots),
            Values::Ints(all) => {
                let table = &mut self.ints;
                // The same number often comes again.
                let mut last = None;
                each(present, all, spots, |value, spot| {
                    let code = match last {
                        Some((known, code)) if known == *value => code,
                        _ => table.code(*value),
                    };
                    last = Some((*value, code));
                    table.counts.add(code, spot);
                });
            }
            Values::Texts(all) | Values::Json(all) => each(present, all, spots, |text, spot| {
                let code = self.texts.code(text);
                self.texts.counts.add(code, spot);
            }),
            Values::Floats(all) => each(present, all, spots, |value, spot| {
                let code = self.keys.code(Key::Float(value.to_bits()));
                self.keys.counts.add(code, spot);
            }),
            Values::Bools(all) => each(present, all, spots, |value, spot| {
                let code = self.keys.code(Key::Bool(*value));
                self.keys.counts.add(code, spot);
            }),
            // Of fixed columns only, which come as fields.
            Values::Small(_) | Values::Ids(_) => {}
        }
    }

    fn add_codes(&mut self, present: &Present, codes: &[u32], texts: &Texts, spots: &[Spot]) {
        if texts.is_stored() {
            let buckets = self.buckets;
            let at = self.coded.iter().position(|(known, _)| known.is_same(texts)).unwrap_or_else(|| {
                self.coded.push((texts.clone(), Counts::new(buckets, texts.len())));
                self.coded.len() - 1
            });
            let counts = &mut self.coded[at].1;
            each(present, codes, spots, |code, spot| counts.add(*code, spot));
            return;
        }
        // Live data has one table of all its texts, most of which are of other attributes.
        let mut known: hashbrown::HashMap<u32, u32, foldhash::fast::RandomState> = hashbrown::HashMap::default();
        let mut last = (u32::MAX, 0);
        each(present, codes, spots, |code, spot| {
            if *code != last.0 {
                let own = *known.entry(*code).or_insert_with(|| self.texts.code(texts.get(*code).unwrap_or_default()));
                last = (*code, own);
            }
            self.texts.counts.add(last.1, spot);
        });
    }

    /// Adds what another tally has of a value; nil is none.
    fn merge_value(&mut self, key: Key, counts: &Counts, of: u32) {
        match key {
            Key::Nil => {}
            Key::Str(text) => {
                let code = self.texts.code(text.as_bytes());
                self.texts.counts.merge(code, counts, of);
            }
            Key::Int(value) => {
                let code = self.ints.code(value);
                self.ints.counts.merge(code, counts, of);
            }
            key => {
                let code = self.keys.code(key);
                self.keys.counts.merge(code, counts, of);
            }
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let coded: usize = self.coded.iter().map(|(_, counts)| counts.heap_bytes()).sum();
        coded + self.texts.heap_bytes() + self.ints.heap_bytes() + self.keys.heap_bytes()
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (texts, counts) in other.coded {
            match self.coded.iter_mut().find(|(known, _)| known.is_same(&texts)) {
                Some((_, own)) => (0..texts.len() as u32).for_each(|code| own.merge(code, &counts, code)),
                None => self.coded.push((texts, counts)),
            }
        }
        self.texts.merge(other.texts);
        self.ints.merge(other.ints);
        self.keys.merge(other.keys);
    }

    /// Looks up which texts the codes of dictionaries stand for.
    fn resolve(&mut self) {
        for (texts, counts) in std::mem::take(&mut self.coded) {
            for of in 0..texts.len() as u32 {
                if counts.sums(of) != [0, 0] {
                    let code = self.texts.code(texts.get(of).unwrap_or_default());
                    self.texts.counts.merge(code, &counts, of);
                }
            }
        }
    }

    /// Of texts that say several things each: hands each text to `read`, which tells where its spans count and as what.
    pub(super) fn split<K>(
        mut self,
        mut read: impl FnMut(&[u8]) -> Vec<(K, Cell)>,
        mut tally: impl FnMut(K, &mut dyn FnMut(&mut Self)),
    ) {
        self.resolve();
        let counts = &self.texts.counts;
        for (text, code) in self.texts.iter().filter(|(_, code)| counts.sums(*code) != [0, 0]) {
            for (of, cell) in read(text) {
                tally(of, &mut |tally: &mut Self| tally.merge_value(label(cell.value()), counts, code));
            }
        }
    }

    /// Forgets the empty text.
    pub(super) fn without_empty_text(mut self) -> Self {
        self.resolve();
        self.texts.counts.clear(0);
        self
    }

    /// The most frequent values of each side with their counts by bucket, and the sums over all values; of equally frequent ones
    /// those whose text comes first. Empty if a side has no value.
    pub(super) fn most_frequent(mut self, top: usize) -> [Option<Frequent>; 2] {
        self.resolve();
        let texts = self.texts.iter().map(|(text, code)| (Named::Text(text), &self.texts.counts, code));
        let ints = self.ints.codes.iter().map(|(value, code)| (Named::Int(*value), &self.ints.counts, *code));
        let keys = self.keys.codes.iter().map(|(key, code)| (Named::Key(key), &self.keys.counts, *code));
        let mut totals = Counts::new(self.buckets, 1);
        let mut by_side: [Vec<(u64, Named<'_>, &Counts, u32)>; 2] = [Vec::new(), Vec::new()];
        for (named, counts, code) in texts.chain(ints).chain(keys) {
            totals.merge(0, counts, code);
            for (side, sum) in counts.sums(code).into_iter().enumerate().filter(|(_, sum)| *sum > 0) {
                by_side[side].push((sum, named, counts, code));
            }
        }
        let mut side = 0;
        by_side.map(|mut counted| {
            let this = side;
            side += 1;
            if counted.is_empty() {
                return None;
            }
            keep_most(&mut counted, top);
            let values =
                counted.into_iter().map(|(_, named, counts, code)| (named.cell(), counts.values(code, this))).collect();
            Some(Frequent { values, totals: totals.values(0, this) })
        })
    }
}

/// What came most often.
#[derive(Debug)]
pub(super) struct Frequent {
    pub(super) values: Vec<(Cell, Vec<f64>)>,
    pub(super) totals: Vec<f64>,
}

/// A value of any form.
#[derive(Debug, Clone, Copy)]
enum Named<'t> {
    Text(&'t [u8]),
    Int(i64),
    Key(&'t Key),
}

impl Named<'_> {
    fn cell(self) -> Cell {
        match self {
            Self::Text(text) => Cell::Str(Arc::from(String::from_utf8_lossy(text))),
            Self::Int(value) => Cell::Int(value),
            Self::Key(key) => key.cell(),
        }
    }
}

/// Keeps the most frequent; of equal ones those whose text comes first.
fn keep_most(counted: &mut Vec<(u64, Named<'_>, &Counts, u32)>, top: usize) {
    if counted.len() <= top {
        return;
    }
    counted.select_nth_unstable_by(top - 1, |a, b| b.0.cmp(&a.0));
    let least = counted[top - 1].0;
    let (mut out, ties): (Vec<_>, Vec<_>) =
        std::mem::take(counted).into_iter().filter(|(count, ..)| *count >= least).partition(|(count, ..)| *count > least);
    let mut ties: Vec<(String, _)> = ties.into_iter().map(|tie| (super::stages::label_text(&tie.1.cell()), tie)).collect();
    let room = top - out.len();
    if ties.len() > room {
        ties.select_nth_unstable_by(room - 1, |a, b| a.0.cmp(&b.0));
        ties.truncate(room);
    }
    out.extend(ties.into_iter().map(|(_, tie)| tie));
    *counted = out;
}

/// Calls `each` with every value and the spot of its slot.
fn each<T>(present: &Present, values: &[T], spots: &[Spot], mut each: impl FnMut(&T, Spot)) {
    match present {
        Present::All => values.iter().zip(spots).for_each(|(value, spot)| each(value, *spot)),
        Present::At(slots) => values.iter().zip(slots).for_each(|(value, slot)| each(value, spots[*slot as usize])),
    }
}
