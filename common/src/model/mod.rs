//! The span model: what a trace is, owned and free of any wire format.
//!
//! Used where a few spans leave or enter (trace by id, tests); bulk data travels as [`crate::batch::SpanBatch`].
//! Nothing a sender sent is lost in it: order, duplicates, unknown fields and absurd times are all kept.

pub mod typed_json;

use std::sync::Arc;

use crate::id::{SpanId, TraceId};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// The sender set a value without content.
    Empty,
    Str(String),
    Bool(bool),
    Int(i64),
    Double(f64),
    Bytes(Vec<u8>),
    Array(Vec<Value>),
    /// Ordered, duplicates kept.
    Map(Vec<(String, Value)>),
    /// An encoded `AnyValue` message with fields this version does not know, as received.
    Raw(Vec<u8>),
    /// The whole encoded `KeyValue` message, as received, where its pair has a form this version does not know (no
    /// value at all, unknown fields). Only ever the value of an attribute, never inside an array or map.
    RawPair(Vec<u8>),
}

/// A key and its value. Keys may repeat; the order is the sender's.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    pub key: String,
    pub value: Value,
}

/// Who emitted the span, with what stood around it in the request.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Resource {
    pub attributes: Vec<Attribute>,
    pub dropped_attributes_count: u32,
    pub entity_refs: Vec<EntityRef>,
    pub schema_url: String,
    /// Unknown fields of the resource message, as received.
    pub unknown: Vec<u8>,
    /// Unknown fields of the message around it, as received.
    pub group_unknown: Vec<u8>,
    /// 0, or counts the equal resources before this one in its request, so that groups of a request stay apart.
    pub ordinal: u32,
}

impl Resource {
    /// `service.name`, if it is a string.
    pub fn service_name(&self) -> Option<&str> {
        self.attributes.iter().find_map(|a| match &a.value {
            Value::Str(s) if a.key == "service.name" => Some(s.as_str()),
            _ => None,
        })
    }
}

/// A reference to an entity that a resource describes.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct EntityRef {
    pub schema_url: String,
    pub r#type: String,
    pub id_keys: Vec<String>,
    pub description_keys: Vec<String>,
    pub unknown: Vec<u8>,
}

/// The instrumentation scope of a span.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Scope {
    pub name: String,
    pub version: String,
    pub attributes: Vec<Attribute>,
    pub dropped_attributes_count: u32,
    pub schema_url: String,
    /// Unknown fields of the scope message, as received.
    pub unknown: Vec<u8>,
    /// Unknown fields of the message around it, as received.
    pub group_unknown: Vec<u8>,
    /// As [`Resource::ordinal`].
    pub ordinal: u32,
}

/// One span.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Span {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// Absent for a root. Eight zero bytes are kept as sent.
    pub parent_span_id: Option<SpanId>,
    pub trace_state: String,
    pub flags: u32,
    pub name: String,
    /// OTLP's number; numbers this version does not know are kept.
    pub kind: i32,
    pub start_unix_nano: u64,
    pub end_unix_nano: u64,
    pub attributes: Vec<Attribute>,
    pub dropped_attributes_count: u32,
    pub events: Vec<Event>,
    pub dropped_events_count: u32,
    pub links: Vec<Link>,
    pub dropped_links_count: u32,
    pub status_message: String,
    /// OTLP's number: 0 unset, 1 ok, 2 error.
    pub status_code: i32,
    /// Unknown fields of the span message, as received.
    pub unknown: Vec<u8>,
}

/// Something that happened during a span.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Event {
    pub time_unix_nano: u64,
    pub name: String,
    pub attributes: Vec<Attribute>,
    pub dropped_attributes_count: u32,
    pub unknown: Vec<u8>,
}

/// A pointer to another span. Its ids are not validated: any length is kept.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Link {
    pub trace_id: Vec<u8>,
    pub span_id: Vec<u8>,
    pub trace_state: String,
    pub attributes: Vec<Attribute>,
    pub dropped_attributes_count: u32,
    pub flags: u32,
    pub unknown: Vec<u8>,
}

/// A span with what it belongs to, as it comes out of storage.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSpan {
    pub span: Span,
    pub resource: Arc<Resource>,
    pub scope: Arc<Scope>,
    /// The ingester saw this id before: an identical copy may be stored.
    pub maybe_duplicate: bool,
}
