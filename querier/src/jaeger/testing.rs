//! For tests: questions over given sources, and traces, read from OTLP/JSON or drawn at random with all that is odd in the world.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use serde_json::Value as Json;
use spanhouse_common::budget::Share;
use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::{Attribute, Event, Link, Resource, Scope, Span, Value};
use spanhouse_common::source::Snapshots;
use spanhouse_common::time::SystemClock;

use super::{JaegerDeps, JaegerSettings};
use crate::assemble::{ResourceGroup, ScopeGroup, Trace};
use crate::engine::Engine;
use crate::find_trace::QueryBounds;
use crate::metrics::QuerierMetrics;

/// The engine over these sources, without an archive, tenants or mending of clocks; traces up to 1 MiB, 1,000 a search.
pub(crate) fn deps(snapshots: Arc<dyn Snapshots>) -> JaegerDeps {
    let memory = Share::new("query", 384 << 20);
    JaegerDeps {
        engine: Arc::new(Engine::new(Arc::clone(&snapshots), memory.clone(), QueryBounds::default())),
        snapshots,
        clock: SystemClock::shared(),
        memory,
        metrics: QuerierMetrics::register(&mut Registry::default()),
        settings: JaegerSettings {
            multitenancy: false,
            bounds: QueryBounds::default(),
            max_trace_bytes: 1 << 20,
            max_limit: 1000,
            max_clock_skew_adjust: Duration::ZERO,
        },
        archive: None,
    }
}

/// Reads `{"resourceSpans":[..]}` as it stands, spans in their order. Panics on anything else.
pub(crate) fn trace_of_json(text: &str) -> Trace {
    let json: Json = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let groups = list(&json, "resourceSpans").map(|group| ResourceGroup {
        resource: Arc::new(Resource { attributes: attributes(&group["resource"]), ..Default::default() }),
        scopes: list(group, "scopeSpans")
            .map(|scope| ScopeGroup {
                scope: Arc::new(Scope {
                    name: string(&scope["scope"]["name"]),
                    version: string(&scope["scope"]["version"]),
                    attributes: attributes(&scope["scope"]),
                    ..Default::default()
                }),
                spans: list(scope, "spans").map(span).collect(),
            })
            .collect(),
    });
    Trace { groups: groups.collect() }
}

fn list<'j>(json: &'j Json, key: &str) -> impl Iterator<Item = &'j Json> {
    json[key].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn string(json: &Json) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

fn number(json: &Json) -> u64 {
    json.as_str().map_or_else(|| json.as_u64().unwrap_or_default(), |text| text.parse().unwrap())
}

fn hex(json: &Json) -> Vec<u8> {
    let text = json.as_str().unwrap_or_default();
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn span_id(json: &Json) -> Option<SpanId> {
    json.as_str().map(|text| SpanId(u64::from_str_radix(text, 16).unwrap().to_be_bytes()))
}

fn span(json: &Json) -> Span {
    Span {
        trace_id: json["traceId"].as_str().unwrap_or("1").parse::<TraceId>().unwrap(),
        span_id: span_id(&json["spanId"]).unwrap_or_default(),
        parent_span_id: span_id(&json["parentSpanId"]),
        trace_state: string(&json["traceState"]),
        flags: number(&json["flags"]) as u32,
        name: string(&json["name"]),
        kind: number(&json["kind"]) as i32,
        start_unix_nano: number(&json["startTimeUnixNano"]),
        end_unix_nano: number(&json["endTimeUnixNano"]),
        attributes: attributes(json),
        events: list(json, "events").map(event).collect(),
        links: list(json, "links").map(link).collect(),
        status_message: string(&json["status"]["message"]),
        status_code: number(&json["status"]["code"]) as i32,
        ..Default::default()
    }
}

fn event(json: &Json) -> Event {
    Event {
        time_unix_nano: number(&json["timeUnixNano"]),
        name: string(&json["name"]),
        attributes: attributes(json),
        ..Default::default()
    }
}

fn link(json: &Json) -> Link {
    Link {
        trace_id: hex(&json["traceId"]),
        span_id: hex(&json["spanId"]),
        trace_state: string(&json["traceState"]),
        attributes: attributes(json),
        ..Default::default()
    }
}

fn attributes(json: &Json) -> Vec<Attribute> {
    let pair = |pair: &Json| Attribute { key: string(&pair["key"]), value: value(&pair["value"]) };
    list(json, "attributes").map(pair).collect()
}

fn value(json: &Json) -> Value {
    let Some((kind, json)) = json.as_object().and_then(|object| object.iter().next()) else { return Value::Empty };
    match kind.as_str() {
        "stringValue" => Value::Str(string(json)),
        "boolValue" => Value::Bool(json.as_bool().unwrap()),
        "intValue" => Value::Int(json.as_str().map_or_else(|| json.as_i64().unwrap(), |text| text.parse().unwrap())),
        "doubleValue" => Value::Double(json.as_str().map_or_else(|| json.as_f64().unwrap(), |text| text.parse().unwrap())),
        "bytesValue" => Value::Bytes(BASE64.decode(json.as_str().unwrap()).unwrap()),
        "arrayValue" => Value::Array(list(json, "values").map(value).collect()),
        "kvlistValue" => {
            Value::Map(list(json, "values").map(|pair| (string(&pair["key"]), value(&pair["value"]))).collect())
        }
        other => panic!("no kind of value: {other}"),
    }
}

/// Keys that mean something somewhere, and one that does not.
const KEYS: [&str; 20] = [
    "error",
    "event",
    "ip",
    "peer.ipv4",
    "k",
    "span.kind",
    "service.name",
    "host.id",
    "host.ip",
    "host.name",
    "telemetry.sdk.name",
    "@jaeger@warnings",
    "opentracing.ref_type",
    "otel.status_code",
    "net.host.ip",
    "net.host.port",
    "peer.service",
    "net.peer.ip",
    "net.peer.port",
    "otel.zipkin.absentField.startTime",
];

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Empty),
        "[a-c<&\"\u{2028}]{0,3}".prop_map(Value::Str),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Double),
        Just(Value::Double(f64::NAN)),
        Just(Value::Double(f64::NEG_INFINITY)),
        any::<Vec<u8>>().prop_map(Value::Bytes),
        any::<Vec<u8>>().prop_map(Value::Raw),
        any::<Vec<u8>>().prop_map(Value::RawPair),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec(("[ab]{0,1}", inner), 0..4).prop_map(Value::Map),
        ]
    })
}

fn any_attributes() -> impl Strategy<Value = Vec<Attribute>> {
    let key = prop_oneof![3 => prop::sample::select(&KEYS[..]).prop_map(str::to_owned), 1 => "[a-c]{0,2}"];
    prop::collection::vec((key, any_value()).prop_map(|(key, value)| Attribute { key, value }), 0..5)
}

/// Few ids, so that they repeat, point at each other and at themselves.
fn any_span_id() -> impl Strategy<Value = SpanId> {
    (0u64..6).prop_map(|n| SpanId(n.to_be_bytes()))
}

fn any_time() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 1_000_000u64..1_000_500, 1 => Just(0), 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn any_event() -> impl Strategy<Value = Event> {
    (any_time(), "[a-c|]{0,4}", any_attributes()).prop_map(|(time_unix_nano, name, attributes)| Event {
        time_unix_nano,
        name,
        attributes,
        ..Default::default()
    })
}

fn any_link() -> impl Strategy<Value = Link> {
    let id = |most| prop::collection::vec(0u8..2, 0..most);
    (id(18), id(10), any_attributes()).prop_map(|(trace_id, span_id, attributes)| Link {
        trace_id,
        span_id,
        attributes,
        ..Default::default()
    })
}

fn any_span() -> impl Strategy<Value = Span> {
    let ids = (any_span_id(), prop::option::of(any_span_id()));
    let texts = ("[a-c<]{0,3}", "[a-c]{0,2}", "[a-c]{0,2}");
    let numbers = (0..8i32, 0..4i32, any::<u32>());
    let lists = (any_attributes(), prop::collection::vec(any_event(), 0..3), prop::collection::vec(any_link(), 0..3));
    (ids, texts, numbers, (any_time(), any_time()), lists).prop_map(
        |((span_id, parent_span_id), (name, trace_state, status_message), (kind, status_code, flags), times, lists)| Span {
            trace_id: TraceId(1u128.to_be_bytes()),
            span_id,
            parent_span_id,
            trace_state,
            flags,
            name,
            kind,
            start_unix_nano: times.0,
            end_unix_nano: times.1,
            attributes: lists.0,
            events: lists.1,
            links: lists.2,
            status_message,
            status_code,
            ..Default::default()
        },
    )
}

/// A trace with at least one span.
pub(crate) fn any_trace() -> impl Strategy<Value = Trace> {
    let scope = ("[ab]{0,1}", "[ab]{0,1}", any_attributes(), prop::collection::vec(any_span(), 1..5)).prop_map(
        |(name, version, attributes, spans)| ScopeGroup {
            scope: Arc::new(Scope { name, version, attributes, ..Default::default() }),
            spans,
        },
    );
    let group = (any_attributes(), prop::collection::vec(scope, 1..3)).prop_map(|(attributes, scopes)| ResourceGroup {
        resource: Arc::new(Resource { attributes, ..Default::default() }),
        scopes,
    });
    prop::collection::vec(group, 1..4).prop_map(|groups| Trace { groups })
}
