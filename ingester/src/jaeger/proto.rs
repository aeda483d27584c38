//! Jaeger's protobuf messages, read into the model.

use super::process::{MAX_PROCESS_TAGS, put_resource};
use super::span::{RefType, Reference, SpanWriter, Tag, TagValue};
use crate::otlp::build::Groups;
use crate::otlp::wire::{Malformed, Reader};
use crate::pipeline::IngestError;

/// The OTLP of encoded `jaeger.api_v2.Span` messages, each with its own process: what storage plugins write. `max` bounds the bytes.
pub fn otlp_of_spans<'a>(spans: impl IntoIterator<Item = &'a [u8]>, max: usize) -> Result<Vec<u8>, IngestError> {
    let mut groups = Groups::new(0, max);
    let mut batch = Batch::new(max);
    for span in spans {
        batch.span(span, b"", &mut groups)?;
    }
    Ok(groups.finish())
}

/// Reads a `PostSpansRequest` and adds its spans.
pub(crate) fn post_spans(body: &[u8], groups: &mut Groups) -> Result<(), IngestError> {
    let mut reader = Reader::new(body);
    let mut batch = Batch::new(groups.max());
    while let Some(tag) = reader.tag()? {
        if tag.number != 1 {
            reader.unknown(tag)?;
            continue;
        }
        let message = reader.bytes_of(tag)?;
        // The process comes after the spans.
        let mut process = &b""[..];
        let mut fields = Reader::new(message);
        while let Some(tag) = fields.tag()? {
            match tag.number {
                2 => process = fields.bytes_of(tag)?,
                _ => drop(fields.unknown(tag)?),
            }
        }
        let mut fields = Reader::new(message);
        while let Some(tag) = fields.tag()? {
            match tag.number {
                1 => batch.span(fields.bytes_of(tag)?, process, groups)?,
                _ => drop(fields.unknown(tag)?),
            }
        }
    }
    Ok(())
}

/// What is used from span to span.
struct Batch<'a> {
    writer: SpanWriter<'a>,
    /// The last process and the resource made of it: mostly that of the next span as well.
    process: &'a [u8],
    resource: Vec<u8>,
    tags: Vec<Tag<'a>>,
}

impl<'a> Batch<'a> {
    fn new(max: usize) -> Self {
        Self { writer: SpanWriter::new(max, true), process: b"", resource: Vec::new(), tags: Vec::new() }
    }

    fn span(&mut self, message: &'a [u8], process: &'a [u8], groups: &mut Groups) -> Result<(), IngestError> {
        self.writer.begin();
        let own = span(message, &mut self.writer)?;
        let process = own.unwrap_or(process);
        if process != self.process {
            self.resource(process)?;
            self.process = process;
        }
        self.writer.finish(&self.resource, groups)
    }

    fn resource(&mut self, process: &'a [u8]) -> Result<(), Malformed> {
        self.tags.clear();
        let mut service = &b""[..];
        let mut reader = Reader::new(process);
        while let Some(tag) = reader.tag()? {
            match tag.number {
                1 => service = reader.bytes_of(tag)?,
                2 if self.tags.len() >= MAX_PROCESS_TAGS => {
                    return Err(Malformed { at: tag.at, what: "more than 65536 tags in a process" });
                }
                2 => self.tags.push(key_value(reader.bytes_of(tag)?)?),
                _ => drop(reader.unknown(tag)?),
            }
        }
        put_resource(service, &self.tags, &mut self.resource);
        Ok(())
    }
}

/// Reads a span; returns its process, if it has its own.
fn span<'a>(message: &'a [u8], writer: &mut SpanWriter<'a>) -> Result<Option<&'a [u8]>, IngestError> {
    let mut process = None;
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => writer.trace_id = trace_id(reader.bytes_of(tag)?)?,
            2 => writer.span_id = span_id(reader.bytes_of(tag)?)?,
            3 => writer.name(reader.bytes_of(tag)?),
            4 => writer.references.push(reference(reader.bytes_of(tag)?)?),
            5 => writer.flags = reader.varint_of(tag)? as u32,
            6 => writer.start_nanos = u64::try_from(time(reader.bytes_of(tag)?)?).unwrap_or_default(),
            7 => writer.duration_nanos = time(reader.bytes_of(tag)?)?,
            8 => writer.tag(key_value(reader.bytes_of(tag)?)?)?,
            9 => log(reader.bytes_of(tag)?, writer)?,
            10 => process = Some(reader.bytes_of(tag)?),
            12 => writer.warning(reader.bytes_of(tag)?)?,
            _ => drop(reader.unknown(tag)?),
        }
    }
    Ok(process)
}

fn trace_id(bytes: &[u8]) -> Result<[u8; 16], Malformed> {
    let mut id = [0; 16];
    match bytes.len() {
        0 => {}
        8 => id[8..].copy_from_slice(bytes),
        16 => id.copy_from_slice(bytes),
        _ => return Err(Malformed { at: 0, what: "a trace id of neither 8 nor 16 bytes" }),
    }
    Ok(id)
}

fn span_id(bytes: &[u8]) -> Result<[u8; 8], Malformed> {
    if bytes.is_empty() {
        return Ok([0; 8]);
    }
    bytes.try_into().map_err(|_| Malformed { at: 0, what: "a span id that is not 8 bytes" })
}

fn reference(message: &[u8]) -> Result<Reference, Malformed> {
    let mut reference = Reference { kind: RefType::ChildOf, trace_id: [0; 16], span_id: [0; 8] };
    let mut seen = 0;
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => reference.trace_id = trace_id(reader.bytes_of(tag)?)?,
            2 => reference.span_id = span_id(reader.bytes_of(tag)?)?,
            3 if reader.varint_of(tag)? != 0 => reference.kind = RefType::FollowsFrom,
            3 => {}
            _ => drop(reader.unknown(tag)?),
        }
        seen |= 1 << tag.number.min(31);
    }
    // Everybody writes both; without them an empty message would become a whole link.
    if seen & 0b110 != 0b110 {
        return Err(Malformed { at: 0, what: "a reference without an id" });
    }
    Ok(reference)
}

/// Nanoseconds of a `Timestamp` or a `Duration`; the nearest there is, if they are more than 64 bits hold.
fn time(message: &[u8]) -> Result<i64, Malformed> {
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => seconds = reader.varint_of(tag)? as i64,
            2 => nanos = i64::from(reader.varint_of(tag)? as i32),
            _ => drop(reader.unknown(tag)?),
        }
    }
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

fn log<'a>(message: &'a [u8], writer: &mut SpanWriter<'a>) -> Result<(), IngestError> {
    let event = writer.begin_event();
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => {
                let nanos = time(reader.bytes_of(tag)?)?;
                writer.event_time(u64::try_from(nanos).unwrap_or_default());
            }
            2 => writer.event_field(key_value(reader.bytes_of(tag)?)?)?,
            _ => drop(reader.unknown(tag)?),
        }
    }
    writer.end_event(event);
    Ok(())
}

fn key_value(message: &[u8]) -> Result<Tag<'_>, Malformed> {
    let (mut key, mut number) = (&b""[..], 0);
    let (mut text, mut bytes) = (&b""[..], &b""[..]);
    let (mut double, mut bool, mut int) = (0.0, false, 0);
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => key = reader.bytes_of(tag)?,
            2 => number = reader.varint_of(tag)? as i32,
            3 => text = reader.bytes_of(tag)?,
            4 => bool = reader.varint_of(tag)? != 0,
            5 => int = reader.varint_of(tag)? as i64,
            6 => double = f64::from_bits(reader.fixed64_of(tag)?),
            7 => bytes = reader.bytes_of(tag)?,
            _ => drop(reader.unknown(tag)?),
        }
    }
    let value = match number {
        0 => TagValue::Text(text),
        1 => TagValue::Bool(bool),
        2 => TagValue::Int(int),
        3 => TagValue::Double(double),
        4 => TagValue::Bytes(bytes),
        _ => TagValue::Unknown(number.into()),
    };
    Ok(Tag { key, value })
}
