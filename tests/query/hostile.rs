//! Queries that ask for too much: each ends soon with an answer or a clear refusal, memory stays bounded, and others are served.

use std::time::{Duration, Instant};

use prost::Message;
use spanhouse_proto::tempopb;
use spanhouse_proto::tempopb::streaming_querier_client::StreamingQuerierClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::client::GrpcService;
use tonic::{Code, Status};

use super::shop::Shop;
use super::stream::dial;
use crate::harness::ask::{PARTIAL, path};
use crate::harness::otlp::{PROTOBUF, new_id, now, request, span_id, trace};
use crate::harness::server::{Answer, Server, Setup};

/// No query may take longer, on a busy machine: the limit is 10 s.
const PATIENCE: Duration = Duration::from_secs(15);

const MIB: u64 = 1 << 20;

/// URLs longer than this are refused before anybody reads them.
const URL_BYTES: usize = 65_000;

/// Asks without a client, whose own limits would go first.
async fn raw_get(server: &Server, path: &str) -> String {
    let mut tcp = TcpStream::connect(server.ports.query).await.expect("a connection");
    // The server may answer and close before it has read everything.
    let _ = tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
    let mut answer = vec![0; 200];
    let count = tcp.read(&mut answer).await.expect("an answer");
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

/// Reads a stream to its end.
async fn search<T>(
    client: &mut StreamingQuerierClient<T>,
    request: tempopb::SearchRequest,
) -> Result<Vec<tempopb::SearchResponse>, Status>
where
    T: GrpcService<tonic::body::Body, ResponseBody = hyper::body::Incoming>,
{
    let mut stream = client.search(request).await?.into_inner();
    let mut out = Vec::new();
    while let Some(message) = stream.message().await? {
        out.push(message);
    }
    Ok(out)
}

/// Peak memory of the process.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

async fn timed(server: &Server, endpoint: &str, parameters: &[(&str, &str)]) -> Answer {
    let begun = Instant::now();
    let answer = server.ask(endpoint, parameters).await;
    let shown: String = format!("{parameters:?}").chars().take(200).collect();
    assert!(begun.elapsed() < PATIENCE, "{:?} for {endpoint} {shown}", begun.elapsed());
    // Never a failure of ours, never a page of HTML.
    assert!(
        matches!(answer.status, 200 | 400 | 422 | 429 | 504),
        "{} {} for {endpoint} {shown}",
        answer.status,
        answer.text()
    );
    if answer.status != 200 {
        assert!((1..2_000).contains(&answer.body.len()), "{} bytes of refusal for {endpoint} {shown}", answer.body.len());
    }
    answer
}

async fn still_serves(server: &Server, shop: &Shop) {
    let (start, end) = (shop.range().0.to_string(), shop.range().1.to_string());
    let found = server.search("{ status = error }", &[("start", &start), ("end", &end), ("limit", "1000")]).await;
    assert_eq!(found.len(), shop.newest(super::shop::fails).len());
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_without_measure() {
    let server = Setup::new().start().await;
    let shop = Shop::new();
    shop.send_all(&server).await;
    let filled = |before: &str, with: &str, after: &str, bytes: usize| {
        format!("{before}{}{after}", with.repeat((bytes - before.len() - after.len()) / with.len()))
    };
    const MOST: usize = 128 << 10;
    let texts = [
        filled("{ span.", "a", " = 1 }", MOST),
        filled("{ name = `", "a", "` }", MOST),
        filled("{ name =~ `", "a", "` }", MOST),
        filled("{ true", "||true", " }", MOST),
        filled("{ name =~ `a", "|b", "` }", 64 << 10),
        filled("{ ", "(", "", 60_000),
        format!("{{ {}1 = 1{} }}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("{{ {}true }}", "!".repeat(100_000)),
        format!("{{ {}1 = 1 }}", "-".repeat(100_000)),
        format!("{}{{}}{}", "(".repeat(20_000), ")".repeat(20_000)),
        filled("{}", ">>{}", "", 60_000),
        filled("{}", "&&{}", "", 60_000),
        filled("{}", "|{}", "", 60_000),
        filled("{} | select(name", ",name", ")", 60_000),
        filled("{} | by(name)", "|by(name)", "", 60_000),
        filled("{} | rate()", "|topk(1)", "", 60_000),
        filled("{} | rate()", "+({}|rate())", "", 40_000),
        "{ name =~ `(a{1000}){1000}` }".to_owned(),
        "{ name =~ `((a{100}){100}){100}` }".to_owned(),
        "{ name =~ `(a+)+$` || name =~ `(.*)*x` }".to_owned(),
        "{ name =~ `\\pL{500}\\w{500}` }".to_owned(),
        "{ span.load > 9999999999999999999999999999999 }".to_owned(),
        "{ 1 / 0 > 1 && 9223372036854775807 + 1 > 0 && -9223372036854775808 / -1 > 0 && 1 % 0 = 1 }".to_owned(),
        "{ duration > 99999999999999999999h }".to_owned(),
        "\0\0{}\u{202e}".to_owned(),
    ];
    let mut streams = dial(server.ports.query).await;
    for text in &texts {
        for endpoint in ["/api/search", "/api/metrics/query_range", "/api/metrics/query"] {
            if path(endpoint, &[("q", text)]).len() < URL_BYTES {
                timed(&server, endpoint, &[("q", text)]).await;
            }
        }
        let trace = format!("/api/v2/traces/{:032x}", shop.traces[0].0);
        if path(&trace, &[("q", text)]).len() < URL_BYTES {
            timed(&server, &trace, &[("q", text)]).await;
        }
        let begun = Instant::now();
        let request = tempopb::SearchRequest { query: text.clone(), ..Default::default() };
        let shown: String = text.chars().take(100).collect();
        if let Err(status) = search(&mut streams, request).await {
            let known = [Code::InvalidArgument, Code::Unknown, Code::ResourceExhausted];
            let is_late = status.message() == "context deadline exceeded";
            assert!(is_late || known.contains(&status.code()), "{status:?} for {shown}");
            assert!((1..4_000).contains(&status.message().len()), "{} bytes for {shown}", status.message().len());
        }
        assert!(begun.elapsed() < PATIENCE, "{:?} for {shown}", begun.elapsed());
    }
    let long = filled("{ name = `", "a", "` }", MOST + 1);
    let request = tempopb::SearchRequest { query: long.clone(), ..Default::default() };
    let status = search(&mut streams, request).await.expect_err("a refusal");
    assert!(status.message().starts_with("TraceQL expression exceeds the configured maximum size of 131072 bytes"));
    // Longer than any URL that HTTP servers take.
    let answer = raw_get(&server, &path("/api/search", &[("q", &long)])).await;
    assert!(answer.starts_with("HTTP/1.1 414") || answer.starts_with("HTTP/1.1 431"), "{answer}");
    still_serves(&server, &shop).await;
    assert!(peak(&server) < 400 * MIB, "{} bytes", peak(&server));
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_steps_without_measure() {
    let server = Setup::new().start().await;
    let shop = Shop::new();
    shop.send_all(&server).await;
    let refused = async |endpoint: &str, parameters: &[(&str, &str)], text: &str| {
        let answer = timed(&server, endpoint, parameters).await;
        assert!(answer.status == 400 && answer.text().contains(text), "{parameters:?}: {} {}", answer.status, answer.text());
    };
    let q = ("q", "{} | rate() by (name)");
    let range = "/api/metrics/query_range";
    for step in ["1ns", "0.000000001", "1us", "0", "0s"] {
        refused(range, &[q, ("step", step)], "is too small, minimum step for given range is 360ms").await;
    }
    refused(range, &[q, ("step", "-1s")], "step must be positive").await;
    for (start, end) in [("0", "4294967295"), ("1", "9223372036854775807"), ("0", "18446744073709551615")] {
        let answer = timed(&server, range, &[q, ("start", start), ("end", end)]).await;
        assert_eq!(answer.status, 400, "{start} to {end}: {}", answer.text());
        let answer = timed(&server, "/api/metrics/query", &[q, ("start", start), ("end", end)]).await;
        assert_eq!(answer.status, 400, "{start} to {end}: {}", answer.text());
    }
    refused(range, &[q, ("start", "1"), ("end", "1700000000")], "exceeds the maximum allowed duration of 24h0m0s").await;
    refused(
        "/api/search",
        &[("q", "{}"), ("start", "1"), ("end", "4294967295")],
        "range specified by start and end exceeds",
    )
    .await;
    refused("/api/search", &[("q", "{}"), ("since", "9000y")], "duration out of range").await;
    refused("/api/search", &[("q", "{}"), ("limit", "4294967295")], "exceeds max limit 262144").await;
    refused("/api/search", &[("q", "{}"), ("spss", "4294967295")], "spans per span set exceeds 100").await;
    // What is allowed is answered: a step longer than all time, the longest grid. The far future is refused.
    for (parameters, status) in [
        (&[("step", "2500000h")][..], 200),
        (&[("step", "360ms"), ("exemplars", "4294967295"), ("maxSeries", "4294967295")], 200),
        (&[("since", "24h"), ("step", "8640ms")], 200),
        (&[("start", "4102444800"), ("end", "4102448400")], 400),
    ] {
        let answer = timed(&server, range, &[&[q][..], parameters].concat()).await;
        assert_eq!(answer.status, status, "{parameters:?}: {}", answer.text());
    }
    still_serves(&server, &shop).await;
}

/// A series for each of thousands of spans, each with thousands of samples.
#[tokio::test(flavor = "multi_thread")]
async fn groups_without_measure() {
    let server = Setup::new().with("MEMORY_TOTAL", "512MiB").with("FLUSH_MAX_AGE", "1s").start().await;
    let shop = Shop::new();
    shop.send_all(&server).await;
    const MANY: u64 = 6_000;
    for lot in 0..10 {
        let id = new_id();
        let mut spans = trace(id, MANY);
        for (n, span) in spans.iter_mut().enumerate() {
            span.span_id = span_id(1 + lot * MANY + n as u64);
            span.parent_span_id = Vec::new();
            span.start_time_unix_nano = now() - 3_000_000_000_000 + n as u64 * 400_000_000;
            span.end_time_unix_nano = span.start_time_unix_nano + 1000 + n as u64;
        }
        let answer = server.post(&[PROTOBUF], request(spans).encode_to_vec()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let queries = [
        "{} | rate() by (span:id)",
        "{} | quantile_over_time(duration, 0.1, 0.5, 0.9) by (span:id)",
        "{} | histogram_over_time(duration) by (span:id)",
        "{} | min_over_time(duration) by (span:id, name, span.user.id)",
        "{} | compare({ status = error }, 1000000)",
        "{} | rate() by (span:id) | topk(1)",
        "{} | rate() by (duration)",
    ];
    for query in queries {
        for parameters in [&[("since", "1h"), ("step", "400ms")][..], &[("since", "24h"), ("step", "9s")]] {
            let answer = timed(&server, "/api/metrics/query_range", &[&[("q", query)][..], parameters].concat()).await;
            if answer.status == 422 {
                assert!(answer.text().contains("needs more memory"), "{}", answer.text());
            }
        }
        timed(&server, "/api/metrics/query", &[("q", query)]).await;
    }
    // A refusal, not a silent half: the finest grid over all spans cannot fit.
    let answer = timed(&server, "/api/metrics/query_range", &[("q", queries[0]), ("step", "400ms")]).await;
    assert!(answer.status == 422 || answer.header(PARTIAL).is_some(), "{}: {} bytes", answer.status, answer.body.len());
    // Many at once.
    let target = path("/api/metrics/query_range", &[("q", queries[1]), ("step", "400ms")]);
    let all = futures::future::join_all((0..12).map(|_| server.get(&target))).await;
    for answer in all {
        assert!(matches!(answer.status, 200 | 422 | 429 | 504), "{}: {}", answer.status, answer.text());
    }
    for query in ["{}", "{} >> {}", "{} ~ {}", "{} | by(span:id)", "{} | select(span.user.id, name)"] {
        let parameters = [("q", query), ("limit", "262144"), ("spss", "100"), ("since", "24h")];
        timed(&server, "/api/search", &parameters).await;
    }
    still_serves(&server, &shop).await;
    assert!(peak(&server) < 700 * MIB, "{} bytes with 512 MiB allowed", peak(&server));
}
