//! The loop on real sockets: protocols, timeouts, the cap on connections, the drain.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::routing::{get, post};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;

struct Port {
    address: SocketAddr,
    shutdown: CancellationToken,
    metrics: ServeMetrics,
    task: JoinHandle<()>,
}

impl Port {
    async fn open(limits: ServeLimits) -> Self {
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
            .route("/slow", get(|| async { sleep(Duration::from_millis(300)).await }))
            .route("/large", get(|| async { vec![b'x'; 64 << 20] }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown, metrics) =
            (listener.local_addr().unwrap(), CancellationToken::new(), ServeMetrics::default());
        let task = tokio::spawn(serve(listener, router, shutdown.clone(), limits, metrics.clone()));
        Self { address, shutdown, metrics, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn close(self) {
        self.shutdown.cancel();
        timeout(Duration::from_secs(5), self.task).await.unwrap().unwrap();
        assert_eq!(self.metrics.open.get(), 0);
    }
}

fn quick() -> ServeLimits {
    ServeLimits {
        header_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(900),
        write_timeout: Duration::from_millis(300),
        drain: Duration::from_millis(1500),
        ..ServeLimits::default()
    }
}

/// Sends `text` and returns what comes back until the peer closes, and how long that took.
async fn until_closed(stream: &mut TcpStream, text: &str) -> (String, Duration) {
    let start = Instant::now();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset is a close as well.
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
    (String::from_utf8_lossy(&answer).into_owned(), start.elapsed())
}

async fn one_answer(stream: &mut TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let read = stream.read(&mut buffer).await.unwrap();
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

type H2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn http2(port: &Port) -> (H2, JoinHandle<Result<(), hyper::Error>>) {
    let io = TokioIo::new(port.connect().await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn url(port: &Port, path: &str) -> hyper::http::request::Builder {
    Request::builder().uri(format!("http://{}{path}", port.address))
}

#[tokio::test]
async fn both_protocols_on_one_port() {
    let port = Port::open(quick()).await;
    let answer = one_answer(&mut port.connect().await, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
    let (mut sender, _connection) = http2(&port).await;
    let body = Full::from(vec![7; 1 << 20]);
    let answer = sender.send_request(url(&port, "/length").method("POST").body(body).unwrap()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), (1 << 20).to_string());
    assert_eq!(port.metrics.accepted.get(), 2);
    drop(sender);
    port.close().await;
}

#[tokio::test]
async fn half_a_greeting_or_head_is_ended() {
    let port = Port::open(quick()).await;
    for start in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost:"] {
        let (answer, took) = until_closed(&mut port.connect().await, start).await;
        assert!(!answer.contains("200"), "{start:?}: {answer}");
        assert!((250..900).contains(&took.as_millis()), "{start:?}: {took:?}");
    }
    port.close().await;
}

#[tokio::test]
async fn single_bytes_do_not_hold_a_connection() {
    let port = Port::open(quick()).await;
    let (mut reader, mut writer) = port.connect().await.into_split();
    let start = Instant::now();
    let drip = tokio::spawn(async move {
        for byte in "GET / HTTP/1.1\r\nhost: a-long-name-that-takes-its-time\r\n\r\n".bytes() {
            sleep(Duration::from_millis(30)).await;
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    });
    let _ = timeout(Duration::from_secs(5), reader.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    drip.await.unwrap();
    port.close().await;
}

#[tokio::test]
async fn a_pause_between_requests_may_be_longer_than_a_head() {
    let port = Port::open(quick()).await;
    let mut stream = port.connect().await;
    let request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    for _ in 0..2 {
        assert!(one_answer(&mut stream, request).await.contains("hello"));
        sleep(Duration::from_millis(500)).await;
    }
    assert!(one_answer(&mut stream, request).await.contains("hello"));
    // A second head has the time of a head; after that, and after a pause too long, the connection ends.
    let (_, took) = until_closed(&mut stream, "GET / HT").await;
    assert!((250..850).contains(&took.as_millis()), "{took:?}");
    let mut stream = port.connect().await;
    assert!(one_answer(&mut stream, request).await.contains("hello"));
    let (_, took) = until_closed(&mut stream, "").await;
    assert!((850..2000).contains(&took.as_millis()), "{took:?}");
    port.close().await;
}

#[tokio::test]
async fn handlers_may_take_longer_than_a_head() {
    let port = Port::open(ServeLimits { header_timeout: Duration::from_millis(100), ..quick() }).await;
    let answer = one_answer(&mut port.connect().await, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    port.close().await;
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_ended() {
    let port = Port::open(quick()).await;
    let mut stream = port.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let start = Instant::now();
    while port.metrics.open.get() > 0 || port.metrics.accepted.get() == 0 {
        assert!(start.elapsed() < Duration::from_secs(4), "still open");
        sleep(Duration::from_millis(20)).await;
    }
    port.close().await;
}

#[tokio::test]
async fn connections_beyond_the_cap_are_closed_at_once() {
    let port = Port::open(ServeLimits { max_connections: 2, ..quick() }).await;
    let mut held = [port.connect().await, port.connect().await];
    for stream in &mut held {
        assert!(one_answer(stream, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("hello"));
    }
    let (answer, took) = until_closed(&mut port.connect().await, "").await;
    assert!(answer.is_empty() && took < Duration::from_millis(250), "{answer} {took:?}");
    drop(held);
    while port.metrics.open.get() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let mut again = port.connect().await;
    assert!(one_answer(&mut again, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("hello"));
    assert_eq!(port.metrics.refused.get(), 1);
    port.close().await;
}

#[tokio::test]
async fn headers_are_bounded() {
    let port = Port::open(quick()).await;
    let large = "x".repeat(100_000);
    let (answer, _) = until_closed(&mut port.connect().await, &format!("GET / HTTP/1.1\r\nh: {large}\r\n\r\n")).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    let (mut sender, _connection) = http2(&port).await;
    let request = url(&port, "/").header("h", &large).body(Full::default()).unwrap();
    let status = sender.send_request(request).await.map(|answer| answer.status().as_u16());
    assert!(!matches!(status, Ok(200)), "{status:?}");
    drop(sender);
    port.close().await;
}

#[tokio::test]
async fn requests_in_flight_finish_and_no_new_ones_come() {
    let port = Port::open(quick()).await;
    let mut first = port.connect().await;
    first.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let (mut second, _connection) = http2(&port).await;
    let answer = second.send_request(url(&port, "/slow").body(Full::default()).unwrap());
    let in_flight = tokio::spawn(answer);
    let mut idle = port.connect().await;
    assert!(one_answer(&mut idle, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("hello"));
    sleep(Duration::from_millis(50)).await;

    let (address, start) = (port.address, Instant::now());
    port.shutdown.cancel();
    let (_, took) = until_closed(&mut idle, "").await;
    assert!(took < Duration::from_millis(200), "{took:?}");
    let (answer, _) = until_closed(&mut first, "").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(in_flight.await.unwrap().unwrap().status().as_u16(), 200);
    assert!(TcpStream::connect(address).await.is_err());
    port.close().await;
    assert!(start.elapsed() < Duration::from_millis(1200), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_drain_has_an_end() {
    let port = Port::open(ServeLimits { drain: Duration::from_millis(50), ..quick() }).await;
    let mut stream = port.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(50)).await;
    port.close().await;
    let (answer, _) = until_closed(&mut stream, "").await;
    assert_eq!(answer, "");
}

mod receivers {
    //! The OTLP receivers behind the loop, over loopback.

    use parking_lot::Mutex;
    use spanhouse_common::budget::Share;
    use spanhouse_common::time::SystemClock;
    use spanhouse_ingester::otlp::{grpc, http};
    use spanhouse_ingester::pipeline::{Accepted, Ingest, IngestError, IngestRequest};
    use spanhouse_ingester::receive::metrics::ReceiverMetrics;
    use spanhouse_ingester::receive::receiver::{Receiver, ReceiverDeps, ReceiverSettings};
    use spanhouse_ingester::receive::tenant::TenantTexts;

    use super::*;

    #[derive(Default)]
    struct Keeping(Mutex<Vec<IngestRequest>>);

    impl Ingest for Keeping {
        async fn ingest(&self, request: IngestRequest) -> Result<Accepted, IngestError> {
            self.0.lock().push(request);
            Ok(Accepted::default())
        }
    }

    async fn open(settings: ReceiverSettings) -> (Port, Arc<Keeping>, Share) {
        let (ingest, memory) = (Arc::new(Keeping::default()), Share::new("test", 64 << 20));
        let receiver = Receiver::new(
            ReceiverDeps {
                ingest: Arc::clone(&ingest),
                memory: memory.clone(),
                clock: SystemClock::shared(),
                metrics: ReceiverMetrics::unregistered(),
            },
            settings,
        );
        let router = http::router(receiver.clone()).merge(grpc::routes(receiver, TenantTexts::Tempo));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown, metrics) =
            (listener.local_addr().unwrap(), CancellationToken::new(), ServeMetrics::default());
        let task = tokio::spawn(serve(listener, router, shutdown.clone(), quick(), metrics.clone()));
        (Port { address, shutdown, metrics, task }, ingest, memory)
    }

    #[tokio::test]
    async fn a_grpc_call_with_its_trailers() {
        let (port, ingest, memory) = open(ReceiverSettings::default()).await;
        let (mut sender, _connection) = http2(&port).await;
        let message = vec![9; 5 << 20];
        let frame = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
        let request = url(&port, grpc::EXPORT_PATH)
            .method("POST")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(frame))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(answer.to_bytes(), &[0, 0, 0, 0, 2, 0x0a, 0][..]);
        assert_eq!(ingest.0.lock()[0].body, message);
        assert_eq!(memory.used(), 0);
        drop(sender);
        port.close().await;
    }

    #[tokio::test]
    async fn http_bodies_with_lengths_that_lie() {
        let settings = ReceiverSettings {
            max_body_bytes: 1000,
            body_idle_timeout: Duration::from_millis(200),
            ..ReceiverSettings::default()
        };
        let (port, ingest, memory) = open(settings).await;
        let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n";
        for (rest, code) in [
            ("content-length: 2\r\n\r\n{}", "200"),
            ("transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "200"),
            // Announces too much: refused without waiting for it.
            ("content-length: 1001\r\n\r\n", "413"),
            // Sends less than announced and stalls.
            ("content-length: 1000\r\n\r\n{}", "408"),
            ("transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", "408"),
            // Sends more than announced: the rest is no part of the request.
            ("content-length: 2\r\n\r\n{}{}{}", "200"),
            ("content-length: 2\r\ncontent-length: 3\r\n\r\n{}", "400"),
            ("content-length: -1\r\n\r\n{}", "400"),
            ("transfer-encoding: chunked\r\n\r\nzz\r\n", "400"),
        ] {
            let (answer, took) = until_closed(&mut port.connect().await, &format!("{head}{rest}")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{rest:?}: {answer}");
            assert!(took < Duration::from_secs(2), "{rest:?}: {took:?}");
        }
        assert!(ingest.0.lock().iter().all(|request| request.body == "{}"));
        assert_eq!(memory.used(), 0);
        port.close().await;
    }

    #[tokio::test]
    async fn a_client_that_leaves_gives_its_memory_back() {
        let (port, ingest, memory) = open(ReceiverSettings::default()).await;
        let mut stream = port.connect().await;
        let head =
            "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        while memory.used() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(memory.used() <= 64 * 1024, "{} bytes for one", memory.used());
        drop(stream);
        while memory.used() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(ingest.0.lock().is_empty());
        port.close().await;
    }
}
