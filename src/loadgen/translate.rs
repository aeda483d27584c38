//! OTLP bodies in the words of Jaeger and Zipkin, as their clients and the exporters of SDKs write them.
//!
//! Owns what of a span each of them can say. Thrift, Jaeger's protobuf and Zipkin's have no doubles lost and no ids changed; what
//! they have no place for (types of values in Zipkin, links there, flags beyond the sampled bit) is left out or becomes text.

use std::net::Ipv4Addr;

use prost::Message;
use serde_json::{Map, Value as Json, json};
use spanhouse_common::varint::put_varint;
use spanhouse_ingester::thrift::Kind;
use spanhouse_ingester::thrift::write::{Protocol as Thrift, Writer};
use spanhouse_proto::otlp_common::{AnyValue, KeyValue, any_value::Value};
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span};

use super::Protocol;
use super::wire::put_bytes;

/// Longest packet that clients of Jaeger's agent send.
const MAX_PACKET: usize = 65_000;
/// A packet without spans: message, process.
const PACKET_HEAD: usize = 2_500;

/// The bodies that say what one OTLP body says: several only for packets.
pub(super) fn translate(protocol: Protocol, otlp: Vec<u8>) -> Result<Vec<Vec<u8>>, prost::DecodeError> {
    if matches!(protocol, Protocol::OtlpHttp | Protocol::OtlpGrpc) {
        return Ok(vec![otlp]);
    }
    let request = ExportTraceServiceRequest::decode(&otlp[..])?;
    let groups = &request.resource_spans;
    Ok(match protocol {
        Protocol::JaegerThriftHttp => groups.iter().map(|group| batch(group, &spans(group))).collect(),
        Protocol::JaegerCompactUdp => groups.iter().flat_map(|group| packets(Thrift::Compact, group)).collect(),
        Protocol::JaegerBinaryUdp => groups.iter().flat_map(|group| packets(Thrift::Binary, group)).collect(),
        Protocol::JaegerGrpc => groups.iter().map(post_spans).collect(),
        Protocol::ZipkinJson => vec![Json::Array(groups.iter().flat_map(zipkin_v2).collect()).to_string().into_bytes()],
        Protocol::ZipkinProto => vec![zipkin_proto(groups)],
        Protocol::ZipkinV1Json => vec![Json::Array(groups.iter().flat_map(zipkin_v1).collect()).to_string().into_bytes()],
        Protocol::ZipkinThrift => vec![zipkin_thrift(groups)],
        Protocol::OtlpHttp | Protocol::OtlpGrpc => Vec::new(),
    })
}

type Scoped<'r> = (&'r ScopeSpans, &'r Span);

fn spans(group: &ResourceSpans) -> Vec<Scoped<'_>> {
    group.scope_spans.iter().flat_map(|scope| scope.spans.iter().map(move |span| (scope, span))).collect()
}

fn resource(group: &ResourceSpans) -> &[KeyValue] {
    group.resource.as_ref().map_or(&[], |resource| &resource.attributes)
}

fn service(group: &ResourceSpans) -> String {
    let named = resource(group).iter().find(|attribute| attribute.key == "service.name");
    named.map_or_else(String::new, |attribute| text(attribute.value.as_ref()))
}

/// The value as text.
fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        None => String::new(),
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(Value::ArrayValue(array)) => {
            Json::Array(array.values.iter().map(|value| text(Some(value)).into()).collect()).to_string()
        }
        Some(other) => format!("{other:?}"),
    }
}

/// A value as Jaeger has it.
enum Tag {
    Text(String),
    Bool(bool),
    Int(i64),
    Double(f64),
}

fn tag(value: Option<&AnyValue>) -> Tag {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::BoolValue(value)) => Tag::Bool(*value),
        Some(Value::IntValue(value)) => Tag::Int(*value),
        Some(Value::DoubleValue(value)) => Tag::Double(*value),
        _ => Tag::Text(text(value)),
    }
}

fn tags_of(attributes: &[KeyValue]) -> impl Iterator<Item = (&str, Tag)> {
    attributes.iter().map(|attribute| (attribute.key.as_str(), tag(attribute.value.as_ref())))
}

const KINDS: [&str; 6] = ["", "internal", "server", "client", "producer", "consumer"];

/// Attributes of a span and what becomes tags beside them.
fn span_tags<'s>((scope, span): Scoped<'s>) -> Vec<(&'s str, Tag)> {
    let mut tags: Vec<(&str, Tag)> = Vec::new();
    if let Some(scope) = &scope.scope {
        tags.push(("otel.scope.name", Tag::Text(scope.name.clone())));
        tags.push(("otel.scope.version", Tag::Text(scope.version.clone())));
    }
    tags.extend(tags_of(&span.attributes));
    let kind = KINDS.get(span.kind as usize).copied().unwrap_or_default();
    if !kind.is_empty() {
        tags.push(("span.kind", Tag::Text(kind.into())));
    }
    if let Some(status) = span.status.as_ref().filter(|status| status.code == 2) {
        tags.push(("error", Tag::Bool(true)));
        tags.push(("otel.status_code", Tag::Text("ERROR".into())));
        tags.push(("otel.status_description", Tag::Text(status.message.clone())));
    }
    tags
}

/// Eight bytes as the number that Thrift has.
fn number(id: &[u8]) -> i64 {
    id.try_into().map_or(0, i64::from_be_bytes)
}

fn micros(nanos: u64) -> i64 {
    (nanos / 1_000) as i64
}

fn duration(span: &Span) -> i64 {
    micros(span.end_time_unix_nano) - micros(span.start_time_unix_nano)
}

/// A bare `Batch`: the body of `POST /api/traces`.
fn batch(group: &ResourceSpans, spans: &[Scoped<'_>]) -> Vec<u8> {
    let mut out = Writer::new(Thrift::Binary);
    put_batch(&mut out, group, spans);
    out.bytes
}

/// As many packets as it takes.
fn packets(protocol: Thrift, group: &ResourceSpans) -> Vec<Vec<u8>> {
    let all = spans(group);
    let (mut packets, mut from) = (Vec::new(), 0);
    while from < all.len() {
        let mut room = MAX_PACKET - PACKET_HEAD;
        // Thrift is no longer than protobuf and some for its fixed numbers and our own tags.
        let fits = all[from..].iter().take_while(|(_, span)| {
            let size = 2 * span.encoded_len() + 200;
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        });
        let to = from + fits.count().max(1);
        let mut out = Writer::new(protocol);
        out.message("emitBatch");
        out.begin();
        out.field(1, Kind::Struct);
        put_batch(&mut out, group, &all[from..to]);
        out.end();
        packets.push(out.bytes);
        from = to;
    }
    packets
}

fn put_batch(out: &mut Writer, group: &ResourceSpans, spans: &[Scoped<'_>]) {
    out.begin();
    out.field(1, Kind::Struct);
    out.begin();
    out.bytes_field(1, service(group).as_bytes());
    put_tags(out, 2, tags_of(resource(group)).filter(|(key, _)| *key != "service.name").collect());
    out.end();
    out.structs_field(2, spans.len());
    for scoped in spans {
        let span = scoped.1;
        out.begin();
        out.i64_field(1, number(span.trace_id.get(8..).unwrap_or_default()));
        out.i64_field(2, number(span.trace_id.get(..8).unwrap_or_default()));
        out.i64_field(3, number(&span.span_id));
        out.i64_field(4, number(&span.parent_span_id));
        out.bytes_field(5, span.name.as_bytes());
        out.structs_field(6, span.links.len());
        for link in &span.links {
            out.begin();
            out.i32_field(1, 1);
            out.i64_field(2, number(link.trace_id.get(8..).unwrap_or_default()));
            out.i64_field(3, number(link.trace_id.get(..8).unwrap_or_default()));
            out.i64_field(4, number(&link.span_id));
            out.end();
        }
        out.i32_field(7, (span.flags & 1) as i32);
        out.i64_field(8, micros(span.start_time_unix_nano));
        out.i64_field(9, duration(span));
        put_tags(out, 10, span_tags(*scoped));
        out.structs_field(11, span.events.len());
        for event in &span.events {
            out.begin();
            out.i64_field(1, micros(event.time_unix_nano));
            let name = ("event", Tag::Text(event.name.clone()));
            put_tags(out, 2, std::iter::once(name).chain(tags_of(&event.attributes)).collect());
            out.end();
        }
        out.end();
    }
    out.end();
}

fn put_tags(out: &mut Writer, id: i16, tags: Vec<(&str, Tag)>) {
    out.structs_field(id, tags.len());
    for (key, value) in tags {
        out.begin();
        out.bytes_field(1, key.as_bytes());
        match value {
            Tag::Text(text) => {
                out.i32_field(2, 0);
                out.bytes_field(3, text.as_bytes());
            }
            Tag::Double(value) => {
                out.i32_field(2, 1);
                out.double_field(4, value);
            }
            Tag::Bool(value) => {
                out.i32_field(2, 2);
                out.bool_field(5, value);
            }
            Tag::Int(value) => {
                out.i32_field(2, 3);
                out.i64_field(6, value);
            }
        }
        out.end();
    }
}

/// A message as a field of another; `tag` is its number and wire type in one byte.
fn message(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    put_bytes(out, tag, &inner);
}

fn varint(out: &mut Vec<u8>, tag: u8, value: u64) {
    out.push(tag);
    put_varint(value, out);
}

/// A `Timestamp` or `Duration`.
fn time(out: &mut Vec<u8>, tag: u8, nanos: u64) {
    message(out, tag, |time| {
        varint(time, 0x08, nanos / 1_000_000_000);
        varint(time, 0x10, nanos % 1_000_000_000);
    });
}

fn proto_tag(out: &mut Vec<u8>, field: u8, key: &str, value: &Tag) {
    message(out, field, |tag| {
        put_bytes(tag, 0x0a, key.as_bytes());
        match value {
            Tag::Text(text) => put_bytes(tag, 0x1a, text.as_bytes()),
            Tag::Bool(value) => tag.extend([0x10, 1, 0x20, u8::from(*value)]),
            Tag::Int(value) => {
                tag.extend([0x10, 2]);
                varint(tag, 0x28, *value as u64);
            }
            Tag::Double(value) => {
                tag.extend([0x10, 3, 0x31]);
                tag.extend(value.to_le_bytes());
            }
        }
    });
}

/// A `PostSpansRequest`.
fn post_spans(group: &ResourceSpans) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, 0x0a, |batch| {
        for scoped in spans(group) {
            message(batch, 0x0a, |out| proto_span(out, scoped));
        }
        message(batch, 0x12, |process| {
            put_bytes(process, 0x0a, service(group).as_bytes());
            let tags = tags_of(resource(group)).filter(|(key, _)| *key != "service.name");
            tags.for_each(|(key, value)| proto_tag(process, 0x12, key, &value));
        });
    });
    out
}

fn proto_span(out: &mut Vec<u8>, scoped: Scoped<'_>) {
    let span = scoped.1;
    put_bytes(out, 0x0a, &span.trace_id);
    put_bytes(out, 0x12, &span.span_id);
    put_bytes(out, 0x1a, span.name.as_bytes());
    if !span.parent_span_id.is_empty() {
        message(out, 0x22, |reference| {
            put_bytes(reference, 0x0a, &span.trace_id);
            put_bytes(reference, 0x12, &span.parent_span_id);
        });
    }
    for link in &span.links {
        message(out, 0x22, |reference| {
            put_bytes(reference, 0x0a, &link.trace_id);
            put_bytes(reference, 0x12, &link.span_id);
            varint(reference, 0x18, 1);
        });
    }
    varint(out, 0x28, u64::from(span.flags & 1));
    time(out, 0x32, span.start_time_unix_nano);
    time(out, 0x3a, span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano));
    span_tags(scoped).iter().for_each(|(key, value)| proto_tag(out, 0x42, key, value));
    for event in &span.events {
        message(out, 0x4a, |log| {
            time(log, 0x0a, event.time_unix_nano);
            proto_tag(log, 0x12, "event", &Tag::Text(event.name.clone()));
            tags_of(&event.attributes).for_each(|(key, value)| proto_tag(log, 0x12, key, &value));
        });
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An address for a service that has none: Zipkin's endpoints are made of service and address.
fn address(service: &str) -> Ipv4Addr {
    let sum = service.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    Ipv4Addr::new(10, 42, 0, sum)
}

/// Tags of a span of Zipkin: attributes of span and resource as text, as SDKs export them.
fn zipkin_tags(group: &ResourceSpans, (scope, span): Scoped<'_>) -> Vec<(String, String)> {
    let mut tags: Vec<(String, String)> = Vec::new();
    let attributes = resource(group).iter().filter(|attribute| attribute.key != "service.name").chain(&span.attributes);
    tags.extend(attributes.map(|attribute| (attribute.key.clone(), text(attribute.value.as_ref()))));
    if let Some(scope) = &scope.scope {
        tags.push(("otel.library.name".into(), scope.name.clone()));
        tags.push(("otel.library.version".into(), scope.version.clone()));
    }
    if let Some(status) = span.status.as_ref().filter(|status| status.code == 2) {
        tags.push(("otel.status_code".into(), "ERROR".into()));
        tags.push(("error".into(), status.message.clone()));
    }
    tags
}

/// What today's model calls a kind, in JSON and as a number.
fn zipkin_kind(span: &Span) -> (&'static str, u8) {
    match span.kind {
        2 => ("SERVER", 2),
        3 => ("CLIENT", 1),
        4 => ("PRODUCER", 3),
        5 => ("CONSUMER", 4),
        _ => ("", 0),
    }
}

fn zipkin_v2(group: &ResourceSpans) -> Vec<Json> {
    let service = service(group);
    let one = |scoped: Scoped<'_>| {
        let span = scoped.1;
        let mut out = json!({
            "traceId": hex(&span.trace_id),
            "id": hex(&span.span_id),
            "name": span.name,
            "timestamp": micros(span.start_time_unix_nano),
            "duration": duration(span),
            "localEndpoint": { "serviceName": service, "ipv4": address(&service).to_string() },
            "tags": zipkin_tags(group, scoped).into_iter().map(|(key, value)| (key, value.into())).collect::<Map<_, _>>(),
        });
        if !span.parent_span_id.is_empty() {
            out["parentId"] = hex(&span.parent_span_id).into();
        }
        if !zipkin_kind(span).0.is_empty() {
            out["kind"] = zipkin_kind(span).0.into();
        }
        if !span.events.is_empty() {
            let annotations = span.events.iter();
            out["annotations"] =
                annotations.map(|event| json!({ "timestamp": micros(event.time_unix_nano), "value": event.name })).collect();
        }
        out
    };
    spans(group).into_iter().map(one).collect()
}

fn zipkin_proto(groups: &[ResourceSpans]) -> Vec<u8> {
    let mut out = Vec::new();
    for group in groups {
        let service = service(group);
        for scoped in spans(group) {
            let span = scoped.1;
            message(&mut out, 0x0a, |out| {
                put_bytes(out, 0x0a, &span.trace_id);
                if !span.parent_span_id.is_empty() {
                    put_bytes(out, 0x12, &span.parent_span_id);
                }
                put_bytes(out, 0x1a, &span.span_id);
                varint(out, 0x20, zipkin_kind(span).1.into());
                put_bytes(out, 0x2a, span.name.as_bytes());
                out.push(0x31);
                out.extend(micros(span.start_time_unix_nano).to_le_bytes());
                varint(out, 0x38, duration(span) as u64);
                message(out, 0x42, |endpoint| {
                    put_bytes(endpoint, 0x0a, service.as_bytes());
                    put_bytes(endpoint, 0x12, &address(&service).octets());
                });
                for event in &span.events {
                    message(out, 0x52, |annotation| {
                        annotation.push(0x09);
                        annotation.extend(micros(event.time_unix_nano).to_le_bytes());
                        put_bytes(annotation, 0x12, event.name.as_bytes());
                    });
                }
                for (key, value) in zipkin_tags(group, scoped) {
                    message(out, 0x5a, |entry| {
                        put_bytes(entry, 0x0a, key.as_bytes());
                        put_bytes(entry, 0x12, value.as_bytes());
                    });
                }
            });
        }
    }
    out
}

/// Time and text of the annotations that stand for kind, begin and end, and of the events.
fn annotations(span: &Span) -> Vec<(i64, &str)> {
    let core = match span.kind {
        2 => ("sr", "ss"),
        3 => ("cs", "cr"),
        4 => ("ms", ""),
        5 => ("mr", ""),
        _ => ("", ""),
    };
    let ends = [(span.start_time_unix_nano, core.0), (span.end_time_unix_nano, core.1)];
    let ends = ends.into_iter().filter(|(_, text)| !text.is_empty());
    let events = span.events.iter().map(|event| (event.time_unix_nano, event.name.as_str()));
    ends.chain(events).map(|(nanos, text)| (micros(nanos), text)).collect()
}

fn zipkin_v1(group: &ResourceSpans) -> Vec<Json> {
    let service = service(group);
    let host = json!({ "serviceName": service, "ipv4": address(&service).to_string() });
    let one = |scoped: Scoped<'_>| {
        let span = scoped.1;
        let annotation = |(micros, text)| json!({ "timestamp": micros, "value": text, "endpoint": host });
        let tag = |(key, value)| json!({ "key": key, "value": value, "endpoint": host });
        let tags = zipkin_tags(group, scoped).into_iter().filter(|(key, _)| key != "otel.status_code");
        let mut out = json!({
            "traceId": hex(&span.trace_id),
            "id": hex(&span.span_id),
            "name": span.name,
            "timestamp": micros(span.start_time_unix_nano),
            "duration": duration(span),
            "annotations": annotations(span).into_iter().map(annotation).collect::<Vec<_>>(),
            "binaryAnnotations": tags.map(tag).collect::<Vec<_>>(),
        });
        if !span.parent_span_id.is_empty() {
            out["parentId"] = hex(&span.parent_span_id).into();
        }
        out
    };
    spans(group).into_iter().map(one).collect()
}

/// A bare list of spans in the binary protocol.
fn zipkin_thrift(groups: &[ResourceSpans]) -> Vec<u8> {
    let mut out = Writer::new(Thrift::Binary);
    out.structs(groups.iter().map(|group| spans(group).len()).sum());
    for group in groups {
        let service = service(group);
        let host = |out: &mut Writer, id: i16| {
            out.field(id, Kind::Struct);
            out.begin();
            out.i32_field(1, u32::from(address(&service)) as i32);
            out.i16_field(2, 0);
            out.bytes_field(3, service.as_bytes());
            out.end();
        };
        for scoped in spans(group) {
            let span = scoped.1;
            out.begin();
            out.i64_field(1, number(span.trace_id.get(8..).unwrap_or_default()));
            out.bytes_field(3, span.name.as_bytes());
            out.i64_field(4, number(&span.span_id));
            if !span.parent_span_id.is_empty() {
                out.i64_field(5, number(&span.parent_span_id));
            }
            let annotations = annotations(span);
            out.structs_field(6, annotations.len());
            for (micros, text) in annotations {
                out.begin();
                out.i64_field(1, micros);
                out.bytes_field(2, text.as_bytes());
                host(&mut out, 3);
                out.end();
            }
            let tags = zipkin_tags(group, scoped);
            let tags: Vec<_> = tags.into_iter().filter(|(key, _)| key != "otel.status_code").collect();
            out.structs_field(8, tags.len());
            for (key, value) in tags {
                out.begin();
                out.bytes_field(1, key.as_bytes());
                out.bytes_field(2, value.as_bytes());
                out.i32_field(3, 6);
                host(&mut out, 4);
                out.end();
            }
            out.i64_field(10, micros(span.start_time_unix_nano));
            out.i64_field(11, duration(span));
            out.i64_field(12, number(span.trace_id.get(..8).unwrap_or_default()));
            out.end();
        }
    }
    out.bytes
}
