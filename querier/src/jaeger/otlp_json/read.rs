//! Reading OTLP/JSON, members in camelCase or, as some write them, in snake_case. Unknown members are passed over, absent and null ones
//! are empty, as the specification of the format wants it.
//!
//! Bounds: nesting by the JSON parser's own limit; memory by [`read_cost`], which the caller takes before it reads.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, de};
use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::{Attribute, EntityRef, Event, Link, Resource, Scope, Span, Value};
use spanhouse_proto::otlp_trace::{span::SpanKind, status::StatusCode};

use crate::assemble::{ResourceGroup, ScopeGroup, Trace};

/// What one object or list of the text may become: an event is the largest of those that may be empty.
const BYTES_PER_OBJECT: usize = 128;
/// What a span takes besides.
const BYTES_PER_SPAN: usize = size_of::<Span>();

/// Why a text is not read. Parsers say where.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("{0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the body is no JSON object")]
    NoObject,
}

/// Bytes that [`read_traces`] holds at most, the text itself left out.
pub fn read_cost(text: &[u8]) -> usize {
    // A struct may also be written as a list of its members.
    let objects = text.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    // A span needs an id, and no other member has this name but a link, which is smaller.
    let spans = text.windows(8).filter(|window| window == b"\"spanId\"").count()
        + text.windows(9).filter(|window| window == b"\"span_id\"").count();
    text.len().saturating_add(objects.saturating_mul(BYTES_PER_OBJECT)).saturating_add(spans.saturating_mul(BYTES_PER_SPAN))
}

/// Reads one `TracesData`, or several one after the other: a trace for each trace id, in the order in which they first appear.
pub fn read_traces(text: &[u8]) -> Result<Vec<Trace>, JsonError> {
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(JsonError::NoObject);
    }
    let mut by_id = ById::default();
    for document in serde_json::Deserializer::from_slice(text).into_iter::<Document>() {
        document?.resource_spans.into_iter().for_each(|group| by_id.add(group));
    }
    Ok(by_id.traces)
}

#[derive(Default)]
struct ById {
    traces: Vec<Trace>,
    known: HashMap<TraceId, usize>,
}

impl ById {
    fn add(&mut self, group: JsonResourceSpans) {
        let resource = Arc::new(Resource { schema_url: group.schema_url, ..group.resource });
        for scope_group in group.scope_spans {
            let scope = Arc::new(Scope { schema_url: scope_group.schema_url, ..scope_group.scope });
            for span in scope_group.spans {
                let at = *self.known.entry(span.trace_id).or_insert_with(|| {
                    self.traces.push(Trace::default());
                    self.traces.len() - 1
                });
                let groups = &mut self.traces[at].groups;
                if groups.last().is_none_or(|last| !Arc::ptr_eq(&last.resource, &resource)) {
                    groups.push(ResourceGroup { resource: Arc::clone(&resource), scopes: Vec::new() });
                }
                let Some(group) = groups.last_mut() else { continue };
                if group.scopes.last().is_none_or(|last| !Arc::ptr_eq(&last.scope, &scope)) {
                    group.scopes.push(ScopeGroup { scope: Arc::clone(&scope), spans: Vec::new() });
                }
                if let Some(scope) = group.scopes.last_mut() {
                    scope.spans.push(span);
                }
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(alias = "resource_spans", default, deserialize_with = "list")]
    resource_spans: Vec<JsonResourceSpans>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonResourceSpans {
    #[serde(deserialize_with = "resource")]
    resource: Resource,
    #[serde(alias = "scope_spans", deserialize_with = "list")]
    scope_spans: Vec<JsonScopeSpans>,
    #[serde(alias = "schema_url", deserialize_with = "or_empty")]
    schema_url: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonScopeSpans {
    #[serde(deserialize_with = "scope")]
    scope: Scope,
    #[serde(deserialize_with = "converted::<_, JsonSpan, _>")]
    spans: Vec<Span>,
    #[serde(alias = "schema_url", deserialize_with = "or_empty")]
    schema_url: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonResource {
    #[serde(deserialize_with = "attributes")]
    attributes: Vec<Attribute>,
    #[serde(alias = "dropped_attributes_count", deserialize_with = "number")]
    dropped_attributes_count: u32,
    #[serde(alias = "entity_refs", deserialize_with = "converted::<_, JsonEntityRef, _>")]
    entity_refs: Vec<EntityRef>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonEntityRef {
    #[serde(alias = "schema_url", deserialize_with = "or_empty")]
    schema_url: String,
    #[serde(deserialize_with = "or_empty")]
    r#type: String,
    #[serde(alias = "id_keys", deserialize_with = "list")]
    id_keys: Vec<String>,
    #[serde(alias = "description_keys", deserialize_with = "list")]
    description_keys: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonScope {
    #[serde(deserialize_with = "or_empty")]
    name: String,
    #[serde(deserialize_with = "or_empty")]
    version: String,
    #[serde(deserialize_with = "attributes")]
    attributes: Vec<Attribute>,
    #[serde(alias = "dropped_attributes_count", deserialize_with = "number")]
    dropped_attributes_count: u32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonSpan {
    #[serde(alias = "trace_id", deserialize_with = "or_empty")]
    trace_id: String,
    #[serde(alias = "span_id", deserialize_with = "or_empty")]
    span_id: String,
    #[serde(alias = "trace_state", deserialize_with = "or_empty")]
    trace_state: String,
    #[serde(alias = "parent_span_id", deserialize_with = "or_empty")]
    parent_span_id: String,
    #[serde(deserialize_with = "number")]
    flags: u32,
    #[serde(deserialize_with = "or_empty")]
    name: String,
    #[serde(deserialize_with = "kind")]
    kind: i32,
    #[serde(alias = "start_time_unix_nano", deserialize_with = "number")]
    start_time_unix_nano: u64,
    #[serde(alias = "end_time_unix_nano", deserialize_with = "number")]
    end_time_unix_nano: u64,
    #[serde(deserialize_with = "attributes")]
    attributes: Vec<Attribute>,
    #[serde(alias = "dropped_attributes_count", deserialize_with = "number")]
    dropped_attributes_count: u32,
    #[serde(deserialize_with = "converted::<_, JsonEvent, _>")]
    events: Vec<Event>,
    #[serde(alias = "dropped_events_count", deserialize_with = "number")]
    dropped_events_count: u32,
    #[serde(deserialize_with = "converted::<_, JsonLink, _>")]
    links: Vec<Link>,
    #[serde(alias = "dropped_links_count", deserialize_with = "number")]
    dropped_links_count: u32,
    #[serde(deserialize_with = "or_empty")]
    status: JsonStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonStatus {
    #[serde(deserialize_with = "or_empty")]
    message: String,
    #[serde(deserialize_with = "status_code")]
    code: i32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonEvent {
    #[serde(alias = "time_unix_nano", deserialize_with = "number")]
    time_unix_nano: u64,
    #[serde(deserialize_with = "or_empty")]
    name: String,
    #[serde(deserialize_with = "attributes")]
    attributes: Vec<Attribute>,
    #[serde(alias = "dropped_attributes_count", deserialize_with = "number")]
    dropped_attributes_count: u32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonLink {
    #[serde(alias = "trace_id", deserialize_with = "or_empty")]
    trace_id: String,
    #[serde(alias = "span_id", deserialize_with = "or_empty")]
    span_id: String,
    #[serde(alias = "trace_state", deserialize_with = "or_empty")]
    trace_state: String,
    #[serde(deserialize_with = "attributes")]
    attributes: Vec<Attribute>,
    #[serde(alias = "dropped_attributes_count", deserialize_with = "number")]
    dropped_attributes_count: u32,
    #[serde(deserialize_with = "number")]
    flags: u32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonPair {
    #[serde(deserialize_with = "or_empty")]
    key: String,
    #[serde(deserialize_with = "or_empty")]
    value: JsonValue,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonValue {
    #[serde(alias = "string_value")]
    string_value: Option<String>,
    #[serde(alias = "bool_value")]
    bool_value: Option<bool>,
    #[serde(alias = "int_value", deserialize_with = "optional_number")]
    int_value: Option<i64>,
    #[serde(alias = "double_value", deserialize_with = "double")]
    double_value: Option<f64>,
    #[serde(alias = "array_value")]
    array_value: Option<JsonArray>,
    #[serde(alias = "kvlist_value")]
    kvlist_value: Option<JsonList>,
    #[serde(alias = "bytes_value")]
    bytes_value: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonArray {
    #[serde(deserialize_with = "converted::<_, JsonValue, _>")]
    values: Vec<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonList {
    #[serde(deserialize_with = "attributes")]
    values: Vec<Attribute>,
}

impl TryFrom<JsonEntityRef> for EntityRef {
    type Error = String;

    fn try_from(json: JsonEntityRef) -> Result<Self, String> {
        let JsonEntityRef { schema_url, r#type, id_keys, description_keys } = json;
        Ok(Self { schema_url, r#type, id_keys, description_keys, ..Self::default() })
    }
}

impl TryFrom<JsonSpan> for Span {
    type Error = String;

    fn try_from(json: JsonSpan) -> Result<Self, String> {
        let trace_id = TraceId(id("traceId", &json.trace_id)?.ok_or("a span has no traceId")?);
        let span_id = SpanId(id("spanId", &json.span_id)?.ok_or("a span has no spanId")?);
        Ok(Self {
            trace_id,
            span_id,
            parent_span_id: id("parentSpanId", &json.parent_span_id)?.map(SpanId),
            trace_state: json.trace_state,
            flags: json.flags,
            name: json.name,
            kind: json.kind,
            start_unix_nano: json.start_time_unix_nano,
            end_unix_nano: json.end_time_unix_nano,
            attributes: json.attributes,
            dropped_attributes_count: json.dropped_attributes_count,
            events: json.events,
            dropped_events_count: json.dropped_events_count,
            links: json.links,
            dropped_links_count: json.dropped_links_count,
            status_message: json.status.message,
            status_code: json.status.code,
            unknown: Vec::new(),
        })
    }
}

impl TryFrom<JsonEvent> for Event {
    type Error = String;

    fn try_from(json: JsonEvent) -> Result<Self, String> {
        let JsonEvent { time_unix_nano, name, attributes, dropped_attributes_count } = json;
        Ok(Self { time_unix_nano, name, attributes, dropped_attributes_count, ..Self::default() })
    }
}

impl TryFrom<JsonLink> for Link {
    type Error = String;

    fn try_from(json: JsonLink) -> Result<Self, String> {
        Ok(Self {
            trace_id: id::<16>("traceId", &json.trace_id)?.map(Vec::from).unwrap_or_default(),
            span_id: id::<8>("spanId", &json.span_id)?.map(Vec::from).unwrap_or_default(),
            trace_state: json.trace_state,
            attributes: json.attributes,
            dropped_attributes_count: json.dropped_attributes_count,
            flags: json.flags,
            unknown: Vec::new(),
        })
    }
}

impl TryFrom<JsonPair> for Attribute {
    type Error = String;

    fn try_from(json: JsonPair) -> Result<Self, String> {
        Ok(Self { key: json.key, value: json.value.try_into()? })
    }
}

impl TryFrom<JsonValue> for Value {
    type Error = String;

    fn try_from(json: JsonValue) -> Result<Self, String> {
        Ok(match json {
            JsonValue { string_value: Some(text), .. } => Self::Str(text),
            JsonValue { bool_value: Some(value), .. } => Self::Bool(value),
            JsonValue { int_value: Some(value), .. } => Self::Int(value),
            JsonValue { double_value: Some(value), .. } => Self::Double(value),
            JsonValue { array_value: Some(array), .. } => Self::Array(array.values),
            JsonValue { kvlist_value: Some(list), .. } => {
                Self::Map(list.values.into_iter().map(|pair| (pair.key, pair.value)).collect())
            }
            JsonValue { bytes_value: Some(text), .. } => {
                Self::Bytes(STANDARD.decode(text).map_err(|error| format!("bytesValue is not base64: {error}"))?)
            }
            _ => Self::Empty,
        })
    }
}

/// An id of hex digits, padded on the left; `None` if there is none.
fn id<const BYTES: usize>(name: &str, text: &str) -> Result<Option<[u8; BYTES]>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || format!("{name} {text:?} is not up to {} hex digits", 2 * BYTES);
    // A sign would be read, too.
    if text.len() > 2 * BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let number = u128::from_str_radix(text, 16).map_err(|_| wrong())?;
    let mut id = [0; BYTES];
    id.copy_from_slice(&number.to_be_bytes()[16 - BYTES..]);
    Ok(Some(id))
}

/// Null is empty.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn resource<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Resource, D::Error> {
    let JsonResource { attributes, dropped_attributes_count, entity_refs } = or_empty(deserializer)?;
    Ok(Resource { attributes, dropped_attributes_count, entity_refs, ..Resource::default() })
}

fn scope<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scope, D::Error> {
    let JsonScope { name, version, attributes, dropped_attributes_count } = or_empty(deserializer)?;
    Ok(Scope { name, version, attributes, dropped_attributes_count, ..Scope::default() })
}

fn attributes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Attribute>, D::Error> {
    converted::<D, JsonPair, Attribute>(deserializer)
}

fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(Items(PhantomData, Ok))
}

/// A list whose items are converted as they are read, so that it is never in memory twice.
fn converted<'de, D, J, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    J: Deserialize<'de>,
    T: TryFrom<J, Error = String>,
{
    deserializer.deserialize_any(Items(PhantomData::<J>, T::try_from))
}

struct Items<J, F>(PhantomData<J>, F);

impl<'de, J, T, F> Visitor<'de> for Items<J, F>
where
    J: Deserialize<'de>,
    F: Fn(J) -> Result<T, String>,
{
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push((self.1)(item).map_err(A::Error::custom)?);
        }
        Ok(list)
    }
}

/// A number, or the text of one: 64 bits are sent as texts, and some senders write small numbers so too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Unsigned(u64),
    Signed(i64),
    Double(f64),
    Text(String),
}

impl Number {
    fn to<T: TryFrom<i128>>(&self) -> Option<T> {
        let whole = match self {
            Self::Unsigned(number) => i128::from(*number),
            Self::Signed(number) => i128::from(*number),
            // 1e9 is a whole number, too.
            Self::Double(number) if number.fract() == 0.0 && number.abs() < 1e19 => *number as i128,
            Self::Double(_) => return None,
            Self::Text(text) => text.parse().ok()?,
        };
        T::try_from(whole).ok()
    }
}

fn number<'de, D: Deserializer<'de>, T: TryFrom<i128> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(optional_number(deserializer)?.unwrap_or_default())
}

fn optional_number<'de, D: Deserializer<'de>, T: TryFrom<i128>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else { return Ok(None) };
    number.to().map(Some).ok_or_else(|| D::Error::custom("a number is not whole or out of range"))
}

fn double<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(match Option::<Number>::deserialize(deserializer)? {
        None => None,
        Some(Number::Unsigned(number)) => Some(number as f64),
        Some(Number::Signed(number)) => Some(number as f64),
        Some(Number::Double(number)) => Some(number),
        // Also NaN and Infinity, for which JSON has no numbers.
        Some(Number::Text(text)) => Some(text.parse().map_err(|_| D::Error::custom("doubleValue is not a number"))?),
    })
}

/// An enum by its number or its name.
fn named<'de, D: Deserializer<'de>>(deserializer: D, number_of: fn(&str) -> Option<i32>) -> Result<i32, D::Error> {
    match Option::<Number>::deserialize(deserializer)? {
        None => Ok(0),
        Some(Number::Text(name)) if number_of(&name).is_some() => Ok(number_of(&name).unwrap_or_default()),
        Some(number) => number.to().ok_or_else(|| D::Error::custom("an enum has a value that is none")),
    }
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    named(deserializer, |name| SpanKind::from_str_name(name).map(i32::from))
}

fn status_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    named(deserializer, |name| StatusCode::from_str_name(name).map(i32::from))
}
