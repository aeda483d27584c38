//! One row group: each column gathered from the rows in block order, encoded, and handed to the Parquet file.
//!
//! Columns are made one after the other in schema order, so that only one of them is in memory beside the attributes, which
//! are collected in one pass first.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use parquet::file::writer::SerializedRowGroupWriter;
use parquet::schema::types::SchemaDescPtr;

use super::attrs::{AttrColumns, AttrsOf, KeyCounts, TypedColumn};
use super::bitmap::Bitmap;
use super::chunk::{ChunkEncoder, Extras, Levels, Values};
use super::emit::{Emitter, Frame, coded, optional_bytes};
use super::gather::{Dictionaries, Global};
use super::lists::Lists;
use super::order::{BlockRow, Ordered, has};
use super::schema::{TypedKey, TypedKeys};
use super::summary::{KeySummary, OperationCounter, Summary, ValueSet};
use super::writer::{Counts, WriteError, WriterOptions};
use crate::batch::{Row, SpanBatch, ValueKind};

/// False positives of the filters on attribute columns.
const FILTER_FPP: f64 = 0.05;
/// Most columns of a row group with a filter, and most bytes their filters take together, per row.
const FILTER_COLUMNS: usize = 4;
const FILTER_BYTES_PER_ROW: f64 = 0.5;
/// Filter bytes per distinct value at [`FILTER_FPP`].
const FILTER_BYTES_PER_VALUE: f64 = 0.9;
/// With fewer distinct values than this, reading the dictionary is as cheap as reading a filter.
const FILTER_MIN_DISTINCT: usize = 1000;
/// Longer values are text to read, not ids to look up.
const FILTER_MAX_VALUE_BYTES: usize = 64;

pub(super) struct RowGroupWriter<'a> {
    batches: &'a [Arc<SpanBatch>],
    ordered: &'a Ordered,
    keys: &'a TypedKeys,
    encoder: ChunkEncoder,
    dictionaries: Dictionaries,
    span_values: Vec<ValueSet>,
    event_values: Vec<ValueSet>,
    link_values: Vec<ValueSet>,
    operations: OperationCounter,
}

/// A text column that may get a filter.
#[derive(Clone, Copy, Debug)]
pub(super) struct FilterCandidate {
    pub(super) slot: usize,
    pub(super) values: usize,
    pub(super) distinct: usize,
    /// Of the distinct values together.
    pub(super) bytes: usize,
}

/// Chooses which text columns get a filter: ids, so many short values, the ones with fewest distinct values first.
pub(super) fn choose_filters(candidates: Vec<FilterCandidate>, slots: usize, rows: usize) -> Vec<Option<f64>> {
    let is_of_ids = |of: &FilterCandidate| {
        of.values >= FILTER_MIN_DISTINCT
            && of.distinct >= FILTER_MIN_DISTINCT
            && of.bytes <= of.distinct * FILTER_MAX_VALUE_BYTES
    };
    let mut candidates: Vec<(usize, usize)> =
        candidates.into_iter().filter(is_of_ids).map(|of| (of.distinct, of.slot)).collect();
    candidates.sort_unstable();
    let mut chosen = vec![None; slots];
    let mut room = rows as f64 * FILTER_BYTES_PER_ROW;
    for (distinct, slot) in candidates.into_iter().take(FILTER_COLUMNS) {
        let bytes = distinct as f64 * FILTER_BYTES_PER_VALUE;
        if bytes > room {
            break;
        }
        room -= bytes;
        chosen[slot] = Some(FILTER_FPP);
    }
    chosen
}

/// The columns of gathered attributes that may get a filter.
fn filter_candidates(
    attrs: &AttrColumns,
    keys: &[TypedKey],
    dictionaries: &mut Dictionaries,
    global: &Global<'_>,
) -> Vec<FilterCandidate> {
    let text_columns = attrs
        .typed
        .iter()
        .zip(keys)
        .enumerate()
        .filter(|(_, (column, key))| key.kind == ValueKind::Str && column.texts.len() >= FILTER_MIN_DISTINCT);
    let candidate = |(slot, (column, _)): (usize, (&TypedColumn, &TypedKey))| {
        let (distinct, bytes) = dictionaries.distinct(&column.texts, global.strings());
        FilterCandidate { slot, values: column.texts.len(), distinct, bytes }
    };
    text_columns.map(candidate).collect()
}

impl<'a> RowGroupWriter<'a> {
    pub(super) fn new(
        batches: &'a [Arc<SpanBatch>],
        ordered: &'a Ordered,
        keys: &'a TypedKeys,
        options: WriterOptions,
    ) -> Result<Self, WriteError> {
        let sets = |keys: &[TypedKey]| keys.iter().map(|_| ValueSet::default()).collect();
        Ok(Self {
            batches,
            ordered,
            keys,
            encoder: ChunkEncoder::new(options.zstd_level)?,
            dictionaries: Dictionaries::default(),
            span_values: sets(&keys.span),
            event_values: sets(&keys.event),
            link_values: sets(&keys.link),
            operations: OperationCounter::default(),
        })
    }

    /// Writes the rows of these traces.
    pub(super) fn write<W: Write + Send>(
        &mut self,
        traces: Range<usize>,
        global: &mut Global<'_>,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<(), WriteError> {
        let ordered = self.ordered;
        let first = ordered.traces[traces.start].first as usize;
        let end = ordered.traces.get(traces.end).map_or(ordered.rows.len(), |next| next.first as usize);
        let rows = &ordered.rows[first..end];

        let mut spans = AttrColumns::new(&self.keys.span, global);
        for row in rows {
            let batch = &self.batches[row.batch as usize];
            let of = AttrsOf {
                batch: row.batch,
                shapes: &batch.shapes,
                values: &batch.attrs,
                shape: row.shape,
                start: row.attrs_start,
            };
            spans.push(of, global);
        }
        let mut out = Emitter {
            encoder: &mut self.encoder,
            dictionaries: &mut self.dictionaries,
            schema: group_schema(self.keys)?,
            group,
            rows: rows.len(),
            next: 0,
        };
        let part = Part { batches: self.batches, ordered, traces, rows, first };
        part.fixed_columns(&mut out, global)?;
        rows.iter().for_each(|row| self.operations.add(row.service, row.name, row.kind));
        let frame = Frame::Spans;
        out.shapes(&frame, &spans.shapes, &spans.shape_texts(global))?;
        let candidates = filter_candidates(&spans, &self.keys.span, out.dictionaries, global);
        let filters = choose_filters(candidates, self.keys.span.len(), rows.len());
        for (slot, key) in self.keys.span.iter().enumerate() {
            out.typed(&frame, key.kind, &spans.typed[slot], global, filters[slot], &mut self.span_values[slot])?;
        }
        rest_map(&mut out, &spans, global)?;
        drop(spans);
        Lists::events(rows, self.batches).write_events(&mut out, &self.keys.event, global, &mut self.event_values)?;
        Lists::links(rows, self.batches).write_links(&mut out, &self.keys.link, global, &mut self.link_values)?;
        let unknown = rows.iter().map(|row| {
            let (batch, at) = row.source(self.batches);
            if row.has(has::RARE) { batch.strings.get(batch.rows[at].unknown) } else { &[] }
        });
        optional_bytes(&mut out, &frame, unknown)
    }

    /// Fills the summary's part about spans, events, links and operations.
    pub(super) fn summarise(&mut self, counts: &Counts, keys: &TypedKeys, global: &Global<'_>, summary: &mut Summary) {
        let list = |counts: &KeyCounts, keys: &[TypedKey], values: &mut Vec<ValueSet>| {
            let mut all: Vec<KeySummary> = counts
                .iter()
                .map(|(key, kinds)| {
                    let name = global.text(key);
                    let slot = keys.iter().position(|k| k.key == name);
                    // Values outside the typed column (other types, repeats within an item) are not listed, so the list is
                    // whole only if the column has them all.
                    let whole = slot.filter(|slot| kinds.iter().sum::<u32>() == values[*slot].stored);
                    let mut set = whole.map_or_else(ValueSet::default, |slot| std::mem::take(&mut values[slot]));
                    if whole.is_none() {
                        set.cut();
                    }
                    set.into_summary(name.to_owned(), *kinds)
                })
                .collect();
            all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            all
        };
        summary.span = list(&counts.span, &keys.span, &mut self.span_values);
        summary.event = list(&counts.event, &keys.event, &mut self.event_values);
        summary.link = list(&counts.link, &keys.link, &mut self.link_values);
        let operations = std::mem::take(&mut self.operations);
        (summary.operations, summary.operations_cut) = operations.finish(|symbol| global.text(symbol));
    }
}

pub(super) fn group_schema(keys: &TypedKeys) -> Result<SchemaDescPtr, WriteError> {
    let schema = super::schema::parquet_schema(keys)?;
    Ok(Arc::new(parquet::schema::types::SchemaDescriptor::new(schema)))
}

/// The rows of one row group.
struct Part<'p> {
    batches: &'p [Arc<SpanBatch>],
    ordered: &'p Ordered,
    traces: Range<usize>,
    rows: &'p [BlockRow],
    /// Number of the first of them in the block.
    first: usize,
}

impl Part<'_> {
    /// A value of each trace, on each of its rows.
    fn of_traces<T: Copy>(&self, value: impl Fn(usize) -> T) -> Vec<T> {
        let all = &self.ordered.traces;
        let mut out = Vec::with_capacity(self.rows.len());
        for trace in self.traces.clone() {
            let end = all.get(trace + 1).map_or(self.ordered.rows.len(), |next| next.first as usize);
            out.extend(std::iter::repeat_n(value(trace), end - all[trace].first as usize));
        }
        out
    }

    fn symbols(&self, pick: impl Fn(&BlockRow) -> u32) -> Vec<u32> {
        self.rows.iter().map(pick).collect()
    }

    /// A field that most rows do not have, as it lies in the batch.
    fn rare<T>(&self, pick: impl Fn(u32, &Row) -> T, none: impl Fn() -> T) -> impl Iterator<Item = T> {
        self.rows.iter().map(move |row| {
            let (batch, at) = row.source(self.batches);
            if row.has(has::RARE) { pick(row.batch, &batch.rows[at]) } else { none() }
        })
    }

    /// The columns before the attributes.
    fn fixed_columns<W: Write + Send>(
        &self,
        out: &mut Emitter<'_, '_, W>,
        global: &mut Global<'_>,
    ) -> Result<(), WriteError> {
        let (frame, rows, ordered) = (&Frame::Spans, self.rows, self.ordered);
        let range = self.first..self.first + rows.len();
        let plain = Extras::default();
        let with_statistics = Extras { statistics: true, ..plain };
        let with_bounds = Extras { page_statistics: true, ..with_statistics };

        let ids: Vec<u8> = rows.iter().flat_map(|row| row.trace_id.0).collect();
        out.required(frame, &Values::Fixed { width: 16, bytes: &ids }, with_bounds)?;
        let first_trace = self.traces.start;
        let indexes = self.of_traces(|trace| (trace - first_trace) as i32);
        out.required(frame, &Values::I32(&indexes), Extras { ascending: true, ..plain })?;
        let ids: Vec<u8> = rows.iter().flat_map(|row| row.span_id.0).collect();
        out.required(frame, &Values::Fixed { width: 8, bytes: &ids }, plain)?;
        // The parent's id is needed only where the parent is not in the block, or is not the row that `parent_delta` points to.
        let deltas = &ordered.parent_delta[range.clone()];
        let (mut parents, mut with_parent) = (Vec::new(), Bitmap::default());
        for (at, row) in rows.iter().enumerate() {
            let placed = deltas[at] > 0 && rows[at - deltas[at] as usize].span_id == row.parent_span_id;
            if row.parent_span_id.is_valid() && !placed {
                parents.extend_from_slice(&row.parent_span_id.0);
                with_parent.push(at as u32);
            }
        }
        out.emit(Levels::Optional(&with_parent), &Values::Fixed { width: 8, bytes: &parents }, plain)?;
        out.required(frame, &Values::I32(deltas), plain)?;
        out.required(frame, &Values::I32(&ordered.subtree_size[range.clone()]), plain)?;
        out.required(frame, &Values::I32(&ordered.flags[range]), with_statistics)?;
        let starts: Vec<i64> = rows.iter().map(|row| row.start as i64).collect();
        out.required(frame, &Values::I64(&starts), with_statistics)?;
        let durations: Vec<i64> = rows.iter().map(|row| row.end.wrapping_sub(row.start) as i64).collect();
        out.required(frame, &Values::I64(&durations), with_bounds)?;

        out.required_text(frame, &self.symbols(|row| row.name), global)?;
        out.i32s(frame, rows.iter().map(|row| row.kind))?;
        let codes: Vec<i32> = rows.iter().map(|row| row.status_code).collect();
        out.required(frame, &Values::I32(&codes), with_bounds)?;
        out.optional_text(frame, &self.symbols(|row| row.status_message), global)?;
        out.optional_text(frame, &self.symbols(|row| row.service), global)?;
        out.required_text(frame, &self.symbols(|row| row.resource), global)?;
        out.required_text(frame, &self.symbols(|row| row.scope), global)?;
        out.optional_text(frame, &self.of_traces(|trace| ordered.traces[trace].root_service), global)?;
        out.optional_text(frame, &self.of_traces(|trace| ordered.traces[trace].root_name), global)?;
        let durations = self.of_traces(|trace| ordered.traces[trace].duration_ns);
        out.required(frame, &Values::I64(&durations), with_bounds)?;
        let states: Vec<u32> = self
            .rare(|batch, row| (batch, row.trace_state), Default::default)
            .map(|(batch, state)| if state.is_empty() { 0 } else { global.symbol(batch, state) })
            .collect();
        out.optional_text(frame, &states, global)?;
        out.i32s(frame, rows.iter().map(|row| row.flags as i32))?;
        out.i32s(frame, self.rare(|_, row| row.dropped_attributes as i32, || 0))?;
        out.i32s(frame, self.rare(|_, row| row.dropped_events as i32, || 0))?;
        out.i32s(frame, self.rare(|_, row| row.dropped_links as i32, || 0))
    }
}

/// The map of attributes without column.
fn rest_map<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    spans: &AttrColumns,
    global: &Global<'_>,
) -> Result<(), WriteError> {
    let (mut definition, mut repetition) = (Vec::with_capacity(spans.items()), Vec::with_capacity(spans.items()));
    let mut entries = spans.rest.iter().peekable();
    for item in 0..spans.items() as u32 {
        let mut first = true;
        while entries.next_if(|entry| entry.item == item).is_some() {
            definition.push(1);
            repetition.push(u8::from(!first));
            first = false;
        }
        if first {
            definition.push(0);
            repetition.push(0);
        }
    }
    let levels = Levels::Nested { definition: &definition, repetition: &repetition };
    let keys = out.dictionaries.column(spans.rest.iter().map(|e| e.key), spans.rest.len(), global.strings());
    out.text(levels, &keys, Extras::default())?;
    let values = coded(spans.rest.iter().map(|e| e.text).collect(), spans.rest_texts().into_iter());
    out.text(levels, &values, Extras::default())
}
