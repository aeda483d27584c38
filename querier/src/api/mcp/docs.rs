//! What language models can read about TraceQL and the configuration.

use serde_json::{Value, json};

use crate::api::ApiDeps;

struct Document {
    uri: &'static str,
    /// Of the argument `name` of the tool that tells it.
    name: &'static str,
    title: &'static str,
    text: Text,
}

#[derive(Clone, Copy)]
enum Text {
    Fixed(&'static str),
    /// The configuration in force, with a comment on every setting.
    Settings,
}

impl Text {
    fn write(self, deps: &ApiDeps) -> String {
        match self {
            Self::Fixed(text) => text.to_owned(),
            Self::Settings => {
                format!("# Every setting, as this server runs\n\n```yaml\n{}\n```\n", (deps.status.config)().trim_end())
            }
        }
    }
}

const TRACEQL: [Document; 4] = [
    Document {
        uri: "docs://traceql/basic",
        name: "basic",
        title: "TraceQL: finding spans",
        text: Text::Fixed(include_str!("docs/basic.md")),
    },
    Document {
        uri: "docs://traceql/aggregates",
        name: "aggregates",
        title: "TraceQL: conditions on groups of spans",
        text: Text::Fixed(include_str!("docs/aggregates.md")),
    },
    Document {
        uri: "docs://traceql/structural",
        name: "structural",
        title: "TraceQL: parents and children",
        text: Text::Fixed(include_str!("docs/structural.md")),
    },
    Document {
        uri: "docs://traceql/metrics",
        name: "metrics",
        title: "TraceQL: metrics",
        text: Text::Fixed(include_str!("docs/metrics.md")),
    },
];

const CONFIGURATION: [Document; 2] = [
    Document {
        uri: "docs://config/overview",
        name: "overview",
        title: "Configuration",
        text: Text::Fixed(include_str!("docs/config.md")),
    },
    Document {
        uri: "docs://config/reference",
        name: "reference",
        title: "Configuration, every setting",
        text: Text::Settings,
    },
];

/// Another address of the first page: what to read before any query.
const QUERY_URI: &str = "docs://traceql/query";

pub(super) fn traceql(deps: &ApiDeps, name: &str) -> Option<String> {
    TRACEQL.iter().find(|document| document.name == name).map(|document| document.text.write(deps))
}

pub(super) fn config(deps: &ApiDeps, name: &str) -> Option<String> {
    CONFIGURATION.iter().find(|document| document.name == name).map(|document| document.text.write(deps))
}

pub(super) fn by_uri(deps: &ApiDeps, uri: &str) -> Option<String> {
    let uri = if uri == QUERY_URI { TRACEQL[0].uri } else { uri };
    let mut all = TRACEQL.iter().chain(&CONFIGURATION);
    all.find(|document| document.uri == uri).map(|document| document.text.write(deps))
}

pub(super) fn list() -> Value {
    let query = Document { uri: QUERY_URI, ..TRACEQL[0] };
    let all = std::iter::once(&query).chain(&TRACEQL).chain(&CONFIGURATION);
    all.map(|document| json!({ "uri": document.uri, "name": document.title, "mimeType": "text/markdown" })).collect()
}
