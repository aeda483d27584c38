//! What is in the ten blocks: each a request of its own, with attributes that change their type from block to block.

use prost::Message;
use spanhouse_common::batch::{ModelReader, SpanBatch};
use spanhouse_common::model::StoredSpan;
use spanhouse_ingester::otlp::walk::{WalkOptions, Walker};
use spanhouse_proto::otlp_common::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value};
use spanhouse_proto::otlp_resource::Resource;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::span::{Event, Link};
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span, Status};

use super::START;

/// An integer that no double holds.
pub(super) const ODD_INTEGER: i64 = 9_007_199_254_740_993;
/// In the block that has filters.
pub(super) const USER: &str = "user-3-1234";
pub(super) const ROUTE: &str = "/shop/1";

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn string(text: &str) -> Value {
    Value::StringValue(text.to_owned())
}

/// The same attribute in each of the types that have columns.
fn status(block: u64, nth: u64) -> Value {
    match block % 5 {
        0 if nth == 7 => Value::IntValue(ODD_INTEGER),
        0 => Value::IntValue(200 + nth as i64 % 3),
        1 => string(["200", "ok", "it's"][nth as usize % 3]),
        2 => Value::DoubleValue(200.5 + (nth % 2) as f64),
        3 => Value::BoolValue(nth.is_multiple_of(2)),
        _ => Value::IntValue(-1),
    }
}

fn events(block: u64, nth: u64) -> Vec<Event> {
    // One block has no events at all, so that its event columns are empty.
    let count = if block == 7 { 0 } else { nth % 3 };
    let code = |at: u64| match block % 3 {
        0 => pair("code", Value::IntValue(at as i64 + if nth == 8 { ODD_INTEGER } else { 0 })),
        1 => pair("code", string(&format!("c{at}"))),
        _ => pair("code", Value::DoubleValue(0.5 + at as f64)),
    };
    let event = |at: u64| Event {
        time_unix_nano: START + nth * 1000 + at,
        name: "exception".to_owned(),
        attributes: vec![code(at), pair(&format!("only.{block}"), string("x"))],
        ..Event::default()
    };
    (0..count).map(event).collect()
}

fn span(block: u64, trace: u64, nth: u64) -> Span {
    let number = trace * 4 + nth;
    let span_id = |nth: u64| (block << 48 | trace << 8 | (nth + 1)).to_be_bytes().to_vec();
    let trace_id = (u128::from(trace.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(block << 32 | trace) | 1 << 60)
        .to_be_bytes()
        .to_vec();
    let mut attributes = vec![
        pair("http.route", string(&format!("/shop/{}", number % 5))),
        pair("http.status_code", status(block, number)),
        pair(&format!("only.in.{block}"), Value::IntValue(number as i64)),
        pair("user.id", string(&format!("user-{block}-{}", number / 2))),
        pair("tags", Value::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(string("a\"b")) }] })),
    ];
    if block == 2 {
        // Another key but for its case, and one with what SQL has to escape.
        attributes.push(pair("Only.In.3", string("case")));
        attributes.push(pair("quo\"te's", Value::BoolValue(true)));
    }
    if number % 4 == 3 {
        // Twice: the second one has no column.
        attributes.push(pair("http.route", string("again")));
    }
    let link = Link {
        trace_id: trace_id.clone(),
        span_id: span_id(9),
        attributes: vec![pair("why", string("retry"))],
        ..Link::default()
    };
    Span {
        trace_id,
        span_id: span_id(nth),
        parent_span_id: if nth == 0 { Vec::new() } else { span_id(nth / 2) },
        name: format!("GET /shop {nth}"),
        kind: 1 + (nth % 5) as i32,
        start_time_unix_nano: START + number * 1000,
        end_time_unix_nano: START + number * 1000 + 17 * (nth + 1),
        attributes,
        events: events(block, number),
        links: if block.is_multiple_of(2) && nth == 1 { vec![link] } else { Vec::new() },
        status: Some(Status { code: (nth % 3) as i32, message: if nth == 2 { "broken".to_owned() } else { String::new() } }),
        ..Span::default()
    }
}

/// The spans of one block, through the walker as a request would come.
pub(super) fn batch(block: u64) -> SpanBatch {
    // One block is large enough for several pages and for filters.
    let traces = if block == 3 { 2500 } else { 25 };
    let spans = (0..traces).flat_map(|trace| (0..4).map(move |nth| span(block, trace, nth))).collect();
    let scope =
        InstrumentationScope { name: "lib".to_owned(), version: block.to_string(), ..InstrumentationScope::default() };
    let attributes = vec![pair("service.name", string(&format!("service-{block}"))), pair("host", Value::IntValue(1))];
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    };
    let walked = Walker::default().walk(&request.encode_to_vec(), WalkOptions::default()).unwrap();
    assert!(walked.refused.is_empty());
    walked.batch
}

/// The spans of a batch as the model has them.
pub(super) fn spans(batch: &SpanBatch) -> Vec<StoredSpan> {
    let mut reader = ModelReader::new(batch);
    (0..batch.len()).map(|at| reader.stored_span(at).unwrap()).collect()
}
