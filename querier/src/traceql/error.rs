//! What is wrong with a query, in words a person at a search box can act on.
//!
//! Owns the texts' outer form, which follows Tempo's, and the guesses at what was meant. Does not own HTTP: whoever answers
//! puts its own prefix in front.

use std::fmt;

/// Why a text is no query. Prints as `parse error at line 1, col 9: ...`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ParseError {
    /// From 1; 0 if the error has no place, as in an empty query.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    pub message: String,
}

impl ParseError {
    pub(super) fn new(at: Position, message: impl Into<String>) -> Self {
        Self { line: at.line, column: at.column, message: message.into() }
    }

    /// An error of the query as a whole.
    pub(super) fn nowhere(message: impl Into<String>) -> Self {
        Self { line: 0, column: 0, message: message.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return write!(f, "parse error : {}", self.message);
        }
        write!(f, "parse error at line {}, col {}: {}", self.line, self.column, self.message)
    }
}

/// Why a query that parses means nothing: its types do not fit, or it asks for what does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValidationError(pub String);

/// Either of both: the query is at fault, asking again will not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceQlError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error(transparent)]
    Validation(#[from] ValidationError),
}

/// Where a token starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// Words further from every known word than this are not typing errors.
const MAX_DISTANCE: usize = 2;

/// What somebody who wrote `word` probably meant, out of `known`.
pub(super) fn suggestion(word: &str, known: &[&'static str]) -> Option<String> {
    if let Some(quoted) = word.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return Some(format!("\"{quoted}\""));
    }
    match word.to_ascii_lowercase().as_str() {
        "and" | "&" => return Some("&&".to_owned()),
        "or" => return Some("||".to_owned()),
        "not" => return Some("!".to_owned()),
        "null" | "none" => return Some("nil".to_owned()),
        scope @ ("span" | "resource" | "event" | "link" | "instrumentation") => return Some(format!("{scope}.")),
        "trace" => return Some("trace:".to_owned()),
        _ => {}
    }
    // Half of a short word is not a typing error either.
    let length = word.chars().count();
    if length > 32 {
        return None;
    }
    let allowed = MAX_DISTANCE.min(length / 2);
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

/// Insertions, deletions, replacements and swaps of neighbours that make `b` of `a`; a change of case alone is one.
fn distance(a: &str, b: &str) -> usize {
    if a.eq_ignore_ascii_case(b) {
        return usize::from(a != b);
    }
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
