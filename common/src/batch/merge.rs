//! Merging small batches into one, so that live data stays a small number of batches with few copies of each string.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{Attr, EventRow, Interner, LinkRow, ResourceEntry, Row, SpanBatch, Strings, Sym, ValueKind};

/// One batch with the rows of all `parts`, in order.
pub fn merge<'a>(parts: impl IntoIterator<Item = &'a SpanBatch>) -> SpanBatch {
    let mut out = SpanBatch::default();
    let (mut interner, mut known) = (Interner::default(), Known::default());
    for part in parts {
        append(&mut out, &mut interner, &mut known, part);
    }
    out.shrink();
    out
}

/// Translates symbols of one table into another, each distinct string once.
struct Translation<'a> {
    from: &'a Strings,
    to: &'a mut Strings,
    interner: &'a mut Interner,
    known: Vec<u32>,
}

const UNKNOWN: u32 = u32::MAX;

impl Translation<'_> {
    fn sym(&mut self, sym: Sym) -> Sym {
        let known = self.known[sym.index()];
        if known != UNKNOWN {
            return Sym(known);
        }
        let admit = |_: &[u8]| Ok::<(), std::convert::Infallible>(());
        let Ok(new) = self.interner.intern(self.to, self.from.get(sym), admit);
        self.known[sym.index()] = new.0;
        new
    }

    fn attr(&mut self, attr: &Attr) -> Attr {
        let bits = match attr.kind {
            ValueKind::Str | ValueKind::Json => u64::from(self.sym(attr.sym()).0),
            ValueKind::Int | ValueKind::Double | ValueKind::Bool => attr.bits,
        };
        Attr { key: self.sym(attr.key), kind: attr.kind, bits }
    }
}

/// Where each resource and scope, named by its JSON, is in the new batch.
#[derive(Default)]
struct Known {
    resources: HashMap<Sym, u32, RandomState>,
    scopes: HashMap<Sym, u32, RandomState>,
}

fn append(out: &mut SpanBatch, interner: &mut Interner, at: &mut Known, part: &SpanBatch) {
    let known = vec![UNKNOWN; part.strings.len()];
    let mut t = Translation { from: &part.strings, to: &mut out.strings, interner, known };

    let mut resources = Vec::with_capacity(part.resources.len());
    for entry in &part.resources {
        let entry = ResourceEntry { json: t.sym(entry.json), service_name: t.sym(entry.service_name) };
        resources.push(index_of(&mut at.resources, entry.json, &mut out.resources, entry));
    }
    let mut scopes = Vec::with_capacity(part.scopes.len());
    for json in &part.scopes {
        let json = t.sym(*json);
        scopes.push(index_of(&mut at.scopes, json, &mut out.scopes, json));
    }

    let (attrs, events, links) = (out.attrs.len() as u32, out.events.len() as u32, out.links.len() as u32);
    let (event_attrs, link_attrs) = (out.event_attrs.len() as u32, out.link_attrs.len() as u32);
    out.attrs.extend(part.attrs.iter().map(|a| t.attr(a)));
    out.event_attrs.extend(part.event_attrs.iter().map(|a| t.attr(a)));
    out.link_attrs.extend(part.link_attrs.iter().map(|a| t.attr(a)));
    out.events.extend(part.events.iter().map(|e| EventRow {
        name: t.sym(e.name),
        unknown: t.sym(e.unknown),
        attrs_end: e.attrs_end + event_attrs,
        ..*e
    }));
    out.links.extend(part.links.iter().map(|l| LinkRow {
        trace_id: t.sym(l.trace_id),
        span_id: t.sym(l.span_id),
        trace_state: t.sym(l.trace_state),
        unknown: t.sym(l.unknown),
        attrs_end: l.attrs_end + link_attrs,
        ..*l
    }));
    out.rows.extend(part.rows.iter().map(|r| Row {
        resource: resources[r.resource as usize],
        scope: scopes[r.scope as usize],
        name: t.sym(r.name),
        trace_state: t.sym(r.trace_state),
        status_message: t.sym(r.status_message),
        unknown: t.sym(r.unknown),
        attrs_end: r.attrs_end + attrs,
        events_end: r.events_end + events,
        links_end: r.links_end + links,
        ..*r
    }));
    out.received_max = out.received_max.max(part.received_max);
}

/// Where `entry` is in `all`, added if it was not there.
fn index_of<T>(at: &mut HashMap<Sym, u32, RandomState>, json: Sym, all: &mut Vec<T>, entry: T) -> u32 {
    *at.entry(json).or_insert_with(|| {
        all.push(entry);
        all.len() as u32 - 1
    })
}
