//! OTLP/JSON to protobuf bytes, in one pass and without a tree of values.
//!
//! Owns: the JSON mapping of OTLP (hex ids, numbers in strings, enum names, base64, names in camelCase or snake_case) and the
//! limit on nesting. Does not own: what a valid span is. An id of a wrong length passes as it is, so that the walker refuses
//! that span by its reason and keeps the others.
//!
//! Duplicate keys follow protobuf, since each is written where it stands: the last scalar wins, messages merge, lists append.
//! `null` is an absent field; a `null` element of a list is an empty message, so that positions in arrays hold.
//!
//! Cost: the output is at most about 1.2 times the input. A length prefix is guessed at one byte and moved if it is longer,
//! so a value nested `n` deep is moved up to `n` times; the nesting limit bounds that.

mod scalar;
mod schema;

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use self::scalar::Scalar;
use self::schema::{Field, Kind, Message};
use super::wire::{begin_message, end_message};

/// The text is not OTLP/JSON. The sender must not repeat it.
#[derive(Debug, thiserror::Error)]
#[error("OTLP/JSON: {0}")]
pub struct JsonError(#[from] serde_json::Error);

/// Appends the request in `json` to `out` as an `ExportTraceServiceRequest`. On an error `out` holds a useless part of it.
///
/// More than 127 levels of nesting are an error (serde_json's own limit; unknown fields count as well).
pub fn transcode(json: &[u8], out: &mut Vec<u8>) -> Result<(), JsonError> {
    let mut text = serde_json::Deserializer::from_slice(json);
    MessageSeed { message: &schema::REQUEST, null_is_empty: false, out }.deserialize(&mut text)?;
    Ok(text.end()?)
}

/// Reads an object into `out` as the bytes of `message`, without tag and length.
struct MessageSeed<'a> {
    message: &'static Message,
    null_is_empty: bool,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object ({})", self.message.name)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        if self.null_is_empty { Ok(()) } else { Err(E::invalid_type(serde::de::Unexpected::Unit, &self)) }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(KeySeed(self.message))? {
            match field {
                Some(field) => map.next_value_seed(FieldSeed { field, out: self.out })?,
                None => map.next_value_seed(Skip)?,
            }
        }
        Ok(())
    }
}

/// Reads a key and finds its field.
struct KeySeed(&'static Message);

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(key))
    }
}

/// Reads a value and writes it with its tag; writes nothing for `null`.
struct FieldSeed<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of `{}`", self.field.camel)
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        if self.field.repeated {
            d.deserialize_any(ListVisitor { field: self.field, out: self.out })
        } else {
            ElementSeed { field: self.field, in_list: false, out: self.out }.deserialize(d)
        }
    }
}

struct ListVisitor<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
}

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array in `{}`", self.field.camel)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        // No field of this schema is a packed list of numbers: every element carries its tag.
        while list.next_element_seed(ElementSeed { field: self.field, in_list: true, out: self.out })?.is_some() {}
        Ok(())
    }
}

/// Reads one value and writes it with its tag.
struct ElementSeed<'a> {
    field: &'static Field,
    in_list: bool,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for ElementSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        let Self { field, in_list, out } = self;
        let Kind::Message(message) = field.kind else {
            return d.deserialize_any(Scalar { field, out });
        };
        let at = begin_message(field.number, out);
        MessageSeed { message, null_is_empty: in_list, out }.deserialize(d)?;
        end_message(at, out);
        Ok(())
    }
}

/// Reads any value and drops it. Unlike `IgnoredAny` it goes through serde_json's depth check at every level.
struct Skip;

impl<'de> DeserializeSeed<'de> for Skip {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Skip)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(Skip)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
