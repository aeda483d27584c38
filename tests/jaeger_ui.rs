//! Jaeger UI, built from its own repository, in a headless Chromium against the real binary: every page shows what was sent, draws it,
//! and neither fails itself nor gets an error from a request.
//!
//! Runs where `SPANHOUSE_TEST_JAEGER_UI_DIR` names the folder of a built UI; needs Chromium, Node and the npm package puppeteer-core
//! in `SPANHOUSE_TEST_BROWSER_DIR`.

use std::process::Command;

use serde_json::Value as Json;

use crate::harness::server::{Answer, Setup};
use crate::harness::{SOON, eventually, tools};

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_jaeger_ui() {
    let Some(ui) = std::env::var_os("SPANHOUSE_TEST_JAEGER_UI_DIR") else {
        return tools::not_asked("every_page_of_jaeger_ui", "SPANHOUSE_TEST_JAEGER_UI_DIR names no built Jaeger UI");
    };
    let dir = match tools::browser() {
        Ok(dir) => dir,
        Err(why) => return tools::not_run("every_page_of_jaeger_ui", &why),
    };
    let setup = Setup::new()
        .with("PORTS_JAEGER", "0")
        .with("JAEGER_UI_DIR", &ui.to_string_lossy())
        .with("JAEGER_ARCHIVE", "-archive");
    let server = setup.start().await;
    let endpoint = format!("http://{}", server.ports.otlp);
    setup.said(&["loadgen", "--endpoint", &endpoint, "--count", "3000", "--seed", "1"]);
    let base = format!("http://{}", server.port("Jaeger API"));
    let ids: Vec<String> = eventually("two traces", async || {
        let found = Answer::of(server.client.get(format!("{base}/api/traces?service=frontend&limit=2"))).await.ok()?;
        let found: Json = serde_json::from_slice(&found.body).ok()?;
        let ids: Vec<String> =
            found["data"].as_array()?.iter().filter_map(|t| Some(t["traceID"].as_str()?.to_owned())).collect();
        (ids.len() == 2).then_some(ids)
    })
    .await;

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/jaeger_ui.mjs");
    let mut look = Command::new("node");
    look.arg(script).arg(&base).args(&ids).current_dir(dir);
    let output = tokio::task::spawn_blocking(move || look.output()).await.expect("a thread").expect("node runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pages = String::from_utf8(output.stdout).expect("text");
    let pages: Vec<Json> = pages.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let expected: [(&str, &[&str], u64); 7] = [
        ("search", &["20 Traces", "frontend", "Spans", "Service (2"], 0),
        ("tags", &["Error", "frontend"], 0),
        ("trace", &["Trace Timeline", "Archive Trace", "Total Spans", "frontend"], 0),
        ("compare", &["VS", "Spans:", "frontend"], 10),
        ("dependencies", &["Hierarchical Layout", "frontend", "checkout", "payment"], 20),
        ("monitor", &["P95 Latency", "Request rate", "Error rate", "Impact", "req/s"], 0),
        ("deep", &["Downstream hops", "cart", "checkout"], 10),
    ];
    assert_eq!(pages.len(), expected.len());
    for (page, (name, texts, edges)) in pages.iter().zip(expected) {
        assert_eq!(page["name"], name);
        assert_eq!(page["wrong"], Json::Array(Vec::new()), "{name}");
        let text = page["text"].as_str().expect("a text");
        for expected in texts {
            assert!(text.contains(expected), "{name} does not say {expected:?}: {text}");
        }
        assert!(page["edges"].as_u64() >= Some(edges), "{name} draws {} edges", page["edges"]);
    }
    server.terminate(SOON).await;
}
