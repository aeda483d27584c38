//! `compare()`: how often each value of every attribute comes in a selection of spans, and in the others.

use std::collections::HashMap;
use std::sync::Arc;

use spanhouse_common::columns::{Fixed, Owner, Rows, Texts, Values};
use spanhouse_common::model::typed_json;

use super::super::bits::Bits;
use super::super::budget::Budget;
use super::super::expr::Attributes;
use super::super::filter::PartView;
use super::super::key::Key;
use super::super::value::Cell;
use super::super::{EngineError, Grid};
use super::accumulate::{Buckets, label};
use super::cells::{Cells, Merge};
use super::plan::Compare;
use super::stages::RawSeries;
use crate::traceql::ast::{Attribute, Intrinsic, Scope};

const META: &str = "__meta_type";

/// Intrinsics of a span that are compared beside all attributes.
const INTRINSICS: [Intrinsic; 6] = [
    Intrinsic::Name,
    Intrinsic::Kind,
    Intrinsic::Status,
    Intrinsic::StatusMessage,
    Intrinsic::InstrumentationName,
    Intrinsic::InstrumentationVersion,
];

/// Those that depend on the trace around the span.
const TRACE_INTRINSICS: [Intrinsic; 3] = [Intrinsic::RootName, Intrinsic::RootService, Intrinsic::ChildCount];

/// Which attributes are counted: joining traces for those that a span has by itself would be work for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    OfSpans,
    OfTraces,
}

/// Spans of the baseline and of the selection.
#[derive(Debug, Clone, Copy, Default)]
struct Pair([u64; 2]);

impl Merge for Pair {
    fn merge(&mut self, other: &Self) {
        self.0[0] += other.0[0];
        self.0[1] += other.0[1];
    }
}

/// Where a span counts.
#[derive(Debug, Clone, Copy)]
struct Spot {
    /// 0 or 1, or [`OUT`].
    side: u32,
    bucket: u32,
}

/// Of spans that do not count.
const OUT: u32 = 2;

/// Counts by attribute and value.
#[derive(Debug)]
pub(crate) struct Comparison {
    grid: Grid,
    buckets: usize,
    attributes: HashMap<Attribute, HashMap<Key, Cells<Pair>, foldhash::fast::RandomState>>,
    /// Counts by code of texts that blocks have dictionaries of; only without times.
    dictionaries: HashMap<Attribute, Vec<(Texts, Vec<Pair>)>>,
}

impl Comparison {
    pub(crate) fn new(grid: Grid) -> Self {
        Self { grid, buckets: Buckets::count(grid), attributes: HashMap::new(), dictionaries: HashMap::new() }
    }

    /// Adds the spans at `rows` (numbered from `from`) of a part.
    pub(crate) fn add(
        &mut self,
        compare: &Compare,
        view: &PartView<'_>,
        rows: &Bits,
        from: u32,
        which: Which,
    ) -> Result<(), EngineError> {
        let grid = self.grid;
        let at: Vec<u32> = rows.ones().map(|row| from + row as u32).collect();
        if at.is_empty() {
            return Ok(());
        }
        // Where most spans count, all are read: picking some out of every column costs more.
        let rows = if at.len() * 4 >= rows.len() { Rows::Range(from, from + rows.len() as u32) } else { Rows::At(&at) };
        let starts = view.part.column(Fixed::Start, rows)?;
        let Values::Ints(starts) = &starts.values else { return Ok(()) };
        let selected = view.frame(rows).truth(&compare.filter)?.holds;
        let mut buckets = Buckets::new(grid);
        let mut spots = vec![Spot { side: OUT, bucket: 0 }; rows.len()];
        let mut counted = at.iter().peekable();
        for (slot, (spot, start)) in spots.iter_mut().zip(starts).enumerate() {
            if counted.next_if(|row| **row == rows.row(slot)).is_none() {
                continue;
            }
            let start = *start as u64;
            if let Some(bucket) = buckets.of(start) {
                let in_window = compare.window.is_none_or(|(from, to)| start > from && start <= to);
                *spot = Spot { side: u32::from(selected.get(slot) && in_window), bucket };
            }
        }
        if spots.iter().all(|spot| spot.side == OUT) {
            return Ok(());
        }
        let attributes = attributes_of(view, rows, which)?;
        for attribute in attributes {
            view.budget.check()?;
            // A frame of its own: the field goes when it is counted.
            let mut table = Attributes::default();
            let id = table.id(&attribute);
            let single = PartView { attributes: &table, ..PartView::new(view.part, &table, view.budget)? };
            let field = single.frame(rows).field(id)?;
            match field.texts().filter(|(_, _, texts)| self.buckets == 1 && texts.is_stored()) {
                Some((slots, codes, texts)) => self.count_texts(attribute, slots, codes, texts, &spots),
                None => {
                    let encoded = field.encode();
                    self.count(attribute, &encoded.codes, &encoded.table, &spots);
                }
            }
        }
        view.budget.charge(self.heap_bytes())
    }

    /// Counts texts by their code in a block's dictionary: which text that is matters only in the end.
    fn count_texts(&mut self, attribute: Attribute, slots: Option<&[u32]>, codes: &[u32], texts: &Texts, spots: &[Spot]) {
        let known = self.dictionaries.entry(attribute).or_default();
        let at = known.iter().position(|(other, _)| other.is_same(texts)).unwrap_or_else(|| {
            known.push((texts.clone(), vec![Pair::default(); texts.len()]));
            known.len() - 1
        });
        let counts = &mut known[at].1;
        let mut count = |slot: usize, code: u32| {
            let side = spots[slot].side;
            if side != OUT {
                counts[code as usize].0[side as usize] += 1;
            }
        };
        match slots {
            None => codes.iter().enumerate().for_each(|(slot, code)| count(slot, *code)),
            Some(slots) => slots.iter().zip(codes).for_each(|(slot, code)| count(*slot as usize, *code)),
        }
    }

    fn count(&mut self, attribute: Attribute, codes: &[u32], table: &[Cell], spots: &[Spot]) {
        // A service without name reads as the empty text, but there is no value to count.
        let is_service = is_service_name(&attribute);
        let key = |cell: &Cell| match label(cell.value()) {
            Key::Str(text) if is_service && text.is_empty() => Key::Nil,
            key => key,
        };
        let keys: Vec<Key> = table.iter().map(key).collect();
        let buckets = self.buckets;
        let counted = codes.iter().zip(spots).filter(|(_, spot)| spot.side != OUT);
        let values = self.attributes.entry(attribute).or_default();
        if buckets == 1 {
            let mut counts = vec![Pair::default(); table.len()];
            counted.for_each(|(code, spot)| counts[*code as usize].0[spot.side as usize] += 1);
            for (key, count) in keys.into_iter().zip(counts) {
                if key != Key::Nil && count.0 != [0, 0] {
                    values.entry(key).or_default().at(0, 1).merge(&count);
                }
            }
            return;
        }
        let mut cells: Vec<Cells<Pair>> = vec![Cells::default(); table.len()];
        counted.for_each(|(code, spot)| cells[*code as usize].at(spot.bucket, buckets).0[spot.side as usize] += 1);
        for (key, cells) in keys.into_iter().zip(cells) {
            if key != Key::Nil {
                values.entry(key).or_default().merge(&cells, buckets);
            }
        }
    }

    /// Texts that were counted by code, as values.
    fn resolve(&mut self) {
        for (attribute, dictionaries) in std::mem::take(&mut self.dictionaries) {
            let values = self.attributes.entry(attribute).or_default();
            for (texts, counts) in dictionaries {
                for (code, count) in (0..).zip(counts).filter(|(_, count)| count.0 != [0, 0]) {
                    let text = String::from_utf8_lossy(texts.get(code).unwrap_or_default());
                    values.entry(Key::Str(text.into())).or_default().at(0, 1).merge(&count);
                }
            }
        }
        self.attributes.retain(|_, values| !values.is_empty());
    }

    fn heap_bytes(&self) -> usize {
        let of_values =
            |values: &HashMap<Key, Cells<Pair>, _>| values.len() * (96 + if self.buckets > 12 { 16 * 12 } else { 32 });
        let of_texts = |all: &Vec<(Texts, Vec<Pair>)>| all.iter().map(|(_, counts)| counts.len() * 16).sum::<usize>();
        self.attributes.values().map(of_values).sum::<usize>() + self.dictionaries.values().map(of_texts).sum::<usize>()
    }

    pub(crate) fn merge(&mut self, other: Self, budget: &Budget) -> Result<(), EngineError> {
        for (attribute, dictionaries) in other.dictionaries {
            let own = self.dictionaries.entry(attribute).or_default();
            for (texts, counts) in dictionaries {
                match own.iter_mut().find(|(known, _)| known.is_same(&texts)) {
                    Some((_, known)) => known.iter_mut().zip(&counts).for_each(|(known, count)| known.merge(count)),
                    None => own.push((texts, counts)),
                }
            }
        }
        for (attribute, values) in other.attributes {
            let own = self.attributes.entry(attribute).or_default();
            if own.is_empty() {
                *own = values;
                continue;
            }
            for (key, cells) in values {
                own.entry(key).or_default().merge(&cells, self.buckets);
            }
        }
        budget.charge(self.heap_bytes())
    }

    /// The most frequent values of each attribute, and the sums over all.
    pub(crate) fn finish(mut self, top: usize) -> Vec<RawSeries> {
        self.resolve();
        let mut out = Vec::new();
        for (attribute, values) in &self.attributes {
            let name: Arc<str> = attribute.text().into();
            let mut totals: Cells<Pair> = Cells::default();
            // By side: count and key.
            let mut by_side: [Vec<(u64, Key)>; 2] = [Vec::new(), Vec::new()];
            for (key, cells) in values {
                let mut sums = [0u64; 2];
                cells.each(|bucket, pair| {
                    totals.at(bucket as u32, self.buckets).merge(pair);
                    sums[0] += pair.0[0];
                    sums[1] += pair.0[1];
                });
                for (side, sum) in sums.into_iter().enumerate().filter(|(_, sum)| *sum > 0) {
                    by_side[side].push((sum, key.clone()));
                }
            }
            for (side, mut counted) in by_side.into_iter().enumerate() {
                if counted.is_empty() {
                    continue;
                }
                most_frequent(&mut counted, top);
                let meta = ["baseline", "selection"][side];
                for (_, key) in counted {
                    if let Some(cells) = values.get(&key) {
                        out.push(self.series_of(meta, &name, key.cell(), cells, side));
                    }
                }
                let meta = ["baseline_total", "selection_total"][side];
                out.push(self.series_of(meta, &name, Cell::Str(Arc::from("nil")), &totals, side));
            }
        }
        out
    }

    fn series_of(&self, meta: &str, name: &Arc<str>, value: Cell, cells: &Cells<Pair>, side: usize) -> RawSeries {
        let mut values = vec![0.0; self.buckets];
        cells.each(|bucket, pair| values[bucket] = pair.0[side] as f64);
        let labels = vec![(Arc::from(META), Cell::Str(Arc::from(meta))), (Arc::clone(name), value)];
        RawSeries { labels, values, exemplars: Vec::new() }
    }
}

/// Keeps the most frequent; of equal ones those whose text comes first.
fn most_frequent(counted: &mut Vec<(u64, Key)>, top: usize) {
    if counted.len() > top {
        counted.select_nth_unstable_by(top - 1, |a, b| b.0.cmp(&a.0));
        let least = counted[top - 1].0;
        let (mut out, ties): (Vec<_>, Vec<_>) =
            std::mem::take(counted).into_iter().filter(|(count, _)| *count >= least).partition(|(count, _)| *count > least);
        let mut ties: Vec<(String, (u64, Key))> =
            ties.into_iter().map(|tie| (super::stages::label_text(&tie.1.cell()), tie)).collect();
        let room = top - out.len();
        if ties.len() > room {
            ties.select_nth_unstable_by(room - 1, |a, b| a.0.cmp(&b.0));
            ties.truncate(room);
        }
        out.extend(ties.into_iter().map(|(_, tie)| tie));
        *counted = out;
    }
}

fn is_service_name(attribute: &Attribute) -> bool {
    matches!(attribute, Attribute::Scoped { scope: Scope::Resource, name } if **name == *"service.name")
}

/// Every attribute that some of the rows may have.
fn attributes_of(view: &PartView<'_>, rows: Rows<'_>, which: Which) -> Result<Vec<Attribute>, EngineError> {
    let of_traces = TRACE_INTRINSICS.into_iter().map(Attribute::Intrinsic);
    let mut out: Vec<Attribute> = INTRINSICS.into_iter().map(Attribute::Intrinsic).collect();
    match which {
        Which::OfTraces => return Ok(of_traces.collect()),
        Which::All => out.extend(of_traces),
        Which::OfSpans => {}
    }
    for (owner, scope) in [(Owner::Span, Scope::Span), (Owner::Event, Scope::Event), (Owner::Link, Scope::Link)] {
        let keys = view.part.keys(owner)?;
        out.extend(keys.into_iter().map(|(key, _)| Attribute::Scoped { scope, name: key.into() }));
    }
    let bad =
        |why: String| EngineError::Source(spanhouse_common::source::SourceError::Damaged { what: view.part.name(), why });
    for (which, scope) in [(Fixed::Resource, Scope::Resource), (Fixed::Scope, Scope::Instrumentation)] {
        let column = view.part.column(which, rows)?;
        let mut texts: Vec<&[u8]> = match &column.values {
            Values::Codes(codes, texts) => {
                let mut codes = codes.clone();
                codes.sort_unstable();
                codes.dedup();
                codes.into_iter().filter_map(|code| texts.get(code)).collect()
            }
            values => (0..values.len()).filter_map(|at| values.text(at)).collect(),
        };
        texts.sort_unstable();
        texts.dedup();
        let mut keys: Vec<String> = Vec::new();
        for text in texts {
            let text = std::str::from_utf8(text).map_err(|e| bad(e.to_string()))?;
            let attributes = if which == Fixed::Resource {
                typed_json::parse_resource(text).map_err(|e| bad(e.to_string()))?.attributes
            } else {
                typed_json::parse_scope(text).map_err(|e| bad(e.to_string()))?.attributes
            };
            keys.extend(attributes.into_iter().map(|attribute| attribute.key));
        }
        keys.sort_unstable();
        keys.dedup();
        out.extend(keys.into_iter().map(|key| Attribute::Scoped { scope, name: key.into() }));
    }
    Ok(out)
}
