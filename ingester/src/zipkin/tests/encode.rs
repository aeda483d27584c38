//! Spans in JSON as a client would write them in the other two forms.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value as Json;

use crate::otlp::wire::{begin_message, end_message, put_bytes, put_fixed64, put_tag, put_varint};
use crate::thrift::Kind;
use crate::thrift::write::{Protocol, Writer};

pub(super) fn text<'j>(of: &'j Json, key: &str) -> &'j str {
    of[key].as_str().unwrap_or_default()
}

pub(super) fn number(of: &Json, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_default()
}

pub(super) fn list<'j>(of: &'j Json, key: &str) -> &'j [Json] {
    of[key].as_array().map_or(&[], Vec::as_slice)
}

/// An id of hex digits as so many bytes.
pub(super) fn id<const N: usize>(of: &Json, key: &str) -> [u8; N] {
    let value = u128::from_str_radix(text(of, key), 16).unwrap_or_default().to_be_bytes();
    value[16 - N..].try_into().unwrap()
}

/// A `ListOfSpans`.
pub(super) fn proto(spans: &Json) -> Vec<u8> {
    let mut out = Vec::new();
    for span in spans.as_array().unwrap() {
        let at = begin_message(1, &mut out);
        match text(span, "traceId").len() {
            16 => put_bytes(1, &id::<8>(span, "traceId"), &mut out),
            _ => put_bytes(1, &id::<16>(span, "traceId"), &mut out),
        }
        if !text(span, "parentId").is_empty() {
            put_bytes(2, &id::<8>(span, "parentId"), &mut out);
        }
        put_bytes(3, &id::<8>(span, "id"), &mut out);
        let kinds = ["", "CLIENT", "SERVER", "PRODUCER", "CONSUMER"];
        put_tag(4, 0, &mut out);
        put_varint(kinds.iter().position(|kind| *kind == text(span, "kind")).unwrap() as u64, &mut out);
        put_bytes(5, text(span, "name").as_bytes(), &mut out);
        put_fixed64(6, number(span, "timestamp"), &mut out);
        put_tag(7, 0, &mut out);
        put_varint(number(span, "duration"), &mut out);
        for (field, key) in [(8, "localEndpoint"), (9, "remoteEndpoint")] {
            if !span[key].is_null() {
                endpoint(field, &span[key], &mut out);
            }
        }
        for annotation in list(span, "annotations") {
            let at = begin_message(10, &mut out);
            put_fixed64(1, number(annotation, "timestamp"), &mut out);
            put_bytes(2, text(annotation, "value").as_bytes(), &mut out);
            end_message(at, &mut out);
        }
        for (key, value) in span["tags"].as_object().into_iter().flatten() {
            let at = begin_message(11, &mut out);
            put_bytes(1, key.as_bytes(), &mut out);
            put_bytes(2, value.as_str().unwrap().as_bytes(), &mut out);
            end_message(at, &mut out);
        }
        put_bytes(99, b"later", &mut out);
        end_message(at, &mut out);
    }
    out
}

fn endpoint(field: u32, endpoint: &Json, out: &mut Vec<u8>) {
    let at = begin_message(field, out);
    put_bytes(1, text(endpoint, "serviceName").as_bytes(), out);
    if let Ok(ip) = text(endpoint, "ipv4").parse::<Ipv4Addr>() {
        put_bytes(2, &ip.octets(), out);
    }
    if let Ok(ip) = text(endpoint, "ipv6").parse::<Ipv6Addr>() {
        put_bytes(3, &ip.octets(), out);
    }
    put_tag(4, 0, out);
    put_varint(number(endpoint, "port"), out);
    end_message(at, out);
}

/// A bare list in Thrift's binary protocol. Binary annotations may have a `type`; bytes are hex.
pub(super) fn thrift(spans: &Json) -> Vec<u8> {
    let mut out = Writer::new(Protocol::Binary);
    let spans = spans.as_array().unwrap();
    out.structs(spans.len());
    for span in spans {
        out.begin();
        let trace = id::<16>(span, "traceId");
        let int = |bytes: &[u8]| i64::from_be_bytes(bytes.try_into().unwrap());
        out.i64_field(1, int(&trace[8..]));
        out.bytes_field(3, text(span, "name").as_bytes());
        out.i64_field(4, int(&id::<8>(span, "id")));
        if !text(span, "parentId").is_empty() {
            out.i64_field(5, int(&id::<8>(span, "parentId")));
        }
        let annotations = list(span, "annotations");
        out.structs_field(6, annotations.len());
        for annotation in annotations {
            out.begin();
            out.i64_field(1, number(annotation, "timestamp") as i64);
            out.bytes_field(2, text(annotation, "value").as_bytes());
            host(&mut out, 3, &annotation["endpoint"]);
            out.end();
        }
        let annotations = list(span, "binaryAnnotations");
        out.structs_field(8, annotations.len());
        for annotation in annotations {
            out.begin();
            out.bytes_field(1, text(annotation, "key").as_bytes());
            let kind = annotation["type"].as_i64().unwrap_or(6) as i32;
            out.bytes_field(2, &bytes(kind, &annotation["value"]));
            out.i32_field(3, kind);
            host(&mut out, 4, &annotation["endpoint"]);
            out.end();
        }
        out.bool_field(9, span["debug"] == true);
        out.i64_field(10, number(span, "timestamp") as i64);
        out.i64_field(11, number(span, "duration") as i64);
        if trace[..8] != [0; 8] {
            out.i64_field(12, int(&trace[..8]));
        }
        out.end();
    }
    out.bytes
}

/// A value as the type with this number has it.
fn bytes(kind: i32, value: &Json) -> Vec<u8> {
    let int = || value.as_i64().unwrap();
    match kind {
        0 => vec![u8::from(value == true)],
        1 => (0..value.as_str().unwrap().len() / 2)
            .map(|at| u8::from_str_radix(&value.as_str().unwrap()[2 * at..2 * at + 2], 16).unwrap())
            .collect(),
        2 => (int() as i16).to_be_bytes().to_vec(),
        3 => (int() as i32).to_be_bytes().to_vec(),
        4 => int().to_be_bytes().to_vec(),
        5 => value.as_f64().unwrap().to_be_bytes().to_vec(),
        _ => value.as_str().unwrap().as_bytes().to_vec(),
    }
}

fn host(out: &mut Writer, field: i16, endpoint: &Json) {
    if endpoint.is_null() {
        return;
    }
    out.field(field, Kind::Struct);
    out.begin();
    if let Ok(ip) = text(endpoint, "ipv4").parse::<Ipv4Addr>() {
        out.i32_field(1, u32::from(ip) as i32);
    }
    out.i16_field(2, number(endpoint, "port") as u16 as i16);
    out.bytes_field(3, text(endpoint, "serviceName").as_bytes());
    if let Ok(ip) = text(endpoint, "ipv6").parse::<Ipv6Addr>() {
        out.bytes_field(4, &ip.octets());
    }
    out.end();
}
