//! What the ports answer, and what reaches the pipeline.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Request};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::super::{agent, grpc, http as thrift_http};
use super::encode;
use crate::otlp::dump::dump;
use crate::pipeline::{Compression, Encoding, IngestError};
use crate::receive::metrics::{Outcome, Protocol};
use crate::receive::receiver::ReceiverSettings;
use crate::receive::testing::Bench;
use crate::thrift::write::Protocol as Thrift;

fn batch() -> serde_json::Value {
    let span = json!({ "traceID": "0123456789abcdef0123456789abcdef", "spanID": "0123456789abcdef", "operationName": "op", "startTime": 1, "duration": 2 });
    json!({ "process": { "serviceName": "a" }, "spans": [span] })
}

async fn post(bench: &Bench, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
    let mut request = Request::post("/api/traces?format=jaeger.thrift");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response =
        thrift_http::routes(bench.receiver.clone()).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

const THRIFT: (&str, &str) = ("content-type", "application/x-thrift");

#[tokio::test]
async fn thrift_over_http_answers_as_the_collector_does() {
    let bench = Bench::accepting();
    let good = encode::thrift(&batch());
    for headers in [&[THRIFT][..], &[("content-type", "application/vnd.apache.thrift.binary; charset=x")]] {
        assert_eq!(post(&bench, headers, good.clone()).await, (202, String::new()));
        let request = bench.ingest.requests.lock().pop().unwrap();
        assert_eq!((request.encoding, request.compression), (Encoding::OtlpProto, Compression::Identity));
        assert_eq!(dump(&request.body)[0]["spans"][0]["name"], "op");
    }
    let gzip = {
        use std::io::Write;
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(&good).unwrap();
        writer.finish().unwrap()
    };
    assert_eq!(post(&bench, &[THRIFT, ("content-encoding", "gzip")], gzip).await.0, 202);
    let cut = good[..good.len() - 9].to_vec();
    for (headers, body, text) in [
        (&[][..], &good, "Cannot parse content type: mime: no media type"),
        (&[("content-type", "application/json")], &good, "Unsupported content type: application/json"),
        (&[THRIFT], &cut, "Unable to process request body: malformed Thrift at byte "),
        (&[THRIFT], &Vec::new(), "Unable to process request body: malformed Thrift at byte 0: the input ends early"),
    ] {
        let (status, said) = post(&bench, headers, body.clone()).await;
        assert!(status == 400 && said.starts_with(text), "{status} {said}");
    }
    assert_eq!(bench.metrics.requests(Protocol::JaegerThriftHttp, Outcome::Accepted), 3);
    assert_eq!(bench.metrics.requests(Protocol::JaegerThriftHttp, Outcome::Malformed), 2);
    let get = Request::get("/api/traces").body(Body::empty()).unwrap();
    assert_eq!(thrift_http::routes(bench.receiver.clone()).oneshot(get).await.unwrap().status().as_u16(), 405);
    assert_eq!(bench.memory.used(), 0);
}

#[tokio::test]
async fn limits_and_tenants_are_those_of_otlp() {
    let limited = IngestError::RateLimited { message: "slow".into(), retry_after: None };
    let bench = Bench::new(ReceiverSettings::default(), Err(limited));
    let answer = post(&bench, &[THRIFT], encode::thrift(&batch())).await;
    assert_eq!(answer, (429, "Cannot submit Jaeger batch: slow".into()));

    let settings = ReceiverSettings { multitenancy: true, max_body_bytes: 10, ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Default::default()));
    assert_eq!(post(&bench, &[THRIFT], vec![]).await, (401, "missing tenant header".into()));
    assert_eq!(post(&bench, &[THRIFT, ("x-tenant", "a")], vec![0; 11]).await.0, 413);
    let settings = ReceiverSettings { multitenancy: true, ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Default::default()));
    assert_eq!(post(&bench, &[THRIFT, ("x-tenant", "a")], encode::thrift(&batch())).await.0, 202);
    assert_eq!(bench.ingest.requests.lock()[0].tenant.as_str(), "a");
}

async fn post_spans(bench: &Bench, message: &[u8]) -> (String, String) {
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend_from_slice(message);
    let request =
        Request::post(grpc::POST_SPANS_PATH).header("content-type", "application/grpc").body(Body::from(frame)).unwrap();
    let response = grpc::routes(bench.receiver.clone()).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or(head.headers);
    let field = |name| trailers.get(name).map_or("", |value: &HeaderValue| value.to_str().unwrap()).to_owned();
    assert!(field("grpc-status") != "0" || body.to_bytes()[..] == [0; 5]);
    (field("grpc-status"), field("grpc-message"))
}

#[tokio::test]
async fn post_spans_answers_nothing_or_a_status() {
    let bench = Bench::accepting();
    assert_eq!(post_spans(&bench, &encode::proto(&batch())).await.0, "0");
    assert_eq!(dump(&bench.ingest.requests.lock()[0].body)[0]["resource"], json!([["service.name", "a"]]));
    let bad_id = [0x0a, 5, 0x0a, 3, 0x0a, 1, 7];
    let (status, message) = post_spans(&bench, &bad_id).await;
    assert!(status == "3" && message.contains("trace%20id"), "{status} {message}");
    assert_eq!(bench.metrics.requests(Protocol::JaegerGrpc, Outcome::Malformed), 1);
    let settings = ReceiverSettings { multitenancy: true, ..ReceiverSettings::default() };
    let bench = Bench::new(settings, Ok(Default::default()));
    assert_eq!(post_spans(&bench, &[]).await.0, "16");
}

/// An agent port and a socket to send to it.
async fn agent_port(bench: &Bench) -> (UdpSocket, SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let socket = agent::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = socket.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(agent::serve(bench.receiver.clone(), socket, Protocol::JaegerCompactUdp, stop.clone()));
    (UdpSocket::bind("127.0.0.1:0").await.unwrap(), at, stop, serving)
}

async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come");
}

#[tokio::test]
async fn packets_of_both_protocols_arrive_and_bad_ones_go_alone() {
    let bench = Bench::accepting();
    let (socket, at, stop, serving) = agent_port(&bench).await;
    let good = encode::message(Thrift::Compact, &batch());
    for packet in [&good[..], &encode::message(Thrift::Binary, &batch()), &good[..good.len() / 2], b"noise", &[]] {
        socket.send_to(packet, at).await.unwrap();
    }
    let count = |outcome| bench.metrics.requests(Protocol::JaegerCompactUdp, outcome);
    until(|| (count(Outcome::Accepted), count(Outcome::Malformed)) == (2, 3)).await;
    stop.cancel();
    serving.await.unwrap();
    let requests = bench.ingest.requests.lock();
    let spans: usize = requests.iter().map(|r| dump(&r.body)[0]["spans"].as_array().unwrap().len()).sum();
    assert_eq!(spans, 2);
    assert_eq!(bench.memory.used(), 0);
}

#[tokio::test]
async fn packets_without_room_are_dropped_and_counted() {
    let bench = Bench::accepting();
    let all = bench.memory.try_take(bench.memory.limit()).unwrap();
    let (socket, at, stop, serving) = agent_port(&bench).await;
    socket.send_to(&encode::message(Thrift::Compact, &batch()), at).await.unwrap();
    until(|| bench.metrics.requests(Protocol::JaegerCompactUdp, Outcome::Overloaded) == 1).await;
    drop(all);
    socket.send_to(&encode::message(Thrift::Compact, &batch()), at).await.unwrap();
    until(|| bench.metrics.requests(Protocol::JaegerCompactUdp, Outcome::Accepted) == 1).await;
    stop.cancel();
    serving.await.unwrap();
}

/// More than any buffer holds, before anybody reads.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_the_kernel_drops_is_counted_too() {
    const SENT: u64 = 20_000;
    let bench = Bench::accepting();
    let port = agent::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..SENT {
        socket.send_to(&[b'x'; 1000], port.local_addr().unwrap()).unwrap();
    }
    let stop = CancellationToken::new();
    let serving = tokio::spawn(agent::serve(bench.receiver.clone(), port, Protocol::JaegerBinaryUdp, stop.clone()));
    let taken = || {
        let count = |outcome| bench.metrics.requests(Protocol::JaegerBinaryUdp, outcome);
        count(Outcome::Malformed) + count(Outcome::Overloaded)
    };
    until(|| taken() > 0).await;
    stop.cancel();
    serving.await.unwrap();
    let dropped = bench.metrics.dropped_packets(Protocol::JaegerBinaryUdp);
    assert!(dropped > 0, "{} packets fit", taken());
    assert_eq!(taken() + dropped, SENT);
}
