//! JSON of a trace, to the byte as Tempo's jsonpb writes it: clients decode strictly.
//!
//! Owns the JSON rules shared by all answers (escaping, numbers, base64) and the two trace forms. Written straight from the
//! model: no white space, zero members left out, 64-bit integers as strings, ids as base64, members in declaration order.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message as _;
use spanhouse_common::model::{Attribute, EntityRef, Event, Link, Resource, Scope, Span, Value};
use spanhouse_proto::otlp_common::{AnyValue, KeyValue, any_value};
use spanhouse_proto::otlp_trace::{span::SpanKind, status::StatusCode};

use crate::assemble::Trace;

/// The body of `/api/traces/{id}`: the list is called `batches` there.
pub fn trace_v1(trace: &Trace) -> String {
    let mut out = String::new();
    write_trace(trace, "batches", &mut out);
    out
}

/// The body of `/api/v2/traces/{id}`. `partial` says why the trace is not complete.
pub fn trace_v2(trace: &Trace, inspected_bytes: u64, partial: Option<&str>) -> String {
    let mut out = String::new();
    let mut response = Object::open(&mut out);
    write_trace(trace, "resourceSpans", response.member("trace"));
    let mut metrics = Object::open(response.member("metrics"));
    metrics.count64("inspectedBytes", inspected_bytes);
    metrics.close();
    if let Some(message) = partial {
        response.text("status", "PARTIAL");
        response.text("message", message);
    }
    response.close();
    out
}

fn write_trace(trace: &Trace, list: &str, out: &mut String) {
    let mut object = Object::open(out);
    object.list(list, &trace.groups, |group, out| {
        let mut object = Object::open(out);
        write_resource(&group.resource, object.member("resource"));
        object.list("scopeSpans", &group.scopes, |scope_group, out| {
            let mut object = Object::open(out);
            write_scope(&scope_group.scope, object.member("scope"));
            object.list("spans", &scope_group.spans, write_span);
            object.text("schemaUrl", &scope_group.scope.schema_url);
            object.close();
        });
        object.text("schemaUrl", &group.resource.schema_url);
        object.close();
    });
    object.close();
}

fn write_resource(resource: &Resource, out: &mut String) {
    let mut object = Object::open(out);
    object.attributes(&resource.attributes);
    object.count("droppedAttributesCount", resource.dropped_attributes_count);
    object.list("entityRefs", &resource.entity_refs, write_entity_ref);
    object.close();
}

fn write_entity_ref(entity: &EntityRef, out: &mut String) {
    let mut object = Object::open(out);
    object.text("schemaUrl", &entity.schema_url);
    object.text("type", &entity.r#type);
    object.list("idKeys", &entity.id_keys, |key, out| push_str(key, out));
    object.list("descriptionKeys", &entity.description_keys, |key, out| push_str(key, out));
    object.close();
}

fn write_scope(scope: &Scope, out: &mut String) {
    let mut object = Object::open(out);
    object.text("name", &scope.name);
    object.text("version", &scope.version);
    object.attributes(&scope.attributes);
    object.count("droppedAttributesCount", scope.dropped_attributes_count);
    object.close();
}

fn write_span(span: &Span, out: &mut String) {
    let mut object = Object::open(out);
    object.base64("traceId", &span.trace_id.0);
    object.base64("spanId", &span.span_id.0);
    object.text("traceState", &span.trace_state);
    if let Some(parent) = span.parent_span_id {
        object.base64("parentSpanId", &parent.0);
    }
    object.count("flags", span.flags);
    object.text("name", &span.name);
    object.number_or_name("kind", span.kind, SpanKind::try_from(span.kind).ok().map(|kind| kind.as_str_name()));
    object.count64("startTimeUnixNano", span.start_unix_nano);
    object.count64("endTimeUnixNano", span.end_unix_nano);
    object.attributes(&span.attributes);
    object.count("droppedAttributesCount", span.dropped_attributes_count);
    object.list("events", &span.events, write_event);
    object.count("droppedEventsCount", span.dropped_events_count);
    object.list("links", &span.links, write_link);
    object.count("droppedLinksCount", span.dropped_links_count);
    let mut status = Object::open(object.member("status"));
    status.text("message", &span.status_message);
    let name = StatusCode::try_from(span.status_code).ok().map(|code| code.as_str_name());
    status.number_or_name("code", span.status_code, name);
    status.close();
    object.close();
}

fn write_event(event: &Event, out: &mut String) {
    let mut object = Object::open(out);
    object.count64("timeUnixNano", event.time_unix_nano);
    object.text("name", &event.name);
    object.attributes(&event.attributes);
    object.count("droppedAttributesCount", event.dropped_attributes_count);
    object.close();
}

fn write_link(link: &Link, out: &mut String) {
    let mut object = Object::open(out);
    object.base64("traceId", &link.trace_id);
    object.base64("spanId", &link.span_id);
    object.text("traceState", &link.trace_state);
    object.attributes(&link.attributes);
    object.count("droppedAttributesCount", link.dropped_attributes_count);
    object.count("flags", link.flags);
    object.close();
}

fn write_pair(key: &str, value: &Value, out: &mut String) {
    if let Value::RawPair(message) = value {
        return match KeyValue::decode(message.as_slice()) {
            Ok(pair) => write_proto_pair(&pair, out),
            // Not readable as what it was stored as: the key is what is known.
            Err(_) => write_proto_pair(&KeyValue { key: key.to_owned(), ..Default::default() }, out),
        };
    }
    let mut object = Object::open(out);
    object.text("key", key);
    write_value(value, object.member("value"));
    object.close();
}

/// A choice is printed even if zero, else it is lost.
fn write_value(value: &Value, out: &mut String) {
    if let Value::Raw(message) = value {
        return write_proto_value(&AnyValue::decode(message.as_slice()).unwrap_or_default(), out);
    }
    let mut object = Object::open(out);
    match value {
        Value::Empty | Value::Raw(_) | Value::RawPair(_) => {}
        Value::Str(text) => push_str(text, object.member("stringValue")),
        Value::Bool(value) => object.member("boolValue").push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => push_quoted(value, object.member("intValue")),
        Value::Double(value) => push_f64(*value, object.member("doubleValue")),
        Value::Array(values) => {
            let mut array = Object::open(object.member("arrayValue"));
            array.list("values", values, write_value);
            array.close();
        }
        Value::Map(pairs) => {
            let mut list = Object::open(object.member("kvlistValue"));
            list.list("values", pairs, |(key, value), out| write_pair(key, value, out));
            list.close();
        }
        Value::Bytes(bytes) => push_base64(bytes, object.member("bytesValue")),
    }
    object.close();
}

fn write_proto_pair(pair: &KeyValue, out: &mut String) {
    let mut object = Object::open(out);
    object.text("key", &pair.key);
    if let Some(value) = &pair.value {
        write_proto_value(value, object.member("value"));
    }
    object.number_or_name("keyStrindex", pair.key_strindex, None);
    object.close();
}

/// As [`write_value`], for messages that the model keeps only as bytes.
fn write_proto_value(value: &AnyValue, out: &mut String) {
    use any_value::Value as Proto;
    let mut object = Object::open(out);
    match &value.value {
        None => {}
        Some(Proto::StringValue(text)) => push_str(text, object.member("stringValue")),
        Some(Proto::BoolValue(value)) => object.member("boolValue").push_str(if *value { "true" } else { "false" }),
        Some(Proto::IntValue(value)) => push_quoted(value, object.member("intValue")),
        Some(Proto::DoubleValue(value)) => push_f64(*value, object.member("doubleValue")),
        Some(Proto::ArrayValue(array)) => {
            let mut inner = Object::open(object.member("arrayValue"));
            inner.list("values", &array.values, write_proto_value);
            inner.close();
        }
        Some(Proto::KvlistValue(list)) => {
            let mut inner = Object::open(object.member("kvlistValue"));
            inner.list("values", &list.values, write_proto_pair);
            inner.close();
        }
        Some(Proto::BytesValue(bytes)) => push_base64(bytes, object.member("bytesValue")),
        Some(Proto::StringValueStrindex(index)) => push_display(index, object.member("stringValueStrindex")),
    }
    object.close();
}

/// An object being written. Each method but [`Object::member`] leaves out what is zero or empty.
pub(crate) struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Object<'a> {
    pub(crate) fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    /// Starts a member: the caller appends its value.
    pub(crate) fn member(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
        self.out
    }

    pub(crate) fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            push_str(text, self.member(name));
        }
    }

    pub(crate) fn count(&mut self, name: &str, count: u32) {
        if count != 0 {
            push_display(count, self.member(name));
        }
    }

    pub(crate) fn count64(&mut self, name: &str, count: u64) {
        if count != 0 {
            push_quoted(count, self.member(name));
        }
    }

    /// An enum is its name; a number without one stays a number.
    pub(crate) fn number_or_name(&mut self, name: &str, number: i32, word: Option<&str>) {
        match word {
            _ if number == 0 => {}
            Some(word) => push_quoted(word, self.member(name)),
            None => push_display(number, self.member(name)),
        }
    }

    pub(crate) fn base64(&mut self, name: &str, bytes: &[u8]) {
        if !bytes.is_empty() {
            push_base64(bytes, self.member(name));
        }
    }

    pub(crate) fn list<T>(&mut self, name: &str, items: &[T], write: impl Fn(&T, &mut String)) {
        if items.is_empty() {
            return;
        }
        let out = self.member(name);
        for (nth, item) in items.iter().enumerate() {
            out.push(if nth == 0 { '[' } else { ',' });
            write(item, out);
        }
        out.push(']');
    }

    fn attributes(&mut self, attributes: &[Attribute]) {
        self.list("attributes", attributes, |a, out| write_pair(&a.key, &a.value, out));
    }

    pub(crate) fn close(self) {
        self.out.push('}');
    }
}

pub(crate) fn push_display(value: impl std::fmt::Display, out: &mut String) {
    // A String never fails to grow, short of an abort.
    let _ = write!(out, "{value}");
}

fn push_quoted(value: impl std::fmt::Display, out: &mut String) {
    let _ = write!(out, "\"{value}\"");
}

pub(crate) fn push_base64(bytes: &[u8], out: &mut String) {
    out.push('"');
    BASE64.encode_string(bytes, out);
    out.push('"');
}

/// A double as Go prints it; what JSON has no number for is a string.
pub(crate) fn push_f64(value: f64, out: &mut String) {
    let size = value.abs();
    if value.is_nan() {
        out.push_str("\"NaN\"");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" });
    } else if size == 0.0 || (1e-6..1e21).contains(&size) {
        push_display(value, out);
    } else {
        let start = out.len();
        let _ = write!(out, "{value:e}");
        if let Some(at) = out[start..].find('e').filter(|_| size >= 1.0) {
            out.insert(start + at + 1, '+');
        }
    }
}

/// A string as Go escapes it: also what HTML and old JavaScript would stumble on.
pub(crate) fn push_str(text: &str, out: &mut String) {
    out.reserve(text.len() + 2);
    out.push('"');
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let (escaped, width) = match byte {
            b'"' => ("\\\"", 1),
            b'\\' => ("\\\\", 1),
            b'\n' => ("\\n", 1),
            b'\r' => ("\\r", 1),
            b'\t' => ("\\t", 1),
            0x08 => ("\\b", 1),
            0x0c => ("\\f", 1),
            b'<' => ("\\u003c", 1),
            b'>' => ("\\u003e", 1),
            b'&' => ("\\u0026", 1),
            0..0x20 => ("", 1),
            0xe2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => ("\\u2028", 3),
            0xe2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => ("\\u2029", 3),
            _ => continue,
        };
        out.push_str(&text[copied..at]);
        out.push_str(escaped);
        if escaped.is_empty() {
            let _ = write!(out, "\\u{byte:04x}");
        }
        copied = at + width;
    }
    out.push_str(&text[copied..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_go_prints_them() {
        let check = |value: f64, text: &str| {
            let mut out = String::new();
            push_f64(value, &mut out);
            assert_eq!(out, text);
        };
        check(1.0, "1");
        check(0.0, "0");
        check(-0.0, "-0");
        check(0.5, "0.5");
        check(0.000001, "0.000001");
        check(1e-7, "1e-7");
        check(-1.5e-9, "-1.5e-9");
        check(1e20, "100000000000000000000");
        check(1e21, "1e+21");
        check(-1.25e300, "-1.25e+300");
        check(f64::NAN, "\"NaN\"");
        check(f64::INFINITY, "\"Infinity\"");
        check(f64::NEG_INFINITY, "\"-Infinity\"");
    }

    #[test]
    fn strings_as_go_escapes_them() {
        let mut out = String::new();
        push_str("a<b>&\"\\\n\r\t\u{8}\u{c}\u{1}\u{7f}é\u{2028}\u{2029}\u{2030}", &mut out);
        assert_eq!(out, "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\r\\t\\b\\f\\u0001\u{7f}é\\u2028\\u2029\u{2030}\"");
    }
}
