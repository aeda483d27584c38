//! The Tempo API: HTTP, gRPC for streams, and MCP for language models.
//!
//! Owns routes, parameters, tenancy, negotiation and error texts. Does not own serving (the binary binds ports), what a query
//! means ([`crate::traceql`]) nor how it runs ([`crate::engine`]).
//!
//! A request goes [`params`] (with [`language`]) -> [`ask`] -> the writers of [`crate::json`] or [`crate::wire`], whatever
//! protocol it came by. HTTP endpoints answer every method and read parameters from the URL only, as Tempo's do; but DELETE of a
//! trace means what it says.
//!
//! Not served, as by a Tempo with its defaults: comparing traces (`/api/v2/traces/diff` is then a trace id, and no hex), pruning of
//! spans (its parameters are ignored), `/api/overrides`, `/usage_metrics`, and `/api/mcp` unless turned on.

mod ask;
mod delete;
pub(crate) mod error;
pub(crate) mod go;
mod grpc;
mod language;
mod logfmt;
mod mcp;
mod metrics;
mod params;
pub(crate) mod respond;
mod search;
mod settings;
mod status;
mod tags;
mod tenants;
mod trace;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use spanhouse_common::budget::Share;
use spanhouse_common::deletion::Deletions;
use spanhouse_common::id::TenantId;
use spanhouse_common::source::Snapshots;
use spanhouse_common::time::Clock;

use crate::engine::QueryEngine;
use crate::metrics::QuerierMetrics;

pub use grpc::grpc_router;
pub use settings::ApiSettings;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What the API stands on.
#[derive(Debug, Clone)]
pub struct ApiDeps {
    pub snapshots: Arc<dyn Snapshots>,
    pub engine: Arc<dyn QueryEngine>,
    pub clock: Arc<dyn Clock>,
    /// What all queries together may hold.
    pub memory: Share,
    pub metrics: QuerierMetrics,
    pub settings: ApiSettings,
    /// What stands before `/api`: empty, or a path that begins with a slash and does not end with one.
    pub prefix: Arc<str>,
    pub status: StatusDeps,
    /// Deletes traces for whoever asks; `None` refuses.
    pub deletions: Option<Deletions>,
}

/// Which program this is.
#[derive(Debug, Clone, Default)]
pub struct BuildInfo {
    /// Version of Spanhouse.
    pub version: String,
    pub revision: String,
    pub branch: String,
    pub date: String,
}

/// A module and how it does, for `/status/services`.
#[derive(Debug, Clone)]
pub struct ServiceStatus {
    pub name: String,
    pub state: String,
}

/// What the process says of itself. The API only prints it.
#[derive(Clone)]
pub struct StatusDeps {
    pub build: BuildInfo,
    /// `Err` names what is not ready yet, or no more.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The effective configuration as YAML, secrets masked.
    pub config: Arc<dyn Fn() -> String + Send + Sync>,
    pub services: Arc<dyn Fn() -> Vec<ServiceStatus> + Send + Sync>,
    /// The effective limits as YAML: of every tenant, or of the one named.
    pub limits: Arc<dyn Fn(Option<&TenantId>) -> String + Send + Sync>,
    /// What the compactor of this process is doing.
    pub compactor: Arc<dyn Fn() -> String + Send + Sync>,
    /// All metrics of the process in the OpenMetrics text form.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for StatusDeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusDeps").field("build", &self.build).finish_non_exhaustive()
    }
}

/// Paths of the API and what they are, in the order `/status/endpoints` lists them.
const ENDPOINTS: [(&str, &str); 23] = [
    ("/api/traces/{traceID}", "a trace (v1); DELETE deletes it, if turned on"),
    ("/api/v2/traces/{traceID}", "a trace (v2)"),
    ("/api/search", "traces by TraceQL or tags"),
    ("/api/search/tags", "names of tags (v1)"),
    ("/api/v2/search/tags", "names of tags by scope"),
    ("/api/search/tag/{tag}/values", "values of a tag (v1)"),
    ("/api/v2/search/tag/{tag}/values", "typed values of a tag"),
    ("/api/metrics/query_range", "TraceQL metrics over time"),
    ("/api/metrics/query", "TraceQL metrics, one value a series"),
    ("/tempopb.StreamingQuerier/{method}", "the same as gRPC streams"),
    ("/api/mcp", "MCP, if turned on"),
    ("/api/echo", "liveness"),
    ("/api/status/buildinfo", "version as API level"),
    ("/ready", "readiness"),
    ("/metrics", "metrics"),
    ("/status/version", "version"),
    ("/status/services", "modules"),
    ("/status/endpoints", "this table"),
    ("/status/config", "effective configuration"),
    ("/status/overrides", "effective limits, also /status/overrides/{tenant}"),
    ("/status/compactor", "what is merged and was, blocks by level, what is damaged"),
    ("/status/runtime_config", "limits that are read again while running"),
    ("/status/usage-stats", "not collected"),
];

/// The routes of the Tempo port.
pub fn router(deps: ApiDeps) -> Router {
    let mut api = Router::new()
        .route("/api/traces/{trace_id}", any(trace::v1).delete(delete::delete))
        .route("/api/v2/traces/{trace_id}", any(trace::v2).delete(delete::delete))
        .route("/api/search", any(search::search))
        .route("/api/search/tags", any(tags::names_v1))
        .route("/api/v2/search/tags", any(tags::names_v2))
        .route("/api/search/tag/{*rest}", any(tags::values_v1))
        .route("/api/v2/search/tag/{*rest}", any(tags::values_v2))
        .route("/api/metrics/query_range", any(metrics::query_range))
        .route("/api/metrics/query", any(metrics::query_instant))
        .route("/api/echo", any(status::echo))
        .route("/api/status/buildinfo", any(status::buildinfo));
    if deps.settings.mcp {
        api = api.route("/api/mcp", any(mcp::mcp));
    }
    let api = api.route_layer(axum::middleware::from_fn_with_state(deps.clone(), respond::around));
    let api = if deps.prefix.is_empty() { api } else { Router::new().nest(&deps.prefix, api) };
    Router::new()
        .merge(api)
        .merge(grpc::routes(&deps))
        .route("/ready", any(status::ready))
        .route("/metrics", any(status::metrics))
        .route("/status", any(status::all))
        .route("/status/version", any(status::version))
        .route("/status/services", any(status::services))
        .route("/status/endpoints", any(status::endpoints))
        .route("/status/config", any(status::config))
        .route("/status/overrides", any(status::overrides))
        .route("/status/overrides/{tenant}", any(status::overrides_of))
        .route("/status/compactor", any(status::compactor))
        .route("/status/runtime_config", any(status::runtime_config))
        .route("/status/usage-stats", any(status::usage_stats))
        .fallback(not_found)
        .with_state(deps)
}

async fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Response {
    (status, [(CONTENT_TYPE, TEXT)], body.into()).into_response()
}

#[cfg(test)]
mod tests;
