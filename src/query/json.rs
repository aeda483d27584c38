//! Reading the server's JSON leniently: a field that is missing or of another type is as good as zero.
//!
//! Owns the accidents of protobuf's JSON: 64-bit numbers are strings, zeros and empty lists are left out.

use http::HeaderMap;
use serde_json::Value;

use super::text::{clean, number};

/// Set by the server on an answer that lacks something, where its JSON has no place for that.
const PARTIAL_HEADER: &str = "x-spanhouse-partial";

/// An object, or why not.
pub(crate) fn parse(body: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("its answer is no JSON object".into()),
        Err(error) => Err(format!("its answer is no JSON: {error}")),
    }
}

pub(super) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// A whole number, written as one or as text.
pub(super) fn whole(value: &Value, name: &str) -> u64 {
    match &value[name] {
        Value::String(digits) => digits.parse().unwrap_or_default(),
        other => other.as_u64().unwrap_or_default(),
    }
}

/// A number that may be `NaN` or infinite, which are texts.
pub(super) fn double(value: &Value, name: &str) -> f64 {
    match &value[name] {
        Value::String(word) => word.replace("Infinity", "inf").parse().unwrap_or_default(),
        other => other.as_f64().unwrap_or_default(),
    }
}

/// An attribute's value as one line.
pub(super) fn any_value(value: &Value) -> String {
    let Some((kind, inner)) = value.as_object().and_then(|fields| fields.iter().next()) else { return "nil".into() };
    match (kind.as_str(), inner) {
        ("stringValue", Value::String(text)) => clean(text),
        ("doubleValue", Value::Number(value)) => value.as_f64().map(number).unwrap_or_default(),
        ("arrayValue", array) => {
            let items: Vec<String> = list(array, "values").iter().map(any_value).collect();
            format!("[{}]", items.join(", "))
        }
        (_, Value::String(text)) => clean(text),
        (_, other) => clean(&other.to_string()),
    }
}

/// `key=value` for each attribute.
pub(super) fn attributes(all: &[Value]) -> String {
    let pairs: Vec<String> =
        all.iter().map(|pair| format!("{}={}", clean(text(pair, "key")), any_value(&pair["value"]))).collect();
    pairs.join(" ")
}

/// Why an answer is not whole, if it is not.
pub(crate) fn why_partial(headers: &HeaderMap, body: &Value) -> Option<String> {
    if let Some(why) = headers.get(PARTIAL_HEADER) {
        return Some(String::from_utf8_lossy(why.as_bytes()).into_owned());
    }
    if text(body, "status") == "PARTIAL" {
        let why = text(body, "message");
        return Some(if why.is_empty() { "the server does not say why".into() } else { why.to_owned() });
    }
    let (completed, total) = (whole(&body["metrics"], "completedJobs"), whole(&body["metrics"], "totalJobs"));
    (completed < total).then(|| format!("{completed} of {total} jobs are done"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_values_in_all_their_forms() {
        let all = json!({ "a": "12", "b": 12, "c": "NaN", "d": "-Infinity", "e": 0.5 });
        assert_eq!((whole(&all, "a"), whole(&all, "b"), whole(&all, "none")), (12, 12, 0));
        assert!(double(&all, "c").is_nan());
        assert_eq!((double(&all, "d"), double(&all, "e"), double(&all, "none")), (f64::NEG_INFINITY, 0.5, 0.0));
        for (value, text) in [
            (json!({ "stringValue": "a\nb" }), "a\\nb"),
            (json!({ "intValue": "5" }), "5"),
            (json!({ "boolValue": false }), "false"),
            (json!({ "doubleValue": 0.25 }), "0.25"),
            (json!({ "arrayValue": { "values": [{ "intValue": "1" }, { "intValue": "2" }] } }), "[1, 2]"),
            (json!({}), "nil"),
        ] {
            assert_eq!(any_value(&value), text);
        }
    }
}
