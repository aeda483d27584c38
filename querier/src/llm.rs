//! The trace form for language models (`application/vnd.grafana.llm`): hex ids, plain values, grouped by service.
//!
//! Owns that one JSON form. Its strings and numbers follow [`crate::json`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost::Message as _;
use spanhouse_common::model::{Attribute, Event, Link, Span, Value};
use spanhouse_proto::otlp_common::{AnyValue, KeyValue, any_value};
use spanhouse_proto::otlp_trace::{span::SpanKind, status::StatusCode};

use crate::assemble::{ResourceGroup, ScopeGroup, Trace};
use crate::json::{Object, push_base64, push_display, push_f64, push_str};

/// The body of `/api/v2/traces/{id}` for this form; `{}` if there is no such trace.
pub fn trace(trace: &Trace, inspected_bytes: u64, partial: Option<&str>) -> String {
    let mut out = String::new();
    let mut response = Object::open(&mut out);
    let first = trace.groups.first().and_then(|g| g.scopes.first()).and_then(|s| s.spans.first());
    if let Some(first) = first {
        let mut object = Object::open(response.member("trace"));
        object.text("traceId", &first.trace_id.to_string());
        object.list("services", &trace.groups, write_service);
        object.close();
        let mut metrics = Object::open(response.member("metrics"));
        push_display(inspected_bytes, metrics.member("inspectedBytes"));
        metrics.close();
        response.text("status", if partial.is_some() { "PARTIAL" } else { "COMPLETE" });
        response.text("message", partial.unwrap_or_default());
    }
    response.close();
    out
}

fn write_service(group: &ResourceGroup, out: &mut String) {
    let mut object = Object::open(out);
    push_str(group.resource.service_name().unwrap_or_default(), object.member("serviceName"));
    let rest = group.resource.attributes.iter().filter(|a| a.key != "service.name");
    write_attributes("resource", rest, &mut object);
    object.list("scopes", &group.scopes, write_scope);
    object.close();
}

fn write_scope(group: &ScopeGroup, out: &mut String) {
    let mut object = Object::open(out);
    object.text("name", &group.scope.name);
    object.text("version", &group.scope.version);
    object.list("spans", &group.spans, write_span);
    object.close();
}

fn write_span(span: &Span, out: &mut String) {
    let mut object = Object::open(out);
    object.text("spanId", &span.span_id.to_string());
    object.text("name", &span.name);
    if let Some(parent) = span.parent_span_id {
        object.text("parentSpanId", &parent.to_string());
    }
    object.number_or_name("kind", span.kind, SpanKind::try_from(span.kind).ok().map(|kind| kind.as_str_name()));
    object.count64("startTimeUnixNano", span.start_unix_nano);
    object.count64("endTimeUnixNano", span.end_unix_nano);
    let nanos = span.end_unix_nano.saturating_sub(span.start_unix_nano);
    push_f64(nanos as f64 / 1e6, object.member("durationMs"));
    write_attributes("attributes", span.attributes.iter(), &mut object);
    object.list("events", &span.events, write_event);
    object.list("links", &span.links, write_link);
    let mut status = Object::open(object.member("status"));
    let code = StatusCode::try_from(span.status_code).unwrap_or_default();
    push_str(code.as_str_name(), status.member("code"));
    push_str(&span.status_message, status.member("message"));
    status.close();
    object.close();
}

fn write_event(event: &Event, out: &mut String) {
    let mut object = Object::open(out);
    object.text("name", &event.name);
    object.count64("timeUnixNano", event.time_unix_nano);
    write_attributes("attributes", event.attributes.iter(), &mut object);
    object.close();
}

fn write_link(link: &Link, out: &mut String) {
    let mut object = Object::open(out);
    object.text("traceId", &hex(&link.trace_id));
    object.text("spanId", &hex(&link.span_id));
    write_attributes("attributes", link.attributes.iter(), &mut object);
    object.close();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An object of attributes sorted by key; of equal keys the last counts.
fn write_attributes<'a>(name: &str, attributes: impl Iterator<Item = &'a Attribute>, object: &mut Object<'_>) {
    let sorted: BTreeMap<&str, &Value> = attributes.map(|a| (a.key.as_str(), &a.value)).collect();
    if !sorted.is_empty() {
        write_map(sorted.into_iter(), write_value, object.member(name));
    }
}

fn write_map<'a, V>(pairs: impl Iterator<Item = (&'a str, V)>, write: impl Fn(V, &mut String), out: &mut String) {
    out.push('{');
    for (nth, (key, value)) in pairs.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        push_str(key, out);
        out.push(':');
        write(value, out);
    }
    out.push('}');
}

fn write_list<V>(values: impl Iterator<Item = V>, write: impl Fn(V, &mut String), out: &mut String) {
    out.push('[');
    for (nth, value) in values.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write(value, out);
    }
    out.push(']');
}

fn write_value(value: &Value, out: &mut String) {
    match value {
        Value::Empty => out.push_str("null"),
        Value::Str(text) => push_str(text, out),
        Value::Bool(value) => push_display(value, out),
        Value::Int(value) => push_display(value, out),
        Value::Double(value) => push_f64(*value, out),
        Value::Bytes(bytes) => push_base64(bytes, out),
        Value::Array(values) => write_list(values.iter(), write_value, out),
        Value::Map(pairs) => {
            let sorted: BTreeMap<&str, &Value> = pairs.iter().map(|(key, value)| (key.as_str(), value)).collect();
            write_map(sorted.into_iter(), write_value, out);
        }
        Value::Raw(message) => write_proto_value(AnyValue::decode(message.as_slice()).ok().as_ref(), out),
        Value::RawPair(message) => {
            let pair = KeyValue::decode(message.as_slice()).unwrap_or_default();
            write_proto_value(pair.value.as_ref(), out);
        }
    }
}

fn write_proto_value(value: Option<&AnyValue>, out: &mut String) {
    use any_value::Value as Proto;
    match value.and_then(|value| value.value.as_ref()) {
        None => out.push_str("null"),
        Some(Proto::StringValue(text)) => push_str(text, out),
        Some(Proto::BoolValue(value)) => push_display(value, out),
        Some(Proto::IntValue(value)) => push_display(value, out),
        Some(Proto::DoubleValue(value)) => push_f64(*value, out),
        Some(Proto::BytesValue(bytes)) => push_base64(bytes, out),
        Some(Proto::StringValueStrindex(index)) => push_display(index, out),
        Some(Proto::ArrayValue(array)) => write_list(array.values.iter().map(Some), write_proto_value, out),
        Some(Proto::KvlistValue(list)) => {
            let sorted: BTreeMap<&str, Option<&AnyValue>> =
                list.values.iter().map(|pair| (pair.key.as_str(), pair.value.as_ref())).collect();
            write_map(sorted.into_iter(), write_proto_value, out);
        }
    }
}
