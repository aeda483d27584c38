//! Attributes of an input against the columns of the output.
//!
//! Owns what moves: a value whose key has a column in one and not in the other, or columns of different kinds, goes to the rest
//! or comes from there, and the shapes that name it change. Inputs of one workload have nearly the same columns, so few items
//! are touched: all others keep their codes.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use bytes::Bytes;

use super::super::decode::BadPage;
use super::super::layout::Keys;
use super::super::page::Values;
use super::super::schema::TypedKey;
use super::super::shape::Element;
use super::super::summary::KeySummary;
use super::column::{StripColumn, StripItems};
use super::input::{Input, Result};
use crate::batch::ValueKind;
use crate::model::{Value, typed_json};

/// Where an input has what the output's columns need.
pub(super) struct Mapping {
    /// By column of the output: that of the input with the same key and kind.
    pub(super) sources: Vec<Option<usize>>,
    /// Keys of which some values move.
    moved: HashSet<String>,
}

impl Mapping {
    pub(super) fn new(input: &Input, keys: &Keys, output: &[TypedKey], summary: &[KeySummary]) -> Self {
        let source = |key: &TypedKey| keys.by_key.get(&key.key).copied().filter(|column| input.kind_of(*column) == key.kind);
        let sources: Vec<Option<usize>> = output.iter().map(source).collect();
        let kept: HashSet<usize> = sources.iter().flatten().copied().collect();
        let leaves = keys.by_key.iter().filter(|(_, column)| !kept.contains(column)).map(|(key, _)| key.clone());
        let mut moved: HashSet<String> = leaves.collect();
        let occurs: HashMap<&str, &KeySummary> = summary.iter().map(|known| (known.key.as_str(), known)).collect();
        for (key, _) in output.iter().zip(&sources).filter(|(_, source)| source.is_none()) {
            if occurs.get(key.key.as_str()).is_some_and(|known| known.counts[key.kind as usize] > 0) {
                moved.insert(key.key.clone());
            }
        }
        Self { sources, moved }
    }
}

/// The kind of a value in typed JSON.
pub(super) fn kind_of_json(text: &[u8]) -> ValueKind {
    match text.first() {
        Some(b'"') => ValueKind::Str,
        Some(b't' | b'f') => ValueKind::Bool,
        Some(b'-' | b'0'..=b'9') if text.iter().any(|b| matches!(b, b'.' | b'e' | b'E')) => ValueKind::Double,
        Some(b'-' | b'0'..=b'9') => ValueKind::Int,
        Some(b'{') if text.starts_with(b"{\"double\":") => ValueKind::Double,
        _ => ValueKind::Json,
    }
}

/// A pair of the rest: key and value as typed JSON.
pub(super) type Pair = (Bytes, Bytes);

/// Items whose attributes are laid out anew.
#[derive(Default)]
pub(super) struct Relaid {
    /// Ascending.
    pub(super) items: Vec<u32>,
    /// The rest of each.
    pub(super) rest: Vec<Vec<Pair>>,
    /// By column of the output: values that come from the rest.
    promoted: HashMap<usize, Promoted>,
}

#[derive(Default)]
struct Promoted {
    items: Vec<u32>,
    values: Vec<Value>,
}

impl Relaid {
    /// The values of an output column that come from the rest.
    pub(super) fn promoted(&mut self, slot: usize, kind: ValueKind) -> StripColumn {
        let Some(Promoted { items, values }) = self.promoted.remove(&slot) else { return StripColumn::default() };
        let values = values.into_iter();
        let values = match kind {
            ValueKind::Int => {
                Values::I64(values.filter_map(|v| if let Value::Int(v) = v { Some(v) } else { None }).collect())
            }
            ValueKind::Double => {
                Values::F64(values.filter_map(|v| if let Value::Double(v) = v { Some(v) } else { None }).collect())
            }
            ValueKind::Bool => {
                Values::Bool(values.filter_map(|v| if let Value::Bool(v) = v { Some(v) } else { None }).collect())
            }
            ValueKind::Str | ValueKind::Json => {
                Values::Bytes(values.filter_map(|v| if let Value::Str(v) = v { Some(v.into()) } else { None }).collect())
            }
        };
        StripColumn { values, present: Some(items), ..StripColumn::default() }
    }
}

/// What laying out needs to know of one owner (spans, events or links) in an input.
pub(super) struct Owner<'a> {
    pub(super) input: &'a Input,
    pub(super) keys: &'a Keys,
    pub(super) output: &'a [TypedKey],
    pub(super) mapping: &'a Mapping,
}

impl Owner<'_> {
    /// Whether a shape names a key that moves; if so, its elements.
    fn moves(&self, shape: &[u8]) -> Result<Option<Rc<[Element]>>> {
        let elements: Vec<Element> = serde_json::from_slice(shape).map_err(|_| BadPage("attribute shape"))?;
        let moves = elements.iter().any(|element| self.mapping.moved.contains(element.key()));
        Ok(moves.then(|| elements.into()))
    }

    /// Lays out the items whose shape names a key that moves, and gives them their new shapes. `rest` reads the rest of an item,
    /// `column` a column of the input.
    pub(super) fn lay_out(
        &self,
        shapes: &mut StripColumn,
        mut rest: impl FnMut(u32) -> Result<Vec<Pair>>,
        column: impl Fn(usize) -> Result<StripColumn>,
    ) -> Result<Relaid> {
        let mut out = Relaid::default();
        if self.mapping.moved.is_empty() || shapes.len() == 0 {
            return Ok(out);
        }
        let mut by_code: HashMap<u32, Option<Rc<[Element]>>> = HashMap::new();
        let mut work: Vec<(usize, Rc<[Element]>)> = Vec::new();
        for at in 0..shapes.len() {
            let elements = match &shapes.values {
                Values::Codes(codes) => match by_code.get(&codes[at]) {
                    Some(known) => known.clone(),
                    None => {
                        let parsed = self.moves(shapes.text(at))?;
                        by_code.insert(codes[at], parsed.clone());
                        parsed
                    }
                },
                _ => self.moves(shapes.text(at))?,
            };
            work.extend(elements.map(|elements| (at, elements)));
        }
        let slots: HashMap<&str, usize> =
            self.output.iter().enumerate().map(|(slot, key)| (key.key.as_str(), slot)).collect();
        let mut columns: HashMap<usize, StripColumn> = HashMap::new();
        let mut new_shapes: HashMap<String, Bytes> = HashMap::new();
        let mut replaced = Vec::with_capacity(work.len());
        for (at, elements) in work {
            let item = shapes.present.as_ref().map_or(at as u32, |present| present[at]);
            let mut pairs = rest(item)?.into_iter();
            let (mut shape, mut kept) = (String::from("["), Vec::new());
            let mut filled: Vec<usize> = Vec::new();
            for element in elements.iter() {
                let slot = slots.get(element.key()).copied();
                let free = |kind| slot.filter(|slot| self.output[*slot].kind == kind && !filled.contains(slot));
                let in_column = match element {
                    Element::Column(key) => {
                        let number = *self.keys.by_key.get(key).ok_or(BadPage("attribute without column"))?;
                        match free(self.input.kind_of(number)) {
                            Some(slot) => Some(slot),
                            None => {
                                let values = match columns.entry(number) {
                                    std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                                    std::collections::hash_map::Entry::Vacant(free) => free.insert(column(number)?),
                                };
                                let place = values.place(item).ok_or(BadPage("attribute without value"))?;
                                kept.push((Bytes::copy_from_slice(key.as_bytes()), json_of(values, place)?));
                                None
                            }
                        }
                    }
                    Element::Rest(key) => {
                        let (name, value) = pairs.next().ok_or(BadPage("attribute missing from the rest"))?;
                        if name != key.as_bytes() {
                            return Err(BadPage("attribute missing from the rest").into());
                        }
                        // The input's own column has the first value of its kind already.
                        let free = free(kind_of_json(&value)).filter(|slot| self.mapping.sources[*slot].is_none());
                        match free {
                            Some(slot) => {
                                let promoted = out.promoted.entry(slot).or_default();
                                promoted.items.push(item);
                                promoted.values.push(parse(&value)?);
                            }
                            None => kept.push((name, value)),
                        }
                        free
                    }
                };
                if shape.len() > 1 {
                    shape.push(',');
                }
                match in_column {
                    Some(slot) => {
                        filled.push(slot);
                        typed_json::push_str(element.key(), &mut shape);
                    }
                    None => {
                        shape.push('[');
                        typed_json::push_str(element.key(), &mut shape);
                        shape.push(']');
                    }
                }
            }
            shape.push(']');
            let text = new_shapes.entry(shape).or_insert_with_key(|shape| Bytes::copy_from_slice(shape.as_bytes())).clone();
            replaced.push((at, text));
            out.items.push(item);
            out.rest.push(kept);
        }
        shapes.replace(&replaced);
        Ok(out)
    }
}

fn parse(json: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(json).map_err(|_| BadPage("text that is not UTF-8"))?;
    Ok(typed_json::parse_value(text).map_err(|_| BadPage("value that is not typed JSON"))?)
}

/// A column's value as typed JSON.
fn json_of(column: &StripColumn, place: usize) -> Result<Bytes> {
    let mut out = String::new();
    match &column.values {
        Values::I64(all) => typed_json::push_i64(all[place], &mut out),
        Values::F64(all) => typed_json::push_f64(all[place], &mut out),
        Values::Bool(all) => typed_json::push_bool(all[place], &mut out),
        Values::Codes(_) | Values::Bytes(_) => {
            let text = std::str::from_utf8(column.text(place)).map_err(|_| BadPage("text that is not UTF-8"))?;
            typed_json::push_str(text, &mut out);
        }
        Values::Ids(_) | Values::I32(_) => return Err(BadPage("attribute of another type").into()),
    }
    Ok(out.into())
}

/// Builds a text column out of another's values and new texts.
struct Builder<'a> {
    from: &'a StripColumn,
    out: StripColumn,
    known: HashMap<Bytes, u32>,
}

impl<'a> Builder<'a> {
    fn new(from: &'a StripColumn) -> Self {
        let values = match &from.values {
            Values::Bytes(_) => Values::Bytes(Vec::new()),
            _ => Values::Codes(Vec::new()),
        };
        let out = StripColumn { values, dictionary: from.dictionary.clone(), more: from.more.clone(), present: None };
        Self { from, out, known: HashMap::new() }
    }

    fn copy(&mut self, at: usize) {
        match (&mut self.out.values, &self.from.values) {
            (Values::Codes(out), Values::Codes(from)) => out.push(from[at]),
            (Values::Bytes(out), Values::Bytes(from)) => out.push(from[at].clone()),
            _ => {}
        }
    }

    fn add(&mut self, text: Bytes) {
        let codes = self.out.codes() as u32;
        match &mut self.out.values {
            Values::Codes(out) => {
                let code = *self.known.entry(text).or_insert_with_key(|text| {
                    self.out.more.push(text.clone());
                    codes
                });
                out.push(code);
            }
            Values::Bytes(out) => out.push(text),
            _ => {}
        }
    }
}

impl StripColumn {
    /// Puts texts in the places of others (ascending).
    fn replace(&mut self, texts: &[(usize, Bytes)]) {
        let mut known: HashMap<Bytes, u32> = HashMap::new();
        for (at, text) in texts {
            let codes = self.codes() as u32;
            match &mut self.values {
                Values::Codes(all) => {
                    all[*at] = *known.entry(text.clone()).or_insert_with(|| {
                        self.more.push(text.clone());
                        codes
                    });
                }
                Values::Bytes(all) => all[*at] = text.clone(),
                _ => {}
            }
        }
    }
}

/// The rest of spans: pairs, by row.
#[derive(Default)]
pub(super) struct PairRest {
    pub(super) items: StripItems,
    pub(super) keys: StripColumn,
    pub(super) values: StripColumn,
}

impl PairRest {
    pub(super) fn of(&self, row: u32) -> Vec<Pair> {
        let pair = |at: u32| {
            let text = |column: &StripColumn| Bytes::copy_from_slice(column.text(at as usize));
            (text(&self.keys), text(&self.values))
        };
        self.items.of(row..row + 1).map(pair).collect()
    }

    /// With new pairs for the rows that were laid out anew.
    pub(super) fn with(self, relaid: &mut Relaid, rows: usize) -> Self {
        if relaid.items.is_empty() {
            return self;
        }
        let (mut keys, mut values) = (Builder::new(&self.keys), Builder::new(&self.values));
        let mut ends = Vec::with_capacity(rows);
        let mut count = 0;
        let mut new = relaid.items.iter().zip(std::mem::take(&mut relaid.rest)).peekable();
        for row in 0..rows as u32 {
            if let Some((_, pairs)) = new.next_if(|(item, _)| **item == row) {
                count += pairs.len() as u32;
                for (key, value) in pairs {
                    keys.add(key);
                    values.add(value);
                }
            } else {
                for at in self.items.of(row..row + 1) {
                    keys.copy(at as usize);
                    values.copy(at as usize);
                    count += 1;
                }
            }
            ends.push(count);
        }
        Self { items: StripItems::of_ends(if count == 0 { Vec::new() } else { ends }), keys: keys.out, values: values.out }
    }
}

/// The pairs of a rest in one text, as events and links have it.
pub(super) fn pairs_of(text: &[u8]) -> Result<Vec<Pair>> {
    let text = std::str::from_utf8(text).map_err(|_| BadPage("text that is not UTF-8"))?;
    let all = typed_json::parse_attributes(text).map_err(|_| BadPage("rest that is not typed JSON"))?;
    let pair = |attribute: crate::model::Attribute| {
        let mut json = String::new();
        typed_json::write_value(&attribute.value, &mut json);
        (Bytes::from(attribute.key), Bytes::from(json))
    };
    Ok(all.into_iter().map(pair).collect())
}

/// A rest in one text with new ones for the items that were laid out anew.
pub(super) fn text_rest(from: StripColumn, relaid: &mut Relaid, items: usize) -> StripColumn {
    if relaid.items.is_empty() {
        return from;
    }
    let mut builder = Builder::new(&from);
    let mut present = Vec::new();
    let mut new = relaid.items.iter().zip(std::mem::take(&mut relaid.rest)).peekable();
    for item in 0..items as u32 {
        if let Some((_, pairs)) = new.next_if(|(known, _)| **known == item) {
            if !pairs.is_empty() {
                builder.add(text_of_pairs(&pairs));
                present.push(item);
            }
        } else if let Some(place) = from.place(item) {
            builder.copy(place);
            present.push(item);
        }
    }
    StripColumn { present: Some(present), ..builder.out }
}

fn text_of_pairs(pairs: &[Pair]) -> Bytes {
    let mut text = String::from("[");
    for (key, value) in pairs {
        text.push_str(if text.len() > 1 { ",[" } else { "[" });
        // Both came out of texts.
        typed_json::push_str(std::str::from_utf8(key).unwrap_or_default(), &mut text);
        text.push(',');
        text.push_str(std::str::from_utf8(value).unwrap_or_default());
        text.push(']');
    }
    text.push(']');
    text.into()
}
