//! What the process says of itself: echo, build info, readiness, metrics and the `/status` texts.

use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::{ApiDeps, ENDPOINTS, text};
use crate::json::Object;

/// The Tempo release whose API this is: Grafana turns features on by it.
const API_LEVEL: &str = "3.0.0";

pub(crate) async fn echo() -> Response {
    text(StatusCode::OK, "echo\n")
}

pub(crate) async fn buildinfo(State(deps): State<ApiDeps>) -> Response {
    let build = &deps.status.build;
    let members = [
        ("version", API_LEVEL),
        ("revision", &build.revision),
        ("branch", &build.branch),
        ("buildUser", ""),
        ("buildDate", &build.date),
        ("goVersion", ""),
    ];
    let mut body = String::new();
    let mut object = Object::open(&mut body);
    for (name, value) in members {
        crate::json::push_str(value, object.member(name));
    }
    object.close();
    body.push('\n');
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

pub(crate) async fn ready(State(deps): State<ApiDeps>) -> Response {
    match (deps.status.ready)() {
        Ok(()) => text(StatusCode::OK, "ready\n"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", why.trim_end())),
    }
}

pub(crate) async fn metrics(State(deps): State<ApiDeps>) -> Response {
    let form = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(CONTENT_TYPE, form)], (deps.status.metrics)()).into_response()
}

pub(crate) async fn all(State(deps): State<ApiDeps>) -> Response {
    text(StatusCode::OK, [version_text(&deps), services_text(&deps), endpoints_text(), config_text(&deps)].join("\n"))
}

pub(crate) async fn version(State(deps): State<ApiDeps>) -> Response {
    text(StatusCode::OK, version_text(&deps))
}

pub(crate) async fn services(State(deps): State<ApiDeps>) -> Response {
    text(StatusCode::OK, services_text(&deps))
}

pub(crate) async fn endpoints() -> Response {
    text(StatusCode::OK, endpoints_text())
}

pub(crate) async fn config(State(deps): State<ApiDeps>) -> Response {
    text(StatusCode::OK, config_text(&deps))
}

pub(crate) async fn overrides(State(deps): State<ApiDeps>) -> Response {
    text(StatusCode::OK, limits_text("overrides", &(deps.status.limits)(None)))
}

pub(crate) async fn overrides_of(State(deps): State<ApiDeps>, Path(tenant): Path<String>) -> Result<Response, ApiError> {
    let tenant = tenant.parse()?;
    Ok(text(StatusCode::OK, limits_text(&format!("overrides/{tenant}"), &(deps.status.limits)(Some(&tenant)))))
}

pub(crate) async fn compactor(State(deps): State<ApiDeps>) -> Response {
    text(StatusCode::OK, limits_text("compactor", &(deps.status.compactor)()))
}

pub(crate) async fn runtime_config(State(deps): State<ApiDeps>) -> Response {
    text(StatusCode::OK, limits_text("runtime_config", &(deps.status.limits)(None)))
}

/// Nothing is collected and nothing sent anywhere.
pub(crate) async fn usage_stats() -> Response {
    text(StatusCode::OK, "usage-stats is not enabled\n")
}

fn limits_text(page: &str, limits: &str) -> String {
    format!("GET /status/{page}\n---\n{}\n", limits.trim_end())
}

fn version_text(deps: &ApiDeps) -> String {
    let build = &deps.status.build;
    format!(
        "GET /status/version\nspanhouse, version {} (branch: {}, revision: {})\n  build date:      {}\n  Tempo API level: {API_LEVEL}\n",
        build.version, build.branch, build.revision, build.date
    )
}

fn services_text(deps: &ApiDeps) -> String {
    let services = (deps.status.services)();
    table("services", services.iter().map(|service| (service.name.as_str(), service.state.as_str())))
}

fn endpoints_text() -> String {
    table("endpoints", ENDPOINTS.into_iter())
}

fn config_text(deps: &ApiDeps) -> String {
    let config = (deps.status.config)();
    format!("GET /status/config\n---\n{}\n", config.trim_end())
}

fn table<'a>(name: &str, rows: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> String {
    let width = rows.clone().map(|(left, _)| left.len()).max().unwrap_or_default();
    let mut body = format!("GET /status/{name}\n");
    for (left, right) in rows {
        body.push_str(&format!("{left:width$}  {right}\n"));
    }
    body
}
