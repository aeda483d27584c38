//! One row group: each column gathered from the batches in block order, encoded, and handed to the Parquet file.
//!
//! Columns are made one after the other in schema order, so that only one of them is in memory beside the attributes, which
//! are collected in one pass first.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use parquet::file::writer::SerializedRowGroupWriter;
use parquet::schema::types::SchemaDescPtr;

use super::attrs::{AttrColumns, NO_SHAPE, TypedColumn};
use super::chunk::{ChunkEncoder, Extras, Levels, Values};
use super::gather::{Dictionaries, Global, TextColumn};
use super::order::{Ordered, RowRef};
use super::schema::{TypedKey, TypedKeys};
use super::summary::{KeySummary, OperationCounter, Summary, ValueSet};
use super::writer::{Counts, WriteError, WriterOptions};
use crate::batch::{EventRow, LinkRow, Row, SpanBatch, Sym, ValueKind};
use crate::model::typed_json;

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

/// Where the items of a column stand among its slots.
struct Frame<'f> {
    /// 0 for spans, 1 inside a list: the definition level of an item whose optional member is missing.
    base: u8,
    /// Levels of required members. Empty for spans, where every row is an item.
    definition: &'f [u8],
    repetition: &'f [u8],
    /// Slot of each item; `None` if they are the same.
    slots: Option<&'f [u32]>,
    items: usize,
}

impl<'f> Frame<'f> {
    fn spans(rows: usize) -> Self {
        Self { base: 0, definition: &[], repetition: &[], slots: None, items: rows }
    }

    fn required(&self) -> Levels<'_> {
        Levels { definition: self.definition, repetition: self.repetition }
    }

    /// Definition levels of an optional member that these items have.
    fn optional(&self, present: impl Iterator<Item = u32>) -> Vec<u8> {
        let mut levels = match self.slots {
            None => vec![self.base; self.items],
            Some(_) => self.definition.to_vec(),
        };
        for item in present {
            let slot = self.slots.map_or(item, |slots| slots[item as usize]);
            levels[slot as usize] = self.base + 1;
        }
        levels
    }
}

/// Writes columns in schema order.
struct Emitter<'e, 'g, W: Write + Send> {
    encoder: &'e mut ChunkEncoder,
    dictionaries: &'e mut Dictionaries,
    schema: SchemaDescPtr,
    group: &'e mut SerializedRowGroupWriter<'g, W>,
    rows: usize,
    next: usize,
}

impl<W: Write + Send> Emitter<'_, '_, W> {
    fn emit(&mut self, levels: Levels<'_>, values: &Values<'_>, extras: Extras) -> Result<(), WriteError> {
        let column = self.schema.column(self.next);
        self.next += 1;
        let (bytes, close) = self.encoder.encode(&column, self.rows, levels, values, extras)?;
        self.group.append_column(&bytes, close)?;
        Ok(())
    }

    fn required(&mut self, frame: &Frame<'_>, values: &Values<'_>, extras: Extras) -> Result<(), WriteError> {
        self.emit(frame.required(), values, extras)
    }

    fn i32s(&mut self, frame: &Frame<'_>, values: impl Iterator<Item = i32>) -> Result<(), WriteError> {
        let values: Vec<i32> = values.collect();
        self.required(frame, &Values::I32(&values), Extras::default())
    }

    fn text(&mut self, levels: Levels<'_>, column: &TextColumn<'_>, extras: Extras) -> Result<(), WriteError> {
        match column {
            TextColumn::Coded { codes, dictionary } => self.emit(levels, &Values::Coded { codes, dictionary }, extras),
            TextColumn::Plain(values) => self.emit(levels, &Values::Bytes(values), extras),
        }
    }

    fn required_text(&mut self, frame: &Frame<'_>, symbols: &[u32], global: &Global<'_>) -> Result<(), WriteError> {
        let column = self.dictionaries.column(symbols.iter().copied(), symbols.len(), global.strings());
        self.text(frame.required(), &column, Extras::default())
    }

    /// Text that is null where the symbol is the empty string.
    fn optional_text(&mut self, frame: &Frame<'_>, symbols: &[u32], global: &Global<'_>) -> Result<(), WriteError> {
        let present = || symbols.iter().enumerate().filter(|(_, s)| **s != 0);
        let definition = frame.optional(present().map(|(item, _)| item as u32));
        let count = present().count();
        let column = self.dictionaries.column(present().map(|(_, s)| *s), count, global.strings());
        self.text(Levels { definition: &definition, repetition: frame.repetition }, &column, Extras::default())
    }

    /// Owned texts by number, null where the number is [`NO_SHAPE`].
    fn numbered_text(&mut self, frame: &Frame<'_>, numbers: &[u32], texts: &[String]) -> Result<(), WriteError> {
        let present = || numbers.iter().enumerate().filter(|(_, n)| **n != NO_SHAPE);
        let definition = frame.optional(present().map(|(item, _)| item as u32));
        let strings: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        let count = present().count();
        let column = self.dictionaries.column(present().map(|(_, n)| *n), count, &strings);
        self.text(Levels { definition: &definition, repetition: frame.repetition }, &column, Extras::default())
    }

    fn typed(
        &mut self,
        frame: &Frame<'_>,
        kind: ValueKind,
        column: &TypedColumn,
        global: &Global<'_>,
        filter: Option<f64>,
        summary: &mut ValueSet,
    ) -> Result<(), WriteError> {
        let definition = frame.optional(column.items.iter().copied());
        let levels = Levels { definition: &definition, repetition: frame.repetition };
        summary.stored += column.items.len() as u32;
        match kind {
            ValueKind::Str | ValueKind::Json => {
                let symbols = column.bits.iter().map(|bits| *bits as u32);
                let text = self.dictionaries.column(symbols, column.bits.len(), global.strings());
                match &text {
                    TextColumn::Coded { dictionary, .. } => dictionary.iter().for_each(|value| {
                        let mut json = String::new();
                        typed_json::push_str(std::str::from_utf8(value).unwrap_or_default(), &mut json);
                        summary.add(json);
                    }),
                    TextColumn::Plain(_) => summary.cut(),
                }
                self.text(levels, &text, Extras { filter, ..Extras::default() })
            }
            ValueKind::Int => {
                let values: Vec<i64> = column.bits.iter().map(|bits| *bits as i64).collect();
                summarise_numbers(&values, summary, typed_json::push_i64);
                self.emit(levels, &Values::I64(&values), Extras { statistics: true, ..Extras::default() })
            }
            ValueKind::Double => {
                let values: Vec<f64> = column.bits.iter().map(|bits| f64::from_bits(*bits)).collect();
                summary.cut();
                self.emit(levels, &Values::F64(&values), Extras::default())
            }
            ValueKind::Bool => {
                let values: Vec<bool> = column.bits.iter().map(|bits| *bits != 0).collect();
                for seen in [false, true] {
                    if values.contains(&seen) {
                        summary.add(seen.to_string());
                    }
                }
                self.emit(levels, &Values::Bool(&values), Extras::default())
            }
        }
    }
}

fn summarise_numbers(values: &[i64], summary: &mut ValueSet, push: impl Fn(i64, &mut String)) {
    let mut last = None;
    for value in values {
        if summary.cut {
            return;
        }
        if last != Some(*value) {
            last = Some(*value);
            let mut json = String::new();
            push(*value, &mut json);
            summary.add(json);
        }
    }
}

/// Chooses which text columns get a filter: ids, so many short values, the ones with fewest distinct values first.
fn choose_filters(attrs: &AttrColumns, keys: &[TypedKey], rows: usize, global: &Global<'_>) -> Vec<Option<f64>> {
    let mut candidates: Vec<(usize, usize)> = Vec::new();
    for (slot, (column, key)) in attrs.typed.iter().zip(keys).enumerate() {
        if key.kind != ValueKind::Str || column.bits.len() < FILTER_MIN_DISTINCT {
            continue;
        }
        let distinct: std::collections::HashSet<u64, foldhash::fast::RandomState> = column.bits.iter().copied().collect();
        let bytes: usize = distinct.iter().map(|symbol| global.bytes(*symbol as u32).len()).sum();
        if distinct.len() >= FILTER_MIN_DISTINCT && bytes <= distinct.len() * FILTER_MAX_VALUE_BYTES {
            candidates.push((distinct.len(), slot));
        }
    }
    candidates.sort_unstable();
    let mut chosen = vec![None; keys.len()];
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
        global: &mut Global<'a>,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<(), WriteError> {
        let ordered = self.ordered;
        let first = ordered.traces[traces.start].first as usize;
        let end = ordered.traces.get(traces.end).map_or(ordered.rows.len(), |next| next.first as usize);
        let refs = &ordered.rows[first..end];
        // Copied together once: each column reads them all, and they lie scattered over the batches.
        let rows: Vec<Row> = refs.iter().map(|r| self.batches[r.batch as usize].rows[r.row as usize]).collect();

        let mut spans = AttrColumns::new(&self.keys.span, global);
        for r in refs {
            spans.push(r.batch, self.batches[r.batch as usize].attrs_of(r.row as usize), global);
        }
        let events = Lists::gather(refs, self.batches, |batch, row| {
            let (at, all) = batch.events_of(row);
            at..at + all.len()
        });
        let links = Lists::gather(refs, self.batches, |batch, row| {
            let (at, all) = batch.links_of(row);
            at..at + all.len()
        });
        let mut event_attrs = AttrColumns::new(&self.keys.event, global);
        for item in &events.items {
            event_attrs.push(item.batch, self.batches[item.batch as usize].event_attrs_of(item.index), global);
        }
        let mut link_attrs = AttrColumns::new(&self.keys.link, global);
        for item in &links.items {
            link_attrs.push(item.batch, self.batches[item.batch as usize].link_attrs_of(item.index), global);
        }

        let schema = group_schema(self.keys)?;
        let mut out = Emitter {
            encoder: &mut self.encoder,
            dictionaries: &mut self.dictionaries,
            schema,
            group,
            rows: refs.len(),
            next: 0,
        };
        let frame = Frame::spans(refs.len());
        self.operations = {
            let mut operations = std::mem::take(&mut self.operations);
            fixed_columns(
                &mut out,
                &frame,
                self.batches,
                ordered,
                first..end,
                traces.clone(),
                &rows,
                global,
                &mut operations,
            )?;
            operations
        };
        out.numbered_text(&frame, &spans.shapes, &spans.shape_texts(global))?;
        let filters = choose_filters(&spans, &self.keys.span, refs.len(), global);
        for (slot, key) in self.keys.span.iter().enumerate() {
            out.typed(&frame, key.kind, &spans.typed[slot], global, filters[slot], &mut self.span_values[slot])?;
        }
        rest_map(&mut out, &spans, global)?;
        event_columns(&mut out, &events, &event_attrs, self.batches, &rows, self.keys, global, &mut self.event_values)?;
        link_columns(&mut out, &links, &link_attrs, self.batches, self.keys, global, &mut self.link_values)?;
        optional_bytes(
            &mut out,
            &frame,
            refs.iter().zip(&rows).map(|(r, row)| self.batches[r.batch as usize].strings.get(row.unknown)),
        )?;
        Ok(())
    }

    /// Fills the summary's part about spans, events, links and operations.
    pub(super) fn summarise(&mut self, counts: &Counts, keys: &TypedKeys, global: &Global<'_>, summary: &mut Summary) {
        let list = |counts: &super::attrs::KeyCounts, keys: &[TypedKey], values: &mut Vec<ValueSet>| {
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

fn group_schema(keys: &TypedKeys) -> Result<SchemaDescPtr, WriteError> {
    let schema = super::schema::parquet_schema(keys)?;
    Ok(Arc::new(parquet::schema::types::SchemaDescriptor::new(schema)))
}

#[allow(clippy::too_many_arguments, reason = "one call, each argument a different borrowed part of the row group")]
fn fixed_columns<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    frame: &Frame<'_>,
    batches: &[Arc<SpanBatch>],
    ordered: &Ordered,
    range: Range<usize>,
    traces: Range<usize>,
    rows: &[Row],
    global: &mut Global<'_>,
    operations: &mut OperationCounter,
) -> Result<(), WriteError> {
    let refs = &ordered.rows[range.clone()];
    let count = refs.len();
    let trace_sizes = || {
        traces.clone().map(|t| {
            let end = ordered.traces.get(t + 1).map_or(ordered.rows.len(), |next| next.first as usize);
            end - ordered.traces[t].first as usize
        })
    };
    let ids: Vec<u8> = rows.iter().flat_map(|row| row.trace_id.0).collect();
    let bounds = Extras { statistics: true, page_statistics: true, filter: None };
    out.required(frame, &Values::Fixed { width: 16, bytes: &ids }, bounds)?;
    out.i32s(frame, trace_sizes().enumerate().flat_map(|(at, size)| std::iter::repeat_n(at as i32, size)))?;
    let ids: Vec<u8> = rows.iter().flat_map(|row| row.span_id.0).collect();
    out.required(frame, &Values::Fixed { width: 8, bytes: &ids }, Extras::default())?;
    // The parent's id is needed only where the parent is not in the block, or is not the row that `parent_delta` points to.
    let deltas = &ordered.parent_delta[range.clone()];
    let (mut parents, mut with_parent) = (Vec::new(), Vec::new());
    for (at, row) in rows.iter().enumerate() {
        let placed = deltas[at] > 0 && rows[at - deltas[at] as usize].span_id == row.parent_span_id;
        if row.parent_span_id.is_valid() && !placed {
            parents.extend_from_slice(&row.parent_span_id.0);
            with_parent.push(at as u32);
        }
    }
    let definition = frame.optional(with_parent.iter().copied());
    let levels = Levels { definition: &definition, repetition: &[] };
    out.emit(levels, &Values::Fixed { width: 8, bytes: &parents }, Extras::default())?;
    out.required(frame, &Values::I32(deltas), Extras::default())?;
    out.required(frame, &Values::I32(&ordered.subtree_size[range.clone()]), Extras::default())?;
    out.required(frame, &Values::I32(&ordered.flags[range]), Extras { statistics: true, ..Extras::default() })?;
    let starts: Vec<i64> = rows.iter().map(|row| row.start as i64).collect();
    out.required(frame, &Values::I64(&starts), Extras { statistics: true, ..Extras::default() })?;
    let durations: Vec<i64> = rows.iter().map(|row| row.end.wrapping_sub(row.start) as i64).collect();
    out.required(frame, &Values::I64(&durations), bounds)?;

    let symbols = |global: &mut Global<'_>, pick: &dyn Fn(&Row) -> Sym| -> Vec<u32> {
        refs.iter().zip(rows).map(|(r, row)| global.symbol(r.batch, pick(row))).collect()
    };
    let names = symbols(global, &|row| row.name);
    out.required_text(frame, &names, global)?;
    out.i32s(frame, rows.iter().map(|row| row.kind))?;
    let codes: Vec<i32> = rows.iter().map(|row| row.status_code).collect();
    out.required(frame, &Values::I32(&codes), bounds)?;
    let messages = symbols(global, &|row| row.status_message);
    out.optional_text(frame, &messages, global)?;
    let entry = |r: &RowRef, row: &Row| batches[r.batch as usize].resources[row.resource as usize];
    let services: Vec<u32> =
        refs.iter().zip(rows).map(|(r, row)| global.symbol(r.batch, entry(r, row).service_name)).collect();
    for ((service, name), row) in services.iter().zip(&names).zip(rows) {
        operations.add(*service, *name, row.kind);
    }
    out.optional_text(frame, &services, global)?;
    let resources: Vec<u32> = refs.iter().zip(rows).map(|(r, row)| global.symbol(r.batch, entry(r, row).json)).collect();
    out.required_text(frame, &resources, global)?;
    let scopes: Vec<u32> = refs
        .iter()
        .zip(rows)
        .map(|(r, row)| global.symbol(r.batch, batches[r.batch as usize].scopes[row.scope as usize]))
        .collect();
    out.required_text(frame, &scopes, global)?;

    let (mut root_services, mut root_names, mut durations) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
    for (trace, size) in traces.clone().zip(trace_sizes()) {
        let facts = &ordered.traces[trace];
        let (service, name) = facts.root.map_or((0, 0), |r| {
            let row = &batches[r.batch as usize].rows[r.row as usize];
            (global.symbol(r.batch, entry(&r, row).service_name), global.symbol(r.batch, row.name))
        });
        root_services.extend(std::iter::repeat_n(service, size));
        root_names.extend(std::iter::repeat_n(name, size));
        durations.extend(std::iter::repeat_n(facts.duration_ns, size));
    }
    out.optional_text(frame, &root_services, global)?;
    out.optional_text(frame, &root_names, global)?;
    out.required(frame, &Values::I64(&durations), bounds)?;
    let states = symbols(global, &|row| row.trace_state);
    out.optional_text(frame, &states, global)?;
    out.i32s(frame, rows.iter().map(|row| row.flags as i32))?;
    out.i32s(frame, rows.iter().map(|row| row.dropped_attributes as i32))?;
    out.i32s(frame, rows.iter().map(|row| row.dropped_events as i32))?;
    out.i32s(frame, rows.iter().map(|row| row.dropped_links as i32))
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
    let levels = Levels { definition: &definition, repetition: &repetition };
    let keys = out.dictionaries.column(spans.rest.iter().map(|e| e.key), spans.rest.len(), global.strings());
    out.text(levels, &keys, Extras::default())?;
    let values: Vec<&[u8]> = spans.rest.iter().map(|e| spans.rest_value(e).as_bytes()).collect();
    out.text(levels, &code_owned(&values), Extras::default())
}

/// Codes texts that have no symbols.
fn code_owned<'v>(values: &[&'v [u8]]) -> TextColumn<'v> {
    let mut known = std::collections::HashMap::<&[u8], u32, foldhash::fast::RandomState>::default();
    let mut dictionary: Vec<&[u8]> = Vec::new();
    let codes = values
        .iter()
        .map(|value| {
            *known.entry(value).or_insert_with(|| {
                dictionary.push(value);
                dictionary.len() as u32 - 1
            })
        })
        .collect();
    if super::chunk::dictionary_pays(dictionary.len(), values.len()) {
        TextColumn::Coded { codes, dictionary }
    } else {
        TextColumn::Plain(values.to_vec())
    }
}

/// Bytes that are null where empty.
fn optional_bytes<'v, W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    frame: &Frame<'_>,
    values: impl Iterator<Item = &'v [u8]>,
) -> Result<(), WriteError> {
    let (mut items, mut present) = (Vec::new(), Vec::new());
    for (item, value) in values.enumerate().filter(|(_, value)| !value.is_empty()) {
        items.push(item as u32);
        present.push(value);
    }
    let definition = frame.optional(items.iter().copied());
    out.emit(Levels { definition: &definition, repetition: frame.repetition }, &Values::Bytes(&present), Extras::default())
}

/// An event or link of a batch, and the row it belongs to.
#[derive(Clone, Copy)]
struct ListItem {
    batch: u32,
    index: usize,
    row: u32,
}

/// The lists of a row group, flattened.
struct Lists {
    items: Vec<ListItem>,
    definition: Vec<u8>,
    repetition: Vec<u8>,
    slots: Vec<u32>,
}

impl Lists {
    fn gather(refs: &[RowRef], batches: &[Arc<SpanBatch>], of: impl Fn(&SpanBatch, usize) -> Range<usize>) -> Self {
        let mut lists = Self { items: Vec::new(), definition: Vec::new(), repetition: Vec::new(), slots: Vec::new() };
        for (at, r) in refs.iter().enumerate() {
            let range = of(&batches[r.batch as usize], r.row as usize);
            if range.is_empty() {
                lists.definition.push(0);
                lists.repetition.push(0);
            }
            for (nth, index) in range.enumerate() {
                lists.slots.push(lists.definition.len() as u32);
                lists.definition.push(1);
                lists.repetition.push(u8::from(nth > 0));
                lists.items.push(ListItem { batch: r.batch, index, row: at as u32 });
            }
        }
        lists
    }

    fn frame(&self) -> Frame<'_> {
        Frame {
            base: 1,
            definition: &self.definition,
            repetition: &self.repetition,
            slots: Some(&self.slots),
            items: self.items.len(),
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "one call, each argument a different borrowed part of the row group")]
fn event_columns<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    lists: &Lists,
    attrs: &AttrColumns,
    batches: &[Arc<SpanBatch>],
    rows: &[Row],
    keys: &TypedKeys,
    global: &mut Global<'_>,
    values: &mut [ValueSet],
) -> Result<(), WriteError> {
    let frame = lists.frame();
    let events: Vec<&EventRow> = lists.items.iter().map(|i| &batches[i.batch as usize].events[i.index]).collect();
    let offsets: Vec<i64> =
        lists.items.iter().zip(&events).map(|(i, e)| e.time.wrapping_sub(rows[i.row as usize].start) as i64).collect();
    out.required(&frame, &Values::I64(&offsets), Extras::default())?;
    let names: Vec<u32> = lists.items.iter().zip(&events).map(|(i, e)| global.symbol(i.batch, e.name)).collect();
    out.required_text(&frame, &names, global)?;
    out.i32s(&frame, events.iter().map(|e| e.dropped_attributes as i32))?;
    list_attrs(out, &frame, attrs, &keys.event, global, values)?;
    optional_bytes(
        out,
        &frame,
        lists.items.iter().zip(&events).map(|(i, e)| batches[i.batch as usize].strings.get(e.unknown)),
    )
}

fn link_columns<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    lists: &Lists,
    attrs: &AttrColumns,
    batches: &[Arc<SpanBatch>],
    keys: &TypedKeys,
    global: &mut Global<'_>,
    values: &mut [ValueSet],
) -> Result<(), WriteError> {
    let frame = lists.frame();
    let links: Vec<&LinkRow> = lists.items.iter().map(|i| &batches[i.batch as usize].links[i.index]).collect();
    let strings = |at: usize| &batches[lists.items[at].batch as usize].strings;
    let (mut good, mut trace_ids, mut span_ids) = (Vec::new(), Vec::new(), Vec::new());
    let mut odd: Vec<Vec<u8>> = Vec::with_capacity(links.len());
    for (at, link) in links.iter().enumerate() {
        let (trace_id, span_id) = (strings(at).get(link.trace_id), strings(at).get(link.span_id));
        if trace_id.len() == 16 && span_id.len() == 8 {
            good.push(at as u32);
            trace_ids.extend_from_slice(trace_id);
            span_ids.extend_from_slice(span_id);
            odd.push(Vec::new());
        } else {
            odd.push(super::odd_ids(trace_id, span_id));
        }
    }
    let definition = frame.optional(good.iter().copied());
    let levels = Levels { definition: &definition, repetition: frame.repetition };
    out.emit(levels, &Values::Fixed { width: 16, bytes: &trace_ids }, Extras::default())?;
    out.emit(levels, &Values::Fixed { width: 8, bytes: &span_ids }, Extras::default())?;
    optional_bytes(out, &frame, odd.iter().map(Vec::as_slice))?;
    let states: Vec<u32> = lists.items.iter().zip(&links).map(|(i, l)| global.symbol(i.batch, l.trace_state)).collect();
    out.optional_text(&frame, &states, global)?;
    out.i32s(&frame, links.iter().map(|l| l.flags as i32))?;
    out.i32s(&frame, links.iter().map(|l| l.dropped_attributes as i32))?;
    list_attrs(out, &frame, attrs, &keys.link, global, values)?;
    optional_bytes(out, &frame, links.iter().enumerate().map(|(at, l)| strings(at).get(l.unknown)))
}

/// Shape, typed columns and rest of events or links. The rest is one text an item: a JSON array of `[key, value]` pairs.
fn list_attrs<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    frame: &Frame<'_>,
    attrs: &AttrColumns,
    keys: &[TypedKey],
    global: &Global<'_>,
    values: &mut [ValueSet],
) -> Result<(), WriteError> {
    out.numbered_text(frame, &attrs.shapes, &attrs.shape_texts(global))?;
    for (slot, key) in keys.iter().enumerate() {
        out.typed(frame, key.kind, &attrs.typed[slot], global, None, &mut values[slot])?;
    }
    let (mut items, mut texts): (Vec<u32>, Vec<String>) = (Vec::new(), Vec::new());
    for entries in attrs.rest.chunk_by(|a, b| a.item == b.item) {
        let mut text = String::from("[");
        for entry in entries {
            text.push_str(if text.len() > 1 { ",[" } else { "[" });
            typed_json::push_str(global.text(entry.key), &mut text);
            text.push(',');
            text.push_str(attrs.rest_value(entry));
            text.push(']');
        }
        text.push(']');
        items.push(entries[0].item);
        texts.push(text);
    }
    let definition = frame.optional(items.iter().copied());
    let values: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
    out.text(Levels { definition: &definition, repetition: frame.repetition }, &code_owned(&values), Extras::default())
}
