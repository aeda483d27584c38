//! The text of an attribute value: what tags are compared by, and what lists and maps are shown as.
//!
//! | value      | text                                                                          |
//! |------------|-------------------------------------------------------------------------------|
//! | empty      | nothing                                                                       |
//! | string     | itself                                                                        |
//! | bool, int  | `true`, `12`                                                                  |
//! | double     | shortest exact, `1e-7` and `1e+21` only below 1e-6 and from 1e21; `NaN`, `Infinity`, `-Infinity` |
//! | bytes      | base64, padded                                                                |
//! | list, map  | compact JSON, keys of maps sorted and each once (the last wins), bytes base64, empty `null`    |

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use spanhouse_common::model::{Attribute, Value};

use super::understood;
use crate::json::{Escape, push_base64, push_f64, push_int, push_text};

/// The text of a value. Two values are the same tag exactly if their texts are.
pub fn value_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Empty => Cow::Borrowed(""),
        Value::Str(text) => Cow::Borrowed(text),
        Value::Bool(value) => Cow::Borrowed(if *value { "true" } else { "false" }),
        Value::Int(value) => Cow::Owned(itoa::Buffer::new().format(*value).to_owned()),
        Value::Double(value) => Cow::Owned(double_text(*value)),
        Value::Bytes(bytes) => Cow::Owned(BASE64.encode(bytes)),
        Value::Array(_) | Value::Map(_) => {
            let mut out = String::new();
            push_json(value, &mut out);
            Cow::Owned(out)
        }
        Value::Raw(_) | Value::RawPair(_) => Cow::Owned(value_text(&understood(value)).into_owned()),
    }
}

/// The text of a double.
pub fn double_text(value: f64) -> String {
    if value.is_finite() {
        let mut out = String::new();
        push_f64(value, &mut out);
        return out;
    }
    if value.is_nan() { "NaN".to_owned() } else { if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned() }
}

/// Recursion is bounded by the depth at which values are admitted.
fn push_json(value: &Value, out: &mut String) {
    match value {
        Value::Empty => out.push_str("null"),
        Value::Str(text) => push_text(text, Escape::Plain, out),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => push_int(*value, out),
        Value::Double(value) => push_f64(*value, out),
        Value::Bytes(bytes) => push_base64(bytes, out),
        Value::Array(values) => {
            out.push('[');
            for (nth, value) in values.iter().enumerate() {
                if nth > 0 {
                    out.push(',');
                }
                push_json(value, out);
            }
            out.push(']');
        }
        Value::Map(pairs) => push_map(pairs.iter().map(|(key, value)| (key.as_str(), value)).collect(), out),
        Value::Raw(_) | Value::RawPair(_) => push_json(&understood(value), out),
    }
}

fn push_map(mut pairs: Vec<(&str, &Value)>, out: &mut String) {
    pairs.sort_by_key(|(key, _)| *key);
    out.push('{');
    let mut first = true;
    for (at, (key, value)) in pairs.iter().enumerate() {
        if pairs.get(at + 1).is_some_and(|(next, _)| next == key) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        push_text(key, Escape::Plain, out);
        out.push(':');
        push_json(value, out);
    }
    out.push('}');
}

/// Attributes as a map.
pub(crate) fn attributes_json(attributes: &[Attribute]) -> String {
    let mut out = String::new();
    push_map(attributes.iter().map(|a| (a.key.as_str(), &a.value)).collect(), &mut out);
    out
}
