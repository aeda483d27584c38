//! The bytes, read back by the generated types and looked at one by one.

use proptest::prelude::*;
use prost::Message as _;
use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_proto::otlp_common::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value as Proto};
use spanhouse_proto::tempopb;
use std::sync::Arc;

use super::*;
use crate::assemble::{ResourceGroup, ScopeGroup, assemble};
use crate::test_util::{attribute, example, span, stored, stored_by};

fn decode(trace: &Trace) -> tempopb::Trace {
    tempopb::Trace::decode(encode_trace_protobuf(trace).as_slice()).unwrap()
}

fn trace_of(resource: Resource, scope: Scope, span: Span) -> Trace {
    let scopes = vec![ScopeGroup { scope: Arc::new(scope), spans: vec![span] }];
    Trace { groups: vec![ResourceGroup { resource: Arc::new(resource), scopes }] }
}

#[test]
fn resource_scope_and_status_are_there_even_if_empty() {
    let span = Span { trace_id: TraceId([1; 16]), span_id: SpanId([2; 8]), ..Span::default() };
    let bytes = encode_trace_protobuf(&trace_of(Resource::default(), Scope::default(), span));
    let mut expected =
        vec![0x0a, 38, /* resource */ 0x0a, 0, /* scope spans */ 0x12, 34, /* scope */ 0x0a, 0];
    expected.extend([/* span */ 0x12, 30, 0x0a, 16]);
    expected.extend([1; 16]);
    expected.extend([0x12, 8]);
    expected.extend([2; 8]);
    expected.extend([/* status */ 0x7a, 0]);
    assert_eq!(bytes, expected);
}

#[test]
fn an_unknown_trace_has_one_answer() {
    assert_eq!(encode_trace_by_id_response(&Trace::default(), 0, None), [0x0a, 0, 0x12, 0]);
    let partial = encode_trace_by_id_response(&assemble(vec![vec![example()]]), 300, Some("why"));
    let response = tempopb::TraceByIdResponse::decode(partial.as_slice()).unwrap();
    assert_eq!(response.metrics.unwrap().inspected_bytes, 300);
    assert_eq!((response.status, response.message.as_str()), (1, "why"));
    assert_eq!(response.trace.unwrap().resource_spans.len(), 1);
}

#[test]
fn unknown_fields_come_back_where_they_were() {
    // Field 100, a varint: `a0 06 nn`.
    let unknown = |n| vec![0xa0, 0x06, n];
    let entity = EntityRef { r#type: "host".into(), unknown: unknown(1), ..EntityRef::default() };
    let resource = Resource {
        entity_refs: vec![entity],
        unknown: unknown(2),
        group_unknown: unknown(3),
        schema_url: "r".into(),
        ..Resource::default()
    };
    let scope = Scope { unknown: unknown(4), group_unknown: unknown(5), schema_url: "s".into(), ..Scope::default() };
    let mut one = span(1, 1, 1);
    one.events.push(Event { unknown: unknown(6), ..Event::default() });
    one.links.push(Link { unknown: unknown(7), ..Link::default() });
    one.unknown = unknown(8);
    let bytes = encode_trace_protobuf(&trace_of(resource, scope, one));
    let places: Vec<u8> = bytes.windows(3).filter(|w| w[..2] == [0xa0, 0x06]).map(|w| w[2]).collect();
    assert_eq!(places, [1, 2, 4, 6, 7, 8, 5, 3]);
    tempopb::Trace::decode(bytes.as_slice()).unwrap();
}

#[test]
fn raw_values_are_verbatim() {
    let pair = KeyValue { key: "p".into(), value: None, key_strindex: 7 };
    let value = AnyValue { value: Some(Proto::StringValueStrindex(5)) };
    let mut one = span(1, 1, 1);
    one.attributes = vec![
        attribute("p", Value::RawPair(pair.encode_to_vec())),
        attribute("v", Value::Raw(value.encode_to_vec())),
        attribute("a", Value::Array(vec![Value::Raw(value.encode_to_vec())])),
        attribute("e", Value::Empty),
    ];
    let decoded = decode(&assemble(vec![vec![stored(one)]]));
    let attributes = &decoded.resource_spans[0].scope_spans[0].spans[0].attributes;
    let array = AnyValue { value: Some(Proto::ArrayValue(ArrayValue { values: vec![value.clone()] })) };
    let plain = |key: &str, value| KeyValue { key: key.into(), value: Some(value), key_strindex: 0 };
    let expected = [pair, plain("v", value), plain("a", array), plain("e", AnyValue { value: None })];
    assert_eq!(attributes.as_slice(), expected);
}

fn to_proto(value: &Value) -> AnyValue {
    let pairs = |pairs: &[(String, Value)]| {
        pairs.iter().map(|(k, v)| KeyValue { key: k.clone(), value: Some(to_proto(v)), key_strindex: 0 }).collect()
    };
    let value = match value {
        Value::Str(text) => Some(Proto::StringValue(text.clone())),
        Value::Bool(value) => Some(Proto::BoolValue(*value)),
        Value::Int(value) => Some(Proto::IntValue(*value)),
        Value::Double(value) => Some(Proto::DoubleValue(*value)),
        Value::Bytes(bytes) => Some(Proto::BytesValue(bytes.clone())),
        Value::Array(values) => Some(Proto::ArrayValue(ArrayValue { values: values.iter().map(to_proto).collect() })),
        Value::Map(map) => Some(Proto::KvlistValue(KeyValueList { values: pairs(map) })),
        Value::Empty | Value::Raw(_) | Value::RawPair(_) => None,
    };
    AnyValue { value }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Empty),
        any::<String>().prop_map(Value::Str),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Double),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::vec((any::<String>(), inner), 0..4).prop_map(Value::Map),
        ]
    })
}

proptest! {
    #[test]
    fn bytes_are_those_of_the_generated_types(
        values in proptest::collection::vec((any::<String>(), any_value()), 0..5),
        texts in any::<[String; 4]>(),
        numbers in any::<[u64; 3]>(),
        counts in any::<[u32; 5]>(),
        codes in any::<[i32; 2]>(),
        parent in any::<Option<[u8; 8]>>(),
    ) {
        let [name, trace_state, status_message, event_name] = texts;
        let attributes: Vec<Attribute> = values.into_iter().map(|(key, value)| Attribute { key, value }).collect();
        let event = Event {
            time_unix_nano: numbers[2], name: event_name, attributes: attributes.clone(), dropped_attributes_count: counts[0],
            unknown: vec![],
        };
        let link = Link {
            trace_id: vec![1; 3], span_id: vec![], trace_state: name.clone(), attributes: attributes.clone(),
            dropped_attributes_count: counts[1], flags: counts[2], unknown: vec![],
        };
        let span = Span {
            trace_id: TraceId([7; 16]), span_id: SpanId([8; 8]), parent_span_id: parent.map(SpanId), trace_state,
            flags: counts[3], name, kind: codes[0], start_unix_nano: numbers[0], end_unix_nano: numbers[1], attributes,
            dropped_attributes_count: counts[4], events: vec![event], dropped_events_count: counts[0], links: vec![link],
            dropped_links_count: counts[1], status_message, status_code: codes[1], unknown: vec![],
        };
        let stored = stored_by(span.clone(), crate::test_util::resource("shop"), Scope::default());
        let bytes = encode_trace_protobuf(&assemble(vec![vec![stored]]));
        let decoded = tempopb::Trace::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(decoded.encode_to_vec().len(), bytes.len(), "the shortest form");
        let back = &decoded.resource_spans[0].scope_spans[0].spans[0];
        prop_assert_eq!(&back.trace_id, &span.trace_id.0.to_vec());
        prop_assert_eq!(&back.parent_span_id, &span.parent_span_id.map(|id| id.0.to_vec()).unwrap_or_default());
        prop_assert_eq!(back.flags, span.flags);
        prop_assert_eq!(back.kind, span.kind);
        prop_assert_eq!((back.start_time_unix_nano, back.end_time_unix_nano), (span.start_unix_nano, span.end_unix_nano));
        let status = back.status.as_ref().unwrap();
        prop_assert_eq!((&status.message, status.code), (&span.status_message, span.status_code));
        prop_assert_eq!(back.events[0].time_unix_nano, numbers[2]);
        prop_assert_eq!(back.links[0].flags, counts[2]);
        for attributes in [&back.attributes, &back.events[0].attributes, &back.links[0].attributes] {
            prop_assert_eq!(attributes.len(), span.attributes.len());
            for (pair, attribute) in attributes.iter().zip(&span.attributes) {
                prop_assert_eq!(&pair.key, &attribute.key);
                prop_assert_eq!(pair.value.as_ref().unwrap(), &to_proto(&attribute.value));
            }
        }
    }
}
