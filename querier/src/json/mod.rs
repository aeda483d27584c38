//! JSON of answers, to the byte as Tempo's jsonpb writes it: clients decode strictly.
//!
//! Owns the rules shared by all answers (escaping, numbers, base64, what is left out); [`trace`] and [`answers`] own their
//! forms. Written straight from the model: no white space, zero members left out, 64-bit integers as strings, ids as base64,
//! members in declaration order.

pub mod answers;
pub(crate) mod trace;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use spanhouse_common::id::{SpanId, TraceId};

pub use trace::{trace_v1, trace_v2};

/// An object being written. Each method but [`Object::member`] leaves out what is zero or empty.
pub(crate) struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Object<'a> {
    pub(crate) fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    /// Starts a member: the caller appends its value.
    pub(crate) fn member(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
        self.out
    }

    pub(crate) fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            push_str(text, self.member(name));
        }
    }

    pub(crate) fn count(&mut self, name: &str, count: u32) {
        if count != 0 {
            push_int(count, self.member(name));
        }
    }

    pub(crate) fn count64(&mut self, name: &str, count: u64) {
        if count != 0 {
            push_quoted_int(count, self.member(name));
        }
    }

    /// An enum is its name; a number without one stays a number.
    pub(crate) fn number_or_name(&mut self, name: &str, number: i32, word: Option<&str>) {
        match word {
            _ if number == 0 => {}
            Some(word) => push_quoted(word, self.member(name)),
            None => push_int(number, self.member(name)),
        }
    }

    pub(crate) fn base64(&mut self, name: &str, bytes: &[u8]) {
        if !bytes.is_empty() {
            push_base64(bytes, self.member(name));
        }
    }

    pub(crate) fn list<T>(&mut self, name: &str, items: &[T], write: impl Fn(&T, &mut String)) {
        if !items.is_empty() {
            self.list_or_empty(name, items, write);
        }
    }

    /// A list that is there even if nothing is in it.
    pub(crate) fn list_or_empty<T>(&mut self, name: &str, items: &[T], write: impl Fn(&T, &mut String)) {
        let out = self.member(name);
        out.push('[');
        for (nth, item) in items.iter().enumerate() {
            if nth > 0 {
                out.push(',');
            }
            write(item, out);
        }
        out.push(']');
    }

    pub(crate) fn close(self) {
        self.out.push('}');
    }
}

pub(crate) fn push_display(value: impl std::fmt::Display, out: &mut String) {
    // A String never fails to grow, short of an abort.
    let _ = write!(out, "{value}");
}

/// A whole number, without the detour of formatting: answers are full of them.
pub(crate) fn push_int(value: impl itoa::Integer, out: &mut String) {
    out.push_str(itoa::Buffer::new().format(value));
}

pub(crate) fn push_quoted_int(value: impl itoa::Integer, out: &mut String) {
    out.push('"');
    push_int(value, out);
    out.push('"');
}

fn push_quoted(value: impl std::fmt::Display, out: &mut String) {
    let _ = write!(out, "\"{value}\"");
}

/// Appends a list.
pub(crate) fn push_list<T>(items: impl IntoIterator<Item = T>, out: &mut String, write: impl Fn(T, &mut String)) {
    out.push('[');
    for (nth, item) in items.into_iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(']');
}

/// Appends the digits of a trace id as Jaeger and Zipkin write it: 16 if the upper half is zero, else 32.
pub(crate) fn push_short_trace_id(id: TraceId, out: &mut String) {
    let number = u128::from_be_bytes(id.0);
    match u64::try_from(number) {
        Ok(low) => push_display(format_args!("{low:016x}"), out),
        Err(_) => push_display(format_args!("{number:032x}"), out),
    }
}

/// Appends a span id as text of 16 digits.
pub(crate) fn push_span_id(id: SpanId, out: &mut String) {
    push_quoted(format_args!("{:016x}", u64::from_be_bytes(id.0)), out);
}

pub(crate) fn push_base64(bytes: &[u8], out: &mut String) {
    out.push('"');
    BASE64.encode_string(bytes, out);
    out.push('"');
}

/// A double as Go prints it; what JSON has no number for is a string.
pub(crate) fn push_f64(value: f64, out: &mut String) {
    let size = value.abs();
    if value.is_nan() {
        out.push_str("\"NaN\"");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" });
    } else if size == 0.0 || (1e-6..1e21).contains(&size) {
        push_display(value, out);
    } else {
        let start = out.len();
        let _ = write!(out, "{value:e}");
        if let Some(at) = out[start..].find('e').filter(|_| size >= 1.0) {
            out.insert(start + at + 1, '+');
        }
    }
}

/// Which characters of a string are escaped besides those that JSON demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// What old JavaScript would stumble on.
    Plain,
    /// Also what HTML would stumble on.
    Html,
}

/// A string as Go escapes it where it is told nothing else.
pub(crate) fn push_str(text: &str, out: &mut String) {
    push_text(text, Escape::Html, out);
}

/// A string as Go escapes it.
pub(crate) fn push_text(text: &str, escape: Escape, out: &mut String) {
    out.reserve(text.len() + 2);
    out.push('"');
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let (escaped, width) = match byte {
            b'"' => ("\\\"", 1),
            b'\\' => ("\\\\", 1),
            b'\n' => ("\\n", 1),
            b'\r' => ("\\r", 1),
            b'\t' => ("\\t", 1),
            0x08 => ("\\b", 1),
            0x0c => ("\\f", 1),
            b'<' if escape == Escape::Html => ("\\u003c", 1),
            b'>' if escape == Escape::Html => ("\\u003e", 1),
            b'&' if escape == Escape::Html => ("\\u0026", 1),
            0..0x20 => ("", 1),
            0xe2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => ("\\u2028", 3),
            0xe2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => ("\\u2029", 3),
            _ => continue,
        };
        out.push_str(&text[copied..at]);
        out.push_str(escaped);
        if escaped.is_empty() {
            let _ = write!(out, "\\u{byte:04x}");
        }
        copied = at + width;
    }
    out.push_str(&text[copied..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_go_prints_them() {
        let check = |value: f64, text: &str| {
            let mut out = String::new();
            push_f64(value, &mut out);
            assert_eq!(out, text);
        };
        check(1.0, "1");
        check(0.0, "0");
        check(-0.0, "-0");
        check(0.5, "0.5");
        check(0.000001, "0.000001");
        check(1e-7, "1e-7");
        check(-1.5e-9, "-1.5e-9");
        check(1e20, "100000000000000000000");
        check(1e21, "1e+21");
        check(-1.25e300, "-1.25e+300");
        check(f64::NAN, "\"NaN\"");
        check(f64::INFINITY, "\"Infinity\"");
        check(f64::NEG_INFINITY, "\"-Infinity\"");
    }

    #[test]
    fn strings_as_go_escapes_them() {
        let mut out = String::new();
        push_str("a<b>&\"\\\n\r\t\u{8}\u{c}\u{1}\u{7f}é\u{2028}\u{2029}\u{2030}", &mut out);
        assert_eq!(out, "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\r\\t\\b\\f\\u0001\u{7f}é\\u2028\\u2029\u{2030}\"");
    }
}
