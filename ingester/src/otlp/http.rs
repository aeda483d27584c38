//! OTLP over HTTP: `POST /v1/traces` with protobuf or JSON.
//!
//! Owns: method, content type and content encoding of a request, and the shape of the answers. Does not own: sockets and their
//! timeouts (the binary's accept loop), reading under a lease ([`super::body`]), codes ([`super::status`]).

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::any;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

use super::cors;
use super::metrics::{Outcome, Protocol};
use super::receiver::Receiver;
use super::status::{Refusal, success_http};
use crate::pipeline::{Accepted, Compression, Encoding, Ingest, IngestRequest};

/// The path every OTLP/HTTP exporter appends to its endpoint.
pub const TRACES_PATH: &str = "/v1/traces";

const WRONG_METHOD: &str = "405 method not allowed, supported: [POST]";
const WRONG_TYPE: &str = "415 unsupported media type, supported: [application/json, application/x-protobuf]";

/// Routes of the OTLP/HTTP port.
pub fn router<I: Ingest>(receiver: Receiver<I>) -> Router {
    Router::new().route(TRACES_PATH, any(traces::<I>)).with_state(receiver)
}

async fn traces<I: Ingest>(State(receiver): State<Receiver<I>>, request: Request<Body>) -> Response<Body> {
    let origin = cors::allowed(request.headers(), &receiver.settings().cors_allowed_origins);
    let mut response = match &origin {
        Some(_) if request.method() == Method::OPTIONS => cors::preflight(request.headers()),
        _ => answer(&receiver, request).await,
    };
    if let Some(origin) = origin {
        cors::mark(&mut response, origin);
    }
    response
}

async fn answer<I: Ingest>(receiver: &Receiver<I>, request: Request<Body>) -> Response<Body> {
    if request.method() != Method::POST {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, WRONG_METHOD);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let Some(encoding) = encoding(request.headers()) else {
        return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, WRONG_TYPE);
    };
    match receiver.counted(Protocol::OtlpHttp, export(receiver, encoding, request)).await {
        Ok(accepted) => success_http(&accepted, encoding),
        Err(refusal) => refusal.to_http(encoding),
    }
}

async fn export<I: Ingest>(receiver: &Receiver<I>, encoding: Encoding, request: Request<Body>) -> Result<Accepted, Refusal> {
    let (head, body) = request.into_parts();
    let tenant = receiver.tenant(&head.headers)?;
    let compression = compression(&head.headers)?;
    let body = receiver.read_body(body, receiver.settings().max_body_bytes, |_| None).await?;
    // The lease lives until the answer: the pipeline may hold the bytes that long.
    Ok(receiver.ingest(IngestRequest { tenant, encoding, compression, body: body.bytes.clone() }).await?)
}

fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is = |name: &str| kind.eq_ignore_ascii_case(name);
    if is("application/x-protobuf") || is("application/protobuf") {
        return Some(Encoding::OtlpProto);
    }
    is("application/json").then_some(Encoding::OtlpJson)
}

/// At most one encoding: what is compressed twice is an attack or a mistake.
fn compression(headers: &HeaderMap) -> Result<Compression, Refusal> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(header::CONTENT_ENCODING) {
            Err(Refusal::malformed("several Content-Encoding headers"))
        } else {
            Ok(Compression::Identity)
        };
    };
    let name = String::from_utf8_lossy(value.as_bytes());
    match name.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Compression::Identity),
        "gzip" | "x-gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        "deflate" | "zlib" => Ok(Compression::Deflate),
        _ => Err(Refusal::malformed(format!("unsupported Content-Encoding: {}", name.trim()))),
    }
}

fn plain(code: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

impl Refusal {
    pub(super) fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, tonic::Code::Unimplemented, Outcome::Malformed, message)
    }
}

#[cfg(test)]
mod tests;
