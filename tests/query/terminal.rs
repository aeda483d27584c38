//! `spanhouse query` and `spanhouse bench` as somebody at a terminal runs them, against a running server.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value as Json;

use super::damage::{blocks, damage_pages};
use super::shop::{Shop, fails};
use crate::harness::server::{Server, Setup};

/// Runs the binary on a thread of its own: the server lives in another process, but its output is read by tasks here.
async fn run(server: &Server, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanhouse"));
    command.args(arguments).arg("--url").arg(server.query_url(""));
    tokio::task::spawn_blocking(move || command.output().expect("the binary runs")).await.expect("it ends")
}

async fn said(server: &Server, arguments: &[&str]) -> String {
    let output = run(server, arguments).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

async fn refused(server: &Server, arguments: &[&str]) -> String {
    let output = run(server, arguments).await;
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_shows_what_is_stored() {
    let server = Setup::new().start().await;
    let shop = Shop::new();
    shop.send_all(&server).await;
    let (newest, spans) = shop.traces.last().expect("a trace");
    let id = format!("{newest:032x}");

    let table = said(&server, &["query", "search", "{}", "--limit", "5"]).await;
    let rows = table.lines().filter(|line| shop.traces.iter().any(|(id, _)| line.contains(&format!("{id:032x}"))));
    assert_eq!(rows.count(), 5, "{table}");
    assert!(table.contains(&id), "the newest is missing: {table}");
    let json = said(&server, &["query", "search", "{ status = error }", "--limit", "100", "--json"]).await;
    let json: Json = serde_json::from_str(&json).expect("JSON");
    let failed = (0..shop.traces.len()).filter(|n| fails(*n)).count();
    assert_eq!(json["traces"].as_array().map(Vec::len), Some(failed));

    let waterfall = said(&server, &["query", "trace", &id.to_uppercase()]).await;
    assert!(waterfall.starts_with(&format!("Trace {id}")) && waterfall.contains("7 spans, 3 services"), "{waterfall}");
    for span in spans {
        assert!(waterfall.contains(&span.name), "{} is missing: {waterfall}", span.name);
    }

    let tags = said(&server, &["query", "tags", "--scope", "span"]).await;
    assert!(tags.contains("user.id") && !tags.contains("service.name"), "{tags}");
    let values = said(&server, &["query", "values", "resource.service.name"]).await;
    assert!(["frontend", "checkout", "mail"].iter().all(|service| values.contains(service)), "{values}");
    let chart = said(&server, &["query", "metrics", "{} | rate() by (resource.service.name)", "--step", "10s"]).await;
    assert!(["frontend", "checkout", "mail"].iter().all(|service| chart.contains(service)), "{chart}");
    let count = said(&server, &["query", "metrics", "{} | count_over_time()", "--instant", "--json"]).await;
    let count: Json = serde_json::from_str(&count).expect("JSON");
    assert_eq!(count["series"][0]["value"].as_f64(), Some(shop.spans() as f64), "{count}");

    assert!(refused(&server, &["query", "search", "{"]).await.contains("invalid TraceQL query"));
    assert!(refused(&server, &["query", "trace", "1"]).await.contains("nothing is stored of trace 1"));
    assert!(refused(&server, &["query", "trace", "xyz"]).await.contains("is no trace id"));
    // Without traces there is nothing to measure, which is said, not guessed.
    let bench = run(&Setup::new().start().await, &["bench"]).await;
    let error = String::from_utf8_lossy(&bench.stderr);
    assert!(!bench.status.success() && error.contains("has no traces of the last week"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_what_loadgen_sent() {
    let server = Setup::new().with("PORTS_JAEGER", "0").start().await;
    let output = Command::new(env!("CARGO_BIN_EXE_spanhouse"))
        .args(["loadgen", "--count", "20000", "--json", "--endpoint", server.otlp_url().trim_end_matches("/v1/traces")])
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let jaeger = format!("http://{}", server.port("Jaeger API"));
    let bench = said(&server, &["bench", "--repeat", "2", "--json", "--jaeger-url", &jaeger]).await;
    let report: Json = serde_json::from_str(&bench).expect("JSON");
    let queries = report["queries"].as_array().expect("queries");
    let of_jaeger = |query: &&Json| query["query"].as_str().is_some_and(|text| text.starts_with("Jaeger: "));
    assert!(queries.len() > 23 && queries.iter().filter(of_jaeger).count() > 7, "{report}");
    for query in queries {
        assert!(query["complaint"].is_null() && query["median_ms"].as_f64() > Some(0.0), "{query}");
        // Nobody has no traces, and payments seldom fail: not in every run of this size.
        let text = query["query"].as_str().unwrap_or_default();
        let (found, none) = (query["results"].as_u64() > Some(0), text.contains("nobody"));
        assert!(found != none || text.contains("payment"), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_whole_says_so() {
    let setup = Setup::new().expecting("damaged");
    let shop = Shop::new();
    let server = setup.start().await;
    shop.send_all(&server).await;
    server.terminate(Duration::from_secs(30)).await;
    for block in blocks(&setup) {
        let mut bytes = std::fs::read(&block).expect("a block");
        damage_pages(&mut bytes, |_| true);
        std::fs::write(&block, bytes).expect("the damage is done");
    }
    let server = setup.start().await;
    let table = said(&server, &["query", "search", "{ name != `` }"]).await;
    assert!(table.contains("Not the whole answer: ") && table.contains("damaged"), "{table}");
    let id = format!("{:032x}", shop.traces[0].0);
    let error = refused(&server, &["query", "trace", &id]).await;
    assert!(error.contains("could be read") && error.contains("damaged"), "{error}");
    for arguments in [&["query", "search", "{ name != `` }", "--json"][..], &["query", "trace", &id, "--json"]] {
        let output = run(&server, arguments).await;
        assert!(output.status.success(), "{arguments:?}");
        serde_json::from_slice::<Json>(&output.stdout).expect("JSON and nothing else");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.starts_with("Not the whole answer: ") && error.contains("damaged"), "{arguments:?}: {error}");
    }
}
