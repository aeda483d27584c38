//! The JSON of a trace as the HTTP API has it: members in a fixed order, none left out but `flags` of zero.

use spanhouse_common::id::TraceId;

use super::{JaegerSpan, JaegerTrace, Log, Process, RefType, Reference, Tag, TagValue};
use crate::json::{
    Escape, push_base64, push_f64, push_int, push_list, push_quoted_int, push_short_trace_id, push_span_id, push_text,
};

/// Beyond this a number is not exact in JavaScript.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Appends one trace, an item of an answer's `data`.
pub fn write_trace(trace: &JaegerTrace<'_>, escape: Escape, out: &mut String) {
    out.push_str("{\"traceID\":");
    push_trace_id(trace.trace_id, out);
    out.push_str(",\"spans\":");
    push_list(trace.spans(), out, |span, out| write_span(&span, escape, out));
    out.push_str(",\"processes\":{");
    for (at, process) in trace.processes.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_process_id(at, out);
        out.push(':');
        write_process(process, escape, out);
    }
    out.push_str("},\"warnings\":");
    push_warnings(trace.warnings.iter().map(String::as_str), escape, out);
    out.push('}');
}

fn write_span(span: &JaegerSpan<'_>, escape: Escape, out: &mut String) {
    out.push_str("{\"traceID\":");
    push_trace_id(span.trace_id, out);
    out.push_str(",\"spanID\":");
    push_span_id(span.span_id, out);
    if span.flags != 0 {
        out.push_str(",\"flags\":");
        push_int(span.flags, out);
    }
    out.push_str(",\"operationName\":");
    push_text(span.operation, escape, out);
    out.push_str(",\"references\":");
    push_list(&span.references, out, write_reference);
    out.push_str(",\"startTime\":");
    push_int(span.start_unix_nano / 1000, out);
    out.push_str(",\"duration\":");
    push_int(span.duration_nanos.max(0) / 1000, out);
    out.push_str(",\"tags\":");
    push_list(&span.tags, out, |tag, out| match (&*tag.key, &tag.value) {
        // To the UI every text here is an error.
        ("error", TagValue::Str(text)) if text == "false" => write_tag(&tag.key, &TagValue::Bool(false), escape, out),
        (key, value) => write_tag(key, value, escape, out),
    });
    out.push_str(",\"logs\":");
    push_list(&span.logs, out, |log, out| write_log(log, escape, out));
    out.push_str(",\"processID\":");
    push_process_id(span.process, out);
    out.push_str(",\"warnings\":");
    push_warnings(span.warnings.iter().map(AsRef::as_ref), escape, out);
    out.push('}');
}

fn write_reference(reference: &Reference, out: &mut String) {
    out.push_str(match reference.ref_type {
        RefType::ChildOf => "{\"refType\":\"CHILD_OF\",\"traceID\":",
        RefType::FollowsFrom => "{\"refType\":\"FOLLOWS_FROM\",\"traceID\":",
    });
    push_trace_id(reference.trace_id, out);
    out.push_str(",\"spanID\":");
    push_span_id(reference.span_id, out);
    out.push('}');
}

fn write_log(log: &Log<'_>, escape: Escape, out: &mut String) {
    out.push_str("{\"timestamp\":");
    push_int(log.time_unix_nano / 1000, out);
    out.push_str(",\"fields\":");
    write_tags(&log.fields, escape, out);
    out.push('}');
}

fn write_process(process: &Process<'_>, escape: Escape, out: &mut String) {
    out.push_str("{\"serviceName\":");
    push_text(&process.service, escape, out);
    out.push_str(",\"tags\":");
    write_tags(&process.tags, escape, out);
    out.push('}');
}

fn write_tags(tags: &[Tag<'_>], escape: Escape, out: &mut String) {
    push_list(tags, out, |tag, out| write_tag(&tag.key, &tag.value, escape, out));
}

fn write_tag(key: &str, value: &TagValue<'_>, escape: Escape, out: &mut String) {
    out.push_str("{\"key\":");
    push_text(key, escape, out);
    out.push_str(match value {
        TagValue::Bool(_) => ",\"type\":\"bool\",\"value\":",
        TagValue::Int(_) => ",\"type\":\"int64\",\"value\":",
        TagValue::Double(value) if value.is_finite() => ",\"type\":\"float64\",\"value\":",
        // JSON has no number for the others.
        TagValue::Str(_) | TagValue::Double(_) => ",\"type\":\"string\",\"value\":",
        TagValue::Binary(_) => ",\"type\":\"binary\",\"value\":",
    });
    match value {
        TagValue::Str(text) => push_text(text, escape, out),
        TagValue::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        TagValue::Int(value) if value.unsigned_abs() > MAX_SAFE_INTEGER => push_quoted_int(*value, out),
        TagValue::Int(value) => push_int(*value, out),
        TagValue::Double(value) => push_f64(*value, out),
        TagValue::Binary(bytes) => push_base64(bytes, out),
    }
    out.push('}');
}

fn push_warnings<'t>(warnings: impl ExactSizeIterator<Item = &'t str>, escape: Escape, out: &mut String) {
    if warnings.len() == 0 {
        out.push_str("null");
    } else {
        push_list(warnings, out, |text, out| push_text(text, escape, out));
    }
}

fn push_process_id(at: usize, out: &mut String) {
    out.push_str("\"p");
    push_int(at + 1, out);
    out.push('"');
}

/// Appends a trace id as text of 16 digits if the upper half is zero, else 32.
pub fn push_trace_id(id: TraceId, out: &mut String) {
    out.push('"');
    push_short_trace_id(id, out);
    out.push('"');
}
