//! From gathered columns to chunks: levels, coded or plain, and what the summary says of what goes by.

use std::io::Write;

use super::super::bitmap::Bitmap;
use super::super::chunk::{Extras, Levels, Values as ChunkValues, dictionary_pays};
use super::super::emit::{Emitter, Frame, summarise_numbers, summarise_texts};
use super::super::page::Values;
use super::super::schema::TypedKey;
use super::super::spans::bad;
use super::super::writer::WriteError;
use super::attrs::{kind_of_json, pairs_of};
use super::column::{Form, PlacedItems, StripColumn, Texts, gather, gather_texts, stretches};
use super::dictionary::TextDictionary;
use super::input::Result;
use super::place::{Placed, Run};
use super::totals::Said;
use crate::batch::ValueKind;

pub(super) type Written = std::result::Result<(), WriteError>;

pub(super) const KINDS: [ValueKind; 5] =
    [ValueKind::Str, ValueKind::Int, ValueKind::Double, ValueKind::Bool, ValueKind::Json];

/// The numbers of a column; none of a column without values, whatever its form.
macro_rules! numbers {
    ($($name:ident: $form:ident, $number:ty;)*) => {$(
        pub(super) fn $name(values: &Values) -> Option<&[$number]> {
            match values {
                Values::$form(all) => Some(all),
                other => (other.len() == 0).then_some(&[]),
            }
        }
    )*};
}

numbers! {
    i32s: I32, i32;
    i64s: I64, i64;
    f64s: F64, f64;
    bools: Bool, bool;
}

pub(super) fn frame_of(placed: &PlacedItems) -> Frame<'_> {
    Frame::Lists { definition: &placed.definition, repetition: &placed.repetition, slots: &placed.slots }
}

pub(super) fn all_present(slots: usize) -> Bitmap {
    Bitmap::of(std::iter::repeat_n(true, slots))
}

/// Calls `each` with the number of a trace and how many rows it has.
pub(super) fn each_trace(placed: &Placed, mut each: impl FnMut(usize, usize)) {
    for (at, trace) in placed.traces.iter().enumerate() {
        let end = placed.traces.get(at + 1).map_or(placed.rows, |next| next.first as usize);
        each(at, end - trace.first as usize);
    }
}

pub(super) fn texts_of(texts: &Texts) -> impl Iterator<Item = &[u8]> {
    let (Form::Coded(_, all) | Form::Plain(all)) = &texts.form;
    (0..all.len() as u32).map(|code| all.get(code))
}

pub(super) fn text_at(texts: &Texts, at: usize) -> &[u8] {
    match &texts.form {
        Form::Coded(codes, dictionary) => dictionary.get(codes[at]),
        Form::Plain(all) => all.get(at as u32),
    }
}

pub(super) fn emit_texts<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    levels: Levels<'_>,
    texts: &Texts,
    extras: Extras,
) -> Written {
    match &texts.form {
        Form::Coded(codes, dictionary) => {
            out.emit(levels, &ChunkValues::Coded { codes, dictionary: &dictionary.texts() }, extras)
        }
        Form::Plain(all) => out.emit(levels, &ChunkValues::Bytes(&all.texts()), extras),
    }
}

/// Codes that were made whether a dictionary pays or not.
pub(super) fn coded<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    levels: Levels<'_>,
    codes: &[u32],
    known: &TextDictionary,
) -> Written {
    if dictionary_pays(known.len(), codes.len()) {
        return out.emit(levels, &ChunkValues::Coded { codes, dictionary: &known.texts() }, Extras::default());
    }
    let all: Vec<&[u8]> = codes.iter().map(|code| known.get(*code)).collect();
    out.emit(levels, &ChunkValues::Bytes(&all), Extras::default())
}

pub(super) fn optional<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    frame: &Frame<'_>,
    texts: &Texts,
    slots: usize,
    extras: Extras,
) -> Written {
    let all;
    let present = match &texts.present {
        Some(present) => present,
        None => {
            all = all_present(slots);
            &all
        }
    };
    let definition = frame.definition(present);
    emit_texts(out, frame.optional(present, &definition), texts, extras)
}

/// Bytes, never coded.
pub(super) fn optional_bytes<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    frame: &Frame<'_>,
    runs: &[Run],
    columns: &[StripColumn],
) -> Written {
    let mut all: Vec<&[u8]> = Vec::new();
    let present = stretches(runs, columns, |strip, places| {
        all.extend(places.map(|at| columns[strip].text(at)));
        Ok(())
    })?;
    let present = present.unwrap_or_else(|| all_present(runs.iter().map(|run| run.len as usize).sum()));
    out.optional(frame, &present, &ChunkValues::Bytes(&all), Extras::default())
}

pub(super) fn said_of_texts(said: &mut Said, (slot, key): (usize, &TypedKey), texts: &Texts) -> Result<()> {
    let values = &mut said.values[slot];
    values.stored += texts.len() as u32;
    match &texts.form {
        Form::Coded(_, dictionary) => summarise_texts(&dictionary.texts(), values),
        Form::Plain(_) => values.cut(),
    }
    said.count(&key.key, key.kind, texts.len() as u32)
}

/// A typed column of any kind, and what the summary says of it. `of_texts` is for texts alone.
pub(super) fn typed<W: Write + Send>(
    out: &mut Emitter<'_, '_, W>,
    frame: &Frame<'_>,
    runs: &[Run],
    (slot, key): (usize, &TypedKey),
    columns: Vec<StripColumn>,
    (slots, said): (usize, &mut Said),
    of_texts: Extras,
) -> Written {
    let presence = |present: Option<Bitmap>| present.unwrap_or_else(|| all_present(slots));
    let count = match key.kind {
        ValueKind::Str | ValueKind::Json => {
            let texts = gather_texts(runs, &columns)?;
            // Texts of a large trace must not be there twice while they are written.
            drop(columns);
            said_of_texts(said, (slot, key), &texts)?;
            return optional(out, frame, &texts, slots, of_texts);
        }
        ValueKind::Int => {
            let (values, present) = gather(runs, &columns, i64s)?;
            summarise_numbers(&values, &mut said.values[slot]);
            let extras = Extras { statistics: true, ..Extras::default() };
            out.optional(frame, &presence(present), &ChunkValues::I64(&values), extras)?;
            values.len()
        }
        ValueKind::Double => {
            let (values, present) = gather(runs, &columns, f64s)?;
            said.values[slot].cut();
            out.optional(frame, &presence(present), &ChunkValues::F64(&values), Extras::default())?;
            values.len()
        }
        ValueKind::Bool => {
            let (values, present) = gather(runs, &columns, bools)?;
            for seen in [false, true] {
                if values.contains(&seen) {
                    said.values[slot].add(seen.to_string());
                }
            }
            out.optional(frame, &presence(present), &ChunkValues::Bool(&values), Extras::default())?;
            values.len()
        }
    };
    said.values[slot].stored += count as u32;
    Ok(said.count(&key.key, key.kind, count as u32)?)
}

/// Counts the pairs of texts that hold a whole rest each.
pub(super) fn count_rest(said: &mut Said, texts: &Texts) -> Result<()> {
    let mut add = |text: &[u8], times: u32| -> Result<()> {
        for (key, value) in pairs_of(text)? {
            said.count(std::str::from_utf8(&key).map_err(bad)?, kind_of_json(&value), times)?;
        }
        Ok(())
    };
    match &texts.form {
        Form::Coded(codes, dictionary) => {
            let mut times = vec![0u32; dictionary.len()];
            codes.iter().for_each(|code| times[*code as usize] += 1);
            (0u32..).zip(times).try_for_each(|(code, times)| add(dictionary.get(code), times))
        }
        Form::Plain(all) => (0..all.len() as u32).try_for_each(|at| add(all.get(at), 1)),
    }
}
