//! The messages of `ExportTraceServiceRequest` as tables: JSON name, proto name, number, kind of each field.
//!
//! Owns the field list of opentelemetry-proto 1.x for traces. A field missing here is ignored, as the specification asks.

/// One message type.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
}

/// One field: both spellings a sender may use.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) camel: &'static str,
    pub(super) snake: &'static str,
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Message(&'static Message),
    Text,
    /// Bytes as hex: trace and span ids.
    Hex,
    Base64,
    Bool,
    Int32,
    Int64,
    Uint32,
    Fixed32,
    Fixed64,
    Double,
    Enum(&'static [(&'static str, i32)]),
}

impl Message {
    pub(super) fn field(&'static self, key: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.camel == key || field.snake == key)
    }
}

const fn one(camel: &'static str, snake: &'static str, number: u32, kind: Kind) -> Field {
    Field { camel, snake, number, kind, repeated: false }
}

const fn many(camel: &'static str, snake: &'static str, number: u32, kind: Kind) -> Field {
    Field { camel, snake, number, kind, repeated: true }
}

pub(super) static REQUEST: Message = Message {
    name: "ExportTraceServiceRequest",
    fields: &[many("resourceSpans", "resource_spans", 1, Kind::Message(&RESOURCE_SPANS))],
};

static RESOURCE_SPANS: Message = Message {
    name: "ResourceSpans",
    fields: &[
        one("resource", "resource", 1, Kind::Message(&RESOURCE)),
        many("scopeSpans", "scope_spans", 2, Kind::Message(&SCOPE_SPANS)),
        one("schemaUrl", "schema_url", 3, Kind::Text),
    ],
};

static RESOURCE: Message = Message {
    name: "Resource",
    fields: &[
        many("attributes", "attributes", 1, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", "dropped_attributes_count", 2, Kind::Uint32),
        many("entityRefs", "entity_refs", 3, Kind::Message(&ENTITY_REF)),
    ],
};

static ENTITY_REF: Message = Message {
    name: "EntityRef",
    fields: &[
        one("schemaUrl", "schema_url", 1, Kind::Text),
        one("type", "type", 2, Kind::Text),
        many("idKeys", "id_keys", 3, Kind::Text),
        many("descriptionKeys", "description_keys", 4, Kind::Text),
    ],
};

static SCOPE_SPANS: Message = Message {
    name: "ScopeSpans",
    fields: &[
        one("scope", "scope", 1, Kind::Message(&SCOPE)),
        many("spans", "spans", 2, Kind::Message(&SPAN)),
        one("schemaUrl", "schema_url", 3, Kind::Text),
    ],
};

static SCOPE: Message = Message {
    name: "InstrumentationScope",
    fields: &[
        one("name", "name", 1, Kind::Text),
        one("version", "version", 2, Kind::Text),
        many("attributes", "attributes", 3, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", "dropped_attributes_count", 4, Kind::Uint32),
    ],
};

static SPAN: Message = Message {
    name: "Span",
    fields: &[
        one("traceId", "trace_id", 1, Kind::Hex),
        one("spanId", "span_id", 2, Kind::Hex),
        one("traceState", "trace_state", 3, Kind::Text),
        one("parentSpanId", "parent_span_id", 4, Kind::Hex),
        one("name", "name", 5, Kind::Text),
        one("kind", "kind", 6, Kind::Enum(SPAN_KINDS)),
        one("startTimeUnixNano", "start_time_unix_nano", 7, Kind::Fixed64),
        one("endTimeUnixNano", "end_time_unix_nano", 8, Kind::Fixed64),
        many("attributes", "attributes", 9, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", "dropped_attributes_count", 10, Kind::Uint32),
        many("events", "events", 11, Kind::Message(&EVENT)),
        one("droppedEventsCount", "dropped_events_count", 12, Kind::Uint32),
        many("links", "links", 13, Kind::Message(&LINK)),
        one("droppedLinksCount", "dropped_links_count", 14, Kind::Uint32),
        one("status", "status", 15, Kind::Message(&STATUS)),
        one("flags", "flags", 16, Kind::Fixed32),
    ],
};

const SPAN_KINDS: &[(&str, i32)] = &[
    ("SPAN_KIND_UNSPECIFIED", 0),
    ("SPAN_KIND_INTERNAL", 1),
    ("SPAN_KIND_SERVER", 2),
    ("SPAN_KIND_CLIENT", 3),
    ("SPAN_KIND_PRODUCER", 4),
    ("SPAN_KIND_CONSUMER", 5),
];

static EVENT: Message = Message {
    name: "Event",
    fields: &[
        one("timeUnixNano", "time_unix_nano", 1, Kind::Fixed64),
        one("name", "name", 2, Kind::Text),
        many("attributes", "attributes", 3, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", "dropped_attributes_count", 4, Kind::Uint32),
    ],
};

static LINK: Message = Message {
    name: "Link",
    fields: &[
        one("traceId", "trace_id", 1, Kind::Hex),
        one("spanId", "span_id", 2, Kind::Hex),
        one("traceState", "trace_state", 3, Kind::Text),
        many("attributes", "attributes", 4, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", "dropped_attributes_count", 5, Kind::Uint32),
        one("flags", "flags", 6, Kind::Fixed32),
    ],
};

static STATUS: Message = Message {
    name: "Status",
    // Number 1 was removed from the protocol.
    fields: &[one("message", "message", 2, Kind::Text), one("code", "code", 3, Kind::Enum(STATUS_CODES))],
};

const STATUS_CODES: &[(&str, i32)] = &[("STATUS_CODE_UNSET", 0), ("STATUS_CODE_OK", 1), ("STATUS_CODE_ERROR", 2)];

static KEY_VALUE: Message = Message {
    name: "KeyValue",
    fields: &[
        one("key", "key", 1, Kind::Text),
        one("value", "value", 2, Kind::Message(&ANY_VALUE)),
        // Of profiles only; kept like anything else a sender writes.
        one("keyStrindex", "key_strindex", 3, Kind::Int32),
    ],
};

static ANY_VALUE: Message = Message {
    name: "AnyValue",
    fields: &[
        one("stringValue", "string_value", 1, Kind::Text),
        one("boolValue", "bool_value", 2, Kind::Bool),
        one("intValue", "int_value", 3, Kind::Int64),
        one("doubleValue", "double_value", 4, Kind::Double),
        one("arrayValue", "array_value", 5, Kind::Message(&ARRAY_VALUE)),
        one("kvlistValue", "kvlist_value", 6, Kind::Message(&KEY_VALUE_LIST)),
        one("bytesValue", "bytes_value", 7, Kind::Base64),
        one("stringValueStrindex", "string_value_strindex", 8, Kind::Int32),
    ],
};

static ARRAY_VALUE: Message =
    Message { name: "ArrayValue", fields: &[many("values", "values", 1, Kind::Message(&ANY_VALUE))] };

static KEY_VALUE_LIST: Message =
    Message { name: "KeyValueList", fields: &[many("values", "values", 1, Kind::Message(&KEY_VALUE))] };
