//! Fields: the values of one attribute for some spans of a part, or for their events or links.
//!
//! Owns from which columns an attribute is read and in which form its values are held. Values that repeat are tested once.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;

use spanhouse_common::columns::{Column, Present, Values};
use spanhouse_common::model::{Value as Stored, typed_json};
use spanhouse_common::source::SourceError;

use super::bits::Bits;
use super::form::string_form;
use super::key::Interned;
use super::value::{Cell, Value};

/// What the numbers of a column mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Plain,
    Duration,
    Status,
    Kind,
}

/// A column with what is needed to look values up by slot.
#[derive(Debug)]
struct Typed {
    column: Column,
    meaning: Meaning,
    /// Values of a column of JSON.
    cells: Vec<Cell>,
    /// Place of each slot's value, `u32::MAX` for none; made when somebody looks slots up.
    places: OnceCell<Vec<u32>>,
}

#[derive(Debug)]
enum Form {
    /// Columns of different kinds, no slot in two of them. Slots in none have `missing`.
    Columns { columns: Vec<Typed>, missing: Cell },
    /// A code a slot into a table of few values.
    Coded { codes: Vec<u32>, table: Vec<Cell> },
    /// Ids as hex digits.
    Hex(Vec<[u8; 16]>),
    /// The first field's value where it has the key, else the second's.
    Either { first: Rc<Field>, has: Bits, second: Rc<Field> },
    /// Values of spans for each of their items.
    Via { inner: Rc<Field>, of: Rc<Vec<u32>> },
}

/// The values of one attribute by slot.
#[derive(Debug)]
pub(crate) struct Field {
    slots: usize,
    form: Form,
}

/// Values by code, one code a slot.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) codes: Vec<u32>,
    pub(crate) table: Vec<Cell>,
}

impl Typed {
    fn new(column: Column, meaning: Meaning, of: fn(&Stored) -> Cell) -> Result<Self, SourceError> {
        let mut cells = Vec::new();
        if let Values::Json(all) = &column.values {
            let mut known: HashMap<&[u8], Cell> = HashMap::new();
            for json in all {
                let cell = match known.get(&json[..]) {
                    Some(cell) => cell.clone(),
                    None => {
                        let cell = parse_cell(json, of)?;
                        known.insert(json, cell.clone());
                        cell
                    }
                };
                cells.push(cell);
            }
        }
        Ok(Self { column, meaning, cells, places: OnceCell::new() })
    }

    fn at(&self, place: usize) -> Value<'_> {
        let number = |value: i64| match self.meaning {
            Meaning::Plain => Value::Int(value),
            Meaning::Duration => Value::Duration(value),
            Meaning::Status => Value::Status(value as i32),
            Meaning::Kind => Value::Kind(value as i32),
        };
        match &self.column.values {
            Values::Codes(..) | Values::Texts(_) => Value::Str(self.column.values.text(place).unwrap_or_default()),
            Values::Small(all) => number(i64::from(all[place])),
            Values::Ints(all) => number(all[place]),
            Values::Floats(all) => Value::Float(all[place]),
            Values::Bools(all) => Value::Bool(all[place]),
            Values::Json(_) => self.cells[place].value(),
            Values::Ids(_) => Value::Opaque,
        }
    }

    fn place(&self, slot: usize, slots: usize) -> Option<usize> {
        match &self.column.present {
            Present::All => (slot < self.column.values.len()).then_some(slot),
            Present::At(at) => {
                let places = self.places.get_or_init(|| {
                    let mut places = vec![u32::MAX; slots];
                    for (place, slot) in (0..).zip(at) {
                        places[*slot as usize] = place;
                    }
                    places
                });
                Some(places[slot]).filter(|place| *place != u32::MAX).map(|place| place as usize)
            }
        }
    }

    /// Calls `each` with the slot and place of every value.
    fn each(&self, mut each: impl FnMut(usize, usize)) {
        match &self.column.present {
            Present::All => (0..self.column.values.len()).for_each(|at| each(at, at)),
            Present::At(slots) => slots.iter().enumerate().for_each(|(place, slot)| each(*slot as usize, place)),
        }
    }

    /// The places whose value `test` holds for, each distinct text tested once.
    fn test(&self, test: &mut impl FnMut(Value<'_>) -> bool) -> Bits {
        match &self.column.values {
            Values::Codes(codes, texts) => {
                if texts.len() <= codes.len() / 2 {
                    let table: Vec<bool> =
                        (0..texts.len() as u32).map(|code| test(Value::Str(texts.get(code).unwrap_or_default()))).collect();
                    if !table.iter().any(|fits| *fits) {
                        return Bits::none(codes.len());
                    }
                    if let [only] = table.iter().enumerate().filter(|(_, fits)| **fits).take(2).collect::<Vec<_>>()[..] {
                        let only = only.0 as u32;
                        return Bits::of_values(codes, |code| *code == only);
                    }
                    return Bits::of_values(codes, |code| table[*code as usize]);
                }
                let mut known = vec![0u8; texts.len()];
                Bits::of_values(codes, |code| {
                    let known = &mut known[*code as usize];
                    if *known == 0 {
                        *known = 1 + u8::from(test(Value::Str(texts.get(*code).unwrap_or_default())));
                    }
                    *known == 2
                })
            }
            Values::Small(all) => {
                // Statuses and kinds: few values, tested whether they come or not.
                let value = |value: i32| match self.meaning {
                    Meaning::Status => Value::Status(value),
                    Meaning::Kind => Value::Kind(value),
                    Meaning::Plain | Meaning::Duration => Value::Int(i64::from(value)),
                };
                let usual: [bool; 8] = std::array::from_fn(|number| test(value(number as i32)));
                if all.iter().all(|value| (0..8).contains(value)) {
                    return Bits::of_values(all, |value| usual[(*value & 7) as usize]);
                }
                Bits::of_values(all, |number| test(value(*number)))
            }
            values => Bits::of(values.len(), |place| test(self.at(place))),
        }
    }
}

fn parse_cell(json: &[u8], of: fn(&Stored) -> Cell) -> Result<Cell, SourceError> {
    let bad = |why: String| SourceError::Damaged { what: "attribute value".into(), why };
    let text = std::str::from_utf8(json).map_err(|e| bad(e.to_string()))?;
    Ok(of(&typed_json::parse_value(text).map_err(|e| bad(e.to_string()))?))
}

impl Field {
    pub(crate) fn columns(slots: usize, columns: Vec<Column>, meaning: Meaning, missing: Cell) -> Result<Self, SourceError> {
        let typed = |column| Typed::new(column, meaning, Cell::of_stored);
        let columns = columns.into_iter().map(typed).collect::<Result<_, _>>()?;
        Ok(Self { slots, form: Form::Columns { columns, missing } })
    }

    /// Of an attribute in its string form: numbers and texts as they are, all else put into text.
    pub(crate) fn forms(slots: usize, columns: Vec<Column>) -> Result<Self, SourceError> {
        let typed = |column| Typed::new(column, Meaning::Plain, |value| Cell::Str(string_form(value).into()));
        let columns = columns.into_iter().map(typed).collect::<Result<_, _>>()?;
        Ok(Self { slots, form: Form::Columns { columns, missing: Cell::Nil } })
    }

    pub(crate) fn coded(codes: Vec<u32>, table: Vec<Cell>) -> Self {
        Self { slots: codes.len(), form: Form::Coded { codes, table } }
    }

    /// Ids, an id a slot.
    pub(crate) fn hex(ids: &[[u8; 8]]) -> Self {
        Self { slots: ids.len(), form: Form::Hex(ids.iter().map(hex16).collect()) }
    }

    /// `first` where it has the key, else `second`.
    pub(crate) fn either(first: Self, second: Self) -> Self {
        let has = first.has();
        if has.is_none() {
            return second;
        }
        Self { slots: first.slots, form: Form::Either { first: Rc::new(first), has, second: Rc::new(second) } }
    }

    /// For items, the values of the spans they are of.
    pub(crate) fn via(inner: Self, of: &Rc<Vec<u32>>) -> Self {
        Self { slots: of.len(), form: Form::Via { inner: Rc::new(inner), of: Rc::clone(of) } }
    }

    /// Of cells at some slots.
    pub(crate) fn of_cells(slots: usize, at: Vec<u32>, cells: Vec<Cell>) -> Self {
        let column = Column { present: Present::At(at), values: Values::Json(vec![bytes::Bytes::new(); cells.len()]) };
        let typed = Typed { column, meaning: Meaning::Plain, cells, places: OnceCell::new() };
        Self { slots, form: Form::Columns { columns: vec![typed], missing: Cell::Nil } }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Columns { columns, .. } => columns.iter().map(|typed| typed.column.heap_bytes()).sum(),
            Form::Coded { codes, table } => codes.len() * 4 + table.len() * 32,
            Form::Hex(all) => all.len() * 16,
            Form::Either { first, second, .. } => first.heap_bytes() + second.heap_bytes(),
            Form::Via { of, .. } => of.len() * 4,
        }
    }

    pub(crate) fn value(&self, slot: usize) -> Value<'_> {
        match &self.form {
            Form::Columns { columns, missing } => {
                let found = columns.iter().find_map(|typed| typed.place(slot, self.slots).map(|place| typed.at(place)));
                found.unwrap_or_else(|| missing.value())
            }
            Form::Coded { codes, table } => table[codes[slot] as usize].value(),
            Form::Hex(all) => Value::Str(&all[slot]),
            Form::Either { first, has, second } => {
                if has.get(slot) {
                    first.value(slot)
                } else {
                    second.value(slot)
                }
            }
            Form::Via { inner, of } => inner.value(of[slot] as usize),
        }
    }

    /// Slots that have the key, whatever its value.
    pub(crate) fn has(&self) -> Bits {
        match &self.form {
            Form::Columns { columns, .. } => {
                let mut out = Bits::none(self.slots);
                columns.iter().for_each(|typed| typed.each(|slot, _| out.set(slot)));
                out
            }
            _ => Bits::of(self.slots, |slot| self.value(slot) != Value::Nil),
        }
    }

    /// The slots whose value `test` holds for.
    pub(crate) fn test(&self, test: &mut impl FnMut(Value<'_>) -> bool) -> Bits {
        match &self.form {
            Form::Columns { columns, missing } => {
                let of_missing = test(missing.value());
                let mut out = if of_missing { Bits::all(self.slots) } else { Bits::none(self.slots) };
                for typed in columns {
                    let fits = typed.test(test);
                    match (&typed.column.present, of_missing) {
                        (Present::All, false) => return fits,
                        (Present::All, true) => {
                            out = fits;
                            // Slots beyond the values have none.
                            return out;
                        }
                        (Present::At(slots), false) => fits.ones().for_each(|place| out.set(slots[place] as usize)),
                        (Present::At(slots), true) => fits.not().ones().for_each(|place| out.clear(slots[place] as usize)),
                    }
                }
                out
            }
            Form::Coded { codes, table } => {
                let table: Vec<bool> = table.iter().map(|cell| test(cell.value())).collect();
                if table.iter().all(|fits| !fits) {
                    return Bits::none(self.slots);
                }
                Bits::of_values(codes, |code| table[*code as usize])
            }
            Form::Hex(all) => Bits::of_values(all, |id| test(Value::Str(id))),
            Form::Either { first, has, second } => {
                let mut out = first.test(test);
                out.and(has);
                let mut rest = second.test(test);
                rest.and_not(has);
                out.or(&rest);
                out
            }
            Form::Via { inner, of } => {
                let fits = inner.test(test);
                Bits::of_values(of, |slot| fits.get(*slot as usize))
            }
        }
    }

    /// The slots whose whole number `test` holds for, if all values are whole numbers of one meaning: the quick way.
    pub(crate) fn test_numbers(&self, test: impl Fn(i64) -> bool) -> Option<Bits> {
        let Form::Columns { columns, missing: Cell::Nil } = &self.form else { return None };
        let [typed] = columns.as_slice() else { return None };
        let fits = match &typed.column.values {
            Values::Ints(all) if matches!(typed.meaning, Meaning::Plain | Meaning::Duration) => {
                Bits::of_values(all, |value| test(*value))
            }
            _ => return None,
        };
        Some(match &typed.column.present {
            Present::All => fits,
            Present::At(slots) => {
                let mut out = Bits::none(self.slots);
                fits.ones().for_each(|place| out.set(slots[place] as usize));
                out
            }
        })
    }

    /// Whether numbers are durations.
    pub(crate) fn is_duration(&self) -> bool {
        matches!(&self.form, Form::Columns { columns, .. } if columns.iter().all(|typed| typed.meaning == Meaning::Duration))
    }

    /// Whole numbers of every slot, if each has one.
    pub(crate) fn dense_ints(&self) -> Option<&[i64]> {
        match &self.form {
            Form::Columns { columns, .. } => match columns.as_slice() {
                [Typed { column: Column { present: Present::All, values: Values::Ints(all) }, .. }] => Some(all),
                _ => None,
            },
            _ => None,
        }
    }

    /// Codes with their dictionary, if that is how all values are held and a missing one is nil.
    pub(crate) fn text_codes(&self) -> Option<(&Present, &[u32], &spanhouse_common::columns::Texts)> {
        let Form::Columns { columns, missing } = &self.form else { return None };
        let [Typed { column: Column { present, values: Values::Codes(codes, texts) }, .. }] = columns.as_slice() else {
            return None;
        };
        let is_told = *missing == Cell::Nil || matches!(present, Present::All);
        is_told.then_some((present, codes, texts))
    }

    /// The columns, if their values are texts and plain numbers that mean what they are, and a missing one is nil.
    pub(crate) fn plain_columns(&self) -> Option<impl Iterator<Item = (&Present, &Values)>> {
        let Form::Columns { columns, missing } = &self.form else { return None };
        let is_plain = |typed: &Typed| {
            let is_whole = *missing == Cell::Nil || matches!(typed.column.present, Present::All);
            let is_known = !matches!(typed.column.values, Values::Small(_) | Values::Ids(_) | Values::Json(_));
            is_whole && is_known && typed.meaning == Meaning::Plain
        };
        // A missing value that is not nil is told by an only column that lacks none.
        let is_told = *missing == Cell::Nil || columns.len() == 1;
        let all = (is_told && columns.iter().all(is_plain)).then_some(columns);
        Some(all?.iter().map(|typed| (&typed.column.present, &typed.column.values)))
    }

    /// A code for the value of each slot, equal exactly if the values are.
    pub(crate) fn encode(&self) -> Encoded {
        match &self.form {
            Form::Coded { codes, table } => {
                // Different codes may stand for one value.
                let mut out = Encoded::default();
                let mut known = Interned::default();
                let joined: Vec<u32> = table.iter().map(|cell| known.code(cell.value(), &mut out.table)).collect();
                out.codes = codes.iter().map(|code| joined[*code as usize]).collect();
                out
            }
            Form::Columns { columns, missing } => {
                let mut out = Encoded::default();
                let mut known = Interned::default();
                let none = known.code(missing.value(), &mut out.table);
                out.codes = vec![none; self.slots];
                for typed in columns {
                    if let Values::Codes(codes, texts) = &typed.column.values {
                        let mut joined = vec![u32::MAX; texts.len()];
                        typed.each(|slot, place| {
                            let code = &mut joined[codes[place] as usize];
                            if *code == u32::MAX {
                                *code = known.code(typed.at(place), &mut out.table);
                            }
                            out.codes[slot] = *code;
                        });
                    } else {
                        typed.each(|slot, place| out.codes[slot] = known.code(typed.at(place), &mut out.table));
                    }
                }
                out
            }
            _ => {
                let mut out = Encoded::default();
                let mut known = Interned::default();
                out.codes = (0..self.slots).map(|slot| known.code(self.value(slot), &mut out.table)).collect();
                out
            }
        }
    }
}

fn hex16(id: &[u8; 8]) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [0; 16];
    for (at, byte) in id.iter().enumerate() {
        out[2 * at] = DIGITS[usize::from(byte >> 4)];
        out[2 * at + 1] = DIGITS[usize::from(byte & 15)];
    }
    out
}
