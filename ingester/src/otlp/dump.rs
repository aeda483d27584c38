//! OTLP as JSON to compare with, files of cases, and what must hold of every form, for the tests of other protocols' receivers.

use prost::Message;
use serde_json::{Map, Value as Json, json};
use spanhouse_proto::otlp_common::{AnyValue, KeyValue, any_value::Value};
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{Span, span};

use crate::pipeline::IngestError;

/// Most bytes of OTLP, where a test does not mean the limit.
pub(crate) const MAX: usize = 1 << 20;

pub(crate) type Encode = fn(&Json) -> Vec<u8>;
pub(crate) type Convert = fn(&[u8], usize) -> Result<Vec<u8>, IngestError>;
/// A way in: its name, how spans are written for it, and what reads that.
pub(crate) type Form = (&'static str, Encode, Convert);

/// Runs the cases of a file in each form that they are for. `written` makes the input of a case bytes of a form.
pub(crate) fn check_cases(
    file: &str,
    forms: &[Form],
    is_for: impl Fn(&Case<'_>, &str) -> bool,
    written: impl Fn(&Case<'_>, &Form) -> Vec<u8>,
) {
    for case in cases(file) {
        for form in forms.iter().filter(|(name, ..)| is_for(&case, name)) {
            case.check(form.0, form.2(&written(&case, form), MAX));
        }
    }
}

/// Whatever comes, it is refused or it is OTLP, at most so many times as long as it was.
pub(crate) fn check_harmless(bytes: &[u8], convert: Convert, times: usize) {
    if let Ok(otlp) = convert(bytes, MAX) {
        dump(&otlp);
        assert!(otlp.len() <= 400 + times * bytes.len(), "{} bytes became {}", bytes.len(), otlp.len());
    }
}

/// What would become longer than allowed is refused.
pub(crate) fn check_limit(what: &str, bytes: &[u8], convert: Convert) {
    const LIMIT: usize = 20_000;
    let error = convert(bytes, LIMIT).expect_err(what);
    assert!(matches!(error, IngestError::TooLarge { limit: LIMIT, .. }), "{what}: {error}");
}

/// A case of a file: `== title`, a word or more on the next line, the input up to `=>`, then what is expected.
pub(crate) struct Case<'t> {
    pub(crate) title: &'t str,
    pub(crate) words: Vec<&'t str>,
    pub(crate) input: &'t str,
    pub(crate) expected: &'t str,
}

impl Case<'_> {
    /// Holds what came out against the case; an expectation that begins with `error` is a part of the error's text.
    pub(crate) fn check(&self, form: &str, found: Result<Vec<u8>, impl std::fmt::Display>) {
        let what = format!("{} ({form})", self.title);
        match (self.expected.strip_prefix("error"), found) {
            (Some(text), Err(error)) => assert!(error.to_string().contains(text.trim()), "{what}: {error}"),
            (Some(_), Ok(found)) => panic!("{what}: {:#}", dump(&found)),
            (None, Err(error)) => panic!("{what}: {error}"),
            (None, Ok(found)) => {
                let expected: Json = serde_json::from_str(self.expected).unwrap_or_else(|e| panic!("{what}: {e}"));
                let found = dump(&found);
                assert_eq!(found, expected, "{what}: found {found:#}");
            }
        }
    }
}

pub(crate) fn cases(text: &str) -> Vec<Case<'_>> {
    let blocks = text.split("\n== ").map(|block| block.trim_start_matches("== ")).filter(|b| !b.starts_with('#'));
    let parse = |block| {
        let (title, rest) = str::split_once(block, '\n').expect("a title");
        let (words, rest) = rest.split_once('\n').expect("words");
        let (input, expected) = rest.split_once("\n=>").expect("an expectation");
        Case { title, words: words.split_whitespace().collect(), input: input.trim(), expected: expected.trim() }
    };
    blocks.map(parse).collect()
}

/// Groups with their spans. What is empty is left out; attributes are pairs in their order.
pub(crate) fn dump(otlp: &[u8]) -> Json {
    let request = ExportTraceServiceRequest::decode(otlp).expect("OTLP");
    let mut groups = Vec::new();
    for resource_spans in request.resource_spans {
        for scope_spans in resource_spans.scope_spans {
            let mut group = Map::new();
            put(&mut group, "resource", attributes(&resource_spans.resource.clone().unwrap_or_default().attributes));
            if let Some(scope) = &scope_spans.scope {
                group.insert("scope".into(), json!([scope.name, scope.version]));
            }
            put(&mut group, "spans", scope_spans.spans.iter().map(span).collect());
            groups.push(group.into());
        }
    }
    Json::Array(groups)
}

pub(crate) fn put(object: &mut Map<String, Json>, key: &str, value: Json) {
    let empty = match &value {
        Json::Null => true,
        Json::String(text) => text.is_empty(),
        Json::Array(values) => values.is_empty(),
        Json::Object(values) => values.is_empty(),
        Json::Number(number) => number.as_u64() == Some(0),
        Json::Bool(_) => false,
    };
    if !empty {
        object.insert(key.into(), value);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn value(value: &AnyValue) -> Json {
    match &value.value {
        None => Json::Null,
        Some(Value::StringValue(text)) => json!(text),
        Some(Value::BoolValue(value)) => json!(value),
        Some(Value::IntValue(value)) => json!(value),
        // NaN has no JSON.
        Some(Value::DoubleValue(value)) if !value.is_finite() => json!({ "double": value.to_string() }),
        Some(Value::DoubleValue(value)) => json!(value),
        Some(Value::BytesValue(bytes)) => json!({ "bytes": hex(bytes) }),
        Some(Value::ArrayValue(array)) => array.values.iter().map(self::value).collect(),
        Some(Value::KvlistValue(list)) => json!({ "map": attributes(&list.values) }),
        Some(other) => panic!("{other:?}"),
    }
}

fn attributes(attributes: &[KeyValue]) -> Json {
    attributes.iter().map(|a| json!([a.key, a.value.as_ref().map(value)])).collect()
}

fn span(of: &Span) -> Json {
    let mut span = Map::new();
    put(&mut span, "trace", hex(&of.trace_id).into());
    put(&mut span, "span", hex(&of.span_id).into());
    put(&mut span, "parent", hex(&of.parent_span_id).into());
    put(&mut span, "state", of.trace_state.as_str().into());
    put(&mut span, "name", of.name.as_str().into());
    put(&mut span, "kind", of.kind.into());
    put(&mut span, "start", of.start_time_unix_nano.into());
    put(&mut span, "end", of.end_time_unix_nano.into());
    put(&mut span, "flags", of.flags.into());
    put(&mut span, "attributes", attributes(&of.attributes));
    put(&mut span, "events", of.events.iter().map(event).collect());
    put(&mut span, "links", of.links.iter().map(link).collect());
    if let Some(status) = &of.status {
        span.insert("status".into(), json!([status.code, status.message]));
    }
    span.into()
}

fn event(of: &span::Event) -> Json {
    let mut event = Map::new();
    put(&mut event, "time", of.time_unix_nano.into());
    put(&mut event, "name", of.name.as_str().into());
    put(&mut event, "attributes", attributes(&of.attributes));
    put(&mut event, "dropped", of.dropped_attributes_count.into());
    event.into()
}

fn link(of: &span::Link) -> Json {
    let mut link = Map::new();
    put(&mut link, "trace", hex(&of.trace_id).into());
    put(&mut link, "span", hex(&of.span_id).into());
    put(&mut link, "state", of.trace_state.as_str().into());
    put(&mut link, "attributes", attributes(&of.attributes));
    put(&mut link, "dropped", of.dropped_attributes_count.into());
    link.into()
}

/// Random numbers from a seed (splitmix64), and a few things made of them.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }

    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    pub(crate) fn many(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> Json) -> Json {
        let count = self.below(most + 1);
        (0..count).map(|_| one(self)).collect()
    }

    /// Any text, often one that means something.
    pub(crate) fn text(&mut self, known: &[&str]) -> String {
        let odd = ["", "a", "value", "ü", "\"quoted\\\"", "a|b", "line\nbreak", "200", "-7", "true", "1.5"];
        if self.one_in(2) { self.pick(known).into() } else { self.pick(&odd).into() }
    }

    /// Bytes changed, cut, doubled or put in.
    pub(crate) fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] = self.roll() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes.truncate(at),
                3 => bytes.insert(at, self.pick(&[0, 1, 0x7f, 0x80, 0xff])),
                _ => {
                    let part = bytes[at..(at + 9).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
    }
}
