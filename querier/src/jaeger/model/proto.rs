//! Messages of `jaeger.api_v2`: times to the nanosecond, ids as bytes, and in every span its process.

use prost_types::{Duration, Timestamp};
use spanhouse_proto::jaeger::api_v2;

use super::{JaegerSpan, JaegerTrace, Log, Process, RefType, Reference, Tag, TagValue};

const NANOS: u64 = 1_000_000_000;

/// The spans of a trace as messages, made as they are asked for. Each carries its process and no process id.
pub fn spans<'t>(trace: &'t JaegerTrace<'_>) -> impl Iterator<Item = api_v2::Span> + 't {
    let processes: Vec<api_v2::Process> = trace.processes.iter().map(process).collect();
    trace.spans().map(move |of| span(&of, processes.get(of.process).cloned().unwrap_or_default()))
}

fn span(span: &JaegerSpan<'_>, process: api_v2::Process) -> api_v2::Span {
    api_v2::Span {
        trace_id: span.trace_id.0.to_vec(),
        span_id: span.span_id.0.to_vec(),
        operation_name: span.operation.to_owned(),
        references: span.references.iter().map(reference).collect(),
        flags: span.flags,
        start_time: Some(timestamp(span.start_unix_nano)),
        duration: Some(duration(span.duration_nanos)),
        tags: key_values(&span.tags),
        logs: span.logs.iter().map(log).collect(),
        process: Some(process),
        process_id: String::new(),
        warnings: span.warnings.iter().map(|text| text.to_string()).collect(),
    }
}

fn reference(reference: &Reference) -> api_v2::SpanRef {
    let ref_type = match reference.ref_type {
        RefType::ChildOf => api_v2::SpanRefType::ChildOf,
        RefType::FollowsFrom => api_v2::SpanRefType::FollowsFrom,
    };
    api_v2::SpanRef {
        trace_id: reference.trace_id.0.to_vec(),
        span_id: reference.span_id.0.to_vec(),
        ref_type: ref_type.into(),
    }
}

fn log(log: &Log<'_>) -> api_v2::Log {
    api_v2::Log { timestamp: Some(timestamp(log.time_unix_nano)), fields: key_values(&log.fields) }
}

fn process(process: &Process<'_>) -> api_v2::Process {
    api_v2::Process { service_name: process.service.clone().into_owned(), tags: key_values(&process.tags) }
}

fn key_values(tags: &[Tag<'_>]) -> Vec<api_v2::KeyValue> {
    tags.iter().map(key_value).collect()
}

fn key_value(tag: &Tag<'_>) -> api_v2::KeyValue {
    use api_v2::ValueType;
    let mut pair = api_v2::KeyValue { key: tag.key.clone().into_owned(), ..Default::default() };
    let v_type = match &tag.value {
        TagValue::Str(text) => {
            pair.v_str = text.clone().into_owned();
            ValueType::String
        }
        TagValue::Bool(value) => {
            pair.v_bool = *value;
            ValueType::Bool
        }
        TagValue::Int(value) => {
            pair.v_int64 = *value;
            ValueType::Int64
        }
        TagValue::Double(value) => {
            pair.v_float64 = *value;
            ValueType::Float64
        }
        TagValue::Binary(bytes) => {
            pair.v_binary = bytes.clone().into_owned();
            ValueType::Binary
        }
    };
    pair.v_type = v_type.into();
    pair
}

/// Fits: 64 bits of nanoseconds are some 584 years.
fn timestamp(unix_nanos: u64) -> Timestamp {
    Timestamp { seconds: (unix_nanos / NANOS) as i64, nanos: (unix_nanos % NANOS) as i32 }
}

fn duration(nanos: i64) -> Duration {
    let second = NANOS as i64;
    Duration { seconds: nanos / second, nanos: (nanos % second) as i32 }
}
