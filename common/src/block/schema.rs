//! The columns of a block: names, Parquet types and their order in the file. `FORMAT.md` says what each holds.

use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, TimeUnit, Type as PhysicalType};
use parquet::errors::Result;
use parquet::schema::types::{Type, TypePtr};

use crate::batch::ValueKind;

/// Written to the file's key-value metadata; readers refuse numbers they do not know.
pub const FORMAT_VERSION: u32 = 1;

/// Keys of the file's key-value metadata.
pub mod metadata_key {
    /// [`super::FORMAT_VERSION`] in decimal.
    pub const FORMAT: &str = "spanhouse.format";
    /// JSON of [`crate::block::BlockMeta`].
    pub const BLOCK: &str = "spanhouse.block";
    /// JSON of [`crate::block::Summary`].
    pub const SUMMARY: &str = "spanhouse.summary";
}

/// Column names. Attributes are named as TraceQL names them.
pub mod column {
    pub const TRACE_ID: &str = "trace_id";
    pub const TRACE_INDEX: &str = "trace_index";
    pub const SPAN_ID: &str = "span_id";
    pub const PARENT_SPAN_ID: &str = "parent_span_id";
    pub const PARENT_DELTA: &str = "parent_delta";
    pub const SUBTREE_SIZE: &str = "subtree_size";
    pub const ROW_FLAGS: &str = "row_flags";
    pub const START_TIME: &str = "start_time";
    pub const DURATION_NS: &str = "duration_ns";
    pub const NAME: &str = "name";
    pub const KIND: &str = "kind";
    pub const STATUS_CODE: &str = "status_code";
    pub const STATUS_MESSAGE: &str = "status_message";
    pub const SERVICE_NAME: &str = "resource.service.name";
    pub const RESOURCE: &str = "resource";
    pub const SCOPE: &str = "scope";
    pub const ROOT_SERVICE_NAME: &str = "root_service_name";
    pub const ROOT_SPAN_NAME: &str = "root_span_name";
    pub const TRACE_DURATION_NS: &str = "trace_duration_ns";
    pub const TRACE_STATE: &str = "trace_state";
    pub const FLAGS: &str = "flags";
    pub const DROPPED_ATTRIBUTES: &str = "dropped_attributes_count";
    pub const DROPPED_EVENTS: &str = "dropped_events_count";
    pub const DROPPED_LINKS: &str = "dropped_links_count";
    pub const ATTRIBUTE_SHAPE: &str = "attribute_shape";
    pub const ATTRIBUTES_REST: &str = "attributes_rest";
    pub const EVENTS: &str = "events";
    pub const LINKS: &str = "links";
    pub const UNKNOWN: &str = "unknown";
    /// Prefix of the typed columns of span attributes, and of events and links inside their structs.
    pub const SPAN_PREFIX: &str = "span.";
    pub const EVENT_PREFIX: &str = "event.";
    pub const LINK_PREFIX: &str = "link.";
    /// Members of the event and link structs.
    pub const TIME_OFFSET_NS: &str = "time_offset_ns";
    pub const ODD_IDS: &str = "odd_ids";
}

/// An attribute key with a typed column of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedKey {
    pub key: String,
    /// Never [`ValueKind::Json`].
    pub kind: ValueKind,
}

/// Which typed columns a block has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypedKeys {
    pub span: Vec<TypedKey>,
    pub event: Vec<TypedKey>,
    pub link: Vec<TypedKey>,
}

fn leaf(name: &str, physical: PhysicalType, repetition: Repetition, logical: Option<LogicalType>) -> Result<TypePtr> {
    Ok(Arc::new(
        Type::primitive_type_builder(name, physical).with_repetition(repetition).with_logical_type(logical).build()?,
    ))
}

fn text(name: &str, repetition: Repetition) -> Result<TypePtr> {
    leaf(name, PhysicalType::BYTE_ARRAY, repetition, Some(LogicalType::String))
}

fn bytes(name: &str, repetition: Repetition) -> Result<TypePtr> {
    leaf(name, PhysicalType::BYTE_ARRAY, repetition, None)
}

fn fixed(name: &str, width: i32, repetition: Repetition) -> Result<TypePtr> {
    let builder = Type::primitive_type_builder(name, PhysicalType::FIXED_LEN_BYTE_ARRAY);
    Ok(Arc::new(builder.with_repetition(repetition).with_length(width).build()?))
}

fn i32(name: &str) -> Result<TypePtr> {
    leaf(name, PhysicalType::INT32, Repetition::REQUIRED, None)
}

fn u32(name: &str) -> Result<TypePtr> {
    let logical = LogicalType::integer(32, false);
    leaf(name, PhysicalType::INT32, Repetition::REQUIRED, Some(logical))
}

fn i64(name: &str) -> Result<TypePtr> {
    leaf(name, PhysicalType::INT64, Repetition::REQUIRED, None)
}

fn typed(prefix: &str, key: &TypedKey) -> Result<TypePtr> {
    let name = format!("{prefix}{}", key.key);
    match key.kind {
        ValueKind::Str | ValueKind::Json => text(&name, Repetition::OPTIONAL),
        ValueKind::Int => leaf(&name, PhysicalType::INT64, Repetition::OPTIONAL, None),
        ValueKind::Double => leaf(&name, PhysicalType::DOUBLE, Repetition::OPTIONAL, None),
        ValueKind::Bool => leaf(&name, PhysicalType::BOOLEAN, Repetition::OPTIONAL, None),
    }
}

fn group(name: &str, repetition: Repetition, logical: Option<LogicalType>, fields: Vec<TypePtr>) -> Result<TypePtr> {
    let builder = Type::group_type_builder(name).with_repetition(repetition).with_logical_type(logical);
    Ok(Arc::new(builder.with_fields(fields).build()?))
}

fn list(name: &str, fields: Vec<TypePtr>) -> Result<TypePtr> {
    let element = group("element", Repetition::REQUIRED, None, fields)?;
    let list = group("list", Repetition::REPEATED, None, vec![element])?;
    group(name, Repetition::REQUIRED, Some(LogicalType::List), vec![list])
}

/// The Parquet schema of a block with these typed columns. Small hot columns first, wide text last.
pub fn parquet_schema(keys: &TypedKeys) -> Result<TypePtr> {
    use parquet::basic::FieldRepetitionType::{OPTIONAL, REQUIRED};
    let timestamp = LogicalType::timestamp(true, TimeUnit::NANOS);
    let mut fields = vec![
        fixed(column::TRACE_ID, 16, REQUIRED)?,
        i32(column::TRACE_INDEX)?,
        fixed(column::SPAN_ID, 8, REQUIRED)?,
        fixed(column::PARENT_SPAN_ID, 8, OPTIONAL)?,
        i32(column::PARENT_DELTA)?,
        i32(column::SUBTREE_SIZE)?,
        i32(column::ROW_FLAGS)?,
        leaf(column::START_TIME, PhysicalType::INT64, REQUIRED, Some(timestamp))?,
        i64(column::DURATION_NS)?,
        text(column::NAME, REQUIRED)?,
        i32(column::KIND)?,
        i32(column::STATUS_CODE)?,
        text(column::STATUS_MESSAGE, OPTIONAL)?,
        text(column::SERVICE_NAME, OPTIONAL)?,
        text(column::RESOURCE, REQUIRED)?,
        text(column::SCOPE, REQUIRED)?,
        text(column::ROOT_SERVICE_NAME, OPTIONAL)?,
        text(column::ROOT_SPAN_NAME, OPTIONAL)?,
        i64(column::TRACE_DURATION_NS)?,
        text(column::TRACE_STATE, OPTIONAL)?,
        u32(column::FLAGS)?,
        u32(column::DROPPED_ATTRIBUTES)?,
        u32(column::DROPPED_EVENTS)?,
        u32(column::DROPPED_LINKS)?,
        text(column::ATTRIBUTE_SHAPE, OPTIONAL)?,
    ];
    for key in &keys.span {
        fields.push(typed(column::SPAN_PREFIX, key)?);
    }
    let pair = vec![text("key", REQUIRED)?, text("value", REQUIRED)?];
    let entries = group("key_value", Repetition::REPEATED, None, pair)?;
    fields.push(group(column::ATTRIBUTES_REST, REQUIRED, Some(LogicalType::Map), vec![entries])?);
    let mut event = vec![i64(column::TIME_OFFSET_NS)?, text(column::NAME, REQUIRED)?, u32(column::DROPPED_ATTRIBUTES)?];
    event.push(text(column::ATTRIBUTE_SHAPE, OPTIONAL)?);
    for key in &keys.event {
        event.push(typed(column::EVENT_PREFIX, key)?);
    }
    event.push(text(column::ATTRIBUTES_REST, OPTIONAL)?);
    event.push(bytes(column::UNKNOWN, OPTIONAL)?);
    fields.push(list(column::EVENTS, event)?);
    let mut link = vec![
        fixed(column::TRACE_ID, 16, OPTIONAL)?,
        fixed(column::SPAN_ID, 8, OPTIONAL)?,
        bytes(column::ODD_IDS, OPTIONAL)?,
        text(column::TRACE_STATE, OPTIONAL)?,
        u32(column::FLAGS)?,
        u32(column::DROPPED_ATTRIBUTES)?,
        text(column::ATTRIBUTE_SHAPE, OPTIONAL)?,
    ];
    for key in &keys.link {
        link.push(typed(column::LINK_PREFIX, key)?);
    }
    link.push(text(column::ATTRIBUTES_REST, OPTIONAL)?);
    link.push(bytes(column::UNKNOWN, OPTIONAL)?);
    fields.push(list(column::LINKS, link)?);
    fields.push(bytes(column::UNKNOWN, OPTIONAL)?);
    Ok(Arc::new(Type::group_type_builder("span").with_fields(fields).build()?))
}
