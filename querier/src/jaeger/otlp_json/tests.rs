use spanhouse_common::model::{Attribute, Event, Resource, Scope, Span, Value};

use super::*;
use crate::assemble::{ResourceGroup, ScopeGroup};
use crate::test_util::{attribute, example, resource, span, span_id};

fn trace(spans: Vec<Span>, resource: Resource, scope: Scope) -> Trace {
    Trace {
        groups: vec![ResourceGroup { resource: resource.into(), scopes: vec![ScopeGroup { scope: scope.into(), spans }] }],
    }
}

fn written(trace: &Trace) -> String {
    let mut out = String::from("{\"resourceSpans\":[");
    write_groups(trace, &mut out);
    out.push_str("]}");
    out
}

#[test]
fn the_example_to_the_byte() {
    let stored = example();
    let trace = trace(vec![stored.span], (*stored.resource).clone(), (*stored.scope).clone());
    let expected = concat!(
        r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"#,
        r#""scopeSpans":[{"scope":{"name":"lib","version":"1"},"spans":[{"traceId":"000102030405060708090a0b0c0d0e0f","#,
        r#""spanId":"0001020304050607","parentSpanId":"08090a0b0c0d0e0f","name":"GET /cart","kind":2,"#,
        r#""startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000250000000","#,
        r#""attributes":[{"key":"http.status_code","value":{"intValue":"200"}}],"#,
        r#""events":[{"timeUnixNano":"1700000000100000000","name":"exception"}],"status":{"message":"x","code":2}}]}]}]}"#
    );
    assert_eq!(written(&trace), expected);
    assert_eq!(read_traces(expected.as_bytes()).unwrap(), [trace]);
}

#[test]
fn empty_messages_are_written() {
    let trace = trace(vec![span(1, 0, 0)], Resource::default(), Scope::default());
    let expected = concat!(
        r#"{"resourceSpans":[{"resource":{},"scopeSpans":[{"scope":{},"spans":[{"traceId":"000102030405060708090a0b0c0d0e0f","#,
        r#""spanId":"0000000000000001","name":"span-1","endTimeUnixNano":"10","status":{}}]}]}]}"#
    );
    assert_eq!(written(&trace), expected);
}

/// A span with something everywhere.
fn full() -> Trace {
    let map = Value::Map(vec![("k".into(), Value::Bool(false)), ("k".into(), Value::Array(vec![Value::Int(i64::MIN)]))]);
    let attributes = vec![
        attribute("a", Value::Array(vec![])),
        attribute("b", Value::Bytes(vec![0, 255])),
        attribute("d", Value::Double(-0.5)),
        attribute("e", Value::Empty),
        attribute("f", Value::Double(f64::INFINITY)),
        attribute("m", map),
        attribute("", Value::Str("<&>".into())),
    ];
    let event = Event { name: "e".into(), attributes: attributes.clone(), dropped_attributes_count: 1, ..Event::default() };
    let link = Link {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        trace_state: "c=d".into(),
        attributes: attributes.clone(),
        dropped_attributes_count: 2,
        flags: 3,
        ..Link::default()
    };
    let span = Span {
        parent_span_id: Some(span_id(7)),
        trace_state: "a=b".into(),
        flags: 257,
        dropped_attributes_count: 1,
        events: vec![event],
        dropped_events_count: 2,
        links: vec![link],
        dropped_links_count: 3,
        status_code: 1,
        attributes,
        ..span(1, 9, u64::MAX - 10)
    };
    let resource = Resource { dropped_attributes_count: 4, schema_url: "u".into(), ..resource("shop") };
    let scope = Scope { name: "s".into(), schema_url: "v".into(), dropped_attributes_count: 5, ..Scope::default() };
    trace(vec![span], resource, scope)
}

#[test]
fn what_is_written_is_read_back() {
    let trace = full();
    assert_eq!(read_traces(written(&trace).as_bytes()).unwrap(), [trace]);
}

#[test]
fn senders_write_it_in_several_ways() {
    let text = r#"
        {"resourceSpans":[{"unknown":{"a":[1]},"resource":null,"scopeSpans":[{"spans":[
            {"traceId":"A1","spanId":"B2","kind":"SPAN_KIND_CLIENT","startTimeUnixNano":5,"endTimeUnixNano":"7","status":null,
             "attributes":[{"key":"i","value":{"intValue":3}},{"key":"d","value":{"doubleValue":"NaN"}},{"key":"n","value":null}]}
        ]}]}]}
        {"resourceSpans":[{"scopeSpans":[{"spans":[
            {"traceId":"a2","spanId":"1","status":{"code":"STATUS_CODE_ERROR"}},
            {"traceId":"00000000000000000000000000000000a1","spanId":"2"}
        ]}]}]}"#;
    let error = read_traces(text.as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("traceId \"00000000000000000000000000000000a1\" is not up to 32 hex digits"), "{error}");
    let traces = read_traces(text.replace("00000000000000000000000000000000a1", "0a1").as_bytes()).unwrap();
    assert_eq!(traces.len(), 2);
    let spans: Vec<&Span> = traces[0].spans().collect();
    assert_eq!((spans[0].kind, spans[0].start_unix_nano, spans[0].end_unix_nano), (3, 5, 7));
    let values: Vec<String> = spans[0].attributes.iter().map(|a: &Attribute| format!("{:?}", a.value)).collect();
    assert_eq!(values, ["Int(3)", "Double(NaN)", "Empty"]);
    assert_eq!(spans[1].span_id, span_id(2));
    assert_eq!(traces[1].spans().next().unwrap().status_code, 2);
}

/// Names of members as protobuf has them; keys of attributes are no members.
fn in_snake_case(json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    let snake = |name: String| {
        let parts = name.chars().map(|c| match c.is_ascii_uppercase() {
            true => format!("_{}", c.to_ascii_lowercase()),
            false => c.to_string(),
        });
        parts.collect::<String>()
    };
    match json {
        Json::Object(members) => members.into_iter().map(|(name, value)| (snake(name), in_snake_case(value))).collect(),
        Json::Array(items) => items.into_iter().map(in_snake_case).collect(),
        other => other,
    }
}

#[test]
fn members_may_be_in_snake_case() {
    let trace = full();
    let text = in_snake_case(serde_json::from_str(&written(&trace)).unwrap()).to_string();
    assert!(text.contains("\"end_time_unix_nano\"") && !text.contains("\"spanId\""), "{text}");
    assert_eq!(read_traces(text.as_bytes()).unwrap(), [trace]);
    assert_eq!(read_cost(br#"{"span_id":"1"}"#), read_cost(br#"{"spanId":"1"}"#) + 1);
}

#[test]
fn what_is_no_trace() {
    let span =
        |member: &str| format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"1",{member}}}]}}]}}]}}"#);
    for text in [
        String::new(),
        "[]".into(),
        "{".into(),
        r#"{"resourceSpans":{}}"#.into(),
        span(r#""name":"a""#),
        span(r#""spanId":"xyz""#),
        span(r#""spanId":"+1""#),
        span(r#""spanId":"1","kind":"CLIENT""#),
        span(r#""spanId":"1","startTimeUnixNano":"-1""#),
        span(r#""spanId":"1","attributes":[{"key":"a","value":{"bytesValue":"%"}}]"#),
        span(&format!(r#""spanId":"1","attributes":[{{"value":{}"#, r#"{"arrayValue":{"values":["#.repeat(1_000))),
    ] {
        assert!(read_traces(text.as_bytes()).is_err(), "{text:.200}");
    }
}

#[test]
fn the_cost_covers_what_is_read() {
    let event = size_of::<Event>() + size_of::<Event>() / 4;
    // A growing list has room for up to twice what is in it; the largest empty objects are events.
    assert!(read_cost(b"{") > event, "{event}");
    let many = format!(r#"{{"resourceSpans":[{}]}}"#, vec!["{}"; 1000].join(","));
    assert!(read_cost(many.as_bytes()) > 1000 * 128);
}
