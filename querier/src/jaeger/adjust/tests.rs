//! Besides the cases in `model/cases`: what needs many spans, or is a rule of numbers.

use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::assemble::{ResourceGroup, ScopeGroup};
use crate::jaeger::testing::any_trace;

fn of_spans(spans: Vec<Span>) -> Trace {
    let scope = ScopeGroup { scope: Arc::default(), spans };
    Trace { groups: vec![ResourceGroup { resource: Arc::default(), scopes: vec![scope] }] }
}

fn id(n: u64) -> SpanId {
    SpanId(n.to_be_bytes())
}

/// Every host is unknown, so every link of the chain is asked anew.
#[test]
fn a_chain_of_a_million_spans() {
    let span = |n: u64| Span {
        span_id: id(n),
        parent_span_id: Some(id(n - 1)).filter(|_| n > 1),
        start_unix_nano: 5_000_000_000 - n,
        end_unix_nano: 5_000_000_100 - n,
        ..Default::default()
    };
    let mut trace = of_spans((1..=1_000_000).map(span).collect());
    let started = Instant::now();
    adjust(&mut trace, Duration::from_secs(1));
    assert!(trace.spans().all(|span| span.start_unix_nano == 4_999_999_999));
    // Far above what it takes, far below anything quadratic.
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn cycles_and_spans_under_themselves_stay() {
    let span = |n, parent, start| Span {
        span_id: id(n),
        parent_span_id: Some(id(parent)),
        start_unix_nano: start,
        end_unix_nano: start + 10,
        ..Default::default()
    };
    let mut trace = of_spans(vec![span(1, 2, 500), span(2, 1, 100), span(3, 3, 50)]);
    let before = trace.clone();
    adjust(&mut trace, Duration::from_secs(1));
    assert_eq!(trace, before);
}

#[test]
fn times_as_go_prints_them() {
    assert_eq!(go_time(0), "1970-01-01 00:00:00 +0000 UTC");
    assert_eq!(go_time(1_700_000_000_120_000_000), "2023-11-14 22:13:20.12 +0000 UTC");
    assert_eq!(go_time(1_700_000_000_000_000_001), "2023-11-14 22:13:20.000000001 +0000 UTC");
}

#[test]
fn hosts_are_named_by_the_first_attribute_there_is() {
    let host = |attributes: &[(&str, Value)]| {
        let pair = |(key, value): &(&str, Value)| Attribute { key: (*key).to_owned(), value: value.clone() };
        host_of(&Resource { attributes: attributes.iter().map(pair).collect(), ..Default::default() }).to_owned()
    };
    let text = |text: &str| Value::Str(text.to_owned());
    assert_eq!(host(&[]), "");
    assert_eq!(host(&[("host.name", text("n")), ("host.ip", text("i")), ("host.id", text("d"))]), "d");
    assert_eq!(host(&[("host.name", text("n")), ("host.id", Value::Int(1))]), "");
    assert_eq!(host(&[("host.name", text("n")), ("host.ip", Value::Array(vec![text("a"), text("b")]))]), "a");
    assert_eq!(host(&[("host.name", text("n")), ("host.ip", Value::Array(vec![]))]), "n");
    assert_eq!(host(&[("host.name", text("n")), ("host.ip", Value::Bool(true))]), "n");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Without permission nothing moves, and asking twice says nothing new about times.
    #[test]
    fn zero_skew_moves_nothing(trace in any_trace()) {
        let times = |trace: &Trace| {
            let mut times: BTreeMap<(u64, u64), usize> = BTreeMap::new();
            trace.spans().for_each(|s| *times.entry((s.start_unix_nano, s.end_unix_nano)).or_default() += 1);
            times
        };
        let before = times(&trace);
        let mut adjusted = trace;
        correct_skew(&mut adjusted, Duration::ZERO);
        prop_assert_eq!(before, times(&adjusted));
    }

    /// A child on another host that fits into its parent lies inside it afterwards.
    #[test]
    fn short_children_end_up_inside(start in 1_000u64..1_000_000, length in 0u64..1_000, child in 0u64..2_000_000, short in 0u64..1_000) {
        let short = short.min(length);
        let parent = Span { span_id: id(1), start_unix_nano: start, end_unix_nano: start + length, ..Default::default() };
        let child = Span {
            span_id: id(2),
            parent_span_id: Some(id(1)),
            start_unix_nano: child,
            end_unix_nano: child + short,
            ..Default::default()
        };
        let mut trace = of_spans(vec![child, parent]);
        correct_skew(&mut trace, Duration::from_secs(10));
        let child = trace.spans().next().unwrap();
        prop_assert_eq!(child.end_unix_nano - child.start_unix_nano, short);
        prop_assert!(child.start_unix_nano >= start && child.end_unix_nano <= start + length);
    }
}
