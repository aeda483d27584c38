//! The Tempo API over HTTP.
//!
//! Owns routes, parameters, tenancy, negotiation and error texts. Does not own serving (the binary binds ports and may put
//! gRPC beside this router), nor what a query does.
//!
//! Query endpoints answer every method and read parameters from the URL only, as Tempo's do.

mod error;
mod params;
mod respond;
mod status;
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
use spanhouse_common::source::Snapshots;
use spanhouse_common::time::Clock;

use crate::find_trace::QueryBounds;
use crate::metrics::QuerierMetrics;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What the API stands on.
#[derive(Debug, Clone)]
pub struct ApiDeps {
    pub snapshots: Arc<dyn Snapshots>,
    pub clock: Arc<dyn Clock>,
    /// What all queries together may hold.
    pub memory: Share,
    pub metrics: QuerierMetrics,
    pub settings: ApiSettings,
    pub status: StatusDeps,
}

/// What an operator chooses.
#[derive(Debug, Clone, Copy)]
pub struct ApiSettings {
    /// Whether requests name their tenant in `X-Scope-OrgID`.
    pub multitenancy: bool,
    /// Whether one request may name several tenants, as `a|b`.
    pub multi_tenant_queries: bool,
    /// Largest trace answered whole, in bytes of protobuf. Larger means memory per request, smaller means partial traces.
    pub max_trace_bytes: usize,
    pub bounds: QueryBounds,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            multitenancy: false,
            multi_tenant_queries: true,
            max_trace_bytes: 100_000_000,
            bounds: QueryBounds::default(),
        }
    }
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
    /// All metrics of the process in the OpenMetrics text form.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for StatusDeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusDeps").field("build", &self.build).finish_non_exhaustive()
    }
}

/// Paths of the API and what they are, in the order `/status/endpoints` lists them.
const ENDPOINTS: [(&str, &str); 10] = [
    ("/api/traces/{traceID}", "a trace (v1)"),
    ("/api/v2/traces/{traceID}", "a trace (v2)"),
    ("/api/echo", "liveness"),
    ("/api/status/buildinfo", "version as API level"),
    ("/ready", "readiness"),
    ("/metrics", "metrics"),
    ("/status/version", "version"),
    ("/status/services", "modules"),
    ("/status/endpoints", "this table"),
    ("/status/config", "effective configuration"),
];

/// The routes of the Tempo port.
pub fn router(deps: ApiDeps) -> Router {
    let api = Router::new()
        .route("/api/traces/{trace_id}", any(trace::v1))
        .route("/api/v2/traces/{trace_id}", any(trace::v2))
        .route("/api/echo", any(status::echo))
        .route("/api/status/buildinfo", any(status::buildinfo))
        .route_layer(axum::middleware::from_fn_with_state(deps.clone(), respond::around));
    Router::new()
        .merge(api)
        .route("/ready", any(status::ready))
        .route("/metrics", any(status::metrics))
        .route("/status", any(status::all))
        .route("/status/version", any(status::version))
        .route("/status/services", any(status::services))
        .route("/status/endpoints", any(status::endpoints))
        .route("/status/config", any(status::config))
        .fallback(not_found)
        .with_state(deps)
}

async fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn text(status: StatusCode, body: impl Into<String>) -> Response {
    (status, [(CONTENT_TYPE, TEXT)], body.into()).into_response()
}

#[cfg(test)]
mod tests;
