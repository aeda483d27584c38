//! Jaeger's questions over real sources: tables of cases, and answers held against a plain telling of the rules, with data made at
//! random and spread over blocks and live data in every way.

mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::model::{Attribute, StoredSpan};
use spanhouse_common::source::Source;
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::*;
use crate::assemble::Trace;
use crate::naive::cases::parse_spans;
use crate::naive::differential::{Spread, spread};
use crate::naive::edges::{edges, without_copies};
use crate::naive::generate::{self, BASE, Random};
use crate::test_util::GivenSources;

const SECOND: u64 = 1_000_000_000;

pub(super) fn tenants() -> Vec<TenantId> {
    vec![TenantId::single()]
}

pub(super) fn over(sources: &GivenSources, archive: Option<Arc<dyn Archive>>) -> JaegerQueries {
    JaegerQueries::new(JaegerDeps { archive, ..testing::deps(Arc::new(sources.clone())) })
}

pub(super) fn queries(sources: Vec<Arc<dyn Source>>) -> JaegerQueries {
    over(&GivenSources::new(sources), None)
}

fn spreads(rng: &mut Random) -> Spread {
    [Spread::OneBlock, Spread::OneLive, Spread::Many, Spread::Many][rng.random_range(0..4)]
}

/// Every span with its owners, in any order.
fn texts(trace: &Trace) -> Vec<String> {
    let mut out = Vec::new();
    for group in &trace.groups {
        for scope in &group.scopes {
            out.extend(scope.spans.iter().map(|span| text(span, &group.resource.attributes, &scope.scope.attributes)));
        }
    }
    out.sort_unstable();
    out
}

fn text(span: &spanhouse_common::model::Span, resource: &[Attribute], scope: &[Attribute]) -> String {
    format!("{span:?} {resource:?} {scope:?}")
}

fn texts_of(spans: &[StoredSpan], id: TraceId) -> Vec<String> {
    let all = without_copies(spans);
    let of = all.iter().find(|trace| trace[0].span.trace_id == id).map_or(&[][..], Vec::as_slice);
    let mut out: Vec<String> = of.iter().map(|s| text(&s.span, &s.resource.attributes, &s.scope.attributes)).collect();
    out.sort_unstable();
    out
}

#[tokio::test]
async fn traces_are_read_as_they_are_stored() {
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..100 {
        let rng: &mut Random = &mut rng;
        let spans = generate::data(rng);
        let how = spreads(rng);
        let queries = queries(spread(&spans, how, rng).await);
        let mut ids: Vec<TraceId> =
            spans.iter().map(|stored| stored.span.trace_id).collect::<BTreeSet<_>>().into_iter().collect();
        ids.reverse();
        let unknown = TraceId([9; 16]);
        let hint = TimeRange { min: UnixNanos(BASE), max: UnixNanos(BASE + 60 * SECOND) };
        // Milliseconds where nanoseconds should be: a hint is a hint.
        let wrong = TimeRange { min: UnixNanos(BASE / 1_000_000), max: UnixNanos(BASE / 1_000_000 + 1) };
        for hint in [None, Some(hint), Some(wrong)] {
            for id in &ids {
                let whole = queries.trace(&tenants(), *id, hint).await.unwrap().unwrap();
                assert_eq!(texts(&whole.trace), texts_of(&spans, *id), "{how:?}");
            }
            assert!(queries.trace(&tenants(), unknown, hint).await.unwrap().is_none());
            let mut asked = ids.clone();
            asked.insert(0, unknown);
            let all: Vec<WholeTrace> = queries.traces(tenants(), asked, hint).map(Result::unwrap).collect().await;
            assert_eq!(all.iter().map(|whole| whole.trace_id).collect::<Vec<_>>(), ids);
            all.iter().for_each(|whole| assert_eq!(texts(&whole.trace), texts_of(&spans, whole.trace_id)));
        }
        assert!(queries.deps().memory.used() < 64 << 20);
    }
}

#[tokio::test]
async fn services_and_operations_are_listed() {
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..150 {
        let rng: &mut Random = &mut rng;
        let spans = generate::data(rng);
        let how = spreads(rng);
        let sources = GivenSources::new(spread(&spans, how, rng).await);
        let queries = over(&sources, None);
        let ids: Vec<TraceId> =
            spans.iter().map(|stored| stored.span.trace_id).collect::<BTreeSet<_>>().into_iter().collect();
        for deleted in [vec![], vec![*ids.choose(rng).unwrap()], ids.clone()] {
            sources.delete(deleted.iter().copied());
            let mut expected: BTreeMap<&str, BTreeSet<Operation>> = BTreeMap::new();
            for stored in spans.iter().filter(|stored| !deleted.contains(&stored.span.trace_id)) {
                let operation = Operation { name: stored.span.name.clone(), kind: stored.span.kind };
                expected.entry(stored.resource.service_name().unwrap_or_default()).or_default().insert(operation);
            }
            // Asked twice: what is kept says the same.
            for _ in 0..2 {
                let services: Vec<&str> = expected.keys().copied().filter(|name| !name.is_empty()).collect();
                assert_eq!(queries.services(&tenants()).await.unwrap().found, services, "{how:?} {deleted:?}");
                for (service, operations) in &expected {
                    let all: Vec<Operation> = operations.iter().cloned().collect();
                    assert_eq!(queries.operations(&tenants(), service, None).await.unwrap().found, all, "{how:?}");
                    let servers: Vec<Operation> = all.into_iter().filter(|operation| operation.kind == 2).collect();
                    assert_eq!(queries.operations(&tenants(), service, Some(2)).await.unwrap().found, servers);
                }
                assert_eq!(queries.operations(&tenants(), "nobody", None).await.unwrap().found, []);
            }
        }
    }
}

#[tokio::test]
async fn what_has_no_name_is_told_and_found_under_the_one_it_is_shown_with() {
    let data = "trace=1 id=1 start=10s name=a\n\
                trace=2 id=2 start=20s name=b resource.service.name=\"\"\n\
                trace=3 id=3 start=30s name=c resource.service.name=7\n\
                trace=4 id=4 start=40s name=d service=missing-service-name\n\
                trace=5 id=5 start=50s name=e service=shop\n\
                trace=5 id=6 parent=5 start=51s name=a kind=server status=error\n\
                trace=6 id=7 start=60s service=shop\n\
                trace=6 id=8 parent=7 start=61s name=empty-span-name service=shop\n\
                trace=7 id=9 start=70s kind=client";
    let spans = parse_spans(data).unwrap();
    let mut rng = StdRng::seed_from_u64(4);
    for how in [Spread::OneBlock, Spread::OneLive, Spread::Many, Spread::Many] {
        let queries = queries(spread(&spans, how, &mut rng).await);
        assert_eq!(queries.services(&tenants()).await.unwrap().found, ["missing-service-name", "shop"]);
        assert_eq!(queries.shown_services(&tenants()).await.unwrap().found, ["missing-service-name", "shop"]);
        for (service, kind, expected) in [
            ("missing-service-name", None, "a/0 a/2 b/0 c/0 d/0 empty-span-name/3"),
            ("missing-service-name", Some(2), "a/2"),
            ("shop", None, "e/0 empty-span-name/0"),
            ("nobody", None, ""),
        ] {
            let found = queries.shown_operations(&tenants(), service, kind).await.unwrap().found;
            let texts: Vec<String> = found.iter().map(|found| format!("{}/{}", found.name, found.kind)).collect();
            assert_eq!(texts.join(" "), expected, "{how:?} {service} {kind:?}");
        }
        for (words, expected) in [
            ("service=missing-service-name", "7 5 4 3 2 1"),
            ("service=missing-service-name operation=a", "5 1"),
            ("service=missing-service-name operation=empty-span-name", "7"),
            ("service=missing-service-name limit=2", "7 5"),
            ("service=empty-service-name", "7 5 3 2 1"),
            ("service=service-name-wrong-type operation=c", "3"),
            ("service=shop operation=empty-span-name from=60000000000 to=60000000000", "6"),
            ("operation=empty-span-name", "7 6"),
            ("service=shop", "6 5"),
        ] {
            let found = queries.find(&search::parse_search(words)).await.unwrap().found;
            let ids: Vec<String> =
                found.iter().map(|trace| format!("{:x}", u128::from_be_bytes(trace.trace_id.0))).collect();
            assert_eq!(ids.join(" "), expected, "{how:?} {words}");
        }
        let all = queries.find(&search::parse_search("")).await.unwrap().found;
        let told = all.into_iter().map(TraceSummary::shown).map(|trace| {
            let services = trace.services.iter().map(|s| format!("{}:{}:{}", s.name, s.spans, s.error_spans));
            format!("{}/{} {}", trace.root_service, trace.root_operation, services.collect::<Vec<_>>().join(","))
        });
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                // Nothing tells this from a trace without a root.
                "/ missing-service-name:1:0",
                "shop/empty-span-name shop:2:0",
                "shop/e missing-service-name:1:1,shop:1:0",
                "missing-service-name/d missing-service-name:1:0",
                "missing-service-name/c missing-service-name:1:0",
                "missing-service-name/b missing-service-name:1:0",
                "missing-service-name/a missing-service-name:1:0",
            ],
            "{how:?}"
        );
    }
}

#[test]
fn summaries_of_one_name_are_one() {
    let service = |name: &str, spans, error_spans| ServiceSummary { name: name.into(), spans, error_spans };
    let summary = TraceSummary {
        trace_id: TraceId([1; 16]),
        root_service: String::new(),
        root_operation: String::new(),
        min_start: 0,
        max_end: 0,
        spans: 6,
        error_spans: 3,
        orphan_spans: 6,
        services: vec![service("", 1, 1), service("a", 2, 0), service("missing-service-name", 3, 2)],
    };
    let shown = summary.shown();
    assert_eq!(shown.services, [service("a", 2, 0), service("missing-service-name", 4, 3)]);
    assert_eq!((shown.root_service, shown.root_operation), (String::new(), String::new()));
}

fn rank(sorted: &[u64], quantile: f64) -> f64 {
    let rank = ((quantile * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
    sorted[rank - 1] as f64
}

fn is_near(found: f64, exact: f64) -> bool {
    (found - exact).abs() <= exact * 0.008
}

#[tokio::test]
async fn edges_are_what_the_spans_say() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut found_some = 0;
    for _ in 0..300 {
        let rng: &mut Random = &mut rng;
        let spans = generate::data(rng);
        let how = spreads(rng);
        let queries = queries(spread(&spans, how, rng).await);
        let from = BASE + rng.random_range(0..30) * SECOND;
        let part = TimeRange { min: UnixNanos(from), max: UnixNanos(from + rng.random_range(0..40) * SECOND) };
        for range in [TimeRange::ALL, part, TimeRange::ALL] {
            let expected = edges(&spans, range);
            let found = queries.dependencies(&tenants(), range).await.unwrap().found;
            let pairs: Vec<_> = found.iter().map(|edge| (edge.parent.clone(), edge.child.clone())).collect();
            assert_eq!(pairs, expected.keys().cloned().collect::<Vec<_>>(), "{how:?} {range:?} {spans:#?}");
            for (edge, calls) in found.iter().zip(expected.values()) {
                assert_eq!((edge.calls, edge.errors), (calls.durations.len() as u64, calls.errors), "{how:?} {edge:?}");
                assert!((edge.total - calls.durations.iter().sum::<u64>() as f64).abs() < 1e-3 * edge.total.max(1.0));
                for (found, quantile) in [(edge.p50, 0.5), (edge.p95, 0.95), (edge.p99, 0.99)] {
                    assert!(is_near(found, rank(&calls.durations, quantile)), "{edge:?} {calls:?}");
                }
            }
            found_some += usize::from(!found.is_empty());
        }
    }
    assert!(found_some > 300, "{found_some}");
}

#[tokio::test]
async fn figures_are_those_of_the_windows() {
    let mut rng = StdRng::seed_from_u64(13);
    let mut points = 0;
    for round in 0..300 {
        let rng: &mut Random = &mut rng;
        let spans = generate::data(rng);
        let how = spreads(rng);
        let queries = queries(spread(&spans, how, rng).await);
        let figure =
            [MonitorFigure::Calls, MonitorFigure::Errors, MonitorFigure::Latency(0.95), MonitorFigure::Latency(0.5)]
                [round % 4];
        let request = MonitorRequest {
            tenants: tenants(),
            figure,
            services: vec!["shop".into(), "cart".into()],
            by_operation: rng.random(),
            kinds: [vec![], vec![2, 3], vec![0, 1, 2, 3, 4, 5]][rng.random_range(0..3)].clone(),
            end_ms: (BASE / 1_000_000) as i64 + rng.random_range(10..70) * 1000,
            lookback_ms: rng.random_range(0..60) * 1000,
            step_ms: [500, 1000, 5000, 7000][rng.random_range(0..4)],
            rate_per_ms: [1000, 10_000, 15_000, 600_000][rng.random_range(0..4)],
        };
        let kinds = if request.kinds.is_empty() { vec![2] } else { request.kinds.clone() };
        let all = without_copies(&spans);
        let mut series: BTreeMap<(String, Option<String>), Vec<&StoredSpan>> = BTreeMap::new();
        for stored in all.iter().flatten().filter(|stored| kinds.contains(&stored.span.kind)) {
            let Some(service) = stored.resource.service_name().filter(|name| request.services.iter().any(|s| s == name))
            else {
                continue;
            };
            let operation = request.by_operation.then(|| stored.span.name.clone());
            series.entry((service.to_owned(), operation)).or_default().push(stored);
        }
        let mut expected = Vec::new();
        for ((service, operation), spans) in series {
            let mut line = MonitorSeries { service, operation, points: vec![] };
            let mut time = request.end_ms - request.lookback_ms;
            while time <= request.end_ms {
                let (from, to) = (((time - request.rate_per_ms) * 1_000_000) as u64, (time * 1_000_000) as u64);
                let within = spans.iter().filter(|s| from < s.span.start_unix_nano && s.span.start_unix_nano <= to);
                let within: Vec<&StoredSpan> = within.copied().collect();
                let mut durations: Vec<u64> =
                    within.iter().map(|s| s.span.end_unix_nano.saturating_sub(s.span.start_unix_nano)).collect();
                durations.sort_unstable();
                let errors = within.iter().filter(|s| s.span.status_code == 2).count();
                if !within.is_empty() {
                    line.points.push((
                        time,
                        match figure {
                            MonitorFigure::Calls => within.len() as f64 * 1e3 / request.rate_per_ms as f64,
                            MonitorFigure::Errors => errors as f64 / within.len() as f64,
                            MonitorFigure::Latency(quantile) => rank(&durations, quantile) / 1e6,
                        },
                    ));
                }
                time += request.step_ms;
            }
            if !line.points.is_empty() {
                expected.push(line);
            }
        }
        let found = queries.monitor(&request).await.unwrap().found;
        let shape = |all: &[MonitorSeries]| -> Vec<_> {
            let times = |line: &MonitorSeries| line.points.iter().map(|(time, _)| *time).collect::<Vec<_>>();
            all.iter().map(|line| (line.service.clone(), line.operation.clone(), times(line))).collect()
        };
        assert_eq!(shape(&found), shape(&expected), "{how:?} {request:?}\n{found:?}\n{expected:?}");
        for (found, expected) in found.iter().zip(&expected) {
            for ((_, found), (_, exact)) in found.points.iter().zip(&expected.points) {
                assert!((found - exact).abs() <= exact * 0.0081 + 1e-12, "{request:?} {found} {exact}");
                points += 1;
            }
        }
    }
    assert!(points > 2000, "{points}");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let queries = queries(vec![]);
    let good = MonitorRequest {
        tenants: tenants(),
        figure: MonitorFigure::Calls,
        services: vec!["a".into()],
        by_operation: false,
        kinds: vec![],
        end_ms: 1_700_000_000_000,
        lookback_ms: 3_600_000,
        step_ms: 5000,
        rate_per_ms: 600_000,
    };
    assert_eq!(queries.monitor(&good).await.unwrap().found, []);
    let wrong = [
        MonitorRequest { services: vec![], ..good.clone() },
        MonitorRequest { step_ms: 0, ..good.clone() },
        MonitorRequest { rate_per_ms: -1, ..good.clone() },
        MonitorRequest { step_ms: 1, ..good.clone() },
        MonitorRequest { lookback_ms: -1, ..good.clone() },
        MonitorRequest { lookback_ms: i64::MAX, step_ms: i64::MAX, ..good.clone() },
        MonitorRequest { end_ms: i64::MAX, ..good.clone() },
        MonitorRequest { services: vec!["a".into(); 501], ..good.clone() },
        MonitorRequest { figure: MonitorFigure::Latency(1.5), ..good.clone() },
        MonitorRequest { figure: MonitorFigure::Latency(f64::NAN), ..good.clone() },
    ];
    for request in wrong {
        assert!(matches!(queries.monitor(&request).await, Err(JaegerError::Invalid(_))), "{request:?}");
    }
    // Steps that share no larger part of time than a millisecond are put together.
    let odd = MonitorRequest { step_ms: 59_999, rate_per_ms: 600_001, lookback_ms: 86_400_000, ..good };
    assert_eq!(queries.monitor(&odd).await.unwrap().found, []);
    let search =
        TraceSearch { tenants: tenants(), start_min: Some(2), start_max: Some(1), limit: 5, ..TraceSearch::default() };
    assert_eq!(queries.find(&search).await.unwrap(), Answer::default());
    let many = vec![("a".to_owned(), "b".to_owned()); 101];
    let search = TraceSearch { tenants: tenants(), tags: many, limit: 5, ..TraceSearch::default() };
    assert!(matches!(queries.find(&search).await, Err(JaegerError::Invalid(_))));
    let search = TraceSearch { tenants: tenants(), limit: 0, ..TraceSearch::default() };
    assert_eq!(queries.find(&search).await.unwrap(), Answer::default());
}

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<(TenantId, usize)>>);

#[async_trait]
impl Archive for Kept {
    fn tenant_of(&self, tenant: &TenantId) -> TenantId {
        tenant.clone()
    }

    async fn archive(&self, tenant: &TenantId, trace: &Trace) -> Result<(), String> {
        if self.0.lock().len() == 2 {
            return Err("it is full".into());
        }
        self.0.lock().push((tenant.clone(), trace.spans().count()));
        Ok(())
    }
}

#[tokio::test]
async fn a_trace_goes_to_the_archive() {
    let spans = parse_spans("trace=1 id=1 service=a\ntrace=1 id=2 service=a\ntrace=2 id=3 service=a").unwrap();
    let sources = GivenSources::new(spread(&spans, Spread::OneLive, &mut StdRng::seed_from_u64(1)).await);
    let archive = Arc::new(Kept::default());
    let queries = over(&sources, Some(Arc::clone(&archive) as Arc<dyn Archive>));
    let id = |n: u128| TraceId(n.to_be_bytes());
    let tenant = TenantId::single();
    assert_eq!(queries.archive(&tenant, id(1), None).await.unwrap(), Some(()));
    assert_eq!(queries.archive(&tenant, id(7), None).await.unwrap(), None);
    assert_eq!(queries.archive(&tenant, id(2), None).await.unwrap(), Some(()));
    assert_eq!(*archive.0.lock(), [(tenant.clone(), 2), (tenant.clone(), 1)]);
    assert!(
        matches!(queries.archive(&tenant, id(1), None).await, Err(JaegerError::NotArchived(why)) if why == "it is full")
    );
    let without = over(&sources, None);
    assert!(matches!(without.archive(&tenant, id(1), None).await, Err(JaegerError::NoArchive)));
}

#[tokio::test]
async fn a_trace_that_is_too_large_is_cut_and_says_so() {
    let mut spans = parse_spans("trace=1 id=1 service=a").unwrap();
    for n in 2..400u64 {
        let mut span = spans[0].clone();
        span.span.span_id = spanhouse_common::id::SpanId(n.to_be_bytes());
        span.span.start_unix_nano += n;
        span.span.name = "x".repeat(10_000);
        spans.push(span);
    }
    let queries = queries(spread(&spans, Spread::OneBlock, &mut StdRng::seed_from_u64(1)).await);
    let whole = queries.trace(&tenants(), TraceId(1u128.to_be_bytes()), None).await.unwrap().unwrap();
    let shown = whole.trace.spans().count();
    assert!(shown > 50 && shown < 200, "{shown}");
    assert!(
        whole
            .partial
            .unwrap()
            .contains(&format!("trace has 399 spans, which are too large together, showing first {shown} "))
    );
}
