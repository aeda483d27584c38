//! Real senders: the OpenTelemetry SDKs, and the snippets of the README exactly as they stand there.
//!
//! A script sends and prints what must come back; here every trace is read back and compared span by span. Doubles travel as
//! bits and integers as text, so that JSON cannot round what is compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value as Json, json};
use spanhouse_proto::otlp_common::{AnyValue, KeyValue, any_value::Value};
use spanhouse_proto::otlp_trace::{ResourceSpans, Span};

use crate::harness::query::spans;
use crate::harness::server::{Server, Setup};
use crate::harness::tools;

pub(crate) fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a script and returns what it printed.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{err}", output.status);
    // Exporters tell of retries and lost batches on stderr and go on.
    assert!(err.trim().is_empty(), "{command:?} says:\n{err}");
    out.into_owned()
}

fn value_json(value: Option<&AnyValue>) -> Json {
    match value.and_then(|v| v.value.as_ref()) {
        None => Json::Null,
        Some(Value::StringValue(text)) => json!({ "string": text }),
        Some(Value::BoolValue(value)) => json!({ "bool": value }),
        Some(Value::IntValue(value)) => json!({ "int": value.to_string() }),
        Some(Value::DoubleValue(value)) => json!({ "double": format!("{:016x}", value.to_bits()) }),
        Some(Value::BytesValue(bytes)) => json!({ "bytes": hex(bytes) }),
        Some(Value::ArrayValue(array)) => {
            json!({ "array": array.values.iter().map(|v| value_json(Some(v))).collect::<Vec<_>>() })
        }
        Some(other) => panic!("no script sends {other:?}"),
    }
}

fn attributes_json(attributes: &[KeyValue]) -> Json {
    let map: Map<String, Json> = attributes.iter().map(|a| (a.key.clone(), value_json(a.value.as_ref()))).collect();
    assert_eq!(map.len(), attributes.len(), "a key twice");
    Json::Object(map)
}

fn service(resource: &ResourceSpans) -> Json {
    let attributes = resource.resource.iter().flat_map(|r| &r.attributes);
    attributes
        .filter(|a| a.key == "service.name")
        .map(|a| value_json(a.value.as_ref())["string"].clone())
        .next()
        .unwrap_or_default()
}

/// A span as the scripts print it.
fn span_json(span: &Span, service: &Json, scope: &str) -> Json {
    let event = |e: &spanhouse_proto::otlp_trace::span::Event| json!({ "name": e.name, "time": e.time_unix_nano.to_string(), "attributes": attributes_json(&e.attributes) });
    let link = |l: &spanhouse_proto::otlp_trace::span::Link| json!({ "trace": hex(&l.trace_id), "span": hex(&l.span_id), "attributes": attributes_json(&l.attributes) });
    let status = span.status.clone().unwrap_or_default();
    json!({
        "service": service,
        "scope": scope,
        "trace": hex(&span.trace_id),
        "span": hex(&span.span_id),
        "parent": hex(&span.parent_span_id),
        "name": span.name,
        "kind": span.kind,
        "start": span.start_time_unix_nano.to_string(),
        "end": span.end_time_unix_nano.to_string(),
        "status": { "code": status.code, "message": status.message },
        "attributes": attributes_json(&span.attributes),
        "events": span.events.iter().map(event).collect::<Vec<_>>(),
        "links": span.links.iter().map(link).collect::<Vec<_>>(),
    })
}

/// Spans by trace and span id.
fn traces(spans: impl IntoIterator<Item = Json>) -> BTreeMap<String, BTreeMap<String, Json>> {
    let mut traces: BTreeMap<String, BTreeMap<String, Json>> = BTreeMap::new();
    for span in spans {
        let id = |name: &str| span[name].as_str().expect("an id").to_owned();
        let before = traces.entry(id("trace")).or_default().insert(id("span"), span);
        assert!(before.is_none(), "a span twice: {before:?}");
    }
    traces
}

async fn read_back(server: &Server, trace: &str) -> BTreeMap<String, Json> {
    let answer = server.trace(u128::from_str_radix(trace, 16).expect("a trace id")).await;
    let mut found = Vec::new();
    for resource in &answer {
        for scope in &resource.scope_spans {
            let name = scope.scope.as_ref().map_or("", |s| s.name.as_str());
            found.extend(scope.spans.iter().map(|span| span_json(span, &service(resource), name)));
        }
    }
    traces(found).remove(trace).unwrap_or_default()
}

/// Everything that was sent is there, live, and then in blocks.
pub(crate) async fn expect_back(server: &Server, printed: &str, services: &[&str]) {
    let sent: Vec<Json> = serde_json::from_str(printed).expect("the script prints JSON");
    for service in services {
        assert!(sent.iter().any(|span| span["service"] == *service), "nothing from {service}");
    }
    let total = sent.len();
    assert!(total > 100, "{total} spans");
    let sent = traces(sent);
    for place in ["live or in blocks", "in blocks"] {
        for (trace, spans) in &sent {
            let found = read_back(server, trace).await;
            for (id, span) in spans {
                assert_eq!(found.get(id), Some(span), "span {id} of {trace}, {place}");
            }
            assert_eq!(found.len(), spans.len(), "spans of {trace}, {place}");
        }
        server.until_flushed(total).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_by_grpc_and_http() {
    let python = match tools::python() {
        Ok(python) => python,
        Err(why) => return tools::not_run("the_python_sdk_by_grpc_and_http", &why),
    };
    let server = Setup::new().with("FLUSH_MAX_AGE", "1s").start().await;
    let endpoints = [format!("http://{}", server.ports.grpc), server.otlp_url()];
    let printed = output(Command::new(python).arg(here("tests/tools/send.py")).args(endpoints));
    expect_back(&server, &printed, &["python-grpc", "python-http"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_sdk_by_grpc_http_and_json() {
    let dir = match tools::node() {
        Ok(dir) => dir,
        Err(why) => return tools::not_run("the_node_sdk_by_grpc_http_and_json", &why),
    };
    let server = Setup::new().with("FLUSH_MAX_AGE", "1s").start().await;
    let endpoints = [format!("http://{}", server.ports.grpc), server.otlp_url()];
    let printed = output(Command::new("node").current_dir(dir).arg(here("tests/tools/send.mjs")).args(endpoints));
    expect_back(&server, &printed, &["node-proto", "node-json", "node-grpc"]).await;
}

/// The first code block in `language` of the README's section on sending, with the ports of `server`.
fn snippet(server: &Server, language: &str) -> String {
    let readme = std::fs::read_to_string(here("README.md")).expect("a README");
    let section = readme.split("\n## Send a trace\n").nth(1).expect("a section on sending");
    let block = section.split(&format!("\n```{language}\n")).nth(1).and_then(|rest| rest.split("\n```").next());
    let block = block.unwrap_or_else(|| panic!("no {language} in the section on sending"));
    let ported = block
        .replace("localhost:4317", &format!("localhost:{}", server.ports.grpc.port()))
        .replace("localhost:4318", &format!("localhost:{}", server.ports.otlp.port()));
    assert_ne!(ported, block, "the snippet names no port");
    ported
}

/// Names of the spans of the trace whose id a snippet printed.
async fn names(server: &Server, printed: &str) -> Vec<String> {
    let id = u128::from_str_radix(printed.trim(), 16).expect("the snippet prints a trace id");
    let mut names: Vec<String> = spans(&server.trace(id).await).map(|span| span.name.clone()).collect();
    names.sort_unstable();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_sends_from_python() {
    let python = match tools::python() {
        Ok(python) => python,
        Err(why) => return tools::not_run("the_readme_sends_from_python", &why),
    };
    let server = Setup::new().start().await;
    let printed = output(Command::new(python).arg("-c").arg(snippet(&server, "python")));
    assert_eq!(names(&server, &printed).await, ["compose", "greet"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_sends_from_node() {
    let dir = match tools::node() {
        Ok(dir) => dir,
        Err(why) => return tools::not_run("the_readme_sends_from_node", &why),
    };
    let setup = Setup::new();
    let server = setup.start().await;
    std::fs::write(setup.home().join("hello.mjs"), snippet(&server, "js")).expect("the script is written");
    std::os::unix::fs::symlink(dir.join("node_modules"), setup.home().join("node_modules")).expect("a link");
    let printed = output(Command::new("node").current_dir(setup.home()).arg("hello.mjs"));
    assert_eq!(names(&server, &printed).await, ["greet"]);
}
