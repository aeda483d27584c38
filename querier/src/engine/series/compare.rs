//! `compare()`: how often each value of every attribute comes in a selection of spans, and in the others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use spanhouse_common::columns::{Fixed, Owner, Rows, Values};
use spanhouse_common::model::typed_json;
use spanhouse_common::source::SourceError;

use super::super::bits::Bits;
use super::super::expr::Attributes;
use super::super::filter::PartView;
use super::super::value::Cell;
use super::super::{EngineError, Grid};
use super::accumulate::Buckets;
use super::plan::Compare;
use super::stages::RawSeries;
use super::tally::{OUT, Spot, Tally};
use crate::traceql::ast::{Attribute, Intrinsic, Scope};

const META: &str = "__meta_type";

/// Intrinsics of a span that are compared beside all attributes, and those its scope tells.
const INTRINSICS: [Intrinsic; 4] = [Intrinsic::Name, Intrinsic::Kind, Intrinsic::Status, Intrinsic::StatusMessage];

/// Those that depend on the trace around the span.
const TRACE_INTRINSICS: [Intrinsic; 3] = [Intrinsic::RootName, Intrinsic::RootService, Intrinsic::ChildCount];

/// Which attributes are counted: joining traces for those that a span has by itself would be work for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    OfSpans,
    OfTraces,
}

/// Counts by attribute and value.
#[derive(Debug)]
pub(crate) struct Comparison {
    grid: Grid,
    buckets: usize,
    attributes: HashMap<Attribute, Tally>,
    /// Whole resources and scopes as they are stored: each is taken apart once, in the end.
    resources: Tally,
    scopes: Tally,
    /// Bytes counted against the query's memory so far.
    kept: usize,
}

/// What several comparisons have, by attribute.
pub(crate) struct ByAttribute {
    pub(crate) tallies: Vec<(Attribute, Vec<Tally>)>,
    /// What could not be read.
    pub(crate) damage: Vec<String>,
}

impl Comparison {
    pub(crate) fn new(grid: Grid) -> Self {
        let buckets = Buckets::count(grid);
        let (resources, scopes) = (Tally::new(buckets), Tally::new(buckets));
        Self { grid, buckets, attributes: HashMap::new(), resources, scopes, kept: 0 }
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
        let at: Vec<u32> = rows.ones().map(|row| from + row as u32).collect();
        if at.is_empty() {
            return Ok(());
        }
        // Where most spans count, all are read: picking some out of every column costs more.
        let rows = if at.len() * 4 >= rows.len() { Rows::Range(from, from + rows.len() as u32) } else { Rows::At(&at) };
        let starts = view.part.column(Fixed::Start, rows)?;
        let Values::Ints(starts) = &starts.values else { return Ok(()) };
        let selected = view.frame(rows).truth(&compare.filter)?.holds;
        let mut buckets = Buckets::new(self.grid);
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
        for attribute in attributes_of(view, which)? {
            view.budget.check()?;
            // A frame of its own: the field goes when it is counted.
            let mut table = Attributes::default();
            let id = table.id(&attribute);
            let single = PartView { attributes: &table, ..PartView::new(view.part, &table, view.budget)? };
            let field = single.frame(rows).field(id)?;
            self.tally(attribute).add(&field, &spots);
        }
        if which != Which::OfTraces {
            for (column, tally) in [(Fixed::Resource, &mut self.resources), (Fixed::Scope, &mut self.scopes)] {
                let column = view.part.column(column, rows)?;
                tally.add_column(&column.present, &column.values, &spots);
            }
        }
        let now = self.heap_bytes();
        let more = now.saturating_sub(self.kept);
        self.kept = self.kept.max(now);
        view.budget.keep(more)
    }

    fn tally(&mut self, attribute: Attribute) -> &mut Tally {
        self.attributes.entry(attribute).or_insert_with(|| Tally::new(self.buckets))
    }

    fn heap_bytes(&self) -> usize {
        self.attributes.values().chain([&self.resources, &self.scopes]).map(Tally::heap_bytes).sum()
    }

    /// What several have of each attribute; the largest first, so that working on them ends about at once on all threads.
    pub(crate) fn by_attribute(all: Vec<Self>) -> ByAttribute {
        let mut found: HashMap<Attribute, Vec<Tally>> = HashMap::new();
        let (mut whole, mut damage): (Option<Self>, Vec<String>) = (None, Vec::new());
        for mut one in all {
            for (attribute, tally) in std::mem::take(&mut one.attributes) {
                found.entry(attribute).or_default().push(tally);
            }
            match &mut whole {
                Some(whole) => {
                    whole.resources.merge(one.resources);
                    whole.scopes.merge(one.scopes);
                }
                None => whole = Some(one),
            }
        }
        if let Some(whole) = whole {
            let mut parts = Self::new(whole.grid);
            let mut or_damage = |read: Result<_, EngineError>| {
                read.unwrap_or_else(|error: EngineError| {
                    damage.push(error.to_string());
                    Vec::new()
                })
            };
            whole.resources.split(|text| or_damage(of_resource(text)), |attribute, add| add(parts.tally(attribute)));
            whole.scopes.split(|text| or_damage(of_scope(text)), |attribute, add| add(parts.tally(attribute)));
            for (attribute, tally) in parts.attributes {
                found.entry(attribute).or_default().push(tally);
            }
        }
        let mut tallies: Vec<(Attribute, Vec<Tally>)> = found.into_iter().collect();
        tallies.sort_by_cached_key(|(_, tallies)| std::cmp::Reverse(tallies.iter().map(Tally::heap_bytes).sum::<usize>()));
        ByAttribute { tallies, damage }
    }
}

/// The most frequent values of an attribute, and the sums over all.
pub(crate) fn series_of(attribute: &Attribute, tallies: Vec<Tally>, top: usize) -> Vec<RawSeries> {
    let Some(mut tally) = tallies.into_iter().reduce(|mut all, one| {
        all.merge(one);
        all
    }) else {
        return Vec::new();
    };
    if is_service_name(attribute) {
        // A service without name reads as the empty text, but there is no value to count.
        tally = tally.without_empty_text();
    }
    let name: Arc<str> = attribute.text().into();
    let series = |meta: &str, value: Cell, values: Vec<f64>| RawSeries {
        labels: vec![(Arc::from(META), Cell::Str(Arc::from(meta))), (Arc::clone(&name), value)],
        values,
        exemplars: Vec::new(),
    };
    let mut out = Vec::new();
    let metas = [("baseline", "baseline_total"), ("selection", "selection_total")];
    for (side, (meta, meta_total)) in tally.most_frequent(top).into_iter().zip(metas) {
        let Some(side) = side else { continue };
        out.extend(side.values.into_iter().map(|(value, values)| series(meta, value, values)));
        out.push(series(meta_total, Cell::Str(Arc::from("nil")), side.totals));
    }
    out
}

fn is_service_name(attribute: &Attribute) -> bool {
    matches!(attribute, Attribute::Scoped { scope: Scope::Resource, name } if **name == *"service.name")
}

/// Every attribute that some of the spans may have, but for what resources and scopes tell.
fn attributes_of(view: &PartView<'_>, which: Which) -> Result<Vec<Attribute>, EngineError> {
    let of_traces = TRACE_INTRINSICS.into_iter().map(Attribute::Intrinsic);
    let mut out: Vec<Attribute> = INTRINSICS.into_iter().map(Attribute::Intrinsic).collect();
    match which {
        Which::OfTraces => return Ok(of_traces.collect()),
        Which::All => out.extend(of_traces),
        Which::OfSpans => {}
    }
    // This one has a column of its own.
    out.push(Attribute::Scoped { scope: Scope::Resource, name: "service.name".into() });
    for (owner, scope) in [(Owner::Span, Scope::Span), (Owner::Event, Scope::Event), (Owner::Link, Scope::Link)] {
        let keys = view.part.keys(owner)?;
        out.extend(keys.into_iter().map(|(key, _)| Attribute::Scoped { scope, name: key.into() }));
    }
    Ok(out)
}

/// What a resource has, but for the service's name.
fn of_resource(text: &[u8]) -> Result<Vec<(Attribute, Cell)>, EngineError> {
    let resource = parsed("resource", text, typed_json::parse_resource)?;
    let mut out = attributes(&resource.attributes, Scope::Resource);
    out.retain(|(attribute, _)| !is_service_name(attribute));
    Ok(out)
}

/// What an instrumentation scope has.
fn of_scope(text: &[u8]) -> Result<Vec<(Attribute, Cell)>, EngineError> {
    let scope = parsed("scope", text, typed_json::parse_scope)?;
    let mut out = attributes(&scope.attributes, Scope::Instrumentation);
    for (intrinsic, text) in
        [(Intrinsic::InstrumentationName, &scope.name), (Intrinsic::InstrumentationVersion, &scope.version)]
    {
        out.push((Attribute::Intrinsic(intrinsic), Cell::Str(text.as_str().into())));
    }
    Ok(out)
}

fn parsed<T>(
    what: &str,
    text: &[u8],
    parse: impl FnOnce(&str) -> Result<T, typed_json::TypedJsonError>,
) -> Result<T, EngineError> {
    let bad = |why: String| EngineError::Source(SourceError::Damaged { what: what.into(), why });
    let text = std::str::from_utf8(text).map_err(|e| bad(e.to_string()))?;
    parse(text).map_err(|e| bad(e.to_string()))
}

/// Of a key that comes twice the first counts.
fn attributes(all: &[spanhouse_common::model::Attribute], scope: Scope) -> Vec<(Attribute, Cell)> {
    let mut seen = HashSet::new();
    let first = all.iter().filter(|attribute| seen.insert(attribute.key.as_str()));
    let named = |key: &str| Attribute::Scoped { scope, name: key.into() };
    first.map(|attribute| (named(&attribute.key), Cell::of_stored(&attribute.value))).collect()
}
