//! The protocol as clients speak it, and every tool.

use serde_json::{Value, json};

use super::*;
use crate::api::tests::cases::engine;
use crate::api::tests::{Answer, deps, deps_with, send};
use crate::test_util::{Asked, FakeEngine, FakeSnapshots, FakeSource, example};

fn on(deps: ApiDeps) -> ApiDeps {
    let mut deps = deps;
    deps.settings.mcp = true;
    deps
}

async fn request(deps: &ApiDeps, method: Method, body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(method).uri("/api/mcp").header("content-type", "application/json");
    send(deps, request.body(body.into()).unwrap()).await
}

async fn rpc(deps: &ApiDeps, method: &str, params: Value) -> Value {
    let message = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
    let answer = request(deps, Method::POST, message.to_string()).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    let answer: Value = serde_json::from_str(answer.text()).unwrap();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(7)));
    answer
}

/// What a tool says, and whether it failed.
async fn tool(deps: &ApiDeps, name: &str, arguments: Value) -> (String, bool) {
    let answer = rpc(deps, "tools/call", json!({ "name": name, "arguments": arguments })).await;
    let result = &answer["result"];
    (result["content"][0]["text"].as_str().unwrap().to_owned(), result["isError"].as_bool().unwrap())
}

#[tokio::test]
async fn the_protocol() {
    let deps = on(deps_with(FakeEngine::default()));
    let answer = rpc(&deps, "initialize", json!({ "protocolVersion": "2025-03-26" })).await;
    assert_eq!(answer["result"]["protocolVersion"], "2025-03-26");
    assert_eq!(answer["result"]["serverInfo"]["name"], "spanhouse");
    let answer = rpc(&deps, "initialize", json!({ "protocolVersion": "1999-01-01" })).await;
    assert_eq!(answer["result"]["protocolVersion"], VERSIONS[0]);
    assert_eq!(rpc(&deps, "ping", Value::Null).await["result"], json!({}));
    assert_eq!(rpc(&deps, "prompts/list", Value::Null).await["error"]["code"], METHOD_NOT_FOUND);
    let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let answer = request(&deps, Method::POST, notification).await;
    assert_eq!((answer.status, answer.text()), (202, ""));
    assert_eq!(request(&deps, Method::GET, "").await.status, 405);
    assert_eq!(request(&deps, Method::DELETE, "").await.status, 200);
    assert_eq!(request(&deps, Method::POST, "{").await.status, 400);
    assert_eq!(request(&deps, Method::POST, "[]").await.status, 400);
    assert_eq!(request(&deps, Method::POST, vec![b' '; MAX_BODY_BYTES + 1]).await.status, 413);
    let off = deps_with(FakeEngine::default());
    for method in [Method::POST, Method::DELETE] {
        let answer = request(&off, method, "").await;
        assert_eq!((answer.status, answer.text()), (404, "404 page not found\n"));
    }
}

#[tokio::test]
async fn documents() {
    let deps = on(deps_with(FakeEngine::default()));
    let answer = rpc(&deps, "resources/list", Value::Null).await;
    let resources = answer["result"]["resources"].as_array().unwrap();
    assert_eq!(resources.len(), 7);
    for resource in resources {
        let answer = rpc(&deps, "resources/read", json!({ "uri": resource["uri"] })).await;
        assert!(answer["result"]["contents"][0]["text"].as_str().unwrap().starts_with("# "), "{resource}");
    }
    assert_eq!(rpc(&deps, "resources/read", json!({ "uri": "x" })).await["error"]["code"], INVALID_PARAMS);
    for name in ["basic", "aggregates", "structural", "metrics"] {
        assert!(!tool(&deps, "docs-traceql", json!({ "name": name })).await.1);
    }
    assert!(tool(&deps, "docs-config", json!({ "name": "overview" })).await.0.starts_with("# Configuration"));
    let reference = tool(&deps, "docs-config", json!({ "name": "reference" })).await.0;
    assert_eq!(reference, "# Every setting, as this server runs\n\n```yaml\na: 1\n```\n");
    assert_eq!(tool(&deps, "docs-traceql", json!({ "name": "x" })).await, ("there is no page `x`".into(), true));
}

/// What the documents show must be what the parser reads.
#[tokio::test]
async fn examples_in_documents_are_queries() {
    let deps = deps_with(FakeEngine::default());
    let mut count = 0;
    for name in ["basic", "aggregates", "structural", "metrics"] {
        let text = docs::traceql(&deps, name).unwrap();
        let blocks = text.split("```").skip(1).step_by(2).flat_map(str::lines);
        let inline = text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
        let queries = blocks.chain(inline).filter(|query| query.starts_with('{') || query.starts_with("({"));
        for query in queries {
            let query =
                query.replace("{ condition }", "{ true }").replace("{ a }", "{ .a = 1 }").replace("{ b }", "{ .b = 1 }");
            crate::traceql::parse_and_check(&query).unwrap_or_else(|error| panic!("{name}: {query}: {error}"));
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

#[tokio::test]
async fn tools() {
    let deps = on(deps_with(engine("full")));
    let answer = rpc(&deps, "tools/list", Value::Null).await;
    let names: Vec<&str> =
        answer["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 8);
    assert_eq!(answer["result"]["tools"][0]["inputSchema"]["required"], json!(["query"]));
    let said = async |name: &str, arguments: Value, start: &str| {
        let (text, failed) = tool(&deps, name, arguments).await;
        assert!(!failed && text.starts_with(start), "{name}: {text}");
    };
    said("traceql-search", json!({ "query": "{ }" }), r#"{"traces":[{"traceID":"#).await;
    said("traceql-metrics-instant", json!({ "query": "{ } | rate()" }), r#"{"series":[{"labels":"#).await;
    said("traceql-metrics-range", json!({ "query": "{ } | rate()" }), r#"{"series":[{"labels":"#).await;
    said("get-attribute-names", json!({ "scope": "span" }), r#"{"scopes":["#).await;
    said("get-attribute-values", json!({ "name": "name", "filter-query": "{ status = error }" }), r#"{"tagValues":{"int""#)
        .await;

    let failed = async |name: &str, arguments: Value, expected: &str| {
        let (text, failed) = tool(&deps, name, arguments).await;
        assert!(failed && text.starts_with(expected), "{name}: {text}");
    };
    failed("traceql-search", json!({}), "argument `query` is missing").await;
    failed("traceql-search", json!({ "query": "{" }), "query parse error. Consult TraceQL docs tools: invalid TraceQL")
        .await;
    failed("traceql-search", json!({ "query": "{ } | rate()" }), "this query makes series").await;
    failed("traceql-metrics-range", json!({ "query": "{ }" }), "this query selects spans").await;
    failed("traceql-search", json!({ "query": "{ }", "start": "x" }), "argument `start` is not a time").await;
    failed("get-attribute-values", json!({ "name": "a.b" }), "please provide a valid tagName").await;
    failed("get-trace", json!({ "trace_id": "x" }), "trace IDs can only contain hex").await;
    failed("get-trace", json!({ "trace_id": "1" }), "there is no trace").await;
    assert_eq!(rpc(&deps, "tools/call", json!({ "name": "x" })).await["error"]["code"], INVALID_PARAMS);

    let fake = FakeEngine::default();
    let asked = std::sync::Arc::clone(&fake.asked);
    let times = json!({ "query": "{ }", "start": "2023-11-14T22:00:00Z", "end": "2023-11-14T22:13:20Z" });
    tool(&on(deps_with(fake)), "traceql-search", times).await;
    let Some(Asked::Search(request)) = asked.lock().pop() else { panic!() };
    assert_eq!(request.range.unwrap().min.as_seconds(), 1_699_999_200);

    let shop = on(self::deps(FakeSnapshots::of(vec![FakeSource::block("b1", vec![example()])])));
    let (text, failed) = tool(&shop, "get-trace", json!({ "trace_id": "000102030405060708090a0b0c0d0e0f" })).await;
    assert!(!failed && text.starts_with(r#"{"trace":{"traceId":"000102"#), "{text}");
}

/// A model must not take a part for the whole.
#[tokio::test]
async fn what_is_not_whole_says_so() {
    let damaged = || {
        let why = spanhouse_common::source::SourceError::Damaged { what: "block b2".into(), why: "torn".into() };
        FakeSource::block("b2", Vec::new()).failing(why)
    };
    let id = json!({ "trace_id": "000102030405060708090a0b0c0d0e0f" });
    let shop = on(self::deps(FakeSnapshots::of(vec![FakeSource::block("b1", vec![example()]), damaged()])));
    let answer = rpc(&shop, "tools/call", json!({ "name": "get-trace", "arguments": id })).await;
    let content = &answer["result"]["content"];
    assert!(content[0]["text"].as_str().is_some_and(|text| text.starts_with(r#"{"trace":"#)), "{answer}");
    assert_eq!(content[1]["text"], "This answer is not complete: block b2 is damaged: torn");
    let gone = on(self::deps(FakeSnapshots::of(vec![damaged()])));
    let (text, failed) = tool(&gone, "get-trace", id).await;
    assert!(failed && text.contains("could be read: block b2 is damaged: torn"), "{text}");

    let mut cut = on(deps_with(engine("full")));
    cut.settings.max_tag_bytes = 1;
    for (name, arguments) in
        [("get-attribute-names", json!({ "scope": "span" })), ("get-attribute-values", json!({ "name": "name" }))]
    {
        let answer = rpc(&cut, "tools/call", json!({ "name": name, "arguments": arguments })).await;
        let said = answer["result"]["content"][1]["text"].as_str().unwrap_or_default();
        assert!(said.starts_with("This answer is not complete: names and values of more than 1 bytes"), "{answer}");
    }
}
