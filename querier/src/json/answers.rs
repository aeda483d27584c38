//! JSON of what queries answer.
//!
//! Searches and instant queries may hold only the members written here: Grafana refuses an answer with any other one.

use spanhouse_common::id::TraceId;

use super::{Object, push_f64, push_int, push_quoted_int, push_str};
use crate::engine::answer::{
    AnswerAttribute, AnswerValue, Exemplar, QueryStats, Sample, SearchAnswer, Series, SeriesAnswer, ServiceStats,
    SpanResult, SpanSetResult, TagNamesAnswer, TagValue, TagValuesAnswer, TraceResult,
};

/// What a trace's root service is called while the root is not there.
pub const ROOT_NOT_RECEIVED: &str = "<root span not yet received>";

/// Bytes that most traces of a search take, so that the text seldom moves while it grows.
const TRACE_BYTES: usize = 1024;

/// The same of samples.
const SAMPLE_BYTES: usize = 48;

/// The body of `/api/search`.
pub fn search(answer: &SearchAnswer) -> String {
    let mut out = String::with_capacity(TRACE_BYTES * answer.traces.len() + 256);
    let mut response = Object::open(&mut out);
    response.list_or_empty("traces", &answer.traces, write_trace);
    write_search_metrics(&answer.stats, response.member("metrics"));
    response.close();
    out
}

/// The body of `/api/metrics/query_range`.
pub fn query_range(answer: &SeriesAnswer) -> String {
    let samples: usize = answer.series.iter().map(|series| series.samples.len()).sum();
    let mut out = String::with_capacity(SAMPLE_BYTES * samples + 256);
    let mut response = Object::open(&mut out);
    response.list_or_empty("series", &answer.series, write_series);
    close_metrics_answer(response, &answer.stats);
    out
}

/// The body of `/api/metrics/query`: a series has the one value of its only sample.
pub fn query_instant(answer: &SeriesAnswer) -> String {
    let mut out = String::new();
    let mut response = Object::open(&mut out);
    let measured: Vec<&Series> = answer.series.iter().filter(|series| !series.samples.is_empty()).collect();
    response.list("series", &measured, |series, out| {
        let mut object = Object::open(out);
        write_attributes("labels", &series.labels, &mut object);
        if let Some(sample) = series.samples.first() {
            write_number("value", sample.value, &mut object);
        }
        object.close();
    });
    close_metrics_answer(response, &answer.stats);
    out
}

/// The body of `/api/search/tags`. `names` are sorted.
pub fn tag_names_v1(names: &[&str], stats: &QueryStats) -> String {
    let mut out = String::new();
    let mut response = Object::open(&mut out);
    response.list_or_empty("tagNames", names, |name, out| push_str(name, out));
    write_metadata_metrics(stats, response.member("metrics"));
    response.close();
    out
}

/// The body of `/api/v2/search/tags`.
pub fn tag_names_v2(answer: &TagNamesAnswer) -> String {
    let mut out = String::new();
    let mut response = Object::open(&mut out);
    response.list_or_empty("scopes", &answer.scopes, |scope, out| {
        let mut object = Object::open(out);
        object.text("name", scope.name);
        object.list("tags", &scope.tags, |tag, out| push_str(tag, out));
        object.close();
    });
    write_metadata_metrics(&answer.stats, response.member("metrics"));
    response.close();
    out
}

/// The body of `/api/search/tag/{tag}/values`. `values` are sorted.
pub fn tag_values_v1(values: &[String], stats: &QueryStats) -> String {
    let mut out = String::new();
    let mut response = Object::open(&mut out);
    response.list_or_empty("tagValues", values, |value, out| push_str(value, out));
    write_metadata_metrics(stats, response.member("metrics"));
    response.close();
    out
}

/// The body of `/api/v2/search/tag/{tag}/values`.
pub fn tag_values_v2(answer: &TagValuesAnswer) -> String {
    let mut out = String::new();
    let mut response = Object::open(&mut out);
    response.list_or_empty("tagValues", &answer.values, |value, out| {
        let mut object = Object::open(out);
        object.text("type", value.kind);
        object.text("value", &value.text);
        object.close();
    });
    write_metadata_metrics(&answer.stats, response.member("metrics"));
    response.close();
    out
}

/// The same for language models: texts by type.
pub fn tag_values_llm(answer: &TagValuesAnswer) -> String {
    let mut out = String::new();
    let mut response = Object::open(&mut out);
    let mut by_kind = Object::open(response.member("tagValues"));
    // Sorted by type already.
    for values in answer.values.chunk_by(|a, b| a.kind == b.kind) {
        by_kind.list(values[0].kind, values, |value: &TagValue, out| push_str(&value.text, out));
    }
    by_kind.close();
    let mut metrics = Object::open(response.member("metrics"));
    push_int(answer.stats.inspected_bytes, metrics.member("inspectedBytes"));
    metrics.close();
    response.close();
    out
}

fn write_trace(trace: &TraceResult, out: &mut String) {
    let mut object = Object::open(out);
    push_trace_id(trace.trace_id, object.member("traceID"));
    object.text("rootServiceName", trace.root_service.as_deref().unwrap_or(ROOT_NOT_RECEIVED));
    object.text("rootTraceName", trace.root_name.as_deref().unwrap_or_default());
    object.count64("startTimeUnixNano", trace.start_unix_nano);
    object.count("durationMs", duration_ms(trace));
    // A table row without spans breaks Grafana.
    let sets = || trace.span_sets.iter().filter(|set| !set.spans.is_empty());
    if let Some(first) = sets().next() {
        write_span_set(first, object.member("spanSet"));
        let out = object.member("spanSets");
        for (nth, set) in sets().enumerate() {
            out.push(if nth == 0 { '[' } else { ',' });
            write_span_set(set, out);
        }
        out.push(']');
    }
    if !trace.services.is_empty() {
        write_services(&trace.services, object.member("serviceStats"));
    }
    object.close();
}

/// Whole milliseconds, as many as the wire has room for.
pub(crate) fn duration_ms(trace: &TraceResult) -> u32 {
    u32::try_from(trace.duration_nanos / 1_000_000).unwrap_or(u32::MAX)
}

fn hex32(id: u128) -> [u8; 32] {
    std::array::from_fn(|at| b"0123456789abcdef"[(id >> (124 - 4 * at)) as usize & 15])
}

fn push_digits(digits: &[u8], out: &mut String) {
    out.push('"');
    out.extend(digits.iter().map(|digit| char::from(*digit)));
    out.push('"');
}

/// Hex without leading zeros.
fn push_trace_id(id: TraceId, out: &mut String) {
    let digits = hex32(u128::from_be_bytes(id.0));
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count().min(31);
    push_digits(&digits[zeros..], out);
}

fn write_span_set(set: &SpanSetResult, out: &mut String) {
    let mut object = Object::open(out);
    object.list("spans", &set.spans, write_span);
    object.count("matched", set.matched);
    write_attributes("attributes", &set.attributes, &mut object);
    object.close();
}

fn write_span(span: &SpanResult, out: &mut String) {
    let mut object = Object::open(out);
    let digits = hex32(u64::from_be_bytes(span.span_id.0).into());
    push_digits(&digits[16..], object.member("spanID"));
    object.text("name", span.name.as_deref().unwrap_or_default());
    object.count64("startTimeUnixNano", span.start_unix_nano);
    object.count64("durationNanos", span.duration_nanos);
    write_attributes("attributes", &span.attributes, &mut object);
    object.close();
}

fn write_services(services: &[ServiceStats], out: &mut String) {
    out.push('{');
    for (nth, service) in services.iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        push_str(&service.service, out);
        out.push(':');
        let mut object = Object::open(out);
        object.count("spanCount", service.spans);
        object.count("errorCount", service.errors);
        object.close();
    }
    out.push('}');
}

fn write_series(series: &Series, out: &mut String) {
    let mut object = Object::open(out);
    write_attributes("labels", &series.labels, &mut object);
    object.list("samples", &series.samples, |sample: &Sample, out| {
        let mut object = Object::open(out);
        write_time(sample.timestamp_ms, &mut object);
        write_number("value", sample.value, &mut object);
        object.close();
    });
    object.list("exemplars", &series.exemplars, |exemplar: &Exemplar, out| {
        let mut object = Object::open(out);
        write_attributes("labels", &exemplar.labels, &mut object);
        write_number("value", exemplar.value, &mut object);
        write_time(exemplar.timestamp_ms, &mut object);
        object.close();
    });
    object.close();
}

fn write_time(timestamp_ms: i64, object: &mut Object<'_>) {
    if timestamp_ms != 0 {
        push_quoted_int(timestamp_ms, object.member("timestampMs"));
    }
}

fn write_number(name: &str, value: f64, object: &mut Object<'_>) {
    if value != 0.0 {
        push_f64(value, object.member(name));
    }
}

fn write_attributes(name: &str, attributes: &[AnswerAttribute], object: &mut Object<'_>) {
    object.list(name, attributes, |attribute, out| {
        let mut object = Object::open(out);
        object.text("key", &attribute.key);
        write_value(&attribute.value, object.member("value"));
        object.close();
    });
}

/// A choice is printed even if zero, else it is lost.
fn write_value(value: &AnswerValue, out: &mut String) {
    let mut object = Object::open(out);
    match value {
        AnswerValue::Str(text) => push_str(text, object.member("stringValue")),
        AnswerValue::Int(value) => push_quoted_int(*value, object.member("intValue")),
        AnswerValue::Float(value) => push_f64(*value, object.member("doubleValue")),
        AnswerValue::Bool(value) => object.member("boolValue").push_str(if *value { "true" } else { "false" }),
        AnswerValue::Array(values) => {
            let mut array = Object::open(object.member("arrayValue"));
            array.list("values", values, write_value);
            array.close();
        }
    }
    object.close();
}

fn write_search_metrics(stats: &QueryStats, out: &mut String) {
    let mut object = Object::open(out);
    object.count("inspectedTraces", stats.inspected_traces);
    object.count64("inspectedBytes", stats.inspected_bytes);
    object.count("totalBlocks", stats.total_blocks);
    object.count("completedJobs", stats.completed_jobs);
    object.count("totalJobs", stats.total_jobs);
    object.count64("totalBlockBytes", stats.total_block_bytes);
    object.count64("inspectedSpans", stats.inspected_spans);
    object.close();
}

fn write_metadata_metrics(stats: &QueryStats, out: &mut String) {
    let mut object = Object::open(out);
    object.count64("inspectedBytes", stats.inspected_bytes);
    object.count("totalJobs", stats.total_jobs);
    object.count("completedJobs", stats.completed_jobs);
    object.count("totalBlocks", stats.total_blocks);
    object.count64("totalBlockBytes", stats.total_block_bytes);
    object.close();
}

fn close_metrics_answer(mut response: Object<'_>, stats: &QueryStats) {
    write_search_metrics(stats, response.member("metrics"));
    if let Some(message) = &stats.partial {
        response.text("status", "PARTIAL");
        response.text("message", message);
    }
    response.close();
}
