//! `POST /api/transform`: OTLP/JSON in, Jaeger's JSON out. Jaeger UI shows uploaded files so. Nothing is stored.
//!
//! The UI sends files as `text/plain`, so the content type is not looked at.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::answer::{envelope, offload, respond};
use super::error::{Legacy, Refusal};
use super::params::{Pairs, Params};
use super::{HttpDeps, body};
use crate::assemble::Trace;
use crate::jaeger::model::JaegerTrace;
use crate::jaeger::model::json::write_trace;
use crate::jaeger::otlp_json::{read_cost, read_traces};
use crate::json::Escape;

/// Longer bodies are read on a thread that serves no socket.
const INLINE_BYTES: usize = 64 * 1024;

pub(super) async fn transform(
    State(deps): State<HttpDeps>,
    pairs: Pairs,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Legacy> {
    deps.tenants(&headers)?;
    let queries = deps.queries.deps();
    let held = body::read(queries, &headers, body).await?;
    let limit = queries.settings.bounds.memory_bytes;
    let lease = body::take(queries, read_cost(&held.bytes)).await?;
    let spans = if held.bytes.len() <= INLINE_BYTES { 0 } else { usize::MAX };
    let data = offload(spans, move || {
        let traces = read_traces(&held.bytes).map_err(|error| Refusal::bad(error.to_string()))?;
        drop(held);
        let data = written(&traces, limit);
        drop((traces, lease));
        data
    })
    .await??;
    Ok(respond(envelope(&data, 0, &[]), Params::new(pairs).pretty(), None).await?)
}

fn written(traces: &[Trace], limit: usize) -> Result<String, Refusal> {
    let mut data = String::from("[");
    for view in traces.iter().filter_map(JaegerTrace::of) {
        if data.len() > 1 {
            data.push(',');
        }
        write_trace(&view, Escape::Html, &mut data);
        if data.len() > limit {
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("the answer is longer than {limit} bytes")));
        }
    }
    data.push(']');
    Ok(data)
}
