//! From a batch back to owned spans: for the few spans an answer needs.

use std::sync::Arc;

use super::{Attr, SpanBatch, ValueKind, row_flag};
use crate::id::SpanId;
use crate::model::{Attribute, Event, Link, Span, StoredSpan, Value, typed_json};

/// Typed JSON that the ingester wrote does not parse: a bug or damaged memory.
pub type BadJson = typed_json::TypedJsonError;

/// Reads rows of a batch as model spans, each resource and scope parsed once.
#[derive(Debug)]
pub struct ModelReader<'a> {
    batch: &'a SpanBatch,
    resources: Vec<Option<Arc<crate::model::Resource>>>,
    scopes: Vec<Option<Arc<crate::model::Scope>>>,
}

impl<'a> ModelReader<'a> {
    pub fn new(batch: &'a SpanBatch) -> Self {
        Self { batch, resources: vec![None; batch.resources.len()], scopes: vec![None; batch.scopes.len()] }
    }

    pub fn stored_span(&mut self, at: usize) -> Result<StoredSpan, BadJson> {
        let batch = self.batch;
        let row = &batch.rows[at];
        let resource = match &mut self.resources[row.resource as usize] {
            Some(known) => Arc::clone(known),
            slot => {
                let json = batch.strings.text(batch.resources[row.resource as usize].json);
                Arc::clone(slot.insert(Arc::new(typed_json::parse_resource(json)?)))
            }
        };
        let scope = match &mut self.scopes[row.scope as usize] {
            Some(known) => Arc::clone(known),
            slot => {
                let json = batch.strings.text(batch.scopes[row.scope as usize]);
                Arc::clone(slot.insert(Arc::new(typed_json::parse_scope(json)?)))
            }
        };
        Ok(StoredSpan {
            span: self.span(at)?,
            resource,
            scope,
            maybe_duplicate: row.row_flags & row_flag::MAYBE_DUPLICATE != 0,
        })
    }

    /// The span alone.
    pub fn span(&self, at: usize) -> Result<Span, BadJson> {
        let batch = self.batch;
        let row = &batch.rows[at];
        let text = |sym| batch.strings.text(sym).to_owned();
        let (first_event, event_rows) = batch.events_of(at);
        let (first_link, link_rows) = batch.links_of(at);
        let events = event_rows.iter().enumerate().map(|(n, e)| {
            Ok(Event {
                time_unix_nano: e.time,
                name: text(e.name),
                attributes: attributes(batch, &batch.event_attrs_of(first_event + n))?,
                dropped_attributes_count: e.dropped_attributes,
                unknown: batch.strings.get(e.unknown).to_vec(),
            })
        });
        let links = link_rows.iter().enumerate().map(|(n, l)| {
            Ok(Link {
                trace_id: batch.strings.get(l.trace_id).to_vec(),
                span_id: batch.strings.get(l.span_id).to_vec(),
                trace_state: text(l.trace_state),
                attributes: attributes(batch, &batch.link_attrs_of(first_link + n))?,
                dropped_attributes_count: l.dropped_attributes,
                flags: l.flags,
                unknown: batch.strings.get(l.unknown).to_vec(),
            })
        });
        let has_parent = row.parent_span_id.is_valid() || row.row_flags & row_flag::ZERO_PARENT != 0;
        Ok(Span {
            trace_id: row.trace_id,
            span_id: row.span_id,
            parent_span_id: has_parent.then_some(SpanId(row.parent_span_id.0)),
            trace_state: text(row.trace_state),
            flags: row.flags,
            name: text(row.name),
            kind: row.kind,
            start_unix_nano: row.start,
            end_unix_nano: row.end,
            attributes: attributes(batch, &batch.attrs_of(at))?,
            dropped_attributes_count: row.dropped_attributes,
            events: events.collect::<Result<_, BadJson>>()?,
            dropped_events_count: row.dropped_events,
            links: links.collect::<Result<_, BadJson>>()?,
            dropped_links_count: row.dropped_links,
            status_message: text(row.status_message),
            status_code: row.status_code,
            unknown: batch.strings.get(row.unknown).to_vec(),
        })
    }
}

fn attributes(batch: &SpanBatch, attrs: &[Attr]) -> Result<Vec<Attribute>, BadJson> {
    attrs
        .iter()
        .map(|attr| {
            let value = match attr.kind {
                ValueKind::Str => Value::Str(batch.strings.text(attr.sym()).to_owned()),
                ValueKind::Int => Value::Int(attr.bits as i64),
                ValueKind::Double => Value::Double(f64::from_bits(attr.bits)),
                ValueKind::Bool => Value::Bool(attr.bits != 0),
                ValueKind::Json => typed_json::parse_value(batch.strings.text(attr.sym()))?,
            };
            Ok(Attribute { key: batch.strings.text(attr.key).to_owned(), value })
        })
        .collect()
}
