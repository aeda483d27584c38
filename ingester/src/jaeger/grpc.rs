//! Jaeger's collector over gRPC: `CollectorService/PostSpans`.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::any;
use bytes::Bytes;
use http::{Request, Response};

use super::proto;
use crate::otlp::build::Groups;
use crate::pipeline::{Ingest, IngestError};
use crate::receive::grpc::{UnaryMessage, unary};
use crate::receive::metrics::Protocol;
use crate::receive::receiver::Receiver;
use crate::receive::tenant::TenantTexts;

/// What health checks call the service.
pub const SERVICE_NAME: &str = "jaeger.api_v2.CollectorService";

/// The path of the one method.
pub const POST_SPANS_PATH: &str = "/jaeger.api_v2.CollectorService/PostSpans";

/// The route of `CollectorService`, to be merged with other services of the same port.
pub fn routes<I: Ingest>(receiver: Receiver<I>) -> Router {
    Router::new().route(POST_SPANS_PATH, any(post_spans::<I>)).with_state(receiver)
}

async fn post_spans<I: Ingest>(State(receiver): State<Receiver<I>>, request: Request<Body>) -> Response<Body> {
    let call = |message: UnaryMessage| {
        let UnaryMessage { tenant, compression, body, lease } = message;
        let receiver = receiver.clone();
        async move {
            let _lease = lease;
            receiver.ingest_as_otlp(tenant, compression, &body, otlp).await
        }
    };
    unary(&receiver, Protocol::JaegerGrpc, TenantTexts::Jaeger, request, call, |_| Bytes::new()).await
}

/// The OTLP of a `PostSpansRequest`.
pub(crate) fn otlp(body: &[u8], max: usize) -> Result<Vec<u8>, IngestError> {
    let mut groups = Groups::new(body.len(), max);
    proto::post_spans(body, &mut groups)?;
    Ok(groups.finish())
}
