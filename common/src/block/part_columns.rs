//! From what pages give to columns: which rows are read for those wanted, and values by slot.

use std::ops::Range;

use bytes::Bytes;
use parquet::basic::Type as PhysicalType;
use parquet::errors::ParquetError;

use super::page::{Chunk, ColumnRows, Values as Stored};
use super::spans::bad;
use crate::columns::{Column, Present, Rows, Texts, Values};
use crate::model::Value;

type Result<T> = std::result::Result<T, ParquetError>;

/// Wanted rows no further apart than this are read together.
const JOIN_ROWS: u32 = 64;

/// Rows to read, in stretches, and where in these the wanted ones are.
pub(super) struct Runs {
    pub(super) runs: Vec<Range<usize>>,
    /// Positions in the stretches put together; `None` if they are all wanted.
    pub(super) wanted: Option<Vec<u32>>,
}

impl Runs {
    pub(super) fn of(rows: Rows<'_>) -> Self {
        let rows = match rows {
            Rows::Range(from, to) => {
                return Self { runs: std::iter::once(from as usize..to as usize).collect(), wanted: None };
            }
            Rows::At(rows) => rows,
        };
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut wanted = Vec::with_capacity(rows.len());
        let mut before = 0u32;
        for row in rows {
            match runs.last_mut() {
                Some(run) if (*row as usize) < run.end + JOIN_ROWS as usize => run.end = *row as usize + 1,
                last => {
                    before += last.map_or(0, |run| run.len() as u32);
                    runs.push(*row as usize..*row as usize + 1);
                }
            }
            let start = runs.last().map_or(0, |run| run.start as u32);
            wanted.push(before + row - start);
        }
        let read: usize = runs.iter().map(Range::len).sum();
        let wanted = (read != rows.len()).then_some(wanted);
        Self { runs, wanted }
    }

    pub(super) fn rows(&self) -> usize {
        self.runs.iter().map(Range::len).sum()
    }

    pub(super) fn pick(&self, column: Column) -> Column {
        match &self.wanted {
            None => column,
            Some(wanted) => column.select(Rows::At(wanted)),
        }
    }
}

/// List items of some rows: the slot of each that is wanted, and its place among those read.
pub(super) struct ReadItems {
    pub(super) slots: Vec<u32>,
    /// `None` if all are wanted.
    places: Option<Vec<u32>>,
}

impl ReadItems {
    /// Of the levels of a list's column.
    pub(super) fn of(levels: &ColumnRows, runs: &Runs) -> Result<Self> {
        let (mut row, mut slots) = (0u32, Vec::new());
        let mut first = true;
        for (definition, repetition) in levels.definition.iter().zip(&levels.repetition) {
            if *repetition == 0 {
                row += u32::from(!std::mem::take(&mut first));
            }
            if *definition > 0 {
                slots.push(row);
            }
        }
        let read = if first { 0 } else { row as usize + 1 };
        if read != runs.rows() {
            return Err(bad("lists of different length"));
        }
        let Some(wanted) = &runs.wanted else { return Ok(Self { slots, places: None }) };
        let (mut kept, mut places, mut at) = (Vec::new(), Vec::new(), 0);
        for (slot, row) in (0..).zip(wanted) {
            at += slots[at..].partition_point(|known| known < row);
            while slots.get(at) == Some(row) {
                kept.push(slot);
                places.push(at as u32);
                at += 1;
            }
        }
        Ok(Self { slots: kept, places: Some(places) })
    }

    pub(super) fn pick(&self, column: Column) -> Column {
        match &self.places {
            None => column,
            Some(places) => column.select(Rows::At(places)),
        }
    }
}

/// Values in the form of columns; without any, of the kind the chunk has.
pub(super) fn values_of(read: ColumnRows, chunk: &Chunk) -> Result<Values> {
    Ok(match read.values {
        Stored::Codes(codes) => match read.dictionary {
            Some(dictionary) => Values::Codes(codes, Texts::of_block(dictionary)),
            None if codes.is_empty() => match chunk.physical {
                PhysicalType::INT32 => Values::Small(Vec::new()),
                PhysicalType::INT64 => Values::Ints(Vec::new()),
                PhysicalType::DOUBLE => Values::Floats(Vec::new()),
                PhysicalType::BOOLEAN => Values::Bools(Vec::new()),
                PhysicalType::FIXED_LEN_BYTE_ARRAY if chunk.width == 8 => Values::Ids(Vec::new()),
                _ => Values::Texts(Vec::new()),
            },
            None => return Err(bad("codes without dictionary")),
        },
        Stored::Bytes(all) => Values::Texts(all),
        Stored::Ids(all) => Values::Ids(all),
        Stored::I32(all) => Values::Small(all),
        Stored::I64(all) => Values::Ints(all),
        Stored::F64(all) => Values::Floats(all),
        Stored::Bool(all) => Values::Bools(all),
    })
}

/// A column of rows: one slot a level.
pub(super) fn column_of_rows(mut read: ColumnRows, chunk: &Chunk, rows: usize) -> Result<Column> {
    let (slots, present) = match (chunk.max_definition, read.present.take()) {
        (0, _) => (rows, Present::All),
        (1, Some((slots, present))) if present.len() < slots as usize => (slots as usize, Present::At(present)),
        (1, Some((slots, _))) => (slots as usize, Present::All),
        _ => return Err(bad("a list where a value must be")),
    };
    let values = values_of(read, chunk)?;
    let expected = if let Present::At(slots) = &present { slots.len() } else { rows };
    if slots == rows && values.len() == expected {
        Ok(Column { present, values })
    } else {
        Err(bad("columns of different length"))
    }
}

/// A column of list items: one slot an item.
pub(super) fn column_of_items(mut read: ColumnRows, chunk: &Chunk) -> Result<Column> {
    let (definition, max_definition) = (std::mem::take(&mut read.definition), chunk.max_definition);
    let items = definition.iter().filter(|level| **level > 0);
    let slots: Vec<u32> = (0..).zip(items).filter(|(_, level)| **level == max_definition).map(|(slot, _)| slot).collect();
    let values = values_of(read, chunk)?;
    if values.len() != slots.len() {
        return Err(bad("columns of different length"));
    }
    Ok(Column { present: Present::At(slots), values })
}

/// Whether the first entry of `key` in a shape is one of the rest.
pub(super) fn shape_has_rest_first(shape: &[u8], key: &str) -> Result<bool> {
    let elements: Vec<serde_json::Value> = serde_json::from_slice(shape).map_err(|_| bad("attribute shape"))?;
    for element in &elements {
        match element {
            serde_json::Value::String(name) if name == key => return Ok(false),
            serde_json::Value::Array(rest) if rest.first().and_then(serde_json::Value::as_str) == Some(key) => {
                return Ok(true);
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Values by kind, on their way to columns.
#[derive(Default)]
pub(super) struct ByKind {
    texts: (Vec<u32>, Vec<Bytes>),
    ints: (Vec<u32>, Vec<i64>),
    floats: (Vec<u32>, Vec<f64>),
    bools: (Vec<u32>, Vec<bool>),
    json: (Vec<u32>, Vec<Bytes>),
}

impl ByKind {
    pub(super) fn push(&mut self, slot: u32, value: Value, json: &Bytes) {
        match value {
            Value::Str(text) => {
                self.texts.0.push(slot);
                self.texts.1.push(Bytes::from(text));
            }
            Value::Int(value) => {
                self.ints.0.push(slot);
                self.ints.1.push(value);
            }
            Value::Double(value) => {
                self.floats.0.push(slot);
                self.floats.1.push(value);
            }
            Value::Bool(value) => {
                self.bools.0.push(slot);
                self.bools.1.push(value);
            }
            _ => {
                self.json.0.push(slot);
                self.json.1.push(json.clone());
            }
        }
    }

    pub(super) fn finish(self, out: &mut Vec<Column>) {
        let column = |slots: Vec<u32>, values: Values| Column { present: Present::At(slots), values };
        let all = [
            column(self.texts.0, Values::Texts(self.texts.1)),
            column(self.ints.0, Values::Ints(self.ints.1)),
            column(self.floats.0, Values::Floats(self.floats.1)),
            column(self.bools.0, Values::Bools(self.bools.1)),
            column(self.json.0, Values::Json(self.json.1)),
        ];
        out.extend(all.into_iter().filter(|column| !column.is_empty()));
    }
}

/// Drops values at some slots (ascending).
pub(super) fn without(column: Column, slots: &[u32]) -> Column {
    if slots.is_empty() {
        return column;
    }
    let count = match &column.present {
        Present::All => column.values.len() as u32,
        Present::At(present) => present.last().map_or(0, |last| last + 1),
    };
    let kept: Vec<u32> = (0..count).filter(|slot| slots.binary_search(slot).is_err()).collect();
    let picked = column.select(Rows::At(&kept));
    let present = match picked.present {
        Present::All => kept,
        Present::At(at) => at.into_iter().map(|at| kept[at as usize]).collect(),
    };
    Column { present: Present::At(present), values: picked.values }
}

pub(super) fn slots_of(column: &Column) -> Vec<u32> {
    match &column.present {
        Present::All => (0..column.values.len() as u32).collect(),
        Present::At(slots) => slots.clone(),
    }
}
