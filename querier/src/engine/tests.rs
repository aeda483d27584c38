//! The engine against the naive evaluator: the case files, and data and queries made at random, with the spans of traces
//! spread over blocks and live data in every way.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use spanhouse_common::budget::Share;
use spanhouse_common::id::TenantId;
use spanhouse_common::model::StoredSpan;
use spanhouse_common::source::Source;
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::answer::{Series, TraceResult};
use super::*;
use crate::find_trace::QueryBounds;
use crate::naive;
use crate::naive::cases::{self, Outcome};
use crate::test_util::{FakeSource, GivenSources, block_source_in_groups};
use crate::traceql;

/// Pairs of data and query that every run compares.
const PAIRS: u64 = 3_000;

fn engine(sources: Vec<Arc<dyn Source>>) -> Engine {
    Engine::new(Arc::new(GivenSources(sources)), Share::new("query", 256 << 20), QueryBounds::default())
}

/// How spans are spread over sources.
#[derive(Debug, Clone, Copy)]
enum Spread {
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

async fn spread(spans: &[StoredSpan], how: Spread, rng: &mut StdRng) -> Vec<Arc<dyn Source>> {
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

async fn search(
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

async fn metrics(engine: &Engine, query: &Arc<ast::Query>, grid: Grid, exemplars: usize) -> Result<Vec<Series>, String> {
    let tenants = vec![TenantId::single()];
    let request = MetricsRequest { tenants, query: Arc::clone(query), grid, exemplars, max_series: 0 };
    let answer = engine.metrics(request, &Quiet).await.map_err(|error| error.to_string())?;
    assert_eq!((answer.stats.completed_jobs, &answer.stats.partial), (answer.stats.total_jobs, &None));
    Ok(answer.series)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn cases_hold_wherever_spans_lie() {
    let runtime = runtime();
    let all = cases::load_all();
    assert!(all.len() >= 600, "only {} cases found", all.len());
    let mut failures = Vec::new();
    for case in &all {
        for (seed, how) in [(1, Spread::OneBlock), (2, Spread::OneLive), (3, Spread::Many), (4, Spread::Many)] {
            let mut rng = StdRng::seed_from_u64(seed);
            let sources = runtime.block_on(spread(&case.spans, how, &mut rng));
            let engine = engine(sources);
            let result = cases::check(case, |case| {
                let query = Arc::new(traceql::parse_and_check(&case.query).map_err(|error| error.to_string())?);
                runtime.block_on(async {
                    match case.grid {
                        Some(grid) => metrics(&engine, &query, grid, 0).await.map(Outcome::Series),
                        None => search(&engine, &query, case.range, case.limit, case.spans_per_set).await.map(Outcome::Traces),
                    }
                })
            });
            if let Err(why) = result {
                failures.push(format!("{how:?}: {why}"));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n\n"));
}

/// The lines in which two answers differ first.
fn difference(expected: &[TraceResult], found: &[TraceResult]) -> String {
    let (expected, found) = (format!("{expected:#?}"), format!("{found:#?}"));
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let same = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let around = |lines: &[&str]| lines[same.saturating_sub(12).min(lines.len())..(same + 6).min(lines.len())].join("\n");
    format!("expected\n{}\nfound\n{}", around(&expected), around(&found))
}

/// Runs pair number `seed`; what differs, if something does. `plant` may change what the engine sees.
async fn differs(seed: u64, plant: fn(&mut Vec<StoredSpan>)) -> Option<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let spans = naive::generate::data(&mut rng);
    let mut seen = spans.clone();
    plant(&mut seen);
    let text = naive::generate::query(&mut rng);
    let query = Arc::new(traceql::parse_and_check(&text).expect("generated queries are valid"));
    let how = [Spread::OneBlock, Spread::OneLive, Spread::Many, Spread::Many][rng.random_range(0..4)];
    let sources = spread(&seen, how, &mut rng).await;
    let engine = engine(sources);
    let result = if query.is_metrics() {
        let grid = naive::generate::grid(&mut rng);
        let expected = naive::metrics(&query, &spans, grid);
        let found = metrics(&engine, &query, grid, rng.random_range(0..2) * 10).await;
        match (expected, found) {
            (Ok(expected), Ok(found)) => cases::compare_series(&expected, &found, cases::tolerance(&text)),
            (Err(_), Err(_)) => Ok(()),
            (expected, found) => Err(format!("expected {expected:?}, found {found:?}")),
        }
    } else {
        let (limit, spans_per_set) = (rng.random_range(1..4), rng.random_range(1..13));
        let range = (rng.random_range(0..3) == 0).then(|| {
            let min = naive::generate::BASE + rng.random_range(0..60) * 1_000_000_000;
            TimeRange { min: UnixNanos(min), max: UnixNanos(min + rng.random_range(0..20) * 1_000_000_000) }
        });
        let expected = naive::search(&query, &spans, range, limit, spans_per_set);
        match (expected, search(&engine, &query, range, limit, spans_per_set).await) {
            (Ok(expected), Ok(found)) => {
                cases::compare_traces(&expected, &found).map_err(|_| difference(&expected, &found))
            }
            (Err(_), Err(_)) => Ok(()),
            (expected, found) => Err(format!("expected {expected:?}, found {found:?}")),
        }
    };
    result.err().map(|why| format!("pair {seed}, {how:?}: {text}\n{why}"))
}

/// The number of pairs and the first seed can be set from outside, for long runs: SPANHOUSE_TEST_PAIRS, SPANHOUSE_TEST_SEED.
#[test]
fn agrees_with_the_naive_evaluator() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (pairs, first) = (number("SPANHOUSE_TEST_PAIRS", PAIRS), number("SPANHOUSE_TEST_SEED", 0));
    let runtime = runtime();
    let mut failures = Vec::new();
    for seed in first..first + pairs {
        failures.extend(runtime.block_on(differs(seed, |_| ())));
        if failures.len() >= 5 {
            break;
        }
    }
    let shorter = |text: &String| text.chars().take(3000).collect::<String>();
    assert!(failures.is_empty(), "{}", failures.iter().map(shorter).collect::<Vec<_>>().join("\n\n"));
}

#[test]
fn a_planted_bug_is_caught() {
    // The engine loses a span, and a name goes wrong.
    let plants: [fn(&mut Vec<StoredSpan>); 2] = [
        |spans| {
            spans.pop();
        },
        |spans| {
            if let Some(last) = spans.last_mut() {
                last.span.name.push('!');
            }
        },
    ];
    let runtime = runtime();
    for plant in plants {
        let caught = (0..200).filter_map(|seed| runtime.block_on(differs(seed, plant))).count();
        assert!(caught > 10, "only {caught} of 200 pairs noticed");
    }
}
