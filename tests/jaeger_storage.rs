//! What Jaeger asks of a storage: the cases of its own integration suite as files in `tests/jaeger`, over every interface that serves them.
//!
//! Traces are written as a Jaeger in front writes them, five spans at a time, and read over storage v2, storage v1, the query services
//! and HTTP: while they are live, and again from blocks.

mod archive;
mod clients;
mod data;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost_types::Timestamp;
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span};
use spanhouse_proto::{jaeger_storage_v1, jaeger_storage_v2, jaeger_v3};

use self::clients::{Jaeger, by_trace, timestamp};
use self::data::{Case, Suite, flat};
use crate::harness::eventually_within;
use crate::harness::otlp::{new_id, now, of_service, span, span_id};
use crate::harness::server::{Server, Setup};

/// Spans a Jaeger in front sends at once.
const CHUNK: usize = 5;

fn setup() -> Setup {
    ["JAEGER", "JAEGER_GRPC_QUERY", "JAEGER_STORAGE"]
        .into_iter()
        .fold(Setup::new(), |setup, port| setup.with(&format!("PORTS_{port}"), "0"))
}

/// Spans in groups of their own, as many requests as a batch of so many spans makes.
fn chunks(groups: &[ResourceSpans]) -> Vec<Vec<ResourceSpans>> {
    let alone = |group: &ResourceSpans, scope: &ScopeSpans, span: &Span| ResourceSpans {
        scope_spans: vec![ScopeSpans { spans: vec![span.clone()], ..scope.clone() }],
        ..group.clone()
    };
    let mut all = Vec::new();
    for group in groups {
        for scope in &group.scope_spans {
            all.extend(scope.spans.iter().map(|span| alone(group, scope, span)));
        }
    }
    all.chunks(CHUNK).map(<[_]>::to_vec).collect()
}

async fn write(jaeger: &Jaeger, groups: &[ResourceSpans]) {
    for chunk in chunks(groups) {
        jaeger.export(chunk).await;
    }
}

fn spans(groups: &[ResourceSpans]) -> usize {
    groups.iter().flat_map(|group| &group.scope_spans).map(|scope| scope.spans.len()).sum()
}

/// Fails unless a search found exactly the spans of the traces it should.
fn expect_traces(what: &str, found: &[ResourceSpans], suite: &Suite, expect: &[String]) {
    let wanted: Vec<ResourceSpans> = expect.iter().flat_map(|name| suite.trace(name)).cloned().collect();
    let (found, wanted) = (flat(found), flat(&wanted));
    let ids = |all: &[data::Flat]| all.iter().map(|flat| hex(&flat.span.trace_id)).collect::<BTreeSet<_>>();
    assert_eq!(ids(&found), ids(&wanted), "traces of {what}");
    assert_eq!(found.len(), wanted.len(), "number of spans of {what}");
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found, wanted, "{what}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Number of spans by trace.
fn counts(suite: &Suite, expect: &[String]) -> BTreeMap<u128, usize> {
    let traces = expect.iter().map(|name| suite.trace(name));
    traces.map(|trace| (by_trace(trace).into_keys().next().expect("a span"), spans(trace))).collect()
}

async fn check(jaeger: &Jaeger, suite: &Suite, case: &Case, when: &str) {
    let what = |how: &str| format!("`{}` over {how}, {when}", case.caption);
    let found = jaeger.storage_v2(case).await;
    expect_traces(&what("storage v2"), &found, suite, &case.expect);
    expect_traces(&what("api_v3"), &jaeger.api_v3(case).await, suite, &case.expect);
    let wanted = counts(suite, &case.expect);
    assert_eq!(jaeger.storage_v1(case).await, wanted, "{}", what("storage v1"));
    assert_eq!(jaeger.api_v2(case).await, wanted, "{}", what("api_v2"));
    assert_eq!(jaeger.http_v3(case).await, wanted, "{}", what("/api/v3/traces"));
    // The older route wants a service.
    if !case.service.is_empty() {
        assert_eq!(jaeger.http(case).await, wanted, "{}", what("/api/traces"));
    }
    let ids: BTreeSet<u128> = wanted.keys().copied().collect();
    assert_eq!(jaeger.ids_v2(case).await, ids, "{}", what("FindTraceIDs of storage v2"));
    assert_eq!(jaeger.ids_v1(case).await, ids, "{}", what("FindTraceIDs of storage v1"));
    assert_eq!(jaeger.summaries(case).await, wanted, "{}", what("FindTraceSummaries"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_search_of_jaegers_suite() {
    let server = setup().with("FLUSH_MAX_AGE", "20s").start().await;
    let (jaeger, suite) = (Jaeger::of(&server).await, Suite::read());
    assert!(suite.cases.len() >= 25, "{}", suite.cases.len());
    for trace in suite.traces.values() {
        write(&jaeger, trace).await;
    }
    for case in &suite.cases {
        check(&jaeger, &suite, case, "live").await;
    }
    names(&jaeger, "live").await;
    let all: usize = suite.traces.values().map(|trace| spans(trace)).sum();
    eventually_within(Duration::from_secs(120), "blocks", async || {
        let flushed = server.metric("spanhouse_ingester_flushed_spans_total").await? >= all as f64;
        (flushed && server.metric("spanhouse_ingester_live_spans").await? == 0.0).then_some(())
    })
    .await;
    for case in &suite.cases {
        check(&jaeger, &suite, case, "in blocks").await;
    }
    names(&jaeger, "in blocks").await;
    dependencies(&jaeger, &suite).await;
}

/// Services and operations, once the example is written.
async fn names(jaeger: &Jaeger, when: &str) {
    let reader = &mut jaeger.trace_reader();
    let services = reader.get_services(jaeger_storage_v2::GetServicesRequest {}).await.expect("services").into_inner();
    let ours = services.services.iter().filter(|name| name.starts_with("example"));
    let expected = ["example-service-1", "example-service-2", "example-service-3"];
    assert_eq!(ours.collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>(), "{when}");
    for (kind, expected) in [
        ("", &[("example-operation-1", ""), ("example-operation-3", "server"), ("example-operation-4", "client")][..]),
        ("server", &[("example-operation-3", "server")]),
        ("producer", &[]),
    ] {
        let request = jaeger_storage_v2::GetOperationsRequest { service: expected_service(), span_kind: kind.into() };
        let answer = reader.get_operations(request).await.expect("operations").into_inner().operations;
        let found: Vec<_> = answer.iter().map(|one| (one.name.as_str(), one.span_kind.as_str())).collect();
        assert_eq!(found, expected, "{kind}, {when}");
        let request = jaeger_storage_v1::GetOperationsRequest { service: expected_service(), span_kind: kind.into() };
        let answer = jaeger.span_reader().get_operations(request).await.expect("operations").into_inner();
        let found: Vec<_> = answer.operations.iter().map(|one| (one.name.as_str(), one.span_kind.as_str())).collect();
        assert_eq!(found, expected, "{kind}, {when}");
    }
}

fn expected_service() -> String {
    "example-service-1".into()
}

/// `hello` calls `world` once, `world` calls `hello` three times.
async fn dependencies(jaeger: &Jaeger, suite: &Suite) {
    let trace = &flat(suite.trace("dependency_trace"))[0].span;
    let around = |hours: i64| timestamp(trace.start_time_unix_nano.saturating_add_signed(hours * 3_600_000_000_000));
    let (start_time, end_time) = (around(-1), around(1));
    let request = jaeger_storage_v2::GetDependenciesRequest { start_time, end_time };
    let answer = jaeger.dependency_reader().get_dependencies(request).await.expect("dependencies").into_inner();
    let ours: Vec<_> = answer
        .dependencies
        .iter()
        .filter(|edge| edge.parent == "hello" || edge.parent == "world")
        .map(|edge| (edge.parent.as_str(), edge.child.as_str(), edge.call_count))
        .collect();
    assert_eq!(ours, [("hello", "world", 1), ("world", "hello", 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_by_id() {
    let server = setup().start().await;
    let (jaeger, suite) = (Jaeger::of(&server).await, Suite::read());
    let example = suite.trace("example_trace");
    write(&jaeger, example).await;
    write(&jaeger, suite.trace("default_trace")).await;
    let id = by_trace(example).into_keys().next().expect("a span");
    let expect = ["example_trace".to_owned()];
    expect_traces("GetTraces of storage v2", &jaeger.traces(&[id, 0xdead]).await, &suite, &expect);
    assert!(jaeger.traces(&[0xdead]).await.is_empty(), "not found is empty, no failure");
    let both = jaeger.traces(&[id, 0x100b]).await;
    expect_traces("two traces", &both, &suite, &["example_trace".to_owned(), "default_trace".to_owned()]);
    let request = jaeger_v3::GetTraceRequest { trace_id: format!("{id:032x}"), raw_traces: true, ..Default::default() };
    expect_traces("api_v3", &jaeger.trace_v3(request).await, &suite, &expect);
    let wanted = BTreeMap::from([(id, spans(example))]);
    assert_eq!(jaeger.trace_v1(id).await, wanted);
    assert_eq!(jaeger.trace_http(id).await, wanted);
}

/// Spans alone, in a stream, and as OTLP on the storage's port, all of one trace.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_both_versions_make_one_trace() {
    let server = setup().start().await;
    let jaeger = Jaeger::of(&server).await;
    let id = new_id();
    jaeger.export(vec![of_service("shop", vec![span(id, 1)])]).await;
    jaeger.write_v1(clients::jaeger_span(id, 2)).await;
    jaeger.write_stream_v1((3..=40).map(|n| clients::jaeger_span(id, n)).collect()).await;
    assert_eq!(jaeger.trace_v1(id).await, BTreeMap::from([(id, 40)]));
    let found = flat(&jaeger.traces(&[id]).await);
    let names: Vec<&str> = found.iter().map(|flat| flat.span.name.as_str()).collect();
    assert_eq!((names[0], names[1], names[39]), ("step 1", "step 2", "step 40"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_trace_comes_whole() {
    const SPANS: u64 = 10_008;
    let server = setup().flushing_often().start().await;
    let jaeger = Jaeger::of(&server).await;
    let id = new_id();
    for from in (1..=SPANS).step_by(1000) {
        let spans = (from..(from + 1000).min(SPANS + 1)).map(|n| span(id, n)).collect();
        jaeger.export(vec![of_service("shop", spans)]).await;
    }
    let wanted = BTreeMap::from([(id, SPANS as usize)]);
    let counted = |groups: &[ResourceSpans]| by_trace(groups).into_iter().map(|(id, spans)| (id, spans.len())).collect();
    assert_eq!(wanted, counted(&jaeger.traces(&[id]).await));
    assert_eq!(jaeger.trace_v1(id).await, wanted);
    assert_eq!(jaeger.trace_http(id).await, wanted);
    let request = jaeger_v3::GetTraceRequest { trace_id: format!("{id:032x}"), ..Default::default() };
    assert_eq!(wanted, counted(&jaeger.trace_v3(request).await));
}

/// Every twentieth span has the id of the first and other times: none may be lost.
#[tokio::test(flavor = "multi_thread")]
async fn spans_that_share_an_id_are_all_kept() {
    let server = setup().start().await;
    let jaeger = Jaeger::of(&server).await;
    let id = new_id();
    let mut all: Vec<Span> = (1..=200).map(|n| span(id, n)).collect();
    for nth in (19..200).step_by(20) {
        all[nth].span_id = span_id(1);
        all[nth].start_time_unix_nano += nth as u64;
    }
    let groups = [of_service("shop", all)];
    write(&jaeger, &groups).await;
    for when in ["live", "in blocks"] {
        let found = flat(&jaeger.traces(&[id]).await);
        assert_eq!(found.len(), 200, "{when}");
        assert!(found == flat(&groups), "{when}");
        if when == "live" {
            server.flush_all(200).await;
        }
    }
}

/// A search with the fields of a request set as Go leaves them.
#[tokio::test(flavor = "multi_thread")]
async fn times_that_go_never_set_are_no_bounds() {
    let server = setup().start().await;
    let jaeger = Jaeger::of(&server).await;
    let id = new_id();
    write(&jaeger, &[of_service("shop", vec![span(id, 1)])]).await;
    let year_one = Some(Timestamp { seconds: -62_135_596_800, nanos: 0 });
    let query = jaeger_storage_v2::TraceQueryParameters {
        service_name: "shop".into(),
        start_time_min: year_one,
        start_time_max: year_one,
        duration_min: Some(prost_types::Duration::default()),
        duration_max: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    let found = jaeger.find_v2(query).await;
    assert_eq!(by_trace(&found).into_keys().collect::<Vec<_>>(), [id]);
    assert!(now() > flat(&found)[0].span.start_time_unix_nano);
}

impl Server {
    /// Waits until everything is in blocks, however long that takes with the default settings.
    async fn flush_all(&self, spans: usize) {
        let _ = eventually_within(Duration::from_secs(120), "blocks", async || {
            let flushed = self.metric("spanhouse_ingester_flushed_spans_total").await? >= spans as f64;
            flushed.then_some(())
        })
        .await;
    }
}
