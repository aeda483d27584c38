//! A batch in JSON as a client would write it. Ids are hex, tags are `[key, type, value]`; a type of a number is one nobody knows.

use serde_json::Value as Json;

use crate::otlp::wire::{begin_message, end_message, put_bytes, put_fixed64, put_tag, put_varint};
use crate::thrift::Kind;
use crate::thrift::write::{Protocol, Writer};

pub(super) fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

pub(super) fn text<'j>(of: &'j Json, key: &str) -> &'j str {
    of[key].as_str().unwrap_or_default()
}

pub(super) fn number(of: &Json, key: &str) -> i64 {
    of[key].as_i64().unwrap_or_default()
}

pub(super) fn list<'j>(of: &'j Json, key: &str) -> &'j [Json] {
    of[key].as_array().map_or(&[], Vec::as_slice)
}

/// The id in `key`, zeros if there is none.
pub(super) fn id<const N: usize>(of: &Json, key: &str) -> [u8; N] {
    match text(of, key) {
        "" => [0; N],
        text => unhex(text).try_into().unwrap(),
    }
}

fn i64_of(bytes: &[u8]) -> i64 {
    i64::from_be_bytes(bytes.try_into().unwrap())
}

/// The body of `POST /api/traces`.
pub(super) fn thrift(batch: &Json) -> Vec<u8> {
    let mut out = Writer::new(Protocol::Binary);
    put_batch(&mut out, batch);
    out.bytes
}

/// A packet for an agent.
pub(super) fn message(protocol: Protocol, batch: &Json) -> Vec<u8> {
    let mut out = Writer::new(protocol);
    out.message("emitBatch");
    out.begin();
    out.field(1, Kind::Struct);
    put_batch(&mut out, batch);
    out.end();
    out.bytes
}

fn put_batch(out: &mut Writer, batch: &Json) {
    out.begin();
    out.field(1, Kind::Struct);
    out.begin();
    out.bytes_field(1, text(&batch["process"], "serviceName").as_bytes());
    tags(out, 2, list(&batch["process"], "tags"));
    out.end();
    let spans = list(batch, "spans");
    out.structs_field(2, spans.len());
    for span in spans {
        let trace = id::<16>(span, "traceID");
        out.begin();
        out.i64_field(1, i64_of(&trace[8..]));
        out.i64_field(2, i64_of(&trace[..8]));
        out.i64_field(3, i64_of(&id::<8>(span, "spanID")));
        out.i64_field(4, i64_of(&id::<8>(span, "parentSpanID")));
        out.bytes_field(5, text(span, "operationName").as_bytes());
        references(out, list(span, "references"));
        out.i32_field(7, number(span, "flags") as i32);
        out.i64_field(8, number(span, "startTime"));
        out.i64_field(9, number(span, "duration"));
        tags(out, 10, list(span, "tags"));
        let logs = list(span, "logs");
        out.structs_field(11, logs.len());
        for log in logs {
            out.begin();
            out.i64_field(1, number(log, "timestamp"));
            tags(out, 2, list(log, "fields"));
            out.end();
        }
        // What nobody knows is skipped.
        out.bool_field(99, true);
        out.end();
    }
    out.i64_field(3, 7);
    out.end();
}

fn references(out: &mut Writer, references: &[Json]) {
    out.structs_field(6, references.len());
    for reference in references {
        let trace = id::<16>(reference, "traceID");
        out.begin();
        out.i32_field(1, i32::from(reference["refType"] == "FOLLOWS_FROM"));
        out.i64_field(2, i64_of(&trace[8..]));
        out.i64_field(3, i64_of(&trace[..8]));
        out.i64_field(4, i64_of(&id::<8>(reference, "spanID")));
        out.end();
    }
}

fn tags(out: &mut Writer, id: i16, tags: &[Json]) {
    out.structs_field(id, tags.len());
    for tag in tags {
        let value = &tag[2];
        out.begin();
        out.bytes_field(1, tag[0].as_str().unwrap().as_bytes());
        match tag[1].as_str() {
            Some("string") => {
                out.i32_field(2, 0);
                out.bytes_field(3, value.as_str().unwrap().as_bytes());
            }
            Some("float64") => {
                out.i32_field(2, 1);
                out.double_field(4, value.as_f64().unwrap());
            }
            Some("bool") => {
                out.i32_field(2, 2);
                out.bool_field(5, value.as_bool().unwrap());
            }
            Some("int64") => {
                out.i32_field(2, 3);
                out.i64_field(6, value.as_i64().unwrap());
            }
            Some("binary") => {
                out.i32_field(2, 4);
                out.bytes_field(7, &unhex(value.as_str().unwrap()));
            }
            Some(other) => panic!("{other}"),
            None => out.i32_field(2, tag[1].as_i64().unwrap() as i32),
        }
        out.end();
    }
}

/// A `PostSpansRequest`.
pub(super) fn proto(batch: &Json) -> Vec<u8> {
    let mut out = Vec::new();
    let at = begin_message(1, &mut out);
    for span in list(batch, "spans") {
        let at = begin_message(1, &mut out);
        proto_span(span, &mut out);
        end_message(at, &mut out);
    }
    proto_process(2, &batch["process"], &mut out);
    end_message(at, &mut out);
    out
}

fn varint(number: u32, value: i64, out: &mut Vec<u8>) {
    put_tag(number, 0, out);
    put_varint(value as u64, out);
}

fn time(number: u32, micros: i64, out: &mut Vec<u8>) {
    let at = begin_message(number, out);
    varint(1, micros / 1_000_000, out);
    varint(2, micros % 1_000_000 * 1_000, out);
    end_message(at, out);
}

fn proto_process(field: u32, process: &Json, out: &mut Vec<u8>) {
    let at = begin_message(field, out);
    put_bytes(1, text(process, "serviceName").as_bytes(), out);
    proto_tags(2, list(process, "tags"), out);
    end_message(at, out);
}

fn proto_span(span: &Json, out: &mut Vec<u8>) {
    put_bytes(1, &id::<16>(span, "traceID"), out);
    put_bytes(2, &id::<8>(span, "spanID"), out);
    put_bytes(3, text(span, "operationName").as_bytes(), out);
    let parent = id::<8>(span, "parentSpanID");
    if parent != [0; 8] {
        // This form has no parent beside the references: it is the first of them.
        let at = begin_message(4, out);
        put_bytes(1, &id::<16>(span, "traceID"), out);
        put_bytes(2, &parent, out);
        end_message(at, out);
    }
    for reference in list(span, "references") {
        let at = begin_message(4, out);
        put_bytes(1, &id::<16>(reference, "traceID"), out);
        put_bytes(2, &id::<8>(reference, "spanID"), out);
        varint(3, (reference["refType"] == "FOLLOWS_FROM").into(), out);
        end_message(at, out);
    }
    varint(5, number(span, "flags"), out);
    time(6, number(span, "startTime"), out);
    time(7, number(span, "duration"), out);
    proto_tags(8, list(span, "tags"), out);
    for log in list(span, "logs") {
        let at = begin_message(9, out);
        time(1, number(log, "timestamp"), out);
        proto_tags(2, list(log, "fields"), out);
        end_message(at, out);
    }
    if !span["process"].is_null() {
        proto_process(10, &span["process"], out);
    }
    list(span, "warnings").iter().for_each(|warning| put_bytes(12, warning.as_str().unwrap().as_bytes(), out));
    put_bytes(77, b"later", out);
}

fn proto_tags(field: u32, tags: &[Json], out: &mut Vec<u8>) {
    for tag in tags {
        let value = &tag[2];
        let at = begin_message(field, out);
        put_bytes(1, tag[0].as_str().unwrap().as_bytes(), out);
        match tag[1].as_str() {
            Some("string") => put_bytes(3, value.as_str().unwrap().as_bytes(), out),
            Some("bool") => {
                varint(2, 1, out);
                varint(4, value.as_bool().unwrap().into(), out);
            }
            Some("int64") => {
                varint(2, 2, out);
                varint(5, value.as_i64().unwrap(), out);
            }
            Some("float64") => {
                varint(2, 3, out);
                put_fixed64(6, value.as_f64().unwrap().to_bits(), out);
            }
            Some("binary") => {
                varint(2, 4, out);
                put_bytes(7, &unhex(value.as_str().unwrap()), out);
            }
            Some(other) => panic!("{other}"),
            None => varint(2, tag[1].as_i64().unwrap(), out),
        }
        end_message(at, out);
    }
}
