//! Zipkin's JSON: spans of its second model, names, and links between services.

use std::fmt::Write as _;

use super::links::ServiceLink;
use super::span::{Annotation, Endpoint, ZipkinSpan, spans};
use crate::assemble::Trace;
use crate::json::{Escape, push_int, push_list, push_short_trace_id, push_span_id, push_text};

/// Appends one trace: a list of spans.
pub(super) fn write_trace(trace: &Trace, out: &mut String) {
    push_list(spans(trace), out, |span, out| write_span(&span, out));
}

/// Appends a list of texts.
pub(super) fn names(names: &[String]) -> String {
    let mut out = String::new();
    push_list(names, &mut out, |name, out| push(name, out));
    out
}

pub(super) fn links(links: &[ServiceLink]) -> String {
    let mut out = String::new();
    push_list(links, &mut out, |link, out| {
        out.push_str("{\"parent\":");
        push(&link.parent, out);
        out.push_str(",\"child\":");
        push(&link.child, out);
        out.push_str(",\"callCount\":");
        push_int(link.calls, out);
        if link.errors > 0 {
            out.push_str(",\"errorCount\":");
            push_int(link.errors, out);
        }
        out.push('}');
    });
    out
}

fn write_span(span: &ZipkinSpan<'_>, out: &mut String) {
    out.push_str("{\"traceId\":\"");
    push_short_trace_id(span.trace_id, out);
    out.push('"');
    if let Some(parent) = span.parent {
        out.push_str(",\"parentId\":");
        push_span_id(parent, out);
    }
    out.push_str(",\"id\":");
    push_span_id(span.id, out);
    if let Some(kind) = span.kind {
        out.push_str(",\"kind\":");
        push(kind, out);
    }
    if !span.name.is_empty() {
        out.push_str(",\"name\":");
        push(span.name, out);
    }
    for (name, number) in [(",\"timestamp\":", span.timestamp), (",\"duration\":", span.duration)] {
        if number != 0 {
            out.push_str(name);
            push_int(number, out);
        }
    }
    for (name, endpoint) in [(",\"localEndpoint\":", &span.local), (",\"remoteEndpoint\":", &span.remote)] {
        if !endpoint.is_empty() {
            out.push_str(name);
            write_endpoint(endpoint, out);
        }
    }
    if !span.annotations.is_empty() {
        out.push_str(",\"annotations\":");
        push_list(&span.annotations, out, write_annotation);
    }
    if !span.tags.is_empty() {
        out.push_str(",\"tags\":{");
        for (nth, (key, value)) in span.tags.iter().enumerate() {
            if nth > 0 {
                out.push(',');
            }
            push(key, out);
            out.push(':');
            push(value, out);
        }
        out.push('}');
    }
    if span.shared {
        out.push_str(",\"shared\":true");
    }
    out.push('}');
}

fn write_endpoint(endpoint: &Endpoint<'_>, out: &mut String) {
    out.push('{');
    let mut between = "";
    if !endpoint.service.is_empty() {
        out.push_str("\"serviceName\":");
        push(&endpoint.service, out);
        between = ",";
    }
    // A String never fails to grow, short of an abort.
    if let Some(ip) = endpoint.ipv4 {
        let _ = write!(out, "{between}\"ipv4\":\"{ip}\"");
        between = ",";
    }
    if let Some(ip) = endpoint.ipv6 {
        let _ = write!(out, "{between}\"ipv6\":\"{ip}\"");
        between = ",";
    }
    if endpoint.port != 0 {
        let _ = write!(out, "{between}\"port\":{}", endpoint.port);
    }
    out.push('}');
}

fn write_annotation(annotation: &Annotation<'_>, out: &mut String) {
    out.push_str("{\"timestamp\":");
    push_int(annotation.timestamp, out);
    out.push_str(",\"value\":");
    push(&annotation.value, out);
    out.push('}');
}

fn push(text: &str, out: &mut String) {
    push_text(text, Escape::Plain, out);
}
