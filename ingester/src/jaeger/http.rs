//! Jaeger's collector over HTTP: `POST /api/traces` with one `Batch` in Thrift's binary protocol.
//!
//! Owns: content types, statuses and their texts. A limit answers as over OTLP (413, 429 with `Retry-After`, 503) and not 500,
//! so that whoever stands between knows whether to send again; the text is Jaeger's.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::post;
use http::{Request, Response, StatusCode, header};

use super::thrift;
use crate::otlp::build::Groups;
use crate::pipeline::{Accepted, Ingest, IngestError};
use crate::receive::http::{compression, content_type, plain};
use crate::receive::metrics::{Outcome, Protocol};
use crate::receive::receiver::Receiver;
use crate::receive::status::Refusal;
use crate::receive::tenant::TenantTexts;
use crate::thrift::{Binary, Input};

/// The path of Jaeger's collector for Thrift.
pub const TRACES_PATH: &str = "/api/traces";

/// The route for spans of the collector's HTTP port, to be merged with others of the same port.
pub fn routes<I: Ingest>(receiver: Receiver<I>) -> Router {
    Router::new().route(TRACES_PATH, post(traces::<I>)).with_state(receiver)
}

async fn traces<I: Ingest>(State(receiver): State<Receiver<I>>, request: Request<Body>) -> Response<Body> {
    match content_type(request.headers()) {
        Some("application/x-thrift" | "application/vnd.apache.thrift.binary") => {}
        None | Some("") => {
            let why = if request.headers().contains_key(header::CONTENT_TYPE) { "malformed" } else { "no media type" };
            return plain(StatusCode::BAD_REQUEST, format!("Cannot parse content type: mime: {why}"));
        }
        Some(kind) => return plain(StatusCode::BAD_REQUEST, format!("Unsupported content type: {kind}")),
    }
    match receiver.counted(Protocol::JaegerThriftHttp, batch(&receiver, request)).await {
        Ok(_) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn batch<I: Ingest>(receiver: &Receiver<I>, request: Request<Body>) -> Result<Accepted, Refusal> {
    let (head, body) = request.into_parts();
    let tenant = receiver.tenant(&head.headers, TenantTexts::Jaeger)?;
    let compression = compression(&head.headers)?;
    let body = receiver.read_body(body, receiver.settings().max_body_bytes, |_| None).await?;
    receiver.ingest_as_otlp(tenant, compression, &body.bytes, otlp).await
}

/// The OTLP of a `Batch` in the binary protocol.
pub(crate) fn otlp(body: &[u8], max: usize) -> Result<Vec<u8>, IngestError> {
    let mut groups = Groups::new(body.len(), max);
    thrift::batch(&mut Binary::new(body), &mut groups)?;
    Ok(groups.finish())
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let text = match refusal.outcome {
        Outcome::BadTenant => refusal.message.clone(),
        Outcome::Malformed | Outcome::TooLarge | Outcome::Stalled => {
            format!("Unable to process request body: {}", refusal.message)
        }
        _ => format!("Cannot submit Jaeger batch: {}", refusal.message),
    };
    refusal.mark_retry(plain(refusal.http, text))
}
