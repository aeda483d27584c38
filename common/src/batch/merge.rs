//! Merging small batches into one, so that live data stays a small number of batches with few copies of each string.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{
    AttrValues, AttrsEnd, EventRow, Interner, ItemAttrs, LinkRow, ResourceEntry, Row, Shape, ShapeFinder, SpanBatch,
    Strings, Sym,
};

/// One batch with the rows of all `parts`, in order.
pub fn merge<'a>(parts: impl IntoIterator<Item = &'a SpanBatch>) -> SpanBatch {
    let mut out = SpanBatch::default();
    let (mut interner, mut known, mut shapes) = (Interner::default(), Known::default(), ShapeFinder::default());
    for part in parts {
        append(&mut out, &mut interner, &mut known, &mut shapes, part);
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
        let new = self.interner.add(self.to, self.from.get(sym));
        self.known[sym.index()] = new.0;
        new
    }
}

/// Where each resource and scope, named by its JSON, is in the new batch.
#[derive(Default)]
struct Known {
    resources: HashMap<Sym, u32, RandomState>,
    scopes: HashMap<Sym, u32, RandomState>,
}

fn append(out: &mut SpanBatch, interner: &mut Interner, at: &mut Known, finder: &mut ShapeFinder, part: &SpanBatch) {
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

    // A node comes after the one before it, so that one is known already.
    let mut shapes = Vec::with_capacity(part.shapes.len());
    shapes.push(Shape::EMPTY);
    for (_, node) in part.shapes.iter() {
        let before = shapes[node.before.index()];
        shapes.push(finder.with(&mut out.shapes, before, t.sym(node.key), node.kind));
    }
    let moved = |attrs: ItemAttrs, by: AttrsEnd| ItemAttrs {
        shape: shapes[attrs.shape.index()],
        end: AttrsEnd { texts: attrs.end.texts + by.texts, numbers: attrs.end.numbers + by.numbers },
    };
    let (events, links) = (out.events.len() as u32, out.links.len() as u32);
    let attrs = append_values(&mut out.attrs, &part.attrs, &mut t);
    let event_attrs = append_values(&mut out.event_attrs, &part.event_attrs, &mut t);
    let link_attrs = append_values(&mut out.link_attrs, &part.link_attrs, &mut t);
    out.events.extend(part.events.iter().map(|e| EventRow {
        name: t.sym(e.name),
        unknown: t.sym(e.unknown),
        attrs: moved(e.attrs, event_attrs),
        ..*e
    }));
    out.links.extend(part.links.iter().map(|l| LinkRow {
        trace_id: t.sym(l.trace_id),
        span_id: t.sym(l.span_id),
        trace_state: t.sym(l.trace_state),
        unknown: t.sym(l.unknown),
        attrs: moved(l.attrs, link_attrs),
        ..*l
    }));
    out.rows.extend(part.rows.iter().map(|r| Row {
        resource: resources[r.resource as usize],
        scope: scopes[r.scope as usize],
        name: t.sym(r.name),
        trace_state: t.sym(r.trace_state),
        status_message: t.sym(r.status_message),
        unknown: t.sym(r.unknown),
        attrs: moved(r.attrs, attrs),
        events_end: r.events_end + events,
        links_end: r.links_end + links,
        ..*r
    }));
    out.received_max = out.received_max.max(part.received_max);
}

/// Adds all values of a part. Returns where those before it ended.
fn append_values(out: &mut AttrValues, part: &AttrValues, t: &mut Translation<'_>) -> AttrsEnd {
    let end = out.end();
    out.texts.extend(part.texts.iter().map(|sym| t.sym(*sym)));
    out.numbers.extend_from_slice(&part.numbers);
    end
}

/// Where `entry` is in `all`, added if it was not there.
fn index_of<T>(at: &mut HashMap<Sym, u32, RandomState>, json: Sym, all: &mut Vec<T>, entry: T) -> u32 {
    *at.entry(json).or_insert_with(|| {
        all.push(entry);
        all.len() as u32 - 1
    })
}
