//! What Zipkin sends comes back as it was sent; what OpenTelemetry sends looks as its collector writes it; what is asked is understood.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use spanhouse_common::id::TraceId;
use spanhouse_common::model::{Attribute, Event, Link, Resource, Scope, Span, Value};
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::query::{AnnotationQuery, Params, TracesQuery, spans_query, trace_id, trace_ids};
use crate::assemble::{ResourceGroup, ScopeGroup, Trace};
use crate::jaeger::testing::{any_trace, trace_of_json};

fn shown(trace: &Trace) -> String {
    let mut out = String::new();
    super::json::write_trace(trace, &mut out);
    out
}

/// One file a case in `cases/`: a line of prose, a trace in OTLP/JSON under `== otlp`, and under `== zipkin` its spans, one a line.
#[test]
fn cases() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/zipkin/cases");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (head, rest) = text.split_once("\n== otlp\n").unwrap();
        let (otlp, expected) = rest.split_once("\n== zipkin\n").unwrap();
        let got = shown(&trace_of_json(otlp));
        let lines = got.replace("},{\"traceId\"", "},\n{\"traceId\"");
        if std::env::var_os("UPDATE_CASES").is_some() {
            std::fs::write(&file, format!("{head}\n== otlp\n{otlp}\n== zipkin\n{lines}\n")).unwrap();
        } else {
            assert_eq!(lines, expected.trim_end(), "{}", file.display());
        }
    }
}

/// A span as a reporter of Zipkin sends it.
#[derive(Debug, Clone)]
struct Sent {
    trace_id: u128,
    id: u64,
    parent: Option<u64>,
    kind: Option<i32>,
    name: String,
    timestamp: u64,
    duration: u64,
    local: SentEndpoint,
    remote: SentEndpoint,
    annotations: Vec<(u64, String)>,
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct SentEndpoint {
    service: String,
    ip: Option<std::net::IpAddr>,
    port: u16,
}

const KINDS: [(i32, &str); 4] = [(2, "SERVER"), (3, "CLIENT"), (4, "PRODUCER"), (5, "CONSUMER")];

impl SentEndpoint {
    fn json(&self) -> Option<Json> {
        let mut json = serde_json::Map::new();
        if !self.service.is_empty() {
            json.insert("serviceName".into(), self.service.as_str().into());
        }
        if let Some(ip) = self.ip {
            json.insert(if ip.is_ipv4() { "ipv4" } else { "ipv6" }.into(), ip.to_string().into());
        }
        if self.port != 0 {
            json.insert("port".into(), self.port.into());
        }
        (!json.is_empty()).then(|| json.into())
    }
}

impl Sent {
    /// What is posted.
    fn json(&self) -> Json {
        let id = match u64::try_from(self.trace_id) {
            Ok(low) => format!("{low:016x}"),
            Err(_) => format!("{:032x}", self.trace_id),
        };
        let mut json = json!({ "traceId": id, "id": format!("{:016x}", self.id) });
        let fields = [
            ("parentId", self.parent.map(|parent| format!("{parent:016x}").into())),
            (
                "kind",
                self.kind.and_then(|kind| KINDS.iter().find(|(number, _)| *number == kind)).map(|(_, word)| (*word).into()),
            ),
            ("name", Some(self.name.as_str()).filter(|name| !name.is_empty()).map(Json::from)),
            ("timestamp", Some(self.timestamp).filter(|at| *at != 0).map(Json::from)),
            ("duration", Some(self.duration).filter(|micros| *micros != 0).map(Json::from)),
            ("localEndpoint", self.local.json()),
            ("remoteEndpoint", self.remote.json()),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                json[name] = value;
            }
        }
        if !self.annotations.is_empty() {
            let one = |(at, value): &(u64, String)| json!({ "timestamp": at, "value": value });
            json["annotations"] = self.annotations.iter().map(one).collect();
        }
        if !self.tags.is_empty() {
            json["tags"] = json!(self.tags);
        }
        json
    }

    /// How it is stored: the rules of the reference for spans that come from Zipkin, written down again.
    fn stored(&self) -> (Resource, Scope, Span) {
        let text = |key: &str, text: &str| Attribute { key: key.into(), value: Value::Str(text.into()) };
        let (mut resource, mut scope) = (Resource::default(), Scope::default());
        let mut span = Span {
            trace_id: TraceId(self.trace_id.to_be_bytes()),
            span_id: spanhouse_common::id::SpanId(self.id.to_be_bytes()),
            parent_span_id: self.parent.map(|id| spanhouse_common::id::SpanId(id.to_be_bytes())),
            name: self.name.clone(),
            kind: self.kind.unwrap_or_default(),
            start_unix_nano: self.timestamp * 1_000,
            end_unix_nano: (self.timestamp + self.duration) * 1_000,
            ..Span::default()
        };
        if !self.local.service.is_empty() {
            resource.attributes.push(text("service.name", &self.local.service));
        }
        if !self.remote.service.is_empty() {
            span.attributes.push(text("peer.service", &self.remote.service));
        }
        for (endpoint, side) in [(&self.local, "host"), (&self.remote, "peer")] {
            span.attributes.extend(endpoint.ip.map(|ip| text(&format!("net.{side}.ip"), &ip.to_string())));
            if endpoint.port != 0 {
                let value = Value::Int(endpoint.port.into());
                span.attributes.push(Attribute { key: format!("net.{side}.port"), value });
            }
        }
        for (key, value) in &self.tags {
            match key.as_str() {
                "error" => {
                    span.status_code = 2;
                    if value != "true" {
                        span.attributes.push(text(key, value));
                    }
                }
                "otel.library.name" => scope.name.clone_from(value),
                "otel.library.version" => scope.version.clone_from(value),
                "w3c.tracestate" => span.trace_state.clone_from(value),
                "span.kind" if self.kind.is_none() => span.kind = 1,
                _ if key.starts_with("host.") || key.starts_with("k8s.") => resource.attributes.push(text(key, value)),
                _ => span.attributes.push(text(key, value)),
            }
        }
        if self.timestamp == 0 {
            span.attributes.push(Attribute { key: "otel.zipkin.absentField.startTime".into(), value: Value::Bool(true) });
        }
        for (at, value) in &self.annotations {
            let mut event = Event { time_unix_nano: at * 1_000, ..Event::default() };
            match value.split_once('|') {
                Some((name, _)) => {
                    event.name = name.into();
                    event.attributes.push(text("otel.zipkin.annotation", value));
                }
                None => event.name.clone_from(value),
            }
            span.events.push(event);
        }
        (resource, scope, span)
    }
}

fn any_endpoint() -> impl Strategy<Value = SentEndpoint> {
    let ip = prop_oneof![
        Just(None),
        any::<std::net::Ipv4Addr>().prop_map(|ip| Some(ip.into())),
        any::<std::net::Ipv6Addr>().prop_map(|ip| Some(ip.into())),
    ];
    ("[a-z]{0,3}", ip, prop_oneof![Just(0u16), any::<u16>()]).prop_map(|(service, ip, port)| SentEndpoint {
        service,
        ip,
        port,
    })
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let key = prop_oneof![
        Just("error"),
        Just("otel.library.version"),
        Just("w3c.tracestate"),
        Just("host.name"),
        Just("k8s.pod.name"),
        Just("http.path"),
        Just("http.status_code"),
        Just("sql.query"),
    ];
    // An error that came with no word at all is a failure all the same.
    let tags = prop::collection::btree_map(key.prop_map(str::to_owned), "[a-z<\"0-9]{1,5}", 0..5);
    let trace_id = prop_oneof![1..u128::from(u64::MAX), 1..u128::MAX];
    let ids =
        (trace_id, 1..u64::MAX, prop::option::of(1..u64::MAX), prop::option::of(prop::sample::select(&[2, 3, 4, 5][..])));
    let time = 0u64..2_000_000_000_000_000;
    let annotations = prop::collection::vec((time.clone(), "[a-z|\u{2028}]{1,4}"), 0..3);
    (ids, "[a-z /]{0,5}", time, 0u64..9_000_000, (any_endpoint(), any_endpoint()), annotations, tags).prop_map(
        |((trace_id, id, parent, kind), name, timestamp, duration, (local, remote), annotations, mut tags)| {
            if kind.is_none() && id % 2 == 0 {
                tags.insert("span.kind".into(), "internal".into());
            }
            Sent { trace_id, id, parent, kind, name, timestamp, duration, local, remote, annotations, tags }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn what_zipkin_sends_comes_back(sent in any_sent()) {
        let (resource, scope, span) = sent.stored();
        let scopes = vec![ScopeGroup { scope: Arc::new(scope), spans: vec![span] }];
        let trace = Trace { groups: vec![ResourceGroup { resource: Arc::new(resource), scopes }] };
        let back: Json = serde_json::from_str(&shown(&trace)).unwrap();
        prop_assert_eq!(back, json!([sent.json()]));
    }

    /// Whatever is stored, the answer is spans as Zipkin's model has them.
    #[test]
    fn any_trace_is_shown(trace in any_trace()) {
        let text = shown(&trace);
        let spans: Vec<Json> = serde_json::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
        prop_assert_eq!(spans.len(), trace.spans().count());
        for span in &spans {
            prop_assert_eq!(span["id"].as_str().unwrap().len(), 16);
            prop_assert!(span["tags"].as_object().is_none_or(|tags| tags.values().all(Json::is_string)));
            prop_assert!(span.get("duration").is_none_or(|micros| micros.as_u64().unwrap() > 0));
        }
    }
}

#[test]
fn links_and_attributes_of_events_are_written_as_the_collector_does() {
    let attribute = |key: &str, value| Attribute { key: key.into(), value };
    let link = Link {
        trace_id: vec![0xab; 16],
        span_id: vec![0xcd; 8],
        trace_state: "a=b".into(),
        attributes: vec![attribute("z", Value::Int(1)), attribute("a", Value::Str("<".into()))],
        dropped_attributes_count: 3,
        ..Link::default()
    };
    let event = Event {
        time_unix_nano: 5_000,
        name: "e".into(),
        attributes: vec![attribute("k", Value::Bool(true))],
        ..Event::default()
    };
    let span = Span { events: vec![event], links: vec![link], ..Span::default() };
    let scopes = vec![ScopeGroup { scope: Arc::default(), spans: vec![span] }];
    let trace = Trace { groups: vec![ResourceGroup { resource: Arc::default(), scopes }] };
    let spans: Json = serde_json::from_str(&shown(&trace)).unwrap();
    let link = format!("{}|{}|a=b|{{\"a\":\"<\",\"z\":1}}|3", "ab".repeat(16), "cd".repeat(8));
    assert_eq!(spans[0]["tags"]["otlp.link.0"], link);
    assert_eq!(spans[0]["annotations"], json!([{ "timestamp": 5, "value": "e|{\"k\":true}|0" }]));
}

fn params(query: &str) -> Params {
    let pair = |pair: &str| pair.split_once(':').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap();
    Params(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
}

fn asked(query: &str) -> Result<TracesQuery, String> {
    let now = UnixNanos::from_seconds(1_000_000);
    TracesQuery::of(&params(query), now, Duration::from_hours(24), 1_000).map_err(|error| error.to_string())
}

#[test]
fn parameters_of_traces() {
    let query = asked("").unwrap();
    assert_eq!(query.limit, 10);
    assert_eq!(query.window.max, UnixNanos(1_000_000_000_000_999));
    assert_eq!(query.window.min, UnixNanos::from_seconds(1_000_000 - 86_400));
    let query = asked("serviceName:a&spanName:ALL&endTs:2000&lookback:500&minDuration:5&maxDuration:7&limit:9999").unwrap();
    assert_eq!(query.window, TimeRange { min: UnixNanos(1_500_000_000), max: UnixNanos(2_000_000_999) });
    assert_eq!((query.span_name, query.min_duration, query.max_duration, query.limit), (None, Some(5), Some(7), 1_000));
    for (text, why) in [
        ("endTs:0", "endTs <= 0"),
        ("lookback:-1", "lookback <= 0"),
        ("limit:0", "limit <= 0"),
        ("minDuration:0", "minDuration <= 0"),
        ("minDuration:5&maxDuration:4", "maxDuration < minDuration"),
        ("minDuration:5&maxDuration:-4", "maxDuration < minDuration"),
        ("maxDuration:4", "maxDuration is only valid with minDuration"),
        ("limit:x", "parameter limit must be a whole number, not \"x\""),
        ("endTs:99999999999999999999", "parameter endTs must be a whole number, not \"99999999999999999999\""),
    ] {
        assert_eq!(asked(text).unwrap_err(), why, "{text}");
    }
}

#[test]
fn annotation_queries() {
    let all = |text: &str| asked(&format!("annotationQuery:{text}")).unwrap().annotations;
    let one = |key: &str, value: Option<&str>| AnnotationQuery { key: key.into(), value: value.map(str::to_owned) };
    assert_eq!(all("http.method=GET and error"), [one("http.method", Some("GET")), one("error", None)]);
    assert_eq!(all(" a = b=c  and  and d"), [one("a", Some("b=c")), one("d", None)]);
    // A value is more than none, and the last value counts.
    assert_eq!(all("a=1 and a and a=2"), [one("a", Some("2"))]);
    assert_eq!(all("=x"), []);
    let many: Vec<String> = (0..101).map(|n| format!("k{n}")).collect();
    assert!(asked(&format!("annotationQuery:{}", many.join(" and "))).is_err());
}

#[test]
fn searches_as_traceql() {
    let query = |text: &str| {
        let asked = asked(text).unwrap();
        let names = |name: &Option<String>| name.iter().cloned().collect::<Vec<_>>();
        spans_query(&asked, &names(&asked.service), &names(&asked.span_name)).to_string()
    };
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/zipkin/searches.txt");
    let update = std::env::var_os("UPDATE_CASES").is_some();
    let mut updated = String::new();
    for line in std::fs::read_to_string(&file).unwrap().lines() {
        let Some((asked, expected)) = line.split_once(" => ").filter(|_| !line.starts_with('#')) else {
            updated.push_str(&format!("{line}\n"));
            continue;
        };
        let got = query(asked.trim().trim_start_matches('-'));
        assert!(update || got == expected, "{asked}\n   got {got}\nmeant {expected}");
        updated.push_str(&format!("{asked} => {got}\n"));
    }
    if update {
        std::fs::write(&file, updated).unwrap();
    }
}

#[test]
fn ids_as_zipkin_takes_them() {
    assert_eq!(trace_id(" aBc ").unwrap().to_string(), "00000000000000000000000000000abc");
    let why = |text: &str| trace_id(text).unwrap_err().to_string();
    assert_eq!(why(""), "traceId is empty");
    assert_eq!(why(&"a".repeat(33)), "traceId.length > 32");
    assert_eq!(why("0e8b46e1-81b"), "0e8b46e1-81b should be lower-hex encoded with no prefix");
    assert_eq!(why("0000"), "traceId is all zeros");
    let many = |text: &str| trace_ids(&params(&format!("traceIds:{text}"))).map_err(|error| error.to_string());
    assert_eq!(many("1,2").unwrap().len(), 2);
    assert_eq!(many("").unwrap_err(), "traceIds parameter is empty");
    assert_eq!(many("1").unwrap_err(), "Use /api/v2/trace/{traceId} endpoint to retrieve a single trace");
    assert_eq!(many("1,02,2").unwrap_err(), "redundant traceId: 2");
    assert!(many("1,x").is_err());
}
