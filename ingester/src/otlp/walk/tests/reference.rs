//! What prost makes of a request, and the model turned back into prost's types, so that the two can be compared.

use prost::Message;
use spanhouse_common::model::{self, Attribute, Value};
use spanhouse_proto::otlp_common::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value as Any,
};
use spanhouse_proto::otlp_resource::Resource;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span, Status, span};

use crate::pipeline::RefusalReason;

/// A span of a request with what stands around it, and its place.
pub(super) struct Placed {
    pub(super) ordinal: u32,
    /// Which `ResourceSpans` and which `ScopeSpans` in it.
    pub(super) group: (usize, usize),
    pub(super) refusal: Option<RefusalReason>,
    /// A group with this one span alone.
    pub(super) alone: ResourceSpans,
}

impl Placed {
    pub(super) fn span(&self) -> &Span {
        &self.alone.scope_spans[0].spans[0]
    }
}

/// All spans of a request in order, as prost reads them.
pub(super) fn spans_of(request: &ExportTraceServiceRequest) -> Vec<Placed> {
    let mut out = Vec::new();
    for (at, group) in request.resource_spans.iter().enumerate() {
        for (inner, scope_group) in group.scope_spans.iter().enumerate() {
            for span in &scope_group.spans {
                let mut span = span.clone();
                // Absent and empty mean the same; answers always have these messages.
                span.status.get_or_insert_default();
                let alone = ResourceSpans {
                    resource: Some(group.resource.clone().unwrap_or_default()),
                    schema_url: group.schema_url.clone(),
                    scope_spans: vec![ScopeSpans {
                        scope: Some(scope_group.scope.clone().unwrap_or_default()),
                        schema_url: scope_group.schema_url.clone(),
                        spans: vec![span],
                    }],
                };
                let mut placed = Placed { ordinal: out.len() as u32, group: (at, inner), refusal: None, alone };
                placed.refusal = refusal(placed.span());
                out.push(placed);
            }
        }
    }
    out
}

fn refusal(span: &Span) -> Option<RefusalReason> {
    let is_id = |id: &[u8], len: usize| id.len() == len && id.iter().any(|byte| *byte != 0);
    if !is_id(&span.trace_id, 16) {
        Some(RefusalReason::InvalidTraceId)
    } else if !is_id(&span.span_id, 8) || ![0, 8].contains(&span.parent_span_id.len()) {
        Some(RefusalReason::InvalidSpanId)
    } else {
        None
    }
}

/// The model as prost's types: [`Placed::alone`] of a span that came through.
pub(super) fn group_of(span: &model::Span, resource: &model::Resource, scope: &model::Scope) -> ResourceSpans {
    let entity = |entity: &model::EntityRef| EntityRef {
        schema_url: entity.schema_url.clone(),
        r#type: entity.r#type.clone(),
        id_keys: entity.id_keys.clone(),
        description_keys: entity.description_keys.clone(),
    };
    ResourceSpans {
        resource: Some(Resource {
            attributes: attributes(&resource.attributes),
            dropped_attributes_count: resource.dropped_attributes_count,
            entity_refs: resource.entity_refs.iter().map(entity).collect(),
        }),
        schema_url: resource.schema_url.clone(),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: scope.name.clone(),
                version: scope.version.clone(),
                attributes: attributes(&scope.attributes),
                dropped_attributes_count: scope.dropped_attributes_count,
            }),
            schema_url: scope.schema_url.clone(),
            spans: vec![span_of(span)],
        }],
    }
}

fn span_of(span: &model::Span) -> Span {
    let event = |event: &model::Event| span::Event {
        time_unix_nano: event.time_unix_nano,
        name: event.name.clone(),
        attributes: attributes(&event.attributes),
        dropped_attributes_count: event.dropped_attributes_count,
    };
    let link = |link: &model::Link| span::Link {
        trace_id: link.trace_id.clone(),
        span_id: link.span_id.clone(),
        trace_state: link.trace_state.clone(),
        attributes: attributes(&link.attributes),
        dropped_attributes_count: link.dropped_attributes_count,
        flags: link.flags,
    };
    Span {
        trace_id: span.trace_id.0.to_vec(),
        span_id: span.span_id.0.to_vec(),
        parent_span_id: span.parent_span_id.map(|id| id.0.to_vec()).unwrap_or_default(),
        trace_state: span.trace_state.clone(),
        flags: span.flags,
        name: span.name.clone(),
        kind: span.kind,
        start_time_unix_nano: span.start_unix_nano,
        end_time_unix_nano: span.end_unix_nano,
        attributes: attributes(&span.attributes),
        dropped_attributes_count: span.dropped_attributes_count,
        events: span.events.iter().map(event).collect(),
        dropped_events_count: span.dropped_events_count,
        links: span.links.iter().map(link).collect(),
        dropped_links_count: span.dropped_links_count,
        status: Some(Status { message: span.status_message.clone(), code: span.status_code }),
    }
}

fn attributes(all: &[Attribute]) -> Vec<KeyValue> {
    all.iter().map(|attribute| pair(&attribute.key, &attribute.value)).collect()
}

fn pair(key: &str, value: &Value) -> KeyValue {
    match value {
        Value::RawPair(message) => {
            let pair = KeyValue::decode(&message[..]).unwrap();
            assert_eq!(pair.key, key, "the key beside a raw pair is the pair's");
            pair
        }
        value => KeyValue { key: key.to_owned(), value: Some(any_value(value)), key_strindex: 0 },
    }
}

fn any_value(value: &Value) -> AnyValue {
    let value = match value {
        Value::Empty => None,
        Value::Str(text) => Some(Any::StringValue(text.clone())),
        Value::Bool(value) => Some(Any::BoolValue(*value)),
        Value::Int(value) => Some(Any::IntValue(*value)),
        Value::Double(value) => Some(Any::DoubleValue(*value)),
        Value::Bytes(bytes) => Some(Any::BytesValue(bytes.clone())),
        Value::Array(values) => Some(Any::ArrayValue(ArrayValue { values: values.iter().map(any_value).collect() })),
        Value::Map(pairs) => {
            Some(Any::KvlistValue(KeyValueList { values: pairs.iter().map(|(key, value)| pair(key, value)).collect() }))
        }
        Value::Raw(message) => AnyValue::decode(&message[..]).unwrap().value,
        Value::RawPair(_) => panic!("a raw pair is never a nested value"),
    };
    AnyValue { value }
}
