//! OTLP over HTTP: `POST /v1/traces` with protobuf or JSON.
//!
//! Owns: method, content type and content encoding of a request, and the shape of the answers. Does not own: sockets and their
//! timeouts (the binary's accept loop), reading under a lease ([`crate::receive::body`]), codes ([`crate::receive::status`]).

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::any;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

use crate::pipeline::{Accepted, Encoding, Ingest, IngestRequest};
use crate::receive::cors;
use crate::receive::http::{compression, content_type, plain};
use crate::receive::metrics::Protocol;
use crate::receive::receiver::Receiver;
use crate::receive::status::{Refusal, success_http};
use crate::receive::tenant::TenantTexts;

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
    let tenant = receiver.tenant(&head.headers, TenantTexts::Tempo)?;
    let compression = compression(&head.headers)?;
    let body = receiver.read_body(body, receiver.settings().max_body_bytes, |_| None).await?;
    // The lease lives until the answer: the pipeline may hold the bytes that long.
    Ok(receiver.ingest(IngestRequest { tenant, encoding, compression, body: body.bytes.clone() }).await?)
}

fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    let kind = content_type(headers)?;
    let is = |name: &str| kind.eq_ignore_ascii_case(name);
    if is("application/x-protobuf") || is("application/protobuf") {
        return Some(Encoding::OtlpProto);
    }
    is("application/json").then_some(Encoding::OtlpJson)
}

#[cfg(test)]
mod tests;
