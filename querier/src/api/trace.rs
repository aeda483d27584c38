//! Trace by id, v1 and v2.
//!
//! v1 is all or nothing: a bare trace, 404 if there is none, 422 if it is too large. v2 wraps the trace, answers 200 with an
//! empty one if there is none, and says in `status` and `message` when it is not complete. Both say so in a header.

use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use spanhouse_common::id::TraceId;

use super::ApiDeps;
use super::error::ApiError;
use super::params::{Params, SpanSelection};
use super::respond::{Form, INLINE_BYTES, Pairs, negotiate, response, say_partial};
use super::tenants::tenants;
use crate::assemble::{Trace, assemble};
use crate::find_trace::{FoundTrace, TraceQuery, find_trace};
use crate::trace_filter::filter_trace;
use crate::{json, llm, otlp};

const FILTERED: &str = "Trace filtered, only a subset of spans matching the filter is returned";

pub(crate) async fn v1(
    State(deps): State<ApiDeps>,
    Path(id): Path<String>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let query = query(&deps, &headers, &id, &Params::new(pairs))?;
    let form = negotiate(&headers);
    let found = find_trace(&*deps.snapshots, &deps.memory, &query, deps.settings.bounds).await?;
    let limit = deps.settings.max_trace_bytes;
    let damage = found.damage.clone();
    let answer = offload(found, move |pieces, _| {
        let trace = assemble(pieces);
        if trace.is_empty() {
            return Err(ApiError::TraceNotFound);
        }
        if trace.encoded_len() > limit {
            return Err(ApiError::TraceTooLarge { limit });
        }
        // Tempo echoes what was asked for, also where the body is plain JSON.
        Ok(match form {
            Form::Protobuf => ("application/protobuf", otlp::encode_trace_protobuf(&trace)),
            Form::Json => ("application/json", json::trace_v1(&trace).into_bytes()),
            Form::Llm => ("application/vnd.grafana.llm", json::trace_v1(&trace).into_bytes()),
        })
    })
    .await;
    let mut response = match answer {
        Ok((content_type, body)) => response(content_type, body),
        Err(error) => axum::response::IntoResponse::into_response(error),
    };
    if !damage.is_empty() {
        deps.metrics.partial("damage");
        say_partial(&mut response, &damage.join("; "));
    }
    Ok(response)
}

pub(crate) async fn v2(
    State(deps): State<ApiDeps>,
    Path(id): Path<String>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let params = Params::new(pairs);
    let query = query(&deps, &headers, &id, &params)?;
    let selection = params.span_selection(&deps.settings)?;
    let (content_type, body, partial) = answer_v2(&deps, query, selection, negotiate(&headers)).await?;
    let mut response = response(content_type, body);
    if let Some(reason) = partial {
        say_partial(&mut response, &reason);
    }
    Ok(response)
}

/// Content type, body, and why the answer is not complete.
pub(crate) type TraceAnswer = (&'static str, Vec<u8>, Option<String>);

/// A trace as v2 shows it.
pub(crate) async fn answer_v2(
    deps: &ApiDeps,
    query: TraceQuery,
    selection: Option<SpanSelection>,
    form: Form,
) -> Result<TraceAnswer, ApiError> {
    let chosen = selection.map(|selection| (deps.engine.span_filter(&selection.filter), selection.kin));
    let limit = deps.settings.max_trace_bytes;
    let too_large = format!("Trace exceeds maximum size of {limit} bytes, a partial trace is returned");
    let found = find_trace(&*deps.snapshots, &deps.memory, &query, deps.settings.bounds).await?;
    let mut damage = found.damage.clone();
    let metrics = deps.metrics.clone();
    offload(found, move |pieces, inspected_bytes| {
        let mut trace = assemble(pieces);
        let is_known = !trace.is_empty();
        let mut messages = Vec::new();
        if let Some((matches, kin)) = chosen.filter(|_| is_known) {
            filter_trace(&mut trace, &*matches, kin);
            messages.push(FILTERED.to_owned());
        }
        // A damaged trace names its damage, a cut one its limit; Tempo's own texts go first, in its order.
        let is_cut = trace.truncate(limit);
        if is_cut {
            metrics.partial("trace_too_large");
            messages.insert(0, too_large.clone());
            damage.insert(0, too_large);
        } else if !damage.is_empty() {
            metrics.partial("damage");
        }
        messages.extend(damage.iter().skip(usize::from(is_cut)).cloned());
        let message = Some(messages.join("; ")).filter(|message| !message.is_empty());
        // What is not known has one answer, to the byte, whatever was looked at for nothing.
        let inspected = if is_known { inspected_bytes } else { 0 };
        let (content_type, body) = write_v2(&trace, form, inspected, message.as_deref());
        // A filter is what was asked for: nothing is missing.
        Ok((content_type, body, Some(damage.join("; ")).filter(|reason| !reason.is_empty())))
    })
    .await
}

fn write_v2(trace: &Trace, form: Form, inspected: u64, partial: Option<&str>) -> (&'static str, Vec<u8>) {
    match form {
        Form::Protobuf => ("application/protobuf", otlp::encode_trace_by_id_response(trace, inspected, partial)),
        Form::Json => ("application/json", json::trace_v2(trace, inspected, partial).into_bytes()),
        Form::Llm => ("application/vnd.grafana.llm+json", llm::trace(trace, inspected, partial).into_bytes()),
    }
}

fn query(deps: &ApiDeps, headers: &HeaderMap, id: &str, params: &Params) -> Result<TraceQuery, ApiError> {
    let tenants = tenants(headers, &deps.settings)?;
    let id: TraceId = id.parse()?;
    let place = params.where_to_look()?;
    Ok(TraceQuery { tenants, id, hint: place.hint, sources: place.sources })
}

/// Runs `work` on what was found: here if it is little, else on a thread that serves no socket. The memory stays taken.
async fn offload<T: Send + 'static>(
    found: FoundTrace,
    work: impl FnOnce(Vec<Vec<spanhouse_common::model::StoredSpan>>, u64) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let FoundTrace { pieces, inspected_bytes, lease, .. } = found;
    let spans: usize = pieces.iter().map(Vec::len).sum();
    // A span is a few hundred bytes.
    if spans <= INLINE_BYTES / 512 {
        return work(pieces, inspected_bytes);
    }
    let task = tokio::task::spawn_blocking(move || {
        let result = work(pieces, inspected_bytes);
        drop(lease);
        result
    });
    task.await.unwrap_or(Err(ApiError::Broken))
}
