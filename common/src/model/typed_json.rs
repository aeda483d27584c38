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
//! "ordinal":1}`, a scope the same with `name` and `version` first and no entity refs. Members come in this order; empty ones
//! are left out. The writer puts no white space anywhere; the reader accepts it.

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
    parse_whole(text, Parser::attributes)
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

impl<'a> Parser<'a> {
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
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn text_of(value: &Value) -> String {
        let mut out = String::new();
        write_value(value, &mut out);
        out
    }

    #[test]
    fn the_text_of_each_kind() {
        let check = |value: Value, text: &str| {
            assert_eq!(text_of(&value), text);
            assert_eq!(text_of(&parse_value(text).unwrap()), text);
        };
        check(Value::Empty, "null");
        check(Value::Bool(true), "true");
        check(Value::Int(i64::MIN), "-9223372036854775808");
        check(Value::Int(0), "0");
        check(Value::Double(1.0), "1.0");
        check(Value::Double(-0.0), "-0.0");
        check(Value::Double(1e300), "1e300");
        check(Value::Double(f64::MIN_POSITIVE / 4.0), "5.562684646268003e-309");
        check(Value::Double(f64::NAN), r#"{"double":"nan:7ff8000000000000"}"#);
        check(Value::Double(f64::from_bits(0xfff8_0000_0000_0001)), r#"{"double":"nan:fff8000000000001"}"#);
        check(Value::Double(f64::INFINITY), r#"{"double":"inf"}"#);
        check(Value::Double(f64::NEG_INFINITY), r#"{"double":"-inf"}"#);
        check(Value::Str("a\"\\\n\r\t\u{1}\u{7f}<é\u{2028}😀".into()), "\"a\\\"\\\\\\n\\r\\t\\u0001\u{7f}<é\u{2028}😀\"");
        check(Value::Bytes(vec![0, 255]), r#"{"bytes":"AP8="}"#);
        check(Value::Raw(vec![1]), r#"{"otlp":"AQ=="}"#);
        check(Value::RawPair(vec![]), r#"{"pair":""}"#);
        check(Value::Array(vec![Value::Int(1), Value::Array(vec![])]), "[1,[]]");
        let map = Value::Map(vec![("k".into(), Value::Int(1)), ("k".into(), Value::Map(vec![]))]);
        check(map, r#"{"kv":[["k",1],["k",{"kv":[]}]]}"#);
    }

    #[test]
    fn the_text_of_a_resource_and_a_scope() {
        let attributes = vec![
            Attribute { key: "service.name".into(), value: Value::Str("shop".into()) },
            Attribute { key: "a".into(), value: Value::Int(12) },
        ];
        let resource = Resource {
            attributes,
            dropped_attributes_count: 1,
            entity_refs: vec![EntityRef { r#type: "host".into(), id_keys: vec!["h".into()], ..Default::default() }],
            schema_url: "u".into(),
            unknown: vec![1],
            group_unknown: vec![2],
            ordinal: 3,
        };
        let mut text = String::new();
        write_resource(&resource, &mut text);
        let expected = concat!(
            r#"{"attributes":[["service.name","shop"],["a",12]],"dropped":1,"schema_url":"u","#,
            r#""entity_refs":[{"type":"host","id_keys":["h"]}],"unknown":"AQ==","group_unknown":"Ag==","ordinal":3}"#
        );
        assert_eq!(text, expected);

        let scope = Scope { name: "lib".into(), version: "1".into(), ..Default::default() };
        text.clear();
        write_scope(&scope, &mut text);
        assert_eq!(text, r#"{"name":"lib","version":"1"}"#);
        assert_eq!(parse_scope("{}").unwrap(), Scope::default());
    }

    #[test]
    fn foreign_but_valid_json_is_read() {
        assert_eq!(parse_value(" [ 1 , \"\\ud83d\\ude00\\/\" ] ").unwrap(), {
            Value::Array(vec![Value::Int(1), Value::Str("😀/".into())])
        });
        assert_eq!(parse_resource("{ }").unwrap(), Resource::default());
    }

    #[test]
    fn bad_text_is_refused_with_its_place() {
        let bad = [
            "",
            "nul",
            "tru",
            "[1",
            "[1,]",
            "{}",
            "{\"kv\":[[1,2]]}",
            "{\"kv\":[],\"kv\":[]}",
            "{\"x\":1}",
            "\"",
            "\"\\",
            "\"\\u12",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\n\"",
            "9223372036854775808",
            "1e999",
            "--1",
            "1 2",
            "{\"bytes\":\"?\"}",
            "{\"double\":\"nan:0000000000000000\"}",
            "{\"double\":\"nan:+ff8000000000000\"}",
            "é",
            "\"\\u+123\"",
            "\"\\u00é\"",
        ];
        for text in bad {
            assert!(parse_value(text).is_err(), "{text}");
        }
        assert_eq!(parse_value("[1,x]"), Err(TypedJsonError { at: 3, what: "expected a value" }));
        assert!(parse_resource("{\"dropped\":-1}").is_err());
        assert!(parse_resource("{\"name\":\"a scope's\"}").is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse_value(&nested(MAX_PARSE_DEPTH)).is_ok());
        assert_eq!(parse_value(&nested(100_000)).unwrap_err().what, "nested too deep");
        assert_eq!(parse_value(&"{\"kv\":[[\"\",".repeat(100_000)).unwrap_err().what, "nested too deep");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Empty),
            any::<String>().prop_map(Value::Str),
            "[\\x00-\\x7f]{0,8}".prop_map(Value::Str),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(|bits| Value::Double(f64::from_bits(bits))),
            prop_oneof![Just(0.0), Just(-0.0), Just(f64::NAN), Just(-f64::INFINITY)].prop_map(Value::Double),
            any::<i32>().prop_map(|whole| Value::Double(f64::from(whole))),
            vec(any::<u8>(), 0..9).prop_map(Value::Bytes),
            vec(any::<u8>(), 0..9).prop_map(Value::Raw),
            vec(any::<u8>(), 0..9).prop_map(Value::RawPair),
        ];
        leaf.prop_recursive(5, 24, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::Array),
                vec(("[a-c]{0,2}", inner), 0..4).prop_map(Value::Map),
            ]
        })
    }

    fn any_attributes() -> impl Strategy<Value = Vec<Attribute>> {
        vec((any::<String>(), any_value()).prop_map(|(key, value)| Attribute { key, value }), 0..4)
    }

    fn any_entity_ref() -> impl Strategy<Value = EntityRef> {
        let keys = || vec(any::<String>(), 0..3);
        (any::<String>(), any::<String>(), keys(), keys(), vec(any::<u8>(), 0..4)).prop_map(
            |(schema_url, r#type, id_keys, description_keys, unknown)| EntityRef {
                schema_url,
                r#type,
                id_keys,
                description_keys,
                unknown,
            },
        )
    }

    /// As `==`, but a double equals only itself, bit by bit.
    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Double(a), Value::Double(b)) => a.to_bits() == b.to_bits(),
            (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|((ka, a), (kb, b))| ka == kb && same(a, b))
            }
            _ => a == b,
        }
    }

    fn same_attributes(a: &[Attribute], b: &[Attribute]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.key == b.key && same(&a.value, &b.value))
    }

    proptest! {
        #[test]
        fn any_value_comes_back(value in any_value()) {
            let text = text_of(&value);
            let back = parse_value(&text).unwrap();
            prop_assert!(same(&value, &back), "{value:?} became {back:?} by {text}");
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "not JSON: {text}");
        }

        #[test]
        fn any_resource_and_scope_come_back(
            attributes in any_attributes(),
            entity_refs in vec(any_entity_ref(), 0..3),
            texts in any::<[String; 3]>(),
            counts in any::<[u32; 2]>(),
            unknown in vec(any::<u8>(), 0..5),
            group_unknown in vec(any::<u8>(), 0..5),
        ) {
            let [name, version, schema_url] = texts;
            let [dropped_attributes_count, ordinal] = counts;
            let scope = Scope {
                name, version, attributes, dropped_attributes_count, schema_url, unknown, group_unknown, ordinal,
            };
            let mut text = String::new();
            write_scope(&scope, &mut text);
            let mut back = parse_scope(&text).unwrap();
            prop_assert!(same_attributes(&scope.attributes, &back.attributes));
            back.attributes.clone_from(&scope.attributes);
            let Scope { attributes, schema_url, unknown, group_unknown, .. } = scope.clone();
            // Attributes are equal bit by bit, so what is left may be compared by `==` unless a NaN is in them.
            let mut without = scope;
            without.attributes.clear();
            back.attributes.clear();
            prop_assert_eq!(without, back);

            let resource = Resource {
                attributes, dropped_attributes_count, entity_refs, schema_url, unknown, group_unknown, ordinal,
            };
            text.clear();
            write_resource(&resource, &mut text);
            let mut back = parse_resource(&text).unwrap();
            prop_assert!(same_attributes(&resource.attributes, &back.attributes));
            let mut without = resource;
            without.attributes.clear();
            back.attributes.clear();
            prop_assert_eq!(without, back);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[\\[\\]{}\",:a-f0-9\\\\u.é-]{0,40}") {
            let _ = parse_value(&text);
            let _ = parse_resource(&text);
        }
    }
}
