//! `compare()`: how often each value of every attribute comes in a selection of spans, and in the others.

use std::collections::HashMap;
use std::sync::Arc;

use spanhouse_common::columns::{Fixed, Owner, Rows, Values};
use spanhouse_common::model::typed_json;

use super::super::bits::Bits;
use super::super::budget::Budget;
use super::super::expr::Attributes;
use super::super::field::Key;
use super::super::filter::PartView;
use super::super::value::Cell;
use super::super::{EngineError, Grid};
use super::accumulate::{Buckets, label};
use super::cells::{Cells, Merge};
use super::plan::Compare;
use super::stages::RawSeries;
use crate::traceql::ast::{Attribute, Intrinsic, Scope};

const META: &str = "__meta_type";

/// Intrinsics that are compared beside all attributes.
const INTRINSICS: [Intrinsic; 9] = [
    Intrinsic::Name,
    Intrinsic::Kind,
    Intrinsic::Status,
    Intrinsic::StatusMessage,
    Intrinsic::RootName,
    Intrinsic::RootService,
    Intrinsic::ChildCount,
    Intrinsic::InstrumentationName,
    Intrinsic::InstrumentationVersion,
];

/// Spans of the baseline and of the selection.
#[derive(Debug, Clone, Copy, Default)]
struct Pair([u64; 2]);

impl Merge for Pair {
    fn merge(&mut self, other: &Self) {
        self.0[0] += other.0[0];
        self.0[1] += other.0[1];
    }
}

/// Counts by attribute and value.
#[derive(Debug)]
pub(crate) struct Comparison {
    buckets: usize,
    attributes: HashMap<Attribute, HashMap<Key, Cells<Pair>, foldhash::fast::RandomState>>,
    pub(crate) scanned: bool,
}

impl Comparison {
    pub(crate) fn new(grid: Grid) -> Self {
        Self { buckets: Buckets::count(grid), attributes: HashMap::new(), scanned: false }
    }

    /// Adds the spans at `rows` (numbered from `from`) of a part.
    pub(crate) fn add(
        &mut self,
        compare: &Compare,
        view: &PartView<'_>,
        rows: &Bits,
        from: u32,
        grid: Grid,
    ) -> Result<(), EngineError> {
        self.scanned |= rows.len() > 0;
        let at: Vec<u32> = rows.ones().map(|row| from + row as u32).collect();
        if at.is_empty() {
            return Ok(());
        }
        let starts = view.part.column(Fixed::Start, Rows::At(&at))?;
        let Values::Ints(starts) = &starts.values else { return Ok(()) };
        let mut buckets = Buckets::new(grid);
        // Rows in range, with their bucket.
        let mut kept: Vec<u32> = Vec::with_capacity(at.len());
        let mut bucket_of: Vec<u32> = Vec::with_capacity(at.len());
        let mut in_window: Vec<bool> = Vec::with_capacity(at.len());
        for (row, start) in at.iter().zip(starts) {
            let start = *start as u64;
            if let Some(bucket) = buckets.of(start) {
                kept.push(*row);
                bucket_of.push(bucket);
                in_window.push(compare.window.is_none_or(|(from, to)| start > from && start <= to));
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
        let frame = view.frame(Rows::At(&kept));
        let selected = frame.truth(&compare.filter)?.holds;
        let side: Vec<u8> = (0..kept.len()).map(|slot| u8::from(selected.get(slot) && in_window[slot])).collect();
        drop(frame);
        for attribute in attributes_of(view, &kept)? {
            view.budget.check()?;
            // A frame of its own: the field goes when it is counted.
            let mut table = Attributes::default();
            let id = table.id(&attribute);
            let single = PartView { attributes: &table, ..PartView::new(view.part, &table, view.budget)? };
            let encoded = single.frame(Rows::At(&kept)).field(id)?.encode();
            self.count(attribute, &encoded.codes, &encoded.table, &side, &bucket_of);
        }
        view.budget.charge(self.heap_bytes())
    }

    fn count(&mut self, attribute: Attribute, codes: &[u32], table: &[Cell], side: &[u8], bucket_of: &[u32]) {
        // A service without name reads as the empty text, but there is no value to count.
        let is_service = matches!(&attribute, Attribute::Scoped { scope: Scope::Resource, name } if **name == *"service.name");
        let key = |cell: &Cell| match label(cell.value()) {
            Key::Str(text) if is_service && text.is_empty() => Key::Nil,
            key => key,
        };
        let keys: Vec<Key> = table.iter().map(key).collect();
        let buckets = self.buckets;
        if buckets == 1 {
            let mut counts = vec![[0u64; 2]; table.len()];
            for (code, side) in codes.iter().zip(side) {
                counts[*code as usize][usize::from(*side)] += 1;
            }
            let values = self.attributes.entry(attribute).or_default();
            for (key, count) in keys.into_iter().zip(counts) {
                if key != Key::Nil && count != [0, 0] {
                    values.entry(key).or_default().at(0, 1).merge(&Pair(count));
                }
            }
            return;
        }
        let mut cells: Vec<Cells<Pair>> = vec![Cells::default(); table.len()];
        for ((code, side), bucket) in codes.iter().zip(side).zip(bucket_of) {
            cells[*code as usize].at(*bucket, buckets).0[usize::from(*side)] += 1;
        }
        let values = self.attributes.entry(attribute).or_default();
        for (key, cells) in keys.into_iter().zip(cells) {
            if key != Key::Nil {
                values.entry(key).or_default().merge(&cells, buckets);
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        let of_values = |values: &HashMap<Key, Cells<Pair>, _>| values.len() * (96 + if self.buckets > 12 { 16 * 12 } else { 32 });
        self.attributes.values().map(of_values).sum()
    }

    pub(crate) fn merge(&mut self, other: Self, budget: &Budget) -> Result<(), EngineError> {
        self.scanned |= other.scanned;
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
    pub(crate) fn finish(&self, top: usize) -> Vec<RawSeries> {
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
                counted.sort_by(|a, b| {
                    b.0.cmp(&a.0).then_with(|| super::stages::label_text(&a.1.cell()).cmp(&super::stages::label_text(&b.1.cell())))
                });
                counted.truncate(top);
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

/// Every attribute that some of the rows may have.
fn attributes_of(view: &PartView<'_>, rows: &[u32]) -> Result<Vec<Attribute>, EngineError> {
    let mut out: Vec<Attribute> = INTRINSICS.into_iter().map(Attribute::Intrinsic).collect();
    for (owner, scope) in [(Owner::Span, Scope::Span), (Owner::Event, Scope::Event), (Owner::Link, Scope::Link)] {
        let keys = view.part.keys(owner)?;
        out.extend(keys.into_iter().map(|(key, _)| Attribute::Scoped { scope, name: key.into() }));
    }
    let bad = |why: String| {
        EngineError::Source(spanhouse_common::source::SourceError::Damaged { what: view.part.name(), why })
    };
    for (which, scope) in [(Fixed::Resource, Scope::Resource), (Fixed::Scope, Scope::Instrumentation)] {
        let column = view.part.column(which, Rows::At(rows))?;
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
