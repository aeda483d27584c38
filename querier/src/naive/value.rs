//! Values while a query runs: how they compare, compute and print.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use regex::bytes::Regex;
use spanhouse_common::model;

use crate::engine::answer::AnswerValue;
use crate::traceql::ast::{BinaryOp, Kind, Static, Status};
use crate::traceql::compile_regex;

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// There is none.
    Nil,
    /// The key is there, with nothing a query could compare: neither nil nor anything else.
    Opaque,
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    Bool(bool),
    /// Nanoseconds.
    Duration(i64),
    Status(Status),
    Kind(Kind),
    /// Two or more scalars of one type.
    Array(Vec<Value>),
}

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self::Str(Arc::from(text))
    }

    pub(super) fn of_static(value: &Static) -> Self {
        match value {
            Static::Nil => Self::Nil,
            Static::Int(v) => Self::Int(*v),
            Static::Float(v) => Self::Float(*v),
            Static::Str(v) => Self::Str(Arc::clone(v)),
            Static::Bool(v) => Self::Bool(*v),
            Static::Duration(v) => Self::Duration(*v),
            Static::Status(v) => Self::Status(*v),
            Static::Kind(v) => Self::Kind(*v),
        }
    }

    /// What an attribute's value is to a query. An array of one scalar is that scalar.
    pub(super) fn of_attribute(value: &model::Value) -> Self {
        match value {
            model::Value::Str(v) => Self::text(v),
            model::Value::Bool(v) => Self::Bool(*v),
            model::Value::Int(v) => Self::Int(*v),
            model::Value::Double(v) => Self::Float(*v),
            model::Value::Array(elements) => Self::of_array(elements),
            _ => Self::Opaque,
        }
    }

    fn of_array(elements: &[model::Value]) -> Self {
        let is_scalar = |v: &model::Value| {
            matches!(v, model::Value::Str(_) | model::Value::Bool(_) | model::Value::Int(_) | model::Value::Double(_))
        };
        let Some(first) = elements.first() else { return Self::Opaque };
        let same_type = |v: &model::Value| std::mem::discriminant(v) == std::mem::discriminant(first);
        if !elements.iter().all(|v| is_scalar(v) && same_type(v)) {
            return Self::Opaque;
        }
        if elements.len() == 1 {
            Self::of_attribute(first)
        } else {
            Self::Array(elements.iter().map(Self::of_attribute).collect())
        }
    }

    /// Whether there is a value.
    pub(super) fn is_there(&self) -> bool {
        !matches!(self, Self::Nil | Self::Opaque)
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(v) | Self::Duration(v) => Some(*v as f64),
            Self::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// Whether type and value are the same: one group of `by()`.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nil | Self::Opaque, Self::Nil | Self::Opaque) => true,
            (Self::Float(a), Self::Float(b)) => a == b || (a.is_nan() && b.is_nan()),
            (Self::Array(a), Self::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.is_same(b)),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other) && equals(self, other) == Some(true),
        }
    }

    /// As search results and labels show it.
    pub(super) fn answer(&self) -> AnswerValue {
        match self {
            Self::Nil | Self::Opaque => AnswerValue::Str(Arc::from("nil")),
            Self::Int(v) => AnswerValue::Int(*v),
            Self::Float(v) => AnswerValue::Float(*v),
            Self::Str(v) => AnswerValue::Str(Arc::clone(v)),
            Self::Bool(v) => AnswerValue::Bool(*v),
            Self::Duration(v) => AnswerValue::Str(Arc::from(go_duration(*v))),
            Self::Status(v) => AnswerValue::Str(Arc::from(status_word(*v))),
            Self::Kind(v) => AnswerValue::Str(Arc::from(kind_word(*v))),
            Self::Array(v) => AnswerValue::Array(v.iter().map(Self::answer).collect()),
        }
    }
}

fn status_word(status: Status) -> &'static str {
    match status {
        Status::Unset => "unset",
        Status::Ok => "ok",
        Status::Error => "error",
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "unspecified",
        Kind::Internal => "internal",
        Kind::Server => "server",
        Kind::Client => "client",
        Kind::Producer => "producer",
        Kind::Consumer => "consumer",
    }
}

/// The result of a comparison. Missing values and types that do not fit give false, whatever the operator.
pub(super) fn compare(op: BinaryOp, left: &Value, right: &Value) -> bool {
    compare_with(left, right, &|left, right| compare_scalars(op, left, right), needs_all(op))
}

/// Compares ids, written in hexadecimal: in any case, with or without leading zeros.
pub(super) fn compare_ids(op: BinaryOp, left: &Value, right: &Value) -> bool {
    let scalars = |left: &Value, right: &Value| match (op, left, right) {
        (BinaryOp::Equal | BinaryOp::NotEqual, Value::Str(left), Value::Str(right)) => {
            let same = id_digits(left).is_some() && id_digits(left) == id_digits(right);
            same == (op == BinaryOp::Equal)
        }
        _ => compare_scalars(op, left, right),
    };
    compare_with(left, right, &scalars, needs_all(op))
}

fn id_digits(text: &str) -> Option<String> {
    let is_hex = !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    is_hex.then(|| text.trim_start_matches('0').to_ascii_lowercase())
}

/// Of an array all elements must differ, but only one must be equal, greater and so on.
fn needs_all(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::NotEqual | BinaryOp::NotMatch)
}

fn compare_with(left: &Value, right: &Value, scalars: &dyn Fn(&Value, &Value) -> bool, all: bool) -> bool {
    match (left, right) {
        (Value::Array(_), Value::Array(_)) => false,
        (Value::Array(elements), scalar) if all => elements.iter().all(|element| scalars(element, scalar)),
        (Value::Array(elements), scalar) => elements.iter().any(|element| scalars(element, scalar)),
        (scalar, Value::Array(elements)) if all => elements.iter().all(|element| scalars(scalar, element)),
        (scalar, Value::Array(elements)) => elements.iter().any(|element| scalars(scalar, element)),
        _ => scalars(left, right),
    }
}

fn compare_scalars(op: BinaryOp, left: &Value, right: &Value) -> bool {
    match op {
        BinaryOp::Equal => equals(left, right) == Some(true),
        BinaryOp::NotEqual => equals(left, right) == Some(false),
        BinaryOp::Less => order(left, right, |o| o.is_lt()),
        BinaryOp::LessEqual => order(left, right, |o| o.is_le()),
        BinaryOp::Greater => order(left, right, |o| o.is_gt()),
        BinaryOp::GreaterEqual => order(left, right, |o| o.is_ge()),
        BinaryOp::Match => matches(left, right) == Some(true),
        BinaryOp::NotMatch => matches(left, right) == Some(false),
        _ => false,
    }
}

/// `None` where the types do not fit.
fn equals(left: &Value, right: &Value) -> Option<bool> {
    match (left, right) {
        (Value::Int(a) | Value::Duration(a), Value::Int(b) | Value::Duration(b)) => Some(a == b),
        (Value::Str(a), Value::Str(b)) => Some(a == b),
        (Value::Bool(a), Value::Bool(b)) => Some(a == b),
        (Value::Status(a), Value::Status(b)) => Some(a == b),
        (Value::Kind(a), Value::Kind(b)) => Some(a == b),
        _ => Some(left.number()? == right.number()?),
    }
}

fn order(left: &Value, right: &Value, wanted: fn(std::cmp::Ordering) -> bool) -> bool {
    let ordering = match (left, right) {
        (Value::Int(a), Value::Int(b)) | (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Str(a), Value::Str(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        _ => left.number().zip(right.number()).and_then(|(a, b)| a.partial_cmp(&b)),
    };
    ordering.is_some_and(wanted)
}

/// Whether all of the text matches. `None` where the types do not fit.
fn matches(left: &Value, right: &Value) -> Option<bool> {
    thread_local! {
        static COMPILED: RefCell<HashMap<Arc<str>, Option<Regex>>> = RefCell::default();
    }
    let (Value::Str(text), Value::Str(pattern)) = (left, right) else { return None };
    COMPILED.with_borrow_mut(|compiled| {
        let regex = compiled.entry(Arc::clone(pattern)).or_insert_with(|| compile_regex(pattern).ok());
        regex.as_ref().map(|regex| regex.is_match(text.as_bytes()))
    })
}

/// The result of `+ - * / % ^`: false where an operand is missing or no number, nil for a division of integers by zero.
pub(super) fn compute(op: BinaryOp, left: &Value, right: &Value) -> Value {
    if let (Value::Int(a), Value::Int(b)) = (left, right) {
        return match op {
            BinaryOp::Add => Value::Int(a.wrapping_add(*b)),
            BinaryOp::Sub => Value::Int(a.wrapping_sub(*b)),
            BinaryOp::Mul => Value::Int(a.wrapping_mul(*b)),
            BinaryOp::Div | BinaryOp::Mod if *b == 0 => Value::Nil,
            BinaryOp::Div => Value::Int(a.wrapping_div(*b)),
            BinaryOp::Mod => Value::Int(a.wrapping_rem(*b)),
            BinaryOp::Pow => Value::Int((*a as f64).powf(*b as f64) as i64),
            _ => Value::Bool(false),
        };
    }
    let Some((a, b)) = left.number().zip(right.number()) else { return Value::Bool(false) };
    match op {
        BinaryOp::Add => Value::Float(a + b),
        BinaryOp::Sub => Value::Float(a - b),
        BinaryOp::Mul => Value::Float(a * b),
        BinaryOp::Div => Value::Float(a / b),
        BinaryOp::Mod => Value::Float(a % b),
        BinaryOp::Pow => Value::Float(a.powf(b)),
        _ => Value::Bool(false),
    }
}

/// As Go writes durations: `1m0.5s`, `250ms`, `0s`.
pub(super) fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    if n < 1_000_000_000 {
        let (unit, digits, name) = match n {
            0 => return "0s".to_owned(),
            1..1_000 => (1, 0, "ns"),
            1_000..1_000_000 => (1_000, 3, "µs"),
            _ => (1_000_000, 6, "ms"),
        };
        return format!("{sign}{}{}{name}", n / unit, fraction(n % unit, digits));
    }
    let seconds = n / 1_000_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let mut text = sign.to_owned();
    if hours > 0 {
        text += &format!("{hours}h");
    }
    if seconds >= 60 {
        text += &format!("{minutes}m");
    }
    text + &format!("{}{}s", seconds % 60, fraction(n % 1_000_000_000, 9))
}

fn fraction(value: u64, digits: usize) -> String {
    if value == 0 {
        return String::new();
    }
    format!(".{value:0digits$}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (305_000_000_000, "5m5s"),
            (3_600_000_000_000, "1h0m0s"),
            (5_025_678_000_000, "1h23m45.678s"),
            (-1_500_000, "-1.5ms"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(go_duration(nanos), text);
        }
    }

    #[test]
    fn arrays_of_one_are_scalars_and_mixed_ones_nothing() {
        use model::Value as V;
        assert!(matches!(Value::of_attribute(&V::Array(vec![V::Int(1)])), Value::Int(1)));
        assert!(matches!(Value::of_attribute(&V::Array(vec![V::Int(1), V::Int(2)])), Value::Array(_)));
        for opaque in [vec![], vec![V::Int(1), V::Double(1.0)], vec![V::Array(vec![V::Int(1)])], vec![V::Empty]] {
            assert!(matches!(Value::of_attribute(&V::Array(opaque)), Value::Opaque));
        }
    }
}
