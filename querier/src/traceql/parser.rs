//! Tokens to a syntax tree: the grammar and its precedences.
//!
//! This file owns the stream of tokens, what is said of one that does not fit, the bounds, and the outermost rules; [`expr`]
//! reads what stands between braces, [`pipeline`] what combines them, [`metrics`] functions over time. Does not judge types.
//!
//! Precedence, from weak to strong: `|`; `&&` and `||` alike; comparisons and structural operators; `+ -`, with or without
//! a left side; `!`; `* / %`; `^`, the only one that groups to the right.

mod expr;
mod metrics;
mod pipeline;

use std::sync::Arc;

use super::ast::{Attribute, Hint, Intrinsic, Kind, Query, Static, Status};
use super::error::{ParseError, Position, suggestion};
use super::lexer::{MAX_QUERY_BYTES, Spanned, Token, WORDS, count_regexes, lex};
use super::pattern::MAX_REGEXES;

/// Parentheses, signs and functions inside each other.
const MAX_NESTING: u32 = 64;

/// Longest way from the root of a tree to a leaf: `a || b || c || ...` grows by one with each operator. Walks by recursion
/// rely on it, with two kilobytes of stack for each level.
pub(super) const MAX_DEPTH: u32 = 1000;

/// Levels of precedence.
const LOGICAL: u8 = 2;
const COMPARISON: u8 = 3;
const ADDITIVE: u8 = 4;
const NOT: u8 = 5;
const MULTIPLICATIVE: u8 = 6;
const POWER: u8 = 7;

/// A part of the tree, and the longest way down in it.
#[derive(Debug)]
struct Deep<T> {
    node: T,
    depth: u32,
}

impl<T> Deep<T> {
    fn leaf(node: T) -> Self {
        Self { node, depth: 1 }
    }
}

/// See [`super::parse`].
pub(super) fn query(text: &str) -> Result<Query, ParseError> {
    if text.len() > MAX_QUERY_BYTES {
        return Err(ParseError::nowhere(format!(
            "TraceQL expression exceeds the configured maximum size of {MAX_QUERY_BYTES} bytes, reduce the query expression \
             size or contact your system administrator"
        )));
    }
    let tokens = lex(text);
    if count_regexes(&tokens) > MAX_REGEXES {
        return Err(ParseError::nowhere(format!("too many regular expressions in one query (limit: {MAX_REGEXES})")));
    }
    let mut parser = Parser::new(&tokens);
    let root = parser.root()?;
    let mut hints = Vec::new();
    while parser.eat("with") {
        // Each replaces the one before.
        hints = parser.hints()?;
    }
    parser.end()?;
    Ok(Query { root, hints })
}

/// See [`super::parse_attribute`].
pub(super) fn attribute(text: &str) -> Result<Attribute, ParseError> {
    let tokens = lex(text);
    let mut parser = Parser::new(&tokens);
    let Some(attribute) = parser.eat_attribute()? else { return Err(parser.unexpected(&["an attribute"])) };
    parser.end()?;
    Ok(attribute)
}

pub(super) struct Parser<'t> {
    tokens: &'t [Spanned],
    next: usize,
    nesting: u32,
}

impl<'t> Parser<'t> {
    /// The last token must be one that no rule takes, as [`Token::End`].
    pub(super) fn new(tokens: &'t [Spanned]) -> Self {
        Self { tokens, next: 0, nesting: 0 }
    }

    fn here(&self) -> &'t Spanned {
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> &'t Token {
        &self.here().token
    }

    fn advance(&mut self) {
        self.next += 1;
    }

    fn at(&self, text: &str) -> bool {
        self.at_fixed() == Some(text)
    }

    fn at_fixed(&self) -> Option<&'static str> {
        match self.peek() {
            Token::Fixed(text) => Some(text),
            _ => None,
        }
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.at(text);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, text: &'static str) -> Result<(), ParseError> {
        if self.eat(text) { Ok(()) } else { Err(self.unexpected(&[text])) }
    }

    pub(super) fn end(&self) -> Result<(), ParseError> {
        if *self.peek() == Token::End { Ok(()) } else { Err(self.unexpected(&[])) }
    }

    /// The error of the next token, with what would have fitted in its place, if that is not too much to say.
    fn unexpected(&self, expected: &[&str]) -> ParseError {
        self.unexpected_at(self.next, expected)
    }

    fn unexpected_at(&self, index: usize, expected: &[&str]) -> ParseError {
        let index = index.min(self.tokens.len() - 1);
        let Spanned { token, at, end, .. } = &self.tokens[index];
        let what = match token {
            Token::Bad(error) | Token::Unclosed(error, _) => return error.clone(),
            Token::Unknown(word) => return self.unknown(word, *at, self.tokens.get(index + 1), *end),
            Token::End if self.tokens.len() == 1 && at.column == 1 && at.line == 1 => {
                return ParseError::nowhere("syntax error: unexpected $end");
            }
            Token::End => "$end",
            Token::Fixed(text) => text,
            Token::Attribute(attribute) => attribute.prefix(),
            Token::Str(_) => "STRING",
            Token::Int(_) => "INTEGER",
            Token::Float(_) => "FLOAT",
            Token::Duration(_) => "DURATION",
        };
        let mut message = format!("syntax error: unexpected {what}");
        for (index, text) in expected.iter().enumerate() {
            message.push_str(if index == 0 { ", expecting " } else { " or " });
            message.push_str(text);
        }
        ParseError::new(*at, message)
    }

    fn unknown(&self, word: &str, at: Position, next: Option<&Spanned>, end: usize) -> ParseError {
        let shown: String = word.chars().take(64).collect();
        let mut message = format!("unknown identifier: {shown}");
        match next {
            // `service.name`: an attribute whose scope was forgotten.
            Some(Spanned { token: Token::Attribute(attribute), start, .. })
                if *start == end && attribute.prefix() == "." =>
            {
                message.push_str(&format!("; attributes start with a scope or a dot: .{shown}{attribute}"));
            }
            _ => {
                if let Some(meant) = suggestion(word, &WORDS) {
                    message.push_str(&format!("; did you mean {meant}?"));
                }
            }
        }
        ParseError::new(at, message)
    }

    /// Runs `rule` one level deeper.
    fn nested<T>(&mut self, rule: impl FnOnce(&mut Self) -> Result<T, ParseError>) -> Result<T, ParseError> {
        if self.nesting >= MAX_NESTING {
            let message = format!("expressions are nested too deeply (limit: {MAX_NESTING})");
            return Err(ParseError::new(self.here().at, message));
        }
        self.nesting += 1;
        let result = rule(self);
        self.nesting -= 1;
        result
    }

    /// The depth of a node over such parts.
    fn above(&self, parts: u32) -> Result<u32, ParseError> {
        if parts < MAX_DEPTH {
            return Ok(parts + 1);
        }
        let message = format!("too many operators in one expression (limit: {MAX_DEPTH})");
        Err(ParseError::new(self.here().at, message))
    }

    fn hints(&mut self) -> Result<Vec<Hint>, ParseError> {
        self.expect("(")?;
        let mut hints = Vec::new();
        loop {
            let Token::Unknown(name) = self.peek() else { return Err(self.unexpected(&["IDENTIFIER"])) };
            if !name.starts_with(|c: char| c == '_' || c.is_alphabetic()) {
                return Err(self.unexpected(&["IDENTIFIER"]));
            }
            self.advance();
            self.expect("=")?;
            let negative = self.eat("-");
            let value = match self.eat_static() {
                Some(Static::Int(value)) if negative => Static::Int(value.wrapping_neg()),
                Some(Static::Float(value)) if negative => Static::Float(-value),
                Some(Static::Duration(value)) if negative => Static::Duration(value.wrapping_neg()),
                Some(value) if !negative => value,
                _ => return Err(self.unexpected(&[])),
            };
            hints.push(Hint { name: name.clone(), value });
            if self.eat(")") {
                return Ok(hints);
            }
            if !self.eat(",") {
                return Err(self.unexpected(&[",", ")"]));
            }
        }
    }

    /// A value, if one is next. `nil` is none: it stands beside `=` and `!=` only.
    fn eat_static(&mut self) -> Option<Static> {
        let value = match self.peek() {
            Token::Str(text) => Static::Str(Arc::clone(text)),
            Token::Fixed(text) => word_value(text)?,
            _ => return self.eat_number(),
        };
        self.advance();
        Some(value)
    }

    /// A number or duration, if one is next.
    fn eat_number(&mut self) -> Option<Static> {
        let value = match self.peek() {
            Token::Int(value) => Static::Int(*value),
            Token::Float(value) => Static::Float(*value),
            Token::Duration(value) => Static::Duration(*value),
            Token::Fixed("minInt") => Static::Int(i64::MIN),
            Token::Fixed("maxInt") => Static::Int(i64::MAX),
            _ => return None,
        };
        self.advance();
        Some(value)
    }

    /// An attribute or intrinsic, if one is next.
    fn eat_attribute(&mut self) -> Result<Option<Attribute>, ParseError> {
        let intrinsic = match self.peek() {
            Token::Attribute(attribute) => {
                self.advance();
                return Ok(Some(attribute.clone()));
            }
            Token::Fixed(scope) if scope.ends_with(':') => {
                self.advance();
                let word = self.at_fixed().unwrap_or_default();
                match scoped_intrinsic(scope, word) {
                    Some(intrinsic) => intrinsic,
                    None => return Err(self.unexpected(&[])),
                }
            }
            Token::Fixed(word) => match bare_intrinsic(word) {
                Some(intrinsic) => intrinsic,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        self.advance();
        Ok(Some(Attribute::Intrinsic(intrinsic)))
    }

    /// `(attribute, ...)`, never empty.
    fn attributes(&mut self) -> Result<Vec<Attribute>, ParseError> {
        self.expect("(")?;
        let mut attributes = Vec::new();
        loop {
            let Some(attribute) = self.eat_attribute()? else { return Err(self.unexpected(&["an attribute"])) };
            attributes.push(attribute);
            if self.eat(")") {
                return Ok(attributes);
            }
            if !self.eat(",") {
                return Err(self.unexpected(&[",", ")"]));
            }
        }
    }
}

fn word_value(word: &str) -> Option<Static> {
    Some(match word {
        "true" => Static::Bool(true),
        "false" => Static::Bool(false),
        "minInt" => Static::Int(i64::MIN),
        "maxInt" => Static::Int(i64::MAX),
        "ok" => Static::Status(Status::Ok),
        "error" => Static::Status(Status::Error),
        "unset" => Static::Status(Status::Unset),
        "unspecified" => Static::Kind(Kind::Unspecified),
        "internal" => Static::Kind(Kind::Internal),
        "server" => Static::Kind(Kind::Server),
        "client" => Static::Kind(Kind::Client),
        "producer" => Static::Kind(Kind::Producer),
        "consumer" => Static::Kind(Kind::Consumer),
        _ => return None,
    })
}

fn bare_intrinsic(word: &str) -> Option<Intrinsic> {
    Some(match word {
        "name" => Intrinsic::Name,
        "duration" => Intrinsic::Duration,
        "status" => Intrinsic::Status,
        "statusMessage" => Intrinsic::StatusMessage,
        "kind" => Intrinsic::Kind,
        "rootName" => Intrinsic::RootName,
        "rootServiceName" => Intrinsic::RootService,
        "traceDuration" => Intrinsic::TraceDuration,
        "nestedSetLeft" => Intrinsic::NestedSetLeft,
        "nestedSetRight" => Intrinsic::NestedSetRight,
        "nestedSetParent" => Intrinsic::NestedSetParent,
        "parent" => Intrinsic::Parent,
        _ => return None,
    })
}

fn scoped_intrinsic(scope: &str, word: &str) -> Option<Intrinsic> {
    Some(match (scope, word) {
        ("trace:", "duration") => Intrinsic::TraceDuration,
        ("trace:", "rootName") => Intrinsic::RootName,
        ("trace:", "rootService") => Intrinsic::RootService,
        ("trace:", "id") => Intrinsic::TraceId,
        ("span:", "duration") => Intrinsic::Duration,
        ("span:", "name") => Intrinsic::Name,
        ("span:", "kind") => Intrinsic::Kind,
        ("span:", "status") => Intrinsic::Status,
        ("span:", "statusMessage") => Intrinsic::StatusMessage,
        ("span:", "id") => Intrinsic::SpanId,
        ("span:", "parentID") => Intrinsic::ParentId,
        ("span:", "childCount") => Intrinsic::ChildCount,
        ("event:", "name") => Intrinsic::EventName,
        ("event:", "timeSinceStart") => Intrinsic::EventTimeSinceStart,
        ("link:", "traceID") => Intrinsic::LinkTraceId,
        ("link:", "spanID") => Intrinsic::LinkSpanId,
        ("instrumentation:", "name") => Intrinsic::InstrumentationName,
        ("instrumentation:", "version") => Intrinsic::InstrumentationVersion,
        _ => return None,
    })
}
