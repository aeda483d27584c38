//! What language models can read about TraceQL and the configuration.

use serde_json::{Value, json};

struct Document {
    uri: &'static str,
    /// Of the argument `name` of the tool that tells it.
    name: &'static str,
    title: &'static str,
    text: &'static str,
}

const BASIC: &str = include_str!("docs/basic.md");
const AGGREGATES: &str = include_str!("docs/aggregates.md");
const STRUCTURAL: &str = include_str!("docs/structural.md");
const METRICS: &str = include_str!("docs/metrics.md");
const CONFIG: &str = include_str!("docs/config.md");

const TRACEQL: [Document; 4] = [
    Document { uri: "docs://traceql/basic", name: "basic", title: "TraceQL: finding spans", text: BASIC },
    Document {
        uri: "docs://traceql/aggregates",
        name: "aggregates",
        title: "TraceQL: conditions on groups of spans",
        text: AGGREGATES,
    },
    Document {
        uri: "docs://traceql/structural",
        name: "structural",
        title: "TraceQL: parents and children",
        text: STRUCTURAL,
    },
    Document { uri: "docs://traceql/metrics", name: "metrics", title: "TraceQL: metrics", text: METRICS },
];

const CONFIGURATION: [Document; 2] = [
    Document { uri: "docs://config/overview", name: "overview", title: "Configuration", text: CONFIG },
    Document { uri: "docs://config/reference", name: "reference", title: "Configuration, every setting", text: CONFIG },
];

/// Another address of the first page: what to read before any query.
const QUERY_URI: &str = "docs://traceql/query";

pub(super) fn traceql(name: &str) -> Option<&'static str> {
    TRACEQL.iter().find(|document| document.name == name).map(|document| document.text)
}

pub(super) fn config(name: &str) -> Option<&'static str> {
    CONFIGURATION.iter().find(|document| document.name == name).map(|document| document.text)
}

pub(super) fn by_uri(uri: &str) -> Option<&'static str> {
    let uri = if uri == QUERY_URI { TRACEQL[0].uri } else { uri };
    TRACEQL.iter().chain(&CONFIGURATION).find(|document| document.uri == uri).map(|document| document.text)
}

pub(super) fn list() -> Value {
    let query = Document { uri: QUERY_URI, ..TRACEQL[0] };
    let all = std::iter::once(&query).chain(&TRACEQL).chain(&CONFIGURATION);
    all.map(|document| json!({ "uri": document.uri, "name": document.title, "mimeType": "text/markdown" })).collect()
}
