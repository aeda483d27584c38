//! The distinct values of columns, each looked at once.

use std::collections::HashSet;

use spanhouse_common::columns::{Column, Fixed, List, Member, Rows, Values};
use spanhouse_common::model::typed_json;
use spanhouse_common::source::SourceError;

use super::super::EngineError;
use super::super::answer::TagValue;
use super::super::expr::{AttrId, list_of};
use super::super::filter::PartView;
use super::super::value::{Cell, Value, kind_word, status_word};
use super::Gathered;
use crate::json::push_f64;
use crate::traceql::ast::{Attribute, Intrinsic, Scope};
use crate::traceql::format_duration;

pub(super) type Found = Gathered<TagValue>;

/// Adds a value; of an array, each of its elements.
pub(super) fn add(value: Value<'_>, out: &mut Found) {
    let (kind, text) = match value {
        Value::Nil | Value::Opaque => return,
        Value::Array(cells) => return cells.iter().for_each(|cell| add(cell.value(), out)),
        Value::Str(text) => ("string", String::from_utf8_lossy(text).into_owned()),
        Value::Int(value) => ("int", value.to_string()),
        Value::Float(value) => ("float", float_text(value)),
        Value::Bool(value) => ("bool", value.to_string()),
        Value::Duration(nanos) => ("duration", format_duration(nanos)),
        Value::Status(code) => ("keyword", status_word(code).to_owned()),
        Value::Kind(kind) => ("keyword", kind_word(kind).to_owned()),
    };
    let bytes = text.len();
    out.add(TagValue { kind, text }, bytes);
}

/// The shortest text that reads back as the number, and not as a whole one.
fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let mut text = String::new();
    push_f64(value, &mut text);
    if !text.contains(['.', 'e']) {
        text.push_str(".0");
    }
    text
}

/// Adds the values an attribute has on some rows. Tells how many bytes that took.
pub(super) fn read(view: &PartView<'_>, rows: Rows<'_>, id: AttrId, out: &mut Found) -> Result<u64, EngineError> {
    let (part, attribute) = (view.part, view.attributes.get(id));
    let text_or_empty = |which| -> Result<_, SourceError> {
        let column = part.column(which, rows)?;
        let missing = (column.values.len() < rows.len()).then_some(Value::Str(b""));
        Ok((vec![column], missing))
    };
    let (columns, missing) = match attribute {
        Attribute::Intrinsic(Intrinsic::Name) => (vec![part.column(Fixed::Name, rows)?], None),
        Attribute::Intrinsic(Intrinsic::StatusMessage) => text_or_empty(Fixed::StatusMessage)?,
        Attribute::Intrinsic(Intrinsic::EventName) => (vec![part.member(Member::EventName, rows)?], None),
        Attribute::Intrinsic(Intrinsic::EventTimeSinceStart) => (vec![part.member(Member::EventOffset, rows)?], None),
        Attribute::Scoped { scope: Scope::Resource, name } if &**name == "service.name" => {
            text_or_empty(Fixed::ServiceName)?
        }
        Attribute::Scoped { scope: Scope::Span, name } => (part.attribute(name, rows)?, None),
        Attribute::Scoped { scope: Scope::Event, name } => (part.item_attribute(List::Events, name, rows)?, None),
        Attribute::Scoped { scope: Scope::Link, name } => (part.item_attribute(List::Links, name, rows)?, None),
        _ => return computed(view, rows, id, out),
    };
    if let Some(value) = missing {
        add(value, out);
    }
    let is_duration = *attribute == Attribute::Intrinsic(Intrinsic::EventTimeSinceStart);
    let mut bytes = 0;
    for column in columns {
        let size = column.heap_bytes();
        view.budget.charge(size)?;
        bytes += size as u64;
        if !out.is_enough() {
            add_column(&column, is_duration, out)?;
        }
    }
    Ok(bytes)
}

/// What is no column of its own: few distinct values, or numbers.
fn computed(view: &PartView<'_>, rows: Rows<'_>, id: AttrId, out: &mut Found) -> Result<u64, EngineError> {
    // Ids are in no list: each would be its own value.
    if list_of(view.attributes.get(id)).is_some() {
        return Ok(0);
    }
    let frame = view.frame(rows);
    let field = frame.field(id)?;
    let encoded = field.encode();
    let mut seen = vec![false; encoded.table.len()];
    encoded.codes.iter().for_each(|code| seen[*code as usize] = true);
    for (cell, _) in encoded.table.iter().zip(seen).filter(|(_, seen)| *seen) {
        add(cell.value(), out);
    }
    Ok(field.heap_bytes() as u64)
}

fn add_column(column: &Column, is_duration: bool, out: &mut Found) -> Result<(), SourceError> {
    match &column.values {
        Values::Codes(codes, texts) => {
            let mut seen = vec![false; texts.len()];
            codes.iter().for_each(|code| seen[*code as usize] = true);
            let codes = (0..).zip(seen).filter(|(_, seen)| *seen);
            each_until_enough(codes.filter_map(|(code, _)| texts.get(code)), out, |text, out| add(Value::Str(text), out));
        }
        Values::Texts(all) => {
            each_until_enough(distinct(all.iter().map(|text| &text[..])), out, |text, out| add(Value::Str(text), out));
        }
        Values::Json(all) => {
            for json in distinct(all.iter().map(|json| &json[..])) {
                add(json_cell(json)?.value(), out);
            }
        }
        Values::Ints(all) => {
            let value = if is_duration { Value::Duration } else { Value::Int };
            each_until_enough(distinct(all.iter().copied()), out, |number, out| add(value(number), out));
        }
        Values::Floats(all) => {
            let bits = distinct(all.iter().map(|value| value.to_bits()));
            each_until_enough(bits, out, |bits, out| add(Value::Float(f64::from_bits(bits)), out));
        }
        Values::Bools(all) => {
            each_until_enough(distinct(all.iter().copied()), out, |value, out| add(Value::Bool(value), out));
        }
        Values::Small(_) | Values::Ids(_) => {}
    }
    Ok(())
}

fn each_until_enough<T>(items: impl Iterator<Item = T>, out: &mut Found, mut each: impl FnMut(T, &mut Found)) {
    for item in items {
        if out.is_enough() {
            return;
        }
        each(item, out);
    }
}

/// Each item when it first comes.
fn distinct<T: Copy + Eq + std::hash::Hash>(items: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let mut known: HashSet<T, foldhash::fast::RandomState> = HashSet::default();
    items.filter(move |item| known.insert(*item))
}

/// A value written as typed JSON, as queries see it.
pub(super) fn json_cell(json: &[u8]) -> Result<Cell, SourceError> {
    let bad = |why: String| SourceError::Damaged { what: "attribute value".into(), why };
    let text = std::str::from_utf8(json).map_err(|e| bad(e.to_string()))?;
    Ok(Cell::of_stored(&typed_json::parse_value(text).map_err(|e| bad(e.to_string()))?))
}
