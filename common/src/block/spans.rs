//! From columns back to spans: a range of rows, every column of it, as the model that was received.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::ParquetError;

use super::column::{ColumnRows, ColumnValues};
use super::schema::column;
use super::tree::flag;
use crate::id::{SpanId, TraceId};
use crate::model::{Attribute, Event, Link, Span, StoredSpan, Value, typed_json};

/// A column does not hold what the format says.
fn bad(what: impl std::fmt::Display) -> ParquetError {
    ParquetError::General(format!("block is damaged: {what}"))
}

/// One leaf of the schema over the rows being read.
pub(super) struct Leaf {
    /// Path in the schema, joined by dots the way [`parquet::schema::types::ColumnPath::string`] does.
    pub(super) path: Vec<String>,
    pub(super) max_definition: u8,
    pub(super) rows: ColumnRows,
}

/// A column with one optional value per item (a row, an event, a link).
struct Items {
    /// Value index of each item.
    at: Vec<Option<u32>>,
    values: ColumnValues,
}

impl Items {
    fn of(leaf: Leaf, items: usize) -> Result<Self, ParquetError> {
        let mut next = 0;
        let mut take = |present: bool| {
            present.then(|| {
                next += 1;
                next - 1
            })
        };
        let max = leaf.max_definition;
        let at: Vec<Option<u32>> = if leaf.rows.definition.is_empty() {
            (0..items).map(|_| take(true)).collect()
        } else if leaf.rows.repetition.is_empty() {
            leaf.rows.definition.iter().map(|level| take(*level == max)).collect()
        } else {
            // Level 0 marks an empty list, which is no item.
            leaf.rows.definition.iter().filter(|level| **level > 0).map(|level| take(*level == max)).collect()
        };
        if at.len() != items || next as usize != leaf.rows.values.len() {
            return Err(bad("columns of different length"));
        }
        Ok(Self { at, values: leaf.rows.values })
    }

    fn bytes(&self, item: usize) -> Option<&Bytes> {
        match &self.values {
            ColumnValues::Bytes(all) => self.at[item].and_then(|at| all.get(at as usize)),
            _ => None,
        }
    }

    fn text(&self, item: usize) -> Result<&str, ParquetError> {
        let bytes = self.bytes(item).map_or(&[][..], |b| &b[..]);
        std::str::from_utf8(bytes).map_err(|_| bad("text that is not UTF-8"))
    }

    fn i32(&self, item: usize) -> i32 {
        match &self.values {
            ColumnValues::I32(all) => self.at[item].and_then(|at| all.get(at as usize)).copied().unwrap_or(0),
            _ => 0,
        }
    }

    fn i64(&self, item: usize) -> i64 {
        match &self.values {
            ColumnValues::I64(all) => self.at[item].and_then(|at| all.get(at as usize)).copied().unwrap_or(0),
            _ => 0,
        }
    }

    fn value(&self, item: usize) -> Result<Option<Value>, ParquetError> {
        let Some(at) = self.at[item].map(|at| at as usize) else { return Ok(None) };
        Ok(match &self.values {
            ColumnValues::Bytes(_) => Some(Value::Str(self.text(item)?.to_owned())),
            ColumnValues::I64(all) => all.get(at).map(|v| Value::Int(*v)),
            ColumnValues::F64(all) => all.get(at).map(|v| Value::Double(*v)),
            ColumnValues::Bool(all) => all.get(at).map(|v| Value::Bool(*v)),
            ColumnValues::I32(all) => all.get(at).map(|v| Value::Int(i64::from(*v))),
        })
    }
}

/// The columns of spans, events or links by name.
struct Table {
    columns: HashMap<String, Items>,
}

impl Table {
    fn of(leaves: impl Iterator<Item = (String, Leaf)>, items: usize) -> Result<Self, ParquetError> {
        let columns = leaves.map(|(name, leaf)| Ok((name, Items::of(leaf, items)?))).collect::<Result<_, ParquetError>>()?;
        Ok(Self { columns })
    }

    fn get(&self, name: &str) -> Result<&Items, ParquetError> {
        self.columns.get(name).ok_or_else(|| bad(format_args!("column `{name}` is missing")))
    }

    /// Attributes of an item, in the sender's order: the shape says where each value is.
    fn attributes(
        &self,
        item: usize,
        prefix: &str,
        rest: &mut impl Iterator<Item = Attribute>,
    ) -> Result<Vec<Attribute>, ParquetError> {
        let shape = self.get(column::ATTRIBUTE_SHAPE)?.text(item)?;
        if shape.is_empty() {
            return Ok(Vec::new());
        }
        let shape: Vec<ShapeElement> = serde_json::from_str(shape).map_err(|_| bad("attribute shape"))?;
        shape
            .into_iter()
            .map(|element| match element {
                ShapeElement::Column(key) => {
                    let value = self.get(&format!("{prefix}{key}"))?.value(item)?;
                    let value = value.ok_or_else(|| bad("attribute without value"))?;
                    Ok(Attribute { key, value })
                }
                ShapeElement::Rest([key]) => match rest.next() {
                    Some(attribute) if attribute.key == key => Ok(attribute),
                    _ => Err(bad("attribute missing from the rest")),
                },
            })
            .collect()
    }
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum ShapeElement {
    Column(String),
    Rest([String; 1]),
}

/// Items of each row in a list column.
fn items_by_row(leaf: &Leaf, rows: usize) -> Result<Vec<Range<usize>>, ParquetError> {
    let mut out: Vec<Range<usize>> = Vec::with_capacity(rows);
    let mut items = 0;
    for (definition, repetition) in leaf.rows.definition.iter().zip(&leaf.rows.repetition) {
        if *repetition == 0 {
            out.push(items..items);
        }
        if *definition > 0 {
            items += 1;
            match out.last_mut() {
                Some(row) => row.end = items,
                None => return Err(bad("list without row")),
            }
        }
    }
    if out.len() == rows { Ok(out) } else { Err(bad("lists of different length")) }
}

/// Splits leaves into those of the spans and those inside `list`, by their last name.
fn split(leaves: Vec<Leaf>, list: &str) -> (Vec<(String, Leaf)>, Vec<Leaf>) {
    let (inside, outside): (Vec<Leaf>, Vec<Leaf>) = leaves.into_iter().partition(|leaf| leaf.path[0] == list);
    let last = |leaf: Leaf| (leaf.path.last().cloned().unwrap_or_default(), leaf);
    (inside.into_iter().map(last).collect(), outside)
}

/// Builds the spans of `rows` rows. `first_row` is the position of the first of them in the row group: parents of rows are found
/// relative to it, so the rows must hold whole traces.
pub(super) fn build(leaves: Vec<Leaf>, rows: usize) -> Result<Vec<StoredSpan>, ParquetError> {
    let (events, leaves) = split(leaves, column::EVENTS);
    let (links, leaves) = split(leaves, column::LINKS);
    let (rest, leaves) = split(leaves, column::ATTRIBUTES_REST);
    let sample = |all: &[(String, Leaf)]| -> Result<Vec<Range<usize>>, ParquetError> {
        items_by_row(all.first().map(|(_, leaf)| leaf).ok_or_else(|| bad("list without members"))?, rows)
    };
    let (event_rows, link_rows, rest_rows) = (sample(&events)?, sample(&links)?, sample(&rest)?);
    let count = |ranges: &[Range<usize>]| ranges.last().map_or(0, |range| range.end);
    let events = Table::of(events.into_iter(), count(&event_rows))?;
    let links = Table::of(links.into_iter(), count(&link_rows))?;
    let rest = Table::of(rest.into_iter(), count(&rest_rows))?;
    let spans = Table::of(leaves.into_iter().map(|leaf| (leaf.path[0].clone(), leaf)), rows)?;

    let (mut resources, mut scopes) = (HashMap::new(), HashMap::new());
    let mut out: Vec<StoredSpan> = Vec::with_capacity(rows);
    for row in 0..rows {
        let resource_json = spans.get(column::RESOURCE)?.bytes(row).cloned().unwrap_or_default();
        let resource = match resources.get(&resource_json) {
            Some(known) => Arc::clone(known),
            None => {
                let text = spans.get(column::RESOURCE)?.text(row)?;
                let parsed = Arc::new(typed_json::parse_resource(text).map_err(bad)?);
                resources.insert(resource_json, Arc::clone(&parsed));
                parsed
            }
        };
        let scope_json = spans.get(column::SCOPE)?.bytes(row).cloned().unwrap_or_default();
        let scope = match scopes.get(&scope_json) {
            Some(known) => Arc::clone(known),
            None => {
                let text = spans.get(column::SCOPE)?.text(row)?;
                let parsed = Arc::new(typed_json::parse_scope(text).map_err(bad)?);
                scopes.insert(scope_json, Arc::clone(&parsed));
                parsed
            }
        };
        let flags = spans.get(column::ROW_FLAGS)?.i32(row);
        let delta = spans.get(column::PARENT_DELTA)?.i32(row);
        let parent_span_id = match spans.get(column::PARENT_SPAN_ID)?.bytes(row) {
            Some(id) => Some(SpanId(fixed(id)?)),
            None if flags & flag::ZERO_PARENT != 0 => Some(SpanId::default()),
            None if delta > 0 && flags & flag::ROOT == 0 => {
                let parent = row.checked_sub(delta as usize).ok_or_else(|| bad("parent before the first row"))?;
                Some(out[parent].span.span_id)
            }
            None => None,
        };
        let start = spans.get(column::START_TIME)?.i64(row) as u64;
        let mut rest_attributes = rest_rows[row].clone().map(|item| rest_attribute(&rest, item));
        let mut rest_error = None;
        let mut rest_iter = std::iter::from_fn(|| match rest_attributes.next()? {
            Ok(attribute) => Some(attribute),
            Err(error) => {
                rest_error = Some(error);
                None
            }
        });
        let attributes = spans.attributes(row, column::SPAN_PREFIX, &mut rest_iter);
        if let Some(error) = rest_error {
            return Err(error);
        }
        let text = |name: &str| spans.get(name)?.text(row).map(str::to_owned);
        let count = |name: &str| Ok::<u32, ParquetError>(spans.get(name)?.i32(row) as u32);
        let span = Span {
            trace_id: TraceId(fixed(spans.get(column::TRACE_ID)?.bytes(row).ok_or_else(|| bad("row without trace id"))?)?),
            span_id: SpanId(fixed(spans.get(column::SPAN_ID)?.bytes(row).ok_or_else(|| bad("row without span id"))?)?),
            parent_span_id,
            trace_state: text(column::TRACE_STATE)?,
            flags: count(column::FLAGS)?,
            name: text(column::NAME)?,
            kind: spans.get(column::KIND)?.i32(row),
            start_unix_nano: start,
            end_unix_nano: start.wrapping_add(spans.get(column::DURATION_NS)?.i64(row) as u64),
            attributes: attributes?,
            dropped_attributes_count: count(column::DROPPED_ATTRIBUTES)?,
            events: event_rows[row].clone().map(|item| event(&events, item, start)).collect::<Result<_, _>>()?,
            dropped_events_count: count(column::DROPPED_EVENTS)?,
            links: link_rows[row].clone().map(|item| link(&links, item)).collect::<Result<_, _>>()?,
            dropped_links_count: count(column::DROPPED_LINKS)?,
            status_message: text(column::STATUS_MESSAGE)?,
            status_code: spans.get(column::STATUS_CODE)?.i32(row),
            unknown: spans.get(column::UNKNOWN)?.bytes(row).map(|b| b.to_vec()).unwrap_or_default(),
        };
        out.push(StoredSpan { span, resource, scope, maybe_duplicate: flags & flag::MAYBE_DUPLICATE != 0 });
    }
    Ok(out)
}

fn fixed<const N: usize>(bytes: &Bytes) -> Result<[u8; N], ParquetError> {
    bytes[..].try_into().map_err(|_| bad("id of another length"))
}

fn rest_attribute(rest: &Table, item: usize) -> Result<Attribute, ParquetError> {
    let value = typed_json::parse_value(rest.get("value")?.text(item)?).map_err(bad)?;
    Ok(Attribute { key: rest.get("key")?.text(item)?.to_owned(), value })
}

/// The rest of an event or link: a JSON array of pairs.
fn list_rest(table: &Table, item: usize) -> Result<std::vec::IntoIter<Attribute>, ParquetError> {
    let text = table.get(column::ATTRIBUTES_REST)?.text(item)?;
    let all = if text.is_empty() { Vec::new() } else { typed_json::parse_attributes(text).map_err(bad)? };
    Ok(all.into_iter())
}

fn event(events: &Table, item: usize, span_start: u64) -> Result<Event, ParquetError> {
    Ok(Event {
        time_unix_nano: span_start.wrapping_add(events.get(column::TIME_OFFSET_NS)?.i64(item) as u64),
        name: events.get(column::NAME)?.text(item)?.to_owned(),
        attributes: events.attributes(item, column::EVENT_PREFIX, &mut list_rest(events, item)?)?,
        dropped_attributes_count: events.get(column::DROPPED_ATTRIBUTES)?.i32(item) as u32,
        unknown: events.get(column::UNKNOWN)?.bytes(item).map(|b| b.to_vec()).unwrap_or_default(),
    })
}

fn link(links: &Table, item: usize) -> Result<Link, ParquetError> {
    let (trace_id, span_id) = match links.get(column::ODD_IDS)?.bytes(item) {
        Some(odd) => {
            let (length, rest) = odd.split_first_chunk::<4>().ok_or_else(|| bad("link ids"))?;
            let length = u32::from_le_bytes(*length) as usize;
            let (trace_id, span_id) = rest.split_at_checked(length).ok_or_else(|| bad("link ids"))?;
            (trace_id.to_vec(), span_id.to_vec())
        }
        None => {
            let id =
                |name: &str| Ok::<_, ParquetError>(links.get(name)?.bytes(item).map(|b| b.to_vec()).unwrap_or_default());
            (id(column::TRACE_ID)?, id(column::SPAN_ID)?)
        }
    };
    Ok(Link {
        trace_id,
        span_id,
        trace_state: links.get(column::TRACE_STATE)?.text(item)?.to_owned(),
        attributes: links.attributes(item, column::LINK_PREFIX, &mut list_rest(links, item)?)?,
        dropped_attributes_count: links.get(column::DROPPED_ATTRIBUTES)?.i32(item) as u32,
        flags: links.get(column::FLAGS)?.i32(item) as u32,
        unknown: links.get(column::UNKNOWN)?.bytes(item).map(|b| b.to_vec()).unwrap_or_default(),
    })
}
