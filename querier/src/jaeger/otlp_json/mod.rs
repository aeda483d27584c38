//! OTLP/JSON as Jaeger's HTTP API speaks it: ids as hex, enums as numbers, 64-bit numbers as texts.
//!
//! Owns both directions: [`write_groups`] for `/api/v3`, [`read_traces`] for uploads. Tempo's JSON differs in ids and enums
//! ([`crate::json`]); what both have in common is written there.

mod read;

use spanhouse_common::model::{Link, Span};

use crate::assemble::Trace;
use crate::json::{Object, push_int, push_str, trace as common};

pub use read::{JsonError, read_cost, read_traces};

/// Appends the members of `resourceSpans`, separated by commas. Resource, scope and status are there even if empty.
pub fn write_groups(trace: &Trace, out: &mut String) {
    for (nth, group) in trace.groups.iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        let mut object = Object::open(out);
        common::write_resource(&group.resource, object.member("resource"));
        object.list("scopeSpans", &group.scopes, |scope_group, out| {
            let mut object = Object::open(out);
            common::write_scope(&scope_group.scope, object.member("scope"));
            object.list("spans", &scope_group.spans, write_span);
            object.text("schemaUrl", &scope_group.scope.schema_url);
            object.close();
        });
        object.text("schemaUrl", &group.resource.schema_url);
        object.close();
    }
}

fn write_span(span: &Span, out: &mut String) {
    let mut object = Object::open(out);
    push_hex(&span.trace_id.0, object.member("traceId"));
    push_hex(&span.span_id.0, object.member("spanId"));
    object.text("traceState", &span.trace_state);
    if let Some(parent) = span.parent_span_id.filter(|id| id.is_valid()) {
        push_hex(&parent.0, object.member("parentSpanId"));
    }
    object.count("flags", span.flags);
    object.text("name", &span.name);
    object.number_or_name("kind", span.kind, None);
    object.count64("startTimeUnixNano", span.start_unix_nano);
    object.count64("endTimeUnixNano", span.end_unix_nano);
    common::write_attributes(&mut object, &span.attributes);
    object.count("droppedAttributesCount", span.dropped_attributes_count);
    object.list("events", &span.events, common::write_event);
    object.count("droppedEventsCount", span.dropped_events_count);
    object.list("links", &span.links, write_link);
    object.count("droppedLinksCount", span.dropped_links_count);
    let mut status = Object::open(object.member("status"));
    status.text("message", &span.status_message);
    if span.status_code != 0 {
        push_int(span.status_code, status.member("code"));
    }
    status.close();
    object.close();
}

fn write_link(link: &Link, out: &mut String) {
    let mut object = Object::open(out);
    push_hex(&link.trace_id, object.member("traceId"));
    push_hex(&link.span_id, object.member("spanId"));
    object.text("traceState", &link.trace_state);
    common::write_attributes(&mut object, &link.attributes);
    object.count("droppedAttributesCount", link.dropped_attributes_count);
    object.count("flags", link.flags);
    object.close();
}

fn push_hex(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let text: String = digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect();
    push_str(&text, out);
}

#[cfg(test)]
mod tests;
