//! Typed JSON: attribute values, resources and scopes as text that any engine reads and that loses nothing.
//!
//! Owns the text form both ways. Does not own where the text lies (columns, WAL) nor the JSON of any API.
//!
//! One model value has one text (canonical), so equal texts mean equal values and a dictionary joins them:
//!
//! | model          | text                                                                |
//! |----------------|---------------------------------------------------------------------|
//! | `Empty`        | `null`                                                              |
//! | `Bool`, `Str`  | `true`, `"text"`                                                    |
//! | `Int`          | `12`: never a `.` or an exponent                                    |
//! | `Double`       | `1.0`, `-0.0`, `1e300`: always a `.` or an exponent, shortest exact |
//! | not finite     | `{"double":"inf"}`, `{"double":"-inf"}`, `{"double":"nan:<bits>"}`  |
//! | `Array`        | `[..]`                                                              |
//! | `Map`          | `{"kv":[["k",v],..]}`: order and duplicates kept                    |
//! | `Bytes`        | `{"bytes":"<base64>"}`                                              |
//! | `Raw`          | `{"otlp":"<base64>"}`                                               |
//! | `RawPair`      | `{"pair":"<base64>"}`                                               |
//!
//! A resource is `{"attributes":[["k",v],..],"dropped":1,"schema_url":"..","entity_refs":[{"type":"..","id_keys":[..],
//! "description_keys":[..],"schema_url":"..","unknown":"<base64>"}],"unknown":"<base64>","group_unknown":"<base64>",
//! "ordinal":1}`, a scope the same with `name` and `version` first and no entity refs. Members come in this order; empty
//! ones are left out. The writer puts no white space anywhere; the reader accepts it.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::caps::MAX_VALUE_DEPTH;
use crate::model::{Attribute, EntityRef, Resource, Scope, Value};

/// Deepest nesting [`parse_value`] follows. Receivers refuse above [`MAX_VALUE_DEPTH`]; twice that leaves room for a later
/// version that allows more, and still fits every stack.
const MAX_PARSE_DEPTH: usize = MAX_VALUE_DEPTH * 2 + 8;

/// Why text is not typed JSON. It was not written by this module, or it was damaged since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("typed JSON, byte {at}: {what}")]
pub struct TypedJsonError {
    /// Offset in the text.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// Appends the text of `value`.
pub fn write_value(value: &Value, out: &mut String) {
    match value {
        Value::Empty => push_empty(out),
        Value::Str(text) => push_str(text, out),
        Value::Bool(value) => push_bool(*value, out),
        Value::Int(value) => push_i64(*value, out),
        Value::Double(value) => push_f64(*value, out),
        Value::Bytes(bytes) => push_bytes(bytes, out),
        Value::Array(values) => push_list(values, out, write_value),
        Value::Map(pairs) => {
            out.push_str("{\"kv\":");
            push_list(pairs, out, |(key, value), out| push_pair(key, value, out));
            out.push('}');
        }
        Value::Raw(bytes) => push_raw(bytes, out),
        Value::RawPair(bytes) => push_raw_pair(bytes, out),
    }
}

/// Appends `null`, the text of a value without content.
pub fn push_empty(out: &mut String) {
    out.push_str("null");
}

/// Appends a boolean.
pub fn push_bool(value: bool, out: &mut String) {
    out.push_str(if value { "true" } else { "false" });
}

/// Appends a quoted and escaped string.
pub fn push_str(text: &str, out: &mut String) {
    out.reserve(text.len() + 2);
    out.push('"');
    let mut copied = 0;
    for (at, byte) in text.bytes().enumerate() {
        let short = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&text[copied..at]);
        out.push_str(short);
        if short.is_empty() {
            // A String never fails to grow, short of an abort.
            let _ = write!(out, "\\u{byte:04x}");
        }
        copied = at + 1;
    }
    out.push_str(&text[copied..]);
    out.push('"');
}

/// Appends an integer.
pub fn push_i64(value: i64, out: &mut String) {
    let _ = write!(out, "{value}");
}

/// Appends a double so that its 64 bits come back.
pub fn push_f64(value: f64, out: &mut String) {
    if value.is_finite() {
        // Debug is the shortest text that reads back exactly, and always has a '.' or an exponent.
        let _ = write!(out, "{value:?}");
    } else if value.is_nan() {
        let _ = write!(out, "{{\"double\":\"nan:{:016x}\"}}", value.to_bits());
    } else {
        out.push_str(if value > 0.0 { "{\"double\":\"inf\"}" } else { "{\"double\":\"-inf\"}" });
    }
}

/// Appends a bytes value.
pub fn push_bytes(bytes: &[u8], out: &mut String) {
    push_tagged("bytes", bytes, out);
}

/// Appends an encoded `AnyValue` that this version cannot take apart.
pub fn push_raw(any_value: &[u8], out: &mut String) {
    push_tagged("otlp", any_value, out);
}

/// Appends an encoded `KeyValue` that this version cannot take apart.
pub fn push_raw_pair(key_value: &[u8], out: &mut String) {
    push_tagged("pair", key_value, out);
}

/// Appends the canonical text of a resource.
pub fn write_resource(resource: &Resource, out: &mut String) {
    let mut members = Members::open(out);
    if !resource.attributes.is_empty() {
        push_attributes(&resource.attributes, members.next("attributes"));
    }
    members.count("dropped", resource.dropped_attributes_count);
    members.text("schema_url", &resource.schema_url);
    if !resource.entity_refs.is_empty() {
        push_list(&resource.entity_refs, members.next("entity_refs"), write_entity_ref);
    }
    members.base64("unknown", &resource.unknown);
    members.base64("group_unknown", &resource.group_unknown);
    members.count("ordinal", resource.ordinal);
    members.close();
}

/// Appends the canonical text of a scope.
pub fn write_scope(scope: &Scope, out: &mut String) {
    let mut members = Members::open(out);
    members.text("name", &scope.name);
    members.text("version", &scope.version);
    if !scope.attributes.is_empty() {
        push_attributes(&scope.attributes, members.next("attributes"));
    }
    members.count("dropped", scope.dropped_attributes_count);
    members.text("schema_url", &scope.schema_url);
    members.base64("unknown", &scope.unknown);
    members.base64("group_unknown", &scope.group_unknown);
    members.count("ordinal", scope.ordinal);
    members.close();
}

fn write_entity_ref(entity: &EntityRef, out: &mut String) {
    let mut members = Members::open(out);
    members.text("type", &entity.r#type);
    for (name, keys) in [("id_keys", &entity.id_keys), ("description_keys", &entity.description_keys)] {
        if !keys.is_empty() {
            push_list(keys, members.next(name), |key, out| push_str(key, out));
        }
    }
    members.text("schema_url", &entity.schema_url);
    members.base64("unknown", &entity.unknown);
    members.close();
}

/// Appends attributes as `[["k",v],..]`.
pub fn push_attributes(attributes: &[Attribute], out: &mut String) {
    push_list(attributes, out, |a, out| push_pair(&a.key, &a.value, out));
}

fn push_pair(key: &str, value: &Value, out: &mut String) {
    out.push('[');
    push_str(key, out);
    out.push(',');
    write_value(value, out);
    out.push(']');
}

fn push_list<T>(items: &[T], out: &mut String, write: impl Fn(&T, &mut String)) {
    out.push('[');
    for (nth, item) in items.iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(']');
}

fn push_tagged(tag: &str, bytes: &[u8], out: &mut String) {
    out.push_str("{\"");
    out.push_str(tag);
    out.push_str("\":\"");
    BASE64.encode_string(bytes, out);
    out.push_str("\"}");
}

/// The members of an object being written; leaves out what is empty.
struct Members<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Members<'a> {
    fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    /// Starts a member: the caller appends its value.
    fn next(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
        self.out
    }

    fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            push_str(text, self.next(name));
        }
    }

    fn count(&mut self, name: &str, count: u32) {
        if count != 0 {
            push_i64(i64::from(count), self.next(name));
        }
    }

    fn base64(&mut self, name: &str, bytes: &[u8]) {
        if !bytes.is_empty() {
            let out = self.next(name);
            out.push('"');
            BASE64.encode_string(bytes, out);
            out.push('"');
        }
    }

    fn close(self) {
        self.out.push('}');
    }
}

/// Reads one value.
pub fn parse_value(text: &str) -> Result<Value, TypedJsonError> {
    parse_whole(text, |p| p.value(0))
}

/// Reads `[["k",v],..]`.
pub fn parse_attributes(text: &str) -> Result<Vec<Attribute>, TypedJsonError> {
    parse_whole(text, |p| p.attributes())
}

/// Reads a resource.
pub fn parse_resource(text: &str) -> Result<Resource, TypedJsonError> {
    parse_whole(text, |p| {
        let mut resource = Resource::default();
        p.object(|p, name| {
            match name {
                "attributes" => resource.attributes = p.attributes()?,
                "dropped" => resource.dropped_attributes_count = p.count()?,
                "schema_url" => resource.schema_url = p.string()?,
                "entity_refs" => resource.entity_refs = p.list(Parser::entity_ref)?,
                "unknown" => resource.unknown = p.base64()?,
                "group_unknown" => resource.group_unknown = p.base64()?,
                "ordinal" => resource.ordinal = p.count()?,
                _ => return p.fail("not a member of a resource"),
            }
            Ok(())
        })?;
        Ok(resource)
    })
}

/// Reads a scope.
pub fn parse_scope(text: &str) -> Result<Scope, TypedJsonError> {
    parse_whole(text, |p| {
        let mut scope = Scope::default();
        p.object(|p, name| {
            match name {
                "name" => scope.name = p.string()?,
                "version" => scope.version = p.string()?,
                "attributes" => scope.attributes = p.attributes()?,
                "dropped" => scope.dropped_attributes_count = p.count()?,
                "schema_url" => scope.schema_url = p.string()?,
                "unknown" => scope.unknown = p.base64()?,
                "group_unknown" => scope.group_unknown = p.base64()?,
                "ordinal" => scope.ordinal = p.count()?,
                _ => return p.fail("not a member of a scope"),
            }
            Ok(())
        })?;
        Ok(scope)
    })
}

type Parsed<T> = Result<T, TypedJsonError>;

fn parse_whole<T>(text: &str, read: impl FnOnce(&mut Parser<'_>) -> Parsed<T>) -> Parsed<T> {
    let mut parser = Parser { text, at: 0 };
    let value = read(&mut parser)?;
    match parser.peek() {
        None => Ok(value),
        Some(_) => parser.fail("text after the end"),
    }
}

/// A reader made for this one form: integers and doubles must stay apart and 64 bits exact, which general JSON readers bend.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn fail<T>(&self, what: &'static str) -> Parsed<T> {
        Err(TypedJsonError { at: self.at, what })
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|b| matches!(b, b' ' | b'\n' | b'\r' | b'\t')).count();
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let hit = self.peek() == Some(byte);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Parsed<()> {
        if self.eat(byte) { Ok(()) } else { self.fail(what) }
    }

    fn word(&mut self, word: &str, value: Value) -> Parsed<Value> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(value)
        } else {
            self.fail("unknown word")
        }
    }

    fn value(&mut self, depth: usize) -> Parsed<Value> {
        if depth > MAX_PARSE_DEPTH {
            return self.fail("nested too deep");
        }
        match self.peek() {
            Some(b'"') => Ok(Value::Str(self.string()?)),
            Some(b'[') => Ok(Value::Array(self.list(|p| p.value(depth + 1))?)),
            Some(b'{') => self.tagged(depth),
            Some(b'n') => self.word("null", Value::Empty),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.fail("expected a value"),
        }
    }

    fn number(&mut self) -> Parsed<Value> {
        let rest = &self.text[self.at..];
        let end = rest.bytes().take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')).count();
        let digits = &rest[..end];
        let value = if digits.contains(['.', 'e', 'E']) {
            digits.parse().ok().filter(|d: &f64| d.is_finite()).map(Value::Double)
        } else {
            digits.parse().ok().map(Value::Int)
        };
        match value {
            Some(value) => {
                self.at += end;
                Ok(value)
            }
            None => self.fail("bad number"),
        }
    }

    /// `{"<kind>":..}`: what JSON has no form for.
    fn tagged(&mut self, depth: usize) -> Parsed<Value> {
        let mut value = None;
        self.object(|p, name| {
            if value.is_some() {
                return p.fail("a tagged value has one member");
            }
            value = Some(match name {
                "kv" => Value::Map(p.list(|p| p.pair(depth + 1))?),
                "bytes" => Value::Bytes(p.base64()?),
                "otlp" => Value::Raw(p.base64()?),
                "pair" => Value::RawPair(p.base64()?),
                "double" => Value::Double(p.special_double()?),
                _ => return p.fail("unknown kind of value"),
            });
            Ok(())
        })?;
        value.map_or_else(|| self.fail("an object without its kind"), Ok)
    }

    fn special_double(&mut self) -> Parsed<f64> {
        let text = self.string()?;
        let nan = || {
            let bits = text.strip_prefix("nan:").filter(|bits| bits.len() == 16)?;
            Some(f64::from_bits(u64::from_str_radix(bits, 16).ok()?)).filter(|value| value.is_nan())
        };
        match text.as_str() {
            "inf" => Ok(f64::INFINITY),
            "-inf" => Ok(f64::NEG_INFINITY),
            _ => nan().map_or_else(|| self.fail("bad double"), Ok),
        }
    }

    fn pair(&mut self, depth: usize) -> Parsed<(String, Value)> {
        self.expect(b'[', "expected a pair")?;
        let key = self.string()?;
        self.expect(b',', "expected `,` in a pair")?;
        let value = self.value(depth)?;
        self.expect(b']', "expected the end of a pair")?;
        Ok((key, value))
    }

    fn attributes(&mut self) -> Parsed<Vec<Attribute>> {
        self.list(|p| p.pair(0).map(|(key, value)| Attribute { key, value }))
    }

    fn entity_ref(&mut self) -> Parsed<EntityRef> {
        let mut entity = EntityRef::default();
        self.object(|p, name| {
            match name {
                "type" => entity.r#type = p.string()?,
                "id_keys" => entity.id_keys = p.list(Parser::string)?,
                "description_keys" => entity.description_keys = p.list(Parser::string)?,
                "schema_url" => entity.schema_url = p.string()?,
                "unknown" => entity.unknown = p.base64()?,
                _ => return p.fail("not a member of an entity ref"),
            }
            Ok(())
        })?;
        Ok(entity)
    }

    fn count(&mut self) -> Parsed<u32> {
        match self.value(0)? {
            Value::Int(count) => count.try_into().or_else(|_| self.fail("not a count")),
            _ => self.fail("not a count"),
        }
    }

    fn base64(&mut self) -> Parsed<Vec<u8>> {
        let text = self.string()?;
        BASE64.decode(text).or_else(|_| self.fail("bad base64"))
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect(b'[', "expected a list")?;
        let mut items = Vec::new();
        if self.eat(b']') {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(b']') {
                return Ok(items);
            }
            self.expect(b',', "expected `,` or `]`")?;
        }
    }

    fn object(&mut self, mut member: impl FnMut(&mut Self, &str) -> Parsed<()>) -> Parsed<()> {
        self.expect(b'{', "expected an object")?;
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            let name = self.string()?;
            self.expect(b':', "expected `:`")?;
            member(self, &name)?;
            if self.eat(b'}') {
                return Ok(());
            }
            self.expect(b',', "expected `,` or `}`")?;
        }
    }

    fn string(&mut self) -> Parsed<String> {
        self.expect(b'"', "expected a string")?;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(plain) = rest.bytes().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)) else {
                return self.fail("a string without its end");
            };
            text.push_str(&rest[..plain]);
            self.at += plain + 1;
            match rest.as_bytes()[plain] {
                b'"' => return Ok(text),
                b'\\' => text.push(self.escape()?),
                _ => return self.fail("a control character in a string"),
            }
        }
    }

    fn escape(&mut self) -> Parsed<char> {
        let Some(byte) = self.text.as_bytes().get(self.at).copied() else {
            return self.fail("a string without its end");
        };
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => return self.unicode_escape(),
            _ => return self.fail("unknown escape"),
        })
    }

    fn unicode_escape(&mut self) -> Parsed<char> {
        let mut code = self.hex4()?;
        // Characters above 16 bits come as two surrogates. This module never writes them; engines that rewrite JSON may.
        if (0xd800..0xdc00).contains(&code) && self.text[self.at..].starts_with("\\u") {
            self.at += 2;
            let low = self.hex4()?;
            if !(0xdc00..0xe000).contains(&low) {
                return self.fail("half a surrogate pair");
            }
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        char::from_u32(code).map_or_else(|| self.fail("half a surrogate pair"), Ok)
    }

    fn hex4(&mut self) -> Parsed<u32> {
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
            Some(code) => {
                self.at += 4;
                Ok(code)
            }
            None => self.fail("bad unicode escape"),
        }
    }
}

#[cfg(test)]
mod tests;
