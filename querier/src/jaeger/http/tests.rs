//! Requests against the router, over a real engine on a small data set. `cases` has a file for each: what is set up, the request,
//! and the whole answer.
//!
//! `UPDATE_GENERATED=1` writes the answers as they are; whoever runs it reads the difference against the specification.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use parking_lot::Mutex;
use spanhouse_common::id::TenantId;
use spanhouse_common::model::StoredSpan;
use spanhouse_common::time::{ManualClock, UnixNanos};
use tower::ServiceExt as _;

use super::*;
use crate::assemble::Trace;
use crate::jaeger::Archive;
use crate::jaeger::otlp_json::read_traces;
use crate::test_util::{FakeEngine, GivenSources, block_source};

/// Keeps nothing but the ids it was given.
#[derive(Debug, Default)]
struct Remembers(Mutex<Vec<String>>);

#[async_trait]
impl Archive for Remembers {
    fn tenant_of(&self, tenant: &TenantId) -> TenantId {
        format!("{tenant}-archive").parse().unwrap()
    }

    async fn archive(&self, tenant: &TenantId, trace: &Trace) -> Result<(), String> {
        let id = trace.spans().next().map(|span| span.trace_id).unwrap_or_default();
        if tenant.as_str() == "full" {
            return Err("no room".into());
        }
        self.0.lock().push(format!("{tenant}/{id}"));
        Ok(())
    }
}

fn spans() -> Vec<StoredSpan> {
    let mut spans = Vec::new();
    for trace in read_traces(include_bytes!("tests/data.json")).unwrap() {
        for group in trace.groups {
            for scope in group.scopes {
                let stored = |span| StoredSpan {
                    span,
                    resource: Arc::clone(&group.resource),
                    scope: Arc::clone(&scope.scope),
                    maybe_duplicate: false,
                };
                spans.extend(scope.spans.iter().cloned().map(stored));
            }
        }
    }
    spans
}

/// A router as the words of a case set it up.
async fn set_up(words: &str, ui: &Path) -> Router {
    let has = |word: &str| words.split_whitespace().any(|known| known == word);
    let sources = if has("empty") { Vec::new() } else { vec![block_source(&spans()).await] };
    let mut deps = crate::jaeger::testing::deps(Arc::new(GivenSources::new(sources)));
    deps.clock = ManualClock::at(UnixNanos::from_seconds(1_700_000_000));
    deps.settings.multitenancy = has("multitenancy");
    if has("archive") {
        deps.archive = Some(Arc::new(Remembers::default()));
    }
    if has("partial") {
        deps.engine = Arc::new(FakeEngine::partial("a block is lost"));
    }
    if has("small") {
        deps.settings.max_trace_bytes = 400;
    }
    if has("skew") {
        deps.settings.max_clock_skew_adjust = std::time::Duration::from_secs(3_600);
    }
    let queries = JaegerQueries::new(deps);
    let config_file = ["config.json", "config.js"].into_iter().find(|name| has(name)).map(|name| ui.join(name));
    let dir = has("ui").then(|| ui.to_owned()).or_else(|| has("lost").then(|| ui.join("nowhere")));
    let ui = UiSettings { dir, config_file, version: "v0.1.0".into() };
    let base_path = if has("base") { "/jaeger" } else { "" };
    router(HttpDeps { queries, base_path: base_path.into(), ui: Arc::new(ui) })
}

/// Headers that every answer has, or whose value says nothing.
const UNTOLD: [&str; 2] = ["vary", "content-length"];

async fn answer(router: Router, request: &str) -> String {
    let (head, body) = request.split_once("\n\n").unwrap_or((request.trim_end(), ""));
    let mut lines = head.lines();
    let (method, path) = lines.next().and_then(|line| line.split_once(' ')).expect("METHOD path");
    let mut builder = Request::builder().method(method).uri(path);
    for line in lines {
        let (name, value) = line.split_once(": ").expect("name: value");
        builder = builder.header(name, value);
    }
    let request = builder.body(Body::from(body.trim_end().to_owned())).unwrap();
    let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let mut headers: Vec<String> = parts
        .headers
        .iter()
        .filter(|(name, _)| !UNTOLD.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    headers.sort();
    let body = std::str::from_utf8(&body).map_or_else(|_| format!("{} bytes that are no text", body.len()), str::to_owned);
    format!("{}\n{}\n\n{body}\n", parts.status.as_u16(), headers.join("\n"))
}

/// A folder as a build of Jaeger UI leaves it, some files packed.
fn ui_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/jaeger/http/tests/ui")
}

#[tokio::test]
async fn every_case() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/jaeger/http/tests/cases");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 80, "{} has {} cases", dir.display(), paths.len());
    let update = std::env::var_os("UPDATE_GENERATED").is_some();
    let mut wrong = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let words = first.strip_prefix("with:").unwrap_or_else(|| panic!("{} begins with `with:`", path.display()));
        let (request, expected) = rest.split_once("\n=>\n").unwrap_or((rest, ""));
        let got = answer(set_up(words, &ui_folder()).await, request).await;
        if update {
            std::fs::write(&path, format!("{first}\n{}\n=>\n{got}", request.trim_end_matches('\n'))).unwrap();
        } else if got != expected {
            wrong.push(format!("{}\nexpected:\n{expected}\ngot:\n{got}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Clients pass over errors beside data, or take them for a failure: the body stays as it is.
#[tokio::test]
async fn what_is_missing_is_told_in_a_header() {
    let v3 = "query.startTimeMin=2026-01-01T00:00:00Z&query.startTimeMax=2026-01-02T00:00:00Z";
    let paths = [
        "/api/services",
        "/api/services/a/operations",
        "/api/operations?service=a",
        "/api/traces?service=a",
        "/api/dependencies",
        "/api/metrics/latencies?service=a&quantile=0.95",
        "/api/metrics/calls?service=a",
        "/api/metrics/errors?service=a&groupByOperation=true",
        "/api/quality-metrics?service=a&hours=1",
        "/api/v3/services",
        "/api/v3/operations?service=a",
        &format!("/api/v3/trace-summaries?{v3}"),
        "/api/v3/dependencies?startTime=2026-01-01T00:00:00Z&endTime=2026-01-02T00:00:00Z",
    ];
    for path in paths {
        let whole = answer(set_up("empty", &ui_folder()).await, &format!("GET {path}")).await;
        let partial = answer(set_up("partial", &ui_folder()).await, &format!("GET {path}")).await;
        assert!(partial.contains("\nx-spanhouse-partial: a block is lost\n"), "{path}: {partial}");
        assert_eq!(partial.replace("\nx-spanhouse-partial: a block is lost", ""), whole, "{path}");
    }
    let none = answer(set_up("partial", &ui_folder()).await, &format!("GET /api/v3/traces?{v3}")).await;
    assert!(none.starts_with("404\n") && none.contains("No traces found; a block is lost"), "{none}");
}

#[tokio::test]
async fn files_are_streamed_whole_and_packed_ones_go_packed() {
    use std::io::Read as _;
    let get = async |path: &str, coding: &str| {
        let request = Request::get(path).header("accept-encoding", coding).body(Body::empty()).unwrap();
        let (parts, body) = set_up("ui", &ui_folder()).await.oneshot(request).await.unwrap().into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let coding = parts.headers.get("content-encoding").map(|value| value.to_str().unwrap().to_owned());
        (parts.status.as_u16(), coding, body)
    };
    let (status, coding, packed) = get("/static/packed.js", "br, gzip").await;
    assert_eq!((status, coding.as_deref()), (200, Some("gzip")));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
    let (status, coding, plain) = get("/static/packed.js", "identity").await;
    assert_eq!((status, coding), (200, None));
    assert_eq!(text.as_bytes(), &plain[..]);
    assert!(text.starts_with("console.log"), "{text}");
    assert_eq!(get("/static/packed.js.gz", "gzip").await.0, 200);
}

#[tokio::test]
async fn links_do_not_lead_out_of_the_folder() {
    let dir = std::env::temp_dir().join(format!("spanhouse-ui-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("static")).unwrap();
    std::fs::write(dir.join("index.html"), "secret of the folder").unwrap();
    std::fs::write(dir.join("static/a.txt"), "a").unwrap();
    std::os::unix::fs::symlink("../index.html", dir.join("static/out.txt")).unwrap();
    std::os::unix::fs::symlink("a.txt", dir.join("static/in.txt")).unwrap();
    let router = set_up("ui", &dir).await;
    let get = async |path: &str| {
        let response = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        response.status().as_u16()
    };
    let found = (get("/static/in.txt").await, get("/static/out.txt").await, get("/static/../index.html").await);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(found, (200, 404, 404));
}

#[tokio::test]
async fn bodies_are_bounded() {
    let router = set_up("", &ui_folder()).await;
    let post = async |body: Vec<u8>, coding: &str| {
        let request = Request::post("/api/transform").header("content-encoding", coding).body(Body::from(body)).unwrap();
        router.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    let packed = zstd::encode_all(&include_bytes!("tests/data.json")[..], 1).unwrap();
    assert_eq!(post(packed, "zstd").await, 200);
    assert_eq!(post(vec![b' '; (20 << 20) + 1], "identity").await, 413);
    // Small as sent, and far larger read than one query may hold.
    let dense = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{}]}}]}}]}}"#, vec!["{}"; 6_000_000].join(","));
    assert_eq!(post(zstd::encode_all(dense.as_bytes(), 1).unwrap(), "zstd").await, 422);
}
