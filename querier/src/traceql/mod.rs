//! TraceQL, the language: text to a checked syntax tree and back. Pure code, no data.
//!
//! A query goes through [`lexer`] and [`parser`] to the tree of [`ast`], and is judged by [`check()`]. [`print`] writes a
//! tree as text, [`lenient`] reads what somebody is still typing.
//!
//! Does not own what a query means: of that, only the operators on plain values are here, in [`fold`], because expressions
//! without attributes are worked out while parsing.
//!
//! Queries come from anybody. Their length, nesting, the depth of their tree and the size of their regexes are bounded, and
//! walking any tree this module makes by recursion is safe on a thread's stack of two megabytes.

pub mod ast;
mod check;
mod duration;
mod error;
pub mod fold;
mod lenient;
mod lexer;
mod parser;
mod pattern;
mod print;
#[cfg(test)]
mod tests;
mod tree;

pub use check::check;
pub use duration::format_duration;
pub(crate) use duration::parse as parse_duration;
pub use error::{ParseError, TraceQlError, ValidationError};
pub use lenient::{TooManyGroups, parse_filter_leniently};
pub use lexer::MAX_QUERY_BYTES;
pub use pattern::compile_regex;

use ast::{Attribute, Query};

/// Reads a query. Says nothing of whether its types fit.
pub fn parse(text: &str) -> Result<Query, ParseError> {
    parser::query(text)
}

/// Reads a query and makes sure that it means something.
pub fn parse_and_check(text: &str) -> Result<Query, TraceQlError> {
    let query = parse(text)?;
    check(&query)?;
    Ok(query)
}

/// Reads an attribute alone, as in the path of a request for its values.
pub fn parse_attribute(text: &str) -> Result<Attribute, ParseError> {
    parser::attribute(text)
}
