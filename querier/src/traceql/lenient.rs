//! Filters somebody is still typing: what can be understood of them, never an error.
//!
//! Completion asks for the values an attribute may take among the spans that fit the rest of the query. Comparisons that are
//! not finished, or make no sense, are left out as if they were true; what is not closed is closed at the end. Of anything
//! but one pair of braces at the start, nothing is understood: better too many values than none.

use super::ast::{BinaryOp, FieldExpr};
use super::check::check_filter;
use super::lexer::{MAX_QUERY_BYTES, Spanned, Token, count_regexes, lex};
use super::parser::{MAX_DEPTH, Parser};
use super::pattern::MAX_REGEXES;

/// Alternatives a filter may have once it is written as `(a && b) || (c && d) || ...`.
const MAX_GROUPS: usize = 100;

/// Parentheses inside each other.
const MAX_NESTING: u32 = 64;

/// More alternatives than any source is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("maximum condition groups reached (limit: {MAX_GROUPS}). Reduce the number of OR conditions in the query")]
pub struct TooManyGroups;

/// What is understood of a filter; `None` lets all spans pass.
pub fn parse_filter_leniently(text: &str) -> Result<Option<FieldExpr>, TooManyGroups> {
    if text.len() > MAX_QUERY_BYTES {
        return Ok(None);
    }
    let tokens = closed(text);
    if count_regexes(&tokens) > MAX_REGEXES {
        return Ok(None);
    }
    let Some(inside) = first_filter(&tokens) else { return Ok(None) };
    let Some(Part { condition: Some(condition), groups, .. }) = parts(inside, 0) else { return Ok(None) };
    if groups > MAX_GROUPS {
        return Err(TooManyGroups);
    }
    Ok(Some(condition))
}

/// The tokens of the text, with a quote at the end if one is open.
fn closed(text: &str) -> Vec<Spanned> {
    let tokens = lex(text);
    let Some(Token::Unclosed(_, quote @ ('"' | '`'))) = tokens.last().map(|last| &last.token) else { return tokens };
    // Editors close braces by themselves: those behind an open quote are not part of the text.
    let text = text.trim_end().trim_end_matches([')', '}']).trim_end();
    lex(&format!("{text}{quote}"))
}

/// What stands between the first braces, if these are all there is of spansets.
fn first_filter(tokens: &[Spanned]) -> Option<&[Spanned]> {
    let inside = tokens.split_first().filter(|(first, _)| is(first, "{"))?.1;
    let end = inside.iter().position(|one| is(one, "}") || is(one, "|") || is(one, "{"));
    let Some(end) = end else { return Some(&inside[..inside.len() - 1]) };
    if is(&inside[end], "{") {
        return None;
    }
    let behind = if is(&inside[end], "}") { &inside[end + 1] } else { &inside[end] };
    let alone = is(behind, "|") || is(behind, "with") || matches!(behind.token, Token::End);
    alone.then_some(&inside[..end])
}

fn is(one: &Spanned, text: &str) -> bool {
    matches!(one.token, Token::Fixed(fixed) if fixed == text)
}

/// What is understood of a part: no condition is one that is true.
struct Part {
    condition: Option<FieldExpr>,
    depth: u32,
    groups: usize,
}

/// Terms joined by `&&` and `||`, from left to right. `None` if the part is beyond bounds.
fn parts(tokens: &[Spanned], nesting: u32) -> Option<Part> {
    let mut result: Option<Part> = None;
    let mut op = BinaryOp::And;
    let mut rest = tokens;
    loop {
        let end = end_of_term(rest);
        let term = term(&rest[..end], nesting)?;
        result = Some(match result {
            None => term,
            Some(before) => join(op, before, term)?,
        });
        let Some(joint) = rest.get(end) else { return result };
        op = if is(joint, "||") { BinaryOp::Or } else { BinaryOp::And };
        rest = &rest[end + 1..];
    }
}

/// Where the next `&&` or `||` outside of parentheses is.
fn end_of_term(tokens: &[Spanned]) -> usize {
    let mut open = 0_usize;
    for (index, one) in tokens.iter().enumerate() {
        if is(one, "(") {
            open += 1;
        } else if is(one, ")") {
            open = open.saturating_sub(1);
        } else if open == 0 && (is(one, "&&") || is(one, "||")) {
            return index;
        }
    }
    tokens.len()
}

fn join(op: BinaryOp, left: Part, right: Part) -> Option<Part> {
    let groups = match op {
        BinaryOp::Or => left.groups.saturating_add(right.groups),
        _ => left.groups.saturating_mul(right.groups),
    };
    let (left_condition, right_condition) = match (left.condition, right.condition) {
        (Some(left), Some(right)) => (left, right),
        // True or anything is true; true and something is something.
        (one, other) => {
            let condition = if op == BinaryOp::Or { None } else { one.or(other) };
            let groups = if condition.is_some() { groups } else { 1 };
            return Some(Part { condition, depth: left.depth.max(right.depth), groups });
        }
    };
    let depth = left.depth.max(right.depth) + 1;
    let condition = Some(FieldExpr::Binary { op, left: Box::new(left_condition), right: Box::new(right_condition) });
    (depth < MAX_DEPTH).then_some(Part { condition, depth, groups })
}

/// A term without `&&` and `||` but in parentheses.
fn term(tokens: &[Spanned], nesting: u32) -> Option<Part> {
    if let Some(inside) = parenthesised(tokens) {
        return if nesting < MAX_NESTING { parts(inside, nesting + 1) } else { None };
    }
    let all = Part { condition: None, depth: 1, groups: 1 };
    let Some(last) = tokens.last() else { return Some(all) };
    let mut tokens = tokens.to_vec();
    tokens.push(Spanned { token: Token::End, at: last.at, start: last.end, end: last.end });
    let mut parser = Parser::new(&tokens);
    let Ok(parsed) = parser.field_expr() else { return Some(all) };
    // An attribute alone waits for its operator.
    let is_condition = !matches!(parsed.0, FieldExpr::Attribute(_)) && !parsed.0.attributes().is_empty();
    let useful = is_condition && parser.end().is_ok() && check_filter(&parsed.0).is_ok();
    Some(if useful { Part { condition: Some(parsed.0), depth: parsed.1, groups: 1 } } else { all })
}

/// What stands between the parentheses that hold all of the tokens; the last one may be missing.
fn parenthesised(tokens: &[Spanned]) -> Option<&[Spanned]> {
    let (first, inside) = tokens.split_first()?;
    if !is(first, "(") {
        return None;
    }
    let mut open = 1_usize;
    for (index, one) in inside.iter().enumerate() {
        if is(one, "(") {
            open += 1;
        } else if is(one, ")") {
            open -= 1;
        }
        if open == 0 {
            return (index + 1 == inside.len()).then_some(&inside[..index]);
        }
    }
    Some(inside)
}
