//! Zipkin's collector over HTTP: `POST` on any path, in four forms.
//!
//! Owns: which form a request has, and the answers. A limit answers as over OTLP (413, 429 with `Retry-After`, 503).

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::any;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tower::ServiceExt;

use super::{Form, to_otlp};
use crate::pipeline::{Accepted, Ingest};
use crate::receive::http::{compression, content_type, plain};
use crate::receive::metrics::Protocol;
use crate::receive::receiver::Receiver;
use crate::receive::status::Refusal;
use crate::receive::tenant::TenantTexts;

/// Part of the path of reporters that speak the first generation.
const V1_PATH: &str = "api/v1/spans";

/// Routes of the Zipkin port: every `POST` is spans, whatever its path; the rest goes to `queries`, which serves what it knows.
pub fn router<I: Ingest>(receiver: Receiver<I>, queries: Router) -> Router {
    let posts = Router::new().fallback(any(spans::<I>)).with_state(receiver);
    Router::new().fallback(move |request: Request<Body>| {
        let router = if request.method() == Method::POST { posts.clone() } else { queries.clone() };
        async move {
            match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    })
}

/// What the port serves where nobody answers queries on it.
pub fn no_queries() -> Router {
    Router::new().fallback(async || {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed, supported: [POST]");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        response
    })
}

async fn spans<I: Ingest>(State(receiver): State<Receiver<I>>, request: Request<Body>) -> Response<Body> {
    let form = form(request.uri().path(), request.headers());
    match receiver.counted(protocol(form), batch(&receiver, form, request)).await {
        Ok(_) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(refusal) => refusal.mark_retry(plain(refusal.http, refusal.message.clone())),
    }
}

/// Only these two types are not JSON: a missing or odd one means JSON.
fn form(path: &str, headers: &HeaderMap) -> Form {
    let kind = content_type(headers);
    match path.contains(V1_PATH) {
        true if kind == Some("application/x-thrift") => Form::V1Thrift,
        true => Form::V1Json,
        false if kind == Some("application/x-protobuf") => Form::Proto,
        false => Form::Json,
    }
}

fn protocol(form: Form) -> Protocol {
    match form {
        Form::Json => Protocol::ZipkinJson,
        Form::Proto => Protocol::ZipkinProto,
        Form::V1Json => Protocol::ZipkinV1Json,
        Form::V1Thrift => Protocol::ZipkinV1Thrift,
    }
}

async fn batch<I: Ingest>(receiver: &Receiver<I>, form: Form, request: Request<Body>) -> Result<Accepted, Refusal> {
    let (head, body) = request.into_parts();
    let tenant = receiver.tenant(&head.headers, TenantTexts::Jaeger)?;
    let compression = compression(&head.headers)?;
    let body = receiver.read_body(body, receiver.settings().max_body_bytes, |_| None).await?;
    let now = receiver.now_nanos();
    let convert = |body: &[u8], max: usize| to_otlp(form, body, max, now);
    receiver.ingest_as_otlp(tenant, compression, &body.bytes, convert).await
}
