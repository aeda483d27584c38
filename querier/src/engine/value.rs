//! Values of a running query: what attributes hold, how they compare and calculate.
//!
//! The rules are those of Tempo's engine, with the accidents left out that its storage adds: numbers compare by value, a
//! missing or unfitting operand makes a comparison false and an arithmetic result nil.

use std::cmp::Ordering;
use std::sync::Arc;

use regex::bytes::Regex;
use spanhouse_common::model::Value as Stored;

use super::answer::AnswerValue;
use crate::traceql::ast::{BinaryOp, Kind, Static, Status};
use crate::traceql::format_duration;

/// An owned value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    Nil,
    /// The key is there, but its value is of a form that queries cannot see: maps, bytes, nested, mixed and empty arrays.
    Opaque,
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    Bool(bool),
    /// Nanoseconds.
    Duration(i64),
    /// OTLP's number.
    Status(i32),
    /// OTLP's number.
    Kind(i32),
    /// At least two values of one kind.
    Array(Arc<[Cell]>),
}

/// A value that may lie in a column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Nil,
    Opaque,
    Int(i64),
    Float(f64),
    Str(&'a [u8]),
    Bool(bool),
    Duration(i64),
    Status(i32),
    Kind(i32),
    Array(&'a [Cell]),
}

impl Cell {
    pub(crate) fn value(&self) -> Value<'_> {
        match self {
            Self::Nil => Value::Nil,
            Self::Opaque => Value::Opaque,
            Self::Int(v) => Value::Int(*v),
            Self::Float(v) => Value::Float(*v),
            Self::Str(v) => Value::Str(v.as_bytes()),
            Self::Bool(v) => Value::Bool(*v),
            Self::Duration(v) => Value::Duration(*v),
            Self::Status(v) => Value::Status(*v),
            Self::Kind(v) => Value::Kind(*v),
            Self::Array(v) => Value::Array(v),
        }
    }

    /// What a stored value is to a query.
    pub(crate) fn of_stored(value: &Stored) -> Self {
        match value {
            Stored::Str(text) => Self::Str(Arc::from(text.as_str())),
            Stored::Int(value) => Self::Int(*value),
            Stored::Double(value) => Self::Float(*value),
            Stored::Bool(value) => Self::Bool(*value),
            Stored::Array(values) => {
                let cells: Vec<Self> = values.iter().map(Self::of_element).collect();
                match cells.as_slice() {
                    [] => Self::Opaque,
                    [only] => only.clone(),
                    [first, ..] if *first != Self::Opaque && cells.iter().all(|cell| cell.is_like(first)) => {
                        Self::Array(cells.into())
                    }
                    _ => Self::Opaque,
                }
            }
            _ => Self::Opaque,
        }
    }

    fn of_element(value: &Stored) -> Self {
        if matches!(value, Stored::Array(_)) { Self::Opaque } else { Self::of_stored(value) }
    }

    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    pub(crate) fn of_static(value: &Static) -> Self {
        match value {
            Static::Nil => Self::Nil,
            Static::Int(v) => Self::Int(*v),
            Static::Float(v) => Self::Float(*v),
            Static::Str(v) => Self::Str(Arc::clone(v)),
            Static::Bool(v) => Self::Bool(*v),
            Static::Duration(v) => Self::Duration(*v),
            Static::Status(v) => Self::Status(*v as i32),
            Static::Kind(v) => Self::Kind(*v as i32),
        }
    }
}

impl Value<'_> {
    pub(crate) fn cell(&self) -> Cell {
        match self {
            Self::Nil => Cell::Nil,
            Self::Opaque => Cell::Opaque,
            Self::Int(v) => Cell::Int(*v),
            Self::Float(v) => Cell::Float(*v),
            Self::Str(v) => Cell::Str(text(v)),
            Self::Bool(v) => Cell::Bool(*v),
            Self::Duration(v) => Cell::Duration(*v),
            Self::Status(v) => Cell::Status(*v),
            Self::Kind(v) => Cell::Kind(*v),
            Self::Array(v) => Cell::Array(v.to_vec().into()),
        }
    }

    /// As an answer shows it; `None` if there is nothing to show.
    pub(crate) fn answer(&self) -> Option<AnswerValue> {
        Some(match self {
            Self::Nil | Self::Opaque => return None,
            Self::Int(v) => AnswerValue::Int(*v),
            Self::Float(v) => AnswerValue::Float(*v),
            Self::Str(v) => AnswerValue::Str(text(v)),
            Self::Bool(v) => AnswerValue::Bool(*v),
            Self::Duration(v) => AnswerValue::Str(format_duration(*v).into()),
            Self::Status(v) => AnswerValue::Str(status_word(*v).into()),
            Self::Kind(v) => AnswerValue::Str(kind_word(*v).into()),
            Self::Array(v) => AnswerValue::Array(v.iter().filter_map(|cell| cell.value().answer()).collect()),
        })
    }

    /// Its number for sums and averages; durations in nanoseconds.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(v) | Self::Duration(v) => Some(*v as f64),
            Self::Float(v) => Some(*v),
            _ => None,
        }
    }
}

fn text(bytes: &[u8]) -> Arc<str> {
    Arc::from(String::from_utf8_lossy(bytes))
}

/// The language's word for OTLP's number; numbers it does not know are as if not set.
pub(crate) fn status_word(code: i32) -> &'static str {
    Status::ALL.into_iter().find(|status| *status as i32 == code).unwrap_or(Status::Unset).as_str()
}

/// The language's word for OTLP's number; numbers it does not know are as if not set.
pub(crate) fn kind_word(kind: i32) -> &'static str {
    Kind::ALL.into_iter().find(|known| *known as i32 == kind).unwrap_or(Kind::Unspecified).as_str()
}

/// Whether `left op right` holds. False for whatever does not fit together.
pub(crate) fn compare(op: BinaryOp, left: Value<'_>, right: Value<'_>) -> bool {
    match (left, right) {
        (Value::Array(_), Value::Array(_)) => false,
        // All elements must differ, any may fit.
        (Value::Array(all), right) if op == BinaryOp::NotEqual => all.iter().all(|cell| scalar(op, cell.value(), right)),
        (Value::Array(all), right) => all.iter().any(|cell| scalar(op, cell.value(), right)),
        (left, Value::Array(all)) if op == BinaryOp::NotEqual => all.iter().all(|cell| scalar(op, left, cell.value())),
        (left, Value::Array(all)) => all.iter().any(|cell| scalar(op, left, cell.value())),
        (left, right) => scalar(op, left, right),
    }
}

fn scalar(op: BinaryOp, left: Value<'_>, right: Value<'_>) -> bool {
    use Value::{Bool, Duration, Float, Int, Kind, Status, Str};
    match (left, right) {
        (Int(a), Int(b)) | (Duration(a), Duration(b)) => holds(op, a.cmp(&b)),
        (Int(a), Duration(b)) | (Duration(a), Int(b)) => match op {
            BinaryOp::Equal => a == b,
            BinaryOp::NotEqual => a != b,
            _ => float(op, a as f64, b as f64),
        },
        (Int(a) | Duration(a), Float(b)) => float(op, a as f64, b),
        (Float(a), Int(b) | Duration(b)) => float(op, a, b as f64),
        (Float(a), Float(b)) => float(op, a, b),
        (Str(a), Str(b)) => holds(op, a.cmp(b)),
        (Bool(a), Bool(b)) => equality(op, a == b),
        (Status(a), Status(b)) | (Kind(a), Kind(b)) => equality(op, a == b),
        _ => false,
    }
}

fn float(op: BinaryOp, a: f64, b: f64) -> bool {
    match a.partial_cmp(&b) {
        Some(order) => holds(op, order),
        None => op == BinaryOp::NotEqual,
    }
}

fn equality(op: BinaryOp, equal: bool) -> bool {
    match op {
        BinaryOp::Equal => equal,
        BinaryOp::NotEqual => !equal,
        _ => false,
    }
}

pub(crate) fn holds(op: BinaryOp, order: Ordering) -> bool {
    match op {
        BinaryOp::Equal => order.is_eq(),
        BinaryOp::NotEqual => order.is_ne(),
        BinaryOp::Less => order.is_lt(),
        BinaryOp::LessEqual => order.is_le(),
        BinaryOp::Greater => order.is_gt(),
        BinaryOp::GreaterEqual => order.is_ge(),
        _ => false,
    }
}

/// Whether a text matches, or each does not where `negated`. False for what is no text.
pub(crate) fn matches(value: Value<'_>, regex: &Regex, negated: bool) -> bool {
    let one = |value: Value<'_>| matches!(value, Value::Str(text) if regex.is_match(text) != negated);
    match value {
        Value::Array(all) if negated => all.iter().all(|cell| one(cell.value())),
        Value::Array(all) => all.iter().any(|cell| one(cell.value())),
        value => one(value),
    }
}

/// `left op right` of numbers; false where an operand is missing or no number, nil for a division of integers by zero.
pub(crate) fn calculate(op: BinaryOp, left: Value<'_>, right: Value<'_>) -> Value<'static> {
    if let (Value::Int(a), Value::Int(b)) = (left, right) {
        return match op {
            BinaryOp::Add => Value::Int(a.wrapping_add(b)),
            BinaryOp::Sub => Value::Int(a.wrapping_sub(b)),
            BinaryOp::Mul => Value::Int(a.wrapping_mul(b)),
            BinaryOp::Div if b == 0 => Value::Nil,
            BinaryOp::Div => Value::Int(a.wrapping_div(b)),
            BinaryOp::Mod if b == 0 => Value::Nil,
            BinaryOp::Mod => Value::Int(a.wrapping_rem(b)),
            BinaryOp::Pow => Value::Int((a as f64).powf(b as f64) as i64),
            _ => Value::Nil,
        };
    }
    let (Some(a), Some(b)) = (left.number(), right.number()) else { return Value::Bool(false) };
    Value::Float(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Mod => a % b,
        BinaryOp::Pow => a.powf(b),
        _ => return Value::Bool(false),
    })
}

pub(crate) fn negate(value: Value<'_>) -> Value<'static> {
    match value {
        Value::Int(v) => Value::Int(v.wrapping_neg()),
        Value::Duration(v) => Value::Duration(v.wrapping_neg()),
        Value::Float(v) => Value::Float(-v),
        _ => Value::Nil,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_prints_them() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (3_661_000_000_000, "1h1m1s"),
            (-1_000_001, "-1.000001ms"),
            (86_400_000_000_000, "24h0m0s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(format_duration(nanos), text);
        }
    }
}
