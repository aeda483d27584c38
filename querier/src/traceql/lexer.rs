//! Text to tokens, character by character as Tempo's lexer sees it: clients and people rely on its corner cases.
//!
//! Owns where a token ends, escapes, number and duration forms, comments, and what belongs to an attribute's name. Does not
//! know which token may follow which. A token that cannot be is kept as [`Token::Bad`], so that the parser reports whichever
//! error comes first, and so that a half-typed query can still be read around it.

use std::sync::Arc;

use super::ast::{Attribute, ParentScope, Scope};
use super::duration;
use super::error::{ParseError, Position};

/// Longer queries are refused before anything looks at them.
pub const MAX_QUERY_BYTES: usize = 131_072;

/// No duration is longer: looking further behind each of many numbers would take long.
const MAX_DURATION_CHARS: usize = 128;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A reserved word, an operator, punctuation, or a scope with its colon: anything whose text is all it says.
    Fixed(&'static str),
    Attribute(Attribute),
    Str(Arc<str>),
    Int(i64),
    Float(f64),
    Duration(i64),
    /// A word that is not reserved, or characters that start no token.
    Unknown(String),
    Bad(ParseError),
    /// A text that runs into the end of the query, with what would close it.
    Unclosed(ParseError, char),
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spanned {
    pub(super) token: Token,
    pub(super) at: Position,
    /// Bytes of the query, from and to: tokens without a gap between them share one.
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Every word with a meaning of its own.
pub(super) const WORDS: [&str; 54] = [
    "true",
    "false",
    "nil",
    "ok",
    "error",
    "unset",
    "unspecified",
    "internal",
    "server",
    "client",
    "producer",
    "consumer",
    "duration",
    "childCount",
    "name",
    "status",
    "statusMessage",
    "kind",
    "rootName",
    "rootServiceName",
    "rootService",
    "traceDuration",
    "nestedSetLeft",
    "nestedSetRight",
    "nestedSetParent",
    "id",
    "traceID",
    "spanID",
    "parentID",
    "timeSinceStart",
    "version",
    "parent",
    "count",
    "avg",
    "max",
    "min",
    "sum",
    "by",
    "coalesce",
    "select",
    "rate",
    "count_over_time",
    "min_over_time",
    "max_over_time",
    "avg_over_time",
    "sum_over_time",
    "quantile_over_time",
    "histogram_over_time",
    "compare",
    "topk",
    "bottomk",
    "with",
    "minInt",
    "maxInt",
];

const OPERATORS: [&str; 36] = [
    ",", ".", "{", "}", "(", ")", "=", "!=", "=~", "!~", ">", ">=", "<", "<=", "+", "-", "/", "%", "*", "^", "&&", "||",
    "!", "|", ">>", "<<", "~", "!>", "!<", "!>>", "!<<", "&>", "&<", "&>>", "&<<", "&~",
];

/// What may stand before a colon, with it.
const COLON_SCOPES: [&str; 5] = ["trace:", "span:", "event:", "link:", "instrumentation:"];

/// The tokens of a query. The last one is [`Token::End`] or [`Token::Unclosed`].
pub(super) fn lex(text: &str) -> Vec<Spanned> {
    let mut lexer = Lexer { text, offset: 0, at: Position { line: 1, column: 1 } };
    let mut tokens = Vec::new();
    loop {
        let comments = lexer.skip_blanks();
        let (start, at) = (lexer.offset, lexer.at);
        let token = comments.err().unwrap_or_else(|| lexer.token());
        let last = matches!(token, Token::End | Token::Unclosed(..));
        tokens.push(Spanned { token, at, start, end: lexer.offset });
        if last {
            return tokens;
        }
    }
}

/// How many regexes are written there.
pub(super) fn count_regexes(tokens: &[Spanned]) -> usize {
    tokens.iter().filter(|one| matches!(one.token, Token::Fixed("=~" | "!~"))).count()
}

/// Whether `c` ends an attribute's name.
pub(super) fn ends_name(c: char) -> bool {
    c.is_whitespace() || matches!(c, '{' | '}' | '(' | ')' | '=' | '~' | '!' | '<' | '>' | '&' | '|' | '^' | ',')
}

struct Lexer<'a> {
    text: &'a str,
    offset: usize,
    at: Position,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.offset += c.len_utf8();
        if c == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(c)
    }

    fn skip_bytes(&mut self, bytes: usize) {
        let end = self.offset + bytes;
        while self.offset < end && self.next().is_some() {}
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !belongs(c)).unwrap_or(rest.len())];
        self.skip_bytes(taken.len());
        taken
    }

    /// Skips blanks and comments; a comment without an end is an error.
    fn skip_blanks(&mut self) -> Result<(), Token> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            let rest = self.rest();
            if rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let at = self.at;
                let Some(length) = comment.find("*/") else {
                    self.skip_bytes(rest.len());
                    return Err(Token::Unclosed(ParseError::new(at, "comment not terminated"), '/'));
                };
                self.skip_bytes(length + 4);
            } else {
                return Ok(());
            }
        }
    }

    fn token(&mut self) -> Token {
        let Some(c) = self.peek() else { return Token::End };
        match c {
            '"' => self.text_in_quotes(),
            '`' => self.raw_text(),
            '\'' => self.single_quotes(),
            '0'..='9' => self.number(),
            '.' if self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number(),
            '.' => {
                self.next();
                self.attribute(Scope::None)
            }
            c if c == '_' || c.is_alphabetic() => self.word(),
            _ => self.operator(),
        }
    }

    fn operator(&mut self) -> Token {
        let rest = self.rest();
        let found = OPERATORS.iter().filter(|operator| rest.starts_with(**operator)).max_by_key(|operator| operator.len());
        match found {
            Some(operator) => {
                self.skip_bytes(operator.len());
                Token::Fixed(operator)
            }
            None => Token::Unknown(self.next().map(String::from).unwrap_or_default()),
        }
    }

    fn word(&mut self) -> Token {
        let word = self.take_while(|c| c == '_' || c.is_alphanumeric());
        match self.peek() {
            Some('.') => {
                let scope = match word {
                    "span" => Some(Scope::Span),
                    "resource" => Some(Scope::Resource),
                    "event" => Some(Scope::Event),
                    "link" => Some(Scope::Link),
                    "instrumentation" => Some(Scope::Instrumentation),
                    "parent" => Some(Scope::Parent(ParentScope::None)),
                    _ => None,
                };
                if let Some(scope) = scope {
                    self.next();
                    return self.attribute(scope);
                }
            }
            Some(':') => {
                if let Some(scope) = COLON_SCOPES.iter().find(|scope| scope.strip_suffix(':') == Some(word)) {
                    self.next();
                    return Token::Fixed(scope);
                }
            }
            _ => {}
        }
        match WORDS.iter().find(|known| **known == word) {
            Some(known) => Token::Fixed(known),
            None => Token::Unknown(word.to_owned()),
        }
    }

    /// The name after a scope and its dot.
    fn attribute(&mut self, mut scope: Scope) -> Token {
        if scope == Scope::Parent(ParentScope::None) {
            for (prefix, parent) in [("span.", ParentScope::Span), ("resource.", ParentScope::Resource)] {
                if self.rest().starts_with(prefix) {
                    self.skip_bytes(prefix.len());
                    scope = Scope::Parent(parent);
                }
            }
        }
        let start = self.at;
        let mut name = String::new();
        let mut empty = true;
        while let Some(c) = self.peek().filter(|c| !ends_name(*c)) {
            empty = false;
            self.next();
            if c != '"' {
                name.push(c);
            } else if let Err(token) = self.quoted_part(&mut name) {
                return token;
            }
        }
        if empty {
            let message = "syntax error: unexpected END_ATTRIBUTE, expecting IDENTIFIER";
            return Token::Bad(ParseError::new(start, message));
        }
        Token::Attribute(Attribute::Scoped { scope, name: name.into() })
    }

    /// The rest of a quoted part of a name, of which the first quote is read.
    fn quoted_part(&mut self, name: &mut String) -> Result<(), Token> {
        let mut wrong = None;
        loop {
            let at = self.at;
            match self.next() {
                Some('"') => break,
                Some('\\') => match self.next() {
                    Some(c @ ('"' | '\\')) => name.push(c),
                    None => return Err(unclosed_name(at)),
                    Some(_) => wrong = wrong.or(Some(at)),
                },
                Some(c) => name.push(c),
                None => return Err(unclosed_name(at)),
            }
        }
        match wrong {
            Some(at) => Err(Token::Bad(ParseError::new(at, "invalid escape sequence"))),
            None => Ok(()),
        }
    }

    fn raw_text(&mut self) -> Token {
        let at = self.at;
        self.next();
        let rest = self.rest();
        let Some(length) = rest.find('`') else {
            self.skip_bytes(rest.len());
            return Token::Unclosed(ParseError::new(at, "literal not terminated"), '`');
        };
        self.skip_bytes(length + 1);
        // As Go has it: carriage returns are no part of a raw string.
        Token::Str(rest[..length].replace('\r', "").into())
    }

    /// One character in single quotes is a token to Go; to TraceQL it has no meaning, whatever its length.
    fn single_quotes(&mut self) -> Token {
        let rest = self.rest();
        let length = rest[1..].find(['\'', '\n']).filter(|length| rest[1 + length..].starts_with('\''));
        let length = length.map_or(1, |length| length + 2);
        self.skip_bytes(length);
        Token::Unknown(rest[..length].to_owned())
    }

    fn text_in_quotes(&mut self) -> Token {
        let start = self.at;
        self.next();
        let mut bytes = Vec::new();
        let mut wrong = None;
        loop {
            let at = self.at;
            match self.peek() {
                None => return Token::Unclosed(ParseError::new(start, "literal not terminated"), '"'),
                Some('\n') => return Token::Bad(ParseError::new(start, "literal not terminated")),
                Some('"') => {
                    self.next();
                    break;
                }
                Some('\\') => {
                    self.next();
                    if self.peek().is_none() {
                        return Token::Unclosed(ParseError::new(start, "literal not terminated"), '"');
                    }
                    if self.escape(&mut bytes).is_none() {
                        let message = "invalid escape sequence; write a backslash twice, or the text in backquotes";
                        wrong = wrong.or(Some(ParseError::new(at, message)));
                    }
                }
                Some(c) => {
                    self.next();
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        match wrong {
            Some(error) => Token::Bad(error),
            // Escapes can make bytes that are no text. No stored text has them either.
            None => Token::Str(String::from_utf8_lossy(&bytes).into()),
        }
    }

    /// What stands for itself after a backslash, in Go's way; `None` if nothing does.
    fn escape(&mut self, bytes: &mut Vec<u8>) -> Option<()> {
        let c = self.peek()?;
        let simple = match c {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0C,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0B,
            '\\' | '"' => c as u8,
            '0'..='7' => {
                bytes.push(u8::try_from(self.digits(3, 8)?).ok()?);
                return Some(());
            }
            'x' | 'u' | 'U' => {
                self.next();
                if c == 'x' {
                    bytes.push(u8::try_from(self.digits(2, 16)?).ok()?);
                    return Some(());
                }
                let code = self.digits(if c == 'u' { 4 } else { 8 }, 16)?;
                bytes.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
                return Some(());
            }
            _ => return None,
        };
        self.next();
        bytes.push(simple);
        Some(())
    }

    fn digits(&mut self, count: usize, radix: u32) -> Option<u32> {
        let mut value: u32 = 0;
        for _ in 0..count {
            let digit = self.peek()?.to_digit(radix)?;
            self.next();
            value = value.checked_mul(radix)?.checked_add(digit)?;
        }
        Some(value)
    }

    fn number(&mut self) -> Token {
        let at = self.at;
        let rest = self.rest();
        if rest.starts_with('0') && rest[1..].starts_with(['x', 'X', 'b', 'B', 'o', 'O']) {
            let text = self.take_while(|c| c == '_' || c == '.' || c.is_ascii_alphanumeric());
            return bad_number(at, text, "invalid syntax");
        }
        let (length, is_float) = number_length(rest);
        let text = &rest[..length];
        let tail = &rest[length..];
        let in_duration = |c: char| c == '.' || c.is_numeric() || "nsumhµdwy".contains(c);
        let more: usize = tail.chars().take_while(|c| in_duration(*c)).take(MAX_DURATION_CHARS).map(char::len_utf8).sum();
        if more > 0
            && let Some(nanos) = duration::parse(&rest[..length + more])
        {
            self.skip_bytes(length + more);
            return Token::Duration(nanos);
        }
        self.skip_bytes(length);
        if text.contains('_') {
            return bad_number(at, text, "invalid syntax");
        }
        if is_float {
            return match text.parse::<f64>() {
                Ok(value) if value.is_finite() => Token::Float(value),
                Ok(_) => bad_number(at, text, "value out of range"),
                Err(_) => bad_number(at, text, "invalid syntax"),
            };
        }
        match text.parse() {
            Ok(value) => Token::Int(value),
            Err(_) => bad_number(at, text, "value out of range"),
        }
    }
}

fn bad_number(at: Position, text: &str, why: &str) -> Token {
    let shown: String = text.chars().take(64).collect();
    Token::Bad(ParseError::new(at, format!("strconv.Atoi: parsing \"{shown}\": {why}")))
}

fn unclosed_name(at: Position) -> Token {
    Token::Unclosed(ParseError::new(at, "unexpected EOF, expecting \""), '"')
}

/// The bytes of the decimal number at the start, and whether it is a float.
fn number_length(text: &str) -> (usize, bool) {
    let bytes = text.as_bytes();
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(|b| b.is_ascii_digit() || *b == b'_') {
            at += 1;
        }
        at
    };
    let mut end = digits(0);
    let mut is_float = false;
    if bytes.get(end) == Some(&b'.') {
        is_float = true;
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        is_float = true;
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        end = digits(end + 1 + sign);
    }
    (end, is_float)
}
