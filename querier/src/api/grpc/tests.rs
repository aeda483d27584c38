//! Calls over the router, in memory: messages, their order and size, statuses and trailers.

use std::time::Duration;

use spanhouse_proto::tempopb::streaming_querier_client::StreamingQuerierClient;
use tonic::{Code, Streaming};

use super::*;
use crate::api::router;
use crate::api::tests::cases::{attribute, engine, found};
use crate::api::tests::{ask, deps_with};
use crate::engine::EngineError;
use crate::engine::answer::{
    AnswerValue, Sample, SearchAnswer, Series, TagNamesAnswer, TagScope, TagValue, TagValuesAnswer,
};
use crate::test_util::FakeEngine;

const NOW: u64 = 1_700_000_000_000_000_000;
const RATE: &str = "{ } | rate()";

fn client(deps: &ApiDeps) -> StreamingQuerierClient<Router> {
    StreamingQuerierClient::new(router(deps.clone()))
}

fn search_request(query: &str) -> tempopb::SearchRequest {
    tempopb::SearchRequest { query: query.into(), ..Default::default() }
}

fn range_request(query: &str) -> tempopb::QueryRangeRequest {
    tempopb::QueryRangeRequest { query: query.into(), start: NOW - 3_600_000_000_000, end: NOW, ..Default::default() }
}

/// All messages, and the trailer that tells what is missing.
async fn collect<M>(mut stream: Streaming<M>) -> Result<(Vec<M>, Option<String>), Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    let trailers = stream.trailers().await?.unwrap_or_default();
    Ok((messages, trailers.get("x-spanhouse-partial").map(|why| why.to_str().unwrap().to_owned())))
}

async fn search(deps: &ApiDeps, request: tempopb::SearchRequest) -> Result<Vec<tempopb::SearchResponse>, Status> {
    let stream = client(deps).search(request).await?.into_inner();
    Ok(collect(stream).await?.0)
}

#[tokio::test]
async fn an_empty_store_still_says_something() {
    let deps = deps_with(FakeEngine::default());
    let health = tempopb::SearchRequest { limit: 1, start: 1_699_999_100, end: 1_700_000_000, ..search_request("{}") };
    let messages = search(&deps, health).await.unwrap();
    let metrics = messages[0].metrics.clone().unwrap();
    assert_eq!((messages.len(), messages[0].traces.len()), (1, 0));
    assert_eq!((metrics.completed_jobs, metrics.total_jobs), (1, 1));
    let range = client(&deps).metrics_query_range(range_request(RATE)).await.unwrap().into_inner();
    assert!(collect(range).await.unwrap().0[0].metrics.is_some());
    let instant = tempopb::QueryInstantRequest { query: RATE.into(), start: NOW - 1, end: NOW };
    let instant = client(&deps).metrics_query_instant(instant).await.unwrap().into_inner();
    assert!(collect(instant).await.unwrap().0[0].metrics.is_some());
    let tags = client(&deps).search_tags(tempopb::SearchTagsRequest::default()).await.unwrap().into_inner();
    assert!(collect(tags).await.unwrap().0[0].metrics.is_some());
}

#[tokio::test]
async fn large_answers_go_in_packets() {
    let fat = |nth: u128| {
        let mut trace = found(nth);
        let set = &mut trace.span_sets[0];
        let mut span = set.spans[0].clone();
        span.attributes = vec![attribute("fat", AnswerValue::Str("x".repeat(1000).into()))];
        set.spans = vec![span; 20];
        trace
    };
    let deps = deps_with(FakeEngine {
        search: Ok(SearchAnswer { traces: (0..200).map(fat).collect(), stats: QueryStats::default() }),
        ..FakeEngine::default()
    });
    let messages = search(&deps, search_request("{}")).await.unwrap();
    assert!(messages.len() > 4);
    let mut ids = Vec::new();
    for message in &messages {
        assert!(prost::Message::encoded_len(message) <= 1 << 20);
        assert!(message.metrics.is_some() && !message.traces.is_empty());
        ids.extend(message.traces.iter().map(|trace| trace.trace_id.clone()));
    }
    assert_eq!(ids.len(), 200);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200, "each trace is sent once");
}

#[tokio::test]
async fn progress_is_told_by_counts_alone() {
    let stats = |completed_jobs| QueryStats { completed_jobs, total_jobs: 9, ..QueryStats::default() };
    let fake = FakeEngine {
        search: Ok(SearchAnswer { traces: vec![found(1), found(2)], stats: stats(9) }),
        metrics: engine("full").metrics,
        progress: (1..9).map(stats).collect(),
        pause: Duration::from_millis(150),
        ..FakeEngine::default()
    };
    let deps = deps_with(fake);
    let messages = search(&deps, search_request("{}")).await.unwrap();
    // 1.35 seconds, a message each half.
    assert_eq!(messages.len(), 3);
    let jobs: Vec<u32> = messages.iter().map(|message| message.metrics.as_ref().unwrap().completed_jobs).collect();
    assert!(jobs.is_sorted() && jobs[0] >= 1 && jobs[2] == 9, "{jobs:?}");
    assert_eq!(messages.iter().map(|message| message.traces.len()).collect::<Vec<_>>(), [0, 0, 2]);
    let range = client(&deps).metrics_query_range(range_request(RATE)).await.unwrap().into_inner();
    let messages = collect(range).await.unwrap().0;
    assert_eq!(messages.iter().map(|message| message.series.len()).collect::<Vec<_>>(), [0, 0, 1]);
    let instant = tempopb::QueryInstantRequest { query: RATE.into(), start: NOW - 1, end: NOW };
    let instant = client(&deps).metrics_query_instant(instant).await.unwrap().into_inner();
    assert_eq!(collect(instant).await.unwrap().0.len(), 1, "each message would replace the one before");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_query() {
    #[derive(Debug)]
    struct Held(FakeEngine, Arc<()>);
    #[async_trait::async_trait]
    impl crate::engine::QueryEngine for Held {
        async fn search(
            &self,
            _: crate::engine::SearchRequest,
            progress: &dyn crate::engine::Progress<SearchAnswer>,
        ) -> Result<SearchAnswer, EngineError> {
            let _held = Arc::clone(&self.1);
            progress.so_far(SearchAnswer::default());
            std::future::pending().await
        }
        async fn metrics(
            &self,
            request: crate::engine::MetricsRequest,
            progress: &dyn crate::engine::Progress<SeriesAnswer>,
        ) -> Result<SeriesAnswer, EngineError> {
            self.0.metrics(request, progress).await
        }
        async fn tag_names(&self, request: crate::engine::TagNamesRequest) -> Result<TagNamesAnswer, EngineError> {
            self.0.tag_names(request).await
        }
        async fn tag_values(&self, request: crate::engine::TagValuesRequest) -> Result<TagValuesAnswer, EngineError> {
            self.0.tag_values(request).await
        }
        async fn operations(
            &self,
            request: crate::engine::OperationsRequest,
        ) -> Result<crate::engine::answer::OperationsAnswer, EngineError> {
            self.0.operations(request).await
        }
        async fn edges(
            &self,
            request: crate::engine::EdgesRequest,
        ) -> Result<crate::engine::answer::EdgesAnswer, EngineError> {
            self.0.edges(request).await
        }
        fn span_filter(&self, filter: &crate::traceql::ast::FieldExpr) -> crate::engine::SpanPredicate {
            self.0.span_filter(filter)
        }
    }
    let held = Arc::new(());
    let engine = Held(FakeEngine::default(), Arc::clone(&held));
    let deps = ApiDeps { engine: Arc::new(engine), ..deps_with(FakeEngine::default()) };
    let mut stream = client(&deps).search(search_request("{}")).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().metrics.is_some());
    assert_eq!(Arc::strong_count(&held), 3);
    drop(stream);
    assert_eq!(Arc::strong_count(&held), 2);
}

#[tokio::test]
async fn streams_say_what_http_says() {
    let deps = deps_with(engine("full"));
    let streamed = search(&deps, search_request("{}")).await.unwrap();
    let accept = [("accept", "application/protobuf")];
    let asked = ask(&deps, "/api/search?q=%7B%7D", &accept).await;
    assert_eq!(streamed, [prost::Message::decode(asked.bytes()).unwrap()]);
    let names = client(&deps).search_tags_v2(tempopb::SearchTagsRequest::default()).await.unwrap().into_inner();
    let asked = ask(&deps, "/api/v2/search/tags", &accept).await;
    assert_eq!(collect(names).await.unwrap().0, [prost::Message::decode(asked.bytes()).unwrap()]);
    let request = tempopb::SearchTagValuesRequest { tag_name: "name".into(), ..Default::default() };
    let values = client(&deps).search_tag_values(request.clone()).await.unwrap().into_inner();
    let asked = ask(&deps, "/api/search/tag/name/values", &accept).await;
    assert_eq!(collect(values).await.unwrap().0, [prost::Message::decode(asked.bytes()).unwrap()]);
    let values = client(&deps).search_tag_values_v2(request).await.unwrap().into_inner();
    let asked = ask(&deps, "/api/v2/search/tag/name/values", &accept).await;
    assert_eq!(collect(values).await.unwrap().0, [prost::Message::decode(asked.bytes()).unwrap()]);
    let range = client(&deps).metrics_query_range(range_request(RATE)).await.unwrap().into_inner();
    let (messages, partial) = collect(range).await.unwrap();
    assert_eq!((messages[0].series[0].samples.len(), messages[0].status, partial), (2, 0, None));
    assert_eq!(messages[0].series[0].exemplars[0].labels[0].key, "trace:id");
}

#[tokio::test]
async fn what_is_missing_stands_in_trailer_and_last_message() {
    let deps = deps_with(engine("partial"));
    let stream = client(&deps).search(search_request("{}")).await.unwrap().into_inner();
    let (messages, partial) = collect(stream).await.unwrap();
    assert_eq!((messages.len(), partial.as_deref()), (1, Some("block b1 is damaged")));
    let series = |nth: i64| Series {
        labels: vec![attribute("label", AnswerValue::Str("x".repeat(1000).into())), attribute("nth", AnswerValue::Int(nth))],
        samples: vec![Sample { timestamp_ms: 1, value: 1.0 }],
        exemplars: Vec::new(),
    };
    let stats = QueryStats { partial: Some("too many series".into()), ..QueryStats::default() };
    let metrics = Ok(SeriesAnswer { series: (0..3000).map(series).collect(), stats });
    let deps = deps_with(FakeEngine { metrics, ..FakeEngine::default() });
    let range = client(&deps).metrics_query_range(range_request(RATE)).await.unwrap().into_inner();
    let (messages, partial) = collect(range).await.unwrap();
    let told: Vec<(i32, &str)> = messages.iter().map(|message| (message.status, message.message.as_str())).collect();
    let (last, others) = told.split_last().unwrap();
    assert_eq!(*last, (1, "too many series"));
    assert!(others.len() >= 2 && others.iter().all(|told| *told == (0, "")));
    assert_eq!(messages.iter().map(|message| message.series.len()).sum::<usize>(), 3000);
    assert_eq!(partial.as_deref(), Some("too many series"));
    let instant = tempopb::QueryInstantRequest { query: RATE.into(), start: NOW - 1, end: NOW };
    let instant = client(&deps).metrics_query_instant(instant).await.unwrap().into_inner();
    let (messages, _) = collect(instant).await.unwrap();
    assert!(messages.len() >= 3 && messages.last().unwrap().status == 1);
}

#[tokio::test]
async fn a_scope_over_several_messages_keeps_its_name() {
    let tags = (0..3000).map(|nth| format!("{nth:0>1000}")).collect();
    let scopes = vec![TagScope { name: "span", tags }, TagScope { name: "resource", tags: vec!["a".into()] }];
    let names = Ok(TagNamesAnswer { scopes, stats: QueryStats::default() });
    let values = (0..3000).map(|nth| TagValue { kind: "string", text: format!("{nth:0>1000}") }).collect();
    let values = Ok(TagValuesAnswer { values, stats: QueryStats::default() });
    let mut deps = deps_with(FakeEngine { tag_names: names, tag_values: values, ..FakeEngine::default() });
    deps.settings.max_tag_bytes = usize::MAX;
    let request = tempopb::SearchTagsRequest { scope: "none".into(), ..Default::default() };
    let stream = client(&deps).search_tags_v2(request).await.unwrap().into_inner();
    let (messages, _) = collect(stream).await.unwrap();
    assert!(messages.len() >= 3);
    assert!(messages[..2].iter().all(|message| message.scopes[0].name == "span"));
    let last: Vec<&str> = messages.last().unwrap().scopes.iter().map(|scope| scope.name.as_str()).collect();
    assert_eq!(last, ["span", "resource", "intrinsic"]);
    let request = tempopb::SearchTagValuesRequest { tag_name: ".x".into(), ..Default::default() };
    let stream = client(&deps).search_tag_values_v2(request).await.unwrap().into_inner();
    let (messages, _) = collect(stream).await.unwrap();
    assert_eq!(messages.iter().map(|message| message.tag_values.len()).sum::<usize>(), 3000);
}

#[tokio::test]
async fn refusals_have_the_texts_of_http() {
    let deps = deps_with(FakeEngine::default());
    let refused = async |request| search(&deps, request).await.unwrap_err();
    let bad = [
        (search_request("{foo}"), "invalid TraceQL query: parse error at line 1, col 2: unknown identifier: foo"),
        (
            tempopb::SearchRequest { end: 2, ..search_request("{}") },
            "error parsing date range: only one of start and end provided: must provide both or neither",
        ),
        (
            tempopb::SearchRequest { start: 3, end: 2, ..search_request("{}") },
            "http parameter start must be before end. received start=3 end=2",
        ),
        (tempopb::SearchRequest { limit: 300_000, ..search_request("{}") }, "limit 300000 exceeds max limit 262144"),
        (
            search_request(&"x".repeat(131_073)),
            "TraceQL expression exceeds the configured maximum size of 131072 bytes, reduce the query expression size or \
             contact your system administrator",
        ),
    ];
    for (request, text) in bad {
        let status = refused(request).await;
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    let range = async |request| client(&deps).metrics_query_range(request).await.unwrap_err();
    let status = range(range_request("{}")).await;
    assert_eq!((status.code(), status.message()), (Code::Unknown, "not a metrics query"));
    let status = range(range_request("")).await;
    assert_eq!((status.code(), status.message()), (Code::Unknown, "parse error : syntax error: unexpected $end"));
    let status = range(tempopb::QueryRangeRequest { start: NOW, ..range_request(RATE) }).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "end must be greater than start"));
    let instant = tempopb::QueryInstantRequest { query: RATE.into(), ..Default::default() };
    let status = client(&deps).metrics_query_instant(instant).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "end must be greater than start"));
    let values = tempopb::SearchTagValuesRequest::default();
    let status = client(&deps).search_tag_values(values).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "please provide a non-empty tagName"));
    let values = tempopb::SearchTagValuesRequest { tag_name: "service.name".into(), ..Default::default() };
    assert_eq!(client(&deps).search_tag_values_v2(values).await.unwrap_err().code(), Code::InvalidArgument);

    let failures = [
        (EngineError::Evaluation("division by zero".into()), Code::Internal, "division by zero"),
        (EngineError::Deadline, Code::Internal, "context deadline exceeded"),
        (EngineError::Busy, Code::ResourceExhausted, "too many outstanding requests"),
        (EngineError::OverBudget("too much".into()), Code::Unknown, "too much"),
    ];
    for (error, code, text) in failures {
        let status = search(&deps_with(FakeEngine::failing(error)), search_request("{}")).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text));
    }
}

#[tokio::test]
async fn tenants_may_be_named_twice_in_the_same_words() {
    let mut deps = deps_with(FakeEngine::default());
    deps.settings.multitenancy = true;
    let call = async |names: &[&str]| {
        let mut request = Request::new(search_request("{}"));
        for name in names {
            request.metadata_mut().append("x-scope-orgid", name.parse().unwrap());
        }
        request.metadata_mut().insert("authorization", "Basic YTpi".parse().unwrap());
        client(&deps).search(request).await.map(drop).map_err(|status| (status.code(), status.message().to_owned()))
    };
    assert_eq!(call(&["a"]).await, Ok(()));
    assert_eq!(call(&["a", "a"]).await, Ok(()));
    assert_eq!(call(&["a|b"]).await, Ok(()));
    assert_eq!(call(&["a", "b"]).await, Err((Code::InvalidArgument, "multiple org IDs present".into())));
    assert_eq!(call(&[]).await, Err((Code::Unauthenticated, "no org id".into())));
    assert_eq!(call(&["a/b"]).await.unwrap_err().0, Code::InvalidArgument);
}

#[tokio::test]
async fn the_port_of_its_own_speaks_nothing_else() {
    let deps = deps_with(FakeEngine::default());
    let mut own = StreamingQuerierClient::new(grpc_router(&deps));
    assert!(own.search(search_request("{}")).await.is_ok());
    let request = axum::http::Request::get("/api/echo").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(grpc_router(&deps), request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
}

#[tokio::test]
async fn calls_are_counted_by_method() {
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = crate::metrics::QuerierMetrics::register(&mut registry);
    let deps = ApiDeps { metrics, ..deps_with(engine("partial")) };
    search(&deps, search_request("{}")).await.unwrap();
    search(&deps, search_request("{")).await.unwrap_err();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "requests_total{route=\"/tempopb.StreamingQuerier/Search\",status=\"200\"} 1",
        "requests_total{route=\"/tempopb.StreamingQuerier/Search\",status=\"400\"} 1",
        "partial_answers_total{reason=\"query\"} 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}
