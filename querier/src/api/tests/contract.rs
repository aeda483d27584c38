//! What Grafana and others break on: shapes of answers, defaults, limits, and what reaches the engine.

use std::collections::BTreeMap;

use serde::Deserialize;
use spanhouse_proto::tempopb;

use super::cases::{attribute, engine, found};
use super::*;
use crate::engine::answer::{AnswerValue, QueryStats, SearchAnswer, TagScope};
use crate::engine::{Grid, SearchFilter, TagSearch};
use crate::test_util::Asked;
use crate::traceql::ast;

const S: u64 = 1_000_000_000;
const NOW: u64 = 1_700_000_000 * S;

/// The members that Grafana's decoder knows. Any other fails the query.
mod strict {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Search {
        pub(super) traces: Vec<Trace>,
        #[serde(rename = "metrics")]
        pub(super) _metrics: Metrics,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Trace {
        #[serde(rename = "traceID")]
        pub(super) _id: String,
        #[serde(rename = "rootServiceName")]
        pub(super) root_service: String,
        #[serde(rename = "rootTraceName", default)]
        pub(super) root_name: String,
        #[serde(rename = "startTimeUnixNano", default)]
        pub(super) _start: String,
        #[serde(rename = "durationMs", default)]
        pub(super) _duration: u32,
        pub(super) span_set: Option<SpanSet>,
        #[serde(default)]
        pub(super) span_sets: Vec<SpanSet>,
        #[serde(rename = "serviceStats", default)]
        pub(super) _services: BTreeMap<String, Service>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Service {
        #[serde(rename = "spanCount", default)]
        pub(super) _spans: u32,
        #[serde(rename = "errorCount", default)]
        pub(super) _errors: u32,
    }

    #[derive(Deserialize, PartialEq, Debug)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct SpanSet {
        pub(super) spans: Vec<Span>,
        #[serde(default)]
        pub(super) matched: u32,
        #[serde(default)]
        pub(super) attributes: Vec<Pair>,
    }

    #[derive(Deserialize, PartialEq, Debug)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Span {
        #[serde(rename = "spanID")]
        pub(super) id: String,
        #[serde(default)]
        pub(super) name: String,
        #[serde(default)]
        pub(super) start_time_unix_nano: String,
        #[serde(default)]
        pub(super) duration_nanos: String,
        #[serde(default)]
        pub(super) attributes: Vec<Pair>,
    }

    #[derive(Deserialize, PartialEq, Debug)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Pair {
        pub(super) key: String,
        pub(super) value: serde_json::Value,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[expect(dead_code, reason = "the names are what is tested")]
    pub(super) struct Metrics {
        inspected_traces: Option<u32>,
        inspected_bytes: Option<String>,
        total_blocks: Option<u32>,
        completed_jobs: Option<u32>,
        total_jobs: Option<u32>,
        total_block_bytes: Option<String>,
        inspected_spans: Option<String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Instant {
        #[serde(default)]
        pub(super) series: Vec<InstantSeries>,
        #[serde(rename = "metrics")]
        pub(super) _metrics: Metrics,
        #[serde(rename = "status")]
        pub(super) _status: Option<String>,
        #[serde(rename = "message")]
        pub(super) _message: Option<String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct InstantSeries {
        #[serde(rename = "labels")]
        pub(super) _labels: Vec<Pair>,
        #[serde(default)]
        pub(super) value: f64,
    }
}

fn searched(search: SearchAnswer) -> ApiDeps {
    deps_with(FakeEngine { search: Ok(search), ..FakeEngine::default() })
}

async fn strictly(deps: &ApiDeps) -> strict::Search {
    let answer = ask(deps, "/api/search?q=%7B%7D", &[]).await;
    assert_eq!(answer.header("content-type"), "application/json");
    serde_json::from_str(answer.text()).unwrap()
}

#[tokio::test]
async fn searches_have_only_what_grafana_knows() {
    let bare = || crate::engine::answer::TraceResult { root_service: None, root_name: None, services: vec![], ..found(2) };
    let mut empty_set = bare();
    let empty = crate::engine::answer::SpanSetResult { spans: vec![], ..empty_set.span_sets[0].clone() };
    empty_set.span_sets.insert(0, empty.clone());
    let mut only_empty = bare();
    only_empty.span_sets = vec![empty];
    let mut by = found(3);
    by.span_sets[0].attributes = vec![
        attribute("by(kind)", AnswerValue::Str("server".into())),
        attribute("avg(duration)", AnswerValue::Float(0.0)),
        attribute("list", AnswerValue::Array(vec![AnswerValue::Int(1), AnswerValue::Bool(true)])),
    ];
    let traces = vec![found(1), bare(), empty_set, only_empty, by];
    let search = strictly(&searched(SearchAnswer { traces, stats: QueryStats::default() })).await;
    assert_eq!(search.traces[1].root_service, "<root span not yet received>");
    assert_eq!(search.traces[1].root_name, "");
    for (nth, trace) in search.traces.iter().enumerate() {
        // A search by tags has none at all; nobody may see an empty one.
        assert_eq!(trace.span_sets.is_empty(), nth == 3);
        assert_eq!(trace.span_set.as_ref(), trace.span_sets.first());
        assert!(trace.span_sets.iter().all(|set| !set.spans.is_empty() && set.matched == 1));
    }
    let span = &search.traces[0].span_sets[0].spans[0];
    assert_eq!((span.id.as_str(), span.name.as_str()), ("563d623c76514f8e", "query"));
    assert_eq!((span.start_time_unix_nano.as_str(), span.duration_nanos.as_str()), ("1700000000035077898", "446979497"));
    assert_eq!(span.attributes[0].key, "http.status_code");
    let attributes: Vec<String> = search.traces[4].span_sets[0].attributes.iter().map(|a| a.value.to_string()).collect();
    let array = r#"{"arrayValue":{"values":[{"intValue":"1"},{"boolValue":true}]}}"#;
    assert_eq!(attributes, [r#"{"stringValue":"server"}"#, r#"{"doubleValue":0}"#, array]);
}

#[tokio::test]
async fn a_key_has_values_of_one_kind() {
    let values = [
        ("mixed", AnswerValue::Int(5)),
        ("mixed", AnswerValue::Str("five".into())),
        ("mixed", AnswerValue::Array(vec![AnswerValue::Float(0.5), AnswerValue::Int(1)])),
        ("number", AnswerValue::Int(5)),
        ("number", AnswerValue::Float(0.5)),
        ("none", AnswerValue::Float(f64::NAN)),
        ("none", AnswerValue::Float(f64::NEG_INFINITY)),
    ];
    let mut traces = Vec::new();
    for (key, value) in values {
        let mut trace = found(1);
        trace.span_sets[0].spans[0].attributes = vec![attribute(key, value)];
        traces.push(trace);
    }
    let search = strictly(&searched(SearchAnswer { traces, stats: QueryStats::default() })).await;
    let values: Vec<String> =
        search.traces.iter().map(|trace| trace.span_sets[0].spans[0].attributes[0].value.to_string()).collect();
    let expected = [
        r#"{"stringValue":"5"}"#,
        r#"{"stringValue":"five"}"#,
        r#"{"stringValue":"[0.5, 1]"}"#,
        r#"{"intValue":"5"}"#,
        r#"{"doubleValue":0.5}"#,
        r#"{"stringValue":"NaN"}"#,
        r#"{"stringValue":"-Inf"}"#,
    ];
    assert_eq!(values, expected);
}

#[tokio::test]
async fn instant_queries_have_only_what_grafana_knows() {
    let answer = ask(&deps_with(engine("full")), "/api/metrics/query?q=%7B%7D%7Crate()", &[]).await;
    let instant: strict::Instant = serde_json::from_str(answer.text()).unwrap();
    assert_eq!(instant.series[0].value, 0.4);
    let answer = ask(&deps_with(engine("partial")), "/api/metrics/query?q=%7B%7D%7Crate()", &[]).await;
    assert!(serde_json::from_str::<strict::Instant>(answer.text()).unwrap().series.is_empty());
    assert_eq!(answer.header("x-spanhouse-partial"), "block b1 is damaged");
}

/// What the engine is asked for a path.
async fn asked(path: &str) -> Asked {
    let fake = FakeEngine::default();
    let asked = Arc::clone(&fake.asked);
    let answer = ask(&deps_with(fake), path, &[]).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    asked.lock().pop().unwrap()
}

async fn asked_search(parameters: &str) -> crate::engine::SearchRequest {
    match asked(&format!("/api/search?{parameters}")).await {
        Asked::Search(request) => request,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn searches_look_where_and_for_what_they_are_told() {
    let request = asked_search("").await;
    assert_eq!((request.limit, request.spans_per_set), (20, 3));
    let seconds = |request: &crate::engine::SearchRequest| {
        let range = request.range.unwrap();
        ((range.min.0 as i64 - NOW as i64) / S as i64, (range.max.0 as i64 - NOW as i64) / S as i64)
    };
    assert_eq!(seconds(&request), (-900, 0));
    assert!(matches!(&request.filter, SearchFilter::Tags(tags) if *tags == TagSearch::default()));
    let request = asked_search("q=%7B%7D&limit=7&spss=9&start=1699999990&end=1700000100").await;
    assert_eq!((request.limit, request.spans_per_set, seconds(&request)), (7, 9, (-10, 100)));
    assert!(matches!(&request.filter, SearchFilter::TraceQl(_)));
    assert_eq!(seconds(&asked_search("since=2h&start=1&end=2").await), (-7200, 0));
    let request = asked_search("tags=a=b%20c=%22d%20e%22&minDuration=1.5s&maxDuration=2s").await;
    let SearchFilter::Tags(tags) = request.filter else { panic!() };
    assert_eq!(tags.tags, [("a".into(), "b".into()), ("c".into(), "d e".into())]);
    assert_eq!((tags.min_duration_ms, tags.max_duration_ms), (1500, 2000));
    // A bound alone; zero is none.
    let SearchFilter::Tags(tags) = asked_search("minDuration=1s&maxDuration=0s").await.filter else { panic!() };
    assert_eq!((tags.min_duration_ms, tags.max_duration_ms), (1000, 0));
}

#[tokio::test]
async fn a_cutoff_moves_the_end() {
    let fake = FakeEngine::default();
    let asked = Arc::clone(&fake.asked);
    let mut deps = deps_with(fake);
    deps.settings.end_cutoff = Duration::from_secs(30);
    let range = async |parameters: &str| {
        assert_eq!(ask(&deps, &format!("/api/search?{parameters}"), &[]).await.status, 200);
        let Some(Asked::Search(request)) = asked.lock().pop() else { panic!() };
        let range = request.range.unwrap();
        (range.min.0 as i64 / S as i64 - 1_700_000_000, range.max.0 as i64 / S as i64 - 1_700_000_000)
    };
    assert_eq!(range("").await, (-900, -30));
    assert_eq!(range("since=1m").await, (-90, -30));
    assert_eq!(range("start=1699999900&end=1700000000").await, (-100, -30));
    assert_eq!(range("start=1699999990&end=1700000000").await, (-900, -30));
    let path = "/api/metrics/query_range?q=%7B%7D%7Crate()&start=1699999980&end=1700000000";
    let answer = ask(&deps, path, &[]).await;
    assert_eq!((answer.status, answer.text()), (400, "query window falls entirely within query_end_cutoff"));
    let path = "/api/metrics/query_range?q=%7B%7D%7Crate()&start=1699999900&end=1700000000&step=7s";
    assert_eq!(ask(&deps, path, &[]).await.status, 200);
    let Some(Asked::Metrics(request)) = asked.lock().pop() else { panic!() };
    assert_eq!(request.grid.end, (1_700_000_000 - 30) / 7 * 7 * S);
    let path = "/api/metrics/query?q=%7B%7D%7Crate()&start=1699999900.5&end=1699999999.5";
    assert_eq!(ask(&deps, path, &[]).await.status, 200);
    let Some(Asked::Metrics(request)) = asked.lock().pop() else { panic!() };
    assert_eq!(request.grid.end, NOW - 30 * S - S / 2);
}

async fn asked_metrics(path: &str) -> crate::engine::MetricsRequest {
    match asked(&format!("/api/metrics/{path}")).await {
        Asked::Metrics(request) => request,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn metrics_are_measured_on_an_absolute_grid() {
    let rate = "q=%7B%7D%7Crate()";
    // An hour by default, 15 seconds a step, the running one among them.
    let request = asked_metrics(&format!("query_range?{rate}")).await;
    let step = 15 * S;
    let first = (NOW - 3600 * S) / step * step - step;
    assert_eq!(request.grid, Grid { start: first, end: NOW.div_ceil(step) * step, step, instant: false });
    assert_eq!((request.exemplars, request.max_series), (100, 0));
    // The reference: 24 hours begin 120 s before the start and end 180 s after an end that is in the past.
    let request = asked_metrics(&format!("query_range?{rate}&start=1699800120&end=1699886520")).await;
    assert_eq!(request.grid.step, 300 * S);
    assert_eq!((request.grid.start + request.grid.step, request.grid.end), (1_699_800_000 * S, 1_699_886_700 * S));
    let request = asked_metrics(&format!("query_range?{rate}&step=0.5&exemplars=7&maxSeries=3&since=1m")).await;
    assert_eq!((request.grid.step, request.exemplars, request.max_series), (S / 2, 7, 3));
    let request = asked_metrics(&format!("query?{rate}&start=1699999000&end=1699999100.5")).await;
    let (start, end) = (1_699_999_000 * S, 1_699_999_100 * S + S / 2);
    assert_eq!(request.grid, Grid { start, end, step: end - start, instant: true });
    assert_eq!(request.exemplars, 0);
    for (hint, exemplars) in [("false", 0), ("true", 100), ("10", 10), ("1000", 100), ("%22x%22", 5)] {
        let path = format!("query_range?{rate}%20with(exemplars={hint})&exemplars=5");
        assert_eq!(asked_metrics(&path).await.exemplars, exemplars, "{hint}");
    }
}

#[tokio::test]
async fn tags_are_asked_with_scope_filter_and_limit() {
    let Asked::TagNames(request) = asked("/api/v2/search/tags?scope=resource&limit=7&q=%7Bname=%22a%22%7D").await else {
        panic!()
    };
    assert_eq!((request.scope, request.limit), (Some(ast::Scope::Resource), 7));
    assert!(request.filter.is_some());
    let Asked::TagNames(request) = asked("/api/search/tags?q=%7Bname=%22a%22%7D").await else { panic!() };
    assert!(request.filter.is_none(), "v1 has no filter");
    for half_written in ["%7B%7D", "%7Bspan.foo=", "!!!", "%7Bname=%22a%22%7D%3E%7B%7D"] {
        let Asked::TagNames(request) = asked(&format!("/api/v2/search/tags?q={half_written}")).await else { panic!() };
        assert!(request.filter.is_none(), "{half_written}");
    }
    let value = async |tag: &str| match asked(&format!("/api/v2/search/tag/{tag}/values")).await {
        Asked::TagValues(request) => request.attribute,
        other => panic!("{other:?}"),
    };
    let scoped = |scope, name: &str| ast::Attribute::Scoped { scope, name: name.into() };
    assert_eq!(value("span.a/b").await, scoped(ast::Scope::Span, "a/b"));
    assert_eq!(value("resource.%22a%20b%22").await, scoped(ast::Scope::Resource, "a b"));
    assert_eq!(value(".x").await, scoped(ast::Scope::None, "x"));
    assert_eq!(value("parent.x").await, scoped(ast::Scope::None, "x"));
    assert_eq!(value("name").await, ast::Attribute::Intrinsic(ast::Intrinsic::Name));
    let bare = ask(&shop(), "/api/v2/search/tag/service.name/values", &[]).await;
    assert_eq!(bare.status, 400);
    assert!(bare.text().starts_with("please provide a valid tagName: "), "{}", bare.text());
    let terms = vec![".a=1"; 101].join("||").replace('.', "span.");
    let path = format!("/api/v2/search/tags?q=%7B{}%7D", terms.replace('|', "%7C"));
    let many = ask(&shop(), &path, &[]).await;
    let expected = "maximum condition groups reached (limit: 100). Reduce the number of OR conditions in the query";
    assert_eq!((many.status, many.text()), (400, expected));
}

/// Of the names of one thing Tempo lists values for this one alone.
#[tokio::test]
async fn durations_of_traces_are_listed_by_one_of_their_names() {
    let deps = deps_with(super::cases::engine("full"));
    for (name, is_listed) in [("trace:duration", true), ("traceDuration", false), ("span:duration", false)] {
        let answer = ask(&deps, &format!("/api/v2/search/tag/{name}/values"), &[]).await;
        assert_eq!(answer.text().starts_with(r#"{"tagValues":[]"#), !is_listed, "{name}: {}", answer.text());
    }
}

#[tokio::test]
async fn tags_end_at_their_bytes() {
    let scope = |name, tags: &[&str]| TagScope { name, tags: tags.iter().map(|tag| (*tag).to_owned()).collect() };
    let scopes = vec![scope("span", &["aaaa", "bbbb"]), scope("resource", &["c"])];
    let names = crate::engine::answer::TagNamesAnswer { scopes, stats: QueryStats::default() };
    let mut deps = deps_with(FakeEngine { tag_names: Ok(names), ..FakeEngine::default() });
    deps.settings.max_tag_bytes = 5;
    let answer = ask(&deps, "/api/search/tags", &[]).await;
    assert!(answer.text().starts_with(r#"{"tagNames":["aaaa"],"#), "{}", answer.text());
    assert!(answer.text().ends_with(r#""metrics":{"totalJobs":1}}"#), "{}", answer.text());
    assert_eq!(answer.header("x-spanhouse-partial"), "names and values of more than 5 bytes are cut");
}

#[tokio::test]
async fn queries_are_not_too_long() {
    // No URL is longer than 64 KiB here; Tempo's own limit is met over gRPC.
    let long = "x".repeat(1001);
    let mut deps = shop();
    deps.settings.max_expression_bytes = 1000;
    let text = "TraceQL expression exceeds the configured maximum size of 1000 bytes, reduce the query expression size or \
                contact your system administrator";
    for path in [
        "/api/search?q=",
        "/api/search?query=",
        "/api/metrics/query_range?start=x&q=",
        "/api/metrics/query?query=",
        "/api/v2/search/tags?q=",
        "/api/v2/search/tag/name/values?q=",
        "/api/v2/traces/1?q=",
    ] {
        let answer = ask(&deps, &format!("{path}{long}"), &[]).await;
        assert_eq!((answer.status, answer.text()), (400, text), "{path}");
    }
}

#[tokio::test]
async fn forms_of_answers() {
    let deps = deps_with(engine("full"));
    let protobuf = async |path: &str| {
        let answer = ask(&deps, path, &[("accept", "application/protobuf")]).await;
        assert_eq!(answer.header("content-type"), "application/protobuf", "{path}");
        answer.body
    };
    let search = tempopb::SearchResponse::decode(protobuf("/api/search?q=%7B%7D").await).unwrap();
    assert_eq!(search.traces[0].trace_id, "f3e0cee77ae5dc9c17ade3689eb2e54");
    assert_eq!(search.traces[0].span_set.as_ref(), search.traces[0].span_sets.first());
    assert_eq!(search.traces[0].service_stats["shop"].error_count, 1);
    assert_eq!(search.metrics.unwrap().total_block_bytes, 9000);
    let tags = tempopb::SearchTagsResponse::decode(protobuf("/api/search/tags").await).unwrap();
    assert_eq!(tags.tag_names, ["cluster", "http.method", "service.name"]);
    let tags = tempopb::SearchTagsV2Response::decode(protobuf("/api/v2/search/tags").await).unwrap();
    assert_eq!(tags.scopes.len(), 3);
    let values = tempopb::SearchTagValuesResponse::decode(protobuf("/api/search/tag/name/values").await).unwrap();
    assert_eq!(values.tag_values, ["", "200", "GET"]);
    let values = tempopb::SearchTagValuesV2Response::decode(protobuf("/api/v2/search/tag/name/values").await).unwrap();
    assert_eq!(values.tag_values[0], tempopb::TagValue { r#type: "int".into(), value: "200".into() });
    // Metrics are JSON whatever was asked for.
    for path in ["/api/metrics/query_range?q=%7B%7D%7Crate()", "/api/metrics/query?q=%7B%7D%7Crate()"] {
        assert_eq!(ask(&deps, path, &[("accept", "application/protobuf")]).await.header("content-type"), "application/json");
    }
    let llm = [("accept", "application/vnd.grafana.llm")];
    assert_eq!(ask(&deps, "/api/search?q=%7B%7D", &llm).await.header("content-type"), "application/json");
    let values = ask(&deps, "/api/v2/search/tag/name/values", &llm).await;
    assert_eq!(values.header("content-type"), "application/vnd.grafana.llm+json");
    assert_eq!(values.text(), r#"{"tagValues":{"int":["200"],"string":["","GET"]},"metrics":{"inspectedBytes":23412}}"#);
    let refused = ask(&deps, "/api/search?q=%7B", &[]).await;
    assert_eq!((refused.status, refused.header("content-type")), (400, "text/plain; charset=utf-8"));
}

#[tokio::test]
async fn large_searches_are_written_whole() {
    let traces = (1..=2000).map(found).collect();
    let search = strictly(&searched(SearchAnswer { traces, stats: QueryStats::default() })).await;
    assert_eq!(search.traces.len(), 2000);
}

#[tokio::test]
async fn a_filter_keeps_matching_spans_and_their_kin() {
    let spans = (1..=4).map(|n| {
        let parent_span_id = (n > 1).then(|| crate::test_util::span_id(n - 1));
        stored(Span { parent_span_id, ..span(n, 1, n) })
    });
    let deps = deps(FakeSnapshots::of(vec![FakeSource::live(spans.collect())]));
    let filtered = async |parameters: &str| {
        let path = format!("/api/v2/traces/{ID}?q=%7Bname=%22span-2%22%7D{parameters}");
        let answer = ask(&deps, &path, &[]).await;
        assert_eq!((answer.status, answer.header("x-spanhouse-partial")), (200, ""));
        let tail =
            r#","status":"PARTIAL","message":"Trace filtered, only a subset of spans matching the filter is returned"}"#;
        assert!(answer.text().ends_with(tail), "{}", answer.text());
        answer.text().matches("spanId").count()
    };
    assert_eq!(filtered("").await, 1);
    assert_eq!(filtered("&match_depth=-1").await, 1);
    assert_eq!(filtered("&keep_hierarchy=true").await, 2);
    assert_eq!(filtered("&keep_hierarchy=true&match_depth=1").await, 3);
    assert_eq!(filtered("&keep_hierarchy=1&match_depth=-1&ancestor_depth=0").await, 3);
    let none = ask(&deps, &format!("/api/v2/traces/{ID}?q=%7Bname=%22x%22%7D"), &[]).await;
    assert!(
        none.text().starts_with(r#"{"trace":{},"metrics":{"inspectedBytes":"400"},"status":"PARTIAL""#),
        "{}",
        none.text()
    );
    for whole in ["%7B%7D", "%7B%20true%20%7D", "%20"] {
        let answer = ask(&deps, &format!("/api/v2/traces/{ID}?q={whole}"), &[]).await;
        assert_eq!((answer.text().matches("spanId").count(), answer.text().contains("PARTIAL")), (4, false));
    }
}
