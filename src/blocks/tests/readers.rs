//! The blocks through DuckDB, pyarrow, Polars and ClickHouse: `tests/tools/read_blocks.py`.
//!
//! `SPANHOUSE_TEST_PYTHON` names a Python that has them, by default that of `target/test-tools/venv`. What is not installed is
//! told and left out, unless `SPANHOUSE_TEST_REQUIRE_TOOLS=1`: then it fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use spanhouse_common::model::{Attribute, Value};
use spanhouse_common::store::paths::BlockObject;

use super::{World, model};
use crate::blocks::BlocksCommand;

/// What all engines must have seen.
#[derive(Debug, Default, PartialEq)]
struct Expected {
    spans: u64,
    duration_ns: u64,
    traces: u64,
    on_route: u64,
    by_user: u64,
    events: u64,
    links: u64,
    status_codes: BTreeMap<String, u64>,
    event_codes: BTreeMap<String, u64>,
}

fn text(value: &Value) -> String {
    match value {
        Value::Str(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        other => panic!("{other:?} has no column"),
    }
}

fn first<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key).map(|attribute| &attribute.value)
}

fn expected(world: &World) -> Expected {
    let mut expected = Expected::default();
    let mut traces = BTreeSet::new();
    for stored in world.batches.iter().flat_map(|batch| model::spans(batch)) {
        let span = stored.span;
        expected.spans += 1;
        expected.duration_ns += span.end_unix_nano - span.start_unix_nano;
        traces.insert(span.trace_id);
        expected.on_route += u64::from(first(&span.attributes, "http.route") == Some(&Value::Str(model::ROUTE.to_owned())));
        expected.by_user += u64::from(first(&span.attributes, "user.id") == Some(&Value::Str(model::USER.to_owned())));
        expected.events += span.events.len() as u64;
        expected.links += span.links.len() as u64;
        if let Some(value) = first(&span.attributes, "http.status_code") {
            *expected.status_codes.entry(text(value)).or_default() += 1;
        }
        for value in span.events.iter().filter_map(|event| first(&event.attributes, "code")) {
            *expected.event_codes.entry(text(value)).or_default() += 1;
        }
    }
    expected.traces = traces.len() as u64;
    expected
}

fn python() -> Option<PathBuf> {
    if let Some(python) = std::env::var_os("SPANHOUSE_TEST_PYTHON") {
        return Some(PathBuf::from(python));
    }
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/venv/bin/python");
    python.exists().then_some(python)
}

/// Says what did not run; fails where nothing may be left out.
fn not_run(what: &str) {
    let required = std::env::var("SPANHOUSE_TEST_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(!required, "not run: {what}");
    eprintln!("not run: {what}");
}

#[tokio::test]
async fn other_engines_read_the_same() {
    let Some(python) = python() else {
        return not_run("reading blocks with DuckDB, pyarrow, Polars and ClickHouse (no Python with them was found)");
    };
    let world = World::new().await;
    let statement = world.dir.path().join("statement.sql");
    std::fs::write(&statement, world.text(BlocksCommand::Ls { tenant: None, json: false, sql: true }).await).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/read_blocks.py");
    let files = world.ids.iter().map(|id| world.path(*id, BlockObject::Spans));
    let output =
        Command::new(python).arg(script).arg(&statement).args([model::ROUTE, model::USER]).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();

    let expected = expected(&world);
    assert_eq!(expected.status_codes.get(&model::ODD_INTEGER.to_string()), Some(&2));
    let mut rest = BTreeSet::new();
    for engine in ["duckdb", "pyarrow", "polars", "chdb"] {
        let seen = &seen[engine];
        if seen.is_null() {
            not_run(&format!("reading blocks with {engine} (not installed)"));
            continue;
        }
        assert!(seen.get("error").is_none(), "{engine}: {}", seen["error"]);
        let number = |name: &str| seen[name].as_u64().unwrap_or_else(|| panic!("{engine}: {name} is {}", seen[name]));
        let map = |name: &str| serde_json::from_value::<BTreeMap<String, u64>>(seen[name].clone()).unwrap();
        let found = Expected {
            spans: number("spans"),
            duration_ns: number("duration_ns"),
            traces: number("traces"),
            on_route: number("on_route"),
            by_user: number("by_user"),
            events: number("events"),
            links: number("links"),
            status_codes: map("status_codes"),
            event_codes: map("event_codes"),
        };
        assert_eq!(found, expected, "{engine}");
        rest.insert(number("rest"));
    }
    assert!(rest.len() <= 1, "engines disagree about attributes without columns: {rest:?}");
}

#[tokio::test]
async fn the_statement_casts_only_where_blocks_disagree() {
    let world = World::new().await;
    let statement = world.text(BlocksCommand::Ls { tenant: None, json: false, sql: true }).await;
    assert!(statement.contains("CAST(\"span.http.status_code\" AS VARCHAR) AS \"span.http.status_code\""), "{statement}");
    assert!(!statement.contains("CAST(\"span.http.route\""), "{statement}");
    assert!(
        statement.contains("-- One column to DuckDB, which ignores case: span.Only.In.3, span.only.in.3"),
        "{statement}"
    );
    for id in &world.ids {
        let file = world.path(*id, BlockObject::Spans).display().to_string();
        assert_eq!(statement.matches(&file).count(), 1, "{file} in {statement}");
    }
}

#[tokio::test]
async fn an_empty_manifest_gives_a_statement_without_rows() {
    let world = World { dir: tempfile::tempdir().unwrap(), batches: Vec::new(), ids: Vec::new() };
    let statement = world.text(BlocksCommand::Ls { tenant: None, json: false, sql: true }).await;
    assert!(statement.contains("WHERE false;"), "{statement}");
    let Some(python) = python() else { return not_run("the empty statement in DuckDB (no Python was found)") };
    let code = "import sys, duckdb; r = duckdb.sql(sys.argv[1]); assert len(r.fetchall()) == 0 and 'trace_id' in r.columns";
    let output = Command::new(python).args(["-c", code, &statement]).output().unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("ModuleNotFoundError") {
        return not_run("the empty statement in DuckDB (not installed)");
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
