//! Writes the columns of one row group, one after the other in schema order.
//!
//! Owns turning what a column was gathered as (symbols, numbers, optional items) into levels and values. Does not own what
//! stands in a column.

use std::io::Write;

use parquet::file::writer::SerializedRowGroupWriter;
use parquet::schema::types::SchemaDescPtr;

use super::attrs::{NO_SHAPE, TypedColumn};
use super::bitmap::Bitmap;
use super::chunk::{ChunkEncoder, Extras, Levels, Values};
use super::gather::{Dictionaries, Global, TextColumn};
use super::summary::ValueSet;
use super::writer::WriteError;
use crate::batch::ValueKind;
use crate::model::typed_json;

/// Where the items of a column stand among its slots.
pub(super) enum Frame<'f> {
    /// Every row is an item, and every slot a row.
    Spans,
    /// Items of lists.
    Lists {
        /// Levels of required members.
        definition: &'f [u8],
        repetition: &'f [u8],
        /// Slot of each item.
        slots: &'f [u32],
    },
}

impl Frame<'_> {
    pub(super) fn required(&self) -> Levels<'_> {
        match self {
            Self::Spans => Levels::Required,
            Self::Lists { definition, repetition, .. } => Levels::Nested { definition, repetition },
        }
    }

    /// Definition levels of an optional member inside lists; empty outside.
    pub(super) fn definition(&self, present: &Bitmap) -> Vec<u8> {
        let Self::Lists { definition, slots, .. } = self else { return Vec::new() };
        let mut levels = definition.to_vec();
        for item in present.iter() {
            levels[slots[item as usize] as usize] = 2;
        }
        levels
    }

    pub(super) fn optional<'l>(&'l self, present: &'l Bitmap, definition: &'l [u8]) -> Levels<'l> {
        match self {
            Self::Spans => Levels::Optional(present),
            Self::Lists { repetition, .. } => Levels::Nested { definition, repetition },
        }
    }
}

/// Writes columns in schema order.
pub(super) struct Emitter<'e, 'g, W: Write + Send> {
    pub(super) encoder: &'e mut ChunkEncoder,
    pub(super) dictionaries: &'e mut Dictionaries,
    pub(super) schema: SchemaDescPtr,
    pub(super) group: &'e mut SerializedRowGroupWriter<'g, W>,
    pub(super) rows: usize,
    pub(super) next: usize,
}

impl<W: Write + Send> Emitter<'_, '_, W> {
    pub(super) fn emit(&mut self, levels: Levels<'_>, values: &Values<'_>, extras: Extras) -> Result<(), WriteError> {
        let column = self.schema.column(self.next);
        self.next += 1;
        let (bytes, close) = self.encoder.encode(&column, self.rows, levels, values, extras)?;
        self.group.append_column(&bytes, close)?;
        Ok(())
    }

    pub(super) fn required(&mut self, frame: &Frame<'_>, values: &Values<'_>, extras: Extras) -> Result<(), WriteError> {
        self.emit(frame.required(), values, extras)
    }

    /// Values of the items in `present`, nulls for the others.
    pub(super) fn optional(
        &mut self,
        frame: &Frame<'_>,
        present: &Bitmap,
        values: &Values<'_>,
        extras: Extras,
    ) -> Result<(), WriteError> {
        let definition = frame.definition(present);
        self.emit(frame.optional(present, &definition), values, extras)
    }

    pub(super) fn i32s(&mut self, frame: &Frame<'_>, values: impl Iterator<Item = i32>) -> Result<(), WriteError> {
        let values: Vec<i32> = values.collect();
        self.required(frame, &Values::I32(&values), Extras::default())
    }

    pub(super) fn text(&mut self, levels: Levels<'_>, column: &TextColumn<'_>, extras: Extras) -> Result<(), WriteError> {
        match column {
            TextColumn::Coded { codes, dictionary } => self.emit(levels, &Values::Coded { codes, dictionary }, extras),
            TextColumn::Plain(values) => self.emit(levels, &Values::Bytes(values), extras),
        }
    }

    pub(super) fn required_text(
        &mut self,
        frame: &Frame<'_>,
        symbols: &[u32],
        global: &Global<'_>,
    ) -> Result<(), WriteError> {
        let column = self.dictionaries.column(symbols.iter().copied(), symbols.len(), global.strings());
        self.text(frame.required(), &column, Extras::default())
    }

    /// Text that is null where the symbol is the empty string.
    pub(super) fn optional_text(
        &mut self,
        frame: &Frame<'_>,
        symbols: &[u32],
        global: &Global<'_>,
    ) -> Result<(), WriteError> {
        self.numbered_text(frame, symbols, 0, global.strings())
    }

    /// The shapes of items, null for those without attributes.
    pub(super) fn shapes(&mut self, frame: &Frame<'_>, shapes: &[u32], texts: &[String]) -> Result<(), WriteError> {
        let strings: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        self.numbered_text(frame, shapes, NO_SHAPE, &strings)
    }

    /// Texts by number, null where the number is `null`.
    fn numbered_text(&mut self, frame: &Frame<'_>, numbers: &[u32], null: u32, strings: &[&[u8]]) -> Result<(), WriteError> {
        let present = Bitmap::of(numbers.iter().map(|number| *number != null));
        let values = numbers.iter().copied().filter(|number| *number != null);
        let column = self.dictionaries.column(values, present.ones(), strings);
        let definition = frame.definition(&present);
        self.text(frame.optional(&present, &definition), &column, Extras::default())
    }

    pub(super) fn typed(
        &mut self,
        frame: &Frame<'_>,
        kind: ValueKind,
        column: &TypedColumn,
        global: &Global<'_>,
        filter: Option<f64>,
        summary: &mut ValueSet,
    ) -> Result<(), WriteError> {
        let definition = frame.definition(&column.present);
        let levels = frame.optional(&column.present, &definition);
        summary.stored += column.present.ones() as u32;
        match kind {
            ValueKind::Str | ValueKind::Json => {
                let symbols = column.texts.iter().copied();
                let text = self.dictionaries.column(symbols, column.texts.len(), global.strings());
                match &text {
                    TextColumn::Coded { dictionary, .. } => summarise_texts(dictionary, summary),
                    TextColumn::Plain(_) => summary.cut(),
                }
                self.text(levels, &text, Extras { filter, ..Extras::default() })
            }
            ValueKind::Int => {
                let values: Vec<i64> = column.numbers.iter().map(|bits| *bits as i64).collect();
                summarise_numbers(&values, summary);
                self.emit(levels, &Values::I64(&values), Extras { statistics: true, ..Extras::default() })
            }
            ValueKind::Double => {
                let values: Vec<f64> = column.numbers.iter().map(|bits| f64::from_bits(*bits)).collect();
                summary.cut();
                self.emit(levels, &Values::F64(&values), Extras::default())
            }
            ValueKind::Bool => {
                let values: Vec<bool> = column.numbers.iter().map(|bits| *bits != 0).collect();
                for seen in [false, true] {
                    if values.contains(&seen) {
                        summary.add(seen.to_string());
                    }
                }
                self.emit(levels, &Values::Bool(&values), Extras::default())
            }
        }
    }
}

pub(super) fn summarise_texts(dictionary: &[&[u8]], summary: &mut ValueSet) {
    for value in dictionary {
        if summary.cut {
            return;
        }
        let mut json = String::new();
        typed_json::push_str(std::str::from_utf8(value).unwrap_or_default(), &mut json);
        summary.add(json);
    }
}

pub(super) fn summarise_numbers(values: &[i64], summary: &mut ValueSet) {
    let mut last = None;
    for value in values {
        if summary.cut {
            return;
        }
        if last != Some(*value) {
            last = Some(*value);
            let mut json = String::new();
            typed_json::push_i64(*value, &mut json);
            summary.add(json);
        }
    }
}

/// A column of texts that have numbers of their own, each text in use.
pub(super) fn coded<'v>(codes: Vec<u32>, texts: impl Iterator<Item = &'v str>) -> TextColumn<'v> {
    let dictionary: Vec<&[u8]> = texts.map(str::as_bytes).collect();
    if super::chunk::dictionary_pays(dictionary.len(), codes.len()) {
        TextColumn::Coded { codes, dictionary }
    } else {
        TextColumn::Plain(codes.iter().map(|code| dictionary[*code as usize]).collect())
    }
}

/// Bytes that are null where empty.
pub(super) fn optional_bytes<'v, W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    frame: &Frame<'_>,
    values: impl Iterator<Item = &'v [u8]>,
) -> Result<(), WriteError> {
    let (mut present, mut all) = (Bitmap::default(), Vec::new());
    for (item, value) in values.enumerate().filter(|(_, value)| !value.is_empty()) {
        present.push(item as u32);
        all.push(value);
    }
    out.optional(frame, &present, &Values::Bytes(&all), Extras::default())
}
