//! Protobuf of what queries answer: Tempo's messages, for HTTP and gRPC alike.
//!
//! Owns the translation, nothing of transport. The rules of [`crate::json::answers`] hold here too.

use spanhouse_proto::otlp_common::{AnyValue, ArrayValue, KeyValue, any_value};
use spanhouse_proto::tempopb;

use crate::engine::answer::{
    AnswerAttribute, AnswerValue, QueryStats, SearchAnswer, Series, SeriesAnswer, SpanResult, SpanSetResult, TagNamesAnswer,
    TagScope, TagValue, TagValuesAnswer, TraceResult,
};
use crate::json::answers::{ROOT_NOT_RECEIVED, duration_ms};

pub fn search(answer: SearchAnswer) -> tempopb::SearchResponse {
    let metrics = Some(search_metrics(&answer.stats));
    tempopb::SearchResponse { traces: answer.traces.into_iter().map(trace).collect(), metrics }
}

pub fn trace(trace: TraceResult) -> tempopb::TraceSearchMetadata {
    let duration_ms = duration_ms(&trace);
    let span_sets: Vec<_> = trace.span_sets.into_iter().filter(|set| !set.spans.is_empty()).map(span_set).collect();
    let stats = |stats: crate::engine::answer::ServiceStats| {
        let value = tempopb::ServiceStats { span_count: stats.spans, error_count: stats.errors };
        (stats.service.to_string(), value)
    };
    tempopb::TraceSearchMetadata {
        trace_id: format!("{:x}", u128::from_be_bytes(trace.trace_id.0)),
        root_service_name: trace.root_service.as_deref().unwrap_or(ROOT_NOT_RECEIVED).to_owned(),
        root_trace_name: trace.root_name.as_deref().unwrap_or_default().to_owned(),
        start_time_unix_nano: trace.start_unix_nano,
        duration_ms,
        span_set: span_sets.first().cloned(),
        span_sets,
        service_stats: trace.services.into_iter().map(stats).collect(),
    }
}

fn span_set(set: SpanSetResult) -> tempopb::SpanSet {
    tempopb::SpanSet {
        spans: set.spans.into_iter().map(span).collect(),
        matched: set.matched,
        attributes: attributes(set.attributes),
    }
}

fn span(span: SpanResult) -> tempopb::Span {
    tempopb::Span {
        span_id: format!("{:016x}", u64::from_be_bytes(span.span_id.0)),
        name: span.name.as_deref().unwrap_or_default().to_owned(),
        start_time_unix_nano: span.start_unix_nano,
        duration_nanos: span.duration_nanos,
        attributes: attributes(span.attributes),
    }
}

pub fn query_range(answer: SeriesAnswer) -> tempopb::QueryRangeResponse {
    let (status, message) = partial(&answer.stats);
    tempopb::QueryRangeResponse {
        metrics: Some(search_metrics(&answer.stats)),
        series: answer.series.into_iter().map(series).collect(),
        status,
        message,
    }
}

fn series(series: Series) -> tempopb::TimeSeries {
    let exemplar = |exemplar: crate::engine::answer::Exemplar| tempopb::Exemplar {
        labels: attributes(exemplar.labels),
        value: exemplar.value,
        timestamp_ms: exemplar.timestamp_ms,
    };
    let samples = series.samples.iter();
    tempopb::TimeSeries {
        labels: attributes(series.labels),
        samples: samples.map(|s| tempopb::Sample { timestamp_ms: s.timestamp_ms, value: s.value }).collect(),
        exemplars: series.exemplars.into_iter().map(exemplar).collect(),
    }
}

/// A series has the one value of its only sample; without one it is left out.
pub fn query_instant(answer: SeriesAnswer) -> tempopb::QueryInstantResponse {
    let (status, message) = partial(&answer.stats);
    let series = |series: Series| {
        let value = series.samples.first()?.value;
        Some(tempopb::InstantSeries { labels: attributes(series.labels), value })
    };
    tempopb::QueryInstantResponse {
        metrics: Some(search_metrics(&answer.stats)),
        series: answer.series.into_iter().filter_map(series).collect(),
        status,
        message,
    }
}

fn partial(stats: &QueryStats) -> (i32, String) {
    match &stats.partial {
        None => (tempopb::PartialStatus::Complete.into(), String::new()),
        Some(message) => (tempopb::PartialStatus::Partial.into(), message.clone()),
    }
}

pub fn tag_names_v1(tag_names: Vec<String>, stats: &QueryStats) -> tempopb::SearchTagsResponse {
    tempopb::SearchTagsResponse { tag_names, metrics: Some(metadata_metrics(stats)) }
}

pub fn tag_names_v2(answer: TagNamesAnswer) -> tempopb::SearchTagsV2Response {
    let scope = |scope: TagScope| tempopb::SearchTagsV2Scope { name: scope.name.to_owned(), tags: scope.tags };
    let metrics = Some(metadata_metrics(&answer.stats));
    tempopb::SearchTagsV2Response { scopes: answer.scopes.into_iter().map(scope).collect(), metrics }
}

pub fn tag_values_v1(tag_values: Vec<String>, stats: &QueryStats) -> tempopb::SearchTagValuesResponse {
    tempopb::SearchTagValuesResponse { tag_values, metrics: Some(metadata_metrics(stats)) }
}

pub fn tag_values_v2(answer: TagValuesAnswer) -> tempopb::SearchTagValuesV2Response {
    let value = |value: TagValue| tempopb::TagValue { r#type: value.kind.to_owned(), value: value.text };
    let metrics = Some(metadata_metrics(&answer.stats));
    tempopb::SearchTagValuesV2Response { tag_values: answer.values.into_iter().map(value).collect(), metrics }
}

/// Only what Grafana's older messages know too.
pub fn search_metrics(stats: &QueryStats) -> tempopb::SearchMetrics {
    tempopb::SearchMetrics {
        inspected_traces: stats.inspected_traces,
        inspected_bytes: stats.inspected_bytes,
        total_blocks: stats.total_blocks,
        completed_jobs: stats.completed_jobs,
        total_jobs: stats.total_jobs,
        total_block_bytes: stats.total_block_bytes,
        inspected_spans: stats.inspected_spans,
        ..Default::default()
    }
}

fn metadata_metrics(stats: &QueryStats) -> tempopb::MetadataMetrics {
    tempopb::MetadataMetrics {
        inspected_bytes: stats.inspected_bytes,
        total_jobs: stats.total_jobs,
        completed_jobs: stats.completed_jobs,
        total_blocks: stats.total_blocks,
        total_block_bytes: stats.total_block_bytes,
        ..Default::default()
    }
}

fn attributes(attributes: Vec<AnswerAttribute>) -> Vec<KeyValue> {
    let pair = |attribute: AnswerAttribute| KeyValue {
        key: attribute.key.to_string(),
        value: Some(to_any_value(attribute.value)),
        ..Default::default()
    };
    attributes.into_iter().map(pair).collect()
}

fn to_any_value(value: AnswerValue) -> AnyValue {
    use any_value::Value;
    let value = match value {
        AnswerValue::Str(text) => Value::StringValue(text.to_string()),
        AnswerValue::Int(value) => Value::IntValue(value),
        AnswerValue::Float(value) => Value::DoubleValue(value),
        AnswerValue::Bool(value) => Value::BoolValue(value),
        AnswerValue::Array(values) => {
            Value::ArrayValue(ArrayValue { values: values.into_iter().map(to_any_value).collect() })
        }
    };
    AnyValue { value: Some(value) }
}
