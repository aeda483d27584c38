//! Zipkin's own UI: files of a folder, under `/zipkin`.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get};

use super::ZipkinDeps;
use crate::api::text;
use crate::ui_files::file;

const INDEX: &str = "index.html";

/// The page where there is no UI.
const NO_UI: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Zipkin API</title></head><body>
<h1>Zipkin API</h1>
<p>This port takes spans from Zipkin reporters (<code>POST /api/v2/spans</code>) and answers Zipkin's query API
(<code>/api/v2</code>). Its UI is not installed here.</p>
<p>To have it: build <code>zipkin-lens</code> of the repository <code>openzipkin/zipkin</code>
(<code>npm install; npm run build</code>), or unpack the folder <code>zipkin-lens</code> of a <code>zipkin-server</code> or
<code>zipkin-lens</code> jar, and set <code>zipkin.ui_dir</code> to the folder with its <code>index.html</code>.</p>
</body></html>
";

pub(super) fn routes() -> Router<ZipkinDeps> {
    Router::new()
        .route("/", get(async || found("/zipkin/")))
        .route("/zipkin", get(async || found("/zipkin/")))
        .route("/favicon.ico", get(async || found("/zipkin/favicon.ico")))
        .route("/config.json", get(config))
        .route("/zipkin/config.json", get(config))
        .route("/zipkin/", get(index))
        .route("/zipkin/{*path}", get(asset))
        // What is no route of the API is not a page either.
        .route("/zipkin/api/{*path}", any(async || text(StatusCode::NOT_FOUND, "404 page not found\n")))
}

fn found(location: &'static str) -> Response {
    (StatusCode::FOUND, [(LOCATION, HeaderValue::from_static(location))]).into_response()
}

/// What the UI asks for before anything else; the values are its own defaults.
async fn config(State(deps): State<ZipkinDeps>) -> Response {
    let limit = deps.queries.deps().settings.max_limit.min(10);
    let body = serde_json::json!({
        "environment": "",
        "queryLimit": limit,
        "defaultLookback": 900_000,
        "searchEnabled": true,
        "logsUrl": null,
        "supportUrl": null,
        "archivePostUrl": null,
        "archiveUrl": null,
        "dependency": { "enabled": true, "lowErrorRate": 0.5, "highErrorRate": 0.75 },
    });
    let headers = [(CONTENT_TYPE, "application/json; charset=utf-8"), (CACHE_CONTROL, "max-age=600")];
    (headers, body.to_string()).into_response()
}

async fn index(State(deps): State<ZipkinDeps>) -> Response {
    let Some(dir) = &deps.settings.ui_dir else { return Html(NO_UI).into_response() };
    match file(dir, INDEX).await {
        Some(page) => ([(CACHE_CONTROL, "max-age=60")], page).into_response(),
        None => {
            let why = format!("no {INDEX} in {}: zipkin.ui_dir must name the folder of a built Zipkin UI\n", dir.display());
            text(StatusCode::NOT_FOUND, why)
        }
    }
}

/// A file, or the page for what the UI shows under that path. Names of files have a dot, paths of the UI do not.
async fn asset(State(deps): State<ZipkinDeps>, Path(path): Path<String>) -> Response {
    if let Some(dir) = &deps.settings.ui_dir
        && path != INDEX
        && let Some(asset) = file(dir, &path).await
    {
        // Names carry a hash of the content.
        let age = if path.contains('/') { "max-age=31536000" } else { "max-age=600" };
        return ([(CACHE_CONTROL, age)], asset).into_response();
    }
    let is_page = path == INDEX || !path.rsplit('/').next().unwrap_or_default().contains('.');
    if is_page { index(State(deps)).await } else { text(StatusCode::NOT_FOUND, "404 page not found\n") }
}
