//! The files of `tests/jaeger`: traces in OTLP/JSON and searches over them, moved from the day they were written for to yesterday.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value as Json;
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_common::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use spanhouse_proto::otlp_resource::Resource;
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span, Status, span};

use crate::harness::otlp::now;

const DAY: u64 = 86_400_000_000_000;
/// Midnight of 2017-01-26, the day of the files.
const WRITTEN_FOR: u64 = 1_485_388_800_000_000_000;

/// A search, and the traces it finds.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) caption: String,
    pub(super) service: String,
    pub(super) operation: String,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) start_min: u64,
    pub(super) start_max: u64,
    pub(super) duration_min: u64,
    pub(super) duration_max: u64,
    pub(super) limit: i32,
    /// Names of files.
    pub(super) expect: Vec<String>,
}

/// What the files say, with times of yesterday and the day before.
#[derive(Debug)]
pub(super) struct Suite {
    pub(super) traces: BTreeMap<String, Vec<ResourceSpans>>,
    pub(super) cases: Vec<Case>,
}

impl Suite {
    pub(super) fn read() -> Self {
        let moved = now() / DAY * DAY - DAY - WRITTEN_FOR;
        let reader = Reader { moved };
        let traces = files("traces").map(|(name, json)| (name, reader.groups(&json))).collect();
        Self { traces, cases: files("queries").map(|(_, json)| reader.case(&json)).collect() }
    }

    pub(super) fn trace(&self, name: &str) -> &[ResourceSpans] {
        self.traces.get(name).unwrap_or_else(|| panic!("no trace {name}"))
    }
}

fn files(folder: &str) -> impl Iterator<Item = (String, Json)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/jaeger").join(folder);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{}", folder.display());
    paths.into_iter().map(|path| {
        let text = fs::read_to_string(&path).expect("text");
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.file_stem().expect("a name").to_string_lossy().into_owned(), json)
    })
}

struct Reader {
    /// Added to every time.
    moved: u64,
}

impl Reader {
    fn case(&self, json: &Json) -> Case {
        let query = &json["query"];
        let number = |name: &str| query[name].as_str().map_or(0, |text| text.parse().expect("a number"));
        Case {
            caption: text(&json["caption"]),
            service: text(&query["service"]),
            operation: text(&query["operation"]),
            attributes: attributes(&query["attributes"]),
            start_min: self.time(&query["start_min"]),
            start_max: self.time(&query["start_max"]),
            duration_min: number("duration_min"),
            duration_max: number("duration_max"),
            limit: query["limit"].as_i64().expect("a limit") as i32,
            expect: list(&json["expect"]).map(text).collect(),
        }
    }

    fn time(&self, json: &Json) -> u64 {
        json.as_str().expect("a time").parse::<u64>().expect("nanoseconds") + self.moved
    }

    fn groups(&self, json: &Json) -> Vec<ResourceSpans> {
        let group = |json: &Json| ResourceSpans {
            resource: Some(Resource { attributes: attributes(&json["resource"]["attributes"]), ..Resource::default() }),
            scope_spans: list(&json["scopeSpans"]).map(|json| self.scope(json)).collect(),
            ..ResourceSpans::default()
        };
        list(&json["resourceSpans"]).map(group).collect()
    }

    fn scope(&self, json: &Json) -> ScopeSpans {
        let scope = &json["scope"];
        ScopeSpans {
            scope: Some(InstrumentationScope {
                name: text(&scope["name"]),
                version: text(&scope["version"]),
                attributes: attributes(&scope["attributes"]),
                ..InstrumentationScope::default()
            }),
            spans: list(&json["spans"]).map(|json| self.span(json)).collect(),
            ..ScopeSpans::default()
        }
    }

    fn span(&self, json: &Json) -> Span {
        let event = |json: &Json| span::Event {
            time_unix_nano: self.time(&json["timeUnixNano"]),
            name: text(&json["name"]),
            attributes: attributes(&json["attributes"]),
            ..span::Event::default()
        };
        let link = |json: &Json| span::Link {
            trace_id: id(&json["traceId"]),
            span_id: id(&json["spanId"]),
            attributes: attributes(&json["attributes"]),
            ..span::Link::default()
        };
        let status = &json["status"];
        Span {
            trace_id: id(&json["traceId"]),
            span_id: id(&json["spanId"]),
            trace_state: text(&json["traceState"]),
            parent_span_id: id(&json["parentSpanId"]),
            name: text(&json["name"]),
            kind: json["kind"].as_i64().unwrap_or_default() as i32,
            start_time_unix_nano: self.time(&json["startTimeUnixNano"]),
            end_time_unix_nano: self.time(&json["endTimeUnixNano"]),
            attributes: attributes(&json["attributes"]),
            events: list(&json["events"]).map(event).collect(),
            links: list(&json["links"]).map(link).collect(),
            status: Some(Status {
                message: text(&status["message"]),
                code: status["code"].as_i64().unwrap_or_default() as i32,
            }),
            ..Span::default()
        }
    }
}

fn list(json: &Json) -> impl Iterator<Item = &Json> {
    json.as_array().map_or(&[][..], Vec::as_slice).iter()
}

fn text(json: &Json) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

fn id(json: &Json) -> Vec<u8> {
    let digits = text(json);
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex")).collect()
}

fn attributes(json: &Json) -> Vec<KeyValue> {
    let pair = |json: &Json| KeyValue {
        key: text(&json["key"]),
        value: Some(AnyValue { value: Some(value(&json["value"])) }),
        ..KeyValue::default()
    };
    list(json).map(pair).collect()
}

fn value(json: &Json) -> Value {
    let (kind, value) = json.as_object().and_then(|object| object.iter().next()).expect("a value");
    match kind.as_str() {
        "stringValue" => Value::StringValue(text(value)),
        "boolValue" => Value::BoolValue(value.as_bool().expect("a bool")),
        "intValue" => Value::IntValue(text(value).parse().expect("an integer")),
        "doubleValue" => Value::DoubleValue(value.as_f64().expect("a number")),
        "bytesValue" => Value::BytesValue(BASE64.decode(text(value)).expect("base64")),
        "arrayValue" => {
            let values = list(&value["values"]).map(|json| AnyValue { value: Some(self::value(json)) }).collect();
            Value::ArrayValue(ArrayValue { values })
        }
        other => panic!("no kind of value: {other}"),
    }
}

/// The text of a value, as interfaces that know only texts ask for it.
pub(super) fn value_text(pair: &KeyValue) -> String {
    match pair.value.as_ref().and_then(|value| value.value.as_ref()).expect("a value") {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        Value::DoubleValue(value) => value.to_string(),
        other => panic!("no search has {other:?}"),
    }
}

/// A span with all it belongs to, in a form that does not depend on grouping or on the order of attributes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Flat {
    pub(super) span: Span,
    resource: Resource,
    scope: InstrumentationScope,
}

/// All spans by trace, id and start.
pub(super) fn flat(groups: &[ResourceSpans]) -> Vec<Flat> {
    let mut all: Vec<Flat> = groups
        .iter()
        .flat_map(|group| group.scope_spans.iter().map(move |scope| (group, scope)))
        .flat_map(|(group, scope)| scope.spans.iter().map(move |span| (group, scope, span)))
        .map(|(group, scope, span)| {
            let mut flat = Flat {
                span: span.clone(),
                resource: group.resource.clone().unwrap_or_default(),
                scope: scope.scope.clone().unwrap_or_default(),
            };
            sort(&mut flat.resource.attributes);
            sort(&mut flat.scope.attributes);
            sort(&mut flat.span.attributes);
            flat.span.events.iter_mut().for_each(|event| sort(&mut event.attributes));
            flat.span.links.iter_mut().for_each(|link| sort(&mut link.attributes));
            flat.span.status.get_or_insert_default();
            flat
        })
        .collect();
    all.sort_by(|a, b| {
        let key = |flat: &Flat| {
            let span = &flat.span;
            (span.trace_id.clone(), span.span_id.clone(), span.start_time_unix_nano, span.end_time_unix_nano)
        };
        key(a).cmp(&key(b))
    });
    all
}

fn sort(attributes: &mut [KeyValue]) {
    attributes.sort_by(|a, b| a.key.cmp(&b.key));
}
