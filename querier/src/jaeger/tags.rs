//! Tags of a search: which are comparisons, as people type them.
//!
//! The UI's search box takes `key=value` pairs and splits at blanks and `=`. `http.status_code>=500` comes as the key
//! `http.status_code>` with the value `500`, `duration>1s` as a key alone, whose value is then `true`; with blanks around
//! it, a comparison comes in three keys, perhaps in another order. Owns putting these together again. Pure.

use crate::traceql::ast::BinaryOp;
use crate::traceql::parse_duration;

/// One condition of a search.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Condition {
    Equals { key: String, text: String },
    Compares { key: String, op: BinaryOp, text: String },
}

/// A comparison in a key, as far as it is there.
#[derive(Debug, Clone, PartialEq)]
struct Written {
    left: String,
    op: BinaryOp,
    right: String,
}

/// Keys that may be comparisons: whoever has the data says which of them are attributes of that very name.
pub(super) fn suspects(tags: &[(String, String)]) -> Vec<&str> {
    tags.iter().filter(|(key, value)| written(key, value).is_some()).map(|(key, _)| key.as_str()).collect()
}

/// The conditions of some tags. `is_literal` says of a key whether an attribute has this name.
pub(super) fn conditions(tags: &[(String, String)], is_literal: impl Fn(&str) -> bool) -> Vec<Condition> {
    let mut found: Vec<Option<Written>> =
        tags.iter().map(|(key, value)| written(key, value).filter(|_| !is_literal(key))).collect();
    // Keys alone may be operands that came apart.
    let mut is_free: Vec<bool> =
        tags.iter().zip(&found).map(|((_, value), found)| found.is_none() && is_bare(value)).collect();
    let mut is_operand = vec![false; tags.len()];
    for (at, slot) in found.iter_mut().enumerate() {
        let Some(written) = slot else { continue };
        let (no_left, no_right) = (written.left.is_empty(), written.right.is_empty());
        let Some((left, right)) = operands(tags, &is_free, at, no_left, no_right) else {
            *slot = None;
            continue;
        };
        for (operand, text) in [(left, &mut written.left), (right, &mut written.right)] {
            if let Some(operand) = operand {
                (is_free[operand], is_operand[operand]) = (false, true);
                text.clone_from(&tags[operand].0);
            }
        }
    }
    let all = tags.iter().zip(found).zip(is_operand).filter(|(_, is_operand)| !is_operand);
    all.map(|(((key, value), written), _)| match written {
        Some(Written { left, op, right }) => Condition::Compares { key: left, op, text: right },
        None => Condition::Equals { key: key.clone(), text: value.clone() },
    })
    .collect()
}

/// The places of the operands that are missing: beside the operator, or the only ones there are.
fn operands(
    tags: &[(String, String)],
    is_free: &[bool],
    at: usize,
    no_left: bool,
    no_right: bool,
) -> Option<(Option<usize>, Option<usize>)> {
    let free = |place: Option<usize>| place.filter(|place| is_free.get(*place) == Some(&true));
    let (before, after) = (free(at.checked_sub(1)), free(at.checked_add(1)));
    let all: Vec<usize> = (0..tags.len()).filter(|place| is_free[*place]).collect();
    let is_value = |place: usize| tags[place].0.parse::<f64>().is_ok() || parse_duration(&tags[place].0).is_some();
    match (no_left, no_right) {
        (true, true) => match (before, after, all.as_slice()) {
            // A value that stands before came first because it is a number.
            (Some(left), Some(right), _) if !is_value(left) => Some((Some(left), Some(right))),
            (_, _, [one, two]) if is_value(*one) != is_value(*two) => {
                Some(if is_value(*two) { (Some(*one), Some(*two)) } else { (Some(*two), Some(*one)) })
            }
            _ => None,
        },
        (true, false) => before.or(if let [only] = all[..] { Some(only) } else { None }).map(|left| (Some(left), None)),
        (false, true) => after.or(if let [only] = all[..] { Some(only) } else { None }).map(|right| (None, Some(right))),
        (false, false) => Some((None, None)),
    }
}

/// What a key without a value has for one.
fn is_bare(value: &str) -> bool {
    matches!(value, "" | "true")
}

/// The operator in a key: where it is, how long it is, and its text.
fn written_op(key: &str) -> Option<(usize, &str)> {
    let at = key.find(['<', '>', '!'])?;
    let length = if key[at + 1..].starts_with('=') { 2 } else { 1 };
    // `!` is an operator with a `=` only, which a split may have taken.
    if &key[at..at + length] == "!" && at + 1 < key.len() {
        return None;
    }
    Some((at, &key[at..at + length]))
}

fn written(key: &str, value: &str) -> Option<Written> {
    let (at, text) = written_op(key)?;
    let (left, right) = (key[..at].trim(), key[at + text.len()..].trim());
    let or_equal = |text: &str| match text {
        "<" | "<=" => BinaryOp::LessEqual,
        ">" | ">=" => BinaryOp::GreaterEqual,
        _ => BinaryOp::NotEqual,
    };
    let (op, right) = if !right.is_empty() {
        if !is_bare(value) {
            return None;
        }
        let op = match text {
            "<" => BinaryOp::Less,
            ">" => BinaryOp::Greater,
            _ => or_equal(text),
        };
        (op, right)
    } else {
        match (text, value) {
            // The split was at `=`, and nothing followed.
            (_, "null") | ("!", "") => (or_equal(text), ""),
            // Nothing was split: the value is a key of its own.
            ("<", "" | "true") => (BinaryOp::Less, ""),
            (">", "" | "true") => (BinaryOp::Greater, ""),
            ("<=" | ">=" | "!=", "" | "true") => (or_equal(text), ""),
            (_, value) => (or_equal(text), value),
        }
    };
    Some(Written { left: left.to_owned(), op, right: right.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How conditions are written in the table.
    fn text(conditions: &[Condition]) -> String {
        let one = |condition: &Condition| match condition {
            Condition::Equals { key, text } => format!("{key} is {text}"),
            Condition::Compares { key, op, text } => {
                let op = match op {
                    BinaryOp::Less => "<",
                    BinaryOp::LessEqual => "<=",
                    BinaryOp::Greater => ">",
                    BinaryOp::GreaterEqual => ">=",
                    _ => "!=",
                };
                format!("{key} {op} {text}")
            }
        };
        conditions.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn comparisons_are_put_together_again() {
        // What the box has is before the bar: how the UI splits it, and what is meant.
        let table = include_str!("../../cases/jaeger/tags.txt");
        let mut checked = 0;
        for line in table.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let [_, tags, meant] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else { panic!("{line}") };
            let tags: Vec<(String, String)> =
                serde_json::from_str::<Vec<(String, String)>>(tags).unwrap_or_else(|error| panic!("{line}: {error}"));
            let found = conditions(&tags, |key| key.starts_with("literal"));
            assert_eq!(text(&found).trim(), meant, "{line}");
            checked += 1;
        }
        assert!(checked >= 25, "{checked}");
    }
}
