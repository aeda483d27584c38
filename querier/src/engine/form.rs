//! String forms: how Jaeger compares attributes, whose type it does not ask about. `123` is the number, the text and the double
//! `123.0`.
//!
//! Owns the form of every kind of value and when a condition on it holds. Numbers are not put into text to be compared: what a
//! text can stand for is worked out once.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use spanhouse_common::columns::KindCounts;
use spanhouse_common::model::{Value as Stored, typed_json};

use super::value::{Value, holds};
use crate::traceql::ast::{BinaryOp, Static};

/// A condition on the string form of a value: equality with a text, or an order.
#[derive(Debug)]
pub(crate) struct FormTest {
    op: BinaryOp,
    pub(crate) text: Arc<str>,
    /// The numbers and the truth value whose form is the text, if there are such.
    int: Option<i64>,
    float: Option<f64>,
    bool: Option<bool>,
    /// What an order compares numbers with, also those written as texts.
    number: Option<f64>,
}

/// The string form of a stored value.
pub(crate) fn string_form(value: &Stored) -> String {
    match value {
        Stored::Str(text) => text.clone(),
        Stored::Bool(value) => value.to_string(),
        Stored::Int(value) => value.to_string(),
        Stored::Double(value) => float_form(*value),
        Stored::Bytes(bytes) => BASE64.encode(bytes),
        Stored::Array(_) | Stored::Map(_) => {
            let mut out = String::new();
            push_json(value, &mut out);
            out
        }
        // Nothing is known of what they hold.
        Stored::Empty | Stored::Raw(_) | Stored::RawPair(_) => String::new(),
    }
}

/// Compact JSON with sorted keys. What JSON has no form for is a text.
fn push_json(value: &Stored, out: &mut String) {
    match value {
        Stored::Bool(_) | Stored::Int(_) => out.push_str(&string_form(value)),
        Stored::Double(number) if number.is_finite() => out.push_str(&float_form(*number)),
        Stored::Str(_) | Stored::Bytes(_) | Stored::Double(_) => typed_json::push_str(&string_form(value), out),
        Stored::Empty | Stored::Raw(_) | Stored::RawPair(_) => out.push_str("null"),
        Stored::Array(values) => {
            out.push('[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                push_json(value, out);
            }
            out.push(']');
        }
        Stored::Map(pairs) => {
            let sorted: BTreeMap<&str, &Stored> = pairs.iter().map(|(key, value)| (key.as_str(), value)).collect();
            out.push('{');
            for (at, (key, value)) in sorted.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                typed_json::push_str(key, out);
                out.push(':');
                push_json(value, out);
            }
            out.push('}');
        }
    }
}

/// The shortest text that reads back as the number; with an exponent only below 1e-6 and from 1e21.
pub(crate) fn float_form(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        // `1e21` and `1e-7`, of which only the first has a sign to come.
        let text = format!("{value:e}");
        return match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => format!("{digits}e+{exponent}"),
            _ => text,
        };
    }
    value.to_string()
}

impl FormTest {
    /// `None` for a value that has no string form.
    pub(crate) fn new(op: BinaryOp, value: &Static) -> Option<Self> {
        let text: Arc<str> = match value {
            Static::Str(text) => Arc::clone(text),
            Static::Int(value) => value.to_string().into(),
            Static::Float(value) => float_form(*value).into(),
            Static::Bool(value) => value.to_string().into(),
            Static::Nil | Static::Duration(_) | Static::Status(_) | Static::Kind(_) => return None,
        };
        let int = text.parse::<i64>().ok().filter(|value| value.to_string() == *text);
        let float = match &*text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text => finite(text.as_bytes()).filter(|value| float_form(*value) == *text),
        };
        let bool = match &*text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        let number = finite(text.as_bytes());
        Some(Self { op, text, int, float, bool, number })
    }

    pub(crate) fn is_equality(&self) -> bool {
        self.op == BinaryOp::Equal
    }

    /// Of an equality: the whole number it holds for, if there is one.
    pub(crate) fn int(&self) -> Option<Option<i64>> {
        self.is_equality().then_some(self.int)
    }

    pub(crate) fn holds(&self, value: Value<'_>) -> bool {
        if self.op == BinaryOp::Equal {
            return match value {
                Value::Str(text) => text == self.text.as_bytes(),
                Value::Int(value) => self.int == Some(value),
                Value::Float(value) => self
                    .float
                    .is_some_and(|wanted| wanted.to_bits() == value.to_bits() || (wanted.is_nan() && value.is_nan())),
                Value::Bool(value) => self.bool == Some(value),
                _ => false,
            };
        }
        match (value, self.number) {
            (Value::Int(value), Some(_)) if self.int.is_some_and(|wanted| holds(self.op, value.cmp(&wanted))) => true,
            (Value::Int(_), Some(_)) if self.int.is_some() => false,
            (Value::Int(value), Some(wanted)) => self.orders(value as f64, wanted),
            (Value::Float(value), Some(wanted)) => self.orders(value, wanted),
            (Value::Str(text), Some(wanted)) => finite(text).is_some_and(|value| self.orders(value, wanted)),
            (Value::Str(text), None) => holds(self.op, text.cmp(self.text.as_bytes())),
            _ => false,
        }
    }

    fn orders(&self, value: f64, wanted: f64) -> bool {
        value.partial_cmp(&wanted).is_some_and(|order| holds(self.op, order))
    }

    /// Whether it can hold for one of the values counted, told by their kinds.
    pub(crate) fn fits(&self, counts: KindCounts) -> bool {
        let [texts, ints, floats, bools, others] = counts.map(|count| count > 0);
        if self.op == BinaryOp::Equal {
            return texts
                || others
                || (ints && self.int.is_some())
                || (floats && self.float.is_some())
                || (bools && self.bool.is_some());
        }
        texts || others || ((ints || floats) && self.number.is_some())
    }

    /// As [`FormTest::fits`], for values that are no texts.
    pub(crate) fn fits_beside_texts(&self, [_, ints, floats, bools, others]: KindCounts) -> bool {
        self.fits([0, ints, floats, bools, others])
    }
}

/// A number written out.
fn finite(text: &[u8]) -> Option<f64> {
    let starts_a_number = text.first().is_some_and(|first| first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.'));
    let text = std::str::from_utf8(text).ok().filter(|_| starts_a_number)?;
    text.parse::<f64>().ok().filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_as_the_reference_has_them() {
        let map = Stored::Map(vec![
            ("b".into(), Stored::Array(vec![Stored::Int(1), Stored::Double(0.5), Stored::Bool(true)])),
            ("a".into(), Stored::Str("<x>\"".into())),
        ]);
        let cases = [
            (Stored::Str("x y".into()), "x y"),
            (Stored::Bool(false), "false"),
            (Stored::Int(-42), "-42"),
            (Stored::Double(72.5), "72.5"),
            (Stored::Double(72.0), "72"),
            (Stored::Double(1e-6), "0.000001"),
            (Stored::Double(1e-7), "1e-7"),
            (Stored::Double(1.5e-7), "1.5e-7"),
            (Stored::Double(1e20), "100000000000000000000"),
            (Stored::Double(1e21), "1e+21"),
            (Stored::Double(-1.25e22), "-1.25e+22"),
            (Stored::Double(f64::NAN), "NaN"),
            (Stored::Double(f64::NEG_INFINITY), "-Infinity"),
            (Stored::Bytes(vec![0, 0x30, 0x39, 0x30]), "ADA5MA=="),
            (Stored::Empty, ""),
            (Stored::Array(vec![]), "[]"),
            (map, r#"{"a":"<x>\"","b":[1,0.5,true]}"#),
        ];
        for (value, form) in cases {
            assert_eq!(string_form(&value), form, "{value:?}");
        }
    }

    #[test]
    fn orders_take_numbers_also_from_texts() {
        let test = |op, text: &str| FormTest::new(op, &Static::Str(text.into())).unwrap();
        let at_least = test(BinaryOp::GreaterEqual, "500");
        let hits = [Value::Int(500), Value::Float(500.5), Value::Str(b"503"), Value::Str(b"1e3")];
        assert!(hits.into_iter().all(|value| at_least.holds(value)));
        let misses =
            [Value::Int(499), Value::Float(f64::NAN), Value::Str(b"abc"), Value::Str(b""), Value::Bool(true), Value::Nil];
        assert!(!misses.into_iter().any(|value| at_least.holds(value)));
        // Beyond what doubles tell apart.
        assert!(test(BinaryOp::Greater, "9007199254740992").holds(Value::Int(9_007_199_254_740_993)));
        let text = test(BinaryOp::Less, "b");
        assert!(text.holds(Value::Str(b"a")) && !text.holds(Value::Str(b"b")) && !text.holds(Value::Int(1)));
    }

    fn stored() -> impl Strategy<Value = Stored> {
        prop_oneof![
            any::<i64>().prop_map(Stored::Int),
            (-20i64..20).prop_map(Stored::Int),
            any::<f64>().prop_map(Stored::Double),
            (-20i32..20).prop_map(|n| Stored::Double(f64::from(n) / 2.0)),
            any::<bool>().prop_map(Stored::Bool),
            "[-0-9.e]{0,4}|true|false|NaN".prop_map(Stored::Str),
        ]
    }

    proptest! {
        /// What a text can stand for, worked out beforehand, is what comparing forms finds.
        #[test]
        fn equality_is_that_of_forms(value in stored(), other in stored()) {
            let cell = super::super::value::Cell::of_stored(&value);
            for text in [string_form(&value), string_form(&other)] {
                let test = FormTest::new(BinaryOp::Equal, &Static::Str(text.as_str().into())).unwrap();
                prop_assert_eq!(test.holds(cell.value()), string_form(&value) == text, "{:?} {}", value, text);
            }
        }
    }
}
