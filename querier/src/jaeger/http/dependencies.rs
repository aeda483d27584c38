//! `GET /api/dependencies`: the service graph.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::HttpDeps;
use super::answer::{envelope, respond};
use super::error::{Legacy, Refusal};
use super::names::list;
use super::params::{NANOS_PER_MILLI, Pairs, Params};
use crate::jaeger::{Answer, Edge};
use crate::json::{Object, push_f64, push_int, push_str};

const DAY_MILLIS: i64 = 86_400_000;

pub(super) async fn dependencies(
    State(deps): State<HttpDeps>,
    pairs: Pairs,
    headers: HeaderMap,
) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let range = range(&params, deps.queries.deps().clock.now())?;
    let Answer { found: mut edges, partial } = deps.queries.dependencies(&tenants, range).await?;
    if let Some(service) = params.get("service") {
        edges.retain(|edge| edge.parent == service || edge.child == service);
    }
    let data = list(&edges, write_edge);
    Ok(respond(envelope(&data, 0, &[]), params.pretty(), partial).await?)
}

fn range(params: &Params, now: UnixNanos) -> Result<TimeRange, Refusal> {
    let end = match params.int("endTs")? {
        Some(millis) => u64::try_from(millis).unwrap_or(0).saturating_mul(NANOS_PER_MILLI),
        None => now.0,
    };
    let lookback = params.millis("lookback")?.unwrap_or(DAY_MILLIS);
    let lookback = u64::try_from(lookback).unwrap_or(0).saturating_mul(NANOS_PER_MILLI);
    Ok(TimeRange { min: UnixNanos(end.saturating_sub(lookback)), max: UnixNanos(end) })
}

fn write_edge(edge: &Edge, out: &mut String) {
    let mut object = Object::open(out);
    push_str(&edge.parent, object.member("parent"));
    push_str(&edge.child, object.member("child"));
    push_int(edge.calls, object.member("callCount"));
    push_int(edge.errors, object.member("errorCount"));
    write_latency(edge, object.member("latency"));
    object.close();
}

/// Jaeger has no such member, and its clients pass over it. Milliseconds.
pub(super) fn write_latency(edge: &Edge, out: &mut String) {
    const NANOS_PER_MILLI: f64 = 1e6;
    let mean = if edge.calls == 0 { 0.0 } else { edge.total / edge.calls as f64 };
    let mut object = Object::open(out);
    for (name, nanos) in [("p50", edge.p50), ("p95", edge.p95), ("p99", edge.p99), ("mean", mean)] {
        push_f64(nanos / NANOS_PER_MILLI, object.member(name));
    }
    object.close();
}
