//! `/api/search`.

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use prost::Message as _;

use super::error::ApiError;
use super::params::Params;
use super::respond::{Form, Pairs, negotiate, search_bytes, written};
use super::tenants::tenants;
use super::{ApiDeps, ask};
use crate::json::answers;
use crate::wire;

pub(crate) async fn search(
    State(deps): State<ApiDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asker = deps.asker(tenants(&headers, &deps.settings)?);
    let request = Params::new(pairs).search(asker)?;
    let answer = ask::search(&deps, request, ask::QUIET).await?;
    let (partial, bytes) = (answer.stats.partial.clone(), search_bytes(&answer));
    written(bytes, partial, negotiate(&headers), move |form| match form {
        Form::Protobuf => ("application/protobuf", wire::search(answer).encode_to_vec()),
        Form::Json | Form::Llm => ("application/json", answers::search(&answer).into_bytes()),
    })
    .await
}
