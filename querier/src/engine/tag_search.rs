//! The legacy search: tags that some resource of a trace must have, on itself or on its spans.

use std::collections::HashMap;

use spanhouse_common::columns::{Column, Fixed, Present, Rows, Values};
use spanhouse_common::model::{Value as Stored, typed_json};

use super::EngineError;
use super::TagSearch;
use super::bits::Bits;
use super::filter::PartView;
use super::run::Slice;
use super::structure::root_rows;
use super::value::{Cell, Value};

/// Tags, each with how it is compared.
#[derive(Debug)]
pub(crate) struct TagPlan {
    tags: Vec<Tag>,
    min_duration: u64,
    max_duration: u64,
}

#[derive(Debug)]
struct Tag {
    key: String,
    value: String,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A part of the span's name.
    Name,
    /// A part of the service's name.
    Service,
    /// A part of the root span's name, or its service's.
    RootName,
    RootService,
    Status(i32),
    Attribute,
}

impl TagPlan {
    pub(crate) fn new(search: &TagSearch) -> Self {
        let place = |key: &str, value: &str| match key {
            "name" => Place::Name,
            "service.name" => Place::Service,
            "root.name" => Place::RootName,
            "root.service.name" => Place::RootService,
            // Words that mean nothing count as the first.
            "status.code" => Place::Status(match value {
                "ok" => 1,
                "error" => 2,
                _ => 0,
            }),
            _ => Place::Attribute,
        };
        let tag = |(key, value): &(String, String)| Tag { place: place(key, value), key: key.clone(), value: value.clone() };
        let nanos = |millis: u32| u64::from(millis) * 1_000_000;
        Self {
            tags: search.tags.iter().map(tag).collect(),
            min_duration: nanos(search.min_duration_ms),
            max_duration: nanos(search.max_duration_ms),
        }
    }

    pub(crate) fn fits_duration(&self, nanos: u64) -> bool {
        nanos >= self.min_duration && (self.max_duration == 0 || nanos <= self.max_duration)
    }
}

/// Slots whose text holds `wanted`.
fn holding(column: &Column, slots: usize, wanted: &str) -> Bits {
    let mut out = Bits::none(slots);
    let mut known: HashMap<u32, bool> = HashMap::new();
    let holds = |text: &[u8]| wanted.is_empty() || text.windows(wanted.len()).any(|part| part == wanted.as_bytes());
    for at in 0..column.values.len() {
        let text = || column.values.text(at).unwrap_or_default();
        let fits = match &column.values {
            Values::Codes(codes, _) => *known.entry(codes[at]).or_insert_with(|| holds(text())),
            _ => holds(text()),
        };
        if fits {
            out.set(match &column.present {
                Present::All => at,
                Present::At(slots) => slots[at] as usize,
            });
        }
    }
    out
}

/// Whether a value's text is the one asked for.
fn is_text(value: Value<'_>, wanted: &str) -> bool {
    match value {
        Value::Str(text) => text == wanted.as_bytes(),
        Value::Int(value) => value.to_string() == wanted,
        Value::Float(value) => value.to_string() == wanted,
        Value::Bool(value) => (if value { "true" } else { "false" }) == wanted,
        _ => false,
    }
}

/// Tags of a search, at most: a bit of a mask each.
pub(crate) const MAX_TAGS: usize = 64;

/// The traces of a slice in which one resource has all tags.
pub(crate) fn matching(plan: &TagPlan, view: &PartView<'_>, slice: &Slice) -> Result<Vec<u32>, EngineError> {
    let (from, to) = slice.rows;
    let (rows, slots) = (Rows::Range(from, to), (to - from) as usize);
    let (first, end) = slice.traces;
    if plan.tags.is_empty() {
        return Ok((first as u32..end as u32).collect());
    }
    if plan.tags.len() > MAX_TAGS {
        return Err(EngineError::Evaluation(format!("{} tags are more than {MAX_TAGS}", plan.tags.len())));
    }
    let mut per_tag = Vec::with_capacity(plan.tags.len());
    for tag in &plan.tags {
        view.budget.check()?;
        per_tag.push(tag_rows(tag, view, slice)?);
    }
    let resources = view.part.column(Fixed::Resource, rows)?;
    // Equal texts are one resource, whatever their codes.
    let mut numbers: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut by_code: HashMap<u32, u32> = HashMap::new();
    let mut number_of = |slot: usize| {
        let mut number = || {
            let next = numbers.len() as u32;
            *numbers.entry(resources.values.text(slot).unwrap_or_default().to_vec()).or_insert(next)
        };
        match &resources.values {
            Values::Codes(codes, _) => *by_code.entry(codes[slot]).or_insert_with(number),
            _ => number(),
        }
    };
    let mut any = Bits::none(slots);
    per_tag.iter().for_each(|bits| any.or(bits));
    let table = &view.traces.table;
    let mut out = Vec::new();
    let all = u64::MAX >> (MAX_TAGS - plan.tags.len().min(MAX_TAGS));
    for trace in first..end {
        let range = table.rows(trace);
        let (start, stop) = ((range.start - from) as usize, (range.end - from) as usize);
        let mut found: HashMap<u32, u64> = HashMap::new();
        for slot in any.ones_in(start, stop) {
            let tags = per_tag.iter().enumerate().filter(|(_, bits)| bits.get(slot));
            let tags = tags.fold(0u64, |mask, (tag, _)| mask | 1 << tag);
            *found.entry(number_of(slot)).or_default() |= tags;
        }
        if found.values().any(|mask| *mask == all) {
            out.push(trace as u32);
        }
    }
    Ok(out)
}

fn tag_rows(tag: &Tag, view: &PartView<'_>, slice: &Slice) -> Result<Bits, EngineError> {
    let (from, to) = slice.rows;
    let (rows, slots) = (Rows::Range(from, to), (to - from) as usize);
    Ok(match tag.place {
        Place::Name => holding(&view.part.column(Fixed::Name, rows)?, slots, &tag.value),
        Place::Service => holding(&view.part.column(Fixed::ServiceName, rows)?, slots, &tag.value),
        Place::Status(code) => match &view.part.column(Fixed::StatusCode, rows)?.values {
            Values::Small(all) => Bits::of_values(all, |status| *status == code),
            _ => Bits::none(slots),
        },
        Place::RootName | Place::RootService => {
            let table = &view.traces.table;
            let traces: Vec<u32> = (slice.traces.0 as u32..slice.traces.1 as u32).collect();
            let roots = root_rows(view.part, table, &traces)?;
            let rows: Vec<u32> = roots.iter().flatten().copied().collect();
            let which = if tag.place == Place::RootName { Fixed::Name } else { Fixed::ServiceName };
            let fits = holding(&view.part.column(which, Rows::At(&rows))?, rows.len(), &tag.value);
            let mut out = Bits::none(slots);
            let mut slot = 0..rows.len();
            for (trace, root) in traces.iter().zip(roots) {
                if root.and_then(|_| slot.next()).is_some_and(|slot| fits.get(slot)) {
                    table.rows(*trace as usize).for_each(|row| out.set((row - from) as usize));
                }
            }
            out
        }
        Place::Attribute => {
            let mut out = Bits::none(slots);
            for column in view.part.attribute(&tag.key, rows)? {
                for at in 0..column.values.len() {
                    let value = match &column.values {
                        Values::Ints(all) => Value::Int(all[at]),
                        Values::Floats(all) => Value::Float(all[at]),
                        Values::Bools(all) => Value::Bool(all[at]),
                        Values::Json(_) => Value::Opaque,
                        values => values.text(at).map_or(Value::Nil, Value::Str),
                    };
                    if is_text(value, &tag.value) {
                        out.set(match &column.present {
                            Present::All => at,
                            Present::At(slots) => slots[at] as usize,
                        });
                    }
                }
            }
            out.or(&resource_rows(tag, view, rows)?);
            out
        }
    })
}

fn resource_rows(tag: &Tag, view: &PartView<'_>, rows: Rows<'_>) -> Result<Bits, EngineError> {
    let column = view.part.column(Fixed::Resource, rows)?;
    let has = |text: &[u8]| {
        let resource = std::str::from_utf8(text).ok().and_then(|text| typed_json::parse_resource(text).ok());
        let attribute = resource.and_then(|resource| resource.attributes.into_iter().find(|a| a.key == tag.key));
        attribute.is_some_and(|a: spanhouse_common::model::Attribute| match a.value {
            Stored::Map(_) | Stored::Bytes(_) => false,
            value => is_text(Cell::of_stored(&value).value(), &tag.value),
        })
    };
    let mut known: HashMap<u32, bool> = HashMap::new();
    Ok(Bits::of(column.values.len(), |at| {
        let text = || column.values.text(at).unwrap_or_default();
        match &column.values {
            Values::Codes(codes, _) => *known.entry(codes[at]).or_insert_with(|| has(text())),
            _ => has(text()),
        }
    }))
}
