//! Zipkin's Thrift structs (`zipkincore`), read into the first model.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::endpoint::{Address, Endpoint};
use super::v1::{SpanWriter, Value};
use crate::otlp::build::{Groups, name};
use crate::pipeline::IngestError;
use crate::thrift::{Binary, Field, Input, Kind, ThriftError};

const TOO_SHORT: &str = "<not enough bytes representing the number>";

/// The OTLP of a bare list of spans in the binary protocol.
pub(super) fn otlp(body: &[u8], max: usize) -> Result<Vec<u8>, IngestError> {
    let mut groups = Groups::new(body.len(), max);
    spans(&mut Binary::new(body), &mut groups)?;
    Ok(groups.finish())
}

/// Reads a list of spans and adds them.
pub(crate) fn spans<'a, I: Input<'a>>(input: &mut I, groups: &mut Groups) -> Result<(), IngestError> {
    let mut writer = SpanWriter::new(groups.max());
    for _ in 0..input.list_of(Kind::Struct)? {
        writer.begin();
        span(input, &mut writer)?;
        writer.finish(None, groups)?;
    }
    Ok(())
}

fn span<'a, I: Input<'a>>(input: &mut I, writer: &mut SpanWriter<'a>) -> Result<(), IngestError> {
    let mut fields = 0;
    input.fields(|input, Field { id, kind }| {
        fields += 1;
        match (id, kind) {
            (1, Kind::I64) => writer.trace_id[8..].copy_from_slice(&input.i64()?.to_be_bytes()),
            (3, Kind::Bytes) => writer.name(&name(input.bytes()?)),
            (4, Kind::I64) => writer.span_id = input.i64()?.to_be_bytes(),
            (5, Kind::I64) => writer.parent = input.i64()?.to_be_bytes(),
            (6, Kind::List) => {
                for _ in 0..input.list_of(Kind::Struct)? {
                    annotation(input, writer)?;
                }
            }
            (8, Kind::List) => {
                for _ in 0..input.list_of(Kind::Struct)? {
                    binary_annotation(input, writer)?;
                }
            }
            (10, Kind::I64) => writer.timestamp = input.i64()?,
            (11, Kind::I64) => writer.duration = input.i64()?,
            (12, Kind::I64) => writer.trace_id[..8].copy_from_slice(&input.i64()?.to_be_bytes()),
            _ => return Ok(input.skip(kind)?),
        }
        Ok::<_, IngestError>(())
    })?;
    // Nothing is required, but a byte must not become a whole span.
    if fields == 0 {
        input.fail("a span without fields")?;
    }
    Ok(())
}

fn annotation<'a, I: Input<'a>>(input: &mut I, writer: &mut SpanWriter<'a>) -> Result<(), IngestError> {
    let (mut micros, mut value, mut host) = (0, &b""[..], None);
    input.fields(|input, Field { id, kind }| {
        match (id, kind) {
            (1, Kind::I64) => micros = input.i64()?,
            (2, Kind::Bytes) => value = input.bytes()?,
            (3, Kind::Struct) => host = Some(endpoint(input)?),
            _ => return input.skip(kind),
        }
        Ok(())
    })?;
    writer.annotation(micros, &name(value), host)
}

fn binary_annotation<'a, I: Input<'a>>(input: &mut I, writer: &mut SpanWriter<'a>) -> Result<(), IngestError> {
    let rest = input.cursor().rest();
    if let Some(len) = writer.repeated(rest)? {
        return Ok(input.cursor().pass(len)?);
    }
    let (mut key, mut bytes, mut number, mut host) = (&b""[..], &b""[..], 0, None);
    let mut fields = 0;
    input.fields(|input, Field { id, kind }| {
        fields += 1;
        match (id, kind) {
            (1, Kind::Bytes) => key = input.bytes()?,
            (2, Kind::Bytes) => bytes = input.bytes()?,
            (3, Kind::I32) => number = input.i32()?,
            (4, Kind::Struct) => host = Some(endpoint(input)?),
            _ => return input.skip(kind),
        }
        Ok(())
    })?;
    if fields == 0 {
        return Ok(());
    }
    let said = &rest[..rest.len() - input.cursor().rest().len()];
    writer.binary_annotation(said, &name(key), value(number, bytes), host)
}

/// The value of a binary annotation of the type with this number; bytes in base64, also those of a type nobody knows.
fn value(number: i32, bytes: &[u8]) -> Value<'_> {
    fn int<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> i64) -> Value<'_> {
        bytes.first_chunk().map_or(Value::Text(TOO_SHORT.into()), |bytes| Value::Int(of(*bytes)))
    }
    match number {
        0 => Value::Bool(bytes == [1]),
        2 => int(bytes, |bytes| i16::from_be_bytes(bytes).into()),
        3 => int(bytes, |bytes| i32::from_be_bytes(bytes).into()),
        4 => int(bytes, i64::from_be_bytes),
        5 => match bytes.first_chunk() {
            Some(bytes) => Value::Double(f64::from_be_bytes(*bytes)),
            None => Value::Text(TOO_SHORT.into()),
        },
        6 => Value::Raw(bytes),
        _ => Value::Text(Cow::Owned(STANDARD.encode(bytes))),
    }
}

fn endpoint<'a, I: Input<'a>>(input: &mut I) -> Result<Endpoint<'a>, ThriftError> {
    let mut endpoint = Endpoint::default();
    input.fields(|input, Field { id, kind }| {
        match (id, kind) {
            (1, Kind::I32) => match input.i32()? {
                0 => {}
                ip => endpoint.ipv4 = Address::V4(Ipv4Addr::from(ip as u32)),
            },
            (2, Kind::I16) => endpoint.port = input.i16()? as u16,
            (3, Kind::Bytes) => endpoint.service = name(input.bytes()?),
            (4, Kind::Bytes) => match <[u8; 16]>::try_from(input.bytes()?) {
                Ok(ip) => endpoint.ipv6 = Address::V6(Ipv6Addr::from(ip)),
                Err(_) => return input.fail("an IPv6 address that is not 16 bytes"),
            },
            _ => return input.skip(kind),
        }
        Ok(())
    })?;
    Ok(endpoint)
}
