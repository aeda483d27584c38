//! Reading traces back, and bringing answers into a form that can be compared.

use std::collections::BTreeMap;

use prost::Message;
use spanhouse_proto::otlp_trace::{ResourceSpans, Span};
use spanhouse_proto::tempopb::{Trace, TraceByIdResponse};

use super::server::{Answer, Server};

const AS_PROTOBUF: (&str, &str) = ("accept", "application/protobuf");

impl Server {
    /// A trace by v2, as protobuf; empty if there is none.
    pub(crate) async fn trace(&self, id: u128) -> Vec<ResourceSpans> {
        self.trace_as(id, &[]).await
    }

    /// The same with more headers.
    pub(crate) async fn trace_as(&self, id: u128, headers: &[(&str, &str)]) -> Vec<ResourceSpans> {
        let mut headers = headers.to_vec();
        headers.push(AS_PROTOBUF);
        let answer = self.get_with(&format!("/api/v2/traces/{id:032x}"), &headers).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        v2(&answer)
    }

    /// A trace by v1, as protobuf; `None` for 404.
    pub(crate) async fn trace_v1(&self, id: u128) -> Option<Vec<ResourceSpans>> {
        let answer = self.get_with(&format!("/api/traces/{id:032x}"), &[AS_PROTOBUF]).await;
        match answer.status {
            200 => Some(Trace::decode(&answer.body[..]).expect("a Trace").resource_spans),
            404 => None,
            other => panic!("{other}: {}", answer.text()),
        }
    }

    /// The trace as JSON, v1 or v2.
    pub(crate) async fn trace_json(&self, id: u128, version: u8) -> serde_json::Value {
        let path = if version == 1 { format!("/api/traces/{id:032x}") } else { format!("/api/v2/traces/{id:032x}") };
        let answer = self.get_with(&path, &[("accept", "application/json")]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// Fails unless the trace is exactly the spans that were sent.
    pub(crate) async fn expect_whole(&self, id: u128, sent: &[Span]) {
        expect_same_spans(spans(&self.trace(id).await), sent);
    }
}

/// Fails at the first span that differs.
pub(crate) fn expect_same_spans<'a>(found: impl IntoIterator<Item = &'a Span>, sent: &[Span]) {
    let found: Vec<&Span> = found.into_iter().collect();
    let (by_id, sent) = (by_id(found.iter().copied()), by_id(sent));
    assert_eq!(by_id.keys().collect::<Vec<_>>(), sent.keys().collect::<Vec<_>>(), "ids of the spans");
    assert_eq!(found.len(), sent.len(), "a span twice");
    for (found, sent) in by_id.values().zip(sent.values()) {
        assert_eq!(found, sent);
    }
}

pub(crate) fn v2(answer: &Answer) -> Vec<ResourceSpans> {
    let response = TraceByIdResponse::decode(&answer.body[..]).expect("a TraceByIDResponse");
    assert_eq!((response.status, response.message.as_str()), (0, ""), "the answer says it is partial");
    response.trace.unwrap_or_default().resource_spans
}

/// All spans of an answer, in its order.
pub(crate) fn spans(answer: &[ResourceSpans]) -> impl Iterator<Item = &Span> {
    answer.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans)
}

/// Spans by their ids.
pub(crate) fn by_id<'a>(spans: impl IntoIterator<Item = &'a Span>) -> BTreeMap<Vec<u8>, &'a Span> {
    spans.into_iter().map(|span| (span.span_id.clone(), span)).collect()
}
