//! The load generator against a small server of its own, which remembers spans and refuses now and then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;

use super::wire::{put_bytes, scan_messages};
use super::{Compression, Options, Protocol, run};

#[derive(Default)]
struct Server {
    /// Ends a connection after each answer.
    is_closing: bool,
    spans: Mutex<HashMap<Vec<u8>, Vec<Vec<u8>>>>,
    requests: AtomicU32,
    /// Every n-th span is forgotten; 0 for none.
    forget: usize,
}

impl Server {
    fn store(&self, body: &[u8]) -> Option<()> {
        let mut spans = self.spans.lock().unwrap();
        let mut count = 0;
        scan_messages(body, 1, &mut |resource_spans| {
            scan_messages(resource_spans, 2, &mut |scope_spans| {
                scan_messages(scope_spans, 2, &mut |span| {
                    count += 1;
                    if self.forget == 0 || count % self.forget != 0 {
                        scan_messages(span, 1, &mut |id| {
                            spans.entry(id.to_vec()).or_default().push(span.to_vec());
                            Some(())
                        })?;
                    }
                    Some(())
                })
            })
        })
    }

    fn trace(&self, id: &str) -> Vec<u8> {
        let id = u128::from_str_radix(id, 16).unwrap().to_be_bytes();
        let spans = self.spans.lock().unwrap();
        let mut scope_spans = Vec::new();
        spans.get(&id[..]).into_iter().flatten().for_each(|span| put_bytes(&mut scope_spans, 0x12, span));
        let (mut resource_spans, mut trace, mut answer) = (Vec::new(), Vec::new(), Vec::new());
        put_bytes(&mut resource_spans, 0x12, &scope_spans);
        put_bytes(&mut trace, 0x0a, &resource_spans);
        put_bytes(&mut answer, 0x0a, &trace);
        answer
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<
        Response<StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>>>>,
        hyper::Error,
    > {
        let path = request.uri().path().to_owned();
        let grpc = request.headers().get("content-type").is_some_and(|value| value == "application/grpc");
        let encoding = request.headers().get("content-encoding").or(request.headers().get("grpc-encoding"));
        let gzip = encoding.is_some_and(|value| value == "gzip");
        let zstd = encoding.is_some_and(|value| value == "zstd");
        assert_eq!(request.headers().get("x-scope-orgid").unwrap(), "shop");
        let body = request.into_body().collect().await?.to_bytes();
        let mut response = Response::builder();
        if self.is_closing {
            response = response.header("connection", "close");
        }
        let mut trailers = HeaderMap::new();
        let mut out = Vec::new();
        if let Some(id) = path.strip_prefix("/api/v2/traces/") {
            out = self.trace(id);
        } else if path == "/metrics" {
            out = b"spanhouse_ingester_live_spans 0\n".to_vec();
        } else if self.requests.fetch_add(1, SeqCst) % 5 == 2 {
            trailers.insert("grpc-status", "8".parse().unwrap());
            response = if grpc { response } else { response.status(429).header("retry-after", "0") };
        } else {
            let body = if grpc { &body[5..] } else { &body[..] };
            let plain = match (gzip, zstd) {
                (true, _) => {
                    let mut plain = Vec::new();
                    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(body), &mut plain).unwrap();
                    plain
                }
                (_, true) => zstd::stream::decode_all(body).unwrap(),
                _ => body.to_vec(),
            };
            self.store(&plain).expect("OTLP");
            trailers.insert("grpc-status", "0".parse().unwrap());
        }
        let mut frames = vec![Ok(Frame::data(Bytes::from(out)))];
        if grpc {
            frames.push(Ok(Frame::trailers(trailers)));
        }
        Ok(response.body(StreamBody::new(futures::stream::iter(frames))).unwrap())
    }
}

async fn serve(server: Arc<Server>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let server = Arc::clone(&server);
            let service = service_fn(move |request| Arc::clone(&server).answer(request));
            tokio::spawn(async move {
                auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tcp), service).await.ok()
            });
        }
    });
    url
}

fn options(url: String) -> Options {
    Options {
        endpoint: Some(url.clone()),
        protocol: Protocol::OtlpHttp,
        compression: Compression::None,
        rate: None,
        count: Some(3_000),
        duration: None,
        batch: 100,
        connections: 3,
        tenant: Some("shop".into()),
        seed: 5,
        prebuilt: false,
        verify: true,
        query: url,
        server_pid: None,
        wait_flush: true,
        json: false,
    }
}

#[tokio::test]
async fn what_is_sent_is_found_by_every_protocol_and_compression() {
    for (protocol, compression, prebuilt) in [
        (Protocol::OtlpHttp, Compression::None, false),
        (Protocol::OtlpHttp, Compression::Gzip, true),
        (Protocol::OtlpGrpc, Compression::None, true),
        (Protocol::OtlpGrpc, Compression::Zstd, false),
    ] {
        let url = serve(Arc::new(Server::default())).await;
        let summary = run(&Options { protocol, compression, prebuilt, ..options(url) }).await.unwrap();
        assert!(summary.is_clean(), "{summary}");
        assert!(summary.spans >= 3_000 && summary.retries > 0, "{summary}");
        assert!(compression == Compression::None || summary.bytes_on_the_wire * 2 < summary.bytes, "{summary}");
        let verified = summary.verified.unwrap();
        assert_eq!((verified.whole_traces, verified.missing_spans), (summary.traces, 0));
    }
}

/// Only what was refused is sent again.
#[tokio::test]
async fn a_server_may_end_its_connections() {
    let server = Arc::new(Server { is_closing: true, ..Server::default() });
    let summary = run(&options(serve(Arc::clone(&server)).await)).await.unwrap();
    assert!(summary.is_clean(), "{summary}");
    let refused = (0..server.requests.load(SeqCst)).filter(|nth| nth % 5 == 2).count();
    assert_eq!(summary.retries, refused as u64, "{summary}");
}

#[tokio::test]
async fn a_rate_is_kept() {
    let url = serve(Arc::new(Server::default())).await;
    let (rate, duration) = (Some(4_000), Some(Duration::from_millis(1_500)));
    let summary = run(&Options { rate, duration, count: None, ..options(url) }).await.unwrap();
    assert!(summary.is_clean(), "{summary}");
    assert!((1.2..5.0).contains(&summary.seconds) && (5_000..8_000).contains(&summary.spans), "{summary}");
}

/// The check must be able to fail.
#[tokio::test]
async fn lost_spans_are_noticed() {
    let url = serve(Arc::new(Server { forget: 2, ..Server::default() })).await;
    let summary = run(&Options { count: Some(60), ..options(url) }).await.unwrap();
    let verified = summary.verified.as_ref().unwrap();
    assert!(!summary.is_clean() && verified.missing_spans > 0 && verified.example.is_some(), "{summary}");
}
