//! A unary gRPC call: one message in, one out, never decoded here.
//!
//! Owns: the framing of a unary call, its compression header, its statuses. Does not own: HTTP/2 and its limits (the binary's
//! accept loop), decompression (the pipeline's, as for HTTP), paths.
//!
//! Why not a tonic codec: tonic reserves the length a message *declares*, decompresses on the connection's thread and hands on
//! a second copy, all before a byte of budget is taken. A unary call is five bytes of frame; reading them here gives gRPC the
//! same lease, the same cap and the same decompression as HTTP, and the WAL keeps the body compressed. Statuses are tonic's.

use axum::Router;
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use spanhouse_common::id::TenantId;
use tonic::Code;

use super::body::LeasedBody;
use super::metrics::{Outcome, Protocol};
use super::receiver::Receiver;
use super::status::Refusal;
use super::tenant::TenantTexts;
use crate::pipeline::{Accepted, Compression, Ingest};

/// Compressed flag and length.
pub(crate) const FRAME_HEADER: usize = 5;
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const ACCEPTED_ENCODINGS: HeaderValue = HeaderValue::from_static("gzip,zstd,deflate,snappy,identity");
const GRPC_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// The answer gRPC clients expect for a method nobody serves.
pub async fn unimplemented() -> Response<Body> {
    tonic::Status::unimplemented("unknown service or method").into_http()
}

/// `grpc.health.v1.Health` for some services by name and for the port as a whole, to be merged with them.
pub async fn health(services: &[&str]) -> Router {
    let (reporter, health) = tonic_health::server::health_reporter();
    for service in services {
        reporter.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    tonic::service::Routes::new(health).into_axum_router().reset_fallback()
}

/// The message of a call, as it was sent.
pub(crate) struct UnaryMessage {
    pub(crate) tenant: TenantId,
    pub(crate) compression: Compression,
    pub(crate) body: Bytes,
    /// Keep it until nobody uses `body` any more.
    pub(crate) lease: LeasedBody,
}

/// Answers one unary call whose message is spans. `ingest` takes the message, `answer` writes the one that says thanks.
pub(crate) async fn unary<I, F>(
    receiver: &Receiver<I>,
    protocol: Protocol,
    tenants: TenantTexts,
    request: Request<Body>,
    ingest: impl FnOnce(UnaryMessage) -> F,
    answer: impl FnOnce(&Accepted) -> Bytes,
) -> Response<Body>
where
    I: Ingest,
    F: Future<Output = Result<Accepted, Refusal>>,
{
    if let Some(response) = misdirected(&request) {
        return response;
    }
    let call = async { ingest(message(receiver, tenants, request).await?).await };
    match receiver.counted(protocol, call).await {
        Ok(accepted) => success(&answer(&accepted)),
        Err(refusal) => {
            let mut response = refusal.to_grpc().into_http();
            if refusal.grpc == Code::Unimplemented {
                response.headers_mut().insert(GRPC_ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
            }
            response
        }
    }
}

/// The answer to a request that is no gRPC call.
pub(crate) fn misdirected(request: &Request<Body>) -> Option<Response<Body>> {
    let kind = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let code = match request.method() == Method::POST {
        true if is_grpc(kind) => return None,
        true => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        false => StatusCode::METHOD_NOT_ALLOWED,
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    Some(response)
}

async fn message<I: Ingest>(
    receiver: &Receiver<I>,
    tenants: TenantTexts,
    request: Request<Body>,
) -> Result<UnaryMessage, Refusal> {
    let (head, body) = request.into_parts();
    let tenant = receiver.tenant(&head.headers, tenants)?;
    let declared_compression = compression(&head.headers)?;
    let max_bytes = receiver.settings().max_grpc_message_bytes.saturating_add(FRAME_HEADER);
    let lease = receiver.read_body(body, max_bytes, framed_length).await?;
    let (compressed, body) = unframe(&lease.bytes)?;
    let compression = match (compressed, declared_compression) {
        (false, _) => Compression::Identity,
        (true, Compression::Identity) => return Err(broken_frame("compressed flag without a grpc-encoding")),
        (true, compression) => compression,
    };
    Ok(UnaryMessage { tenant, compression, body, lease })
}

/// `application/grpc`, with or without `+proto` or parameters; not `application/grpc-web`.
fn is_grpc(kind: &[u8]) -> bool {
    match kind.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest, [] | [b';', ..]) || rest == b"+proto" || rest.starts_with(b"+proto;"),
        None => false,
    }
}

pub(crate) fn compression(headers: &HeaderMap) -> Result<Compression, Refusal> {
    match headers.get(GRPC_ENCODING).map_or(&b"identity"[..], HeaderValue::as_bytes) {
        b"identity" => Ok(Compression::Identity),
        b"gzip" => Ok(Compression::Gzip),
        b"zstd" => Ok(Compression::Zstd),
        b"deflate" => Ok(Compression::Deflate),
        b"snappy" => Ok(Compression::Snappy),
        other => {
            let name = String::from_utf8_lossy(other);
            let message = format!("Content is compressed with `{name}` which isn't supported");
            Err(Refusal::new(StatusCode::NOT_FOUND, Code::Unimplemented, Outcome::Malformed, message))
        }
    }
}

/// The length of the whole body, once the first frame's header is there.
pub(crate) fn framed_length(start: &[u8]) -> Option<usize> {
    match start {
        [_, a, b, c, d, ..] => Some((u32::from_be_bytes([*a, *b, *c, *d]) as usize).saturating_add(FRAME_HEADER)),
        _ => None,
    }
}

/// The one message of a unary call, and whether it is compressed.
fn unframe(body: &Bytes) -> Result<(bool, Bytes), Refusal> {
    let Some(length) = framed_length(body) else { return Err(broken_frame("missing request message")) };
    let compressed = match body[0] {
        0 => false,
        1 => true,
        _ => return Err(broken_frame("invalid compression flag")),
    };
    match body.len().cmp(&length) {
        std::cmp::Ordering::Less => Err(broken_frame("the message ends early")),
        std::cmp::Ordering::Greater => Err(broken_frame("more than one message in a unary call")),
        std::cmp::Ordering::Equal => Ok((compressed, body.slice(FRAME_HEADER..))),
    }
}

/// gRPC answers broken framing with `INTERNAL`, which OTLP clients do not retry.
fn broken_frame(what: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, Code::Internal, Outcome::Malformed, format!("protocol error: {what}"))
}

/// The answer of a call with one message.
pub(crate) fn success(message: &[u8]) -> Response<Body> {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    let mut trailers = HeaderMap::new();
    trailers.insert(tonic::Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let body = Full::new(frame.freeze()).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response.headers_mut().insert(GRPC_ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
    response
}
