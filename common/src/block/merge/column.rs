//! Columns of strips, and putting them together in the order of an output row group.
//!
//! Owns the second half of merging: one column of all inputs at a time, copied run by run. Values move as they lie; texts are
//! coded anew, each distinct one of an input once.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::super::bitmap::Bitmap;
use super::super::chunk::dictionary_pays;
use super::super::decode::BadPage;
use super::super::page::{ColumnRows, Dictionary, Values};
use super::dictionary::TextDictionary;
use super::input::{Input, Result, Scratch};
use super::place::{Run, Strip};

/// So many values of a column are looked at before it may be called one of distinct values.
const SAMPLE: usize = 1 << 16;

/// A column of one strip: of its rows, or of the items of a list.
#[derive(Debug)]
pub(super) struct StripColumn {
    pub(super) values: Values,
    pub(super) dictionary: Option<Arc<Dictionary>>,
    /// Texts beyond the dictionary: codes go on from its end.
    pub(super) more: Vec<Bytes>,
    /// Rows (or items) that have a value, ascending; `None` if all have.
    pub(super) present: Option<Vec<u32>>,
}

impl Default for StripColumn {
    fn default() -> Self {
        Self { values: Values::Codes(Vec::new()), dictionary: None, more: Vec::new(), present: Some(Vec::new()) }
    }
}

impl StripColumn {
    /// A column with at most one value a row.
    pub(super) fn of_rows(input: &Input, scratch: &Scratch, strip: &Strip, column: usize) -> Result<Self> {
        Self::read_rows(input, scratch, strip, column).map_err(|error| input.own(error))
    }

    fn read_rows(input: &Input, scratch: &Scratch, strip: &Strip, column: usize) -> Result<Self> {
        let rows = strip.rows.len();
        let out = ColumnRows::flat(rows, &input.group(strip.group).chunk(column));
        let (mut read, chunk) = input.read(scratch, strip.group, column, strip.rows.clone(), out)?;
        let different = || BadPage("columns of different length");
        let present = match (chunk.max_definition, read.present.take()) {
            (0, _) => None,
            (1, Some((slots, present))) if slots as usize == rows => Some(present).filter(|all| all.len() < rows),
            _ => return Err(different().into()),
        };
        if read.values.len() != present.as_ref().map_or(rows, Vec::len) {
            return Err(different().into());
        }
        read.pack();
        Ok(Self { values: read.values, dictionary: read.dictionary, more: Vec::new(), present })
    }

    /// A member of the items of a list.
    pub(super) fn of_items(
        input: &Input,
        scratch: &Scratch,
        strip: &Strip,
        column: usize,
        items: &StripItems,
    ) -> Result<Self> {
        if items.len() == 0 {
            return Ok(Self::default());
        }
        Self::read_items(input, scratch, strip, column, items).map_err(|error| input.own(error))
    }

    fn read_items(input: &Input, scratch: &Scratch, strip: &Strip, column: usize, items: &StripItems) -> Result<Self> {
        let (mut read, chunk) = input.read(scratch, strip.group, column, strip.rows.clone(), ColumnRows::new())?;
        let levels = read.definition.iter().filter(|level| **level > 0);
        let (mut count, mut present) = (0, Vec::with_capacity(read.values.len()));
        for level in levels {
            if *level == chunk.max_definition {
                present.push(count);
            }
            count += 1;
        }
        // A run of levels may say any number.
        let is_sane = read.definition.iter().all(|level| *level <= chunk.max_definition);
        if !is_sane || count as usize != items.len() || present.len() != read.values.len() {
            return Err(BadPage("members of a list that differ in length").into());
        }
        read.pack();
        let present = Some(present).filter(|present| present.len() < items.len());
        Ok(Self { values: read.values, dictionary: read.dictionary, more: Vec::new(), present })
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Place of a row's value.
    pub(super) fn place(&self, row: u32) -> Option<usize> {
        match &self.present {
            None => Some(row as usize),
            Some(rows) => rows.binary_search(&row).ok(),
        }
    }

    /// The text at a place.
    pub(super) fn text(&self, at: usize) -> &[u8] {
        match &self.values {
            Values::Codes(codes) => self.text_of(codes[at]),
            Values::Bytes(all) => &all[at],
            Values::Ids(all) => &all[at],
            _ => &[],
        }
    }

    /// Bytes of all texts.
    fn text_bytes(&self) -> usize {
        match &self.values {
            Values::Codes(codes) => codes.iter().map(|code| self.text_of(*code).len()).sum(),
            Values::Bytes(all) => all.iter().map(Bytes::len).sum(),
            _ => 0,
        }
    }

    /// How many codes there are.
    pub(super) fn codes(&self) -> usize {
        self.dictionary.as_ref().map_or(0, |dictionary| dictionary.len()) + self.more.len()
    }

    /// The text of a code.
    pub(super) fn text_of(&self, code: u32) -> &[u8] {
        let known = self.dictionary.as_ref().map_or(0, |dictionary| dictionary.len());
        match (code as usize).checked_sub(known) {
            None => self.dictionary.as_ref().and_then(|dictionary| dictionary.get(code)).unwrap_or_default(),
            Some(at) => self.more.get(at).map(|text| &text[..]).unwrap_or_default(),
        }
    }
}

/// Items of a list: where those of each row end. Empty if there are none at all.
#[derive(Debug, Default)]
pub(super) struct StripItems {
    ends: Vec<u32>,
}

impl StripItems {
    /// Of a list whose levels a required member shows.
    pub(super) fn read(input: &Input, scratch: &Scratch, strip: &Strip, column: usize) -> Result<Self> {
        // A row without items has one slot: as many slots as rows can still be items, so levels decide.
        let read = input.read(scratch, strip.group, column, strip.rows.clone(), ColumnRows::new());
        let of_levels = |(read, _): (ColumnRows, _)| Self::of_levels(&read.definition, &read.repetition, strip.rows.len());
        read.and_then(of_levels).map_err(|error| input.own(error))
    }

    pub(super) fn of_levels(definition: &[u8], repetition: &[u8], rows: usize) -> Result<Self> {
        if definition.len() == rows && definition.iter().all(|level| *level == 0) {
            return Ok(Self::default());
        }
        let mut ends: Vec<u32> = Vec::with_capacity(rows);
        let mut items = 0;
        for (definition, repetition) in definition.iter().zip(repetition) {
            if *repetition == 0 {
                ends.push(items);
            }
            if *definition > 0 {
                items += 1;
                *ends.last_mut().ok_or(BadPage("list without row"))? = items;
            }
        }
        if ends.len() == rows { Ok(Self { ends }) } else { Err(BadPage("lists of different length").into()) }
    }

    pub(super) fn of_ends(ends: Vec<u32>) -> Self {
        Self { ends }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.last().map_or(0, |end| *end as usize)
    }

    /// Items of some rows: their numbers follow each other.
    pub(super) fn of(&self, rows: Range<u32>) -> Range<u32> {
        if self.ends.is_empty() || rows.is_empty() {
            return 0..0;
        }
        let from = rows.start.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        from..self.ends[rows.end as usize - 1]
    }
}

/// Levels and runs of the items of a list, in the order of the output.
#[derive(Default)]
pub(super) struct PlacedItems {
    pub(super) definition: Vec<u8>,
    pub(super) repetition: Vec<u8>,
    /// Slot of each item.
    pub(super) slots: Vec<u32>,
    pub(super) runs: Vec<Run>,
}

impl PlacedItems {
    pub(super) fn of(rows: &[Run], items: &[StripItems]) -> Self {
        let count = rows.iter().map(|run| run.len as usize).sum();
        let mut out =
            Self { definition: Vec::with_capacity(count), repetition: Vec::with_capacity(count), ..Self::default() };
        for run in rows {
            let of = &items[run.strip as usize];
            let all = of.of(run.from..run.from + run.len);
            if all.is_empty() {
                out.definition.resize(out.definition.len() + run.len as usize, 0);
                out.repetition.resize(out.repetition.len() + run.len as usize, 0);
                continue;
            }
            out.runs.push(Run { strip: run.strip, from: all.start, len: all.len() as u32 });
            for row in run.from..run.from + run.len {
                let count = of.of(row..row + 1).len();
                for nth in 0..count.max(1) {
                    if count > 0 {
                        out.slots.push(out.definition.len() as u32);
                    }
                    out.definition.push(u8::from(count > 0));
                    out.repetition.push(u8::from(nth > 0));
                }
            }
        }
        out
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// Calls `each` for every stretch of values in the order of the output: strip, its first slot there, the values' places.
/// `absent` strips have no value.
pub(super) fn stretches(
    runs: &[Run],
    columns: &[StripColumn],
    mut each: impl FnMut(usize, Range<usize>) -> Result<()>,
) -> Result<Option<Bitmap>> {
    if columns.iter().all(|column| column.present.is_none()) {
        for run in runs {
            each(run.strip as usize, run.from as usize..(run.from + run.len) as usize)?;
        }
        return Ok(None);
    }
    let mut present = Bitmap::default();
    // Runs of a strip mostly ascend.
    let mut next = vec![0usize; columns.len()];
    let mut slot = 0u32;
    for run in runs {
        let column = &columns[run.strip as usize];
        let places = match &column.present {
            None => {
                (slot..slot + run.len).for_each(|slot| present.push(slot));
                run.from as usize..(run.from + run.len) as usize
            }
            Some(rows) => {
                let at = &mut next[run.strip as usize];
                let end = run.from + run.len;
                *at = seek(rows, *at, run.from);
                let from = *at;
                while let Some(row) = rows.get(*at).filter(|row| **row < end) {
                    present.push(slot + row - run.from);
                    *at += 1;
                }
                from..*at
            }
        };
        if !places.is_empty() {
            each(run.strip as usize, places)?;
        }
        slot += run.len;
    }
    Ok(Some(present))
}

/// The first place whose row is not below `row`, near `at`.
fn seek(rows: &[u32], mut at: usize, row: u32) -> usize {
    if at > 0 && rows[at - 1] >= row {
        return rows[..at].partition_point(|known| *known < row);
    }
    for _ in 0..8 {
        match rows.get(at) {
            Some(known) if *known < row => at += 1,
            _ => return at,
        }
    }
    at + rows[at..].partition_point(|known| *known < row)
}

/// Numbers of a column in output order, and which slots have one (`None`: all).
pub(super) fn gather<T: Copy>(
    runs: &[Run],
    columns: &[StripColumn],
    of: impl Fn(&Values) -> Option<&[T]>,
) -> Result<(Vec<T>, Option<Bitmap>)> {
    let mut out = Vec::with_capacity(columns.iter().map(StripColumn::len).sum());
    let values: Vec<Option<&[T]>> = columns.iter().map(|column| of(&column.values)).collect();
    let present = stretches(runs, columns, |strip, places| {
        let all = values[strip].ok_or(BadPage("values of another type"))?;
        out.extend_from_slice(all.get(places).ok_or(BadPage("columns of different length"))?);
        Ok(())
    })?;
    Ok((out, present))
}

/// A text column in output order.
pub(super) struct Texts {
    pub(super) present: Option<Bitmap>,
    pub(super) form: Form,
}

pub(super) enum Form {
    /// Each value a code of the dictionary.
    Coded(Vec<u32>, TextDictionary),
    /// So many distinct values that a dictionary does not pay, one after the other.
    Plain(TextDictionary),
}

impl Texts {
    pub(super) fn len(&self) -> usize {
        match &self.form {
            Form::Coded(codes, _) => codes.len(),
            Form::Plain(all) => all.len(),
        }
    }

    /// Distinct values, and their bytes together. Of a plain column all are taken for distinct.
    pub(super) fn distinct(&self) -> (usize, usize) {
        match &self.form {
            Form::Coded(_, dictionary) | Form::Plain(dictionary) => (dictionary.len(), dictionary.bytes()),
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Coded(codes, dictionary) => codes.len() * 4 + dictionary.heap_bytes(),
            Form::Plain(all) => all.heap_bytes(),
        }
    }
}

const UNKNOWN: u32 = u32::MAX;

/// Texts of a column in output order: coded where that pays.
pub(super) fn gather_texts(runs: &[Run], columns: &[StripColumn]) -> Result<Texts> {
    let (codes, dictionary, present) = gather_codes(runs, columns, true)?;
    if let Some(codes) = codes
        && dictionary_pays(dictionary.len(), codes.len())
    {
        return Ok(Texts { present, form: Form::Coded(codes, dictionary) });
    }
    drop(dictionary);
    let mut all = TextDictionary::default();
    // To the byte: a column that doubles takes twice what it holds.
    all.reserve(columns.iter().map(StripColumn::len).sum(), columns.iter().map(StripColumn::text_bytes).sum());
    let present = stretches(runs, columns, |strip, places| {
        let column = &columns[strip];
        for at in places {
            all.push(column.text(at));
        }
        Ok(())
    })?;
    Ok(Texts { present, form: Form::Plain(all) })
}

type Codes = (Option<Vec<u32>>, TextDictionary, Option<Bitmap>);

/// Codes and dictionary of a column, whether that pays or not.
pub(super) fn gather_all_codes(runs: &[Run], columns: &[StripColumn]) -> Result<(Vec<u32>, TextDictionary, Option<Bitmap>)> {
    let (codes, dictionary, present) = gather_codes(runs, columns, false)?;
    Ok((codes.unwrap_or_default(), dictionary, present))
}

/// Without codes if it was given up: most of many values are distinct.
fn gather_codes(runs: &[Run], columns: &[StripColumn], may_give_up: bool) -> Result<Codes> {
    let mut codes: Vec<u32> = Vec::with_capacity(columns.iter().map(StripColumn::len).sum());
    let mut dictionary = TextDictionary::default();
    let mut known: Vec<Vec<u32>> = columns.iter().map(|column| vec![UNKNOWN; column.codes()]).collect();
    let mut given_up = false;
    let present = stretches(runs, columns, |strip, places| {
        if given_up {
            return Ok(());
        }
        let column = &columns[strip];
        match &column.values {
            Values::Codes(all) => {
                let known = &mut known[strip];
                for code in all.get(places).ok_or(BadPage("columns of different length"))? {
                    let slot = known.get_mut(*code as usize).ok_or(BadPage("code beyond the dictionary"))?;
                    if *slot == UNKNOWN {
                        *slot = dictionary.code(column.text_of(*code));
                    }
                    codes.push(*slot);
                }
            }
            Values::Bytes(all) => {
                let all = all.get(places).ok_or(BadPage("columns of different length"))?;
                codes.extend(all.iter().map(|text| dictionary.code(text)));
            }
            _ => return Err(BadPage("texts of another type").into()),
        }
        given_up = may_give_up && codes.len() > SAMPLE && dictionary.len() * 100 > codes.len() * 85;
        Ok(())
    })?;
    dictionary.forget_table();
    Ok(((!given_up).then_some(codes), dictionary, present))
}
