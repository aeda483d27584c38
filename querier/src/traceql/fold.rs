//! What operators make of values: one definition for expressions without attributes, folded while parsing, and for whoever
//! evaluates the rest.
//!
//! `None` means that the operator has no result for these values: types that do not fit, division by zero. Whether that is an
//! error or `false` is the caller's business. Regexes are not here: they are compiled once, not per value.

use std::cmp::Ordering;

use super::ast::{BinaryOp, Static, UnaryOp};

/// The result of `left op right`.
pub fn apply(op: BinaryOp, left: &Static, right: &Static) -> Option<Static> {
    match op {
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Pow => {
            arithmetic(op, left, right)
        }
        BinaryOp::And | BinaryOp::Or => match (left, right) {
            (Static::Bool(left), Static::Bool(right)) => {
                Some(Static::Bool(if op == BinaryOp::And { *left && *right } else { *left || *right }))
            }
            _ => None,
        },
        BinaryOp::Match | BinaryOp::NotMatch => None,
        _ => compare(op, left, right).map(Static::Bool),
    }
}

/// The result of `op inner`.
pub fn apply_unary(op: UnaryOp, inner: &Static) -> Option<Static> {
    match (op, inner) {
        (UnaryOp::Not, Static::Bool(value)) => Some(Static::Bool(!value)),
        (UnaryOp::Negate, Static::Int(value)) => Some(Static::Int(value.wrapping_neg())),
        (UnaryOp::Negate, Static::Float(value)) => Some(Static::Float(-value)),
        (UnaryOp::Negate, Static::Duration(value)) => Some(Static::Duration(value.wrapping_neg())),
        _ => None,
    }
}

fn arithmetic(op: BinaryOp, left: &Static, right: &Static) -> Option<Static> {
    if let (Static::Int(left), Static::Int(right)) = (left, right) {
        return integers(op, *left, *right).map(Static::Int);
    }
    let (left, right) = (number(left)?, number(right)?);
    Some(Static::Float(match op {
        BinaryOp::Add => left + right,
        BinaryOp::Sub => left - right,
        BinaryOp::Mul => left * right,
        BinaryOp::Div => left / right,
        BinaryOp::Mod => left % right,
        BinaryOp::Pow => left.powf(right),
        _ => return None,
    }))
}

fn integers(op: BinaryOp, left: i64, right: i64) -> Option<i64> {
    Some(match op {
        BinaryOp::Add => left.wrapping_add(right),
        BinaryOp::Sub => left.wrapping_sub(right),
        BinaryOp::Mul => left.wrapping_mul(right),
        BinaryOp::Div if right != 0 => left.wrapping_div(right),
        BinaryOp::Mod if right != 0 => left.wrapping_rem(right),
        BinaryOp::Pow => (left as f64).powf(right as f64) as i64,
        _ => return None,
    })
}

fn compare(op: BinaryOp, left: &Static, right: &Static) -> Option<bool> {
    let equality = matches!(op, BinaryOp::Equal | BinaryOp::NotEqual);
    let order = match (left, right) {
        (Static::Str(left), Static::Str(right)) => Some(left.as_bytes().cmp(right.as_bytes())),
        (Static::Int(left), Static::Int(right)) | (Static::Duration(left), Static::Duration(right)) => Some(left.cmp(right)),
        // Exact: whole numbers need no floating point to be compared.
        (Static::Int(left), Static::Duration(right)) | (Static::Duration(left), Static::Int(right)) => Some(left.cmp(right)),
        (Static::Bool(left), Static::Bool(right)) if equality => Some(left.cmp(right)),
        (Static::Status(left), Static::Status(right)) if equality => Some((*left as u8).cmp(&(*right as u8))),
        (Static::Kind(left), Static::Kind(right)) if equality => Some((*left as u8).cmp(&(*right as u8))),
        // NaN: without order, and unequal to all.
        _ => number(left)?.partial_cmp(&number(right)?),
    };
    Some(match op {
        BinaryOp::Equal => order == Some(Ordering::Equal),
        BinaryOp::NotEqual => order != Some(Ordering::Equal),
        BinaryOp::Less => order == Some(Ordering::Less),
        BinaryOp::LessEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        BinaryOp::Greater => order == Some(Ordering::Greater),
        BinaryOp::GreaterEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        _ => return None,
    })
}

/// Durations count in nanoseconds.
fn number(value: &Static) -> Option<f64> {
    match value {
        Static::Int(value) | Static::Duration(value) => Some(*value as f64),
        Static::Float(value) => Some(*value),
        _ => None,
    }
}
