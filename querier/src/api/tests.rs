//! Requests against the router: bodies to the byte, texts, tenants, limits and failures.

use std::io::Read as _;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request};
use prometheus_client::registry::Registry;
use prost::Message as _;
use spanhouse_common::id::TenantId;
use spanhouse_common::model::{Attribute, EntityRef, Link, Resource, Scope, Span, StoredSpan, Value};
use spanhouse_common::source::SourceError;
use spanhouse_common::time::{ManualClock, TimeRange, UnixNanos};
use spanhouse_proto::tempopb;
use tower::ServiceExt as _;

use super::*;
use crate::test_util::{FakeEngine, FakeSnapshots, FakeSource, attribute, example, resource, span, stored, stored_by};

const ID: &str = "000102030405060708090a0b0c0d0e0f";
const EXAMPLE: &str = concat!(
    r#"[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"#,
    r#""scopeSpans":[{"scope":{"name":"lib","version":"1"},"spans":[{"traceId":"AAECAwQFBgcICQoLDA0ODw==","spanId":"AAECAwQFBgc=","#,
    r#""parentSpanId":"CAkKCwwNDg8=","name":"GET /cart","kind":"SPAN_KIND_SERVER","startTimeUnixNano":"1700000000000000000","#,
    r#""endTimeUnixNano":"1700000000250000000","attributes":[{"key":"http.status_code","value":{"intValue":"200"}}],"#,
    r#""events":[{"timeUnixNano":"1700000000100000000","name":"exception"}],"#,
    r#""status":{"message":"x","code":"STATUS_CODE_ERROR"}}]}]}]"#
);

pub(super) mod cases;
mod contract;
mod delete;

pub(super) fn deps(snapshots: Arc<FakeSnapshots>) -> ApiDeps {
    ApiDeps {
        snapshots,
        engine: Arc::new(FakeEngine::default()),
        clock: ManualClock::at(UnixNanos::from_seconds(1_700_000_000)),
        memory: Share::new("queries", 384 << 20),
        metrics: QuerierMetrics::register(&mut Registry::default()),
        settings: ApiSettings::default(),
        prefix: "".into(),
        status: StatusDeps {
            build: BuildInfo { version: "0.1.0".into(), revision: "abc".into(), ..BuildInfo::default() },
            ready: Arc::new(|| Err("Ingester not ready: replaying\n".into())),
            config: Arc::new(|| "a: 1\n".into()),
            services: Arc::new(|| vec![ServiceStatus { name: "querier".into(), state: "Running".into() }]),
            limits: Arc::new(|tenant| tenant.map_or("defaults:\n  a: 1\n".into(), |tenant| format!("of: {tenant}\n"))),
            compactor: Arc::new(|| "running: nothing\n".into()),
            metrics: Arc::new(|| "# EOF\n".into()),
        },
        deletions: None,
    }
}

/// The same, with another engine.
pub(super) fn deps_with(engine: FakeEngine) -> ApiDeps {
    ApiDeps { engine: Arc::new(engine), ..deps(FakeSnapshots::of(Vec::new())) }
}

pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    pub(super) fn bytes(&self) -> Bytes {
        self.body.clone()
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

pub(super) async fn ask(deps: &ApiDeps, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    send(deps, request.body(Body::empty()).unwrap()).await
}

pub(super) async fn send(deps: &ApiDeps, request: Request<Body>) -> Answer {
    let response = router(deps.clone()).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

async fn check(deps: &ApiDeps, path: &str, status: u16, body: &str) {
    let answer = ask(deps, path, &[]).await;
    assert_eq!((answer.status, answer.text()), (status, body), "{path}");
}

fn shop() -> ApiDeps {
    deps(FakeSnapshots::of(vec![FakeSource::block("b1", vec![example()])]))
}

#[tokio::test]
async fn json_is_the_reference_example() {
    let deps = shop();
    check(&deps, &format!("/api/traces/{ID}"), 200, &format!(r#"{{"batches":{EXAMPLE}}}"#)).await;
    // 1 to 32 digits of either case.
    check(&deps, "/api/traces/102030405060708090A0b0c0d0e0f", 200, &format!(r#"{{"batches":{EXAMPLE}}}"#)).await;
    let v2 = format!(r#"{{"trace":{{"resourceSpans":{EXAMPLE}}},"metrics":{{"inspectedBytes":"100"}}}}"#);
    check(&deps, &format!("/api/v2/traces/{ID}"), 200, &v2).await;
    check(&deps, &format!("/api/v2/traces/{ID}?q=%7B%20%7D&unknown=1&start="), 200, &v2).await;
    let answer = ask(&deps, &format!("/api/traces/{ID}"), &[]).await;
    assert_eq!((answer.header("content-type"), answer.header("vary")), ("application/json", "Accept-Encoding"));
}

#[tokio::test]
async fn json_of_everything_else() {
    let map = Value::Map(vec![("k".into(), Value::Bool(false)), ("k".into(), Value::Map(vec![]))]);
    let one = Span {
        trace_state: "a=b".into(),
        flags: 257,
        name: "<&>".into(),
        kind: 9,
        attributes: vec![
            attribute("a", Value::Array(vec![])),
            attribute("b", Value::Bytes(vec![])),
            attribute("d", Value::Double(0.0)),
            attribute("e", Value::Empty),
            attribute("i", Value::Int(0)),
            attribute("m", map),
            attribute("p", Value::RawPair(vec![0x0a, 1, b'p', 0x18, 7])),
            attribute("r", Value::Raw(vec![0x40, 5])),
            attribute("", Value::Str(String::new())),
        ],
        dropped_attributes_count: 1,
        dropped_events_count: 2,
        links: vec![Link { trace_id: vec![1], flags: 3, ..Link::default() }],
        dropped_links_count: 3,
        ..span(1, 0, 0)
    };
    let entity = EntityRef { schema_url: "s".into(), r#type: "t".into(), id_keys: vec!["i".into()], ..EntityRef::default() };
    let resource = Resource { entity_refs: vec![entity], schema_url: "u".into(), ..resource("shop") };
    let scope = Scope { dropped_attributes_count: 4, schema_url: "v".into(), ..Scope::default() };
    let deps = deps(FakeSnapshots::of(vec![FakeSource::live(vec![stored_by(one, resource, scope)])]));
    let expected = concat!(
        r#"{"batches":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}],"#,
        r#""entityRefs":[{"schemaUrl":"s","type":"t","idKeys":["i"]}]},"#,
        r#""scopeSpans":[{"scope":{"droppedAttributesCount":4},"spans":[{"traceId":"AAECAwQFBgcICQoLDA0ODw==","#,
        r#""spanId":"AAAAAAAAAAE=","traceState":"a=b","flags":257,"name":"\u003c\u0026\u003e","kind":9,"endTimeUnixNano":"10","#,
        r#""attributes":[{"key":"a","value":{"arrayValue":{}}},{"key":"b","value":{"bytesValue":""}},"#,
        r#"{"key":"d","value":{"doubleValue":0}},{"key":"e","value":{}},{"key":"i","value":{"intValue":"0"}},"#,
        r#"{"key":"m","value":{"kvlistValue":{"values":[{"key":"k","value":{"boolValue":false}},"#,
        r#"{"key":"k","value":{"kvlistValue":{}}}]}}},{"key":"p","keyStrindex":7},"#,
        r#"{"key":"r","value":{"stringValueStrindex":5}},{"value":{"stringValue":""}}],"#,
        r#""droppedAttributesCount":1,"droppedEventsCount":2,"links":[{"traceId":"AQ==","flags":3}],"droppedLinksCount":3,"#,
        r#""status":{}}],"schemaUrl":"v"}],"schemaUrl":"u"}]}"#
    );
    check(&deps, &format!("/api/traces/{ID}"), 200, expected).await;
}

#[tokio::test]
async fn accept_is_read_by_substring() {
    let deps = shop();
    let form = async |path: &str, accept: &str| {
        let answer = ask(&deps, &format!("{path}/{ID}"), &[("accept", accept)]).await;
        answer.header("content-type").to_owned()
    };
    assert_eq!(form("/api/traces", "application/json;q=1, application/protobuf;q=0").await, "application/protobuf");
    assert_eq!(form("/api/traces", "text/html").await, "application/json");
    assert_eq!(form("/api/traces", "application/vnd.grafana.llm+json").await, "application/vnd.grafana.llm");
    assert_eq!(form("/api/v2/traces", "application/vnd.grafana.llm").await, "application/vnd.grafana.llm+json");
    assert_eq!(form("/api/v2/traces", "application/vnd.grafana.llm, application/json").await, "application/json");

    let answer = ask(&deps, &format!("/api/traces/{ID}"), &[("accept", "application/protobuf")]).await;
    let v1 = tempopb::Trace::decode(answer.body).unwrap();
    let answer = ask(&deps, &format!("/api/v2/traces/{ID}"), &[("accept", "application/protobuf")]).await;
    let v2 = tempopb::TraceByIdResponse::decode(answer.body).unwrap();
    assert_eq!(v2.trace.unwrap(), v1);
    let span = &v1.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!((span.name.as_str(), span.parent_span_id.len()), ("GET /cart", 8));
}

#[tokio::test]
async fn the_form_for_language_models() {
    let answer = ask(&shop(), &format!("/api/v2/traces/{ID}"), &[("accept", "application/vnd.grafana.llm")]).await;
    let expected = concat!(
        r#"{"trace":{"traceId":"000102030405060708090a0b0c0d0e0f","services":[{"serviceName":"shop","scopes":[{"name":"lib","#,
        r#""version":"1","spans":[{"spanId":"0001020304050607","name":"GET /cart","parentSpanId":"08090a0b0c0d0e0f","#,
        r#""kind":"SPAN_KIND_SERVER","startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000250000000","#,
        r#""durationMs":250,"attributes":{"http.status_code":200},"events":[{"name":"exception","#,
        r#""timeUnixNano":"1700000000100000000"}],"status":{"code":"STATUS_CODE_ERROR","message":"x"}}]}]}]},"#,
        r#""metrics":{"inspectedBytes":100},"status":"COMPLETE"}"#
    );
    assert_eq!(answer.text(), expected);
}

#[tokio::test]
async fn unknown_traces() {
    let deps = shop();
    let v1 = ask(&deps, "/api/traces/1", &[]).await;
    assert_eq!((v1.status, v1.text(), v1.header("content-type")), (404, "", ""));
    check(&deps, "/api/v2/traces/1", 200, r#"{"trace":{},"metrics":{}}"#).await;
    let v2 = ask(&deps, "/api/v2/traces/1", &[("accept", "application/protobuf")]).await;
    assert_eq!(v2.body.as_ref(), [0x0a, 0, 0x12, 0]);
    assert_eq!(ask(&deps, "/api/v2/traces/1", &[("accept", "application/vnd.grafana.llm")]).await.text(), "{}");
}

#[tokio::test]
async fn bad_parameters_are_told_as_tempo_does() {
    let deps = shop();
    let bad = [
        ("xyz", "trace IDs can only contain hex characters: invalid character 'x' at position 1"),
        ("000000000000000000000000000000001", "trace IDs can't be larger than 128 bits"),
        ("1?start=a", "invalid start: strconv.ParseInt: parsing \"a\": invalid syntax"),
        (
            "1?end=99999999999999999999",
            "invalid end: strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
        ),
        ("1?start=2&end=2", "http parameter start must be before end. received start=2 end=2"),
        ("1?mode=x", "invalid value for mode x"),
        ("1?blockStart=x", "invalid value for blockstart: invalid UUID length: 1"),
        ("1?blockEnd=0000000000000000000000000000000z", "invalid value for blockEnd: invalid UUID format"),
    ];
    for (path, body) in bad {
        for version in ["", "/v2"] {
            check(&deps, &format!("/api{version}/traces/{path}"), 400, body).await;
        }
    }
    check(&deps, "/api/traces/1?mode=external", 500, "external mode is not enabled\n").await;
    let only_v2 = [
        (
            "q=%7B.a",
            "invalid TraceQL filter: failed to parse TraceQL spanset filter: parse error at line 1, col 4: syntax error: \
             unexpected $end, expecting }",
        ),
        ("q=%7B%7D%7Crate()", "invalid TraceQL filter: only a single TraceQL filter is supported: {}|rate()"),
        ("q=%7B%7D%26%26%7B%7D", "invalid TraceQL filter: only a single TraceQL filter is supported: {}&&{}"),
        (
            "q=%7Bname=%22a%22%26%26trace:rootName=%22b%22%7D",
            "invalid TraceQL filter: intrinsic is not supported by this filter: rootName",
        ),
        ("match_depth=-2", "invalid value for match_depth: must be >= -1"),
        ("keep_hierarchy=x", "invalid value for keep_hierarchy: strconv.ParseBool: parsing \"x\": invalid syntax"),
        ("keep_hierarchy=1&match_depth=x", "invalid value for match_depth: strconv.Atoi: parsing \"x\": invalid syntax"),
        ("keep_hierarchy=1&ancestor_depth=-2", "invalid value for ancestor_depth: must be >= -1"),
    ];
    for (parameters, body) in only_v2 {
        check(&deps, &format!("/api/v2/traces/1?{parameters}"), 400, body).await;
    }
    check(&deps, "/api/v2/traces/1?ancestor_depth=x", 200, r#"{"trace":{},"metrics":{}}"#).await;
    let refused = ask(&deps, "/api/traces/xyz", &[]).await;
    assert_eq!(refused.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(refused.header("vary"), "Accept-Encoding");
}

#[tokio::test]
async fn tenants_read_their_own_data() {
    let block = |name: &str, id| vec![vec![FakeSource::block(name, vec![stored(span(id, 1, id))])]];
    let tenant = |name: &str| name.parse::<TenantId>().unwrap();
    let both = vec![(tenant("a"), block("b1", 1)), (tenant("b"), block("b2", 2))];
    let mut deps = deps(FakeSnapshots::new(both));
    check(&deps, &format!("/api/traces/{ID}"), 404, "").await;
    deps.settings.multitenancy = true;
    let ask_as = async |deps: &ApiDeps, org: &str| {
        let answer = ask(deps, &format!("/api/traces/{ID}"), &[("x-scope-orgid", org)]).await;
        (answer.status, answer.text().to_owned())
    };
    let spans = |text: &str| text.matches("spanId").count();
    assert_eq!(spans(&ask_as(&deps, "a").await.1), 1);
    assert_eq!(spans(&ask_as(&deps, "b|a|b").await.1), 2);
    assert_eq!(ask_as(&deps, "c").await, (404, String::new()));
    check(&deps, &format!("/api/traces/{ID}"), 401, "no org id\n").await;
    assert_eq!(ask_as(&deps, "").await, (401, "no org id\n".into()));
    assert_eq!(ask_as(&deps, "a|").await, (400, "no org id".into()));
    assert_eq!(ask_as(&deps, "a/b").await, (400, "tenant ID 'a/b' contains unsupported character '/'".into()));
    assert_eq!(ask_as(&deps, "a|..").await, (400, "tenant ID is '.' or '..'".into()));
    assert_eq!(ask_as(&deps, &"x".repeat(151)).await, (400, "tenant ID is too long: max 150 characters".into()));
    check(&deps, "/api/echo", 200, "echo\n").await;
    deps.settings.multi_tenant_queries = false;
    assert_eq!(ask_as(&deps, "a|b").await, (400, "multi-tenant query unsupported".into()));
    assert_eq!(ask_as(&deps, "a|a").await.0, 200);
}

#[tokio::test]
async fn a_hint_skips_blocks_but_never_live_data() {
    let at = |id, second: u64| stored(span(id, 1, second * 1_000_000_000));
    let sources = vec![
        FakeSource::block("old", vec![at(1, 100)]),
        FakeSource::block("new", vec![at(2, 200)]),
        FakeSource::live(vec![at(3, 300)]),
    ];
    let deps = deps(FakeSnapshots::of(sources));
    let count = async |parameters: &str| {
        ask(&deps, &format!("/api/traces/{ID}?{parameters}"), &[]).await.text().matches("spanId").count()
    };
    assert_eq!(count("").await, 3);
    assert_eq!(count("start=150").await, 2);
    assert_eq!(count("end=150").await, 2);
    assert_eq!(count("start=400&end=500").await, 1);
    assert_eq!(count("mode=blocks").await, 2);
    assert_eq!(count("mode=ingesters").await, 1);
    assert_eq!(count("mode=all&start=0&end=0").await, 3);
}

#[tokio::test]
async fn large_answers_are_compressed_for_who_accepts_it() {
    let many: Vec<StoredSpan> = (1..=50).map(|n| stored(span(n, 1, n))).collect();
    let deps = deps(FakeSnapshots::of(vec![FakeSource::live(many)]));
    let path = format!("/api/traces/{ID}");
    let plain = ask(&deps, &path, &[]).await;
    let packed = ask(&deps, &path, &[("accept-encoding", "deflate, gzip;q=0.5")]).await;
    assert_eq!((packed.header("content-encoding"), packed.header("vary")), ("gzip", "Accept-Encoding"));
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(packed.body.as_ref()).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain.body);
    for (path, accepted) in [("/api/echo", "gzip"), (path.as_str(), "gzip;q=0"), (path.as_str(), "br")] {
        assert_eq!(ask(&deps, path, &[("accept-encoding", accepted)]).await.header("content-encoding"), "");
    }
}

#[tokio::test]
async fn a_prefix_stands_before_the_api_alone() {
    let deps = ApiDeps { prefix: "/tempo/a".into(), ..shop() };
    for path in ["/api/echo", "/api/search?q={}", "/api/search/tag/name/values", "/api/v2/traces/1"] {
        assert_eq!(ask(&deps, &format!("/tempo/a{path}"), &[]).await.status, 200, "{path}");
        assert_eq!(ask(&deps, path, &[]).await.status, 404, "{path}");
    }
    assert_eq!(ask(&deps, "/metrics", &[]).await.status, 200);
    assert_eq!(ask(&deps, "/tempo/a/metrics", &[]).await.status, 404);
}

#[tokio::test]
async fn a_trace_over_the_limit() {
    let many: Vec<StoredSpan> = (1..=50).map(|n| stored(span(n, 1, n))).collect();
    let mut deps = deps(FakeSnapshots::of(vec![FakeSource::live(many)]));
    deps.settings.max_trace_bytes = 1000;
    check(&deps, &format!("/api/traces/{ID}"), 422, "trace exceeds max size (max bytes: 1000)").await;
    let answer = ask(&deps, &format!("/api/v2/traces/{ID}"), &[]).await;
    let message = "Trace exceeds maximum size of 1000 bytes, a partial trace is returned";
    assert_eq!(answer.status, 200);
    assert!(answer.text().ends_with(&format!(r#","status":"PARTIAL","message":"{message}"}}"#)), "{}", answer.text());
    assert_eq!(answer.header("x-spanhouse-partial"), message);
    assert!((10..20).contains(&answer.text().matches("spanId").count()));
    deps.settings.bounds.memory_bytes = 1000;
    let answer = ask(&deps, &format!("/api/v2/traces/{ID}"), &[]).await;
    let expected =
        format!("trace {ID} needs more memory than the query may use (1000 bytes): memory.per_query sets how much that is");
    assert_eq!((answer.status, answer.text()), (422, expected.as_str()));
}

#[tokio::test]
async fn damage_is_told_and_the_rest_answered() {
    let damaged = SourceError::Damaged { what: "block b2".into(), why: "bad checksum\u{2192}".into() };
    let block = FakeSource { range: TimeRange::ALL, ..FakeSource::block("b2", vec![]).failing(damaged) };
    let deps = deps(FakeSnapshots::of(vec![FakeSource::live(vec![example()]), block]));
    let v1 = ask(&deps, &format!("/api/traces/{ID}"), &[]).await;
    assert_eq!((v1.status, v1.header("x-spanhouse-partial")), (200, "block b2 is damaged: bad checksum?"));
    let v2 = ask(&deps, &format!("/api/v2/traces/{ID}"), &[]).await;
    assert!(v2.text().ends_with(r#""status":"PARTIAL","message":"block b2 is damaged: bad checksum→"}"#), "{}", v2.text());
    let none = ask(&deps, "/api/traces/1", &[]).await;
    assert_eq!((none.status, none.header("x-spanhouse-partial")), (404, "block b2 is damaged: bad checksum?"));
}

#[tokio::test]
async fn a_gone_object_restarts_the_query_once() {
    let gone = || FakeSource::block("b1", vec![]).failing(SourceError::Gone { what: "block b1".into() });
    let live = || FakeSource::live(vec![stored(span(9, 1, 9))]);
    let compacted = FakeSource::block("b2", vec![example()]);
    let versions = vec![vec![live(), gone()], vec![live(), compacted]];
    let snapshots = FakeSnapshots::new(vec![(TenantId::single(), versions)]);
    let deps1 = deps(Arc::clone(&snapshots));
    let answer = ask(&deps1, &format!("/api/v2/traces/{ID}"), &[]).await;
    assert_eq!((answer.text().matches("spanId").count(), answer.text().contains("PARTIAL")), (2, false));
    assert!(answer.text().contains(r#""inspectedBytes":"200""#));
    assert_eq!(snapshots.taken(), 2);
    // Gone for good: the rest is answered, and said to be a part.
    let deps2 = deps(FakeSnapshots::of(vec![live(), gone()]));
    let answer = ask(&deps2, &format!("/api/v2/traces/{ID}"), &[]).await;
    assert_eq!((answer.status, answer.header("x-spanhouse-partial")), (200, "block b1 is gone"));
}

#[tokio::test]
async fn failures_of_the_store_time_and_memory() {
    let unreadable = SourceError::Unreadable { what: "block b1".into(), why: "timed out".into() };
    let failing = deps(FakeSnapshots::of(vec![FakeSource::live(vec![]).failing(unreadable)]));
    check(&failing, "/api/traces/1", 500, "reading block b1: timed out").await;
    let mut slow = deps(FakeSnapshots::of(vec![FakeSource { delay: Duration::from_secs(60), ..FakeSource::live(vec![]) }]));
    slow.settings.bounds.deadline = Duration::from_millis(5);
    check(&slow, "/api/v2/traces/1", 504, "context deadline exceeded").await;
    let mut busy = shop();
    busy.settings.bounds.patience = Duration::ZERO;
    let held = busy.memory.try_take(384 << 20).unwrap();
    check(&busy, "/api/traces/1", 429, "too many outstanding requests").await;
    drop(held);
    check(&busy, "/api/traces/1", 404, "").await;
    assert_eq!(busy.memory.used(), 0);
}

#[tokio::test]
async fn what_the_process_says_of_itself() {
    let deps = shop();
    check(&deps, "/api/echo", 200, "echo\n").await;
    let info = r#"{"version":"3.0.0","revision":"abc","branch":"","buildUser":"","buildDate":"","goVersion":""}"#;
    check(&deps, "/api/status/buildinfo", 200, &format!("{info}\n")).await;
    check(&deps, "/ready", 503, "Ingester not ready: replaying\n").await;
    check(&deps, "/metrics", 200, "# EOF\n").await;
    check(&deps, "/status/services", 200, "GET /status/services\nquerier  Running\n").await;
    check(&deps, "/status/config", 200, "GET /status/config\n---\na: 1\n").await;
    check(&deps, "/nowhere", 404, "404 page not found\n").await;
    check(&deps, "/api/overrides", 404, "404 page not found\n").await;
    let all = ask(&deps, "/status", &[]).await;
    for section in ["version", "services", "endpoints", "config"] {
        assert!(all.text().contains(&format!("GET /status/{section}\n")), "{section}");
    }
    let ready = ApiDeps { status: StatusDeps { ready: Arc::new(|| Ok(())), ..deps.status.clone() }, ..deps };
    check(&ready, "/ready", 200, "ready\n").await;
}

#[tokio::test]
async fn requests_are_counted_by_route() {
    let mut registry = Registry::default();
    let metrics = QuerierMetrics::register(&mut registry);
    let deps = ApiDeps { metrics, ..shop() };
    ask(&deps, &format!("/api/traces/{ID}"), &[]).await;
    ask(&deps, "/api/traces/1", &[]).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "requests_total{route=\"/api/traces/{trace_id}\",status=\"200\"} 1",
        "requests_total{route=\"/api/traces/{trace_id}\",status=\"404\"} 1",
        "request_duration_seconds_count{route=\"/api/traces/{trace_id}\"} 2",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

/// What the end-to-end checker of Tempo demands of a trace it wrote: grouping, roots, parents, attributes, status and kind.
#[tokio::test]
async fn a_written_trace_is_read_back_equal() {
    let typed: Vec<Attribute> = vec![
        attribute("vulture-0", Value::Str("a".into())),
        attribute("vulture-int-03", Value::Int(-3)),
        attribute("http.status_code", Value::Int(500)),
    ];
    let of = |service: &str, base: u64| {
        let process = attribute("vulture-process-0", Value::Str(service.into()));
        let mut owner = resource("tempo-vulture");
        owner.attributes.push(process);
        (0..3).map(move |n| {
            let parent = (n > 0).then(|| crate::test_util::span_id(base + n - 1));
            let attributes = vec![attribute("n", Value::Int(n as i64))];
            let span = Span { parent_span_id: parent, attributes, ..span(base + n, 3, base + n) };
            stored_by(span, owner.clone(), Scope::default())
        })
    };
    let mut spans: Vec<StoredSpan> = of("one", 10).chain(of("two", 20)).collect();
    spans[0].span.attributes.extend(typed);
    // Two batches, in a block and live, one of them twice.
    let block = FakeSource::block("b1", spans[..4].to_vec());
    let live = FakeSource::live(spans[3..].to_vec());
    let deps = deps(FakeSnapshots::of(vec![live, block]));
    let answer = ask(&deps, &format!("/api/traces/{ID}?start=0&end=1"), &[("accept", "application/protobuf")]).await;
    let trace = tempopb::Trace::decode(answer.body).unwrap();
    assert_eq!(trace.resource_spans.len(), 2, "one group per batch");
    for (group, expected) in trace.resource_spans.iter().zip(spans.chunks(3)) {
        assert_eq!(group.resource.as_ref().unwrap().attributes.len(), 2);
        assert_eq!(group.scope_spans.len(), 1);
        assert!(group.scope_spans[0].scope.is_some());
        let read = &group.scope_spans[0].spans;
        assert_eq!(read.len(), 3);
        for (read, written) in read.iter().zip(expected) {
            let parent = written.span.parent_span_id.map(|id| id.0.to_vec()).unwrap_or_default();
            assert_eq!((&read.name, &read.parent_span_id, read.kind), (&written.span.name, &parent, 3));
            assert_eq!(read.attributes.len(), written.span.attributes.len());
            assert!(read.status.is_some());
        }
    }
}
