//! One scalar of OTLP/JSON, checked and written in its wire form.
//!
//! Numbers may come as numbers or as decimal strings whatever the type, as protobuf's JSON mapping says.

use std::fmt;

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Error, Unexpected, Visitor};

use super::schema::{Field, Kind};
use crate::otlp::wire::{FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, put_bytes, put_tag, put_varint};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

pub(super) struct Scalar<'a> {
    pub(super) field: &'static Field,
    pub(super) out: &'a mut Vec<u8>,
}

impl Scalar<'_> {
    fn integer<E: Error>(self, value: i128) -> Result<(), E> {
        let Self { field, out } = self;
        let range = || E::custom(format_args!("`{}` is out of range: {value}", field.camel));
        match field.kind {
            Kind::Int64 => {
                let value = i64::try_from(value).map_err(|_| range())?;
                put_tag(field.number, VARINT, out);
                put_varint(value as u64, out);
            }
            Kind::Uint32 => {
                let value = u32::try_from(value).map_err(|_| range())?;
                put_tag(field.number, VARINT, out);
                put_varint(u64::from(value), out);
            }
            Kind::Int32 | Kind::Enum(_) => {
                let value = i32::try_from(value).map_err(|_| range())?;
                put_tag(field.number, VARINT, out);
                // Negative 32-bit values are sign-extended on the wire.
                put_varint(i64::from(value) as u64, out);
            }
            Kind::Fixed32 => {
                let value = u32::try_from(value).map_err(|_| range())?;
                put_tag(field.number, FIXED32, out);
                out.extend(value.to_le_bytes());
            }
            Kind::Fixed64 => {
                let value = u64::try_from(value).map_err(|_| range())?;
                put_tag(field.number, FIXED64, out);
                out.extend(value.to_le_bytes());
            }
            Kind::Double => return Scalar { field, out }.double(value as f64),
            _ => return Err(E::custom(format_args!("`{}` is not a number", field.camel))),
        }
        Ok(())
    }

    fn double<E: Error>(self, value: f64) -> Result<(), E> {
        if matches!(self.field.kind, Kind::Double) {
            put_tag(self.field.number, FIXED64, self.out);
            self.out.extend(value.to_le_bytes());
            return Ok(());
        }
        // "1e3" and "5.0" are integers to protobuf's JSON mapping; beyond 2^53 a double no longer says which.
        if value.fract() == 0.0 && value.abs() <= (1_u64 << 53) as f64 {
            return self.integer(value as i128);
        }
        Err(E::invalid_value(Unexpected::Float(value), &self))
    }

    fn bytes(self, value: &[u8]) {
        put_bytes(self.field.number, value, self.out);
    }

    fn hex<E: Error>(self, text: &str) -> Result<(), E> {
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        let bad = || E::custom(format_args!("`{}` is not an even number of hex digits", self.field.camel));
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return Err(bad());
        }
        put_tag(self.field.number, LENGTH_DELIMITED, self.out);
        put_varint(pairs.len() as u64, self.out);
        for [high, low] in pairs {
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return Err(bad()) };
            self.out.push(high << 4 | low);
        }
        Ok(())
    }

    fn number_in_text<E: Error>(self, text: &str) -> Result<(), E> {
        if matches!(self.field.kind, Kind::Double) {
            // Rust reads "inf", "nan" and others that protobuf does not.
            let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
            return match text {
                "NaN" => self.double(f64::NAN),
                "Infinity" => self.double(f64::INFINITY),
                "-Infinity" => self.double(f64::NEG_INFINITY),
                _ => match text.parse() {
                    Ok(value) if plain(text) => self.double(value),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                },
            };
        }
        match text.parse::<i128>() {
            Ok(value) => self.integer(value),
            Err(_) => match text.parse::<f64>() {
                Ok(value) if value.is_finite() => self.double(value),
                _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
            },
        }
    }
}

impl Visitor<'_> for Scalar<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.field.kind {
            Kind::Text => "a string",
            Kind::Hex => "a string of hex digits",
            Kind::Base64 => "a string in base64",
            Kind::Bool => "true or false",
            Kind::Double => "a number",
            Kind::Enum(_) => "a number or a name of the enum",
            Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Fixed32 | Kind::Fixed64 => "an integer",
            Kind::Message(_) => "an object",
        };
        write!(f, "{what} in `{}`", self.field.camel)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        if !matches!(self.field.kind, Kind::Bool) {
            return Err(E::invalid_type(Unexpected::Bool(value), &self));
        }
        put_tag(self.field.number, VARINT, self.out);
        self.out.push(u8::from(value));
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.double(value)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match self.field.kind {
            Kind::Text => self.bytes(text.as_bytes()),
            Kind::Hex => return self.hex(text),
            Kind::Base64 => {
                let engine = if text.contains(['-', '_']) { &BASE64_URL } else { &BASE64 };
                match engine.decode(text) {
                    Ok(bytes) => self.bytes(&bytes),
                    Err(error) => return Err(E::custom(format_args!("`{}` is not base64: {error}", self.field.camel))),
                }
            }
            Kind::Enum(names) => {
                return match names.iter().find(|(name, _)| *name == text) {
                    Some((_, value)) => self.integer((*value).into()),
                    None => self.number_in_text(text),
                };
            }
            Kind::Bool | Kind::Message(_) => return Err(E::invalid_type(Unexpected::Str(text), &self)),
            Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Fixed32 | Kind::Fixed64 | Kind::Double => {
                return self.number_in_text(text);
            }
        }
        Ok(())
    }
}
