//! The text form of cases and spans.

use std::sync::Arc;

use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::{Attribute, Event, Link, Resource, Scope, Span, StoredSpan, Value};
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::{Case, Expected, ExpectedSeries, ExpectedSet, ExpectedSpan, ExpectedTrace, folder};
use crate::engine::Grid;
use crate::engine::answer::{AnswerAttribute, AnswerValue};

/// Reads a case file.
pub fn parse_case(name: &str, text: &str) -> Result<Case, String> {
    let mut case = Case {
        name: name.to_owned(),
        query: String::new(),
        spans: vec![],
        range: None,
        limit: 20,
        spans_per_set: 100,
        grid: None,
        expected: Expected::Traces(vec![]),
    };
    let mut section = "";
    let (mut data, mut answer) = (String::new(), Vec::new());
    for line in text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if line.starts_with(' ') {
            match section {
                "data" => data += &format!("{line}\n"),
                "expect" => answer.push(line.trim()),
                "query" => case.query += &format!("\n{line}"),
                other => return Err(format!("'{other}' has no lines below")),
            }
            continue;
        }
        let (key, rest) = line.split_once(':').ok_or_else(|| format!("no section: {line}"))?;
        let rest = rest.trim();
        let times: Vec<&str> = rest.split_whitespace().collect();
        section = key;
        match key {
            "query" => rest.clone_into(&mut case.query),
            "data" if rest.is_empty() => {}
            "data" => {
                let path = folder().join("data").join(format!("{rest}.spans"));
                data += &std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            "limit" => case.limit = rest.parse().map_err(|_| "bad limit".to_owned())?,
            "spss" => case.spans_per_set = rest.parse().map_err(|_| "bad spss".to_owned())?,
            "range" => {
                let [min, max] = times[..] else { return Err("range: FROM TO".to_owned()) };
                case.range = Some(TimeRange { min: UnixNanos(time(min)?), max: UnixNanos(time(max)?) });
            }
            "grid" => {
                let [start, end, step] = times[..] else { return Err("grid: START END STEP".to_owned()) };
                case.grid = Some(Grid { start: time(start)?, end: time(end)?, step: time(step)?, instant: false });
            }
            "instant" => {
                let [start, end] = times[..] else { return Err("instant: START END".to_owned()) };
                let (start, end) = (time(start)?, time(end)?);
                case.grid = Some(Grid { start, end, step: end - start, instant: true });
            }
            "expect" => {}
            "error" => case.expected = Expected::Error(rest.to_owned()),
            other => return Err(format!("unknown section '{other}'")),
        }
    }
    case.spans = parse_spans(&data)?;
    if !matches!(case.expected, Expected::Error(_)) {
        if answer.is_empty() {
            return Err("expects nothing: write 'none'".to_owned());
        }
        answer.retain(|line| *line != "none");
        case.expected = match case.grid {
            Some(grid) => {
                let count = ((grid.end - grid.start) / grid.step) as usize;
                let series: Vec<_> = answer.iter().map(|line| parse_series(line)).collect::<Result<_, _>>()?;
                if let Some(wrong) = series.iter().find(|series| series.points.len() != count) {
                    return Err(format!("{count} buckets, but {} points", wrong.points.len()));
                }
                Expected::Series(series)
            }
            None => Expected::Traces(answer.iter().map(|line| parse_trace(line)).collect::<Result<_, _>>()?),
        };
    }
    Ok(case)
}

/// Reads spans, one a line.
pub fn parse_spans(text: &str) -> Result<Vec<StoredSpan>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with('#'));
    lines.map(|line| parse_span(line).map_err(|error| format!("{error} in '{}'", line.trim()))).collect()
}

fn parse_span(line: &str) -> Result<StoredSpan, String> {
    let mut span = Span { start_unix_nano: 1_000_000_000, ..Span::default() };
    let (mut resource, mut scope) = (Resource::default(), Scope::default());
    let mut duration = 10_000_000;
    let mut events: Vec<(u64, Event)> = Vec::new();
    let mut tokens = Tokens(line);
    while let Some((key, item)) = tokens.next_item()? {
        let attribute = |value: &Item| {
            let name = key.split_once('.').map(|(_, name)| name.to_owned()).unwrap_or_default();
            Ok::<_, String>(Attribute { key: name, value: value.value()? })
        };
        match key.as_str() {
            "trace" => span.trace_id = item.text()?.parse().map_err(|e| format!("trace: {e}"))?,
            "id" => span.span_id = span_id(&item.text()?)?,
            "parent" => span.parent_span_id = Some(span_id(&item.text()?)?),
            "name" => span.name = item.text()?,
            "kind" => {
                let words = ["unspecified", "internal", "server", "client", "producer", "consumer"];
                span.kind = word(&words, &item.text()?)?;
            }
            "status" => span.status_code = word(&["unset", "ok", "error"], &item.text()?)?,
            "message" => span.status_message = item.text()?,
            "start" => span.start_unix_nano = time(&item.text()?)?,
            "dur" => duration = time(&item.text()?)?,
            "service" => {
                resource.attributes.push(Attribute { key: "service.name".to_owned(), value: Value::Str(item.text()?) });
            }
            "instrumentation:name" => scope.name = item.text()?,
            "instrumentation:version" => scope.version = item.text()?,
            "instrumentation:schema" => scope.schema_url = item.text()?,
            "resource:schema" => resource.schema_url = item.text()?,
            "state" => span.trace_state = item.text()?,
            "event" => events.push(event(&item)?),
            "link" => span.links.push(link(&item)?),
            _ if key.starts_with("span.") => span.attributes.push(attribute(&item)?),
            _ if key.starts_with("resource.") => resource.attributes.push(attribute(&item)?),
            _ if key.starts_with("instrumentation.") => scope.attributes.push(attribute(&item)?),
            other => return Err(format!("unknown key '{other}'")),
        }
    }
    span.end_unix_nano = span.start_unix_nano + duration;
    let start = span.start_unix_nano;
    span.events = events.into_iter().map(|(at, event)| Event { time_unix_nano: start + at, ..event }).collect();
    Ok(StoredSpan { span, resource: Arc::new(resource), scope: Arc::new(scope), maybe_duplicate: false })
}

/// With its time since the span's start.
fn event(item: &Item) -> Result<(u64, Event), String> {
    let Item::Group(inside) = item else { return Err("event(...)".to_owned()) };
    let (mut at, mut event) = (0, Event::default());
    let mut tokens = Tokens(inside);
    while let Some((key, item)) = tokens.next_item()? {
        match (key.as_str(), key.strip_prefix("event.")) {
            ("name", _) => event.name = item.text()?,
            ("at", _) => at = time(&item.text()?)?,
            (_, Some(name)) => event.attributes.push(Attribute { key: name.to_owned(), value: item.value()? }),
            (other, None) => return Err(format!("unknown key '{other}' of an event")),
        }
    }
    Ok((at, event))
}

fn link(item: &Item) -> Result<Link, String> {
    let Item::Group(inside) = item else { return Err("link(...)".to_owned()) };
    let mut link = Link::default();
    let mut tokens = Tokens(inside);
    while let Some((key, item)) = tokens.next_item()? {
        match (key.as_str(), key.strip_prefix("link.")) {
            ("trace", _) => {
                let id: TraceId = item.text()?.parse().map_err(|e| format!("link: {e}"))?;
                link.trace_id = id.0.to_vec();
            }
            ("span", _) => link.span_id = span_id(&item.text()?)?.0.to_vec(),
            ("state", _) => link.trace_state = item.text()?,
            (_, Some(name)) => link.attributes.push(Attribute { key: name.to_owned(), value: item.value()? }),
            (other, None) => return Err(format!("unknown key '{other}' of a link")),
        }
    }
    Ok(link)
}

fn span_id(text: &str) -> Result<SpanId, String> {
    u64::from_str_radix(text, 16).map(|id| SpanId(id.to_be_bytes())).map_err(|_| format!("'{text}' is no span id"))
}

fn word(words: &[&str], word: &str) -> Result<i32, String> {
    words.iter().position(|w| *w == word).map(|at| at as i32).ok_or_else(|| format!("unknown word '{word}'"))
}

/// Nanoseconds; a number with `ns`, `us`, `ms`, `s` or `m`, or alone.
fn time(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" | "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        _ => return Err(format!("'{text}' is no time")),
    };
    let number: f64 = text[..digits].parse().map_err(|_| format!("'{text}' is no time"))?;
    Ok((number * unit).round() as u64)
}

/// `key=value`, or `key(...)` and `key[...]`.
enum Item {
    Word(String),
    Quoted(String),
    List(String),
    Group(String),
}

impl Item {
    fn text(&self) -> Result<String, String> {
        match self {
            Self::Word(text) | Self::Quoted(text) => Ok(text.clone()),
            _ => Err("a text is wanted".to_owned()),
        }
    }

    fn value(&self) -> Result<Value, String> {
        Ok(match self {
            Self::Quoted(text) => Value::Str(text.clone()),
            Self::List(inside) => Value::Array(list(inside)?.iter().map(Self::value).collect::<Result<_, _>>()?),
            Self::Word(word) => match word.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "empty" => Value::Empty,
                "map" => Value::Map(vec![("k".to_owned(), Value::Int(1))]),
                "bytes" => Value::Bytes(vec![1, 2]),
                number => match (number.parse(), number.parse()) {
                    (Ok(int), _) => Value::Int(int),
                    (_, Ok(double)) => Value::Double(double),
                    _ => return Err(format!("'{number}' is no value: texts go in quotes")),
                },
            },
            Self::Group(_) => return Err("a value is wanted".to_owned()),
        })
    }

    fn answer(&self) -> Result<AnswerValue, String> {
        fn convert(value: Value) -> Result<AnswerValue, String> {
            Ok(match value {
                Value::Str(v) => AnswerValue::Str(Arc::from(v)),
                Value::Int(v) => AnswerValue::Int(v),
                Value::Double(v) => AnswerValue::Float(v),
                Value::Bool(v) => AnswerValue::Bool(v),
                Value::Array(v) => AnswerValue::Array(v.into_iter().map(convert).collect::<Result<_, _>>()?),
                other => return Err(format!("no answer: {other:?}")),
            })
        }
        convert(self.value()?)
    }
}

fn list(inside: &str) -> Result<Vec<Item>, String> {
    let mut tokens = Tokens(inside);
    let mut items = Vec::new();
    while !tokens.skip_space().is_empty() {
        items.push(tokens.item()?);
    }
    Ok(items)
}

/// What is left of a line.
struct Tokens<'a>(&'a str);

impl<'a> Tokens<'a> {
    fn skip_space(&mut self) -> &'a str {
        self.0 = self.0.trim_start();
        self.0
    }

    fn take(&mut self, prefix: char) -> bool {
        let rest = self.0.strip_prefix(prefix);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// Keys may hold quoted parts: `span."a b"=1`.
    fn key(&mut self) -> Result<String, String> {
        let mut key = String::new();
        while let Some(c) = self.0.chars().next() {
            match c {
                '"' => key += &self.quoted()?,
                '=' | '(' | '[' | '{' | '}' | ')' | ']' | '|' | ' ' => break,
                _ => {
                    key.push(c);
                    self.0 = &self.0[c.len_utf8()..];
                }
            }
        }
        Ok(key)
    }

    fn next_item(&mut self) -> Result<Option<(String, Item)>, String> {
        if self.skip_space().is_empty() {
            return Ok(None);
        }
        let key = self.key()?;
        if self.0.starts_with('(') {
            return Ok(Some((key, Item::Group(self.inside('(', ')')?.to_owned()))));
        }
        if !self.take('=') {
            return Err(format!("no value for '{key}'"));
        }
        Ok(Some((key, self.item()?)))
    }

    fn item(&mut self) -> Result<Item, String> {
        match self.0.chars().next() {
            Some('"') => self.quoted().map(Item::Quoted),
            Some('[') => self.inside('[', ']').map(|inside| Item::List(inside.to_owned())),
            _ => {
                let end = self.0.find([' ', ')', ']', '}']).unwrap_or(self.0.len());
                let (word, rest) = self.0.split_at(end);
                self.0 = rest;
                Ok(Item::Word(word.to_owned()))
            }
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut chars = self.0.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Ok(text);
                }
                '\\' => text.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, other)) => other,
                    None => break,
                }),
                other => text.push(other),
            }
        }
        Err("a quote does not end".to_owned())
    }

    /// What stands between brackets, which may nest and are not told apart from those in quotes' inside.
    fn inside(&mut self, open: char, close: char) -> Result<&'a str, String> {
        let (mut depth, mut in_quotes, mut escaped) = (0, false, false);
        for (at, c) in self.0.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_quotes = !in_quotes,
                _ if in_quotes => {}
                c if c == open => depth += 1,
                c if c == close => {
                    depth -= 1;
                    if depth == 0 {
                        let inside = &self.0[open.len_utf8()..at];
                        self.0 = &self.0[at + close.len_utf8()..];
                        return Ok(inside);
                    }
                }
                _ => {}
            }
        }
        Err(format!("'{open}' is not closed"))
    }

    fn attributes(text: &str) -> Result<Vec<AnswerAttribute>, String> {
        let mut tokens = Tokens(text);
        let mut attributes = Vec::new();
        while let Some((key, item)) = tokens.next_item()? {
            attributes.push(AnswerAttribute { key: Arc::from(key), value: item.answer()? });
        }
        Ok(attributes)
    }
}

/// `1: {2 3(a=1)}["by(.a)"=1] matched=5 {4} service=shop`.
fn parse_trace(line: &str) -> Result<ExpectedTrace, String> {
    let (id, rest) = line.split_once(':').ok_or_else(|| format!("no trace: {line}"))?;
    let mut trace = ExpectedTrace { trace_id: id.parse().map_err(|e| format!("{line}: {e}"))?, sets: vec![], facts: vec![] };
    let mut tokens = Tokens(rest);
    while !tokens.skip_space().is_empty() {
        if tokens.0.starts_with('{') {
            let spans = parse_found(tokens.inside('{', '}')?)?;
            let attributes =
                if tokens.0.starts_with('[') { Some(Tokens::attributes(tokens.inside('[', ']')?)?) } else { None };
            trace.sets.push(ExpectedSet { matched: spans.len(), spans, attributes });
            continue;
        }
        let Some((key, item)) = tokens.next_item()? else { break };
        let value = item.text()?;
        match (key.as_str(), trace.sets.last_mut()) {
            ("matched", Some(set)) => set.matched = value.parse().map_err(|_| "bad number of matched".to_owned())?,
            ("start" | "dur", _) => trace.facts.push((key, time(&value)?.to_string())),
            ("service" | "name" | "services", _) => trace.facts.push((key, value)),
            _ => return Err(format!("unknown word '{key}' in '{line}'")),
        }
    }
    Ok(trace)
}

fn parse_found(inside: &str) -> Result<Vec<ExpectedSpan>, String> {
    let mut tokens = Tokens(inside);
    let mut spans = Vec::new();
    while !tokens.skip_space().is_empty() {
        let span_id = span_id(&tokens.key()?)?;
        let attributes = if tokens.0.starts_with('(') { Some(Tokens::attributes(tokens.inside('(', ')')?)?) } else { None };
        spans.push(ExpectedSpan { span_id, attributes });
    }
    Ok(spans)
}

/// `{name="a"} | 1 0 -`.
fn parse_series(line: &str) -> Result<ExpectedSeries, String> {
    let mut tokens = Tokens(line);
    if !line.starts_with('{') {
        return Err(format!("no labels: {line}"));
    }
    let labels = Tokens::attributes(tokens.inside('{', '}')?)?;
    let points = tokens.skip_space().strip_prefix('|').ok_or_else(|| format!("no points: {line}"))?;
    let point = |word: &str| match word {
        "-" => Ok(None),
        number => number.parse().map(Some).map_err(|_| format!("'{number}' is no point")),
    };
    Ok(ExpectedSeries { labels, points: points.split_whitespace().map(point).collect::<Result<_, _>>()? })
}
