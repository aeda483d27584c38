//! What TraceQL means, said as simply as possible: row by row over spans in memory, whole traces at once.
//!
//! Tests hold the engine against it, with the cases of `querier/cases` and with data and queries made at random. It shares
//! nothing with the engine but the syntax tree and the types of answers, and knows no speed, no limits and no exemplars.

pub mod cases;
pub mod differential;
pub mod edges;
pub mod generate;

mod field;
mod pipeline;
mod search;
mod series;
mod spanset;
mod trace;
mod value;

use spanhouse_common::model::StoredSpan;
use spanhouse_common::time::{TimeRange, UnixNanos};

use crate::engine::Grid;
use crate::engine::answer::{Series, TraceResult};
use crate::traceql::ast::{MetricsExpr, PipelineExpr, Query, Root};

/// Traces that overlap `range`, newest first. An error is one of evaluation.
pub fn search(
    query: &Query,
    spans: &[StoredSpan],
    range: Option<TimeRange>,
    limit: usize,
    spans_per_set: usize,
) -> Result<Vec<TraceResult>, String> {
    let pipeline = searched(&query.root)?;
    pipeline::check_constants(pipeline)?;
    let mut found = Vec::new();
    for trace in trace::traces(spans) {
        let from_to = TimeRange { min: UnixNanos(trace.start), max: UnixNanos(trace.start.saturating_add(trace.duration)) };
        if range.is_some_and(|range| !range.overlaps(&from_to)) {
            continue;
        }
        let sets = pipeline::run(pipeline, &trace)?;
        if !sets.is_empty() {
            found.push(search::result(pipeline, &trace, sets, spans_per_set));
        }
    }
    found.sort_by_key(|trace| (std::cmp::Reverse(trace.start_unix_nano), trace.trace_id));
    found.truncate(limit);
    Ok(found)
}

/// Series in their final order. Those of a query that selects spans are an error.
pub fn metrics(query: &Query, spans: &[StoredSpan], grid: Grid) -> Result<Vec<Series>, String> {
    match &query.root {
        Root::Metrics(expr) => series::series(expr, spans, grid),
        Root::Spans(_) => Err("not a metrics query".to_owned()),
    }
}

/// What a search looks for: of a metrics query, the spans it measures.
fn searched(root: &Root) -> Result<&PipelineExpr, String> {
    let mut expr = match root {
        Root::Spans(pipeline) => return Ok(pipeline),
        Root::Metrics(expr) => expr,
    };
    loop {
        expr = match expr {
            MetricsExpr::Query(query) => return Ok(&query.spans),
            MetricsExpr::Stage { input, .. } => input,
            MetricsExpr::Math { .. } | MetricsExpr::ScalarMath { .. } => {
                return Err("math expressions not supported".to_owned());
            }
        };
    }
}
