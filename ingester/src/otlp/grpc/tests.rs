//! Calls with tonic's own client, and frames no client would send.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue};
use tonic::Code;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tower::ServiceExt;

use super::*;
use crate::pipeline::{Accepted, Compression, IngestError, RefusalReason};
use crate::receive::decompress::{DecompressError, decompress};
use crate::receive::metrics::Outcome;
use crate::receive::receiver::ReceiverSettings;
use crate::receive::testing::Bench;

/// Sends and receives messages as the bytes they are.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        use bytes::Buf;
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

async fn export_with(
    bench: &Bench,
    compression: Option<CompressionEncoding>,
    request: tonic::Request<Bytes>,
) -> Result<Bytes, tonic::Status> {
    let mut client = tonic::client::Grpc::new(router(bench.receiver.clone()));
    if let Some(compression) = compression {
        client = client.send_compressed(compression);
    }
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static(EXPORT_PATH);
    Ok(client.unary(request, path, RawCodec).await?.into_inner())
}

async fn call_export(bench: &Bench, message: &'static [u8]) -> Result<Bytes, tonic::Status> {
    export_with(bench, None, tonic::Request::new(Bytes::from_static(message))).await
}

#[tokio::test]
async fn a_call_of_tonics_client() {
    let bench = Bench::accepting();
    assert_eq!(call_export(&bench, b"message").await.unwrap(), &[0x0a, 0][..]);
    assert_eq!(call_export(&bench, b"").await.unwrap(), &[0x0a, 0][..]);
    let requests = bench.ingest.requests.lock();
    assert_eq!((&requests[0].body[..], requests[0].compression), (&b"message"[..], Compression::Identity));
    assert_eq!((requests[1].body.len(), requests[1].encoding), (0, Encoding::OtlpProto));
    assert_eq!(bench.metrics.requests(Protocol::OtlpGrpc, Outcome::Accepted), 2);
    assert_eq!(bench.memory.used(), 0);
}

#[tokio::test]
async fn compressed_messages_reach_the_pipeline_as_sent() {
    let bench = Bench::accepting();
    for (encoding, compression) in [
        (CompressionEncoding::Gzip, Compression::Gzip),
        (CompressionEncoding::Zstd, Compression::Zstd),
        (CompressionEncoding::Deflate, Compression::Deflate),
    ] {
        let message = Bytes::from(vec![b'a'; 4 << 20]);
        export_with(&bench, Some(encoding), tonic::Request::new(message.clone())).await.unwrap();
        let request = bench.ingest.requests.lock().pop().unwrap();
        assert_eq!(request.compression, compression);
        assert!(request.body.len() < 8192, "{compression:?} is sent small");
        assert_eq!(decompress(compression, &request.body, 4 << 20).unwrap(), message);
        assert_eq!(decompress(compression, &request.body, 4 << 10), Err(DecompressError::TooLarge { limit: 4 << 10 }));
    }
    // One that tonic does not write.
    let headers = [("content-type", "application/grpc"), ("grpc-encoding", "snappy")];
    raw(&bench, EXPORT_PATH, &headers, b"\x01\0\0\0\x01x").await;
    let request = bench.ingest.requests.lock().pop().unwrap();
    assert_eq!((request.compression, &request.body[..]), (Compression::Snappy, &b"x"[..]));
}

#[tokio::test]
async fn refused_spans_and_errors() {
    let partial = Accepted { spans: 0, refused: vec![(RefusalReason::TraceTooLarge, 3)] };
    let bench = Bench::new(ReceiverSettings::default(), Ok(partial));
    assert!(call_export(&bench, b"x").await.unwrap().ends_with(b"spans refused by reason: trace_too_large: 3"));

    let wait = Duration::from_secs(5);
    for (error, code, retries) in [
        (IngestError::Malformed("bad".into()), Code::InvalidArgument, false),
        (IngestError::TooLarge { what: "decompressed body", limit: 1 }, Code::InvalidArgument, false),
        (IngestError::RateLimited { message: "slow".into(), retry_after: Some(wait) }, Code::ResourceExhausted, true),
        (IngestError::RateLimited { message: "never".into(), retry_after: None }, Code::ResourceExhausted, false),
        (IngestError::Overloaded { message: "full".into(), retry_after: wait }, Code::ResourceExhausted, true),
        (IngestError::Unavailable("stopping".into()), Code::Unavailable, false),
    ] {
        let message = error.to_string();
        let bench = Bench::new(ReceiverSettings::default(), Err(error));
        let status = call_export(&bench, b"x").await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message.as_str()));
        // A RetryInfo of five seconds, inside an Any, inside the Status.
        assert_eq!(status.details().ends_with(&[0x12, 4, 0x0a, 2, 8, 5]), retries, "{message}");
    }
}

#[tokio::test]
async fn tenants_come_from_metadata() {
    let settings = ReceiverSettings { multitenancy: true, ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Accepted::default()));
    for (values, code, message) in [
        (&["a"][..], Code::Ok, ""),
        (&[], Code::Unauthenticated, "no org id"),
        (&["a|b"], Code::InvalidArgument, "multiple org IDs present"),
        (&["a", "b"], Code::InvalidArgument, "multiple org IDs present"),
        (&[".."], Code::InvalidArgument, "tenant ID is '.' or '..'"),
    ] {
        let mut request = tonic::Request::new(Bytes::new());
        for value in values {
            request.metadata_mut().append("x-scope-orgid", value.parse().unwrap());
        }
        let status = export_with(&bench, None, request).await.err().unwrap_or_else(|| tonic::Status::ok(""));
        assert_eq!((status.code(), status.message()), (code, message), "{values:?}");
    }
    assert_eq!(bench.ingest.requests.lock().len(), 1);
}

async fn raw(bench: &Bench, path: &str, headers: &[(&str, &str)], body: &'static [u8]) -> (u16, HeaderMap) {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router(bench.receiver.clone()).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    (response.status().as_u16(), response.headers().clone())
}

#[tokio::test]
async fn broken_frames_end_with_a_status() {
    let settings = ReceiverSettings { max_grpc_message_bytes: 10, ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Accepted::default()));
    let grpc = ("content-type", "application/grpc+proto");
    for (headers, body, code) in [
        (&[grpc][..], &b""[..], Code::Internal),
        (&[grpc], b"\0\0\0", Code::Internal),
        (&[grpc], b"\0\0\0\0\x02x", Code::Internal),
        (&[grpc], b"\0\0\0\0\x01x\0\0\0\0\0", Code::Internal),
        (&[grpc], b"\x02\0\0\0\0", Code::Internal),
        (&[grpc], b"\x01\0\0\0\0", Code::Internal),
        // Declares more than allowed: refused before it comes.
        (&[grpc], b"\0\xff\xff\xff\xff", Code::InvalidArgument),
        (&[grpc], b"\0\0\0\0\x0b12345678901", Code::InvalidArgument),
        (&[grpc, ("grpc-encoding", "lz4")], b"\x01\0\0\0\0", Code::Unimplemented),
    ] {
        let (http, answer) = raw(&bench, EXPORT_PATH, headers, body).await;
        assert_eq!((http, answer["grpc-status"].to_str().unwrap()), (200, (code as i32).to_string().as_str()), "{body:?}");
    }
    assert!(bench.ingest.requests.lock().is_empty());
    assert_eq!(bench.memory.used(), 0);
    let (_, answer) = raw(&bench, EXPORT_PATH, &[grpc, ("grpc-encoding", "br")], b"").await;
    assert_eq!(answer["grpc-accept-encoding"], "gzip,zstd,deflate,snappy,identity");
}

#[tokio::test]
async fn what_is_not_this_call() {
    let bench = Bench::accepting();
    for kind in ["application/json", "application/grpc-web", "application/grpc-web+proto", ""] {
        assert_eq!(raw(&bench, EXPORT_PATH, &[("content-type", kind)], b"").await.0, 415, "{kind}");
    }
    let (http, answer) = raw(&bench, "/a.Service/Method", &[("content-type", "application/grpc")], b"").await;
    assert_eq!((http, &answer["grpc-status"]), (200, &HeaderValue::from_static("12")));
}
