//! Jaeger's Thrift structs, read into the model.
//!
//! Fields that the IDL requires must be there, which also bounds how much OTLP a byte of input can become.

use super::process::{MAX_PROCESS_TAGS, put_resource};
use super::span::{RefType, Reference, SpanWriter, Tag, TagValue};
use crate::otlp::build::{Groups, nanos};
use crate::pipeline::IngestError;
use crate::thrift::{Field, Input, Kind, ThriftError};

/// Required fields that were seen, a bit each.
#[derive(Clone, Copy, Default)]
struct Seen(u16);

impl Seen {
    fn mark(&mut self, id: i16) {
        self.0 |= 1 << id;
    }

    fn has(self, id: i16) -> bool {
        self.0 & 1 << id != 0
    }

    fn all<'a, I: Input<'a>>(self, ids: u16, input: &mut I, what: &'static str) -> Result<(), ThriftError> {
        if self.0 & ids == ids { Ok(()) } else { input.fail(what) }
    }
}

/// Reads a `Batch` and adds its spans.
pub(crate) fn batch<'a, I: Input<'a>>(input: &mut I, groups: &mut Groups) -> Result<(), IngestError> {
    let mut resource = Vec::new();
    let mut seen = Seen::default();
    let mut before = None;
    input.fields(|input, Field { id, kind }| {
        match (id, kind) {
            (1, Kind::Struct) => process(input, &mut resource)?,
            (2, Kind::List) if seen.has(1) => spans_of(input, &resource, groups)?,
            (2, Kind::List) => {
                // Nobody is known to send the process last; if it comes so, the spans are read twice.
                before = Some(input.clone());
                input.skip(kind)?;
            }
            _ => return Ok(input.skip(kind)?),
        }
        seen.mark(id);
        Ok::<_, IngestError>(())
    })?;
    seen.all(0b110, input, "a batch without its process or its spans")?;
    match before {
        Some(mut spans) => spans_of(&mut spans, &resource, groups),
        None => Ok(()),
    }
}

fn spans_of<'a, I: Input<'a>>(input: &mut I, resource: &[u8], groups: &mut Groups) -> Result<(), IngestError> {
    let mut writer = SpanWriter::new(groups.max(), false);
    for _ in 0..input.list_of(Kind::Struct)? {
        writer.begin();
        span(input, &mut writer)?;
        writer.finish(resource, groups)?;
    }
    Ok(())
}

fn process<'a, I: Input<'a>>(input: &mut I, resource: &mut Vec<u8>) -> Result<(), IngestError> {
    let mut seen = Seen::default();
    let (mut service, mut tags) = (&b""[..], Vec::new());
    input.fields(|input, Field { id, kind }| match (id, kind) {
        (1, Kind::Bytes) => {
            seen.mark(1);
            service = input.bytes()?;
            Ok(())
        }
        (2, Kind::List) => {
            let count = input.list_of(Kind::Struct)?;
            if count > MAX_PROCESS_TAGS {
                return input.fail("more than 65536 tags in a process");
            }
            for _ in 0..count {
                tags.push(tag(input)?);
            }
            Ok(())
        }
        _ => input.skip(kind),
    })?;
    seen.all(1 << 1, input, "a process without a service name")?;
    put_resource(service, &tags, resource);
    Ok(())
}

fn span<'a, I: Input<'a>>(input: &mut I, writer: &mut SpanWriter<'a>) -> Result<(), IngestError> {
    let mut seen = Seen::default();
    input.fields(|input, Field { id, kind }| {
        match (id, kind) {
            (1, Kind::I64) => writer.trace_id[8..].copy_from_slice(&input.i64()?.to_be_bytes()),
            (2, Kind::I64) => writer.trace_id[..8].copy_from_slice(&input.i64()?.to_be_bytes()),
            (3, Kind::I64) => writer.span_id = input.i64()?.to_be_bytes(),
            (4, Kind::I64) => writer.parent = input.i64()?.to_be_bytes(),
            (5, Kind::Bytes) => writer.name(input.bytes()?),
            (6, Kind::List) => {
                for _ in 0..input.list_of(Kind::Struct)? {
                    let reference = reference(input)?;
                    writer.references.push(reference);
                }
                return Ok(());
            }
            (7, Kind::I32) => writer.flags = input.i32()? as u32,
            (8, Kind::I64) => writer.start_nanos = nanos(input.i64()?),
            (9, Kind::I64) => writer.duration_nanos = input.i64()?.saturating_mul(1_000),
            (10, Kind::List) => {
                for _ in 0..input.list_of(Kind::Struct)? {
                    writer.tag(tag(input)?)?;
                }
                return Ok(());
            }
            (11, Kind::List) => {
                for _ in 0..input.list_of(Kind::Struct)? {
                    log(input, writer)?;
                }
                return Ok(());
            }
            _ => return Ok(input.skip(kind)?),
        }
        seen.mark(id);
        Ok::<_, IngestError>(())
    })?;
    const REQUIRED: u16 = 0b11_1011_1110;
    Ok(seen.all(REQUIRED, input, "a span without one of its required fields")?)
}

fn reference<'a, I: Input<'a>>(input: &mut I) -> Result<Reference, ThriftError> {
    let mut reference = Reference { kind: RefType::ChildOf, trace_id: [0; 16], span_id: [0; 8] };
    let mut seen = Seen::default();
    input.fields(|input, Field { id, kind }| {
        match (id, kind) {
            // What is no known type of reference is the weaker one.
            (1, Kind::I32) if input.i32()? != 0 => reference.kind = RefType::FollowsFrom,
            (1, Kind::I32) => {}
            (2, Kind::I64) => reference.trace_id[8..].copy_from_slice(&input.i64()?.to_be_bytes()),
            (3, Kind::I64) => reference.trace_id[..8].copy_from_slice(&input.i64()?.to_be_bytes()),
            (4, Kind::I64) => reference.span_id = input.i64()?.to_be_bytes(),
            _ => return input.skip(kind),
        }
        seen.mark(id);
        Ok(())
    })?;
    seen.all(0b1_1110, input, "a reference without one of its required fields")?;
    Ok(reference)
}

fn log<'a, I: Input<'a>>(input: &mut I, writer: &mut SpanWriter<'a>) -> Result<(), IngestError> {
    let event = writer.begin_event();
    let mut seen = Seen::default();
    input.fields(|input, Field { id, kind }| {
        match (id, kind) {
            (1, Kind::I64) => writer.event_time(nanos(input.i64()?)),
            (2, Kind::List) => {
                for _ in 0..input.list_of(Kind::Struct)? {
                    writer.event_field(tag(input)?)?;
                }
            }
            _ => return Ok(input.skip(kind)?),
        }
        seen.mark(id);
        Ok::<_, IngestError>(())
    })?;
    seen.all(0b110, input, "a log without its time or its fields")?;
    writer.end_event(event);
    Ok(())
}

fn tag<'a, I: Input<'a>>(input: &mut I) -> Result<Tag<'a>, ThriftError> {
    let (mut key, mut number) = (&b""[..], 0);
    let (mut text, mut bytes) = (&b""[..], &b""[..]);
    let (mut double, mut bool, mut int) = (0.0, false, 0);
    let mut seen = Seen::default();
    input.fields(|input, Field { id, kind }| {
        match (id, kind) {
            (1, Kind::Bytes) => key = input.bytes()?,
            (2, Kind::I32) => number = input.i32()?,
            (3, Kind::Bytes) => text = input.bytes()?,
            (4, Kind::Double) => double = input.double()?,
            (5, Kind::Bool) => bool = input.bool()?,
            (6, Kind::I64) => int = input.i64()?,
            (7, Kind::Bytes) => bytes = input.bytes()?,
            _ => return input.skip(kind),
        }
        seen.mark(id);
        Ok(())
    })?;
    seen.all(0b110, input, "a tag without its key or its type")?;
    let value = match number {
        0 => TagValue::Text(text),
        1 => TagValue::Double(double),
        2 => TagValue::Bool(bool),
        3 => TagValue::Int(int),
        4 => TagValue::Bytes(bytes),
        _ => TagValue::Unknown(number.into()),
    };
    Ok(Tag { key, value })
}
