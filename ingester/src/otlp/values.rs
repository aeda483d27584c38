//! Attribute values, resources and scopes from OTLP bytes into the model: the parts of a request that are not per-span scalars.
//!
//! Whatever has a form the model does not know (unknown fields, several values at once, string table indexes) is kept as its
//! encoded bytes, after checking that it decodes.

use spanhouse_common::caps::MAX_VALUE_DEPTH;
use spanhouse_common::model::{Attribute, EntityRef, Resource, Scope, Value};

use super::wire::{Malformed, Reader, Tag};

/// Why a value was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ValueError {
    Malformed(Malformed),
    /// Nested beyond [`MAX_VALUE_DEPTH`].
    TooDeep,
}

impl From<Malformed> for ValueError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

/// Decodes an `AnyValue` message. `depth` counts the arrays and maps around it.
pub(crate) fn any_value(bytes: &[u8], depth: usize) -> Result<Value, ValueError> {
    if depth > MAX_VALUE_DEPTH {
        return Err(ValueError::TooDeep);
    }
    let mut reader = Reader::new(bytes);
    let mut value = Value::Empty;
    let mut members = 0;
    while let Some(tag) = reader.tag()? {
        members += 1;
        value = match tag.number {
            1 => Value::Str(reader.text_of(tag)?.to_owned()),
            2 => Value::Bool(reader.varint_of(tag)? != 0),
            3 => Value::Int(reader.varint_of(tag)? as i64),
            4 => Value::Double(f64::from_bits(reader.fixed64_of(tag)?)),
            5 => array(reader.bytes_of(tag)?, depth + 1)?,
            6 => map(reader.bytes_of(tag)?, depth + 1)?,
            7 => Value::Bytes(reader.bytes_of(tag)?.to_vec()),
            8 => {
                reader.varint_of(tag)?;
                odd()
            }
            _ => {
                reader.unknown(tag)?;
                odd()
            }
        };
        if value == odd() {
            members = 2;
        }
    }
    // More than one member merges by protobuf's rules when decoded; its bytes say it best.
    Ok(if members > 1 { Value::Raw(bytes.to_vec()) } else { value })
}

/// Marks, inside this module only, that the message around it must be kept as bytes.
fn odd() -> Value {
    Value::Raw(Vec::new())
}

fn array(bytes: &[u8], depth: usize) -> Result<Value, ValueError> {
    let mut reader = Reader::new(bytes);
    let (mut values, mut is_odd) = (Vec::new(), false);
    while let Some(tag) = reader.tag()? {
        if tag.number == 1 {
            values.push(any_value(reader.bytes_of(tag)?, depth)?);
        } else {
            reader.unknown(tag)?;
            is_odd = true;
        }
    }
    Ok(if is_odd { odd() } else { Value::Array(values) })
}

fn map(bytes: &[u8], depth: usize) -> Result<Value, ValueError> {
    let mut reader = Reader::new(bytes);
    let (mut pairs, mut is_odd) = (Vec::new(), false);
    while let Some(tag) = reader.tag()? {
        if tag.number == 1 {
            let pair = attribute(reader.bytes_of(tag)?, depth)?;
            is_odd |= matches!(pair.value, Value::RawPair(_));
            pairs.push((pair.key, pair.value));
        } else {
            reader.unknown(tag)?;
            is_odd = true;
        }
    }
    Ok(if is_odd { odd() } else { Value::Map(pairs) })
}

/// The two halves of a `KeyValue` message.
pub(crate) struct Pair<'a> {
    pub(crate) key: &'a [u8],
    /// Encoded `AnyValue`. `None` if the pair must be kept as bytes.
    pub(crate) value: Option<&'a [u8]>,
}

/// Splits a `KeyValue` message; the key is not yet checked to be UTF-8, and a kept pair is not yet checked to decode.
#[inline]
pub(crate) fn split_pair(bytes: &[u8]) -> Result<Pair<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut key: &[u8] = &[];
    let mut value = None;
    let mut plain = true;
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => {
                // Given again, the last one counts, but all of them are text.
                text(key)?;
                key = reader.bytes_of(tag)?;
            }
            2 => plain &= value.replace(reader.bytes_of(tag)?).is_none(),
            3 => {
                reader.varint_of(tag)?;
                plain = false;
            }
            _ => {
                reader.unknown(tag)?;
                plain = false;
            }
        }
    }
    Ok(Pair { key, value: value.filter(|_| plain) })
}

/// Checks that a pair kept as bytes decodes, key and every value in it, and returns its key.
pub(crate) fn check_raw_pair(bytes: &[u8], depth: usize) -> Result<&str, ValueError> {
    let mut reader = Reader::new(bytes);
    let mut key = "";
    // Values of the same kind merge when decoded, so the nesting of all of them counts, but no more than the deepest one.
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => key = reader.text_of(tag)?,
            2 => drop(any_value(reader.bytes_of(tag)?, depth)?),
            3 => drop(reader.varint_of(tag)?),
            _ => drop(reader.unknown(tag)?),
        }
    }
    Ok(key)
}

/// Decodes a `KeyValue` message.
pub(crate) fn attribute(bytes: &[u8], depth: usize) -> Result<Attribute, ValueError> {
    let pair = split_pair(bytes)?;
    match pair.value {
        Some(value) => {
            let key = text(pair.key)?.to_owned();
            Ok(Attribute { key, value: any_value(value, depth)? })
        }
        None => {
            let key = check_raw_pair(bytes, depth)?.to_owned();
            Ok(Attribute { key, value: Value::RawPair(bytes.to_vec()) })
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed { at: 0, what: "text is not UTF-8" })
}

/// Decodes a `Resource` message.
pub(crate) fn resource(bytes: &[u8]) -> Result<Resource, ValueError> {
    let mut reader = Reader::new(bytes);
    let mut out = Resource::default();
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => out.attributes.push(attribute(reader.bytes_of(tag)?, 0)?),
            2 => out.dropped_attributes_count = reader.varint_of(tag)? as u32,
            3 => out.entity_refs.push(entity_ref(reader.bytes_of(tag)?)?),
            _ => keep(&mut reader, tag, &mut out.unknown)?,
        }
    }
    Ok(out)
}

fn entity_ref(bytes: &[u8]) -> Result<EntityRef, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut out = EntityRef::default();
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => out.schema_url = reader.text_of(tag)?.to_owned(),
            2 => out.r#type = reader.text_of(tag)?.to_owned(),
            3 => out.id_keys.push(reader.text_of(tag)?.to_owned()),
            4 => out.description_keys.push(reader.text_of(tag)?.to_owned()),
            _ => keep(&mut reader, tag, &mut out.unknown)?,
        }
    }
    Ok(out)
}

/// Decodes an `InstrumentationScope` message.
pub(crate) fn scope(bytes: &[u8]) -> Result<Scope, ValueError> {
    let mut reader = Reader::new(bytes);
    let mut out = Scope::default();
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => out.name = reader.text_of(tag)?.to_owned(),
            2 => out.version = reader.text_of(tag)?.to_owned(),
            3 => out.attributes.push(attribute(reader.bytes_of(tag)?, 0)?),
            4 => out.dropped_attributes_count = reader.varint_of(tag)? as u32,
            _ => keep(&mut reader, tag, &mut out.unknown)?,
        }
    }
    Ok(out)
}

pub(crate) fn keep(reader: &mut Reader<'_>, tag: Tag, unknown: &mut Vec<u8>) -> Result<(), Malformed> {
    unknown.extend_from_slice(reader.unknown(tag)?);
    Ok(())
}
