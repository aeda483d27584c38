//! Names and values: the same wherever spans lie, bounded, and said to be cut where they are.

use std::sync::Arc;

use spanhouse_common::budget::Share;
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::model::{Event, Link, Resource, Scope, Span, StoredSpan, Value};
use spanhouse_common::source::{Source, SourceError};

use super::super::answer::{QueryStats, TagNamesAnswer, TagValuesAnswer};
use super::super::{Engine, QueryEngine, TagNamesRequest, TagValuesRequest};
use crate::find_trace::QueryBounds;
use crate::test_util::{
    FakeSource, GivenSources, attribute, block_source, block_source_in_groups, resource, span, span_id, stored, stored_by,
};
use crate::traceql::{ast, parse_attribute, parse_filter_leniently};

/// Less than the texts of some tests take.
const MAX_BYTES: usize = 1_000_000;

fn live(spans: Vec<StoredSpan>) -> Arc<dyn Source> {
    Arc::new(FakeSource::live(spans))
}

fn engine(sources: &[Arc<dyn Source>]) -> Engine {
    over(&GivenSources::new(sources.to_vec()))
}

fn over(sources: &GivenSources) -> Engine {
    Engine::new(Arc::new(sources.clone()), Share::new("queries", 256 << 20), QueryBounds::default())
}

fn filter(text: &str) -> Option<Arc<ast::FieldExpr>> {
    let filter = parse_filter_leniently(text).unwrap().map(Arc::new);
    assert_eq!(filter.is_none(), text.is_empty(), "{text}");
    filter
}

async fn names(sources: &[Arc<dyn Source>], q: &str, scope: Option<ast::Scope>, limit: usize) -> TagNamesAnswer {
    names_of(&engine(sources), q, scope, limit).await
}

async fn names_of(engine: &Engine, q: &str, scope: Option<ast::Scope>, limit: usize) -> TagNamesAnswer {
    let request = TagNamesRequest {
        tenants: vec![TenantId::single()],
        scope,
        range: None,
        limit,
        max_bytes: MAX_BYTES,
        filter: filter(q),
    };
    engine.tag_names(request).await.unwrap()
}

fn names_text(answer: &TagNamesAnswer) -> String {
    let scopes: Vec<String> =
        answer.scopes.iter().map(|scope| format!("{}: {}", scope.name, scope.tags.join(" "))).collect();
    scopes.join("; ")
}

async fn values(sources: &[Arc<dyn Source>], tag: &str, q: &str, limit: usize) -> TagValuesAnswer {
    values_of(&engine(sources), tag, q, limit).await
}

async fn values_of(engine: &Engine, tag: &str, q: &str, limit: usize) -> TagValuesAnswer {
    let attribute = parse_attribute(tag).unwrap();
    let request = TagValuesRequest {
        tenants: vec![TenantId::single()],
        attribute,
        range: None,
        limit,
        max_bytes: MAX_BYTES,
        filter: filter(q),
    };
    engine.tag_values(request).await.unwrap()
}

fn text(answer: &TagValuesAnswer) -> String {
    answer.values.iter().map(|value| format!("{}:{}", value.kind, value.text)).collect::<Vec<_>>().join(" ")
}

fn is_complete(stats: &QueryStats) -> bool {
    stats.partial.is_none() && stats.completed_jobs == stats.total_jobs
}

/// Four spans of three traces, with something of every kind.
fn some_spans() -> Vec<StoredSpan> {
    let trace = |n: u8| TraceId([n; 16]);
    let scope = |name: &str| Scope {
        name: name.into(),
        version: "1.2".into(),
        attributes: vec![attribute("lib.lang", Value::Str("go".into()))],
        ..Scope::default()
    };
    let mut cart = resource("cart");
    cart.attributes.push(attribute("host.cpus", Value::Int(8)));
    cart.attributes.push(attribute("zone", Value::Str("a".into())));
    let root = Span {
        trace_id: trace(1),
        name: "GET /".into(),
        attributes: vec![
            attribute("code", Value::Int(200)),
            attribute("zone", Value::Str("b".into())),
            attribute("tags", Value::Array(vec![Value::Str("x".into()), Value::Str("y".into())])),
            attribute("ratio", Value::Double(2.0)),
            attribute("big", Value::Double(1e21)),
            attribute("raw", Value::Bytes(vec![1, 2])),
        ],
        events: vec![Event {
            name: "retry".into(),
            time_unix_nano: 1_500_001_000,
            attributes: vec![attribute("try", Value::Int(2))],
            ..Event::default()
        }],
        ..span(1, 2, 1_000)
    };
    let child = Span {
        trace_id: trace(1),
        name: "query".into(),
        parent_span_id: Some(span_id(1)),
        status_code: 2,
        status_message: "too slow".into(),
        attributes: vec![
            attribute("code", Value::Str("E5".into())),
            attribute("cached", Value::Bool(true)),
            attribute("ratio", Value::Double(0.25)),
        ],
        links: vec![Link {
            trace_id: vec![7; 16],
            span_id: vec![7; 8],
            attributes: vec![attribute("why", Value::Str("batch".into()))],
            ..Link::default()
        }],
        ..span(2, 3, 1_001)
    };
    let lone = Span { trace_id: trace(2), name: "tick".into(), end_unix_nano: 1_500_003_000, ..span(3, 1, 3_000) };
    let orphan = Span { trace_id: trace(3), name: "late".into(), parent_span_id: Some(span_id(99)), ..span(4, 5, 4_000) };
    vec![
        stored_by(root, cart.clone(), scope("lib")),
        stored_by(child, cart, scope("db")),
        stored_by(lone, Resource::default(), Scope::default()),
        stored(orphan),
    ]
}

const CASES: &[(&str, &str)] = &[
    ("span.code", "int:200 string:E5"),
    ("span.tags", "string:x string:y"),
    ("span.ratio", "float:0.25 float:2.0"),
    ("span.big", "float:1e+21"),
    ("span.cached", "bool:true"),
    ("span.raw", ""),
    ("span.none", ""),
    ("span.zone", "string:b"),
    ("resource.zone", "string:a"),
    (".zone", "string:a string:b"),
    ("parent.zone", "string:a string:b"),
    ("resource.host.cpus", "int:8"),
    ("resource.service.name", "string: string:cart string:shop"),
    ("event.try", "int:2"),
    ("link.why", "string:batch"),
    ("instrumentation.lib.lang", "string:go"),
    ("instrumentation:name", "string: string:db string:lib"),
    ("instrumentation:version", "string: string:1.2"),
    ("name", "string:GET / string:late string:query string:tick"),
    ("rootName", "string: string:GET / string:tick"),
    ("rootServiceName", "string: string:cart"),
    ("statusMessage", "string: string:too slow"),
    ("event:name", "string:retry"),
    ("event:timeSinceStart", "duration:1.5s"),
    ("trace:duration", "duration:1.5s duration:10ns duration:11ns"),
    ("status", "keyword:error keyword:unset"),
    ("kind", "keyword:client keyword:consumer keyword:internal keyword:server"),
    ("span:childCount", "int:0 int:1"),
    ("nestedSetLeft", "int:0 int:1 int:2"),
    ("duration", ""),
    ("span:id", ""),
    ("trace:id", ""),
    ("link:traceID", ""),
];

#[tokio::test]
async fn values_are_the_same_wherever_spans_lie() {
    let all = some_spans();
    let (block, groups) = (block_source(&all).await, block_source_in_groups(&all, 1).await);
    let split = [block_source(&all[1..]).await, live(all[..2].to_vec())];
    for (tag, expected) in CASES {
        let places = [vec![Arc::clone(&block)], vec![Arc::clone(&groups)], vec![live(all.clone())], split.to_vec()];
        for (place, sources) in places.iter().enumerate() {
            // A filter that is always true has the rows read where a summary would answer.
            for q in ["", "{ duration >= 0ns }", "{ traceDuration >= 0ns }"] {
                let answer = values(sources, tag, q, 0).await;
                assert_eq!(text(&answer), *expected, "{tag} with `{q}` in place {place}");
                assert!(is_complete(&answer.stats), "{tag}");
            }
        }
    }
}

#[tokio::test]
async fn names_are_the_same_wherever_spans_lie() {
    let all = some_spans();
    let everything = "span: big cached code ratio raw tags zone; resource: host.cpus service.name zone; event: try; link: why; \
                      instrumentation: lib.lang";
    let root =
        "span: big code ratio raw tags zone; resource: host.cpus service.name zone; event: try; instrumentation: lib.lang";
    let cases = [
        ("", everything),
        ("{ duration >= 0ns }", everything),
        ("{ name = \"GET /\" }", root),
        ("{ name = \"tick\" }", ""),
        (
            "{ span.code = \"E5\" }",
            "span: cached code ratio; resource: host.cpus service.name zone; link: why; instrumentation: lib.lang",
        ),
        ("{ rootName = \"GET /\" && span.code > 1 }", root),
        ("{ name = \"late\" }", "resource: service.name"),
    ];
    let split = vec![block_source(&all[1..]).await, live(all[..1].to_vec())];
    for sources in
        [vec![block_source(&all).await], vec![block_source_in_groups(&all, 1).await], vec![live(all.clone())], split]
    {
        for (q, expected) in cases {
            let answer = names(&sources, q, None, 0).await;
            assert_eq!(names_text(&answer), expected, "{q}");
            assert!(is_complete(&answer.stats));
        }
        let spans = names(&sources, "", Some(ast::Scope::Span), 2).await;
        assert_eq!(names_text(&spans), "span: big cached");
        assert_eq!(names_text(&names(&sources, "", Some(ast::Scope::Event), 0).await), "event: try");
    }
    assert_eq!(names(&[], "", None, 0).await.scopes, []);
    assert_eq!(values(&[], "span.x", "", 0).await.values, []);
}

/// What only a deleted trace had is in no list, also right after it was.
#[tokio::test]
async fn deleted_traces_leave_no_names_and_values() {
    let all = some_spans();
    let ids: std::collections::BTreeSet<TraceId> = all.iter().map(|stored| stored.span.trace_id).collect();
    for gone in ids.iter().map(|id| vec![*id]).chain([ids.iter().copied().collect(), vec![TraceId([9; 16])]]) {
        let rest: Vec<StoredSpan> = all.iter().filter(|stored| !gone.contains(&stored.span.trace_id)).cloned().collect();
        let expected = [live(rest.clone())];
        let split = vec![block_source(&all[1..]).await, live(all[..2].to_vec())];
        let beside = vec![block_source_in_groups(&all, 2).await, block_source(&all[..1]).await];
        for sources in [
            vec![block_source(&all).await],
            vec![block_source_in_groups(&all, 1).await],
            vec![live(all.clone())],
            split,
            beside,
        ] {
            let given = GivenSources::new(sources);
            let engine = over(&given);
            for asked_before in [true, false] {
                if !asked_before {
                    given.delete(gone.iter().copied());
                }
                let expected = if asked_before { &[live(all.clone())] } else { &expected };
                for q in ["", "{ duration >= 0ns }"] {
                    let (found, expected) = (names_of(&engine, q, None, 0).await, names(expected, q, None, 0).await);
                    assert_eq!(names_text(&found), names_text(&expected), "{gone:?} {q}");
                    assert!(is_complete(&found.stats), "{:?}", found.stats);
                }
                for (tag, _) in CASES {
                    let (found, expected) = (values_of(&engine, tag, "", 0).await, values(expected, tag, "", 0).await);
                    assert_eq!(text(&found), text(&expected), "{gone:?} {tag}");
                    assert!(is_complete(&found.stats), "{:?}", found.stats);
                }
            }
        }
    }
}

/// Spans whose `n` is a number from 0.
fn numbered(count: u64, value: impl Fn(u64) -> Value) -> Vec<StoredSpan> {
    let numbered = |n: u64| {
        let trace_id = TraceId((u128::from(n) + 1).to_be_bytes());
        stored(Span { trace_id, attributes: vec![attribute("n", value(n))], ..span(n + 1, 1, 1_000 + n) })
    };
    (0..count).map(numbered).collect()
}

#[tokio::test]
async fn a_summary_answers_unless_it_is_cut() {
    for (distinct, count, is_read) in [(50, 500, false), (51, 500, true), (1_000, 5_000, true)] {
        let of = numbered(count, |n| Value::Str(format!("v{:04}", n % distinct)));
        let block = block_source(&of).await;
        let answer = values(std::slice::from_ref(&block), "span.n", "", 0).await;
        assert_eq!(answer.values.len() as u64, distinct);
        assert_eq!(answer.stats.inspected_spans > 0, is_read, "{distinct}");
        let services = values(std::slice::from_ref(&block), "resource.service.name", "", 0).await;
        // 5000 names of operations are too many to list, but not one service.
        assert_eq!((text(&services).as_str(), services.stats.inspected_spans), ("string:shop", 0));
        let names = values(&[block], "name", "", 0).await;
        assert_eq!(names.values.len() as u64, count);
        assert_eq!(names.stats.inspected_spans > 0, count > 1_000, "{count}");
    }
}

#[tokio::test]
async fn a_block_that_is_read_stands_beside_one_that_is_not() {
    let few = block_source(&numbered(3, |n| Value::Int(n as i64))).await;
    let many = block_source(&numbered(60, |n| Value::Int(100 + n as i64))).await;
    let fresh = live(numbered(2, |n| Value::Bool(n == 0)));
    let answer = values(&[few, many, fresh], "span.n", "", 0).await;
    assert_eq!(answer.values.len(), 3 + 60 + 2);
    assert_eq!((answer.stats.inspected_spans, answer.stats.total_blocks), (62, 2));
}

#[tokio::test]
async fn as_many_as_are_asked_for_are_a_whole_answer() {
    let sources =
        [live(numbered(3_000, |n| Value::Int(n as i64))), block_source(&numbered(40, |n| Value::Int(-(n as i64)))).await];
    for limit in [1, 7, 40, 100] {
        let answer = values(&sources, "span.n", "", limit).await;
        assert_eq!(answer.values.len(), limit);
        assert!(answer.values.is_sorted() && is_complete(&answer.stats));
    }
}

#[tokio::test]
async fn an_answer_too_large_is_cut_and_says_so() {
    let long = |n: u64| Value::Str(format!("{n:0>1000}"));
    let all = numbered(1_100, long);
    let short: Vec<StoredSpan> = all[..900].to_vec();
    for sources in [
        vec![live(all.clone())],
        vec![block_source(&all).await],
        vec![block_source(&all[..600]).await, live(all[500..].to_vec())],
    ] {
        let answer = values(&sources, "span.n", "", 0).await;
        assert_eq!(answer.values.len(), MAX_BYTES / 1_000);
        assert!(answer.stats.partial.as_deref().is_some_and(|text| text.contains("values")), "{:?}", answer.stats);
        assert!(answer.stats.completed_jobs < answer.stats.total_jobs);
        // Nobody misses what was not asked for.
        assert!(is_complete(&values(&sources, "span.n", "", 900).await.stats));
    }
    assert!(is_complete(&values(&[live(short)], "span.n", "", 0).await.stats));
}

#[tokio::test]
async fn what_is_damaged_is_left_out_and_said() {
    let damaged =
        FakeSource::block("b1", Vec::new()).failing(SourceError::Damaged { what: "b1".into(), why: "torn".into() });
    let sources = [live(some_spans()), Arc::new(damaged) as Arc<dyn Source>];
    let answer = values(&sources, "span.zone", "", 0).await;
    assert_eq!(text(&answer), "string:b");
    assert_eq!(answer.stats.partial.as_deref(), Some("b1 is damaged: torn"));
}
