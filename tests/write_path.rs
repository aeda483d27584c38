//! What a sender sends, a reader gets: at once, after the flush, after a restart; and what must be refused is.

use std::io::Write;

use prost::Message;
use serde_json::{Value as Json, json};
use spanhouse_proto::google::rpc::Status;
use spanhouse_proto::otlp_trace::Span;

use crate::harness::otlp::{JSON, PROTOBUF, new_id, now, of_service, request, response, span, trace};
use crate::harness::query::{expect_same_spans, spans, v2};
use crate::harness::server::{Server, Setup};

/// Ends in blocks soon.
fn quick() -> Setup {
    Setup::new().with("FLUSH_MAX_AGE", "1s")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_there_at_once_and_in_a_block_and_after_a_restart() {
    let setup = quick();
    let server = setup.start().await;
    let (id, other) = (new_id(), new_id());
    let sent = trace(id, 20);
    server.send(&request(sent[..11].to_vec())).await;
    // No waiting: what is acknowledged is visible.
    server.expect_whole(id, &sent[..11]).await;
    server.until_flushed(11).await;
    server.expect_whole(id, &sent[..11]).await;
    // The rest of the trace is live while its beginning is in a block.
    server.send(&request(sent[11..].to_vec())).await;
    server.expect_whole(id, &sent).await;
    server.until_flushed(20).await;
    server.expect_whole(id, &sent).await;
    server.kill();
    let server = setup.start().await;
    server.expect_whole(id, &sent).await;
    assert!(server.trace(other).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_live_at_a_kill_is_live_again() {
    let setup = Setup::new();
    let server = setup.start().await;
    let sent: Vec<(u128, Vec<Span>)> = (0..30).map(|n| new_id_with_spans(n + 1)).collect();
    for (_, spans) in &sent {
        server.send(&request(spans.clone())).await;
    }
    server.kill();
    let server = setup.start().await;
    for (id, spans) in &sent {
        server.expect_whole(*id, spans).await;
    }
    let total: usize = sent.iter().map(|(_, spans)| spans.len()).sum();
    assert_eq!(server.metric("spanhouse_ingester_replayed_spans_total").await, Some(total as f64));
}

fn new_id_with_spans(spans: u64) -> (u128, Vec<Span>) {
    let id = new_id();
    (id, trace(id, spans))
}

/// Spans of a JSON answer of either version.
fn json_spans(answer: &Json) -> Vec<&Json> {
    let resources = answer.get("trace").map_or(&answer["batches"], |trace| &trace["resourceSpans"]);
    let resources = resources.as_array().expect("resources").iter();
    let scopes = resources.flat_map(|r| r["scopeSpans"].as_array().expect("scopes"));
    scopes.flat_map(|s| s["spans"].as_array().expect("spans")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_and_both_forms_hold_the_same() {
    let server = quick().start().await;
    let (id, sent) = new_id_with_spans(12);
    let mut two = request(sent[..6].to_vec());
    two.resource_spans.push(of_service("payment", sent[6..].to_vec()));
    server.send(&two).await;
    let mut json_before = None;
    for _ in ["live", "in blocks"] {
        let (v1, v2) = (server.trace_v1(id).await.expect("a trace"), server.trace(id).await);
        assert_eq!(v1, v2);
        expect_same_spans(spans(&v2), &sent);
        let json = [server.trace_json(id, 1).await, server.trace_json(id, 2).await];
        let [one, two] = json.each_ref().map(json_spans);
        assert_eq!(one, two);
        assert_eq!(one.len(), sent.len());
        for (json, span) in one.iter().zip(spans(&v2)) {
            expect_same(json, span);
        }
        // Where spans lie must not show.
        let names: Vec<String> = one.iter().map(|span| span["name"].to_string()).collect();
        assert_eq!(*json_before.get_or_insert(names.clone()), names);
        server.until_flushed(sent.len()).await;
    }
}

/// The JSON form of what matters most; the form of every field has tests of its own in the querier.
fn expect_same(json: &Json, span: &Span) {
    assert_eq!(json["name"], json!(span.name));
    assert_eq!(json["startTimeUnixNano"], json!(span.start_time_unix_nano.to_string()));
    assert_eq!(json["endTimeUnixNano"], json!(span.end_time_unix_nano.to_string()));
    let count = |name: &str| json[name].as_array().map_or(0, Vec::len);
    assert_eq!(count("attributes"), span.attributes.len());
    assert_eq!((count("events"), count("links")), (span.events.len(), span.links.len()));
    for (json, sent) in json["attributes"].as_array().into_iter().flatten().zip(&span.attributes) {
        assert_eq!(json["key"], json!(sent.key));
        assert!(json["value"].is_object());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_spans_are_refused_by_reason_and_the_rest_is_kept() {
    let server = quick().start().await;
    let (id, sent) = new_id_with_spans(5);
    let mut spans = sent.clone();
    spans.insert(0, Span { trace_id: vec![0; 16], ..span(id, 90) });
    spans.insert(2, Span { trace_id: vec![1; 8], ..span(id, 91) });
    spans.insert(4, Span { span_id: vec![0; 8], ..span(id, 92) });
    spans.push(Span { span_id: vec![], ..span(id, 93) });
    let answer = server.post(&[PROTOBUF], request(spans).encode_to_vec()).await;
    assert_eq!(answer.status, 200);
    let partial = response(&answer).partial_success.expect("partial success");
    assert_eq!(partial.rejected_spans, 4);
    assert_eq!(partial.error_message, "spans refused by reason: invalid_trace_id: 2, invalid_span_id: 2");
    server.expect_whole(id, &sent).await;
    assert_eq!(server.metric("spanhouse_ingester_spans_refused_total").await, Some(4.0));
    server.until_flushed(5).await;
    server.expect_whole(id, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bytes_get_400_and_nothing_is_kept() {
    let setup = quick();
    let server = setup.start().await;
    let (id, sent) = new_id_with_spans(3);
    let good = request(sent.clone()).encode_to_vec();
    let cut = &good[..good.len() - 7];
    let gzip = ("content-encoding", "gzip");
    for (headers, body) in [
        (vec![PROTOBUF], cut),
        (vec![PROTOBUF], &b"\xff\xff\xff\xff"[..]),
        (vec![PROTOBUF], b"<html>"),
        (vec![PROTOBUF, gzip], &good),
        (vec![PROTOBUF, ("content-encoding", "br")], &good),
        (vec![JSON], &good),
        (vec![JSON], b"{\"resourceSpans\":[{]}"),
        (vec![JSON], b"[]"),
    ] {
        let answer = server.post(&headers, body.to_vec()).await;
        assert_eq!(answer.status, 400, "{headers:?} {}", answer.text());
        if headers[0] == PROTOBUF {
            let status = Status::decode(&answer.body[..]).expect("a Status");
            assert!(status.code == 3 && !status.message.is_empty(), "{status:?}");
        } else {
            let status: Json = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(status["code"], 3, "{status}");
        }
    }
    assert_eq!(server.post(&[("content-type", "text/plain")], good.clone()).await.status, 415);
    assert_eq!(server.get("/api/echo").await.status, 200);
    assert!(server.trace(id).await.is_empty());
    server.kill();
    let server = setup.start().await;
    assert_eq!(server.metric("spanhouse_ingester_replayed_spans_total").await, Some(0.0));
    assert!(server.trace(id).await.is_empty());
    // And an empty request is fine.
    server.send(&Default::default()).await;
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("memory")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_survives_a_replay() {
    let setup = Setup::new();
    let server = setup.start().await;
    let mut all = Vec::new();
    let plain: fn(&[u8]) -> Vec<u8> = <[u8]>::to_vec;
    for (encoding, compress) in
        [("identity", plain), ("gzip", gzip as _), ("x-gzip", gzip as _), ("zstd", zstd as _), ("deflate", deflate as _)]
    {
        let (id, sent) = new_id_with_spans(7);
        let body = compress(&request(sent.clone()).encode_to_vec());
        let answer = server.post(&[PROTOBUF, ("content-encoding", encoding)], body).await;
        assert_eq!(answer.status, 200, "{encoding}: {}", answer.text());
        server.expect_whole(id, &sent).await;
        all.push((id, sent));
    }
    // The WAL has the bodies as they came.
    server.kill();
    let server = setup.start().await;
    for (id, sent) in all {
        server.expect_whole(id, &sent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_as_senders_write_it() {
    let setup = Setup::new();
    let server = setup.start().await;
    let id = new_id();
    let start = now();
    // Enum names, numbers as text, hexadecimal ids, unknown members: all allowed by OTLP/JSON.
    let body = json!({"resourceSpans": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
        "scopeSpans": [{"scope": {"name": "tests"}, "somethingNew": 1, "spans": [{
            "traceId": format!("{id:032X}"), "spanId": "00000000000000Aa", "parentSpanId": "",
            "name": "GET", "kind": 2, "startTimeUnixNano": start.to_string(), "endTimeUnixNano": (start + 5).to_string(),
            "attributes": [
                {"key": "n", "value": {"intValue": "-9223372036854775808"}},
                {"key": "m", "value": {"intValue": 7}},
                {"key": "d", "value": {"doubleValue": 0.1}},
                {"key": "list", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"boolValue": true}]}}}
            ],
            "status": {"code": 2, "message": "no"}
        }]}]
    }]});
    let answer = server.post(&[JSON], body.to_string()).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"partialSuccess\":{}}"));
    server.kill();
    let server = setup.start().await;
    let found = server.trace(id).await;
    let found: Vec<&Span> = spans(&found).collect();
    let [found] = found[..] else { panic!("{found:?}") };
    assert_eq!((found.span_id.as_slice(), found.name.as_str(), found.kind), (&[0, 0, 0, 0, 0, 0, 0, 0xaa][..], "GET", 2));
    assert_eq!((found.start_time_unix_nano, found.end_time_unix_nano), (start, start + 5));
    assert_eq!(found.attributes.len(), 4);
    assert_eq!(found.status.as_ref().map(|s| (s.code, s.message.as_str())), Some((2, "no")));
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_see_each_other() {
    let setup = quick().with("MULTITENANCY_ENABLED", "true");
    let server = setup.start().await;
    let (id, ours) = new_id_with_spans(4);
    let theirs: Vec<Span> = (11..=13).map(|n| span(id, n)).collect();
    let body = |spans: &[Span]| request(spans.to_vec()).encode_to_vec();
    let org = |name| ("x-scope-orgid", name);
    // Not 401, as for reads: so the reference answers.
    assert_eq!(server.post(&[PROTOBUF], body(&ours)).await.status, 503);
    assert_eq!(server.post(&[PROTOBUF, org("a/b")], body(&ours)).await.status, 400);
    for (tenant, spans) in [("team-A", &ours), ("team-a", &theirs)] {
        let answer = server.post(&[PROTOBUF, org(tenant)], body(spans)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let path = format!("/api/v2/traces/{id:032x}");
    assert_eq!(server.get(&path).await.status, 401);
    let check = async |server: &Server| {
        expect_same_spans(spans(&server.trace_as(id, &[org("team-A")]).await), &ours);
        expect_same_spans(spans(&server.trace_as(id, &[org("team-a")]).await), &theirs);
        let both = server.trace_as(id, &[org("team-A|team-a")]).await;
        assert_eq!(spans(&both).count(), ours.len() + theirs.len());
        assert!(server.trace_as(id, &[org("nobody")]).await.is_empty());
    };
    check(&server).await;
    server.until_flushed(7).await;
    check(&server).await;
    server.kill();
    check(&setup.start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limits_get_413() {
    let server =
        Setup::new().with("INGEST_MAX_BODY_BYTES", "64KiB").with("INGEST_MAX_DECODED_BYTES", "128KiB").start().await;
    let (id, sent) = new_id_with_spans(1);
    let mut large = request(sent);
    large.resource_spans[0].scope_spans[0].spans[0].trace_state = "x".repeat(100 << 10);
    let answer = server.post(&[PROTOBUF], large.encode_to_vec()).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
    large.resource_spans[0].scope_spans[0].spans[0].trace_state = "x".repeat(4 << 20);
    let bomb = gzip(&large.encode_to_vec());
    assert!(bomb.len() < 64 << 10);
    let answer = server.post(&[PROTOBUF, ("content-encoding", "gzip")], bomb).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(Status::decode(&answer.body[..]).expect("a Status").message.contains("131072"));
    assert!(server.trace(id).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_any_width_and_case_and_unknown_ones() {
    let server = quick().start().await;
    let id = 0xabc_0000_dead_beef_u128;
    let sent = trace(id, 3);
    server.send(&request(sent.clone())).await;
    for _ in ["live", "in blocks"] {
        for written in ["abc0000deadbeef", "ABC0000DEADBEEF", "0abc0000DeadBeef", "00000000000000000abc0000deadbeef"] {
            let answer = server.get_with(&format!("/api/v2/traces/{written}"), &[("accept", "application/protobuf")]).await;
            expect_same_spans(spans(&v2(&answer)), &sent);
        }
        server.until_flushed(3).await;
    }
    let unknown = new_id();
    let answer = server.get(&format!("/api/traces/{unknown:032x}")).await;
    assert_eq!((answer.status, answer.body.len()), (404, 0));
    assert!(server.trace(unknown).await.is_empty());
    for bad in ["xyz", "0123456789abcdef0123456789abcdef0"] {
        assert_eq!(server.get(&format!("/api/traces/{bad}")).await.status, 400);
        assert_eq!(server.get(&format!("/api/v2/traces/{bad}")).await.status, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_leave_out_blocks_but_never_live_data() {
    let server = quick().start().await;
    let (id, sent) = new_id_with_spans(4);
    server.send(&request(sent.clone())).await;
    let now = now() / 1_000_000_000;
    let count = async |start: u64, end: u64| {
        let path = format!("/api/v2/traces/{id:032x}?start={start}&end={end}");
        spans(&v2(&server.get_with(&path, &[("accept", "application/protobuf")]).await)).count()
    };
    // Asked before the cut: what is live is in the answer whatever the hint.
    let live = count(now - 7200, now - 3600).await;
    assert!(live == 4 || server.metric("spanhouse_ingester_live_spans").await == Some(0.0), "{live}");
    server.until_flushed(4).await;
    assert_eq!(count(now - 60, now + 60).await, 4);
    assert_eq!(count(now - 7200, now - 3600).await, 0);
    assert_eq!(server.get(&format!("/api/v2/traces/{id:032x}?start=9&end=5")).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_any_age_are_kept_exactly() {
    let setup = quick();
    let server = setup.start().await;
    let id = new_id();
    let hour = 3_600_000_000_000;
    let starts = [0, 1, now() - 24 * hour, now() - 400 * 24 * hour, now() + 30 * hour, 1 << 63, u64::MAX];
    let sent: Vec<Span> = (1..)
        .zip(starts)
        .map(|(n, start)| Span { start_time_unix_nano: start, end_time_unix_nano: start.wrapping_add(7), ..span(id, n) })
        .collect();
    server.send(&request(sent.clone())).await;
    server.expect_whole(id, &sent).await;
    server.until_flushed(sent.len()).await;
    server.expect_whole(id, &sent).await;
    server.kill();
    setup.start().await.expect_whole(id, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resent_request_does_not_show_twice() {
    let server = quick().start().await;
    let (id, sent) = new_id_with_spans(6);
    for _ in 0..3 {
        server.send(&request(sent.clone())).await;
    }
    server.expect_whole(id, &sent).await;
    server.until_metric("spanhouse_ingester_live_spans", |live| live == 0.0).await;
    server.send(&request(sent.clone())).await;
    server.expect_whole(id, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_tells_how_it_does() {
    let server = quick().start().await;
    server.send(&request(trace(new_id(), 3))).await;
    assert!(server.trace(new_id()).await.is_empty());
    server.until_flushed(3).await;
    assert_eq!(server.get("/ready").await.text(), "ready\n");
    assert_eq!(server.get("/api/echo").await.text(), "echo\n");
    let build: Json = serde_json::from_slice(&server.get("/api/status/buildinfo").await.body).expect("JSON");
    assert!(build["version"].as_str().is_some_and(|version| !version.is_empty()), "{build}");
    let status = server.get("/status").await.text();
    for part in ["spanhouse, version", "ingester", "Running", "/api/v2/traces/{traceID}", "max_age: 1s", "OTLP/gRPC"] {
        assert!(status.contains(part), "no {part} in {status}");
    }
    let metrics = server.get("/metrics").await;
    assert!(metrics.header("content-type").is_some_and(|kind| kind.starts_with("application/openmetrics-text")));
    let may_be_zero = ["spanhouse_ingester_live_spans", "spanhouse_ingester_memory_used_bytes"];
    for name in [
        "spanhouse_ingester_spans_received_total",
        "spanhouse_ingester_requests_total",
        "spanhouse_ingester_live_spans",
        "spanhouse_ingester_memory_used_bytes",
        "spanhouse_ingester_flushes_total",
        "spanhouse_ingester_flush_seconds_count",
        "spanhouse_ingester_blocks_written_total",
        "spanhouse_ingester_wal_records_total",
        "spanhouse_ingester_wal_sync_seconds_count",
        "spanhouse_ingester_wal_size_bytes",
        "spanhouse_querier_requests_total",
        "spanhouse_querier_request_duration_seconds_count",
        "spanhouse_store_requests_total",
    ] {
        assert!(server.metric(name).await.is_some_and(|value| value > 0.0 || may_be_zero.contains(&name)), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_generator_finds_everything_by_grpc() {
    let server = quick().start().await;
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_spanhouse"))
        .env_clear()
        .args(["loadgen", "--count", "5000", "--verify", "--protocol", "grpc", "--json"])
        .args(["--endpoint", &format!("http://{}", server.ports.grpc)])
        .args(["--query", &format!("http://{}", server.ports.query)])
        .output()
        .expect("the load generator runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
}
