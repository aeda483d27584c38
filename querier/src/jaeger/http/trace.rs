//! `GET /api/traces/{id}` and `POST /api/archive/{id}`.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};

use super::HttpDeps;
use super::answer::{Form, Traces, respond};
use super::error::{Legacy, Refusal};
use super::params::{Pairs, Params, Segment, trace_id_of};

pub(super) async fn one(
    State(deps): State<HttpDeps>,
    id: Segment,
    pairs: Pairs,
    headers: HeaderMap,
) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let id = trace_id_of(id).map_err(|why| Refusal::parameter("traceID", why))?;
    let (hint, raw) = (params.hint()?, params.bool("raw")?);
    let whole = deps.queries.trace(&tenants, id, hint).await?.ok_or_else(Refusal::no_trace)?;
    let mut traces = Traces::new(&deps.queries, Form::Legacy);
    traces.add(&deps.queries, whole, raw).await?;
    if traces.count == 0 {
        return Err(Refusal::no_trace().into());
    }
    let (body, partial) = traces.finish(&[]);
    Ok(respond(body, params.pretty(), partial).await?)
}

pub(super) async fn archive(
    State(deps): State<HttpDeps>,
    id: Segment,
    pairs: Pairs,
    headers: HeaderMap,
) -> Result<Response, Legacy> {
    let tenant = deps.tenant(&headers)?;
    let params = Params::new(pairs);
    let id = trace_id_of(id).map_err(|why| Refusal::parameter("traceID", why))?;
    // Checked as everywhere, and not used: a copy must have all of the trace.
    params.hint()?;
    deps.queries.archive(&tenant, id, None).await?.ok_or_else(Refusal::no_trace)?;
    let body = r#"{"data":[],"total":0,"limit":0,"offset":0,"errors":[]}"#;
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}
