//! Spans as a sender makes them, and sending them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_common::{AnyValue, InstrumentationScope, KeyValue};
use spanhouse_proto::otlp_resource::Resource;
use spanhouse_proto::otlp_service::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span, Status, span};

use super::server::{Answer, Server};

/// A trace id nothing else in this run has.
pub(crate) fn new_id() -> u128 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Spread over the id space as real ones are, so that blocks and filters see what they are made for.
    let n = u128::from(NEXT.fetch_add(1, Relaxed));
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_nanos() as u64
}

pub(crate) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The id of the n-th span (from 1) of any trace.
pub(crate) fn span_id(n: u64) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

/// The n-th span of a trace, with something in every part; span 1 is the root.
pub(crate) fn span(trace: u128, n: u64) -> Span {
    let start = now();
    let text = |key: &str, value: String| attribute(key, Value::StringValue(value));
    let failed = n.is_multiple_of(3);
    Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: span_id(n),
        parent_span_id: if n == 1 { Vec::new() } else { span_id(n / 2) },
        name: format!("step {n}"),
        kind: (n % 5 + 1) as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_000_000 * n,
        attributes: vec![
            text("http.route", format!("/cart/{}", n % 7)),
            text("user.id", format!("user-{:08x}", trace as u32)),
            attribute("http.status_code", Value::IntValue(200 + (n % 4) as i64 * 100)),
            attribute("cache.hit", Value::BoolValue(n.is_multiple_of(2))),
            attribute("load", Value::DoubleValue(n as f64 / 8.0)),
        ],
        events: (failed)
            .then(|| span::Event {
                time_unix_nano: start + 10,
                name: "exception".into(),
                attributes: vec![text("exception.message", "no such item".into())],
                ..span::Event::default()
            })
            .into_iter()
            .collect(),
        links: (n == 2)
            .then(|| span::Link { trace_id: (!trace).to_be_bytes().to_vec(), span_id: span_id(9), ..span::Link::default() })
            .into_iter()
            .collect(),
        // Never absent: answers always have a status, as clients expect.
        status: Some(if failed { Status { message: "failed".into(), code: 2 } } else { Status::default() }),
        ..Span::default()
    }
}

/// Spans of one service.
pub(crate) fn of_service(service: &str, spans: Vec<Span>) -> ResourceSpans {
    let name = attribute("service.name", Value::StringValue(service.to_owned()));
    ResourceSpans {
        resource: Some(Resource { attributes: vec![name], ..Resource::default() }),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: "tests".into(),
                version: "1".into(),
                ..InstrumentationScope::default()
            }),
            spans,
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    }
}

pub(crate) fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest { resource_spans: vec![of_service("shop", spans)] }
}

/// Spans 1 to `spans` of a trace.
pub(crate) fn trace(id: u128, spans: u64) -> Vec<Span> {
    (1..=spans).map(|n| span(id, n)).collect()
}

impl Server {
    /// POST to `/v1/traces`, whatever the bytes.
    pub(crate) async fn post(&self, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
        let mut request = self.client.post(self.otlp_url()).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request).await.unwrap_or_else(|e| panic!("POST: {e:?}"))
    }

    /// Sends a request as protobuf and checks that all of it was acknowledged.
    pub(crate) async fn send(&self, request: &ExportTraceServiceRequest) {
        let answer = self.post(&[PROTOBUF], request.encode_to_vec()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let partial = response(&answer).partial_success.unwrap_or_default();
        assert_eq!((partial.rejected_spans, partial.error_message.as_str()), (0, ""));
    }
}

pub(crate) const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");

pub(crate) fn response(answer: &Answer) -> ExportTraceServiceResponse {
    ExportTraceServiceResponse::decode(&answer.body[..]).expect("an ExportTraceServiceResponse")
}
