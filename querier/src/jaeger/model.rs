//! Jaeger's span model, made from OTLP's: what every answer in Jaeger's forms shows.
//!
//! Owns which Jaeger field each part of a span becomes, the text of a value ([`value_text`]), and the two wire forms: the JSON of the
//! HTTP API ([`json`]) and the messages of `jaeger.api_v2` ([`proto`]). Does not own which spans a trace shows nor what is mended in them
//! first ([`super::adjust`]).
//!
//! A view, not a copy: spans are made one at a time from a borrowed trace, so an answer never holds both forms whole.
//! Lost in it, as in Jaeger's own: attributes of scopes and links, trace states of links, schema addresses, counts of what was dropped.

pub mod json;
pub mod proto;
mod text;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

use prost::Message as _;
use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::typed_json;
use spanhouse_common::model::{Attribute, Event, Link, Resource, Scope, Span, Value};
use spanhouse_proto::otlp_common::{AnyValue, KeyValue};

pub(crate) use text::attributes_json;
pub use text::{double_text, value_text};

use crate::assemble::Trace;

/// The span attribute that carries warnings between the parts of a Jaeger: a list of texts, shown as the span's warnings.
pub const WARNINGS_KEY: &str = "@jaeger@warnings";

/// Says on a link which kind of reference it was.
pub const REF_TYPE_KEY: &str = "opentracing.ref_type";

/// Service of a resource that has no attributes at all.
pub const NO_SERVICE: &str = "OTLPResourceNoServiceName";

pub(crate) const KIND_INTERNAL: i32 = 1;
pub(crate) const KIND_SERVER: i32 = 2;
pub(crate) const KIND_CLIENT: i32 = 3;
pub(crate) const KIND_PRODUCER: i32 = 4;
pub(crate) const KIND_CONSUMER: i32 = 5;

pub(crate) const STATUS_OK: i32 = 1;
pub(crate) const STATUS_ERROR: i32 = 2;

/// The sampled bit, the same in OTLP and in Jaeger. OTLP's other bits mean something else there.
const SAMPLED: u32 = 1;

/// A trace in Jaeger's terms.
#[derive(Debug)]
pub struct JaegerTrace<'a> {
    pub trace_id: TraceId,
    /// Each once, in the order in which the spans first name them. Never empty.
    pub processes: Vec<Process<'a>>,
    /// What is wrong with the trace as a whole, for people. Empty from [`JaegerTrace::of`].
    pub warnings: Vec<String>,
    trace: &'a Trace,
    /// For each group of the trace, its number in `processes`.
    process_of_group: Vec<usize>,
}

/// Who emitted spans.
#[derive(Debug, Clone, PartialEq)]
pub struct Process<'a> {
    pub service: Cow<'a, str>,
    pub tags: Vec<Tag<'a>>,
}

/// A key and a value of one of Jaeger's five types.
#[derive(Debug, Clone, PartialEq)]
pub struct Tag<'a> {
    pub key: Cow<'a, str>,
    pub value: TagValue<'a>,
}

/// Lists and maps are texts in JSON.
#[derive(Debug, Clone, PartialEq)]
pub enum TagValue<'a> {
    Str(Cow<'a, str>),
    Bool(bool),
    Int(i64),
    Double(f64),
    Binary(Cow<'a, [u8]>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefType {
    ChildOf,
    FollowsFrom,
}

/// What a span points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    pub ref_type: RefType,
    pub trace_id: TraceId,
    pub span_id: SpanId,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Log<'a> {
    pub time_unix_nano: u64,
    pub fields: Vec<Tag<'a>>,
}

/// A span in Jaeger's terms.
#[derive(Debug, Clone, PartialEq)]
pub struct JaegerSpan<'a> {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub flags: u32,
    pub operation: &'a str,
    /// The parent first, if there is one.
    pub references: Vec<Reference>,
    pub start_unix_nano: u64,
    /// Negative where the span ends before it starts.
    pub duration_nanos: i64,
    pub tags: Vec<Tag<'a>>,
    pub logs: Vec<Log<'a>>,
    /// Number in [`JaegerTrace::processes`].
    pub process: usize,
    pub warnings: Vec<Cow<'a, str>>,
}

impl<'a> JaegerTrace<'a> {
    /// The view of a trace with at least one span; `None` of an empty one. All spans are taken to have the id of the first.
    pub fn of(trace: &'a Trace) -> Option<Self> {
        let trace_id = trace.spans().next()?.trace_id;
        let mut processes = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        let process_of_group = trace
            .groups
            .iter()
            .map(|group| {
                *known.entry(process_identity(&group.resource)).or_insert_with(|| {
                    processes.push(process(&group.resource));
                    processes.len() - 1
                })
            })
            .collect();
        Some(Self { trace_id, processes, warnings: Vec::new(), trace, process_of_group })
    }

    /// The spans, made as they are asked for, in the order of the trace.
    pub fn spans(&self) -> impl Iterator<Item = JaegerSpan<'a>> {
        self.trace.groups.iter().zip(&self.process_of_group).flat_map(|(group, process)| {
            let of_scope = move |scope: &'a crate::assemble::ScopeGroup| {
                scope.spans.iter().map(move |span| jaeger_span(span, &scope.scope, *process))
            };
            group.scopes.iter().flat_map(of_scope)
        })
    }
}

/// The service a resource names, as Jaeger's own translation reads it.
pub fn service_of(resource: &Resource) -> Cow<'_, str> {
    if resource.attributes.is_empty() {
        return Cow::Borrowed(NO_SERVICE);
    }
    resource.attributes.iter().find(|a| a.key == "service.name").map_or(Cow::Borrowed(""), |a| value_text(&a.value))
}

fn process(resource: &Resource) -> Process<'_> {
    let tags = resource.attributes.iter().filter(|a| a.key != "service.name").map(tag).collect();
    Process { service: service_of(resource), tags }
}

/// Equal for equal processes: same service, same tags in any order.
fn process_identity(resource: &Resource) -> String {
    let text = |a: &Attribute| {
        let mut text = String::new();
        typed_json::push_str(&a.key, &mut text);
        typed_json::write_value(&a.value, &mut text);
        text
    };
    let mut tags: Vec<String> = resource.attributes.iter().filter(|a| a.key != "service.name").map(text).collect();
    tags.sort_unstable();
    let mut identity = String::new();
    typed_json::push_str(&service_of(resource), &mut identity);
    tags.iter().for_each(|tag| identity.push_str(tag));
    identity
}

fn jaeger_span<'a>(span: &'a Span, scope: &'a Scope, process: usize) -> JaegerSpan<'a> {
    let duration = i128::from(span.end_unix_nano) - i128::from(span.start_unix_nano);
    JaegerSpan {
        trace_id: span.trace_id,
        span_id: span.span_id,
        flags: span.flags & SAMPLED,
        operation: &span.name,
        references: references(span),
        start_unix_nano: span.start_unix_nano,
        duration_nanos: duration.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
        tags: span_tags(span, scope),
        logs: span.events.iter().map(log).collect(),
        process,
        warnings: span.attributes.iter().filter_map(warnings).flatten().collect(),
    }
}

fn span_tags<'a>(span: &'a Span, scope: &'a Scope) -> Vec<Tag<'a>> {
    let mut tags = Vec::with_capacity(span.attributes.len() + 6);
    let put_text = |tags: &mut Vec<Tag<'a>>, key, text: &'a str| {
        if !text.is_empty() {
            tags.push(Tag { key: Cow::Borrowed(key), value: TagValue::Str(Cow::Borrowed(text)) });
        }
    };
    put_text(&mut tags, "otel.scope.name", &scope.name);
    put_text(&mut tags, "otel.scope.version", &scope.version);
    tags.extend(span.attributes.iter().filter(|a| warnings(a).is_none()).map(tag));
    put_text(&mut tags, "span.kind", kind_word(span.kind));
    match span.status_code {
        STATUS_OK => put_text(&mut tags, "otel.status_code", "OK"),
        STATUS_ERROR => {
            put_text(&mut tags, "otel.status_code", "ERROR");
            tags.push(Tag { key: Cow::Borrowed("error"), value: TagValue::Bool(true) });
        }
        _ => {}
    }
    put_text(&mut tags, "otel.status_description", &span.status_message);
    put_text(&mut tags, "w3c.tracestate", &span.trace_state);
    tags
}

/// What Jaeger calls a kind; empty for the unspecified one and for numbers it does not know.
pub fn kind_word(kind: i32) -> &'static str {
    match kind {
        KIND_INTERNAL => "internal",
        KIND_SERVER => "server",
        KIND_CLIENT => "client",
        KIND_PRODUCER => "producer",
        KIND_CONSUMER => "consumer",
        _ => "",
    }
}

/// The texts of a warnings attribute; `None` of any other.
fn warnings(attribute: &Attribute) -> Option<Vec<Cow<'_, str>>> {
    match &attribute.value {
        _ if attribute.key != WARNINGS_KEY => None,
        Value::Array(texts) => Some(texts.iter().map(value_text).collect()),
        Value::Str(text) => Some(vec![Cow::Borrowed(text)]),
        _ => None,
    }
}

fn log(event: &Event) -> Log<'_> {
    let named = event.attributes.iter().any(|a| a.key == "event");
    let mut fields = Vec::with_capacity(event.attributes.len() + 1);
    if !named && !event.name.is_empty() {
        fields.push(Tag { key: Cow::Borrowed("event"), value: TagValue::Str(Cow::Borrowed(&event.name)) });
    }
    fields.extend(event.attributes.iter().map(tag));
    Log { time_unix_nano: event.time_unix_nano, fields }
}

/// The parent, if there is one: eight zeros are none.
pub(crate) fn parent_of(span: &Span) -> Option<SpanId> {
    span.parent_span_id.filter(|id| id.is_valid())
}

fn references(span: &Span) -> Vec<Reference> {
    let parent = parent_of(span);
    let mut references = Vec::with_capacity(span.links.len() + usize::from(parent.is_some()));
    if let Some(span_id) = parent {
        references.push(Reference { ref_type: RefType::ChildOf, trace_id: span.trace_id, span_id });
    }
    for link in &span.links {
        let Some((trace_id, span_id)) = ids_of(link) else { continue };
        let ref_type = ref_type(link);
        if trace_id == span.trace_id && Some(span_id) == parent {
            references[0].ref_type = ref_type;
        } else {
            references.push(Reference { ref_type, trace_id, span_id });
        }
    }
    references
}

/// Links are stored as sent, ids of any length. Short ones are padded as everywhere; too long ones point nowhere.
pub(crate) fn ids_of(link: &Link) -> Option<(TraceId, SpanId)> {
    let mut trace_id = [0; 16];
    trace_id[16usize.checked_sub(link.trace_id.len())?..].copy_from_slice(&link.trace_id);
    let mut span_id = [0; 8];
    span_id[8usize.checked_sub(link.span_id.len())?..].copy_from_slice(&link.span_id);
    Some((TraceId(trace_id), SpanId(span_id)))
}

fn ref_type(link: &Link) -> RefType {
    let said = link.attributes.iter().find(|a| a.key == REF_TYPE_KEY);
    match said.map(|a| &a.value) {
        Some(Value::Str(word)) if word == "child_of" => RefType::ChildOf,
        _ => RefType::FollowsFrom,
    }
}

fn tag(attribute: &Attribute) -> Tag<'_> {
    Tag { key: Cow::Borrowed(&attribute.key), value: tag_value(&attribute.value) }
}

fn tag_value(value: &Value) -> TagValue<'_> {
    match value {
        Value::Bool(value) => TagValue::Bool(*value),
        Value::Int(value) => TagValue::Int(*value),
        Value::Double(value) => TagValue::Double(*value),
        Value::Bytes(bytes) => TagValue::Binary(Cow::Borrowed(bytes)),
        Value::Raw(_) | Value::RawPair(_) => match understood(value) {
            Value::Bool(value) => TagValue::Bool(value),
            Value::Int(value) => TagValue::Int(value),
            Value::Double(value) => TagValue::Double(value),
            Value::Bytes(bytes) => TagValue::Binary(Cow::Owned(bytes)),
            other => TagValue::Str(Cow::Owned(value_text(&other).into_owned())),
        },
        Value::Empty | Value::Str(_) | Value::Array(_) | Value::Map(_) => TagValue::Str(value_text(value)),
    }
}

/// What this version understands of a value that was kept as bytes; never one of the raw forms.
fn understood(value: &Value) -> Value {
    let any = match value {
        Value::Raw(message) => AnyValue::decode(message.as_slice()).ok(),
        Value::RawPair(message) => KeyValue::decode(message.as_slice()).ok().and_then(|pair| pair.value),
        plain => return plain.clone(),
    };
    any.map_or(Value::Empty, plain)
}

/// Recursion is bounded by the depth at which messages decode.
fn plain(any: AnyValue) -> Value {
    use spanhouse_proto::otlp_common::any_value::Value as Proto;
    match any.value {
        None | Some(Proto::StringValueStrindex(_)) => Value::Empty,
        Some(Proto::StringValue(text)) => Value::Str(text),
        Some(Proto::BoolValue(value)) => Value::Bool(value),
        Some(Proto::IntValue(value)) => Value::Int(value),
        Some(Proto::DoubleValue(value)) => Value::Double(value),
        Some(Proto::BytesValue(bytes)) => Value::Bytes(bytes),
        Some(Proto::ArrayValue(array)) => Value::Array(array.values.into_iter().map(plain).collect()),
        Some(Proto::KvlistValue(list)) => {
            let pair = |pair: KeyValue| (pair.key, pair.value.map_or(Value::Empty, plain));
            Value::Map(list.values.into_iter().map(pair).collect())
        }
    }
}
