//! What merging keeps, splits and sorts.

use super::*;
use crate::test_util::{attribute, resource, span, span_id, stored, stored_by, trace_id};
use spanhouse_common::model::{Event, Link};

fn shape(trace: &Trace) -> Vec<(u64, i32, Option<u64>)> {
    let number = |id: SpanId| u64::from_be_bytes(id.0);
    trace.spans().map(|s| (number(s.span_id), s.kind, s.parent_span_id.map(number))).collect()
}

#[test]
fn identical_spans_become_one_wherever_they_lie() {
    let mut nan = span(1, 1, 5);
    nan.attributes.push(attribute("nan", Value::Double(f64::NAN)));
    let other_grouping = Resource { ordinal: 3, ..resource("shop") };
    let copies = vec![stored(nan.clone()), stored(nan.clone()), stored_by(nan.clone(), other_grouping, Scope::default())];
    assert_eq!(shape(&assemble(vec![copies, vec![stored(nan.clone())]])), [(1, 1, None)]);
    // Another service with the same ids is another span; in one source it stays.
    let two = vec![stored(nan.clone()), stored_by(nan, resource("cart"), Scope::default())];
    assert_eq!(shape(&assemble(vec![two])).len(), 2);
}

#[test]
fn across_sources_the_most_complete_span_of_an_id_and_kind_survives() {
    let early = span(1, 1, 5);
    let late = Span { end_unix_nano: 99, ..early.clone() };
    for order in [[early.clone(), late.clone()], [late.clone(), early.clone()]] {
        let trace = assemble(order.into_iter().map(|s| vec![stored(s)]).collect());
        assert_eq!(trace.spans().map(|s| s.end_unix_nano).collect::<Vec<_>>(), [99]);
    }
    let kept = assemble(vec![vec![stored(early.clone()), stored(late)], vec![stored(early)]]);
    assert_eq!(kept.spans().count(), 2, "inside one source both stay");
}

#[test]
fn an_id_shared_by_server_and_client_is_split() {
    let child_of = |id, kind, start, parent| Span { parent_span_id: Some(span_id(parent)), ..span(id, kind, start) };
    let spans = vec![
        span(2, 1, 1),        // root
        child_of(7, 3, 2, 2), // client
        child_of(7, 2, 3, 2), // server, same id
        child_of(8, 1, 4, 7), // child: of the server
        child_of(1, 1, 5, 8), // takes the id 1, so the server becomes 3
    ];
    let trace = assemble(vec![spans.into_iter().map(stored).collect()]);
    assert_eq!(shape(&trace), [(2, 1, None), (7, 3, Some(2)), (3, 2, Some(7)), (8, 1, Some(3)), (1, 1, Some(8))]);
}

#[test]
fn everything_is_sorted() {
    let mut first = span(9, 1, 1);
    let event = |time, name: &str| Event { time_unix_nano: time, name: name.into(), ..Event::default() };
    first.events = vec![event(2, "b"), event(2, "a"), event(1, "c")];
    let link = |trace, span| Link { trace_id: vec![trace], span_id: vec![span], ..Link::default() };
    first.links = vec![link(2, 1), link(1, 2), link(1, 1)];
    let scope = |name: &str| Scope { name: name.into(), ..Scope::default() };
    let spans = vec![
        stored_by(span(5, 1, 7), resource("late"), scope("s")),
        stored_by(span(4, 1, 7), resource("late"), scope("s")),
        stored_by(span(3, 1, 3), resource("early"), scope("late")),
        stored_by(first, resource("early"), scope("early")),
    ];
    let trace = assemble(vec![spans]);
    let services: Vec<_> = trace.groups.iter().map(|g| g.resource.service_name().unwrap()).collect();
    assert_eq!(services, ["early", "late"]);
    assert_eq!(trace.groups[0].scopes[0].scope.name, "early");
    assert_eq!(shape(&trace).iter().map(|s| s.0).collect::<Vec<_>>(), [9, 3, 4, 5]);
    let first = trace.spans().next().unwrap();
    assert_eq!(first.events.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["c", "a", "b"]);
    assert_eq!(first.links.iter().map(|l| (l.trace_id[0], l.span_id[0])).collect::<Vec<_>>(), [(1, 1), (1, 2), (2, 1)]);
}

#[test]
fn groups_of_a_request_stay_apart_and_equal_ones_of_two_requests_join() {
    let group = |id, ordinal| stored_by(span(id, 1, id), Resource { ordinal, ..resource("shop") }, Scope::default());
    let trace = assemble(vec![vec![group(1, 0), group(2, 1)], vec![group(3, 0), group(4, 1)]]);
    assert_eq!(trace.groups.iter().map(|g| g.scopes[0].spans.len()).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn a_resource_without_attributes_gets_a_name() {
    let trace = assemble(vec![vec![stored_by(span(1, 1, 1), Resource::default(), Scope::default())]]);
    assert_eq!(trace.groups[0].resource.service_name(), Some("unknown_service"));
    let unnamed = Resource { attributes: vec![attribute("a", Value::Int(1))], ..Resource::default() };
    let trace = assemble(vec![vec![stored_by(span(1, 1, 1), unnamed.clone(), Scope::default())]]);
    assert_eq!(*trace.groups[0].resource, unnamed);
}

#[test]
fn a_trace_is_cut_to_its_earliest_spans() {
    let spans = || (11..=20).map(|n| stored(span(n, 1, 100 - n))).collect();
    let mut trace = assemble(vec![spans()]);
    let size = trace.encoded_len();
    assert!(!trace.truncate(size));
    assert!(trace.truncate(size / 2));
    assert_eq!(shape(&trace).iter().map(|s| s.0).collect::<Vec<_>>(), [20, 19, 18, 17, 16]);
    assert!(trace.encoded_len() <= size / 2);
    assert!(trace.truncate(1));
    assert!(trace.is_empty());
    assert_eq!(assemble(vec![spans()]).spans().next().unwrap().trace_id, trace_id());
}
