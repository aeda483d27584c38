//! Search: found traces with their span sets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::field::{bare_name, lookup, status};
use super::pipeline::{SpanSet, mentioned};
use super::trace::{Trace, service};
use super::value::Value;
use crate::engine::answer::{AnswerAttribute, ServiceStats, SpanResult, SpanSetResult, TraceResult};
use crate::traceql::ast::{Attribute, Intrinsic, PipelineExpr, Status};

/// One trace as found.
pub(super) fn result(expr: &PipelineExpr, trace: &Trace<'_>, sets: Vec<SpanSet>, spans_per_set: usize) -> TraceResult {
    let mentioned = mentioned(expr);
    let span_set = |set: SpanSet| SpanSetResult {
        spans: set.spans.iter().take(spans_per_set).map(|at| span_result(trace, *at, &mentioned)).collect(),
        matched: set.spans.len() as u32,
        attributes: set.attributes.iter().map(|(key, value)| answer(Arc::clone(key), value)).collect(),
    };
    TraceResult {
        trace_id: trace.id,
        root_service: trace.root_service(),
        root_name: trace.root_name(),
        start_unix_nano: trace.start,
        duration_nanos: trace.duration,
        span_sets: sets.into_iter().map(span_set).collect(),
        services: services(trace),
        orphans: trace.orphans as u32,
    }
}

fn answer(key: Arc<str>, value: &Value) -> AnswerAttribute {
    AnswerAttribute { key, value: value.answer() }
}

fn span_result(trace: &Trace<'_>, at: usize, mentioned: &[&Attribute]) -> SpanResult {
    let span = &trace.spans[at].span;
    let mut name = None;
    let mut attributes = Vec::new();
    for attribute in mentioned {
        let value = lookup(attribute, trace, at);
        match attribute {
            Attribute::Intrinsic(Intrinsic::Name) => name = Some(Arc::from(span.name.as_str())),
            // Told elsewhere in the result.
            Attribute::Intrinsic(
                Intrinsic::Duration
                | Intrinsic::TraceDuration
                | Intrinsic::RootName
                | Intrinsic::RootService
                | Intrinsic::TraceId
                | Intrinsic::SpanId,
            ) => {}
            _ if value.is_there() => attributes.push(answer(bare_name(attribute), &value)),
            _ => {}
        }
    }
    SpanResult {
        span_id: span.span_id,
        name,
        start_unix_nano: span.start_unix_nano,
        duration_nanos: span.end_unix_nano.saturating_sub(span.start_unix_nano),
        attributes,
    }
}

fn services(trace: &Trace<'_>) -> Vec<ServiceStats> {
    let mut by_name: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for span in &trace.spans {
        let (spans, errors) = by_name.entry(service(span).unwrap_or_default()).or_default();
        *spans += 1;
        *errors += u32::from(status(span.span.status_code) == Status::Error);
    }
    let stats = |(name, (spans, errors))| ServiceStats { service: Arc::from(name), spans, errors };
    by_name.into_iter().map(stats).collect()
}
