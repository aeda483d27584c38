//! Regular expressions of a query: RE2's syntax, which queries are written in, in terms of the engine that runs them.
//!
//! Both are nearly the same language. [`translate`] rewrites what the engine would refuse or read otherwise: literal braces,
//! `\Q...\E`, `\<`, brackets and doubled signs in character classes, and classes that are of ASCII only in RE2.

use regex::bytes::{Regex, RegexBuilder};

/// Memory a compiled expression may take, and its cache while matching: a longer one is an error of the query.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// Expressions in one query. Together with their size this bounds the time to compile them and the memory they take.
pub(super) const MAX_REGEXES: usize = 100;

/// Compiles a pattern so that it must match a whole text, across lines.
pub fn compile_regex(pattern: &str) -> Result<Regex, regex::Error> {
    let translated = translate(pattern)?;
    RegexBuilder::new(&format!("^(?s:{translated})$"))
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .nest_limit(100)
        .build()
}

/// Groups must close within the pattern, or what is put around it would not hold for all of it.
fn translate(pattern: &str) -> Result<String, regex::Error> {
    let refuse = |why: &str| Err(regex::Error::Syntax(why.to_owned()));
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    let (mut groups, mut in_repetition) = (0usize, false);
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '\\' => taken = escape(rest, false, &mut out),
            '[' => taken = class(rest, &mut out),
            '{' if !is_repetition(rest) => out.push_str("\\{"),
            '}' if !std::mem::take(&mut in_repetition) => out.push_str("\\}"),
            ')' if groups == 0 => return refuse("unopened group"),
            _ => {
                match c {
                    '(' if has_foreign_flag(rest) => return refuse("unrecognized flag"),
                    '(' => groups += 1,
                    ')' => groups -= 1,
                    '{' => in_repetition = true,
                    _ => {}
                }
                out.push(c);
            }
        }
        rest = &rest[taken..];
    }
    if groups > 0 { refuse("unclosed group") } else { Ok(out) }
}

/// Whether the group at the start of `rest` sets a flag that RE2 does not know.
fn has_foreign_flag(rest: &str) -> bool {
    let flags = rest.strip_prefix("(?").map_or("", |rest| &rest[..rest.find([':', ')']).unwrap_or(0)]);
    !flags.starts_with(['P', '<']) && flags.contains(['x', 'u', 'R'])
}

/// Writes the escape at the start of `rest`; returns its length.
fn escape(rest: &str, in_class: bool, out: &mut String) -> usize {
    let Some(c) = rest[1..].chars().next() else {
        out.push('\\');
        return 1;
    };
    if c == 'Q' && !in_class {
        let quoted = &rest[2..];
        let end = quoted.find("\\E");
        out.push_str(&regex::escape(&quoted[..end.unwrap_or(quoted.len())]));
        return end.map_or(rest.len(), |end| end + 4);
    }
    let ascii = match (c, in_class) {
        ('d', true) => "[:digit:]",
        ('D', true) => "[:^digit:]",
        ('w', true) => "[:word:]",
        ('W', true) => "[:^word:]",
        ('d', false) => "[[:digit:]]",
        ('D', false) => "[[:^digit:]]",
        ('w', false) => "[[:word:]]",
        ('W', false) => "[[:^word:]]",
        ('s', true) => r"\t\n\x0C\r\x20",
        ('S', true) | ('S', false) => r"[^\t\n\x0C\r\x20]",
        ('s', false) => r"[\t\n\x0C\r\x20]",
        ('b', false) => r"(?-u:\b)",
        ('B', false) => r"(?-u:\B)",
        ('<' | '>', _) => {
            out.push(c);
            return 2;
        }
        _ => {
            out.push('\\');
            out.push(c);
            // The braces of `\x{10FFFF}` and `\p{Greek}` belong to the escape.
            let tail = &rest[1 + c.len_utf8()..];
            if matches!(c, 'x' | 'p' | 'P')
                && tail.starts_with('{')
                && let Some(end) = tail.find('}')
            {
                out.push_str(&tail[..=end]);
                return 1 + c.len_utf8() + end + 1;
            }
            return 1 + c.len_utf8();
        }
    };
    out.push_str(ascii);
    2
}

/// Writes the character class at the start of `rest`; returns its length. One without an end is left for the engine to refuse.
fn class(rest: &str, out: &mut String) -> usize {
    let mut at = 1;
    out.push('[');
    if rest[at..].starts_with('^') {
        out.push('^');
        at += 1;
    }
    let mut first = true;
    while let Some(c) = rest[at..].chars().next() {
        let tail = &rest[at..];
        match c {
            ']' if !first => {
                out.push(']');
                return at + 1;
            }
            '\\' => {
                at += escape(tail, true, out);
                first = false;
                continue;
            }
            '[' if named_class(tail) > 0 => {
                let length = named_class(tail);
                out.push_str(&tail[..length]);
                at += length;
                first = false;
                continue;
            }
            // Two of a kind are set operations to the engine.
            '[' | ']' | '&' | '~' => {
                out.push('\\');
                out.push(c);
            }
            '-' if tail.starts_with("--") => out.push_str("\\-"),
            _ => out.push(c),
        }
        at += c.len_utf8();
        first = false;
    }
    at
}

/// The length of the `[:name:]` at the start of `rest`; 0 without.
fn named_class(rest: &str) -> usize {
    let Some(inner) = rest.strip_prefix("[:") else { return 0 };
    let tail = inner.trim_start_matches('^').trim_start_matches(|c: char| c.is_ascii_lowercase());
    if tail.starts_with(":]") { rest.len() - tail.len() + 2 } else { 0 }
}

/// Whether the brace at the start of `rest` begins `{2}`, `{2,}` or `{2,3}`.
fn is_repetition(rest: &str) -> bool {
    let inner = &rest[1..];
    let low = inner.trim_start_matches(|c: char| c.is_ascii_digit());
    let high = low.strip_prefix(',').map_or(low, |high| high.trim_start_matches(|c: char| c.is_ascii_digit()));
    low.len() < inner.len() && high.starts_with('}')
}
