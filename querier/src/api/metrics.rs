//! `/api/metrics/query_range` and `/api/metrics/query`. Always JSON, whatever was asked for.

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;

use super::error::ApiError;
use super::params::Params;
use super::respond::{Form, Pairs, series_bytes, written};
use super::tenants::tenants;
use super::{ApiDeps, ask};
use crate::engine::answer::SeriesAnswer;
use crate::json::answers;

pub(crate) async fn query_range(
    State(deps): State<ApiDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asker = deps.asker(tenants(&headers, &deps.settings)?);
    let request = Params::new(pairs).query_range(&asker)?.range_request(asker)?;
    let answer = ask::metrics(&deps, request, ask::QUIET).await?;
    respond(answer, answers::query_range).await
}

pub(crate) async fn query_instant(
    State(deps): State<ApiDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asker = deps.asker(tenants(&headers, &deps.settings)?);
    let request = Params::new(pairs).query_instant(&asker)?.instant_request(asker)?;
    let answer = ask::metrics(&deps, request, ask::QUIET).await?;
    respond(answer, answers::query_instant).await
}

async fn respond(answer: SeriesAnswer, write: fn(&SeriesAnswer) -> String) -> Result<Response, ApiError> {
    let bytes = series_bytes(&answer);
    let partial = answer.stats.partial.clone();
    written(bytes, partial, Form::Json, move |_| ("application/json", write(&answer).into_bytes())).await
}
