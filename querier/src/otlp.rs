//! OTLP bytes of a trace, written straight from the model.
//!
//! Owns the protobuf form of answers. Does not own the order or grouping of spans ([`crate::assemble`]).
//!
//! No prost structs on the way: they drop unknown fields, which storage kept. Those are appended to the message they came
//! in. Clients dereference resource, scope and status without a check, so these messages are there even if empty.

use prost::encoding::{self, WireType, encode_key, encode_varint, encoded_len_varint};
use spanhouse_common::model::{Attribute, EntityRef, Event, Link, Resource, Scope, Span, Value};

use crate::assemble::Trace;

/// `tempopb.Trace`, which has the bytes of OTLP's `TracesData`.
pub fn encode_trace_protobuf(trace: &Trace) -> Vec<u8> {
    let mut out = Vec::new();
    put_trace(trace, &mut out);
    out
}

/// `tempopb.TraceByIDResponse`. Trace and metrics are there even if empty.
pub fn encode_trace_by_id_response(trace: &Trace, inspected_bytes: u64, partial: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(1, &mut out, |out| put_trace(trace, out));
    put_message(2, &mut out, |out| put_varint(1, inspected_bytes, out));
    if let Some(message) = partial {
        put_varint(3, spanhouse_proto::tempopb::PartialStatus::Partial as u64, &mut out);
        put_str(4, message, &mut out);
    }
    out
}

/// Bytes the span takes in an answer, its tag and length included.
pub(crate) fn encoded_span_len(span: &Span, scratch: &mut Vec<u8>) -> usize {
    scratch.clear();
    put_message(2, scratch, |out| put_span(span, out));
    scratch.len()
}

/// Bytes that a resource and a scope take in an answer beside their spans, a little more than less.
pub(crate) fn encoded_group_len(resource: &Resource, scope: &Scope, scratch: &mut Vec<u8>) -> usize {
    /// Tags and lengths of the four messages.
    const FRAMES: usize = 4 * 6;
    scratch.clear();
    put_resource(resource, scratch);
    put_scope(scope, scratch);
    put_str(3, &resource.schema_url, scratch);
    put_str(3, &scope.schema_url, scratch);
    scratch.len() + resource.group_unknown.len() + scope.group_unknown.len() + FRAMES
}

fn put_trace(trace: &Trace, out: &mut Vec<u8>) {
    for group in &trace.groups {
        put_message(1, out, |out| {
            let resource = &group.resource;
            put_message(1, out, |out| put_resource(resource, out));
            for scope_group in &group.scopes {
                put_message(2, out, |out| {
                    let scope = &scope_group.scope;
                    put_message(1, out, |out| put_scope(scope, out));
                    for span in &scope_group.spans {
                        put_message(2, out, |out| put_span(span, out));
                    }
                    put_str(3, &scope.schema_url, out);
                    out.extend_from_slice(&scope.group_unknown);
                });
            }
            put_str(3, &resource.schema_url, out);
            out.extend_from_slice(&resource.group_unknown);
        });
    }
}

fn put_resource(resource: &Resource, out: &mut Vec<u8>) {
    put_attributes(1, &resource.attributes, out);
    put_varint(2, u64::from(resource.dropped_attributes_count), out);
    for entity in &resource.entity_refs {
        put_message(3, out, |out| put_entity_ref(entity, out));
    }
    out.extend_from_slice(&resource.unknown);
}

fn put_entity_ref(entity: &EntityRef, out: &mut Vec<u8>) {
    put_str(1, &entity.schema_url, out);
    put_str(2, &entity.r#type, out);
    for (field, keys) in [(3, &entity.id_keys), (4, &entity.description_keys)] {
        for key in keys {
            put_present(field, key.as_bytes(), out);
        }
    }
    out.extend_from_slice(&entity.unknown);
}

fn put_scope(scope: &Scope, out: &mut Vec<u8>) {
    put_str(1, &scope.name, out);
    put_str(2, &scope.version, out);
    put_attributes(3, &scope.attributes, out);
    put_varint(4, u64::from(scope.dropped_attributes_count), out);
    out.extend_from_slice(&scope.unknown);
}

fn put_span(span: &Span, out: &mut Vec<u8>) {
    put_present(1, &span.trace_id.0, out);
    put_present(2, &span.span_id.0, out);
    put_str(3, &span.trace_state, out);
    if let Some(parent) = span.parent_span_id {
        put_present(4, &parent.0, out);
    }
    put_str(5, &span.name, out);
    put_enum(6, span.kind, out);
    put_fixed64(7, span.start_unix_nano, out);
    put_fixed64(8, span.end_unix_nano, out);
    put_attributes(9, &span.attributes, out);
    put_varint(10, u64::from(span.dropped_attributes_count), out);
    for event in &span.events {
        put_message(11, out, |out| put_event(event, out));
    }
    put_varint(12, u64::from(span.dropped_events_count), out);
    for link in &span.links {
        put_message(13, out, |out| put_link(link, out));
    }
    put_varint(14, u64::from(span.dropped_links_count), out);
    put_message(15, out, |out| {
        put_str(2, &span.status_message, out);
        put_enum(3, span.status_code, out);
    });
    put_fixed32(16, span.flags, out);
    out.extend_from_slice(&span.unknown);
}

fn put_event(event: &Event, out: &mut Vec<u8>) {
    put_fixed64(1, event.time_unix_nano, out);
    put_str(2, &event.name, out);
    put_attributes(3, &event.attributes, out);
    put_varint(4, u64::from(event.dropped_attributes_count), out);
    out.extend_from_slice(&event.unknown);
}

fn put_link(link: &Link, out: &mut Vec<u8>) {
    put_bytes(1, &link.trace_id, out);
    put_bytes(2, &link.span_id, out);
    put_str(3, &link.trace_state, out);
    put_attributes(4, &link.attributes, out);
    put_varint(5, u64::from(link.dropped_attributes_count), out);
    put_fixed32(6, link.flags, out);
    out.extend_from_slice(&link.unknown);
}

fn put_attributes(field: u32, attributes: &[Attribute], out: &mut Vec<u8>) {
    for attribute in attributes {
        put_pair(field, &attribute.key, &attribute.value, out);
    }
}

fn put_pair(field: u32, key: &str, value: &Value, out: &mut Vec<u8>) {
    if let Value::RawPair(message) = value {
        return put_present(field, message, out);
    }
    put_message(field, out, |out| {
        put_str(1, key, out);
        put_message(2, out, |out| put_value(value, out));
    });
}

/// The members of an `AnyValue`. Whatever is chosen is written even if zero, else the choice is lost.
fn put_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Empty => {}
        Value::Str(text) => put_present(1, text.as_bytes(), out),
        Value::Bool(value) => {
            encode_key(2, WireType::Varint, out);
            out.push(u8::from(*value));
        }
        Value::Int(value) => {
            encode_key(3, WireType::Varint, out);
            // Two's complement, as protobuf writes a negative int64.
            encode_varint(*value as u64, out);
        }
        Value::Double(value) => {
            encode_key(4, WireType::SixtyFourBit, out);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::Array(values) => put_message(5, out, |out| {
            for value in values {
                put_message(1, out, |out| put_value(value, out));
            }
        }),
        Value::Map(pairs) => put_message(6, out, |out| {
            for (key, value) in pairs {
                put_pair(1, key, value, out);
            }
        }),
        Value::Bytes(bytes) => put_present(7, bytes, out),
        Value::Raw(message) => out.extend_from_slice(message),
        // The model has these only at the top of an attribute; as a nested value there is no place for the key.
        Value::RawPair(_) => {}
    }
}

/// Writes a nested message in one pass: its length takes the place reserved for one byte and moves the content if it needs
/// more.
fn put_message(field: u32, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    encode_key(field, WireType::LengthDelimited, out);
    let at = out.len();
    out.push(0);
    body(out);
    let len = out.len() - at - 1;
    let width = encoded_len_varint(len as u64);
    if width > 1 {
        out.resize(at + width + len, 0);
        out.copy_within(at + 1..at + 1 + len, at + width);
    }
    encode_varint(len as u64, &mut &mut out[at..at + width]);
}

fn put_present(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        put_present(field, bytes, out);
    }
}

fn put_str(field: u32, text: &str, out: &mut Vec<u8>) {
    put_bytes(field, text.as_bytes(), out);
}

fn put_varint(field: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        encoding::uint64::encode(field, &value, out);
    }
}

fn put_enum(field: u32, value: i32, out: &mut Vec<u8>) {
    if value != 0 {
        encoding::int32::encode(field, &value, out);
    }
}

fn put_fixed64(field: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        encoding::fixed64::encode(field, &value, out);
    }
}

fn put_fixed32(field: u32, value: u32, out: &mut Vec<u8>) {
    if value != 0 {
        encoding::fixed32::encode(field, &value, out);
    }
}

#[cfg(test)]
mod tests;
