//! The engine against the naive evaluator: data and a query made at random, the spans of traces spread over blocks and live data
//! in every way, and some traces deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use spanhouse_common::budget::Share;
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::model::StoredSpan;
use spanhouse_common::source::Source;
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::cases;
use super::generate::{self, Random};
use crate::engine::answer::{Series, SpanSetResult, TraceResult};
use crate::engine::{Engine, Grid, MetricsRequest, QueryEngine as _, Quiet, SearchFilter, SearchRequest};
use crate::find_trace::QueryBounds;
use crate::test_util::{FakeSource, GivenSources, block_source_in_groups};
use crate::traceql::{self, ast};

/// The engine over some sources.
pub(crate) fn engine(sources: Vec<Arc<dyn Source>>) -> Engine {
    over(&GivenSources::new(sources))
}

fn over(sources: &GivenSources) -> Engine {
    Engine::new(Arc::new(sources.clone()), Share::new("query", 256 << 20), QueryBounds::default())
}

/// Traces to be deleted: of most data none, of some all.
fn deleted(spans: &[StoredSpan], rng: &mut Random) -> BTreeSet<TraceId> {
    let share = [0, 0, 20, 50, 100][rng.random_range(0..5)];
    let ids: BTreeSet<TraceId> = spans.iter().map(|stored| stored.span.trace_id).collect();
    ids.into_iter().filter(|_| rng.random_range(0..100) < share).collect()
}

/// How spans are spread over sources.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spread {
    OneBlock,
    OneLive,
    /// Random sources, each a block or live.
    Many,
}

/// The spans with those marked that were received before, as the ingester marks them.
fn marked(spans: &[StoredSpan]) -> Vec<StoredSpan> {
    let mut seen = std::collections::HashSet::new();
    let mut mark = |stored: &StoredSpan| {
        let span = &stored.span;
        let is_new = seen.insert((span.trace_id, span.span_id, span.kind, span.start_unix_nano));
        StoredSpan { maybe_duplicate: !is_new, ..stored.clone() }
    };
    spans.iter().map(&mut mark).collect()
}

pub(crate) async fn spread(spans: &[StoredSpan], how: Spread, rng: &mut Random) -> Vec<Arc<dyn Source>> {
    let row_group_rows = rng.random_range(1..12);
    let spans = &marked(spans);
    match how {
        Spread::OneBlock => vec![block_source_in_groups(spans, row_group_rows).await],
        Spread::OneLive => vec![Arc::new(FakeSource::live(spans.to_vec()))],
        Spread::Many => {
            let mut lots: Vec<Vec<StoredSpan>> = vec![Vec::new(); rng.random_range(2..5)];
            for span in spans {
                let lot = rng.random_range(0..lots.len());
                lots[lot].push(span.clone());
            }
            let mut out: Vec<Arc<dyn Source>> = Vec::new();
            for lot in lots.into_iter().filter(|lot| !lot.is_empty()) {
                out.push(if rng.random_range(0..3) == 0 {
                    Arc::new(FakeSource::live(lot))
                } else {
                    block_source_in_groups(&lot, row_group_rows).await
                });
            }
            out.shuffle(rng);
            out
        }
    }
}

/// A whole answer.
pub(crate) async fn search(
    engine: &Engine,
    query: &Arc<ast::Query>,
    range: Option<TimeRange>,
    limit: usize,
    spans_per_set: usize,
) -> Result<Vec<TraceResult>, String> {
    let filter = SearchFilter::TraceQl(Arc::clone(query));
    let request = SearchRequest { tenants: vec![TenantId::single()], filter, range, limit, spans_per_set };
    let answer = engine.search(request, &Quiet).await.map_err(|error| error.to_string())?;
    assert_eq!((answer.stats.completed_jobs, &answer.stats.partial), (answer.stats.total_jobs, &None));
    Ok(answer.traces)
}

/// A whole answer.
pub(crate) async fn metrics(
    engine: &Engine,
    query: &Arc<ast::Query>,
    grid: Grid,
    exemplars: usize,
) -> Result<Vec<Series>, String> {
    let tenants = vec![TenantId::single()];
    let request = MetricsRequest { tenants, query: Arc::clone(query), grid, exemplars, max_series: 0, window: None };
    let answer = engine.metrics(request, &Quiet).await.map_err(|error| error.to_string())?;
    assert_eq!((answer.stats.completed_jobs, &answer.stats.partial), (answer.stats.total_jobs, &None));
    Ok(answer.series)
}

/// Both answers, a line a trace, and where they begin to differ.
fn difference(expected: &[TraceResult], found: &[TraceResult]) -> String {
    let set = |set: &SpanSetResult| {
        let values: Vec<_> = set.attributes.iter().map(|attribute| &attribute.value).collect();
        let ids: Vec<String> = set.spans.iter().map(|span| span.span_id.to_string()).collect();
        format!("{} of {} {values:?}", ids.join(" "), set.matched)
    };
    let lines = |all: &[TraceResult]| {
        let line = |trace: &TraceResult| {
            format!("{}: {}", trace.trace_id, trace.span_sets.iter().map(set).collect::<Vec<_>>().join(", "))
        };
        all.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    let (full_expected, full_found) = (format!("{expected:#?}"), format!("{found:#?}"));
    let same = full_expected.lines().zip(full_found.lines()).take_while(|(a, b)| a == b).count();
    let around = |text: &str| text.lines().skip(same.saturating_sub(4)).take(8).collect::<Vec<_>>().join("\n");
    format!("expected\n{}\n{}\nfound\n{}\n{}", lines(expected), around(&full_expected), lines(found), around(&full_found))
}

/// Makes a pair of data and query and asks both; what differs, if something does. `plant` may change what the engine sees.
///
/// # Panics
///
/// If a query that was made is none.
pub async fn differs(rng: &mut Random, plant: fn(&mut Vec<StoredSpan>)) -> Option<String> {
    let spans = generate::data(rng);
    let mut seen = spans.clone();
    plant(&mut seen);
    let text = generate::query(rng);
    let query = Arc::new(traceql::parse_and_check(&text).expect("generated queries are valid"));
    let how = [Spread::OneBlock, Spread::OneLive, Spread::Many, Spread::Many][rng.random_range(0..4)];
    let sources = GivenSources::new(spread(&seen, how, rng).await);
    let engine = over(&sources);
    let deleted = deleted(&spans, rng);
    if !deleted.is_empty() {
        if rng.random() {
            // What was asked before the deletion must not be answered after it.
            let _ = search(&engine, &query, None, 100, 100).await;
        }
        sources.delete(deleted.iter().copied());
    }
    // The naive evaluator never sees them.
    let spans: Vec<StoredSpan> = spans.into_iter().filter(|stored| !deleted.contains(&stored.span.trace_id)).collect();
    let result = if query.is_metrics() {
        let grid = generate::grid(rng);
        let expected = super::metrics(&query, &spans, grid);
        let found = metrics(&engine, &query, grid, rng.random_range(0..2) * 10).await;
        match (expected, found) {
            (Ok(expected), Ok(found)) => cases::compare_series(&expected, &found, cases::tolerance(&text)),
            (Err(_), Err(_)) => Ok(()),
            (expected, found) => Err(format!("expected {expected:?}, found {found:?}")),
        }
    } else {
        let (limit, spans_per_set) = (rng.random_range(1..4), rng.random_range(1..13));
        let range = (rng.random_range(0..3) == 0).then(|| {
            let min = generate::BASE + rng.random_range(0..60) * 1_000_000_000;
            TimeRange { min: UnixNanos(min), max: UnixNanos(min + rng.random_range(0..20) * 1_000_000_000) }
        });
        let expected = super::search(&query, &spans, range, limit, spans_per_set);
        match (expected, search(&engine, &query, range, limit, spans_per_set).await) {
            (Ok(expected), Ok(found)) => cases::compare_traces(&expected, &found).map_err(|_| difference(&expected, &found)),
            (Err(_), Err(_)) => Ok(()),
            (expected, found) => Err(format!("expected {expected:?}, found {found:?}")),
        }
    };
    result.err().map(|why| format!("{how:?}, {} deleted: {text}\n{why}", deleted.len()))
}
