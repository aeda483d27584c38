//! `/api/deep-dependencies`, and `/analytics/v1/dependencies`, which Jaeger UI's deep dependency graph asks: paths of calls through a service.
//!
//! A stock Jaeger answers a made-up sample at the first and knows nothing of the second. These paths are those of the newest traces
//! that have a span of the service. Jaeger UI asks only if its configuration turns the page on.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use futures::StreamExt as _;
use spanhouse_common::id::TraceId;

use super::HttpDeps;
use super::answer::{offload, respond};
use super::error::{Legacy, Refusal};
use super::params::{Pairs, Params};
use crate::jaeger::adjust::{adjust, sanitize};
use crate::jaeger::paths::{Paths, Step};
use crate::jaeger::{TraceSearch, WholeTrace};
use crate::json::{Object, push_str};

/// Traces looked at.
const SAMPLE: usize = 200;

/// What is looked back without `start`.
const LOOK_BACK_NANOS: u64 = 24 * 3_600 * 1_000_000_000;

pub(super) async fn deep(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let service = params.get("service").ok_or_else(|| Refusal::bad("parameter 'service' is required"))?.to_owned();
    let operation = params.get("operation").map(str::to_owned);
    let queries = deps.queries.deps();
    // Jaeger UI says 0 where it means no bound.
    let end = params.micros("end")?.filter(|end| *end > 0).unwrap_or(queries.clock.now().0);
    let start = params.micros("start")?.filter(|start| *start > 0).unwrap_or(end.saturating_sub(LOOK_BACK_NANOS));
    let search = TraceSearch {
        tenants,
        service: Some(service.clone()),
        operation: operation.clone(),
        start_min: Some(start),
        start_max: Some(end),
        limit: SAMPLE.min(queries.settings.max_limit),
        ..TraceSearch::default()
    };
    let skew = queries.settings.max_clock_skew_adjust;
    let (mut paths, mut partial) = (Paths::new(service, operation), Vec::new());
    let mut found = deps.queries.find_whole(search);
    while let Some(whole) = found.next().await {
        let WholeTrace { trace_id, mut trace, partial: why, lease } = whole?;
        partial.extend(why);
        let spans = trace.spans().count();
        paths = offload(spans, move || {
            sanitize(&mut trace);
            adjust(&mut trace, skew);
            paths.add(trace_id, &trace);
            drop((trace, lease));
            paths
        })
        .await?;
    }
    if paths.is_cut() {
        partial.push("some paths are too long or too many, and left out".to_owned());
    }
    partial.dedup();
    let why = Some(partial.join("; ")).filter(|why| !why.is_empty());
    Ok(respond(written(&paths.finish()), params.pretty(), why).await?)
}

fn written(paths: &[(Vec<&Step>, &[TraceId])]) -> String {
    let mut out = String::new();
    let mut document = Object::open(&mut out);
    document.list_or_empty("dependencies", paths, |(steps, traces), out| {
        let mut dependency = Object::open(out);
        dependency.list_or_empty("path", steps, |step, out| {
            let mut object = Object::open(out);
            push_str(&step.service, object.member("service"));
            push_str(&step.operation, object.member("operation"));
            object.close();
        });
        dependency.list_or_empty("attributes", traces, |trace, out| {
            let mut attribute = Object::open(out);
            push_str("exemplar_trace_id", attribute.member("key"));
            push_str(&trace.to_string(), attribute.member("value"));
            attribute.close();
        });
        dependency.close();
    });
    document.close();
    out
}
