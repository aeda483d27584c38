//! Writing answers: the envelope of the old API, indentation, and the share of memory a long answer takes.

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use spanhouse_common::budget::Lease;
use spanhouse_common::id::TraceId;

use super::error::Refusal;
use crate::api::respond::say_partial;
use crate::assemble::Trace;
use crate::jaeger::adjust::{adjust, sanitize};
use crate::jaeger::model::JaegerTrace;
use crate::jaeger::model::json::{push_trace_id, write_trace};
use crate::jaeger::{JaegerQueries, WholeTrace};
use crate::json::{Escape, push_int, push_str};

/// More spans than this are written on a thread that serves no socket.
const INLINE_SPANS: usize = 512;

/// What is wrong with a part of an answer.
pub(super) struct Problem {
    pub(super) message: &'static str,
    pub(super) trace_id: TraceId,
}

/// `{"data":…,"total":…,"limit":0,"offset":0,"errors":…}` around a value that is JSON already.
pub(super) fn envelope(data: &str, total: usize, problems: &[Problem]) -> String {
    let mut out = String::with_capacity(data.len() + 64);
    out.push_str("{\"data\":");
    out.push_str(data);
    close_envelope(total, problems, &mut out);
    out
}

/// What follows the value.
fn close_envelope(total: usize, problems: &[Problem], out: &mut String) {
    out.push_str(",\"total\":");
    push_int(total, out);
    out.push_str(",\"limit\":0,\"offset\":0,\"errors\":");
    if problems.is_empty() {
        out.push_str("null}");
        return;
    }
    out.push('[');
    for (nth, problem) in problems.iter().enumerate() {
        out.push_str(if nth > 0 { ",{\"msg\":" } else { "{\"msg\":" });
        push_str(problem.message, out);
        out.push_str(",\"traceID\":");
        push_trace_id(problem.trace_id, out);
        out.push('}');
    }
    out.push_str("]}");
}

/// A JSON answer. `partial` says why it is not complete.
pub(super) async fn respond(body: String, pretty: bool, partial: Option<String>) -> Result<Response, Refusal> {
    let body = if pretty { offload(body.len() / 256, move || indented(&body)).await? } else { body };
    let mut response = ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response();
    if let Some(reason) = partial {
        say_partial(&mut response, &reason);
    }
    Ok(response)
}

/// Works on so many spans: here, or on a thread that serves no socket if they are many.
pub(super) async fn offload<T: Send + 'static>(
    spans: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    if spans <= INLINE_SPANS {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::broken())
}

/// An answer that grows trace by trace, its bytes taken from what all queries share. It is long: written where it stays.
pub(super) struct Traces {
    text: String,
    form: Form,
    lease: Lease,
    limit: usize,
    pub(super) count: usize,
    /// Why traces are not complete, for people.
    partial: Vec<String>,
}

/// How traces are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    Legacy,
    /// Members of OTLP's `resourceSpans`.
    Otlp,
}

impl Form {
    /// What stands before the first trace.
    fn open(self) -> &'static str {
        match self {
            Self::Legacy => "{\"data\":[",
            Self::Otlp => "{\"result\":{\"resourceSpans\":[",
        }
    }
}

impl Traces {
    pub(super) fn new(queries: &JaegerQueries, form: Form) -> Self {
        let deps = queries.deps();
        Self {
            text: form.open().to_owned(),
            form,
            lease: deps.memory.count(0),
            limit: deps.settings.bounds.memory_bytes,
            count: 0,
            partial: Vec::new(),
        }
    }

    /// Adds a trace, mended unless it is wanted `raw`.
    pub(super) async fn add(&mut self, queries: &JaegerQueries, whole: WholeTrace, raw: bool) -> Result<(), Refusal> {
        let form = self.form;
        let skew = queries.deps().settings.max_clock_skew_adjust;
        let partial = whole.partial.clone();
        let spans = whole.trace.spans().count();
        let mut text = std::mem::take(&mut self.text);
        let (text, written) = offload(spans, move || {
            let WholeTrace { mut trace, partial, lease, .. } = whole;
            sanitize(&mut trace);
            if !raw {
                adjust(&mut trace, skew);
            }
            let written = write(&trace, partial, form, &mut text);
            drop((trace, lease));
            (text, written)
        })
        .await?;
        self.text = text;
        self.count += usize::from(written);
        self.partial.extend(partial);
        self.lease.resize(self.text.capacity());
        if self.text.len() > self.limit {
            return Err(Refusal::too_large("the answer", self.limit));
        }
        Ok(())
    }

    /// The answer, with what could not be found, and why it is not complete.
    pub(super) fn finish(mut self, problems: &[Problem]) -> (String, Option<String>) {
        self.partial.dedup();
        let mut text = self.text;
        match self.form {
            Form::Legacy => {
                text.push(']');
                close_envelope(0, problems, &mut text);
            }
            Form::Otlp => text.push_str("]}}"),
        }
        (text, Some(self.partial.join("; ")).filter(|reason| !reason.is_empty()))
    }
}

fn write(trace: &Trace, partial: Option<String>, form: Form, out: &mut String) -> bool {
    match form {
        Form::Otlp if trace.is_empty() => false,
        Form::Otlp => {
            separate(form, out);
            crate::jaeger::otlp_json::write_groups(trace, out);
            true
        }
        Form::Legacy => {
            let Some(mut view) = JaegerTrace::of(trace) else { return false };
            view.warnings.extend(partial);
            separate(form, out);
            write_trace(&view, Escape::Html, out);
            true
        }
    }
}

fn separate(form: Form, out: &mut String) {
    if out.len() > form.open().len() {
        out.push(',');
    }
}

/// JSON without white space, indented by four spaces; empty lists and objects stay on their line.
fn indented(compact: &str) -> String {
    let mut out = String::with_capacity(compact.len() * 2);
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    };
    let mut characters = compact.chars().peekable();
    while let Some(c) = characters.next() {
        if in_text {
            out.push(c);
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                if let Some(end) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => {
                in_text = c == '"';
                out.push(c);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indentation_as_go_does_it() {
        let compact = r#"{"a":[],"b":{},"c":[1,{"d":"x,{\"y\\"}],"e":null}"#;
        let expected = "{\n    \"a\": [],\n    \"b\": {},\n    \"c\": [\n        1,\n        {\n            \
            \"d\": \"x,{\\\"y\\\\\"\n        }\n    ],\n    \"e\": null\n}";
        assert_eq!(indented(compact), expected);
        let value: serde_json::Value = serde_json::from_str(compact).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&indented(compact)).unwrap(), value);
    }
}
