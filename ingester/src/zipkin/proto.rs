//! Zipkin's protobuf messages, read into the model.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::endpoint::{Address, Endpoint};
use super::v2::SpanWriter;
use crate::otlp::build::{Groups, Kind, name};
use crate::otlp::wire::{Malformed, Reader};
use crate::pipeline::IngestError;

/// The OTLP of a `ListOfSpans`.
pub(super) fn otlp(body: &[u8], max: usize) -> Result<Vec<u8>, IngestError> {
    let mut groups = Groups::new(body.len(), max);
    let mut writer = SpanWriter::new(max);
    let mut reader = Reader::new(body);
    while let Some(tag) = reader.tag()? {
        if tag.number != 1 {
            reader.unknown(tag)?;
            continue;
        }
        writer.begin();
        span(reader.bytes_of(tag)?, &mut writer)?;
        writer.finish(&mut groups)?;
    }
    Ok(groups.finish())
}

fn span<'a>(message: &'a [u8], writer: &mut SpanWriter<'a>) -> Result<(), IngestError> {
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => writer.trace_id = id(reader.bytes_of(tag)?)?,
            2 => writer.parent = id(reader.bytes_of(tag)?)?,
            3 => writer.span_id = id(reader.bytes_of(tag)?)?,
            4 => {
                writer.kind = match reader.varint_of(tag)? {
                    1 => Some(Kind::Client),
                    2 => Some(Kind::Server),
                    3 => Some(Kind::Producer),
                    4 => Some(Kind::Consumer),
                    _ => None,
                }
            }
            5 => writer.name(&name(reader.bytes_of(tag)?)),
            6 => writer.timestamp = reader.fixed64_of(tag)?,
            7 => writer.duration = reader.varint_of(tag)?,
            8 => writer.local(endpoint(reader.bytes_of(tag)?)?),
            9 => writer.remote(&endpoint(reader.bytes_of(tag)?)?),
            10 => annotation(reader.bytes_of(tag)?, writer)?,
            11 => {
                let (mut key, mut value) = (&b""[..], &b""[..]);
                let mut entry = Reader::new(reader.bytes_of(tag)?);
                while let Some(tag) = entry.tag()? {
                    match tag.number {
                        1 => key = entry.bytes_of(tag)?,
                        2 => value = entry.bytes_of(tag)?,
                        _ => drop(entry.unknown(tag)?),
                    }
                }
                writer.tag(name(key), name(value))?;
            }
            _ => drop(reader.unknown(tag)?),
        }
    }
    Ok(())
}

/// An id of up to `N` bytes, filled up with zeros from the left.
fn id<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Malformed> {
    let mut id = [0; N];
    match N.checked_sub(bytes.len()) {
        Some(at) if bytes.len() == N || bytes.len() == 8 || bytes.is_empty() => id[at..].copy_from_slice(bytes),
        _ => return Err(Malformed { at: 0, what: "an id of a wrong length" }),
    }
    Ok(id)
}

fn annotation(message: &[u8], writer: &mut SpanWriter<'_>) -> Result<(), IngestError> {
    let (mut micros, mut text) = (0, &b""[..]);
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => micros = reader.fixed64_of(tag)?,
            2 => text = reader.bytes_of(tag)?,
            _ => drop(reader.unknown(tag)?),
        }
    }
    writer.annotation(micros, &name(text))
}

fn endpoint(message: &[u8]) -> Result<Endpoint<'_>, Malformed> {
    let mut endpoint = Endpoint::default();
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => endpoint.service = name(reader.bytes_of(tag)?),
            2 | 3 => match reader.bytes_of(tag)? {
                [] => {}
                bytes => match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
                    (Ok(ip), _) => endpoint.ipv4 = Address::V4(Ipv4Addr::from(ip)),
                    (_, Ok(ip)) => endpoint.ipv6 = Address::V6(Ipv6Addr::from(ip)),
                    _ => return Err(Malformed { at: tag.at, what: "an address of neither 4 nor 16 bytes" }),
                },
            },
            4 => {
                let port = reader.varint_of(tag)?;
                endpoint.port = u16::try_from(port).map_err(|_| Malformed { at: tag.at, what: "a port over 65535" })?;
            }
            _ => drop(reader.unknown(tag)?),
        }
    }
    Ok(endpoint)
}
