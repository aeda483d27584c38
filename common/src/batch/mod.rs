//! A batch of spans in columns: what the walker fills, live data holds and the block writer drains.
//!
//! Rows keep every fixed field; attributes, events and links lie in flat arrays that rows address by end offset; text lies once
//! in a string table. A batch belongs to one tenant, is filled by one owner and immutable once published.
//!
//! Owns: the in-memory layout and its conversion to [`crate::model`]. Does not own: how bytes are decoded (the ingester's
//! walker) and how they are laid out on disk ([`crate::block`]).

mod merge;
mod strings;
mod to_model;
mod trace_index;

pub use merge::merge;
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

/// One attribute: 16 bytes.
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
    /// End of the row's attributes in [`SpanBatch::attrs`]; they start where those of the row before end.
    pub attrs_end: u32,
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
    /// End of the event's attributes in [`SpanBatch::event_attrs`].
    pub attrs_end: u32,
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
    /// End of the link's attributes in [`SpanBatch::link_attrs`].
    pub attrs_end: u32,
}

/// Spans of one tenant in columns.
#[derive(Clone, Debug, Default)]
pub struct SpanBatch {
    pub strings: Strings,
    pub resources: Vec<ResourceEntry>,
    /// Typed JSON of each scope.
    pub scopes: Vec<Sym>,
    pub rows: Vec<Row>,
    pub attrs: Vec<Attr>,
    pub events: Vec<EventRow>,
    pub event_attrs: Vec<Attr>,
    pub links: Vec<LinkRow>,
    pub link_attrs: Vec<Attr>,
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

    pub fn attrs_of(&self, row: usize) -> &[Attr] {
        part(&self.attrs, self.before(row).map_or(0, |r| r.attrs_end), self.rows[row].attrs_end)
    }

    /// Index of the row's first event, and its events.
    pub fn events_of(&self, row: usize) -> (usize, &[EventRow]) {
        let start = self.before(row).map_or(0, |r| r.events_end);
        (start as usize, part(&self.events, start, self.rows[row].events_end))
    }

    /// Attributes of the event at this index of [`SpanBatch::events`].
    pub fn event_attrs_of(&self, event: usize) -> &[Attr] {
        let start = event.checked_sub(1).map_or(0, |at| self.events[at].attrs_end);
        part(&self.event_attrs, start, self.events[event].attrs_end)
    }

    /// Index of the row's first link, and its links.
    pub fn links_of(&self, row: usize) -> (usize, &[LinkRow]) {
        let start = self.before(row).map_or(0, |r| r.links_end);
        (start as usize, part(&self.links, start, self.rows[row].links_end))
    }

    /// Attributes of the link at this index of [`SpanBatch::links`].
    pub fn link_attrs_of(&self, link: usize) -> &[Attr] {
        let start = link.checked_sub(1).map_or(0, |at| self.links[at].attrs_end);
        part(&self.link_attrs, start, self.links[link].attrs_end)
    }

    /// Bytes this batch holds on the heap: what the memory budget counts.
    pub fn heap_bytes(&self) -> usize {
        fn of<T>(v: &Vec<T>) -> usize {
            v.capacity() * size_of::<T>()
        }
        self.strings.heap_bytes()
            + of(&self.resources)
            + of(&self.scopes)
            + of(&self.rows)
            + of(&self.attrs)
            + of(&self.events)
            + of(&self.event_attrs)
            + of(&self.links)
            + of(&self.link_attrs)
    }

    /// Gives back room that growing left over, where it is more than a quarter: copying costs as much as it saves otherwise.
    pub fn shrink(&mut self) {
        fn fit<T>(v: &mut Vec<T>) {
            if v.capacity() > v.len() + v.len() / 4 {
                v.shrink_to_fit();
            }
        }
        self.strings.shrink();
        fit(&mut self.rows);
        fit(&mut self.attrs);
        fit(&mut self.events);
        fit(&mut self.event_attrs);
        fit(&mut self.links);
        fit(&mut self.link_attrs);
    }
}
