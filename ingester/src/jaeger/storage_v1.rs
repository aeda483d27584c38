//! The writers of `jaeger.storage.v1`: a Jaeger up to 1.76 and 2.5 that stores its spans here.
//!
//! Owns: the paths, and how a stream of spans is cut into requests. Does not own: the mapping of a span ([`super::proto`]), nor the
//! readers of the same protocol, which are the querier's; the binary puts both on one port.
//!
//! A span alone is durable when its call is answered; Jaeger is told to write so. In a stream, for others, spans go to the pipeline
//! together, when a batch of them is full and at the latest [`PAUSE`] after the first came; only the end of the stream is answered, so
//! that a crash may take the last batch. What came whole is written however the stream ends: a sender whose own call is over gives up
//! the stream it wrote to.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::any;
use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use spanhouse_common::budget::Lease;
use spanhouse_common::id::TenantId;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::proto::otlp_of_spans;
use crate::otlp::wire::Reader;
use crate::pipeline::{Compression, Ingest, IngestError};
use crate::receive::decompress::decompress;
use crate::receive::grpc::{FRAME_HEADER, UnaryMessage, compression, framed_length, misdirected, success, unary};
use crate::receive::metrics::{Outcome, Protocol};
use crate::receive::receiver::Receiver;
use crate::receive::status::Refusal;
use crate::receive::tenant::TenantTexts;

const WRITE_SPAN: &str = "/jaeger.storage.v1.SpanWriterPlugin/WriteSpan";
const CLOSE: &str = "/jaeger.storage.v1.SpanWriterPlugin/Close";
const WRITE_SPAN_STREAM: &str = "/jaeger.storage.v1.StreamingSpanWriterPlugin/WriteSpanStream";
const WRITE_ARCHIVE_SPAN: &str = "/jaeger.storage.v1.ArchiveSpanWriterPlugin/WriteArchiveSpan";

/// A batch of streamed spans is full at this size.
const BATCH_BYTES: usize = 1 << 20;

/// Longest time a streamed span waits for others.
const PAUSE: Duration = Duration::from_millis(100);

/// Memory of a stream is taken in steps of this and more.
const LEASE_STEP: usize = 64 * 1024;

/// Says in whose data the archive of a tenant is.
pub type ArchiveTenant = Arc<dyn Fn(&TenantId) -> TenantId + Send + Sync>;

struct Writers<I> {
    receiver: Receiver<I>,
    archive: Option<ArchiveTenant>,
}

impl<I> Clone for Writers<I> {
    fn clone(&self) -> Self {
        Self { receiver: self.receiver.clone(), archive: self.archive.clone() }
    }
}

impl<I> fmt::Debug for Writers<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writers").field("receiver", &self.receiver).field("archive", &self.archive.is_some()).finish()
    }
}

/// The routes of the writers, to stand beside the readers. Without `archive`, spans for the archive are refused as unimplemented.
pub fn routes<I: Ingest>(receiver: Receiver<I>, archive: Option<ArchiveTenant>) -> Router {
    Router::new()
        .route(WRITE_SPAN, any(write_span::<I>))
        .route(CLOSE, any(close))
        .route(WRITE_SPAN_STREAM, any(write_span_stream::<I>))
        .route(WRITE_ARCHIVE_SPAN, any(write_archive_span::<I>))
        .with_state(Writers { receiver, archive })
}

async fn write_span<I: Ingest>(State(writers): State<Writers<I>>, request: Request<Body>) -> Response<Body> {
    write(&writers.receiver, request, Clone::clone).await
}

async fn write_archive_span<I: Ingest>(State(writers): State<Writers<I>>, request: Request<Body>) -> Response<Body> {
    match &writers.archive {
        Some(archive) => write(&writers.receiver, request, |tenant| archive(tenant)).await,
        None => tonic::Status::unimplemented("archive span storage was not configured").into_http(),
    }
}

/// There is nothing to close: what was answered is durable.
async fn close() -> Response<Body> {
    success(&[])
}

async fn write<I: Ingest>(
    receiver: &Receiver<I>,
    request: Request<Body>,
    tenant_of: impl Fn(&TenantId) -> TenantId,
) -> Response<Body> {
    let call = |message: UnaryMessage| {
        let UnaryMessage { tenant, compression, body, lease } = message;
        let (receiver, tenant) = (receiver.clone(), tenant_of(&tenant));
        async move {
            let _lease = lease;
            receiver.ingest_as_otlp(tenant, compression, &body, otlp).await
        }
    };
    unary(receiver, Protocol::JaegerStorageGrpc, TenantTexts::Jaeger, request, call, |_| Bytes::new()).await
}

/// The OTLP of `WriteSpanRequest` messages, one after the other. They need no frames: each is a field that may be repeated.
fn otlp(requests: &[u8], max: usize) -> Result<Vec<u8>, IngestError> {
    let mut spans = Vec::new();
    let mut reader = Reader::new(requests);
    while let Some(tag) = reader.tag()? {
        match tag.number {
            1 => spans.push(reader.bytes_of(tag)?),
            _ => drop(reader.unknown(tag)?),
        }
    }
    otlp_of_spans(spans, max)
}

async fn write_span_stream<I: Ingest>(State(writers): State<Writers<I>>, request: Request<Body>) -> Response<Body> {
    if let Some(response) = misdirected(&request) {
        return response;
    }
    // A task of its own: nobody waits for the answer of a stream that was given up, but its spans are to be written.
    match tokio::spawn(async move { take_stream(&writers.receiver, request).await }).await {
        Ok(Ok(())) => success(&[]),
        Ok(Err(refusal)) => refusal.to_grpc().into_http(),
        Err(_) => tonic::Status::internal("the stream was not taken to its end").into_http(),
    }
}

/// Takes a stream to its end. The first request that is refused ends it: the sender learns of it by the status.
async fn take_stream<I: Ingest>(receiver: &Receiver<I>, request: Request<Body>) -> Result<(), Refusal> {
    let (head, body) = request.into_parts();
    let tenant = receiver.tenant(&head.headers, TenantTexts::Jaeger)?;
    let mut frames = Frames {
        compression: compression(&head.headers)?,
        max: receiver.settings().max_grpc_message_bytes,
        read: BytesMut::new(),
    };
    let mut spans = Vec::new();
    let mut leases = Vec::new();
    let mut body = pin!(body);
    let mut until = Instant::now();
    loop {
        let read = tokio::select! {
            frame = body.frame() => Some(frame),
            () = sleep_until(until), if !spans.is_empty() => None,
        };
        match read {
            // Paused.
            None => ingest(receiver, &tenant, &mut spans).await?,
            Some(None) => {
                ingest(receiver, &tenant, &mut spans).await?;
                return if frames.read.is_empty() { Ok(()) } else { Err(broken("the stream ends inside a message")) };
            }
            Some(Some(Err(error))) => {
                ingest(receiver, &tenant, &mut spans).await?;
                return Err(stalled(error));
            }
            Some(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    frames.read.extend_from_slice(&data);
                }
                // One at a time: many that are small may be large when decompressed.
                while let Some(message) = frames.next()? {
                    lease_at_least(receiver, &mut leases, frames.read.len() + spans.len() + message.len()).await?;
                    if spans.is_empty() {
                        until = Instant::now() + PAUSE;
                    }
                    spans.extend_from_slice(&message);
                    if spans.len() >= BATCH_BYTES {
                        ingest(receiver, &tenant, &mut spans).await?;
                    }
                }
            }
        }
        if frames.read.is_empty() && spans.is_empty() {
            leases.clear();
        }
        lease_at_least(receiver, &mut leases, frames.read.len() + spans.len()).await?;
    }
}

/// Sends what there is on its way.
async fn ingest<I: Ingest>(receiver: &Receiver<I>, tenant: &TenantId, spans: &mut Vec<u8>) -> Result<(), Refusal> {
    if spans.is_empty() {
        return Ok(());
    }
    let spans = Bytes::from(std::mem::take(spans));
    let ingest = receiver.ingest_as_otlp(tenant.clone(), Compression::Identity, &spans, otlp);
    receiver.counted(Protocol::JaegerStorageGrpc, ingest).await?;
    Ok(())
}

/// Takes memory for what a stream holds; a stream that gets none ends.
async fn lease_at_least<I: Ingest>(receiver: &Receiver<I>, leases: &mut Vec<Lease>, bytes: usize) -> Result<(), Refusal> {
    let held: usize = leases.iter().map(Lease::bytes).sum();
    if bytes > held {
        leases.push(receiver.lease((bytes - held).max(held).max(LEASE_STEP)).await?);
    }
    Ok(())
}

fn stalled(error: axum::Error) -> Refusal {
    Refusal { outcome: Outcome::Stalled, ..Refusal::malformed(error.to_string()) }
}

/// What was read of a stream of messages.
struct Frames {
    compression: Compression,
    /// Longest message as sent, and longest after decompression.
    max: usize,
    /// Not a whole message yet.
    read: BytesMut,
}

impl Frames {
    /// The next whole message, decompressed.
    fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        let Some(length) = framed_length(&self.read) else { return Ok(None) };
        if length > self.max.saturating_add(FRAME_HEADER) {
            return Err(IngestError::TooLarge { what: "a message of the stream", limit: self.max }.into());
        }
        if self.read.len() < length {
            return Ok(None);
        }
        let mut message = self.read.split_to(length);
        let compression = match (message[0], self.compression) {
            (0, _) => Compression::Identity,
            (_, Compression::Identity) => return Err(broken("compressed flag without a grpc-encoding")),
            (_, compression) => compression,
        };
        message.advance(FRAME_HEADER);
        Ok(Some(decompress(compression, &message.freeze(), self.max).map_err(IngestError::from)?))
    }
}

/// As gRPC answers broken framing.
fn broken(what: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, Code::Internal, Outcome::Malformed, format!("protocol error: {what}"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{SinkExt as _, StreamExt as _, stream};
    use http_body::Frame;
    use prost::Message as _;
    use spanhouse_proto::jaeger_storage_v1::WriteSpanRequest;
    use spanhouse_proto::jaeger_v2::{Process, Span};
    use tower::ServiceExt as _;

    use super::*;
    use crate::otlp::dump::dump;
    use crate::receive::receiver::ReceiverSettings;
    use crate::receive::testing::Bench;

    fn message(service: &str, name: &str) -> Vec<u8> {
        let process = Process { service_name: service.into(), tags: Vec::new() };
        let span = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            operation_name: name.into(),
            process: Some(process),
            ..Span::default()
        };
        WriteSpanRequest { span: Some(span) }.encode_to_vec()
    }

    fn frame(message: &[u8]) -> Vec<u8> {
        [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
    }

    fn call(path: &str, body: Body) -> Request<Body> {
        let request = Request::post(path).header("content-type", "application/grpc");
        request.header("x-tenant", "team").body(body).unwrap()
    }

    /// Status and message.
    async fn answered(response: Response<Body>) -> (String, String) {
        let text = |headers: &http::HeaderMap, name: &str| {
            headers.get(name).map(|value| value.to_str().unwrap().replace("%20", " ")).unwrap_or_default()
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        let headers = if head.headers.contains_key("grpc-status") { head.headers } else { trailers };
        (text(&headers, "grpc-status"), text(&headers, "grpc-message"))
    }

    /// Tenant, and names of the spans by service.
    fn ingested(bench: &Bench) -> Vec<(String, Vec<(String, Vec<String>)>)> {
        let text = |json: &serde_json::Value| json.as_str().unwrap().to_owned();
        let requests = bench.ingest.requests.lock();
        requests
            .iter()
            .map(|request| {
                let dumped = dump(&request.body);
                let groups = dumped.as_array().unwrap().iter().map(|group| {
                    let names = group["spans"].as_array().unwrap().iter().map(|span| text(&span["name"])).collect();
                    (text(&group["resource"][0][1]), names)
                });
                (request.tenant.to_string(), groups.collect())
            })
            .collect()
    }

    fn settings() -> ReceiverSettings {
        ReceiverSettings { multitenancy: true, max_grpc_message_bytes: 4096, ..ReceiverSettings::default() }
    }

    fn accepting() -> Bench {
        Bench::new(settings(), Ok(crate::pipeline::Accepted { spans: 1, refused: Vec::new() }))
    }

    #[tokio::test]
    async fn spans_one_by_one_and_for_the_archive() {
        let bench = accepting();
        let archive: ArchiveTenant = Arc::new(|tenant| format!("{tenant}-kept").parse().unwrap());
        let router = routes(bench.receiver.clone(), Some(archive));
        for path in [WRITE_SPAN, WRITE_ARCHIVE_SPAN, CLOSE] {
            let request = call(path, frame(&message("a", path)).into());
            assert_eq!(
                answered(router.clone().oneshot(request).await.unwrap()).await,
                ("0".into(), String::new()),
                "{path}"
            );
        }
        let of = |tenant: &str, name: &str| (tenant.to_owned(), vec![("a".to_owned(), vec![name.to_owned()])]);
        assert_eq!(ingested(&bench), [of("team", WRITE_SPAN), of("team-kept", WRITE_ARCHIVE_SPAN)]);
        let router = routes(bench.receiver.clone(), None);
        let refused = router.oneshot(call(WRITE_ARCHIVE_SPAN, frame(&message("a", "b")).into())).await.unwrap();
        assert_eq!(answered(refused).await, ("12".into(), "archive span storage was not configured".into()));
        assert_eq!(bench.memory.used(), 0);
    }

    #[tokio::test]
    async fn a_stream_goes_in_batches() {
        let bench = accepting();
        let all: Vec<u8> = [("a", "one"), ("b", "two"), ("a", "three")]
            .into_iter()
            .flat_map(|(service, name)| frame(&message(service, name)))
            .collect();
        // Cut everywhere, as a network may.
        let pieces: Vec<_> = all.chunks(3).map(Bytes::copy_from_slice).collect();
        let body = Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)));
        let response = routes(bench.receiver.clone(), None).oneshot(call(WRITE_SPAN_STREAM, body)).await.unwrap();
        assert_eq!(answered(response).await, ("0".into(), String::new()));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let groups = vec![("a".to_owned(), names(&["one", "three"])), ("b".to_owned(), names(&["two"]))];
        assert_eq!(ingested(&bench), [("team".to_owned(), groups)]);
        assert_eq!(bench.metrics.requests(Protocol::JaegerStorageGrpc, Outcome::Accepted), 1);
        assert_eq!(bench.memory.used(), 0);
    }

    #[tokio::test]
    async fn a_stream_that_stays_open_is_not_waited_for() {
        let bench = accepting();
        let (mut send, receive) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
        let body = Body::new(http_body_util::StreamBody::new(receive));
        let taking = tokio::spawn(routes(bench.receiver.clone(), None).oneshot(call(WRITE_SPAN_STREAM, body)));
        for nth in 1..=2 {
            send.send(Ok(Frame::data(frame(&message("a", "b")).into()))).await.unwrap();
            while bench.ingest.requests.lock().len() < nth {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        drop(send);
        assert_eq!(answered(taking.await.unwrap().unwrap()).await.0, "0");
    }

    /// A client gives a stream up when the call it belongs to is over, right after its spans.
    #[tokio::test]
    async fn what_came_is_written_however_the_stream_ends() {
        for is_waited_for in [true, false] {
            let bench = accepting();
            let (mut send, receive) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(4);
            let body = Body::new(http_body_util::StreamBody::new(receive));
            let taking = tokio::spawn(routes(bench.receiver.clone(), None).oneshot(call(WRITE_SPAN_STREAM, body)));
            send.send(Ok(Frame::data(frame(&message("a", "b")).into()))).await.unwrap();
            tokio::time::sleep(PAUSE / 10).await;
            if is_waited_for {
                send.send(Err(std::io::Error::other("reset"))).await.unwrap();
                assert_ne!(answered(taking.await.unwrap().unwrap()).await.0, "0");
            } else {
                taking.abort();
                drop(send);
                for _ in 0..200 {
                    if bench.memory.used() == 0 {
                        break;
                    }
                    tokio::time::sleep(PAUSE / 10).await;
                }
            }
            let of = ("team".to_owned(), vec![("a".to_owned(), vec!["b".to_owned()])]);
            assert_eq!(ingested(&bench), [of], "{is_waited_for}");
            assert_eq!(bench.memory.used(), 0);
        }
    }

    #[tokio::test]
    async fn streams_that_make_no_sense_end_with_a_status() {
        let good = frame(&message("a", "b"));
        let huge = [&[0][..], &5000u32.to_be_bytes(), &[0; 10]].concat();
        let unknown = [&[1][..], &1u32.to_be_bytes(), &[0]].concat();
        for (body, code) in [
            (good[..good.len() - 1].to_vec(), "13"),
            (huge, "3"),
            (frame(&[0x0a, 9, 1]), "3"),
            (unknown, "13"),
            (Vec::new(), "0"),
        ] {
            let bench = accepting();
            let request = call(WRITE_SPAN_STREAM, body.clone().into());
            let response = routes(bench.receiver.clone(), None).oneshot(request).await.unwrap();
            assert_eq!(answered(response).await.0, code, "{body:?}");
            assert_eq!(bench.memory.used(), 0);
        }
        let bench = Bench::new(settings(), Err(IngestError::Unavailable("stopping".into())));
        let request = call(WRITE_SPAN_STREAM, good.into());
        let response = routes(bench.receiver.clone(), None).oneshot(request).await.unwrap();
        assert_eq!(answered(response).await, ("14".into(), "stopping".into()));
        let request = Request::post(WRITE_SPAN_STREAM).header("content-type", "application/grpc");
        let nobody = routes(bench.receiver.clone(), None).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answered(nobody).await, ("16".into(), "missing tenant header".into()));
    }

    #[tokio::test]
    async fn small_messages_that_are_large_inside_end_at_the_memory() {
        use std::io::Write as _;
        let bench = Bench::new(
            ReceiverSettings {
                max_grpc_message_bytes: 3 << 20,
                memory_patience: Duration::from_millis(10),
                ..ReceiverSettings::default()
            },
            Ok(crate::pipeline::Accepted::default()),
        );
        let held = bench.memory.try_take(7 << 20).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&message("a", &"x".repeat(1_200_000))).unwrap();
        let packed = gzip.finish().unwrap();
        let bomb = [&[1][..], &(packed.len() as u32).to_be_bytes(), &packed].concat().repeat(20);
        let send = async || {
            let mut request = call(WRITE_SPAN_STREAM, bomb.clone().into());
            request.headers_mut().insert("grpc-encoding", http::HeaderValue::from_static("gzip"));
            answered(routes(bench.receiver.clone(), None).oneshot(request).await.unwrap()).await
        };
        assert_eq!(send().await.0, "8", "no room");
        assert_eq!(bench.memory.used(), 7 << 20);
        drop(held);
        assert_eq!(send().await.0, "0", "one after the other they have room");
        assert_eq!(bench.memory.used(), 0);
    }

    #[tokio::test]
    async fn many_spans_make_several_batches() {
        let bench = accepting();
        let one = frame(&message("a", &"x".repeat(4000)));
        let body = stream::iter((0..600).map(move |_| Ok::<_, Infallible>(Bytes::from(one.clone())))).boxed();
        let request = call(WRITE_SPAN_STREAM, Body::from_stream(body));
        let response = routes(bench.receiver.clone(), None).oneshot(request).await.unwrap();
        assert_eq!(answered(response).await.0, "0");
        let batches = ingested(&bench);
        let spans: usize = batches.iter().flat_map(|(_, groups)| groups).map(|(_, names)| names.len()).sum();
        assert_eq!((spans, batches.len()), (600, 3));
    }
}
