//! Fields: the values of one attribute for some spans of a part, or for their events or links.
//!
//! Owns from which columns an attribute is read and in which form its values are held. Values that repeat are tested once.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use spanhouse_common::columns::{Column, Fixed, List, Member, Part, Present, Rows, Values};
use spanhouse_common::model::typed_json;
use spanhouse_common::source::SourceError;

use super::bits::Bits;
use super::structure::{Structure, Traces, root_rows};
use super::value::{Cell, Value};
use crate::traceql::ast::{Attribute, Intrinsic, Scope};

/// What the numbers of a column mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
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
    fn new(column: Column, meaning: Meaning) -> Result<Self, SourceError> {
        let mut cells = Vec::new();
        if let Values::Json(all) = &column.values {
            let mut known: HashMap<&[u8], Cell> = HashMap::new();
            for json in all {
                let cell = match known.get(&json[..]) {
                    Some(cell) => cell.clone(),
                    None => {
                        let cell = parse_cell(json)?;
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

fn parse_cell(json: &[u8]) -> Result<Cell, SourceError> {
    let bad = |why: String| SourceError::Damaged { what: "attribute value".into(), why };
    let text = std::str::from_utf8(json).map_err(|e| bad(e.to_string()))?;
    Ok(Cell::of_stored(&typed_json::parse_value(text).map_err(|e| bad(e.to_string()))?))
}

impl Field {
    fn columns(slots: usize, columns: Vec<Column>, meaning: Meaning, missing: Cell) -> Result<Self, SourceError> {
        let columns = columns.into_iter().map(|column| Typed::new(column, meaning)).collect::<Result<_, _>>()?;
        Ok(Self { slots, form: Form::Columns { columns, missing } })
    }

    fn coded(codes: Vec<u32>, table: Vec<Cell>) -> Self {
        Self { slots: codes.len(), form: Form::Coded { codes, table } }
    }

    /// Of cells at some slots.
    fn of_cells(slots: usize, at: Vec<u32>, cells: Vec<Cell>) -> Self {
        let column = Column { present: Present::At(at), values: Values::Json(vec![bytes::Bytes::new(); cells.len()]) };
        let typed = Typed { column, meaning: Meaning::Plain, cells, places: OnceCell::new() };
        Self { slots, form: Form::Columns { columns: vec![typed], missing: Cell::Nil } }
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
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
    fn has(&self) -> Bits {
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

    /// Codes of every slot with their dictionary, if that is how all values are held.
    pub(crate) fn text_codes(&self) -> Option<(&[u32], &spanhouse_common::columns::Texts)> {
        match &self.form {
            Form::Columns { columns, .. } => match columns.as_slice() {
                [Typed { column: Column { present: Present::All, values: Values::Codes(codes, texts) }, .. }] => {
                    Some((codes, texts))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Texts by code with their slots (`None` for all), if every value is one and a missing one is nil.
    pub(crate) fn texts(&self) -> Option<(Option<&[u32]>, &[u32], &spanhouse_common::columns::Texts)> {
        let Form::Columns { columns, missing } = &self.form else { return None };
        let [Typed { column, .. }] = columns.as_slice() else { return None };
        match (&column.values, &column.present) {
            (Values::Codes(codes, texts), Present::All) => Some((None, codes, texts)),
            (Values::Codes(codes, texts), Present::At(slots)) if *missing == Cell::Nil => Some((Some(slots), codes, texts)),
            _ => None,
        }
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

/// Codes of values in a table.
#[derive(Debug, Default)]
pub(crate) struct Interned(HashMap<Key, u32, foldhash::fast::RandomState>);

/// A value by which spans are grouped: equal if type and value are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Nil,
    Int(i64),
    Float(u64),
    Str(Arc<str>),
    Bool(bool),
    Duration(i64),
    Status(i32),
    Kind(i32),
    Array(Vec<Key>),
}

impl Key {
    pub(crate) fn of(value: Value<'_>) -> Self {
        match value {
            Value::Nil | Value::Opaque => Self::Nil,
            Value::Int(v) => Self::Int(v),
            Value::Float(v) => Self::Float(v.to_bits()),
            Value::Str(v) => Self::Str(String::from_utf8_lossy(v).into()),
            Value::Bool(v) => Self::Bool(v),
            Value::Duration(v) => Self::Duration(v),
            Value::Status(v) => Self::Status(v),
            Value::Kind(v) => Self::Kind(v),
            Value::Array(all) => Self::Array(all.iter().map(|cell| Self::of(cell.value())).collect()),
        }
    }

    pub(crate) fn cell(&self) -> Cell {
        match self {
            Self::Nil => Cell::Nil,
            Self::Int(v) => Cell::Int(*v),
            Self::Float(v) => Cell::Float(f64::from_bits(*v)),
            Self::Str(v) => Cell::Str(Arc::clone(v)),
            Self::Bool(v) => Cell::Bool(*v),
            Self::Duration(v) => Cell::Duration(*v),
            Self::Status(v) => Cell::Status(*v),
            Self::Kind(v) => Cell::Kind(*v),
            Self::Array(all) => Cell::Array(all.iter().map(Self::cell).collect()),
        }
    }
}

impl Interned {
    pub(crate) fn code(&mut self, value: Value<'_>, table: &mut Vec<Cell>) -> u32 {
        let key = Key::of(value);
        if let Some(code) = self.0.get(&key) {
            return *code;
        }
        let code = table.len() as u32;
        table.push(key.cell());
        self.0.insert(key, code);
        code
    }
}

/// Reads fields of some rows of a part.
pub(crate) struct FieldReader<'p> {
    pub(crate) part: &'p dyn Part,
    pub(crate) rows: Rows<'p>,
    pub(crate) traces: &'p Traces,
    pub(crate) structure: &'p Structure<'p>,
}

impl FieldReader<'_> {
    fn column(&self, which: Fixed) -> Result<Column, SourceError> {
        self.part.column(which, self.rows)
    }

    fn fixed(&self, which: Fixed, meaning: Meaning) -> Result<Field, SourceError> {
        Field::columns(self.rows.len(), vec![self.column(which)?], meaning, Cell::Nil)
    }

    /// The values for the spans.
    pub(crate) fn read(&self, attribute: &Attribute) -> Result<Field, SourceError> {
        let slots = self.rows.len();
        match attribute {
            Attribute::Intrinsic(intrinsic) => self.intrinsic(*intrinsic),
            Attribute::Scoped { scope, name } => match scope {
                Scope::Span => Field::columns(slots, self.part.attribute(name, self.rows)?, Meaning::Plain, Cell::Nil),
                Scope::Resource if **name == *"service.name" => {
                    let column = self.column(Fixed::ServiceName)?;
                    Field::columns(slots, vec![column], Meaning::Plain, Cell::Str(Arc::from("")))
                }
                Scope::Resource => self.resource(name),
                Scope::None | Scope::Parent(_) => {
                    let first = Field::columns(slots, self.part.attribute(name, self.rows)?, Meaning::Plain, Cell::Nil)?;
                    let has = first.has();
                    let second = self.resource(name)?;
                    Ok(if has.is_none() {
                        second
                    } else {
                        Field { slots, form: Form::Either { first: Rc::new(first), has, second: Rc::new(second) } }
                    })
                }
                Scope::Instrumentation => self.scope(|scope| {
                    scope.attributes.iter().find(|a| a.key == **name).map_or(Cell::Nil, |a| Cell::of_stored(&a.value))
                }),
                Scope::Event => self.first_item(List::Events, attribute),
                Scope::Link => self.first_item(List::Links, attribute),
            },
        }
    }

    fn intrinsic(&self, intrinsic: Intrinsic) -> Result<Field, SourceError> {
        let slots = self.rows.len();
        let empty = || Cell::Str(Arc::from(""));
        match intrinsic {
            Intrinsic::Name => self.fixed(Fixed::Name, Meaning::Plain),
            Intrinsic::Duration => self.fixed(Fixed::Duration, Meaning::Duration),
            Intrinsic::Status => self.fixed(Fixed::StatusCode, Meaning::Status),
            Intrinsic::Kind => self.fixed(Fixed::Kind, Meaning::Kind),
            Intrinsic::StatusMessage => {
                Field::columns(slots, vec![self.column(Fixed::StatusMessage)?], Meaning::Plain, empty())
            }
            Intrinsic::SpanId => self.hex(Fixed::SpanId),
            Intrinsic::ParentId => self.hex(Fixed::ParentSpanId),
            Intrinsic::TraceId | Intrinsic::TraceDuration | Intrinsic::RootName | Intrinsic::RootService => {
                let (codes, first) = self.traces.codes(self.rows);
                let count = codes.last().map_or(0, |last| *last as usize + 1);
                let range = first..first + count;
                let table = match intrinsic {
                    Intrinsic::TraceId => range.map(|trace| Cell::Str(self.traces.hex(trace).into())).collect(),
                    Intrinsic::TraceDuration => {
                        let times = self.traces.times(self.part)?;
                        range.map(|trace| Cell::Duration(times.duration(trace) as i64)).collect()
                    }
                    _ => self.roots(intrinsic == Intrinsic::RootName, range)?,
                };
                Ok(Field::coded(codes, table))
            }
            Intrinsic::EventName | Intrinsic::EventTimeSinceStart => {
                self.first_item(List::Events, &Attribute::Intrinsic(intrinsic))
            }
            Intrinsic::LinkTraceId | Intrinsic::LinkSpanId => self.first_item(List::Links, &Attribute::Intrinsic(intrinsic)),
            Intrinsic::InstrumentationName => self.scope(|scope| Cell::Str(Arc::from(scope.name.as_str()))),
            Intrinsic::InstrumentationVersion => self.scope(|scope| Cell::Str(Arc::from(scope.version.as_str()))),
            Intrinsic::ChildCount | Intrinsic::NestedSetLeft | Intrinsic::NestedSetRight | Intrinsic::NestedSetParent => {
                let numbers = self.structure.numbers(intrinsic, self.rows)?;
                Field::columns(slots, vec![Column::all(Values::Ints(numbers))], Meaning::Plain, Cell::Nil)
            }
            Intrinsic::Parent => Ok(Field::of_cells(slots, Vec::new(), Vec::new())),
        }
    }

    /// Names, or services, of the roots of some traces.
    fn roots(&self, names: bool, traces: std::ops::Range<usize>) -> Result<Vec<Cell>, SourceError> {
        let traces: Vec<u32> = traces.map(|trace| trace as u32).collect();
        let roots = root_rows(self.part, &self.traces.table, &traces)?;
        let found: Vec<u32> = roots.iter().flatten().copied().collect();
        let which = if names { Fixed::Name } else { Fixed::ServiceName };
        let column = self.part.column(which, Rows::At(&found))?;
        let field = Field::columns(found.len(), vec![column], Meaning::Plain, Cell::Str(Arc::from("")))?;
        let mut slots = 0..found.len();
        let cell = |root: &Option<u32>| match root.and_then(|_| slots.next()) {
            Some(slot) => field.value(slot).cell(),
            None => Cell::Str(Arc::from("")),
        };
        Ok(roots.iter().map(cell).collect())
    }

    fn hex(&self, which: Fixed) -> Result<Field, SourceError> {
        let column = self.column(which)?;
        let Values::Ids(ids) = &column.values else { return Ok(Field::of_cells(self.rows.len(), Vec::new(), Vec::new())) };
        Ok(Field { slots: self.rows.len(), form: Form::Hex(ids.iter().map(hex16).collect()) })
    }

    fn resource(&self, name: &str) -> Result<Field, SourceError> {
        self.per_text(Fixed::Resource, |text| {
            let resource = typed_json::parse_resource(text)?;
            let found = resource.attributes.iter().find(|a| a.key == name);
            Ok(found.map_or(Cell::Nil, |a| Cell::of_stored(&a.value)))
        })
    }

    fn scope(&self, of: impl Fn(&spanhouse_common::model::Scope) -> Cell) -> Result<Field, SourceError> {
        self.per_text(Fixed::Scope, |text| Ok(of(&typed_json::parse_scope(text)?)))
    }

    /// A value for each distinct text of a column.
    fn per_text(
        &self,
        which: Fixed,
        of: impl Fn(&str) -> Result<Cell, typed_json::TypedJsonError>,
    ) -> Result<Field, SourceError> {
        let column = self.column(which)?;
        let bad = |why: String| SourceError::Damaged { what: self.part.name(), why };
        let parse = |text: &[u8]| {
            let text = std::str::from_utf8(text).map_err(|e| bad(e.to_string()))?;
            of(text).map_err(|e| bad(e.to_string()))
        };
        let (mut codes, mut table) = (Vec::with_capacity(column.values.len()), Vec::new());
        match &column.values {
            Values::Codes(all, texts) => {
                let mut known = vec![u32::MAX; texts.len()];
                for code in all {
                    let known = &mut known[*code as usize];
                    if *known == u32::MAX {
                        *known = table.len() as u32;
                        table.push(parse(texts.get(*code).unwrap_or_default())?);
                    }
                    codes.push(*known);
                }
            }
            values => {
                let mut known: HashMap<&[u8], u32> = HashMap::new();
                for at in 0..values.len() {
                    let text = values.text(at).unwrap_or_default();
                    let code = match known.get(text) {
                        Some(code) => *code,
                        None => {
                            let code = table.len() as u32;
                            table.push(parse(text)?);
                            known.insert(text, code);
                            code
                        }
                    };
                    codes.push(code);
                }
            }
        }
        Ok(Field::coded(codes, table))
    }

    /// For each span, the value of its first event or link that has one.
    fn first_item(&self, list: List, attribute: &Attribute) -> Result<Field, SourceError> {
        let items = Rc::new(self.part.items(list, self.rows)?.slots);
        let field = self.item(list, attribute, &items)?;
        let (mut at, mut cells) = (Vec::new(), Vec::new());
        for (item, slot) in items.iter().enumerate() {
            if at.last() == Some(slot) {
                continue;
            }
            let value = field.value(item);
            if !matches!(value, Value::Nil | Value::Opaque) {
                at.push(*slot);
                cells.push(value.cell());
            }
        }
        Ok(Field::of_cells(self.rows.len(), at, cells))
    }

    /// The values for the events or links, whose spans are `items`.
    pub(crate) fn item(&self, list: List, attribute: &Attribute, items: &Rc<Vec<u32>>) -> Result<Field, SourceError> {
        let slots = items.len();
        let member = |which| self.part.member(which, self.rows);
        let hex_of = |which, is_trace: bool| -> Result<Field, SourceError> {
            let column = member(which)?;
            let cell = |at| {
                let hex: String =
                    column.values.text(at).unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect();
                Cell::Str(if is_trace { Arc::from(hex.trim_start_matches('0')) } else { Arc::from(hex) })
            };
            Ok(Field::of_cells(slots, (0..slots as u32).collect(), (0..slots).map(cell).collect()))
        };
        match attribute {
            Attribute::Intrinsic(Intrinsic::EventName) if list == List::Events => {
                Field::columns(slots, vec![member(Member::EventName)?], Meaning::Plain, Cell::Nil)
            }
            Attribute::Intrinsic(Intrinsic::EventTimeSinceStart) if list == List::Events => {
                Field::columns(slots, vec![member(Member::EventOffset)?], Meaning::Duration, Cell::Nil)
            }
            Attribute::Intrinsic(Intrinsic::LinkTraceId) if list == List::Links => hex_of(Member::LinkTraceId, true),
            Attribute::Intrinsic(Intrinsic::LinkSpanId) if list == List::Links => hex_of(Member::LinkSpanId, false),
            Attribute::Scoped { scope: Scope::Event, name } if list == List::Events => {
                Field::columns(slots, self.part.item_attribute(list, name, self.rows)?, Meaning::Plain, Cell::Nil)
            }
            Attribute::Scoped { scope: Scope::Link, name } if list == List::Links => {
                Field::columns(slots, self.part.item_attribute(list, name, self.rows)?, Meaning::Plain, Cell::Nil)
            }
            other => {
                let inner = Rc::new(self.read(other)?);
                Ok(Field { slots, form: Form::Via { inner, of: Rc::clone(items) } })
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
