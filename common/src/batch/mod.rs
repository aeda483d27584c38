//! A batch of spans in columns: what the walker fills, live data holds and the block writer drains.
//!
//! Rows keep every fixed field; attributes, events and links lie in flat arrays that rows address by end offset, the keys of
//! attributes apart from their values as [`Shape`]s; text lies once in a string table. A batch belongs to one tenant, is filled
//! by one owner and immutable once published.
//!
//! Owns: the in-memory layout and its conversion to [`crate::model`]. Does not own: how bytes are decoded (the ingester's
//! walker) and how they are laid out on disk ([`crate::block`]).

mod from_model;
mod merge;
mod shapes;
mod strings;
mod to_model;
mod trace_index;

pub use merge::merge;
pub use shapes::{Shape, ShapeFinder, ShapeNode, Shapes};
pub use strings::{Interner, Strings, Sym};
pub use to_model::{BadJson, ModelReader};
pub use trace_index::TraceIndex;

use crate::id::{SpanId, TraceId};
use crate::time::UnixNanos;

/// What a value is. The numbers are in memory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ValueKind {
    Str,
    Int,
    Double,
    Bool,
    /// Everything else, as typed JSON (`model::typed_json`): arrays, maps, bytes, empty and raw values.
    Json,
}

/// One attribute, put together again from its shape and its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attr {
    pub key: Sym,
    pub kind: ValueKind,
    /// [`Sym`] for `Str` and `Json`, else the bits of the number.
    pub bits: u64,
}

impl Attr {
    /// The text of a `Str` or `Json` value.
    pub fn sym(&self) -> Sym {
        Sym(self.bits as u32)
    }
}

/// Values of attributes, one item after the other; what each is stands in the item's shape.
#[derive(Clone, Debug, Default)]
pub struct AttrValues {
    /// `Str` and `Json` values.
    pub texts: Vec<Sym>,
    /// Bits of the others.
    pub numbers: Vec<u64>,
}

impl AttrValues {
    /// Adds the next value of an item.
    #[inline]
    pub fn push(&mut self, kind: ValueKind, bits: u64) {
        match kind {
            ValueKind::Str | ValueKind::Json => self.texts.push(Sym(bits as u32)),
            ValueKind::Int | ValueKind::Double | ValueKind::Bool => self.numbers.push(bits),
        }
    }

    /// Where the values so far end.
    pub fn end(&self) -> AttrsEnd {
        AttrsEnd { texts: self.texts.len() as u32, numbers: self.numbers.len() as u32 }
    }

    /// Takes back what was added after `end`.
    pub fn truncate(&mut self, end: AttrsEnd) {
        self.texts.truncate(end.texts as usize);
        self.numbers.truncate(end.numbers as usize);
    }
}

/// A place in [`AttrValues`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttrsEnd {
    pub texts: u32,
    pub numbers: u32,
}

/// The attributes of an item: its values start where those of the item before it end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemAttrs {
    pub shape: Shape,
    pub end: AttrsEnd,
}

/// Flags of a row that are known when it is received.
pub mod row_flag {
    /// The sender gave a parent id of eight zero bytes; structure treats the span as a root.
    pub const ZERO_PARENT: u8 = 1;
    /// The ingester has seen this trace id, span id, kind and start before: an identical copy may be stored.
    pub const MAYBE_DUPLICATE: u8 = 2;
}

/// The fixed fields of a span.
#[derive(Clone, Copy, Debug, Default)]
pub struct Row {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// Zeros for none.
    pub parent_span_id: SpanId,
    pub start: u64,
    pub end: u64,
    /// Index into [`SpanBatch::resources`].
    pub resource: u32,
    /// Index into [`SpanBatch::scopes`].
    pub scope: u32,
    pub name: Sym,
    pub trace_state: Sym,
    pub status_message: Sym,
    /// Unknown fields, as received.
    pub unknown: Sym,
    pub kind: i32,
    pub status_code: i32,
    pub flags: u32,
    pub dropped_attributes: u32,
    pub dropped_events: u32,
    pub dropped_links: u32,
    /// In [`SpanBatch::attrs`].
    pub attrs: ItemAttrs,
    /// End of the row's events in [`SpanBatch::events`]; they start where those of the row before end.
    pub events_end: u32,
    pub links_end: u32,
    pub row_flags: u8,
}

/// A resource as it was received, canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceEntry {
    /// Typed JSON.
    pub json: Sym,
    /// `service.name` if it is a string; otherwise empty.
    pub service_name: Sym,
}

#[derive(Clone, Copy, Debug)]
pub struct EventRow {
    pub time: u64,
    pub name: Sym,
    pub unknown: Sym,
    pub dropped_attributes: u32,
    /// In [`SpanBatch::event_attrs`].
    pub attrs: ItemAttrs,
}

#[derive(Clone, Copy, Debug)]
pub struct LinkRow {
    /// As received: any length.
    pub trace_id: Sym,
    pub span_id: Sym,
    pub trace_state: Sym,
    pub unknown: Sym,
    pub flags: u32,
    pub dropped_attributes: u32,
    /// In [`SpanBatch::link_attrs`].
    pub attrs: ItemAttrs,
}

/// Spans of one tenant in columns.
#[derive(Clone, Debug, Default)]
pub struct SpanBatch {
    pub strings: Strings,
    pub resources: Vec<ResourceEntry>,
    /// Typed JSON of each scope.
    pub scopes: Vec<Sym>,
    /// Of spans, events and links.
    pub shapes: Shapes,
    pub rows: Vec<Row>,
    pub attrs: AttrValues,
    pub events: Vec<EventRow>,
    pub event_attrs: AttrValues,
    pub links: Vec<LinkRow>,
    pub link_attrs: AttrValues,
    /// Latest time any of it was received.
    pub received_max: UnixNanos,
}

fn part<T>(all: &[T], start: u32, end: u32) -> &[T] {
    &all[start as usize..end as usize]
}

impl SpanBatch {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn before(&self, row: usize) -> Option<&Row> {
        row.checked_sub(1).map(|at| &self.rows[at])
    }

    /// Where the attribute values of a row start.
    pub fn attrs_start(&self, row: usize) -> AttrsEnd {
        self.before(row).map_or_else(AttrsEnd::default, |r| r.attrs.end)
    }

    /// Attributes of a row in order.
    pub fn attrs_of(&self, row: usize) -> Vec<Attr> {
        self.attrs_from(&self.attrs, self.attrs_start(row), self.rows[row].attrs.shape)
    }

    fn attrs_from(&self, values: &AttrValues, start: AttrsEnd, shape: Shape) -> Vec<Attr> {
        let mut elements = Vec::new();
        self.shapes.elements(shape, &mut elements);
        let mut texts = values.texts[start.texts as usize..].iter();
        let mut numbers = values.numbers[start.numbers as usize..].iter();
        let mut attr = |(key, kind)| {
            let bits = match kind {
                ValueKind::Str | ValueKind::Json => texts.next().map(|sym| u64::from(sym.0)),
                ValueKind::Int | ValueKind::Double | ValueKind::Bool => numbers.next().copied(),
            };
            bits.map(|bits| Attr { key, kind, bits })
        };
        // A shape and its values are added together, so none is missing.
        elements.into_iter().map_while(&mut attr).collect()
    }

    /// Index of the row's first event, and its events.
    pub fn events_of(&self, row: usize) -> (usize, &[EventRow]) {
        let start = self.before(row).map_or(0, |r| r.events_end);
        (start as usize, part(&self.events, start, self.rows[row].events_end))
    }

    /// Where the attribute values of the event at this index of [`SpanBatch::events`] start.
    pub fn event_attrs_start(&self, event: usize) -> AttrsEnd {
        event.checked_sub(1).map_or_else(AttrsEnd::default, |at| self.events[at].attrs.end)
    }

    /// Attributes of the event at this index of [`SpanBatch::events`].
    pub fn event_attrs_of(&self, event: usize) -> Vec<Attr> {
        self.attrs_from(&self.event_attrs, self.event_attrs_start(event), self.events[event].attrs.shape)
    }

    /// Index of the row's first link, and its links.
    pub fn links_of(&self, row: usize) -> (usize, &[LinkRow]) {
        let start = self.before(row).map_or(0, |r| r.links_end);
        (start as usize, part(&self.links, start, self.rows[row].links_end))
    }

    /// Where the attribute values of the link at this index of [`SpanBatch::links`] start.
    pub fn link_attrs_start(&self, link: usize) -> AttrsEnd {
        link.checked_sub(1).map_or_else(AttrsEnd::default, |at| self.links[at].attrs.end)
    }

    /// Attributes of the link at this index of [`SpanBatch::links`].
    pub fn link_attrs_of(&self, link: usize) -> Vec<Attr> {
        self.attrs_from(&self.link_attrs, self.link_attrs_start(link), self.links[link].attrs.shape)
    }

    /// Bytes this batch holds on the heap: what the memory budget counts.
    pub fn heap_bytes(&self) -> usize {
        fn of<T>(v: &Vec<T>) -> usize {
            v.capacity() * size_of::<T>()
        }
        let values = |values: &AttrValues| of(&values.texts) + of(&values.numbers);
        self.strings.heap_bytes()
            + self.shapes.heap_bytes()
            + of(&self.resources)
            + of(&self.scopes)
            + of(&self.rows)
            + values(&self.attrs)
            + of(&self.events)
            + values(&self.event_attrs)
            + of(&self.links)
            + values(&self.link_attrs)
    }

    /// Forgets everything but keeps the room.
    pub fn clear(&mut self) {
        self.strings.clear();
        self.shapes.clear();
        self.resources.clear();
        self.scopes.clear();
        self.rows.clear();
        self.events.clear();
        self.links.clear();
        for values in [&mut self.attrs, &mut self.event_attrs, &mut self.link_attrs] {
            values.texts.clear();
            values.numbers.clear();
        }
        self.received_max = UnixNanos::default();
    }

    /// Gives back room that growing left over, where it is more than a quarter: copying costs as much as it saves otherwise.
    pub fn shrink(&mut self) {
        fn fit<T>(v: &mut Vec<T>) {
            if v.capacity() > v.len() + v.len() / 4 {
                v.shrink_to_fit();
            }
        }
        self.strings.shrink();
        self.shapes.shrink();
        fit(&mut self.rows);
        fit(&mut self.events);
        fit(&mut self.links);
        for values in [&mut self.attrs, &mut self.event_attrs, &mut self.link_attrs] {
            fit(&mut values.texts);
            fit(&mut values.numbers);
        }
    }
}
