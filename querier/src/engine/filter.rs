//! Filters over many spans at once: conditions become sets of slots, cheapest first, later ones only for what is left.
//!
//! Owns the order of work. A condition on one attribute is tested once per distinct value; `&&`, `||` and `!` are done on sets; only
//! what mixes attributes in one comparison is evaluated span by span.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use spanhouse_common::columns::{Fixed, KindCounts, List, Owner, Part, Rows};
use spanhouse_common::time::TimeRange;

use super::EngineError;
use super::bits::Bits;
use super::budget::Budget;
use super::expr::{AttrId, Attributes, Expr};
use super::field::Field;
use super::form::FormTest;
use super::read::{FieldReader, OwnerKey};
use super::structure::{Structure, Traces};
use super::value::{Cell, Value, holds};
use crate::traceql::ast::{Attribute, BinaryOp, Intrinsic, Scope};

/// With fewer than one in so many slots left, the rest of a filter reads only those.
const SPARSE: usize = 12;

/// How many distinct resources, or scopes, are looked through for a key before rows are read: one for so many rows, within bounds.
const ROWS_A_TEXT: usize = 16;
const MIN_OWNERS: usize = 64;
const MAX_OWNERS: usize = 4096;

/// A part as filters see it.
#[derive(Debug)]
pub(crate) struct PartView<'p> {
    pub(crate) part: &'p dyn Part,
    pub(crate) traces: Traces,
    pub(crate) structure: Structure<'p>,
    pub(crate) attributes: &'p Attributes,
    pub(crate) budget: &'p Budget,
    /// Every span of the part starts in it.
    pub(crate) starts: TimeRange,
}

impl<'p> PartView<'p> {
    pub(crate) fn new(part: &'p dyn Part, attributes: &'p Attributes, budget: &'p Budget) -> Result<Self, EngineError> {
        let traces = Traces { table: part.traces()? };
        Ok(Self {
            part,
            structure: Structure { part, traces: traces.clone() },
            traces,
            attributes,
            budget,
            starts: TimeRange::ALL,
        })
    }

    /// Fields of some rows.
    pub(crate) fn frame<'f>(&'f self, rows: Rows<'f>) -> Frame<'f> {
        Frame {
            reader: FieldReader { part: self.part, rows, traces: &self.traces, structure: &self.structure },
            view: self,
            items: None,
            fields: RefCell::default(),
        }
    }

    /// The rows from `from` to before `to`, whole traces, that a condition holds for.
    pub(crate) fn select(&self, expr: &Expr, from: u32, to: u32) -> Result<Bits, EngineError> {
        let len = (to - from) as usize;
        let mut conjuncts: Vec<&Expr> = match expr {
            Expr::And(parts) => parts.iter().collect(),
            other => vec![other],
        };
        conjuncts.retain(|conjunct| !self.always_holds(conjunct));
        for conjunct in &conjuncts {
            if !self.may_hold(conjunct)? {
                return Ok(Bits::none(len));
            }
        }
        conjuncts.sort_by_key(|conjunct| self.cost(conjunct));
        let mut selected = Bits::all(len);
        let mut left = len;
        let all = self.frame(Rows::Range(from, to));
        for conjunct in conjuncts {
            self.budget.check()?;
            if left == 0 {
                break;
            }
            if left > len / SPARSE {
                selected.and(&all.truth(conjunct)?.holds);
            } else {
                let rows: Vec<u32> = selected.ones().map(|at| from + at as u32).collect();
                let truth = self.frame(Rows::At(&rows)).truth(conjunct)?.holds;
                for (slot, row) in rows.iter().enumerate() {
                    if !truth.get(slot) {
                        selected.clear((row - from) as usize);
                    }
                }
            }
            left = selected.count();
        }
        Ok(selected)
    }

    /// Of some of the rows from `from` on, given as a set, those a condition holds for.
    pub(crate) fn select_in(&self, expr: &Expr, input: &Bits, from: u32) -> Result<Bits, EngineError> {
        if input.count() * 8 < input.len() {
            let rows: Vec<u32> = input.ones().map(|at| from + at as u32).collect();
            let mut out = Bits::none(input.len());
            for row in self.select_of(expr, &rows)? {
                out.set((row - from) as usize);
            }
            return Ok(out);
        }
        let mut out = self.select(expr, from, from + input.len() as u32)?;
        out.and(input);
        Ok(out)
    }

    /// Of these rows, those a condition holds for.
    pub(crate) fn select_of(&self, expr: &Expr, rows: &[u32]) -> Result<Vec<u32>, EngineError> {
        let truth = self.frame(Rows::At(rows)).truth(expr)?.holds;
        Ok(truth.ones().map(|slot| rows[slot]).collect())
    }

    /// False if no row of the part can fulfil a condition, as far as that is cheap to know.
    fn may_hold(&self, expr: &Expr) -> Result<bool, EngineError> {
        match expr {
            Expr::Compare(BinaryOp::Equal, left, right) => {
                if let (Expr::Attr(id), Expr::Const(Cell::Str(text))) = (&**left, &**right)
                    && let Attribute::Scoped { scope: Scope::Span, name } = self.attributes.get(*id)
                {
                    return Ok(self.part.may_hold(name, text)?);
                }
                Ok(true)
            }
            Expr::Form { id, test } => self.form_may_hold(*id, test),
            Expr::Exists { inner, negated: false } => match &**inner {
                Expr::Attr(id) => match self.form_owner(*id) {
                    Some((owner, name)) => Ok(self.part.counts_of(owner, name)? != KindCounts::default()),
                    None => self.owner_may_have(*id),
                },
                _ => Ok(true),
            },
            Expr::Any { inner, .. } => self.may_hold(inner),
            Expr::Or(parts) => {
                for part in parts {
                    if self.may_hold(part)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Expr::And(parts) => {
                for part in parts {
                    if !self.may_hold(part)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Ok(true),
        }
    }

    /// Whether a condition on the start holds for all spans of the part.
    fn always_holds(&self, expr: &Expr) -> bool {
        let Expr::Compare(op, left, right) = expr else { return false };
        let (Expr::Attr(id), Expr::Const(Cell::Int(time))) = (&**left, &**right) else { return false };
        // Ranges that reach further are not narrower than what whole numbers hold.
        let (Ok(min), Ok(max)) = (i64::try_from(self.starts.min.0), i64::try_from(self.starts.max.0)) else { return false };
        *self.attributes.get(*id) == Attribute::Start
            && match op {
                BinaryOp::GreaterEqual => min >= *time,
                BinaryOp::LessEqual => max <= *time,
                _ => false,
            }
    }

    /// Whose attribute is read in its string form, if the part keeps count of these.
    fn form_owner(&self, id: AttrId) -> Option<(Owner, &str)> {
        let Attribute::StringForm { scope, name } = self.attributes.get(id) else { return None };
        let owner = match scope {
            Scope::Span => Owner::Span,
            Scope::Event => Owner::Event,
            Scope::Link => Owner::Link,
            _ => return None,
        };
        Some((owner, name))
    }

    fn form_may_hold(&self, id: AttrId, test: &FormTest) -> Result<bool, EngineError> {
        let Some((owner, name)) = self.form_owner(id) else { return self.owner_may_have(id) };
        let counts = self.part.counts_of(owner, name)?;
        if owner == Owner::Span && test.is_equality() && !test.fits_beside_texts(counts) {
            return Ok(test.fits(counts) && self.part.may_hold(name, &test.text)?);
        }
        Ok(test.fits(counts))
    }

    /// Whether some resource, or scope, may have an attribute that is read in its string form.
    fn owner_may_have(&self, id: AttrId) -> Result<bool, EngineError> {
        let Attribute::StringForm { scope, name } = self.attributes.get(id) else { return Ok(true) };
        let which = match scope {
            Scope::Resource => Fixed::Resource,
            Scope::Instrumentation => Fixed::Scope,
            _ => return Ok(true),
        };
        let key = OwnerKey::new(name);
        // Reading the rows is better than looking through about as many texts.
        let most = (self.part.rows() as usize / ROWS_A_TEXT).clamp(MIN_OWNERS, MAX_OWNERS);
        Ok(self.part.may_own(which, most, &mut |text| std::str::from_utf8(text).map_or(true, |text| key.is_in(text)))?)
    }

    fn cost(&self, expr: &Expr) -> u32 {
        let mut cost = match expr {
            Expr::Match { .. } => 3,
            Expr::Any { .. } => 20,
            Expr::Or(_) | Expr::And(_) | Expr::Not(_) => 2,
            _ => 0,
        };
        let mut attributes = 0;
        expr.each_attr(&mut |id| {
            attributes += 1;
            cost += match self.attributes.get(id) {
                Attribute::Intrinsic(Intrinsic::Status | Intrinsic::Kind) => 1,
                Attribute::Intrinsic(Intrinsic::Duration) => 3,
                Attribute::Intrinsic(Intrinsic::Name) => 2,
                Attribute::Intrinsic(
                    Intrinsic::ChildCount
                    | Intrinsic::NestedSetLeft
                    | Intrinsic::NestedSetRight
                    | Intrinsic::NestedSetParent,
                ) => 9,
                Attribute::Intrinsic(_) => 5,
                Attribute::Scoped { scope: Scope::Resource, .. } => 2,
                Attribute::Start | Attribute::End | Attribute::EventTime => 6,
                _ => 4,
            };
        });
        if attributes > 1 && expr.only_attr().is_none() { cost + 10 } else { cost }
    }
}

/// For which slots a condition is true, and for which it is true or false at all.
pub(crate) struct Truth {
    pub(crate) holds: Bits,
    /// `None` if for all.
    is_bool: Option<Bits>,
}

impl Truth {
    fn of(holds: Bits) -> Self {
        Self { holds, is_bool: None }
    }
}

/// Fields of some rows of a part, or of the events or links of these.
pub(crate) struct Frame<'f> {
    view: &'f PartView<'f>,
    reader: FieldReader<'f>,
    items: Option<(List, Rc<Vec<u32>>)>,
    fields: RefCell<HashMap<AttrId, Rc<Field>>>,
}

impl<'f> Frame<'f> {
    pub(crate) fn slots(&self) -> usize {
        self.items.as_ref().map_or(self.reader.rows.len(), |(_, items)| items.len())
    }

    pub(crate) fn field(&self, id: AttrId) -> Result<Rc<Field>, EngineError> {
        if let Some(known) = self.fields.borrow().get(&id) {
            return Ok(Rc::clone(known));
        }
        let attribute = self.view.attributes.get(id);
        let field = match &self.items {
            None => self.reader.read(attribute)?,
            Some((list, items)) => self.reader.item(*list, attribute, items)?,
        };
        self.view.budget.charge(field.heap_bytes())?;
        let field = Rc::new(field);
        self.fields.borrow_mut().insert(id, Rc::clone(&field));
        Ok(field)
    }

    /// The slots a condition holds for.
    pub(crate) fn truth(&self, expr: &Expr) -> Result<Truth, EngineError> {
        let slots = self.slots();
        Ok(match expr {
            Expr::Const(cell) => {
                let holds = if *cell == Cell::Bool(true) { Bits::all(slots) } else { Bits::none(slots) };
                Truth { holds, is_bool: (!matches!(cell, Cell::Bool(_))).then(|| Bits::none(slots)) }
            }
            Expr::And(parts) if expr.only_attr().is_none() => {
                let mut holds = Bits::all(slots);
                for part in parts {
                    holds.and(&self.truth(part)?.holds);
                    if holds.is_none() {
                        break;
                    }
                }
                Truth::of(holds)
            }
            Expr::Or(parts) if expr.only_attr().is_none() => {
                let mut holds = Bits::none(slots);
                let mut are_bool: Option<Bits> = None;
                for part in parts {
                    if part.is_bool() && !self.view.may_hold(part)? {
                        continue;
                    }
                    let truth = self.truth(part)?;
                    holds.or(&truth.holds);
                    match (&mut are_bool, truth.is_bool) {
                        (_, None) => {}
                        (Some(known), Some(more)) => known.and(&more),
                        (none, more) => *none = more,
                    }
                }
                if let Some(are_bool) = are_bool {
                    holds.and(&are_bool);
                }
                Truth::of(holds)
            }
            Expr::Not(inner) => {
                let truth = self.truth(inner)?;
                let mut holds = truth.holds.not();
                if let Some(is_bool) = &truth.is_bool {
                    holds.and(is_bool);
                }
                Truth { holds, is_bool: truth.is_bool }
            }
            Expr::Any { list, inner, .. } => Truth::of(self.any(*list, inner)?),
            expr => match expr.only_attr() {
                Some(id) => self.test(expr, id)?,
                None => self.by_slot(expr)?,
            },
        })
    }

    /// The spans that have an event (or link) `inner` holds for.
    fn any(&self, list: List, inner: &Expr) -> Result<Bits, EngineError> {
        let items = Rc::new(self.reader.part.items(list, self.reader.rows).map_err(EngineError::from)?.slots);
        let reader = FieldReader { ..self.reader };
        let frame = Frame { view: self.view, reader, items: Some((list, Rc::clone(&items))), fields: RefCell::default() };
        let fits = frame.truth(inner)?.holds;
        let mut of_rows = Bits::none(self.reader.rows.len());
        fits.ones().for_each(|item| of_rows.set(items[item] as usize));
        Ok(match &self.items {
            None => of_rows,
            // A condition on links inside one on events: of the same span.
            Some((_, outer)) => Bits::of_values(outer, |slot| of_rows.get(*slot as usize)),
        })
    }

    /// A condition on one attribute.
    fn test(&self, expr: &Expr, id: AttrId) -> Result<Truth, EngineError> {
        let field = self.field(id)?;
        if let Expr::Compare(op, left, right) = expr
            && let (Expr::Attr(_), Expr::Const(cell)) = (&**left, &**right)
            && let Some(number) = whole_number(cell, field.is_duration())
            && let Some(holds) = field.test_numbers(|value| holds(*op, value.cmp(&number)))
        {
            return Ok(Truth::of(holds));
        }
        if let Expr::Form { test, .. } = expr {
            let of_numbers = match test.int() {
                Some(wanted) => field.test_numbers(|value| Some(value) == wanted),
                None => field.test_numbers(|value| test.holds(Value::Int(value))),
            };
            return Ok(Truth::of(of_numbers.unwrap_or_else(|| field.test(&mut |value| test.holds(value)))));
        }
        let none = |_: usize| false;
        let value = |value: Value<'_>| -> bool { expr.eval_one(value, &none) == Some(true) };
        let holds = field.test(&mut |v| value(v));
        let is_bool = if expr.is_bool() {
            None
        } else {
            Some(field.test(&mut |value: Value<'_>| expr.eval_one(value, &none).is_some()))
        };
        Ok(Truth { holds, is_bool })
    }

    /// A condition that needs several attributes at once.
    fn by_slot(&self, expr: &Expr) -> Result<Truth, EngineError> {
        let inputs = self.inputs(expr)?;
        let slots = self.slots();
        let (mut holds, mut is_bool) = (Bits::none(slots), Bits::none(slots));
        for slot in 0..slots {
            if let Value::Bool(value) = inputs.eval(expr, slot) {
                is_bool.set(slot);
                if value {
                    holds.set(slot);
                }
            }
        }
        Ok(Truth { holds, is_bool: (!expr.is_bool()).then_some(is_bool) })
    }

    /// What `expr` needs, ready to evaluate it slot by slot.
    pub(crate) fn inputs(&self, expr: &Expr) -> Result<Inputs, EngineError> {
        let mut out = Inputs::default();
        let mut ids = Vec::new();
        expr.each_attr(&mut |id| ids.push(id));
        let is_item = self.items.is_some();
        for id in ids {
            // Attributes inside of an `Any` are read for items, there.
            if is_item || !out.fields.contains_key(&id) {
                out.fields.insert(id, self.field(id)?);
            }
        }
        self.add_anys(expr, &mut out)?;
        Ok(out)
    }

    fn add_anys(&self, expr: &Expr, out: &mut Inputs) -> Result<(), EngineError> {
        match expr {
            Expr::Any { list, id, inner } => {
                out.anys.insert(*id, self.any(*list, inner)?);
            }
            Expr::Const(_) | Expr::Attr(_) | Expr::Form { .. } => {}
            Expr::Negate(inner) | Expr::Not(inner) | Expr::Match { inner, .. } | Expr::Exists { inner, .. } => {
                self.add_anys(inner, out)?;
            }
            Expr::Calculate(_, left, right) | Expr::Compare(_, left, right) => {
                self.add_anys(left, out)?;
                self.add_anys(right, out)?;
            }
            Expr::And(parts) | Expr::Or(parts) => {
                for part in parts {
                    self.add_anys(part, out)?;
                }
            }
        }
        Ok(())
    }
}

/// Fields an expression reads.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    fields: HashMap<AttrId, Rc<Field>>,
    anys: HashMap<usize, Bits>,
}

impl Inputs {
    pub(crate) fn eval<'a>(&'a self, expr: &'a Expr, slot: usize) -> Value<'a> {
        let get = |id: AttrId| self.fields.get(&id).map_or(Value::Nil, |field| field.value(slot));
        let any = |id: usize| self.anys.get(&id).is_some_and(|bits| bits.get(slot));
        expr.eval(&get, &any)
    }
}

/// A constant that whole numbers compare with exactly as they do by the general rules.
fn whole_number(cell: &Cell, is_duration: bool) -> Option<i64> {
    match cell {
        Cell::Int(value) if !is_duration => Some(*value),
        Cell::Duration(value) if is_duration => Some(*value),
        _ => None,
    }
}
