//! Jaeger's HTTP port: the JSON API of old clients, `/api/v3`, the figures of the Monitor tab, and Jaeger UI itself.
//!
//! Owns routes, parameters, wire forms and error texts. Does not own what a query means ([`super::JaegerQueries`]), how a trace looks in
//! Jaeger's terms ([`super::model`], [`super::adjust`]) nor serving (the binary binds the port).
//!
//! Whatever is below `{base}/api/` and no route, a known path with another method too, is 404 in plain text. Everything else is Jaeger UI: files below
//! `{base}/static/`, and the page for any other path, because the page routes by itself.
//!
//! Not served: `/api/ai` and the proxy for the UI's own traces, which a stock Jaeger serves only if they are turned on.

mod answer;
mod body;
mod deep;
mod dependencies;
mod error;
mod monitor;
mod names;
mod params;
mod quality;
mod search;
mod trace;
mod transform;
mod ui;
mod v3;

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{ALLOW, CONTENT_TYPE, LOCATION, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use spanhouse_common::id::TenantId;

use super::JaegerQueries;
use super::tenant::tenant;
use crate::api::respond::{Counted, count_and_pack};

use error::Refusal;
pub use ui::{UiError, UiSettings};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What the port stands on.
#[derive(Debug, Clone)]
pub struct HttpDeps {
    pub queries: JaegerQueries,
    /// What stands before every path: empty, or a path that begins with a slash and does not end with one.
    pub base_path: Arc<str>,
    pub ui: Arc<UiSettings>,
}

impl HttpDeps {
    fn tenants(&self, headers: &HeaderMap) -> Result<Vec<TenantId>, Refusal> {
        Ok(vec![self.tenant(headers)?])
    }

    fn tenant(&self, headers: &HeaderMap) -> Result<TenantId, Refusal> {
        tenant(headers, self.queries.deps().settings.multitenancy).map_err(Refusal::tenant)
    }
}

/// The routes of the port.
pub fn router(deps: HttpDeps) -> Router {
    let base = Arc::clone(&deps.base_path);
    let at = |path: &str| format!("{base}{path}");
    let routes = Router::new()
        .route(&at("/api/services"), get(names::services))
        .route(&at("/api/services/{service}/operations"), get(names::operations_of))
        .route(&at("/api/operations"), get(names::operations))
        .route(&at("/api/traces"), get(search::search))
        .route(&at("/api/traces/{trace_id}"), get(trace::one))
        .route(&at("/api/archive/{trace_id}"), post(trace::archive))
        .route(&at("/api/transform"), post(transform::transform))
        .route(&at("/api/dependencies"), get(dependencies::dependencies))
        .route(&at("/api/metrics/latencies"), get(monitor::latencies))
        .route(&at("/api/metrics/calls"), get(monitor::calls))
        .route(&at("/api/metrics/errors"), get(monitor::errors))
        .route(&at("/api/metrics/minstep"), get(monitor::min_step))
        .route(&at("/api/quality-metrics"), get(quality::quality))
        .route(&at("/api/deep-dependencies"), get(deep::deep))
        .route(&at("/analytics/v1/dependencies"), get(deep::deep))
        .route(&at("/api/v3/services"), get(v3::services))
        .route(&at("/api/v3/operations"), get(v3::operations))
        .route(&at("/api/v3/traces"), get(v3::traces).post(v3::post_traces))
        .route(&at("/api/v3/traces/{trace_id}"), get(v3::trace))
        .route(&at("/api/v3/trace-summaries"), get(v3::summaries).post(v3::post_summaries))
        .route(&at("/api/v3/dependencies"), get(v3::dependencies))
        .method_not_allowed_fallback(async || not_found())
        .fallback(elsewhere)
        .layer(axum::middleware::from_fn_with_state(deps.clone(), around))
        .with_state(deps);
    // A known path with another method is no route, so it has no methods to tell; axum adds them last of all.
    let untold = axum::middleware::map_response(async |mut response: Response| {
        response.headers_mut().remove(ALLOW);
        response
    });
    Router::new().fallback_service(routes).layer(untold)
}

/// Counts every request and packs answers for clients that take them packed.
async fn around(State(deps): State<HttpDeps>, request: Request, next: Next) -> Response {
    // Paths of the UI are without number; as a label they are one.
    let route = request.extensions().get::<MatchedPath>().map_or("jaeger-ui", MatchedPath::as_str).to_owned();
    let queries = deps.queries.deps();
    count_and_pack(Counted::of(&queries.metrics, &queries.clock, route), request, next).await
}

async fn elsewhere(State(deps): State<HttpDeps>, request: Request) -> Response {
    let Some(path) = request.uri().path().strip_prefix(&*deps.base_path) else { return not_found() };
    if path.is_empty() {
        let Ok(to) = HeaderValue::from_str(&format!("{}/", deps.base_path)) else { return not_found() };
        return (StatusCode::MOVED_PERMANENTLY, [(LOCATION, to)]).into_response();
    }
    if !path.starts_with('/') || path.starts_with("/api/") {
        return not_found();
    }
    match path.strip_prefix("/static/") {
        Some(name) => ui::file(&deps.ui, name, request.headers()).await.unwrap_or_else(not_found),
        None => ui::page(&deps).await,
    }
}

fn not_found() -> Response {
    let headers = [(CONTENT_TYPE, TEXT), (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
    (StatusCode::NOT_FOUND, headers, "404 page not found\n").into_response()
}

#[cfg(test)]
mod tests;
