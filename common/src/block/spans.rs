//! From columns back to spans: a range of rows, every column of it, as the model that was received.
//!
//! Owns what columns mean together: levels to items, shapes to attributes, rows to parents. Texts that repeat (resources,
//! scopes, shapes) are parsed once per read.

use std::ops::Range;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::schema::types::SchemaDescriptor;

use super::layout::{Keys, Layout};
use super::page::{ColumnRows, Values};
use super::shape::{Shapes, Slot};
use super::tree::flag;
use crate::id::{SpanId, TraceId};
use crate::model::{Attribute, Event, Link, Span, StoredSpan, Value, typed_json};

/// A column does not hold what the format says.
pub(super) fn bad(what: impl std::fmt::Display) -> ParquetError {
    ParquetError::General(format!("block is damaged: {what}"))
}

/// A column with one optional value per item (a row, an event, a link).
struct Items {
    places: Places,
    column: ColumnRows,
}

/// Which value belongs to an item.
enum Places {
    /// None to any.
    Nowhere,
    /// Each item has one.
    Same,
    /// By item; [`NO_VALUE`] for none.
    At(Vec<u32>),
}

const NO_VALUE: u32 = u32::MAX;

impl Items {
    fn of(column: ColumnRows, max_definition: u8, items: usize) -> Result<Self, ParquetError> {
        let different = || bad("columns of different length");
        let values = column.values.len();
        if column.definition.is_empty() && (max_definition == 0 || items == 0) {
            return if values == items { Ok(Self { places: Places::Same, column }) } else { Err(different()) };
        }
        // Level 0 of a list marks an empty one, which is no item.
        let is_item = |level: &&u8| column.repetition.is_empty() || **level > 0;
        let levels = column.definition.iter().filter(is_item);
        if values == 0 {
            let fits = levels.count() == items;
            return if fits { Ok(Self { places: Places::Nowhere, column }) } else { Err(different()) };
        }
        let (mut at, mut next) = (Vec::with_capacity(items), 0u32);
        for level in levels {
            let present = *level == max_definition;
            at.push(if present { next } else { NO_VALUE });
            next += u32::from(present);
        }
        if at.len() != items || next as usize != values {
            return Err(different());
        }
        Ok(Self { places: Places::At(at), column })
    }

    fn place(&self, item: usize) -> Option<usize> {
        match &self.places {
            Places::Nowhere => None,
            Places::Same => Some(item),
            Places::At(at) => at.get(item).filter(|place| **place != NO_VALUE).map(|place| *place as usize),
        }
    }

    fn bytes(&self, item: usize) -> Option<&[u8]> {
        let place = self.place(item)?;
        match &self.column.values {
            Values::Codes(codes) => self.column.dictionary.as_deref()?.get(*codes.get(place)?),
            Values::Bytes(all) => all.get(place).map(|bytes| &bytes[..]),
            Values::Ids(all) => all.get(place).map(|id| &id[..]),
            _ => None,
        }
    }

    fn value(&self, item: usize) -> Result<Option<Value>, ParquetError> {
        let Some(place) = self.place(item) else { return Ok(None) };
        Ok(match &self.column.values {
            Values::Codes(_) | Values::Bytes(_) | Values::Ids(_) => {
                self.bytes(item).map(|bytes| utf8(bytes).map(|text| Value::Str(text.to_owned()))).transpose()?
            }
            Values::I64(all) => all.get(place).map(|v| Value::Int(*v)),
            Values::F64(all) => all.get(place).map(|v| Value::Double(*v)),
            Values::Bool(all) => all.get(place).map(|v| Value::Bool(*v)),
            Values::I32(all) => all.get(place).map(|v| Value::Int(i64::from(*v))),
        })
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, ParquetError> {
    std::str::from_utf8(bytes).map_err(|_| bad("text that is not UTF-8"))
}

/// All columns, by number.
struct Table(Vec<Option<Items>>);

impl Table {
    fn get(&self, column: usize) -> Result<&Items, ParquetError> {
        self.0.get(column).and_then(Option::as_ref).ok_or_else(|| bad(format_args!("column {column} was not read")))
    }

    fn bytes(&self, column: usize, item: usize) -> Result<Option<&[u8]>, ParquetError> {
        Ok(self.get(column)?.bytes(item))
    }

    /// Empty for null.
    fn text(&self, column: usize, item: usize) -> Result<&str, ParquetError> {
        utf8(self.bytes(column, item)?.unwrap_or_default())
    }

    fn string(&self, column: usize, item: usize) -> Result<String, ParquetError> {
        self.text(column, item).map(str::to_owned)
    }

    fn vec(&self, column: usize, item: usize) -> Result<Vec<u8>, ParquetError> {
        Ok(self.bytes(column, item)?.unwrap_or_default().to_vec())
    }

    fn i32(&self, column: usize, item: usize) -> Result<i32, ParquetError> {
        let items = self.get(column)?;
        Ok(match &items.column.values {
            Values::I32(all) => items.place(item).and_then(|place| all.get(place)).copied().unwrap_or(0),
            _ => 0,
        })
    }

    fn u32(&self, column: usize, item: usize) -> Result<u32, ParquetError> {
        self.i32(column, item).map(|value| value as u32)
    }

    fn i64(&self, column: usize, item: usize) -> Result<i64, ParquetError> {
        let items = self.get(column)?;
        Ok(match &items.column.values {
            Values::I64(all) => items.place(item).and_then(|place| all.get(place)).copied().unwrap_or(0),
            _ => 0,
        })
    }

    fn id<const N: usize>(&self, column: usize, item: usize) -> Result<Option<[u8; N]>, ParquetError> {
        let bytes = self.bytes(column, item)?;
        bytes.map(|bytes| bytes.try_into().map_err(|_| bad("id of another length"))).transpose()
    }
}

/// Items of each row in a list column.
fn items_by_row(column: Option<&ColumnRows>, rows: usize) -> Result<Vec<Range<usize>>, ParquetError> {
    let column = column.ok_or_else(|| bad("list without members"))?;
    let mut out: Vec<Range<usize>> = Vec::with_capacity(rows);
    let mut items = 0;
    for (definition, repetition) in column.definition.iter().zip(&column.repetition) {
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

/// Columns read, by number, and what is needed to make spans of them.
pub(super) struct Columns<'b> {
    pub(super) layout: &'b Layout,
    pub(super) schema: &'b SchemaDescriptor,
    pub(super) rows: usize,
    /// Where the trace id was not read: that of all rows.
    pub(super) trace_id: Option<TraceId>,
    pub(super) read: Vec<Option<ColumnRows>>,
}

/// Builds the spans of some rows. Parents of rows are found relative to them, so they must be whole traces.
pub(super) fn build(columns: Columns<'_>) -> Result<Vec<StoredSpan>, ParquetError> {
    let Columns { layout, schema, rows, trace_id, mut read } = columns;
    let lists = [layout.events.time_offset_ns, layout.links.flags, layout.rest_key];
    let mut by_row = Vec::with_capacity(lists.len());
    for list in lists {
        by_row.push(items_by_row(read.get(list).and_then(Option::as_ref), rows)?);
    }
    let mut table = Table(Vec::new());
    table.0.resize_with(read.len(), || None);
    for wanted in layout.wanted(trace_id.is_none()) {
        let list = lists.iter().position(|list| *list == wanted.list.unwrap_or(wanted.column));
        let items = list.map_or(rows, |list| by_row[list].last().map_or(0, |row| row.end));
        let column = read.get_mut(wanted.column).and_then(Option::take);
        // Members of lists that are all empty are not read.
        if let Some(column) = column {
            let max_definition = schema.column(wanted.column).max_def_level() as u8;
            table.0[wanted.column] = Some(Items::of(column, max_definition, items)?);
        }
    }
    let maker = Maker { layout, table: &table };
    let mut shapes = Shapes::default();
    let (mut resources, mut scopes) = (Once::default(), Once::default());
    let mut out: Vec<StoredSpan> = Vec::with_capacity(rows);
    for row in 0..rows {
        let resource =
            resources.get(table.bytes(layout.resource, row)?, |text| typed_json::parse_resource(text).map_err(bad))?;
        let scope = scopes.get(table.bytes(layout.scope, row)?, |text| typed_json::parse_scope(text).map_err(bad))?;
        let flags = table.i32(layout.row_flags, row)?;
        let delta = table.i32(layout.parent_delta, row)?;
        let parent_span_id = match table.id(layout.parent_span_id, row)? {
            Some(id) => Some(SpanId(id)),
            None if flags & flag::ZERO_PARENT != 0 => Some(SpanId::default()),
            None if delta > 0 && flags & flag::ROOT == 0 => {
                let parent = row.checked_sub(delta as usize).ok_or_else(|| bad("parent before the first row"))?;
                Some(out[parent].span.span_id)
            }
            None => None,
        };
        let trace_id = match trace_id {
            Some(known) => known,
            None => TraceId(table.id(layout.trace_id, row)?.ok_or_else(|| bad("row without trace id"))?),
        };
        let start = table.i64(layout.start_time, row)? as u64;
        let [events, links, rest] = [0, 1, 2].map(|list: usize| by_row[list].get(row).cloned().unwrap_or_default());
        let mut rest = rest.map(|item| maker.rest_attribute(item));
        let span = Span {
            trace_id,
            span_id: SpanId(table.id(layout.span_id, row)?.ok_or_else(|| bad("row without span id"))?),
            parent_span_id,
            trace_state: table.string(layout.trace_state, row)?,
            flags: table.u32(layout.flags, row)?,
            name: table.string(layout.name, row)?,
            kind: table.i32(layout.kind, row)?,
            start_unix_nano: start,
            end_unix_nano: start.wrapping_add(table.i64(layout.duration_ns, row)? as u64),
            attributes: maker.attributes(&layout.attributes, &mut shapes, row, &mut rest)?,
            dropped_attributes_count: table.u32(layout.dropped_attributes, row)?,
            events: events.map(|item| maker.event(&mut shapes, item, start)).collect::<Result<_, _>>()?,
            dropped_events_count: table.u32(layout.dropped_events, row)?,
            links: links.map(|item| maker.link(&mut shapes, item)).collect::<Result<_, _>>()?,
            dropped_links_count: table.u32(layout.dropped_links, row)?,
            status_message: table.string(layout.status_message, row)?,
            status_code: table.i32(layout.status_code, row)?,
            unknown: table.vec(layout.unknown, row)?,
        };
        out.push(StoredSpan { span, resource, scope, maybe_duplicate: flags & flag::MAYBE_DUPLICATE != 0 });
    }
    Ok(out)
}

/// Parsed texts by text, of one kind: few in a trace.
struct Once<'t, T>(hashbrown::HashMap<&'t [u8], Arc<T>, foldhash::fast::RandomState>);

impl<T> Default for Once<'_, T> {
    fn default() -> Self {
        Self(hashbrown::HashMap::default())
    }
}

impl<'t, T> Once<'t, T> {
    fn get(
        &mut self,
        text: Option<&'t [u8]>,
        parse: impl FnOnce(&str) -> Result<T, ParquetError>,
    ) -> Result<Arc<T>, ParquetError> {
        let text = text.unwrap_or_default();
        if let Some(known) = self.0.get(text) {
            return Ok(Arc::clone(known));
        }
        let parsed = Arc::new(parse(utf8(text)?)?);
        self.0.insert(text, Arc::clone(&parsed));
        Ok(parsed)
    }
}

/// Makes the parts of spans.
struct Maker<'t> {
    layout: &'t Layout,
    table: &'t Table,
}

impl<'t> Maker<'t> {
    /// Attributes of an item, in the sender's order: the shape says where each value is.
    fn attributes(
        &self,
        keys: &Keys,
        shapes: &mut Shapes<'t>,
        item: usize,
        rest: &mut impl Iterator<Item = Result<Attribute, ParquetError>>,
    ) -> Result<Vec<Attribute>, ParquetError> {
        let Some(shape) = self.table.bytes(keys.shape, item)?.filter(|shape| !shape.is_empty()) else {
            return Ok(Vec::new());
        };
        let shape = shapes.get(keys, shape)?;
        let mut out = Vec::with_capacity(shape.len());
        for slot in shape.iter() {
            out.push(match slot {
                Slot::Column { key, column } => {
                    let value = self.table.get(*column)?.value(item)?;
                    Attribute { key: key.clone(), value: value.ok_or_else(|| bad("attribute without value"))? }
                }
                Slot::Rest { key } => match rest.next().transpose()? {
                    Some(attribute) if attribute.key == *key => attribute,
                    _ => return Err(bad("attribute missing from the rest")),
                },
            });
        }
        Ok(out)
    }

    fn rest_attribute(&self, item: usize) -> Result<Attribute, ParquetError> {
        let value = typed_json::parse_value(self.table.text(self.layout.rest_value, item)?).map_err(bad)?;
        Ok(Attribute { key: self.table.string(self.layout.rest_key, item)?, value })
    }

    /// The rest of an event or link: a JSON array of pairs.
    fn list_rest(
        &self,
        column: usize,
        item: usize,
    ) -> Result<impl Iterator<Item = Result<Attribute, ParquetError>> + use<>, ParquetError> {
        let text = self.table.text(column, item)?;
        let all = if text.is_empty() { Vec::new() } else { typed_json::parse_attributes(text).map_err(bad)? };
        Ok(all.into_iter().map(Ok))
    }

    fn event(&self, shapes: &mut Shapes<'t>, item: usize, span_start: u64) -> Result<Event, ParquetError> {
        let (table, columns) = (self.table, &self.layout.events);
        let mut rest = self.list_rest(columns.rest, item)?;
        Ok(Event {
            time_unix_nano: span_start.wrapping_add(table.i64(columns.time_offset_ns, item)? as u64),
            name: table.string(columns.name, item)?,
            attributes: self.attributes(&columns.attributes, shapes, item, &mut rest)?,
            dropped_attributes_count: table.u32(columns.dropped_attributes, item)?,
            unknown: table.vec(columns.unknown, item)?,
        })
    }

    fn link(&self, shapes: &mut Shapes<'t>, item: usize) -> Result<Link, ParquetError> {
        let (table, columns) = (self.table, &self.layout.links);
        let (trace_id, span_id) = match table.bytes(columns.odd_ids, item)? {
            Some(odd) => {
                let (length, rest) = odd.split_first_chunk::<4>().ok_or_else(|| bad("link ids"))?;
                let length = u32::from_le_bytes(*length) as usize;
                let (trace_id, span_id) = rest.split_at_checked(length).ok_or_else(|| bad("link ids"))?;
                (trace_id.to_vec(), span_id.to_vec())
            }
            None => (table.vec(columns.trace_id, item)?, table.vec(columns.span_id, item)?),
        };
        let mut rest = self.list_rest(columns.rest, item)?;
        Ok(Link {
            trace_id,
            span_id,
            trace_state: table.string(columns.trace_state, item)?,
            attributes: self.attributes(&columns.attributes, shapes, item, &mut rest)?,
            dropped_attributes_count: table.u32(columns.dropped_attributes, item)?,
            flags: table.u32(columns.flags, item)?,
            unknown: table.vec(columns.unknown, item)?,
        })
    }
}
