//! The two JSON forms of a trace.

use prost::Message as _;
use spanhouse_common::model::{Attribute, EntityRef, Event, Link, Resource, Scope, Span, Value};
use spanhouse_proto::otlp_common::{AnyValue, KeyValue, any_value};
use spanhouse_proto::otlp_trace::{span::SpanKind, status::StatusCode};

use super::{Object, push_base64, push_display, push_f64, push_quoted_int, push_str};
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

pub(crate) fn write_resource(resource: &Resource, out: &mut String) {
    let mut object = Object::open(out);
    write_attributes(&mut object, &resource.attributes);
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

pub(crate) fn write_scope(scope: &Scope, out: &mut String) {
    let mut object = Object::open(out);
    object.text("name", &scope.name);
    object.text("version", &scope.version);
    write_attributes(&mut object, &scope.attributes);
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
    write_attributes(&mut object, &span.attributes);
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

pub(crate) fn write_event(event: &Event, out: &mut String) {
    let mut object = Object::open(out);
    object.count64("timeUnixNano", event.time_unix_nano);
    object.text("name", &event.name);
    write_attributes(&mut object, &event.attributes);
    object.count("droppedAttributesCount", event.dropped_attributes_count);
    object.close();
}

fn write_link(link: &Link, out: &mut String) {
    let mut object = Object::open(out);
    object.base64("traceId", &link.trace_id);
    object.base64("spanId", &link.span_id);
    object.text("traceState", &link.trace_state);
    write_attributes(&mut object, &link.attributes);
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
        Value::Int(value) => push_quoted_int(*value, object.member("intValue")),
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
        Some(Proto::IntValue(value)) => push_quoted_int(*value, object.member("intValue")),
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

pub(crate) fn write_attributes(object: &mut Object<'_>, attributes: &[Attribute]) {
    object.list("attributes", attributes, |a, out| write_pair(&a.key, &a.value, out));
}
