//! The cases of `querier/cases`: queries over a few spans with the answers the language's rules give. `cases/README.md` says
//! how they are written.

mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::StoredSpan;
use spanhouse_common::time::TimeRange;

use crate::engine::Grid;
use crate::engine::answer::{AnswerAttribute, AnswerValue, Sample, Series, SpanResult, SpanSetResult, TraceResult};
pub use text::{parse_case, parse_spans};

/// One query with its data and its answer.
#[derive(Debug, Clone)]
pub struct Case {
    /// Group and name, as the file has them.
    pub name: String,
    pub query: String,
    pub spans: Vec<StoredSpan>,
    pub range: Option<TimeRange>,
    pub limit: usize,
    pub spans_per_set: usize,
    /// Of a metrics query.
    pub grid: Option<Grid>,
    pub expected: Expected,
}

/// What a case says of the answer.
#[derive(Debug, Clone)]
pub enum Expected {
    Traces(Vec<ExpectedTrace>),
    Series(Vec<ExpectedSeries>),
    /// The error holds this text.
    Error(String),
}

#[derive(Debug, Clone)]
pub struct ExpectedTrace {
    pub trace_id: TraceId,
    pub sets: Vec<ExpectedSet>,
    /// Root service, root name, start, duration and services as text, where the case says them.
    pub facts: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct ExpectedSet {
    pub spans: Vec<ExpectedSpan>,
    /// As many as there are spans, if the case says nothing.
    pub matched: usize,
    /// Checked if the case says them.
    pub attributes: Option<Vec<AnswerAttribute>>,
}

#[derive(Debug, Clone)]
pub struct ExpectedSpan {
    pub span_id: SpanId,
    /// Checked if the case says them; the name as an attribute of the key `:name`.
    pub attributes: Option<Vec<AnswerAttribute>>,
}

#[derive(Debug, Clone)]
pub struct ExpectedSeries {
    pub labels: Vec<AnswerAttribute>,
    /// One for each bucket of the grid; `None` is a gap.
    pub points: Vec<Option<f64>>,
}

/// What ran.
#[derive(Debug, Clone)]
pub enum Outcome {
    Traces(Vec<TraceResult>),
    Series(Vec<Series>),
}

/// All cases, by name.
pub fn load_all() -> Vec<Case> {
    let folder = folder();
    let mut files = Vec::new();
    collect_files(&folder.join("queries"), &mut files);
    files.sort();
    let load = |path: &PathBuf| {
        let name = path.strip_prefix(folder.join("queries")).unwrap_or(path).with_extension("").display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string());
        match text.and_then(|text| parse_case(&name, &text)) {
            Ok(case) => case,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    };
    files.iter().map(load).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            collect_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "case") {
            files.push(path);
        }
    }
}

/// Runs a case and says what is wrong with its answer.
pub fn check(case: &Case, run: impl Fn(&Case) -> Result<Outcome, String>) -> Result<(), String> {
    let told = |what: String| Err(format!("{}: {}\n{what}", case.name, case.query));
    match (&case.expected, run(case)) {
        (Expected::Error(fragment), Err(error)) if error.contains(fragment) => Ok(()),
        (Expected::Error(fragment), outcome) => told(format!("expected the error '{fragment}', got {outcome:?}")),
        (_, Err(error)) => told(format!("failed: {error}")),
        (Expected::Traces(expected), Ok(Outcome::Traces(found))) => {
            let (wanted, got) = (expected.iter().map(write_expected).collect::<Vec<_>>(), write_traces(expected, &found));
            if wanted == got {
                Ok(())
            } else {
                told(format!("expected\n  {}\ngot\n  {}", wanted.join("\n  "), got.join("\n  ")))
            }
        }
        (Expected::Series(expected), Ok(Outcome::Series(found))) => {
            let Some(grid) = case.grid else { return told("no grid".to_owned()) };
            let expected: Vec<_> = expected.iter().map(|e| as_series(e, grid)).collect();
            compare_series(&expected, &found, tolerance(&case.query)).or_else(told)
        }
        (_, Ok(outcome)) => told(format!("an answer of the wrong kind: {outcome:?}")),
    }
}

/// How far values may be from those of another implementation, relatively: quantiles may be estimates.
pub fn tolerance(query: &str) -> f64 {
    if query.contains("quantile_over_time") { 0.01 } else { 1e-9 }
}

/// Whether two answers have the same series, in whatever order.
pub fn compare_series(expected: &[Series], found: &[Series], tolerance: f64) -> Result<(), String> {
    let told = |what: &str| {
        let lines = |series: &[Series]| {
            let mut lines: Vec<_> = series.iter().map(write_series).collect();
            lines.sort();
            lines.join("\n  ")
        };
        Err(format!("{what}: expected\n  {}\ngot\n  {}", lines(expected), lines(found)))
    };
    if expected.len() != found.len() {
        return told("number of series");
    }
    for series in expected {
        let Some(other) = found.iter().find(|other| other.labels == series.labels) else { return told("labels") };
        let times = |series: &Series| series.samples.iter().map(|s| s.timestamp_ms).collect::<Vec<_>>();
        if times(series) != times(other) {
            return told("times");
        }
        for (a, b) in series.samples.iter().zip(&other.samples) {
            let (a, b) = (a.value, b.value);
            if a != b && (a - b).abs() > tolerance * a.abs().max(b.abs()) {
                return told("values");
            }
        }
    }
    Ok(())
}

/// Whether two searches found the same, in the same order. Only floats may differ, by rounding.
pub fn compare_traces(expected: &[TraceResult], found: &[TraceResult]) -> Result<(), String> {
    let mut found = found.to_vec();
    for (a, b) in expected.iter().zip(&mut found) {
        for (a, b) in a.span_sets.iter().zip(&mut b.span_sets) {
            for (a, b) in a.attributes.iter().zip(&mut b.attributes) {
                if let (AnswerValue::Float(a), AnswerValue::Float(b)) = (&a.value, &mut b.value)
                    && (*a - *b).abs() <= 1e-9 * a.abs()
                {
                    *b = *a;
                }
            }
        }
    }
    if expected == found { Ok(()) } else { Err(format!("expected\n{expected:#?}\ngot\n{found:#?}")) }
}

fn as_series(expected: &ExpectedSeries, grid: Grid) -> Series {
    let time = |bucket: usize| ((grid.start + (bucket as u64 + 1) * grid.step) / 1_000_000) as i64;
    let samples = expected
        .points
        .iter()
        .enumerate()
        .filter_map(|(bucket, point)| Some(Sample { timestamp_ms: time(bucket), value: (*point)? }));
    Series { labels: expected.labels.clone(), samples: samples.collect(), exemplars: vec![] }
}

fn write_series(series: &Series) -> String {
    let points: Vec<_> = series.samples.iter().map(|s| format!("{}ms={}", s.timestamp_ms, s.value)).collect();
    format!("{{{}}} | {}", write_attributes(&series.labels), points.join(" "))
}

fn write_attributes(attributes: &[AnswerAttribute]) -> String {
    let one = |a: &AnswerAttribute| format!("{:?}={}", a.key, write_value(&a.value));
    attributes.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn write_value(value: &AnswerValue) -> String {
    match value {
        AnswerValue::Str(v) => format!("{v:?}"),
        AnswerValue::Int(v) => v.to_string(),
        AnswerValue::Float(v) => format!("{v:?}"),
        AnswerValue::Bool(v) => v.to_string(),
        AnswerValue::Array(v) => format!("[{}]", v.iter().map(write_value).collect::<Vec<_>>().join(" ")),
    }
}

fn write_expected(expected: &ExpectedTrace) -> String {
    let span = |span: &ExpectedSpan| match &span.attributes {
        Some(attributes) => format!("{}({})", short(span.span_id), write_attributes(attributes)),
        None => short(span.span_id),
    };
    let set = |set: &ExpectedSet| {
        let spans: Vec<_> = set.spans.iter().map(span).collect();
        let attributes = set.attributes.as_ref().map(|a| format!("[{}]", write_attributes(a))).unwrap_or_default();
        format!("{{{}}}{attributes} matched={}", spans.join(" "), set.matched)
    };
    let mut words: Vec<_> = expected.sets.iter().map(set).collect();
    words.extend(expected.facts.iter().map(|(key, value)| format!("{key}={value}")));
    format!("{}: {}", expected.trace_id, words.join(" "))
}

/// What was found, saying as much as the case does.
fn write_traces(expected: &[ExpectedTrace], found: &[TraceResult]) -> Vec<String> {
    let write = |trace: &TraceResult| {
        let like = expected.iter().find(|e| e.trace_id == trace.trace_id);
        let set = |(at, set): (usize, &SpanSetResult)| {
            let like = like.and_then(|like| like.sets.get(at));
            let span = |(at, span): (usize, &SpanResult)| {
                let like = like.and_then(|like| like.spans.get(at));
                let name = span
                    .name
                    .iter()
                    .map(|name| AnswerAttribute { key: Arc::from(":name"), value: AnswerValue::Str(Arc::clone(name)) });
                let attributes = name.chain(span.attributes.iter().cloned()).collect();
                ExpectedSpan {
                    span_id: span.span_id,
                    attributes: like.and_then(|like| like.attributes.as_ref()).map(|_| attributes),
                }
            };
            ExpectedSet {
                spans: set.spans.iter().enumerate().map(span).collect(),
                matched: set.matched as usize,
                attributes: like.and_then(|like| like.attributes.as_ref()).map(|_| set.attributes.clone()),
            }
        };
        let services: Vec<_> = trace.services.iter().map(|s| format!("{}:{}/{}", s.service, s.spans, s.errors)).collect();
        let fact = |key: &str| match key {
            "service" => trace.root_service.as_deref().unwrap_or("-").to_owned(),
            "name" => trace.root_name.as_deref().unwrap_or("-").to_owned(),
            "start" => trace.start_unix_nano.to_string(),
            "dur" => trace.duration_nanos.to_string(),
            _ => services.join(","),
        };
        let facts = like.map(|like| like.facts.iter().map(|(key, _)| (key.clone(), fact(key))).collect());
        write_expected(&ExpectedTrace {
            trace_id: trace.trace_id,
            sets: trace.span_sets.iter().enumerate().map(set).collect(),
            facts: facts.unwrap_or_default(),
        })
    };
    found.iter().map(write).collect()
}

fn short(id: SpanId) -> String {
    format!("{:x}", u64::from_be_bytes(id.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::naive;

    fn run(case: &Case) -> Result<Outcome, String> {
        let query = crate::traceql::parse(&case.query).map_err(|error| error.to_string())?;
        crate::traceql::check(&query).map_err(|error| error.to_string())?;
        match case.grid {
            Some(grid) => naive::metrics(&query, &case.spans, grid).map(Outcome::Series),
            None => naive::search(&query, &case.spans, case.range, case.limit, case.spans_per_set).map(Outcome::Traces),
        }
    }

    #[test]
    fn the_form_of_cases_is_read_as_described() {
        let case = parse_case(
            "g/n",
            "# Why.\nquery: { kind = server } |\n  by(status)\ndata:\n  trace=9 id=1 span.\"odd key\"=[1 2] kind=server\n\
             range: 0s 10s\nlimit: 2\nspss: 1\nexpect:\n  \
             9: {1(\"kind\"=\"server\" status=\"unset\")}[\"by(status)\"=\"unset\"] matched=1 service=- dur=10ms services=:1/0\n",
        )
        .unwrap();
        assert_eq!((case.limit, case.spans_per_set, case.spans.len()), (2, 1, 1));
        assert_eq!(case.spans[0].span.attributes[0].key, "odd key");
        check(&case, run).unwrap();
        let wrong = Case { expected: Expected::Traces(vec![]), ..case.clone() };
        assert!(check(&wrong, run).is_err());
        assert!(parse_case("g/n", "query: { }\nexpect:\n").is_err());
        assert!(parse_case("g/n", "query: { }\ngrid: 0s 30s 10s\nexpect:\n  {} | 1\n").is_err());
    }

    #[test]
    fn all_cases_hold() {
        let cases = load_all();
        assert!(cases.len() >= 200, "{} cases", cases.len());
        let wrong: Vec<_> = cases.iter().filter_map(|case| check(case, run).err()).collect();
        assert!(wrong.is_empty(), "{} of {} are wrong\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
    }
}
