//! The few pieces of protobuf that load generation and checking need.
//!
//! Owns key-value attributes and a scan over fields. Knows no OTLP message beyond `KeyValue`.

use spanhouse_common::varint::put_varint;

/// Field tags of `repeated KeyValue attributes` in the messages that carry them.
pub(super) const SPAN_ATTRIBUTE: u8 = 0x4a;
pub(super) const RESOURCE_ATTRIBUTE: u8 = 0x0a;
pub(super) const EVENT_ATTRIBUTE: u8 = 0x1a;

/// A length-delimited field.
pub(super) fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// The value of an attribute in a template.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Int(i64),
    Texts(&'a [&'a str]),
}

pub(super) fn put_attribute(out: &mut Vec<u8>, tag: u8, key: &str, value: Value<'_>) {
    let mut any = Vec::new();
    match value {
        Value::Text(text) => put_bytes(&mut any, 0x0a, text.as_bytes()),
        Value::Int(value) => {
            any.push(0x18);
            put_varint(value as u64, &mut any);
        }
        Value::Texts(texts) => {
            let mut array = Vec::new();
            for text in texts {
                let mut item = Vec::new();
                put_bytes(&mut item, 0x0a, text.as_bytes());
                put_bytes(&mut array, 0x0a, &item);
            }
            put_bytes(&mut any, 0x2a, &array);
        }
    }
    let mut pair = Vec::new();
    put_bytes(&mut pair, 0x0a, key.as_bytes());
    put_bytes(&mut pair, 0x12, &any);
    put_bytes(out, tag, &pair);
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Calls `each` with number and content of every field; none if the bytes are not protobuf.
pub(super) fn scan<'a>(mut bytes: &'a [u8], each: &mut dyn FnMut(u64, Field<'a>) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes)?;
        let field = match tag & 7 {
            0 => Field::Number(take_varint(&mut bytes)?),
            1 => Field::Number(u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?)),
            2 => {
                let len = usize::try_from(take_varint(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, len)?)
            }
            5 => Field::Number(u64::from(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?))),
            _ => return None,
        };
        each(tag >> 3, field)?;
    }
    Some(())
}

/// Calls `each` with the content of every length-delimited field `number`.
pub(super) fn scan_messages<'a>(bytes: &'a [u8], number: u64, each: &mut dyn FnMut(&'a [u8]) -> Option<()>) -> Option<()> {
    scan(bytes, &mut |n, field| match field {
        Field::Bytes(content) if n == number => each(content),
        _ => Some(()),
    })
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(len)?;
    *bytes = tail;
    Some(head)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_read() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(value, &mut out);
            assert_eq!(take_varint(&mut &out[..]), Some(value));
        }
        assert_eq!(scan(&[0x0a, 5, 1], &mut |_, _| Some(())), None);
    }
}
