//! The engine against the naive evaluator: the case files, and data and queries made at random, with the spans of traces
//! spread over blocks and live data in every way.

use std::sync::Arc;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use spanhouse_common::model::StoredSpan;

use crate::naive::cases::{self, Outcome};
use crate::naive::differential::{Spread, differs, engine, metrics, search, spread};
use crate::traceql;

/// Pairs of data and query that every run compares.
const PAIRS: u64 = 3_000;

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
                        None => {
                            search(&engine, &query, case.range, case.limit, case.spans_per_set).await.map(Outcome::Traces)
                        }
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

/// The number of pairs and the first seed can be set from outside, for long runs: SPANHOUSE_TEST_PAIRS, SPANHOUSE_TEST_SEED.
#[test]
fn agrees_with_the_naive_evaluator() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (pairs, first) = (number("SPANHOUSE_TEST_PAIRS", PAIRS), number("SPANHOUSE_TEST_SEED", 0));
    let runtime = runtime();
    let mut failures = Vec::new();
    for seed in first..first + pairs {
        let different = runtime.block_on(differs(&mut StdRng::seed_from_u64(seed), |_| ()));
        failures.extend(different.map(|why| format!("pair {seed}, {why}")));
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
            if spans.len() > 1 {
                spans.pop();
            }
        },
        |spans| {
            if let Some(last) = spans.last_mut() {
                last.span.name.push('!');
            }
        },
    ];
    let runtime = runtime();
    for plant in plants {
        let differs = |seed| runtime.block_on(differs(&mut StdRng::seed_from_u64(seed), plant));
        let caught = (0..1000).filter_map(differs).count();
        assert!(caught > 10, "only {caught} of 1000 pairs noticed");
    }
}
