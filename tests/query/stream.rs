//! Streams over gRPC on the real ports: the last answer is that of HTTP.

use std::net::SocketAddr;

use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value as Json, json};
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_common::{AnyValue, KeyValue};
use spanhouse_proto::tempopb;
use spanhouse_proto::tempopb::streaming_querier_client::StreamingQuerierClient;
use tokio::net::TcpStream;
use tonic::client::GrpcService;
use tonic::{Code, Streaming};

use super::shop::{SECOND, Shop};
use crate::harness::ask::{by_labels, list, path};
use crate::harness::server::{Server, Setup};

/// A connection without TLS, as Grafana dials it.
pub(super) async fn dial(
    port: SocketAddr,
) -> StreamingQuerierClient<impl GrpcService<tonic::body::Body, ResponseBody = hyper::body::Incoming> + Clone> {
    let io = TokioIo::new(TcpStream::connect(port).await.expect("a connection"));
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| sender.clone().send_request(request));
    StreamingQuerierClient::with_origin(service, format!("http://{port}").parse().expect("a URI"))
}

/// All messages, and the trailer that tells what is missing.
pub(super) async fn collect<M>(mut stream: Streaming<M>) -> (Vec<M>, Option<String>) {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.expect("a message") {
        messages.push(message);
    }
    let trailers = stream.trailers().await.expect("trailers").unwrap_or_default();
    (messages, trailers.get("x-spanhouse-partial").map(|why| why.to_str().expect("ASCII").to_owned()))
}

/// Labels as JSON has them.
fn labels(labels: &[KeyValue]) -> Json {
    let value = |value: &AnyValue| match value.value.as_ref().expect("a value") {
        Value::StringValue(text) => json!({ "stringValue": text }),
        Value::IntValue(value) => json!({ "intValue": value.to_string() }),
        Value::BoolValue(value) => json!({ "boolValue": value }),
        Value::DoubleValue(value) if value.fract() == 0.0 => json!({ "doubleValue": *value as i64 }),
        Value::DoubleValue(value) => json!({ "doubleValue": value }),
        other => panic!("no label is {other:?}"),
    };
    labels.iter().map(|label| json!({ "key": label.key, "value": value(label.value.as_ref().expect("a value")) })).collect()
}

fn range_json(series: &tempopb::TimeSeries) -> Json {
    let sample = |one: &tempopb::Sample| json!({ "timestampMs": one.timestamp_ms, "value": one.value });
    json!({ "labels": labels(&series.labels), "samples": series.samples.iter().map(sample).collect::<Vec<_>>() })
}

async fn by_http<M: Message + Default>(server: &Server, endpoint: &str, parameters: &[(&str, &str)]) -> M {
    let answer = server.get_with(&path(endpoint, parameters), &[("accept", "application/protobuf")]).await;
    assert_eq!(answer.status, 200, "{parameters:?}: {}", answer.text());
    M::decode(&answer.body[..]).expect("the message of the endpoint")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_message_is_the_answer_of_http() {
    let server = Setup::new().with("FLUSH_MAX_AGE", "1s").start().await;
    let shop = Shop::new();
    shop.send_all(&server).await;
    // At rest, so that both count the same jobs.
    server.until_flushed(shop.spans()).await;
    let (start, end) = shop.range();
    let (from, to) = (start.to_string(), end.to_string());
    let range = [("start", &*from), ("end", &*to)];
    for port in [server.ports.query, server.ports.query_grpc] {
        let mut client = dial(port).await;
        for query in [
            "{}",
            "{ status = error } | select(span.http.status_code)",
            "{} | by(resource.service.name)",
            "{ name = `none` }",
        ] {
            let request = tempopb::SearchRequest {
                query: query.into(),
                limit: 50,
                spans_per_span_set: 5,
                start: start as u32,
                end: end as u32,
                ..Default::default()
            };
            let stream = client.search(request).await.expect("a stream").into_inner();
            let (mut messages, partial) = collect(stream).await;
            let last = messages.pop().expect("a message");
            let mut expected: tempopb::SearchResponse =
                by_http(&server, "/api/search", &[&range[..], &[("q", query), ("limit", "50"), ("spss", "5")]].concat())
                    .await;
            assert_eq!((&last.traces, partial), (&expected.traces, None), "{query}");
            assert!(messages.iter().all(|message| message.traces.is_empty()), "{query}: a trace twice");
            let (metrics, known) = (last.metrics.expect("metrics"), expected.metrics.take().expect("metrics"));
            assert!(metrics.total_jobs > 0 && metrics.completed_jobs == metrics.total_jobs, "{metrics:?}");
            assert_eq!((metrics.total_jobs, metrics.inspected_spans), (known.total_jobs, known.inspected_spans));
        }
        for query in [
            "{} | rate()",
            "{} | quantile_over_time(duration, 0.5, 0.9) by (resource.service.name)",
            "{} | count_over_time() by (name) | topk(2)",
            "{ nestedSetParent < 0 } | compare({ status = error })",
            "{ name = `none` } | rate() by (name)",
        ] {
            let request = tempopb::QueryRangeRequest {
                query: query.into(),
                start: start * SECOND,
                end: end * SECOND,
                step: 10 * SECOND,
                ..Default::default()
            };
            let stream = client.metrics_query_range(request).await.expect("a stream").into_inner();
            let (mut messages, partial) = collect(stream).await;
            let last = messages.pop().expect("a message");
            let expected = server.series("query_range", query, &[&range[..], &[("step", "10")]].concat()).await;
            let found: Vec<Json> = last.series.iter().map(range_json).collect();
            assert_eq!((by_labels(&found), last.status, partial), (by_labels(&expected), 0, None), "{query}");
            let exemplars: usize = last.series.iter().map(|series| series.exemplars.len()).sum();
            let known: usize = expected.iter().filter_map(|one| one.get("exemplars")).map(|all| list(all).len()).sum();
            assert_eq!(exemplars, known, "{query}");
            assert!(last.metrics.is_some_and(|m| m.total_jobs > 0 && m.completed_jobs == m.total_jobs), "{query}");

            let request = tempopb::QueryInstantRequest { query: query.into(), start: start * SECOND, end: end * SECOND };
            let stream = client.metrics_query_instant(request).await.expect("a stream").into_inner();
            let (messages, partial) = collect(stream).await;
            let expected = server.series("query", query, &range).await;
            let last = messages.last().expect("a message");
            let found: Vec<Json> =
                last.series.iter().map(|one| json!({ "labels": labels(&one.labels), "value": one.value })).collect();
            assert_eq!((by_labels(&found), last.status, partial), (by_labels(&expected), 0, None), "{query}");
        }
        let bad = tempopb::SearchRequest { query: "{ foo }".into(), ..Default::default() };
        let status = client.search(bad).await.expect_err("a refusal");
        let text = server.ask("/api/search", &[("q", "{ foo }")]).await.text();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text.trim_end()));
        let bad = tempopb::QueryRangeRequest { query: "{}".into(), start: 1, end: SECOND, ..Default::default() };
        assert_eq!(client.metrics_query_range(bad).await.expect_err("a refusal").code(), Code::Unknown);
    }
}
