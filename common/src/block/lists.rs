//! The events and links of a row group: lists of structs, and the columns inside them.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::attrs::{AttrColumns, AttrsOf};
use super::bitmap::Bitmap;
use super::chunk::{Extras, Values};
use super::emit::{Emitter, Frame, coded, optional_bytes};
use super::gather::{Global, TextColumn};
use super::order::{BlockRow, has};
use super::schema::TypedKey;
use super::summary::ValueSet;
use super::writer::WriteError;
use crate::batch::{AttrValues, AttrsEnd, EventRow, LinkRow, Shape, SpanBatch};
use crate::model::typed_json;

/// An event or link of a batch, and the row it belongs to.
#[derive(Clone, Copy)]
struct ListItem {
    batch: u32,
    index: usize,
    row: u32,
}

/// The lists of a row group, flattened.
pub(super) struct Lists<'a> {
    batches: &'a [Arc<SpanBatch>],
    rows: &'a [BlockRow],
    items: Vec<ListItem>,
    definition: Vec<u8>,
    repetition: Vec<u8>,
    slots: Vec<u32>,
}

impl<'a> Lists<'a> {
    pub(super) fn events(rows: &'a [BlockRow], batches: &'a [Arc<SpanBatch>]) -> Self {
        Self::gather(rows, batches, has::EVENTS, |batch, row| {
            let (at, all) = batch.events_of(row);
            at..at + all.len()
        })
    }

    pub(super) fn links(rows: &'a [BlockRow], batches: &'a [Arc<SpanBatch>]) -> Self {
        Self::gather(rows, batches, has::LINKS, |batch, row| {
            let (at, all) = batch.links_of(row);
            at..at + all.len()
        })
    }

    fn gather(
        rows: &'a [BlockRow],
        batches: &'a [Arc<SpanBatch>],
        which: u8,
        of: impl Fn(&SpanBatch, usize) -> Range<usize>,
    ) -> Self {
        let (definition, repetition) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        let mut lists = Self { batches, rows, items: Vec::new(), definition, repetition, slots: Vec::new() };
        for (at, row) in rows.iter().enumerate() {
            if !row.has(which) {
                lists.definition.push(0);
                lists.repetition.push(0);
                continue;
            }
            let (batch, number) = row.source(batches);
            for (nth, index) in of(batch, number).enumerate() {
                lists.slots.push(lists.definition.len() as u32);
                lists.definition.push(1);
                lists.repetition.push(u8::from(nth > 0));
                lists.items.push(ListItem { batch: row.batch, index, row: at as u32 });
            }
        }
        lists
    }

    fn frame(&self) -> Frame<'_> {
        Frame::Lists { definition: &self.definition, repetition: &self.repetition, slots: &self.slots }
    }

    fn batch(&self, item: &ListItem) -> &'a SpanBatch {
        &self.batches[item.batch as usize]
    }

    /// The attributes of all items; `of` says where those of one are.
    fn attrs(
        &self,
        keys: &[TypedKey],
        global: &mut Global<'_>,
        of: impl Fn(&'a SpanBatch, usize) -> (&'a AttrValues, Shape, AttrsEnd),
    ) -> AttrColumns {
        let mut attrs = AttrColumns::new(keys, global);
        for item in &self.items {
            let batch = self.batch(item);
            let (values, shape, start) = of(batch, item.index);
            attrs.push(AttrsOf { batch: item.batch, shapes: &batch.shapes, values, shape, start }, global);
        }
        attrs
    }

    /// The columns of all events, in schema order.
    pub(super) fn write_events<W: Write + Send>(
        &self,
        out: &mut Emitter<'_, '_, W>,
        keys: &[TypedKey],
        global: &mut Global<'_>,
        values: &mut [ValueSet],
    ) -> Result<(), WriteError> {
        let attrs = self.attrs(keys, global, |batch, at| {
            (&batch.event_attrs, batch.events[at].attrs.shape, batch.event_attrs_start(at))
        });
        let frame = self.frame();
        let events: Vec<&EventRow> = self.items.iter().map(|item| &self.batch(item).events[item.index]).collect();
        let start = |item: &ListItem| self.rows[item.row as usize].start;
        let offsets: Vec<i64> =
            self.items.iter().zip(&events).map(|(item, event)| event.time.wrapping_sub(start(item)) as i64).collect();
        out.required(&frame, &Values::I64(&offsets), Extras::default())?;
        let names: Vec<u32> =
            self.items.iter().zip(&events).map(|(item, event)| global.symbol(item.batch, event.name)).collect();
        out.required_text(&frame, &names, global)?;
        out.i32s(&frame, events.iter().map(|event| event.dropped_attributes as i32))?;
        write_attrs(out, &frame, &attrs, keys, global, values)?;
        let unknown = self.items.iter().zip(&events).map(|(item, event)| self.batch(item).strings.get(event.unknown));
        optional_bytes(out, &frame, unknown)
    }

    /// The columns of all links, in schema order.
    pub(super) fn write_links<W: Write + Send>(
        &self,
        out: &mut Emitter<'_, '_, W>,
        keys: &[TypedKey],
        global: &mut Global<'_>,
        values: &mut [ValueSet],
    ) -> Result<(), WriteError> {
        let attrs = self
            .attrs(keys, global, |batch, at| (&batch.link_attrs, batch.links[at].attrs.shape, batch.link_attrs_start(at)));
        let frame = self.frame();
        let links: Vec<&LinkRow> = self.items.iter().map(|item| &self.batch(item).links[item.index]).collect();
        let (mut good, mut trace_ids, mut span_ids) = (Bitmap::default(), Vec::new(), Vec::new());
        let mut odd: Vec<Vec<u8>> = Vec::with_capacity(links.len());
        for (at, (item, link)) in self.items.iter().zip(&links).enumerate() {
            let strings = &self.batch(item).strings;
            let (trace_id, span_id) = (strings.get(link.trace_id), strings.get(link.span_id));
            if trace_id.len() == 16 && span_id.len() == 8 {
                good.push(at as u32);
                trace_ids.extend_from_slice(trace_id);
                span_ids.extend_from_slice(span_id);
                odd.push(Vec::new());
            } else {
                odd.push(super::odd_ids(trace_id, span_id));
            }
        }
        out.optional(&frame, &good, &Values::Fixed { width: 16, bytes: &trace_ids }, Extras::default())?;
        out.optional(&frame, &good, &Values::Fixed { width: 8, bytes: &span_ids }, Extras::default())?;
        optional_bytes(out, &frame, odd.iter().map(Vec::as_slice))?;
        let states: Vec<u32> =
            self.items.iter().zip(&links).map(|(item, link)| global.symbol(item.batch, link.trace_state)).collect();
        out.optional_text(&frame, &states, global)?;
        out.i32s(&frame, links.iter().map(|link| link.flags as i32))?;
        out.i32s(&frame, links.iter().map(|link| link.dropped_attributes as i32))?;
        write_attrs(out, &frame, &attrs, keys, global, values)?;
        let unknown = self.items.iter().zip(&links).map(|(item, link)| self.batch(item).strings.get(link.unknown));
        optional_bytes(out, &frame, unknown)
    }
}

/// Shape, typed columns and rest. The rest is one text an item: a JSON array of `[key, value]` pairs.
fn write_attrs<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    frame: &Frame<'_>,
    attrs: &AttrColumns,
    keys: &[TypedKey],
    global: &Global<'_>,
    values: &mut [ValueSet],
) -> Result<(), WriteError> {
    out.shapes(frame, &attrs.shapes, &attrs.shape_texts(global))?;
    for (slot, key) in keys.iter().enumerate() {
        out.typed(frame, key.kind, &attrs.typed[slot], global, None, &mut values[slot])?;
    }
    // Items with the same rest share its text.
    let values_of_rest = attrs.rest_texts();
    let mut known: HashMap<Vec<(u32, u32)>, u32, RandomState> = HashMap::default();
    let (mut present, mut codes, mut texts) = (Bitmap::default(), Vec::new(), Vec::new());
    for entries in attrs.rest.chunk_by(|a, b| a.item == b.item) {
        let pairs: Vec<(u32, u32)> = entries.iter().map(|entry| (entry.key, entry.text)).collect();
        let code = match known.get(&pairs) {
            Some(code) => *code,
            None => {
                texts.push(rest_text(&pairs, &values_of_rest, global));
                known.insert(pairs, texts.len() as u32 - 1);
                texts.len() as u32 - 1
            }
        };
        present.push(entries[0].item);
        codes.push(code);
    }
    match coded(codes, texts.iter().map(String::as_str)) {
        TextColumn::Coded { codes, dictionary } => {
            out.optional(frame, &present, &Values::Coded { codes: &codes, dictionary: &dictionary }, Extras::default())
        }
        TextColumn::Plain(values) => out.optional(frame, &present, &Values::Bytes(&values), Extras::default()),
    }
}

fn rest_text(pairs: &[(u32, u32)], values: &[&str], global: &Global<'_>) -> String {
    let mut text = String::from("[");
    for (key, value) in pairs {
        text.push_str(if text.len() > 1 { ",[" } else { "[" });
        typed_json::push_str(global.text(*key), &mut text);
        text.push(',');
        text.push_str(values[*value as usize]);
        text.push(']');
    }
    text.push(']');
    text
}
