//! Tag names and tag values, both versions.

use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use prost::Message as _;

use super::ask::PlainTag;
use super::error::ApiError;
use super::params::Params;
use super::respond::{Form, Pairs, names_bytes, negotiate, text_bytes, values_bytes, written};
use super::tenants::tenants;
use super::{ApiDeps, ask, language};
use crate::json::answers;
use crate::wire;

pub(crate) async fn names_v1(
    State(deps): State<ApiDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asker = deps.asker(tenants(&headers, &deps.settings)?);
    let asked = Params::new(pairs).tag_names(false, asker)?;
    let only_intrinsics = asked.only_intrinsics;
    let answer = ask::tag_names(&deps, asked).await?;
    let partial = answer.stats.partial.clone();
    let bytes = names_bytes(&answer);
    written(bytes, partial, negotiate(&headers), move |form| {
        let names = ask::flat_names(&answer, only_intrinsics);
        match form {
            Form::Protobuf => {
                let names = names.into_iter().map(str::to_owned).collect();
                ("application/protobuf", wire::tag_names_v1(names, &answer.stats).encode_to_vec())
            }
            Form::Json | Form::Llm => ("application/json", answers::tag_names_v1(&names, &answer.stats).into_bytes()),
        }
    })
    .await
}

pub(crate) async fn names_v2(
    State(deps): State<ApiDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asker = deps.asker(tenants(&headers, &deps.settings)?);
    let answer = ask::tag_names(&deps, Params::new(pairs).tag_names(true, asker)?).await?;
    let partial = answer.stats.partial.clone();
    let bytes = names_bytes(&answer);
    written(bytes, partial, negotiate(&headers), move |form| match form {
        Form::Protobuf => ("application/protobuf", wire::tag_names_v2(answer).encode_to_vec()),
        Form::Json | Form::Llm => ("application/json", answers::tag_names_v2(&answer).into_bytes()),
    })
    .await
}

pub(crate) async fn values_v1(
    State(deps): State<ApiDeps>,
    Path(rest): Path<String>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let tag = PlainTag::of(tag_name(&rest)?);
    let asker = deps.asker(tenants(&headers, &deps.settings)?);
    let request = Params::new(pairs).tag_values(tag.attribute(), false, asker)?;
    let (values, stats) = ask::plain_values(&deps, tag, request).await?;
    let partial = stats.partial.clone();
    let bytes = text_bytes(values.iter().map(String::as_str));
    written(bytes, partial, negotiate(&headers), move |form| match form {
        Form::Protobuf => ("application/protobuf", wire::tag_values_v1(values, &stats).encode_to_vec()),
        Form::Json | Form::Llm => ("application/json", answers::tag_values_v1(&values, &stats).into_bytes()),
    })
    .await
}

pub(crate) async fn values_v2(
    State(deps): State<ApiDeps>,
    Path(rest): Path<String>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let name = tag_name(&rest)?;
    let asker = deps.asker(tenants(&headers, &deps.settings)?);
    let request = Params::new(pairs).tag_values(language::tag(name)?, true, asker)?;
    let answer = ask::tag_values(&deps, name, request).await?;
    let partial = answer.stats.partial.clone();
    let bytes = values_bytes(&answer);
    written(bytes, partial, negotiate(&headers), move |form| match form {
        Form::Protobuf => ("application/protobuf", wire::tag_values_v2(answer).encode_to_vec()),
        Form::Json => ("application/json", answers::tag_values_v2(&answer).into_bytes()),
        Form::Llm => ("application/vnd.grafana.llm+json", answers::tag_values_llm(&answer).into_bytes()),
    })
    .await
}

/// The name between the slashes; it may hold some itself, so no route can end after it.
fn tag_name(rest: &str) -> Result<&str, ApiError> {
    rest.strip_suffix("/values").filter(|name| !name.is_empty()).ok_or(ApiError::NoSuchPage)
}
