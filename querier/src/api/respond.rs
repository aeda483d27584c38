//! What every answer of `/api` has in common: the negotiated form, compression, `Vary`, and being counted.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use spanhouse_common::time::Clock;
use tonic::metadata::{MetadataMap, MetadataValue};

use super::ApiDeps;
use super::error::ApiError;
use crate::engine::answer::{SearchAnswer, SeriesAnswer, TagNamesAnswer, TagValuesAnswer};
use crate::metrics::{CLIENT_GONE, QuerierMetrics};

/// Smaller bodies are sent as they are.
const MIN_GZIP_BYTES: usize = 1024;

/// Work on more bytes than this leaves the threads that serve sockets.
pub(crate) const INLINE_BYTES: usize = 256 * 1024;

/// About how long the text of an answer is: a trace takes a kilobyte, a sample 50 bytes.
pub(crate) fn search_bytes(answer: &SearchAnswer) -> usize {
    1024 * answer.traces.len()
}

pub(crate) fn series_bytes(answer: &SeriesAnswer) -> usize {
    50 * answer.series.iter().map(|series| series.samples.len()).sum::<usize>()
}

pub(crate) fn names_bytes(answer: &TagNamesAnswer) -> usize {
    text_bytes(answer.scopes.iter().flat_map(|scope| &scope.tags).map(String::as_str))
}

pub(crate) fn values_bytes(answer: &TagValuesAnswer) -> usize {
    text_bytes(answer.values.iter().map(|value| value.text.as_str()))
}

pub(crate) fn text_bytes<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(|text| text.len() + 16).sum()
}

/// Works on so many bytes: here, or on a thread that serves no socket if they are many.
pub(crate) async fn offload<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= INLINE_BYTES {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::Broken)
}

/// Says why an answer is not complete.
pub(crate) const PARTIAL: &str = "x-spanhouse-partial";

/// The parameters of a URL as they come.
pub(crate) type Pairs = Query<Vec<(String, String)>>;

/// The form a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Protobuf,
    Json,
    Llm,
}

/// Reads `Accept` as Tempo does: by substring, in this order, whatever weights it has.
pub(crate) fn negotiate(headers: &HeaderMap) -> Form {
    let asked = |what: &str| headers.get_all(ACCEPT).iter().any(|v| String::from_utf8_lossy(v.as_bytes()).contains(what));
    if asked("application/protobuf") {
        Form::Protobuf
    } else if asked("application/json") || !asked("application/vnd.grafana.llm") {
        Form::Json
    } else {
        Form::Llm
    }
}

/// Writes an answer of about so many bytes.
pub(crate) async fn written(
    bytes: usize,
    partial: Option<String>,
    form: Form,
    write: impl FnOnce(Form) -> (&'static str, Vec<u8>) + Send + 'static,
) -> Result<Response, ApiError> {
    let (content_type, body) = offload(bytes, move || write(form)).await?;
    let mut response = response(content_type, body);
    if let Some(reason) = partial {
        say_partial(&mut response, &reason);
    }
    Ok(response)
}

pub(crate) fn response(content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn say_partial(response: &mut Response, reason: &str) {
    if let Ok(value) = HeaderValue::from_str(&visible(reason)) {
        response.headers_mut().insert(HeaderName::from_static(PARTIAL), value);
    }
}

/// A header holds visible ASCII only, and not much: proxies and clients refuse answers with long ones.
pub(crate) fn visible(text: &str) -> String {
    const MOST: usize = 2048;
    let visible = |c| if matches!(c, ' '..='~') { c } else { '?' };
    let mut out: String = text.chars().take(MOST).map(visible).collect();
    if text.chars().nth(MOST).is_some() {
        out.push_str(" ...");
    }
    out
}

/// Says in gRPC's metadata that something is missing.
pub(crate) fn note_partial(metadata: &mut MetadataMap, why: &str) {
    if let Ok(value) = MetadataValue::try_from(visible(why)) {
        metadata.insert(PARTIAL, value);
    }
}

/// Ends a stream well, with a word on what is missing: a status is the only way to trailers.
pub(crate) fn partial_trailer(why: &str) -> tonic::Status {
    let mut metadata = MetadataMap::new();
    note_partial(&mut metadata, why);
    tonic::Status::with_metadata(tonic::Code::Ok, "", metadata)
}

/// Counts a request when it ends, also when its client goes before the answer.
pub(crate) struct Counted {
    metrics: QuerierMetrics,
    clock: Arc<dyn Clock>,
    started: Duration,
    route: String,
    pub(crate) status: u16,
}

impl Counted {
    pub(crate) fn new(deps: &ApiDeps, route: String) -> Self {
        Self::of(&deps.metrics, &deps.clock, route)
    }

    pub(crate) fn of(metrics: &QuerierMetrics, clock: &Arc<dyn Clock>, route: String) -> Self {
        let (metrics, clock) = (metrics.clone(), Arc::clone(clock));
        Self { metrics, started: clock.monotonic(), clock, route, status: CLIENT_GONE }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.request(&self.route, self.status, self.clock.monotonic().saturating_sub(self.started));
    }
}

/// The layer around all `/api` routes.
pub(crate) async fn around(State(deps): State<ApiDeps>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    count_and_pack(Counted::new(&deps, route), request, next).await
}

/// Counts a request, and packs its answer for a client that takes it packed.
pub(crate) async fn count_and_pack(mut counted: Counted, request: Request, next: Next) -> Response {
    let gzip = accepts_gzip(request.headers());
    let mut response = next.run(request).await;
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
    if gzip {
        response = compressed(response).await;
    }
    counted.status = response.status().as_u16();
    response
}

pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(
        |coding| {
            let mut parts = coding.split(';').map(str::trim);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
            let weight = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse::<f32>().ok());
            named && weight.is_none_or(|q| q > 0.0)
        },
    )
}

pub(crate) async fn compressed(response: Response) -> Response {
    use axum::body::HttpBody as _;
    if response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // Only bodies whose size is known, which are whole in memory: a stream must flow.
    if body.size_hint().exact().is_none_or(|size| size < MIN_GZIP_BYTES as u64) {
        return Response::from_parts(parts, body);
    }
    let Ok(plain) = axum::body::to_bytes(body, usize::MAX).await else {
        return ApiError::Broken.into_response();
    };
    let kept = plain.clone();
    let packed = offload(plain.len(), move || gzip(&plain)).await.ok().flatten();
    let Some(packed) = packed else {
        return Response::from_parts(parts, Body::from(kept));
    };
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(packed))
}

fn gzip(plain: &Bytes) -> Option<Vec<u8>> {
    // A fast level: the answer waits for it.
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_short_and_plain() {
        assert_eq!(visible("a \u{e9}\n"), "a ??");
        let long = visible(&"\u{e9}b".repeat(5_000));
        assert!(long.len() < 2100 && long.starts_with("?b?b") && long.ends_with("b ..."), "{long}");
    }
}
