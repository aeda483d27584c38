//! Any OTLP message, written as OTLP/JSON in any of its allowed spellings, transcodes back to itself.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use serde_json::{Map, Value, json};
use spanhouse_proto::otlp_common::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value as Any,
};
use spanhouse_proto::otlp_resource::Resource;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span, Status, span};

use super::transcode;

/// How a sender writes what the specification leaves open. Each use takes the next bit.
struct Style {
    bits: u64,
    at: u32,
}

impl Style {
    fn flip(&mut self) -> bool {
        self.at = (self.at + 1) % 64;
        self.bits >> self.at & 1 == 1
    }

    fn object(&mut self, fields: Vec<(&str, Value)>) -> Value {
        let mut map = Map::new();
        for (camel, value) in fields {
            let name = if self.flip() { camel.to_owned() } else { snake(camel) };
            map.insert(name, value);
        }
        if self.flip() {
            map.insert("unknownField".into(), json!({"nested": [1, "x", null]}));
        }
        Value::Object(map)
    }

    fn integer(&mut self, value: impl Into<i128>) -> Value {
        let value = value.into();
        let text = value.to_string();
        if self.flip() { Value::String(text) } else { serde_json::from_str(&text).unwrap() }
    }

    fn hex(&mut self, bytes: &[u8]) -> Value {
        let upper = self.flip();
        bytes.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect::<String>().into()
    }

    fn base64(&mut self, bytes: &[u8]) -> Value {
        if self.flip() { BASE64_STANDARD.encode(bytes) } else { BASE64_URL_SAFE_NO_PAD.encode(bytes) }.into()
    }

    fn number(&mut self, value: f64) -> Value {
        if value.is_nan() {
            "NaN".into()
        } else if value.is_infinite() {
            if value > 0.0 { "Infinity" } else { "-Infinity" }.into()
        } else if self.flip() {
            value.to_string().into()
        } else {
            json!(value)
        }
    }

    fn enumeration(&mut self, value: i32, names: &[&str]) -> Value {
        match usize::try_from(value).ok().and_then(|at| names.get(at)) {
            Some(name) if self.flip() => (*name).into(),
            _ => self.integer(value),
        }
    }

    fn list<T>(&mut self, items: &[T], mut one: impl FnMut(&mut Self, &T) -> Value) -> Value {
        items.iter().map(|item| one(self, item)).collect()
    }

    /// An absent message is an absent key or a null.
    fn optional<'a, T>(
        &mut self,
        fields: &mut Vec<(&'a str, Value)>,
        name: &'a str,
        item: Option<&T>,
        one: impl FnOnce(&mut Self, &T) -> Value,
    ) {
        match item {
            Some(item) => fields.push((name, one(self, item))),
            None if self.flip() => fields.push((name, Value::Null)),
            None => {}
        }
    }

    fn any(&mut self, value: &AnyValue) -> Value {
        let field = match &value.value {
            None => return self.object(vec![]),
            Some(Any::StringValue(text)) => ("stringValue", json!(text)),
            Some(Any::BoolValue(value)) => ("boolValue", json!(value)),
            Some(Any::IntValue(value)) => ("intValue", self.integer(*value)),
            Some(Any::DoubleValue(value)) => ("doubleValue", self.number(*value)),
            Some(Any::StringValueStrindex(index)) => ("stringValueStrindex", self.integer(*index)),
            Some(Any::BytesValue(bytes)) => ("bytesValue", self.base64(bytes)),
            Some(Any::ArrayValue(array)) => {
                let values = self.list(&array.values, Self::any);
                ("arrayValue", self.object(vec![("values", values)]))
            }
            Some(Any::KvlistValue(list)) => {
                let values = self.attributes(&list.values);
                ("kvlistValue", self.object(vec![("values", values)]))
            }
        };
        self.object(vec![field])
    }

    fn attributes(&mut self, attributes: &[KeyValue]) -> Value {
        self.list(attributes, |style, pair| {
            let mut fields = vec![("key", json!(pair.key)), ("keyStrindex", style.integer(pair.key_strindex))];
            style.optional(&mut fields, "value", pair.value.as_ref(), Self::any);
            style.object(fields)
        })
    }

    fn request(&mut self, request: &ExportTraceServiceRequest) -> Value {
        let spans = self.list(&request.resource_spans, Self::resource_spans);
        self.object(vec![("resourceSpans", spans)])
    }

    fn resource_spans(&mut self, group: &ResourceSpans) -> Value {
        let mut fields = vec![("schemaUrl", json!(group.schema_url))];
        self.optional(&mut fields, "resource", group.resource.as_ref(), |style, resource| {
            let fields = vec![
                ("attributes", style.attributes(&resource.attributes)),
                ("droppedAttributesCount", style.integer(resource.dropped_attributes_count)),
                ("entityRefs", style.list(&resource.entity_refs, Self::entity)),
            ];
            style.object(fields)
        });
        fields.push(("scopeSpans", self.list(&group.scope_spans, Self::scope_spans)));
        self.object(fields)
    }

    fn entity(&mut self, entity: &EntityRef) -> Value {
        self.object(vec![
            ("schemaUrl", json!(entity.schema_url)),
            ("type", json!(entity.r#type)),
            ("idKeys", json!(entity.id_keys)),
            ("descriptionKeys", json!(entity.description_keys)),
        ])
    }

    fn scope_spans(&mut self, group: &ScopeSpans) -> Value {
        let mut fields = vec![("spans", self.list(&group.spans, Self::span))];
        self.optional(&mut fields, "scope", group.scope.as_ref(), |style, scope| {
            let fields = vec![
                ("name", json!(scope.name)),
                ("version", json!(scope.version)),
                ("attributes", style.attributes(&scope.attributes)),
                ("droppedAttributesCount", style.integer(scope.dropped_attributes_count)),
            ];
            style.object(fields)
        });
        fields.push(("schemaUrl", json!(group.schema_url)));
        self.object(fields)
    }

    fn span(&mut self, span: &Span) -> Value {
        let kinds = [
            "SPAN_KIND_UNSPECIFIED",
            "SPAN_KIND_INTERNAL",
            "SPAN_KIND_SERVER",
            "SPAN_KIND_CLIENT",
            "SPAN_KIND_PRODUCER",
            "SPAN_KIND_CONSUMER",
        ];
        let mut fields = vec![
            ("traceId", self.hex(&span.trace_id)),
            ("spanId", self.hex(&span.span_id)),
            ("traceState", json!(span.trace_state)),
            ("parentSpanId", self.hex(&span.parent_span_id)),
            ("flags", self.integer(span.flags)),
            ("name", json!(span.name)),
            ("kind", self.enumeration(span.kind, &kinds)),
            ("startTimeUnixNano", self.integer(span.start_time_unix_nano)),
            ("endTimeUnixNano", self.integer(span.end_time_unix_nano)),
            ("attributes", self.attributes(&span.attributes)),
            ("droppedAttributesCount", self.integer(span.dropped_attributes_count)),
            ("events", self.list(&span.events, Self::event)),
            ("droppedEventsCount", self.integer(span.dropped_events_count)),
            ("links", self.list(&span.links, Self::link)),
            ("droppedLinksCount", self.integer(span.dropped_links_count)),
        ];
        self.optional(&mut fields, "status", span.status.as_ref(), |style, status| {
            let names = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];
            let fields = vec![("message", json!(status.message)), ("code", style.enumeration(status.code, &names))];
            style.object(fields)
        });
        self.object(fields)
    }

    fn event(&mut self, event: &span::Event) -> Value {
        let fields = vec![
            ("timeUnixNano", self.integer(event.time_unix_nano)),
            ("name", json!(event.name)),
            ("attributes", self.attributes(&event.attributes)),
            ("droppedAttributesCount", self.integer(event.dropped_attributes_count)),
        ];
        self.object(fields)
    }

    fn link(&mut self, link: &span::Link) -> Value {
        let fields = vec![
            ("traceId", self.hex(&link.trace_id)),
            ("spanId", self.hex(&link.span_id)),
            ("traceState", json!(link.trace_state)),
            ("attributes", self.attributes(&link.attributes)),
            ("droppedAttributesCount", self.integer(link.dropped_attributes_count)),
            ("flags", self.integer(link.flags)),
        ];
        self.object(fields)
    }
}

fn snake(camel: &str) -> String {
    camel.chars().flat_map(|c| c.is_ascii_uppercase().then_some('_').into_iter().chain([c.to_ascii_lowercase()])).collect()
}

fn key_value((key, key_strindex, value): (String, i32, Option<AnyValue>)) -> KeyValue {
    KeyValue { key, key_strindex, value }
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let leaf = prop_oneof![
        Just(None),
        any::<String>().prop_map(|text| Some(Any::StringValue(text))),
        proptest::num::i32::ANY.prop_map(|index| Some(Any::StringValueStrindex(index))),
        proptest::bool::ANY.prop_map(|value| Some(Any::BoolValue(value))),
        prop_oneof![proptest::num::i64::ANY, Just(i64::MIN), Just(i64::MAX)].prop_map(|value| Some(Any::IntValue(value))),
        // NaN compares unequal to itself: the cases have it.
        (proptest::num::f64::NORMAL
            | proptest::num::f64::SUBNORMAL
            | proptest::num::f64::ZERO
            | proptest::num::f64::INFINITE)
            .prop_map(|value| Some(Any::DoubleValue(value))),
        vec(proptest::num::u8::ANY, 0..9).prop_map(|bytes| Some(Any::BytesValue(bytes))),
    ];
    let value = leaf.prop_map(|value| AnyValue { value });
    value.prop_recursive(4, 16, 4, |inner| {
        let pair = (".{0,3}", 0..3_i32, option::of(inner.clone())).prop_map(key_value);
        prop_oneof![
            vec(inner, 0..4).prop_map(|values| AnyValue { value: Some(Any::ArrayValue(ArrayValue { values })) }),
            vec(pair, 0..4).prop_map(|values| AnyValue { value: Some(Any::KvlistValue(KeyValueList { values })) }),
        ]
    })
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    vec((".{0,8}", 0..3_i32, option::of(any_value())).prop_map(key_value), 0..4)
}

fn id(len: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => vec(proptest::num::u8::ANY, len), 1 => vec(proptest::num::u8::ANY, 0..20)]
}

prop_compose! {
    fn event()(
        time_unix_nano in proptest::num::u64::ANY,
        name in ".{0,8}",
        attributes in attributes(),
        dropped_attributes_count in proptest::num::u32::ANY,
    ) -> span::Event {
        span::Event { time_unix_nano, name, attributes, dropped_attributes_count }
    }
}

prop_compose! {
    fn link()(
        trace_id in id(16),
        span_id in id(8),
        trace_state in ".{0,8}",
        attributes in attributes(),
        dropped_attributes_count in proptest::num::u32::ANY,
        flags in proptest::num::u32::ANY,
    ) -> span::Link {
        span::Link { trace_id, span_id, trace_state, attributes, dropped_attributes_count, flags }
    }
}

prop_compose! {
    fn span_of()(
        ids in (id(16), id(8), id(8)),
        texts in (".{0,8}", ".{0,200}"),
        kind in prop_oneof![0..6_i32, proptest::num::i32::ANY],
        times in (proptest::num::u64::ANY, proptest::num::u64::ANY),
        attributes in attributes(),
        events in vec(event(), 0..3),
        links in vec(link(), 0..3),
        counts in (proptest::num::u32::ANY, proptest::num::u32::ANY, proptest::num::u32::ANY, proptest::num::u32::ANY),
        status in option::of((".{0,8}", prop_oneof![0..3_i32, proptest::num::i32::ANY])),
    ) -> Span {
        Span {
            trace_id: ids.0,
            span_id: ids.1,
            parent_span_id: ids.2,
            trace_state: texts.0,
            name: texts.1,
            kind,
            start_time_unix_nano: times.0,
            end_time_unix_nano: times.1,
            attributes,
            dropped_attributes_count: counts.0,
            events,
            dropped_events_count: counts.1,
            links,
            dropped_links_count: counts.2,
            flags: counts.3,
            status: status.map(|(message, code)| Status { message, code }),
        }
    }
}

prop_compose! {
    fn scope_spans()(
        scope in option::of((".{0,8}", ".{0,3}", attributes(), proptest::num::u32::ANY)),
        spans in vec(span_of(), 0..3),
        schema_url in ".{0,8}",
    ) -> ScopeSpans {
        let scope = scope.map(|(name, version, attributes, dropped_attributes_count)| {
            InstrumentationScope { name, version, attributes, dropped_attributes_count }
        });
        ScopeSpans { scope, spans, schema_url }
    }
}

prop_compose! {
    fn resource_spans()(
        resource in option::of((attributes(), proptest::num::u32::ANY, vec((".{0,4}", ".{0,4}", vec(".{0,4}", 0..3)), 0..2))),
        scope_spans in vec(scope_spans(), 0..3),
        schema_url in ".{0,8}",
    ) -> ResourceSpans {
        let resource = resource.map(|(attributes, dropped_attributes_count, entities)| {
            let entity = |(schema_url, r#type, keys): (String, String, Vec<String>)| {
                EntityRef { schema_url, r#type, id_keys: keys.clone(), description_keys: keys }
            };
            Resource { attributes, dropped_attributes_count, entity_refs: entities.into_iter().map(entity).collect() }
        });
        ResourceSpans { resource, scope_spans, schema_url }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn json_says_the_same_as_protobuf(groups in vec(resource_spans(), 0..3), bits in proptest::num::u64::ANY) {
        let request = ExportTraceServiceRequest { resource_spans: groups };
        let json = Style { bits, at: 0 }.request(&request).to_string();
        let mut out = Vec::new();
        transcode(json.as_bytes(), &mut out).unwrap();
        let back = ExportTraceServiceRequest::decode(&out[..]).unwrap();
        prop_assert_eq!(back, request, "{}", json);
    }
}
