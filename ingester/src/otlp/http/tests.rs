use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use tower::ServiceExt;

use super::*;
use crate::pipeline::{Compression, IngestError, RefusalReason};
use crate::receive::metrics::Outcome;
use crate::receive::receiver::ReceiverSettings;
use crate::receive::testing::Bench;

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

async fn send(bench: &Bench, request: Request<Body>) -> Answer {
    let response = router(bench.receiver.clone()).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    Answer { code: head.status.as_u16(), headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
}

fn post(headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::post(TRACES_PATH);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

const PROTO: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

#[tokio::test]
async fn success_answers_in_the_encoding_of_the_request() {
    let bench = Bench::accepting();
    for (kind, encoding, body) in [
        (PROTO, Encoding::OtlpProto, &b"\x0a\x00"[..]),
        (("content-type", "Application/Protobuf"), Encoding::OtlpProto, b"\x0a\x00"),
        (JSON, Encoding::OtlpJson, b"{\"partialSuccess\":{}}"),
    ] {
        let answer = send(&bench, post(&[kind], "as sent")).await;
        assert_eq!((answer.code, &answer.body[..]), (200, body));
        let expected = if encoding == Encoding::OtlpProto { "application/x-protobuf" } else { "application/json" };
        assert_eq!(answer.header("content-type"), Some(expected));
        let request = bench.ingest.requests.lock().pop().unwrap();
        assert_eq!(
            (request.encoding, request.compression, &request.body[..]),
            (encoding, Compression::Identity, &b"as sent"[..])
        );
        assert_eq!(request.tenant.as_str(), "single-tenant");
    }
    assert_eq!(bench.metrics.requests(Protocol::OtlpHttp, Outcome::Accepted), 3);
    assert_eq!(bench.memory.used(), 0);
}

#[tokio::test]
async fn refused_spans_are_named() {
    let partial = crate::pipeline::Accepted { spans: 1, refused: vec![(RefusalReason::InvalidTraceId, 2)] };
    let bench = Bench::new(ReceiverSettings::default(), Ok(partial));
    let answer = send(&bench, post(&[JSON], "{}")).await;
    let expected =
        r#"{"partialSuccess":{"rejectedSpans":"2","errorMessage":"spans refused by reason: invalid_trace_id: 2"}}"#;
    assert_eq!((answer.code, answer.text()), (200, expected));
    assert_eq!(bench.metrics.requests(Protocol::OtlpHttp, Outcome::Partial), 1);
}

#[tokio::test]
async fn bodies_stay_compressed_on_their_way() {
    let bench = Bench::accepting();
    for (name, compression) in [
        ("gzip", Compression::Gzip),
        ("GZIP", Compression::Gzip),
        ("zstd", Compression::Zstd),
        ("deflate", Compression::Deflate),
        ("zlib", Compression::Deflate),
        ("snappy", Compression::Snappy),
        ("x-snappy-framed", Compression::Snappy),
        ("identity", Compression::Identity),
    ] {
        let answer = send(&bench, post(&[PROTO, ("content-encoding", name)], "squeezed")).await;
        let request = bench.ingest.requests.lock().pop().unwrap();
        assert_eq!((answer.code, request.compression, &request.body[..]), (200, compression, &b"squeezed"[..]));
    }
    for (headers, message) in [
        (&[JSON, ("content-encoding", "br")][..], "unsupported Content-Encoding: br"),
        (&[JSON, ("content-encoding", "lz4")], "unsupported Content-Encoding: lz4"),
        (&[JSON, ("content-encoding", "gzip, gzip")], "unsupported Content-Encoding: gzip, gzip"),
        (&[JSON, ("content-encoding", "gzip"), ("content-encoding", "zstd")], "several Content-Encoding headers"),
    ] {
        let answer = send(&bench, post(headers, "x")).await;
        assert_eq!((answer.code, answer.text()), (400, format!(r#"{{"code":3,"message":"{message}"}}"#).as_str()));
    }
    assert!(bench.ingest.requests.lock().is_empty());
}

#[tokio::test]
async fn other_methods_types_and_paths() {
    let bench = Bench::accepting();
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        let request = Request::builder().method(method).uri(TRACES_PATH).body(Body::empty()).unwrap();
        let answer = send(&bench, request).await;
        assert_eq!((answer.code, answer.text()), (405, "405 method not allowed, supported: [POST]"));
    }
    for headers in [&[("content-type", "text/plain")][..], &[]] {
        let answer = send(&bench, post(headers, "x")).await;
        let expected = "415 unsupported media type, supported: [application/json, application/x-protobuf]";
        assert_eq!((answer.code, answer.text()), (415, expected));
    }
    assert_eq!(send(&bench, Request::post("/v1/metrics").body(Body::empty()).unwrap()).await.code, 404);
}

#[tokio::test]
async fn errors_of_the_pipeline_are_statuses() {
    let wait = Duration::from_secs(5);
    for (error, code, retry, body) in [
        (IngestError::Malformed("bad".into()), 400, None, r#"{"code":3,"message":"bad"}"#),
        (
            IngestError::TooLarge { what: "decompressed body", limit: 7 },
            413,
            None,
            r#"{"code":3,"message":"decompressed body exceeds the limit of 7 bytes"}"#,
        ),
        (
            IngestError::Overloaded { message: "full".into(), retry_after: wait },
            429,
            Some("5"),
            r#"{"code":8,"message":"full","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"5s"}]}"#,
        ),
        (IngestError::Unavailable("stopping".into()), 503, None, r#"{"code":14,"message":"stopping"}"#),
    ] {
        let bench = Bench::new(ReceiverSettings::default(), Err(error));
        let answer = send(&bench, post(&[JSON], "{}")).await;
        assert_eq!((answer.code, answer.header("retry-after"), answer.text()), (code, retry, body));
        let answer = send(&bench, post(&[PROTO], "")).await;
        assert_eq!((answer.code, answer.header("content-type")), (code, Some("application/x-protobuf")));
        assert_eq!(bench.memory.used(), 0);
    }
}

#[tokio::test]
async fn tenants() {
    let settings = ReceiverSettings { multitenancy: true, ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Default::default()));
    for (values, code, body) in [
        (&["a"][..], 200, r#"{"partialSuccess":{}}"#),
        (&[], 503, r#"{"code":14,"message":"no org id"}"#),
        (&["a|b"], 400, r#"{"code":3,"message":"multiple org IDs present"}"#),
        (&["a", "b"], 400, r#"{"code":3,"message":"multiple org IDs present"}"#),
        (&["a/b"], 400, r#"{"code":3,"message":"tenant ID 'a/b' contains unsupported character '/'"}"#),
    ] {
        let mut headers = vec![JSON];
        headers.extend(values.iter().map(|value| ("X-Scope-OrgID", *value)));
        let answer = send(&bench, post(&headers, "{}")).await;
        assert_eq!((answer.code, answer.text()), (code, body), "{values:?}");
    }
    let requests = bench.ingest.requests.lock();
    assert_eq!((requests.len(), requests[0].tenant.as_str()), (1, "a"));
}

#[tokio::test]
async fn bodies_beyond_the_cap_or_the_budget() {
    let settings =
        ReceiverSettings { max_body_bytes: 1000, memory_patience: Duration::from_millis(10), ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Default::default()));
    let answer = send(&bench, post(&[JSON], vec![b' '; 1001])).await;
    assert_eq!(
        (answer.code, answer.text()),
        (413, r#"{"code":3,"message":"encoded body exceeds the limit of 1000 bytes"}"#)
    );
    let chunks =
        futures::stream::iter((0..1001).map(|_| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(b" ")))));
    assert_eq!(send(&bench, post(&[JSON], Body::new(StreamBody::new(chunks)))).await.code, 413);
    assert_eq!(send(&bench, post(&[JSON], vec![b' '; 1000])).await.code, 200);

    let taken = bench.memory.try_take(bench.memory.limit()).unwrap();
    let answer = send(&bench, post(&[PROTO], "x")).await;
    assert_eq!((answer.code, answer.header("retry-after")), (429, Some("5")));
    drop(taken);
    assert_eq!((bench.memory.used(), bench.metrics.requests(Protocol::OtlpHttp, Outcome::TooLarge)), (0, 2));
}

#[tokio::test]
async fn a_stalled_body_ends() {
    let settings = ReceiverSettings { body_idle_timeout: Duration::from_millis(50), ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Default::default()));
    let stalled = StreamBody::new(futures::stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>());
    let answer = send(&bench, post(&[JSON], Body::new(stalled))).await;
    assert_eq!((answer.code, bench.metrics.requests(Protocol::OtlpHttp, Outcome::Stalled)), (408, 1));
    assert!(bench.ingest.requests.lock().is_empty());
}

#[tokio::test]
async fn only_configured_origins_may_send_from_a_browser() {
    let settings =
        ReceiverSettings { cors_allowed_origins: vec!["https://shop.example".into()], ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Default::default()));
    let preflight = |origin: &str| {
        Request::options(TRACES_PATH)
            .header("origin", origin)
            .header("access-control-request-headers", "content-type")
            .body(Body::new(Full::default()))
            .unwrap()
    };
    let answer = send(&bench, preflight("https://shop.example")).await;
    assert_eq!((answer.code, answer.header("access-control-allow-origin")), (204, Some("https://shop.example")));
    assert_eq!(answer.header("access-control-allow-headers"), Some("content-type"));
    let answer = send(&bench, preflight("https://other.example")).await;
    assert_eq!((answer.code, answer.header("access-control-allow-origin")), (405, None));
    let answer = send(&bench, post(&[JSON, ("origin", "https://shop.example")], "{}")).await;
    assert_eq!((answer.code, answer.header("access-control-allow-origin")), (200, Some("https://shop.example")));
}
