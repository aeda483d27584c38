//! `DELETE /api/traces/{id}`: hides a trace for good. Off unless the operator turns it on.
//!
//! Answers 204 when the trace is deleted, whether any span of it was there or not: its spans may still be on their way, and
//! stay hidden too. Any other answer says that nothing was deleted, or that it is not known and to ask again.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use spanhouse_common::deletion::{Asker, DeleteError, Deleted, Deletion, Deletions};
use spanhouse_common::id::TraceId;

use super::ApiDeps;
use super::error::ApiError;
use super::respond::Pairs;
use super::tenants::tenants;

/// A commit may take longer than a query, and giving up early leaves everybody in the dark.
const LEAST_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) async fn delete(
    State(deps): State<ApiDeps>,
    Path(id): Path<String>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let result = answer(&deps, &id, pairs, &headers).await;
    deps.metrics.deletion(match &result {
        Ok(()) => "done",
        Err(error) if error.status().is_client_error() => "refused",
        Err(_) => "failed",
    });
    result.map(|()| StatusCode::NO_CONTENT)
}

async fn answer(deps: &ApiDeps, id: &str, pairs: Vec<(String, String)>, headers: &HeaderMap) -> Result<(), ApiError> {
    let deletions = deps.deletions.as_ref().ok_or(ApiError::DeletionOff)?;
    let tenants = tenants(headers, &deps.settings)?;
    let [tenant] = tenants.as_slice() else { return Err(ApiError::DeletionOfManyTenants) };
    let trace_id: TraceId = id.parse()?;
    let reason = pairs.into_iter().find(|(name, _)| name == "reason").map(|(_, reason)| reason);
    let deletion = Deletion { tenant: tenant.clone(), trace_id, by: Asker::Api, reason };
    // A task of its own: a client that goes must not leave it half way.
    let task = tokio::spawn(run(deletions.clone(), deletion));
    match tokio::time::timeout(deps.settings.bounds.deadline.max(LEAST_DEADLINE), task).await {
        Ok(ended) => Ok(ended.map_err(|_| ApiError::Broken)??),
        Err(_) => Err(ApiError::DeletionUnknown { trace_id }),
    }
}

async fn run(deletions: Deletions, deletion: Deletion) -> Result<(), DeleteError> {
    let Deletion { tenant, trace_id, reason, .. } = &deletion;
    match deletions.delete(&deletion).await {
        Ok(Deleted { manifest_version, already }) => {
            tracing::info!(%tenant, %trace_id, reason = reason.as_deref(), manifest_version, already, "trace deleted");
            Ok(())
        }
        // The client's to know.
        Err(error @ (DeleteError::NoTrace | DeleteError::ReasonTooLong { .. })) => Err(error),
        Err(error) => {
            tracing::warn!(%tenant, %trace_id, %error, "trace not deleted");
            Err(error)
        }
    }
}
