//! Requests and answers as data, in `cases/api`. Their form stands in the README there.

use std::path::Path;

use spanhouse_common::id::{SpanId, TraceId};

use super::{ask, deps, deps_with};
use crate::engine::EngineError;
use crate::engine::answer::{
    AnswerAttribute, AnswerValue, Exemplar, QueryStats, Sample, SearchAnswer, Series, SeriesAnswer, ServiceStats,
    SpanResult, SpanSetResult, TagNamesAnswer, TagScope, TagValue, TagValuesAnswer, TraceResult,
};
use crate::test_util::{FakeEngine, FakeSnapshots};

struct Case {
    place: String,
    path: String,
    engine: String,
    status: u16,
    body: String,
}

fn read(path: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(path).unwrap();
    let name = path.file_name().unwrap().to_string_lossy();
    let mut cases = Vec::new();
    let mut engine = "empty".to_owned();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if let Some(name) = line.strip_prefix("engine ") {
            engine = name.to_owned();
        } else if let Some(path) = line.strip_prefix("> ") {
            let mut next = || lines.next().unwrap().1;
            let (status, body) = (next().parse().unwrap(), next().replace("\\n", "\n"));
            cases.push(Case {
                place: format!("{name}:{}", at + 1),
                path: encoded(path),
                engine: engine.clone(),
                status,
                body,
            });
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "{name}:{}: {line}", at + 1);
        }
    }
    cases
}

/// Cases show queries as people write them.
fn encoded(path: &str) -> String {
    let encode = |byte: u8| match byte {
        b' ' | b'"' | b'<' | b'>' | b'{' | b'}' | b'|' | b'^' | b'`' | b'+' | 0x80.. => format!("%{byte:02X}"),
        byte => char::from(byte).to_string(),
    };
    path.bytes().map(encode).collect()
}

#[tokio::test]
async fn every_case() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/api");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|name| name == "case"));
    files.sort();
    let (mut count, mut wrong) = (0, Vec::new());
    for case in files.iter().flat_map(|path| read(path)) {
        let deps =
            if case.engine == "empty" { deps(FakeSnapshots::of(Vec::new())) } else { deps_with(engine(&case.engine)) };
        let answer = ask(&deps, &case.path, &[]).await;
        if (answer.status, answer.text()) != (case.status, case.body.as_str()) {
            wrong.push(format!(
                "{} {}\n  {} {}\n  {} {}",
                case.place,
                case.path,
                case.status,
                case.body,
                answer.status,
                answer.text()
            ));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 90, "only {count} cases were read");
}

/// What a case calls an engine.
pub(in crate::api) fn engine(name: &str) -> FakeEngine {
    let partial = || QueryStats { partial: Some("block b1 is damaged".into()), ..stats() };
    match name {
        "full" => FakeEngine {
            search: Ok(SearchAnswer { traces: vec![found(1)], stats: stats() }),
            metrics: Ok(SeriesAnswer { series: series(), stats: stats() }),
            tag_names: Ok(TagNamesAnswer { scopes: scopes(), stats: stats() }),
            tag_values: Ok(TagValuesAnswer { values: values(), stats: stats() }),
            ..FakeEngine::default()
        },
        "partial" => FakeEngine {
            search: Ok(SearchAnswer { traces: Vec::new(), stats: partial() }),
            metrics: Ok(SeriesAnswer { series: Vec::new(), stats: partial() }),
            ..FakeEngine::default()
        },
        "evaluation" => FakeEngine::failing(EngineError::Evaluation("division by zero".into())),
        "deadline" => FakeEngine::failing(EngineError::Deadline),
        "busy" => FakeEngine::failing(EngineError::Busy),
        "over_budget" => {
            FakeEngine::failing(EngineError::OverBudget("the query needs too much: narrow the time range".into()))
        }
        other => panic!("no engine is called {other}"),
    }
}

fn stats() -> QueryStats {
    QueryStats {
        inspected_traces: 3,
        inspected_bytes: 23_412,
        inspected_spans: 30,
        total_blocks: 1,
        total_block_bytes: 9000,
        completed_jobs: 2,
        total_jobs: 2,
        partial: None,
    }
}

pub(in crate::api) fn attribute(key: &str, value: AnswerValue) -> AnswerAttribute {
    AnswerAttribute { key: key.into(), value }
}

/// The trace of the reference's example of a search.
pub(in crate::api) fn found(nth: u128) -> TraceResult {
    let span = SpanResult {
        span_id: SpanId(0x563d_623c_7651_4f8e_u64.to_be_bytes()),
        name: Some("query".into()),
        start_unix_nano: 1_700_000_000_035_077_898,
        duration_nanos: 446_979_497,
        attributes: vec![attribute("http.status_code", AnswerValue::Int(500))],
    };
    TraceResult {
        trace_id: TraceId((0x0f3e_0cee_77ae_5dc9_c17a_de36_89eb_2e53_u128 + nth).to_be_bytes()),
        root_service: Some("shop".into()),
        root_name: Some("GET /cart".into()),
        start_unix_nano: 1_700_000_000_000_000_000,
        duration_nanos: 557_900_000,
        span_sets: vec![SpanSetResult { spans: vec![span], matched: 1, attributes: Vec::new() }],
        services: vec![ServiceStats { service: "shop".into(), spans: 12, errors: 1 }],
        orphans: 0,
    }
}

fn series() -> Vec<Series> {
    let labels = vec![attribute("resource.service.name", AnswerValue::Str("shop".into()))];
    let sample = |timestamp_ms, value| Sample { timestamp_ms, value };
    let exemplar = Exemplar {
        labels: vec![
            attribute("trace:id", AnswerValue::Str("2f3e".into())),
            attribute("span.http.url", AnswerValue::Str("/x".into())),
        ],
        value: 0.25,
        timestamp_ms: 1_700_000_012_345,
    };
    vec![Series {
        labels,
        samples: vec![sample(1_700_000_010_000, 0.4), sample(1_700_000_020_000, 0.0)],
        exemplars: vec![exemplar],
    }]
}

fn scopes() -> Vec<TagScope> {
    let scope = |name, tags: &[&str]| TagScope { name, tags: tags.iter().map(|tag| (*tag).to_owned()).collect() };
    vec![scope("resource", &["cluster", "service.name"]), scope("span", &["cluster", "http.method"]), scope("event", &[])]
}

fn values() -> Vec<TagValue> {
    let value = |kind, text: &str| TagValue { kind, text: text.to_owned() };
    vec![value("int", "200"), value("string", ""), value("string", "GET")]
}
