//! Reading fields: from which columns of a part an attribute of the language comes.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use spanhouse_common::columns::{Column, Fixed, List, Member, Part, Rows, Values};
use spanhouse_common::model::{Value as Stored, typed_json};
use spanhouse_common::source::SourceError;

use super::field::{Field, Meaning};
use super::form::string_form;
use super::structure::{Structure, Traces, root_rows};
use super::value::{Cell, Value};
use crate::traceql::ast::{Attribute, Intrinsic, Scope};

fn form_cell(value: &Stored) -> Cell {
    Cell::Str(string_form(value).into())
}

/// 64 bits that are nanoseconds since 1970 as a whole number; later than these reach is the latest.
fn moment(bits: i64) -> i64 {
    if bits < 0 { i64::MAX } else { bits }
}

/// A key as it stands in the text of a resource or a scope that has it.
pub(crate) struct OwnerKey(String);

impl OwnerKey {
    pub(crate) fn new(key: &str) -> Self {
        let mut text = String::new();
        typed_json::push_str(key, &mut text);
        Self(text)
    }

    /// False only if the text has no such key.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        text.contains(&self.0)
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
                    Ok(Field::either(first, self.resource(name)?))
                }
                Scope::Instrumentation => self.of_owner(Fixed::Scope, name, Cell::of_stored),
                Scope::Event => self.first_item(List::Events, attribute),
                Scope::Link => self.first_item(List::Links, attribute),
            },
            Attribute::StringForm { scope, name } => match scope {
                Scope::Resource if **name == *"service.name" => {
                    let column = self.column(Fixed::ServiceName)?;
                    Field::columns(slots, vec![column], Meaning::Plain, Cell::Nil)
                }
                Scope::Resource => self.of_owner(Fixed::Resource, name, form_cell),
                Scope::Instrumentation => self.of_owner(Fixed::Scope, name, form_cell),
                Scope::Event => self.first_item(List::Events, attribute),
                Scope::Link => self.first_item(List::Links, attribute),
                Scope::Span | Scope::None | Scope::Parent(_) => Field::forms(slots, self.part.attribute(name, self.rows)?),
            },
            Attribute::Start => {
                let starts = self.starts()?.into_iter().map(moment).collect();
                Field::columns(slots, vec![Column::all(Values::Ints(starts))], Meaning::Plain, Cell::Nil)
            }
            Attribute::End => {
                let (starts, durations) = (self.starts()?, self.column(Fixed::Duration)?);
                let Values::Ints(durations) = &durations.values else { return Err(self.other_type("durations")) };
                let ends = starts.iter().zip(durations).map(|(start, duration)| moment(start.wrapping_add(*duration)));
                Field::columns(slots, vec![Column::all(Values::Ints(ends.collect()))], Meaning::Plain, Cell::Nil)
            }
            Attribute::TraceState => self.fixed(Fixed::TraceState, Meaning::Plain),
            Attribute::ResourceSchema => {
                self.schema(Fixed::Resource, |text| Ok(typed_json::parse_resource(text)?.schema_url))
            }
            Attribute::ScopeSchema => self.schema(Fixed::Scope, |text| Ok(typed_json::parse_scope(text)?.schema_url)),
            Attribute::EventTime => self.first_item(List::Events, attribute),
            Attribute::LinkTraceState => self.first_item(List::Links, attribute),
        }
    }

    fn other_type(&self, what: &str) -> SourceError {
        SourceError::Damaged { what: self.part.name(), why: format!("{what} of another type") }
    }

    /// As sent.
    fn starts(&self) -> Result<Vec<i64>, SourceError> {
        match self.column(Fixed::Start)?.values {
            Values::Ints(all) => Ok(all),
            _ => Err(self.other_type("starts")),
        }
    }

    fn schema(
        &self,
        which: Fixed,
        url: impl Fn(&str) -> Result<String, typed_json::TypedJsonError>,
    ) -> Result<Field, SourceError> {
        // Most have none, and need not be taken apart to know it.
        let key = "\"schema_url\"";
        let cell = |text: &str| Ok(if text.contains(key) { Cell::Str(url(text)?.into()) } else { Cell::Str("".into()) });
        self.per_text(which, cell)
    }

    fn intrinsic(&self, intrinsic: Intrinsic) -> Result<Field, SourceError> {
        let slots = self.rows.len();
        let empty = || Cell::Str(Arc::from(""));
        match intrinsic {
            Intrinsic::Name => self.fixed(Fixed::Name, Meaning::Plain),
            Intrinsic::Duration => {
                let mut column = self.column(Fixed::Duration)?;
                if let Values::Ints(all) = &mut column.values {
                    // A span that ends before it starts took no time.
                    all.iter_mut().filter(|nanos| **nanos < 0).for_each(|nanos| *nanos = 0);
                }
                Field::columns(slots, vec![column], Meaning::Duration, Cell::Nil)
            }
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
                        let times = self.part.times()?;
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
        Ok(Field::hex(ids))
    }

    fn resource(&self, name: &str) -> Result<Field, SourceError> {
        self.of_owner(Fixed::Resource, name, Cell::of_stored)
    }

    /// An attribute of resources or scopes.
    fn of_owner(&self, which: Fixed, name: &str, cell: impl Fn(&Stored) -> Cell) -> Result<Field, SourceError> {
        // A text without the key need not be taken apart: most have few keys, and some have long values.
        let key = OwnerKey::new(name);
        self.per_text(which, |text| {
            if !key.is_in(text) {
                return Ok(Cell::Nil);
            }
            let attributes = match which {
                Fixed::Scope => typed_json::parse_scope(text)?.attributes,
                _ => typed_json::parse_resource(text)?.attributes,
            };
            Ok(attributes.iter().find(|a| a.key == name).map_or(Cell::Nil, |a| cell(&a.value)))
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
        let (mut codes, mut table) = (Vec::new(), Vec::new());
        match column.values {
            // Few texts for many rows: codes stay as they are, and what is parsed are those that come.
            Values::Codes(all, texts) if texts.len() <= all.len() => {
                let mut comes = vec![false; texts.len()];
                all.iter().for_each(|code| comes[*code as usize] = true);
                for (code, comes) in (0..).zip(comes) {
                    table.push(if comes { parse(texts.get(code).unwrap_or_default())? } else { Cell::Nil });
                }
                codes = all;
            }
            Values::Codes(all, texts) => {
                let mut known = vec![u32::MAX; texts.len()];
                for code in all {
                    let known = &mut known[code as usize];
                    if *known == u32::MAX {
                        *known = table.len() as u32;
                        table.push(parse(texts.get(code).unwrap_or_default())?);
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
            Attribute::EventTime if list == List::Events => {
                let starts = self.starts()?;
                let offsets = member(Member::EventOffset)?;
                let times = match &offsets.values {
                    Values::Ints(offsets) => {
                        let time = |(offset, slot): (&i64, &u32)| moment(starts[*slot as usize].wrapping_add(*offset));
                        offsets.iter().zip(items.iter()).map(time).collect()
                    }
                    // Without events there is no telling of what type their times are.
                    _ if offsets.is_empty() => Vec::new(),
                    _ => return Err(self.other_type("times of events")),
                };
                Field::columns(slots, vec![Column::all(Values::Ints(times))], Meaning::Plain, Cell::Nil)
            }
            Attribute::LinkTraceState if list == List::Links => {
                Field::columns(slots, vec![member(Member::LinkTraceState)?], Meaning::Plain, Cell::Nil)
            }
            Attribute::Intrinsic(Intrinsic::LinkTraceId) if list == List::Links => hex_of(Member::LinkTraceId, true),
            Attribute::Intrinsic(Intrinsic::LinkSpanId) if list == List::Links => hex_of(Member::LinkSpanId, false),
            Attribute::Scoped { scope: Scope::Event, name } if list == List::Events => {
                Field::columns(slots, self.part.item_attribute(list, name, self.rows)?, Meaning::Plain, Cell::Nil)
            }
            Attribute::Scoped { scope: Scope::Link, name } if list == List::Links => {
                Field::columns(slots, self.part.item_attribute(list, name, self.rows)?, Meaning::Plain, Cell::Nil)
            }
            Attribute::StringForm { scope: Scope::Event, name } if list == List::Events => {
                Field::forms(slots, self.part.item_attribute(list, name, self.rows)?)
            }
            Attribute::StringForm { scope: Scope::Link, name } if list == List::Links => {
                Field::forms(slots, self.part.item_attribute(list, name, self.rows)?)
            }
            other => Ok(Field::via(self.read(other)?, items)),
        }
    }
}
