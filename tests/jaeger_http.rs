//! Jaeger's HTTP port of a running server: what OTLP senders sent is found, shown, counted and archived, live and from blocks.

use serde_json::{Value as Json, json};
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{Span, Status};

use crate::harness::otlp::{attribute, new_id, now, of_service, span_id};
use crate::harness::server::{Answer, Server, Setup};
use crate::harness::{SOON, eventually};

const SECOND: u64 = 1_000_000_000;
const TRACES: u64 = 6;

fn setup() -> Setup {
    Setup::new().with("PORTS_JAEGER", "0")
}

fn url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.port("Jaeger API"))
}

async fn get(server: &Server, path: &str) -> Answer {
    Answer::of(server.client.get(url(server, path))).await.unwrap_or_else(|error| panic!("GET {path}: {error:?}"))
}

async fn json(server: &Server, path: &str) -> Json {
    let answer = get(server, path).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{path}: {}", answer.text());
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.text()))
}

/// `front` calls `back`, which fails in every third trace.
fn call(id: u128, n: u64, start: u64) -> ExportTraceServiceRequest {
    let trace_id = id.to_be_bytes().to_vec();
    let span = |number: u64, parent: u64, name: &str, kind, from: u64, to: u64| Span {
        trace_id: trace_id.clone(),
        span_id: span_id(number),
        parent_span_id: if parent == 0 { Vec::new() } else { span_id(parent) },
        name: name.into(),
        kind,
        start_time_unix_nano: start + from,
        end_time_unix_nano: start + to,
        attributes: vec![attribute("order", Value::IntValue(n as i64))],
        status: Some(Status::default()),
        ..Span::default()
    };
    let failed = Status { code: 2, message: "no such item".into() };
    let mut serve = span(3, 2, "serve", 2, 200_000, 800_000);
    serve.status = Some(if n.is_multiple_of(3) { failed } else { Status::default() });
    let front = vec![span(1, 0, "GET /", 2, 0, 1_000_000), span(2, 1, "call back", 3, 100_000, 900_000)];
    ExportTraceServiceRequest { resource_spans: vec![of_service("front", front), of_service("back", vec![serve])] }
}

/// Trace ids as the old API writes them, oldest first.
async fn send(server: &Server) -> Vec<String> {
    let start = now() - 60 * SECOND;
    let mut ids = Vec::new();
    for n in 0..TRACES {
        let id = new_id();
        server.send(&call(id, n, start + n * SECOND)).await;
        ids.push(format!("{id:032x}"));
    }
    ids
}

fn found(answer: &Json) -> Vec<&str> {
    answer["data"].as_array().expect("a list").iter().map(|trace| trace["traceID"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn what_was_sent_is_shown_live_and_from_blocks() {
    let server = setup().flushing_often().start().await;
    let ids = send(&server).await;
    check(&server, &ids).await;
    server.until_flushed(3 * TRACES as usize).await;
    check(&server, &ids).await;
    assert!(server.metric("spanhouse_querier_requests_total").await.is_some_and(|requests| requests > 20.0));
    server.terminate(SOON).await;
}

async fn check(server: &Server, ids: &[String]) {
    let services = json!({"data": ["back", "front"], "total": 2, "limit": 0, "offset": 0, "errors": null});
    assert_eq!(json(server, "/api/services").await, services);
    assert_eq!(json(server, "/api/services/front/operations").await["data"], json!(["GET /", "call back"]));
    assert_eq!(
        json(server, "/api/v3/operations?service=back").await,
        json!({"operations": [{"name": "serve", "spanKind": "server"}]})
    );

    let newest_first: Vec<&str> = ids.iter().rev().map(String::as_str).collect();
    assert_eq!(found(&json(server, "/api/traces?service=front&lookback=1h").await), newest_first);
    assert_eq!(found(&json(server, "/api/traces?service=back&limit=2").await), newest_first[..2]);
    assert_eq!(
        found(&json(server, "/api/traces?service=back&tags=%7B%22error%22:%22true%22%7D").await),
        [ids[3].as_str(), &ids[0]]
    );
    assert_eq!(found(&json(server, "/api/traces?service=front&tag=order:4&operation=call+back").await), [ids[4].as_str()]);
    assert_eq!(found(&json(server, &format!("/api/traces?traceID={}&traceID=1", ids[1])).await), [ids[1].as_str()]);

    let trace = json(server, &format!("/api/traces/{}", ids[0].to_uppercase())).await;
    let spans = trace["data"][0]["spans"].as_array().expect("spans");
    let names: Vec<&str> = spans.iter().map(|span| span["operationName"].as_str().expect("a name")).collect();
    assert_eq!(names.len(), 3);
    let serve = &spans[names.iter().position(|name| *name == "serve").expect("the last call")];
    assert_eq!(serve["references"], json!([{"refType": "CHILD_OF", "traceID": ids[0], "spanID": "0000000000000002"}]));
    let process = serve["processID"].as_str().expect("a process");
    assert_eq!(trace["data"][0]["processes"][process]["serviceName"], "back");

    let edges = json(server, "/api/dependencies?lookback=3600000").await;
    let edge = |parent: &str, child: &str| {
        edges["data"]
            .as_array()
            .expect("edges")
            .iter()
            .find(|edge| edge["parent"] == parent && edge["child"] == child)
            .cloned()
    };
    let across = edge("front", "back").expect("front calls back");
    assert_eq!((&across["callCount"], &across["errorCount"]), (&json!(6), &json!(2)));
    assert!(across["latency"]["p95"].as_f64().is_some_and(|millis| (0.5..0.7).contains(&millis)), "{across}");

    let times = "query.startTimeMin=2000-01-01T00:00:00Z&query.startTimeMax=2100-01-01T00:00:00Z";
    let summaries = json(server, &format!("/api/v3/trace-summaries?query.serviceName=back&{times}")).await;
    let newest = &summaries["summaries"][0];
    assert_eq!((&newest["traceId"], &newest["spanCount"]), (&json!(ids[5]), &json!(3)));
    assert_eq!((&newest["rootServiceName"], &newest["rootOperationName"]), (&json!("front"), &json!("GET /")));
    let groups =
        json(server, &format!("/api/v3/traces/{}", ids[5])).await["result"]["resourceSpans"].as_array().map(Vec::len);
    assert_eq!(groups, Some(2));

    let end = now() / 1_000_000 + 60_000;
    let figures = format!("service=back&endTs={end}&lookback=600000&step=60000&ratePer=600000");
    let errors = json(server, &format!("/api/metrics/errors?groupByOperation=true&{figures}")).await;
    assert_eq!(
        (&errors["name"], &errors["metrics"][0]["labels"][1]["value"]),
        (&json!("service_operation_error_rate"), &json!("serve"))
    );
    let points = errors["metrics"][0]["metricPoints"].as_array().expect("points");
    let last = points.last().and_then(|point| point["gaugeValue"]["doubleValue"].as_f64()).expect("a number");
    assert!((last - 1.0 / 3.0).abs() < 1e-9, "{last}");
}

#[tokio::test]
async fn an_archived_trace_outlives_its_deletion() {
    let server = setup().with("JAEGER_ARCHIVE", "-archive").with("DELETION_ENABLED", "true").flushing_often().start().await;
    let ids = send(&server).await;
    server.until_flushed(3 * TRACES as usize).await;
    let archive = async |id: &str| {
        let request = server.client.post(url(&server, &format!("/api/archive/{id}")));
        Answer::of(request).await.expect("an answer")
    };
    let archived = archive(&ids[0]).await;
    assert_eq!(
        (archived.status, archived.text().as_str()),
        (200, r#"{"data":[],"total":0,"limit":0,"offset":0,"errors":[]}"#)
    );
    assert_eq!(archive("1").await.status, 404);
    for id in &ids[..2] {
        let deleted =
            Answer::of(server.client.delete(server.query_url(&format!("/api/traces/{id}")))).await.expect("an answer");
        assert!(deleted.status < 300, "{}", deleted.text());
    }
    // The first is in the archive, the second is nowhere.
    let kept = json(&server, &format!("/api/traces/{}", ids[0])).await;
    assert_eq!(kept["data"][0]["spans"].as_array().map(Vec::len), Some(3));
    assert_eq!(get(&server, &format!("/api/traces/{}", ids[1])).await.status, 404);
    // A search looks at what is live in the tenant, not at its archive.
    let left = json(&server, "/api/traces?service=front&lookback=1h").await;
    assert_eq!(left["data"].as_array().map(Vec::len), Some(TRACES as usize - 2));
    server.terminate(SOON).await;
}

#[tokio::test]
async fn a_ui_is_served_below_a_base_path() {
    let setup = setup().with("JAEGER_BASE_PATH", "/jaeger");
    let ui = setup.home().join("ui");
    std::fs::create_dir_all(ui.join("static")).expect("a folder");
    std::fs::write(ui.join("index.html"), "<base href=\"/\"/>JAEGER_VERSION = DEFAULT_VERSION;").expect("a page");
    std::fs::write(ui.join("static/a.js"), "let a;").expect("a file");
    let server = setup.clone().with("JAEGER_UI_DIR", &ui.to_string_lossy()).start().await;
    let page = get(&server, "/jaeger/search?service=a").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.text().starts_with("<base href=\"/jaeger/\"/>JAEGER_VERSION = {\"gitCommit\":"), "{}", page.text());
    assert_eq!(get(&server, "/jaeger").await.status, 200, "a redirect is followed");
    assert_eq!(get(&server, "/jaeger/static/a.js").await.text(), "let a;");
    assert_eq!(get(&server, "/jaeger/static/..%2f..%2fdata").await.status, 404);
    assert_eq!(get(&server, "/api/services").await.status, 404);
    assert_eq!(json(&server, "/jaeger/api/services").await["data"], json!([]));
    // Replaced while the server runs.
    std::fs::write(ui.join("index.html"), "another").expect("a page");
    eventually("the new page", async || (get(&server, "/jaeger/").await.text() == "another").then_some(())).await;
    server.terminate(SOON).await;
}

#[tokio::test]
async fn a_wrong_ui_folder_is_told_at_the_start() {
    let mut process = setup().with("JAEGER_UI_DIR", "/nowhere/at/all").spawn();
    let status = process.ended(SOON).await;
    assert!(!status.success());
    eventually("the reason", async || process.log().contains("/nowhere/at/all/index.html is not readable").then_some(()))
        .await;
}
