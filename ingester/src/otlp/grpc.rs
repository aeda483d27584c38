//! OTLP over gRPC: `TraceService/Export`.
//!
//! Owns: the path and the answer. Does not own: the framing of a call ([`crate::receive::grpc`]).

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::any;
use http::{Request, Response};

use crate::pipeline::{Encoding, Ingest, IngestRequest};
use crate::receive::grpc::{UnaryMessage, unary, unimplemented};
use crate::receive::metrics::Protocol;
use crate::receive::receiver::Receiver;
use crate::receive::status::success_proto;
use crate::receive::tenant::TenantTexts;

/// The path of the one method.
pub const EXPORT_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The route of `TraceService`, to be merged with other services of the same port, whose headers name the tenant.
pub fn routes<I: Ingest>(receiver: Receiver<I>, tenants: TenantTexts) -> Router {
    Router::new().route(EXPORT_PATH, any(export::<I>)).with_state((receiver, tenants))
}

/// Routes of the OTLP/gRPC port: [`routes`], and `UNIMPLEMENTED` for everything else.
pub fn router<I: Ingest>(receiver: Receiver<I>) -> Router {
    routes(receiver, TenantTexts::Tempo).fallback(unimplemented)
}

async fn export<I: Ingest>(
    State((receiver, tenants)): State<(Receiver<I>, TenantTexts)>,
    request: Request<Body>,
) -> Response<Body> {
    let call = |message: UnaryMessage| {
        let UnaryMessage { tenant, compression, body, lease } = message;
        let receiver = receiver.clone();
        async move {
            // The lease lives until the answer: the pipeline may hold the bytes that long.
            let _lease = lease;
            Ok(receiver.ingest(IngestRequest { tenant, encoding: Encoding::OtlpProto, compression, body }).await?)
        }
    };
    unary(&receiver, Protocol::OtlpGrpc, tenants, request, call, success_proto).await
}

#[cfg(test)]
mod tests;
