//! Pipelines over whole traces: from all their spans to the spansets that stay.
//!
//! As long as a trace has one spanset, those of all traces together are one set of rows; only `by()` makes lists of them.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use spanhouse_common::columns::Rows;

use super::EngineError;
use super::bits::Bits;
use super::expr::Expr;
use super::field::{Encoded, Interned};
use super::filter::PartView;
use super::plan::{AggregateFunction, Plan, ScalarStep, SetExpr, Step};
use super::value::{Cell, Value, compare};
use crate::traceql::ast::SpansetOp;

/// Attributes of a spanset: what `by()` and aggregates found.
pub(crate) type SetAttributes = Vec<(Arc<str>, Cell)>;

/// The spansets of some traces.
#[derive(Debug)]
pub(crate) enum Sets {
    /// One a trace: the rows (numbered from the evaluator's first) of all of them.
    One { rows: Bits, attributes: HashMap<u32, SetAttributes, foldhash::fast::RandomState> },
    /// By trace, ascending.
    Many(Vec<Set>),
}

/// Some spans of one trace.
#[derive(Debug, Clone)]
pub(crate) struct Set {
    /// Number of the trace in its part.
    pub(crate) trace: u32,
    /// Rows of the part, ascending.
    pub(crate) rows: Vec<u32>,
    pub(crate) attributes: SetAttributes,
}

/// Runs plans over the traces of a part that lie from row `from` to before `to`.
#[derive(Debug)]
pub(crate) struct Evaluator<'p> {
    pub(crate) view: &'p PartView<'p>,
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl Evaluator<'_> {
    fn len(&self) -> usize {
        (self.to - self.from) as usize
    }

    /// The spansets of the traces that `rows` are of, which are whole traces.
    pub(crate) fn run(&self, plan: &Plan, rows: &Bits) -> Result<Sets, EngineError> {
        match plan {
            Plan::Pipeline(steps) => {
                let mut sets = Sets::One { rows: rows.clone(), attributes: HashMap::default() };
                for step in steps {
                    self.view.budget.check()?;
                    sets = self.step(step, sets)?;
                }
                if let Sets::Many(sets) = &mut sets {
                    // Groups of groups too: by their first spans.
                    sets.sort_by_key(|set| (set.trace, set.rows.first().copied()));
                }
                Ok(sets)
            }
            Plan::Binary { op, left, right } => {
                let (left, right) = (self.run(left, rows)?, self.run(right, rows)?);
                let structural = matches!(op, SpansetOp::Structural { .. });
                if structural && (left.has_several() || right.has_several()) && !left.is_none() && !right.is_none() {
                    let text = "spanset operators are not supported for multiple spansets per trace. consider using coalesce()";
                    return Err(EngineError::Evaluation(text.into()));
                }
                self.combine(*op, &left.rows(self), &right.rows(self)).map(Sets::one)
            }
        }
    }

    fn step(&self, step: &Step, sets: Sets) -> Result<Sets, EngineError> {
        match (step, sets) {
            (Step::Select, sets) => Ok(sets),
            (Step::Coalesce, sets) => Ok(Sets::one(sets.rows(self))),
            (Step::Spanset(expr), Sets::One { rows, attributes }) => {
                Ok(Sets::One { rows: self.spanset(expr, &rows)?, attributes })
            }
            (Step::Spanset(expr), Sets::Many(sets)) => self.spanset_of_groups(expr, sets),
            (Step::Group { expr, name }, sets) => self.group(expr, name, sets),
            (Step::Scalar(scalar), sets) => self.scalar(scalar, sets),
        }
    }

    fn spanset(&self, expr: &SetExpr, input: &Bits) -> Result<Bits, EngineError> {
        match expr {
            SetExpr::Filter(filter) => self.filter(filter, input),
            SetExpr::Binary { op, left, right } => {
                let (left, right) = (self.spanset(left, input)?, self.spanset(right, input)?);
                self.combine(*op, &left, &right)
            }
        }
    }

    fn filter(&self, filter: &Expr, input: &Bits) -> Result<Bits, EngineError> {
        let count = input.count();
        if let Expr::Const(Cell::Bool(true)) = filter {
            return Ok(input.clone());
        }
        if count * 8 < self.len() {
            let rows: Vec<u32> = input.ones().map(|at| self.from + at as u32).collect();
            let mut out = Bits::none(self.len());
            for row in self.view.select_of(filter, &rows)? {
                out.set((row - self.from) as usize);
            }
            return Ok(out);
        }
        let mut out = self.view.select(filter, self.from, self.to)?;
        out.and(input);
        Ok(out)
    }

    fn combine(&self, op: SpansetOp, left: &Bits, right: &Bits) -> Result<Bits, EngineError> {
        match op {
            SpansetOp::Or => {
                let mut out = left.clone();
                out.or(right);
                Ok(out)
            }
            SpansetOp::And => {
                let mut out = left.clone();
                out.or(right);
                let mut at = 0;
                // Trace by trace of those that have any.
                while let Some(next) = out.next(at) {
                    let (from, to) = self.trace_at(next);
                    let has = |side: &Bits| side.next(from).is_some_and(|at| at < to);
                    if !has(left) || !has(right) {
                        out.clear_range(from, to);
                    }
                    at = to;
                }
                Ok(out)
            }
            SpansetOp::Structural { relation, form } => {
                Ok(self.view.structure.relate(relation, form, left, right, self.from)?)
            }
        }
    }

    /// Where the trace of a row lies, all numbered from the first row.
    fn trace_at(&self, at: usize) -> (usize, usize) {
        let table = &self.view.traces.table;
        let rows = table.rows(table.trace_of(self.from + at as u32));
        ((rows.start - self.from) as usize, (rows.end - self.from) as usize)
    }

    /// Calls `each` with the number and the rows (from the first) of every trace that has some set.
    pub(crate) fn each_trace(&self, rows: &Bits, mut each: impl FnMut(u32, usize, usize)) {
        let table = &self.view.traces.table;
        let Some(first) = rows.next(0) else { return };
        let mut trace = table.trace_of(self.from + first as u32);
        let mut at = first;
        loop {
            // The next trace is most often the next one.
            while table.starts[trace + 1] - self.from <= at as u32 {
                trace += 1;
            }
            let range = table.rows(trace);
            let (from, to) = ((range.start - self.from) as usize, (range.end - self.from) as usize);
            each(trace as u32, from, to);
            match rows.next(to) {
                Some(next) => at = next,
                None => return,
            }
        }
    }

    fn spanset_of_groups(&self, expr: &SetExpr, mut sets: Vec<Set>) -> Result<Sets, EngineError> {
        // Filters see all rows at once; what combines them goes group by group.
        if let SetExpr::Filter(filter) = expr {
            let mut rows: Vec<u32> = sets.iter().flat_map(|set| set.rows.iter().copied()).collect();
            rows.sort_unstable();
            let kept = self.view.select_of(filter, &rows)?;
            for set in &mut sets {
                set.rows.retain(|row| kept.binary_search(row).is_ok());
            }
        } else {
            for set in &mut sets {
                let range = self.view.traces.table.rows(set.trace as usize);
                let inner = Evaluator { view: self.view, from: range.start, to: range.end };
                let mut input = Bits::none(range.len());
                set.rows.iter().for_each(|row| input.set((row - range.start) as usize));
                let output = inner.spanset(expr, &input)?;
                set.rows = output.ones().map(|at| range.start + at as u32).collect();
            }
        }
        sets.retain(|set| !set.rows.is_empty());
        Ok(Sets::Many(sets))
    }

    fn group(&self, expr: &Expr, name: &Arc<str>, sets: Sets) -> Result<Sets, EngineError> {
        let sets = sets.into_list(self);
        let mut rows: Vec<u32> = sets.iter().flat_map(|set| set.rows.iter().copied()).collect();
        rows.sort_unstable();
        let encoded = self.encode(expr, &rows)?;
        let mut out = Vec::new();
        for set in sets {
            let first_of_set = out.len();
            let mut known: HashMap<u32, usize, foldhash::fast::RandomState> = HashMap::default();
            for row in &set.rows {
                let Ok(slot) = rows.binary_search(row) else { continue };
                let code = encoded.codes[slot];
                let at = *known.entry(code).or_insert_with(|| {
                    let mut attributes = set.attributes.clone();
                    attributes.push((Arc::clone(name), encoded.table[code as usize].clone()));
                    out.push(Set { trace: set.trace, rows: Vec::new(), attributes });
                    out.len() - 1
                });
                out[at].rows.push(*row);
            }
            debug_assert!(out.len() >= first_of_set);
        }
        self.view.budget.charge(out.len() * size_of::<Set>())?;
        Ok(Sets::Many(out))
    }

    /// Values of an expression for some rows, by code.
    fn encode(&self, expr: &Expr, rows: &[u32]) -> Result<Encoded, EngineError> {
        let frame = self.view.frame(Rows::At(rows));
        if let Expr::Attr(id) = expr {
            return Ok(frame.field(*id)?.encode());
        }
        let inputs = frame.inputs(expr)?;
        let (mut out, mut known) = (Encoded::default(), Interned::default());
        for slot in 0..rows.len() {
            let code = known.code(inputs.eval(expr, slot), &mut out.table);
            out.codes.push(code);
        }
        Ok(out)
    }

    fn scalar(&self, scalar: &ScalarStep, sets: Sets) -> Result<Sets, EngineError> {
        match sets {
            Sets::One { mut rows, mut attributes } => {
                let mut values: Vec<(u32, Option<Cell>, usize, usize)> = Vec::new();
                match &scalar.operand {
                    None => self.each_trace(&rows, |trace, from, to| {
                        let count = Cell::Int(rows.count_range(from, to) as i64);
                        values.push((trace, Some(count), from, to));
                    }),
                    Some(operand) => {
                        let at: Vec<u32> = rows.ones().map(|at| self.from + at as u32).collect();
                        let operands = Operands::read(self, operand, &at)?;
                        let mut slot = 0;
                        self.each_trace(&rows, |trace, from, to| {
                            let count = rows.count_range(from, to);
                            values.push((trace, operands.aggregate(scalar.function, slot..slot + count), from, to));
                            slot += count;
                        });
                    }
                }
                for (trace, value, from, to) in values {
                    match value.filter(|value| compare(scalar.op, value.value(), scalar.value.value())) {
                        Some(value) => attributes.entry(trace).or_default().push((Arc::clone(&scalar.name), value)),
                        None => rows.clear_range(from, to),
                    }
                }
                Ok(Sets::One { rows, attributes })
            }
            Sets::Many(sets) => {
                let mut all: Vec<u32> = sets.iter().flat_map(|set| set.rows.iter().copied()).collect();
                all.sort_unstable();
                let operands = match &scalar.operand {
                    None => None,
                    Some(operand) => Some(Operands::read(self, operand, &all)?),
                };
                let mut out = Vec::new();
                for mut set in sets {
                    let value = match &operands {
                        None => Some(Cell::Int(set.rows.len() as i64)),
                        Some(operands) => {
                            let slots = set.rows.iter().filter_map(|row| all.binary_search(row).ok());
                            operands.aggregate(scalar.function, slots)
                        }
                    };
                    if let Some(value) = value.filter(|value| compare(scalar.op, value.value(), scalar.value.value())) {
                        set.attributes.push((Arc::clone(&scalar.name), value));
                        out.push(set);
                    }
                }
                Ok(Sets::Many(out))
            }
        }
    }
}

/// Values that an aggregate is made of.
enum Operands<'e> {
    /// Durations of every row.
    Durations(Rc<super::field::Field>),
    General(super::filter::Inputs, &'e Expr),
}

impl<'e> Operands<'e> {
    fn read(evaluator: &Evaluator<'_>, operand: &'e Expr, rows: &[u32]) -> Result<Self, EngineError> {
        let frame = evaluator.view.frame(Rows::At(rows));
        if let Expr::Attr(id) = operand {
            let field = frame.field(*id)?;
            if field.is_duration() && field.dense_ints().is_some() {
                return Ok(Self::Durations(field));
            }
        }
        Ok(Self::General(frame.inputs(operand)?, operand))
    }

    /// The aggregate over some slots; `None` if there is no value.
    fn aggregate(&self, function: AggregateFunction, slots: impl Iterator<Item = usize>) -> Option<Cell> {
        match self {
            Self::Durations(field) => {
                let all = field.dense_ints()?;
                let values = slots.map(|slot| all[slot]);
                match function {
                    AggregateFunction::Count => Some(Cell::Int(values.count() as i64)),
                    AggregateFunction::Min => values.min().map(Cell::Duration),
                    AggregateFunction::Max => values.max().map(Cell::Duration),
                    AggregateFunction::Sum => values.reduce(i64::wrapping_add).map(Cell::Duration),
                    AggregateFunction::Avg => {
                        let (sum, count) = values.fold((0i64, 0i64), |(sum, count), v| (sum.wrapping_add(v), count + 1));
                        sum.checked_div(count).map(Cell::Duration)
                    }
                }
            }
            Self::General(inputs, expr) => aggregate(function, slots.map(|slot| inputs.eval(expr, slot))),
        }
    }
}

/// An aggregate of values; nil ones do not count.
fn aggregate<'v>(function: AggregateFunction, values: impl Iterator<Item = Value<'v>>) -> Option<Cell> {
    let mut values = values.filter(|value| !matches!(value, Value::Nil | Value::Opaque));
    let first = values.next()?;
    if matches!(function, AggregateFunction::Min | AggregateFunction::Max) {
        let wanted = if function == AggregateFunction::Min { Ordering::Less } else { Ordering::Greater };
        let best = values.fold(first, |best, value| if ranking(value, best) == wanted { value } else { best });
        return best.number().map(|_| best.cell());
    }
    // The first value decides what is summed.
    first.number()?;
    match function {
        AggregateFunction::Count => Some(Cell::Int(1 + values.count() as i64)),
        AggregateFunction::Sum => Some(sum(first, values).0),
        AggregateFunction::Avg => {
            let (sum, count) = sum(first, values);
            Some(match sum {
                Cell::Duration(sum) => Cell::Duration(sum / count),
                Cell::Int(sum) => Cell::Float(sum as f64 / count as f64),
                Cell::Float(sum) => Cell::Float(sum / count as f64),
                other => other,
            })
        }
        AggregateFunction::Min | AggregateFunction::Max => None,
    }
}

/// Numbers by value, else by type in a fixed order.
fn ranking(a: Value<'_>, b: Value<'_>) -> Ordering {
    if let (Value::Int(a), Value::Int(b)) | (Value::Duration(a), Value::Duration(b)) = (a, b) {
        return a.cmp(&b);
    }
    if let (Some(a), Some(b)) = (a.number(), b.number()) {
        // What is no number is below all.
        return a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()));
    }
    let rank = |value: Value<'_>| match value {
        Value::Nil | Value::Opaque => 0,
        Value::Int(_) => 1,
        Value::Float(_) => 2,
        Value::Str(_) => 3,
        Value::Bool(_) => 4,
        Value::Array(_) => 5,
        Value::Duration(_) => 6,
        Value::Status(_) => 7,
        Value::Kind(_) => 8,
    };
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(&b),
        _ => rank(a).cmp(&rank(b)),
    }
}

/// The sum in the type of the first value, and how many values there are of any type.
fn sum<'v>(first: Value<'v>, rest: impl Iterator<Item = Value<'v>>) -> (Cell, i64) {
    let (mut sum, mut count) = (first.cell(), 1);
    for value in rest {
        count += 1;
        match (&mut sum, value) {
            (Cell::Int(sum), Value::Int(v)) | (Cell::Duration(sum), Value::Duration(v)) => *sum = sum.wrapping_add(v),
            (Cell::Float(sum), Value::Float(v)) => *sum += v,
            _ => {}
        }
    }
    (sum, count)
}

impl Sets {
    fn one(rows: Bits) -> Self {
        Self::One { rows, attributes: HashMap::default() }
    }

    pub(crate) fn is_none(&self) -> bool {
        match self {
            Self::One { rows, .. } => rows.is_none(),
            Self::Many(sets) => sets.is_empty(),
        }
    }

    /// Whether some trace has more than one.
    fn has_several(&self) -> bool {
        matches!(self, Self::Many(sets) if sets.windows(2).any(|pair| pair[0].trace == pair[1].trace))
    }

    /// The rows of all sets, numbered from the evaluator's first.
    pub(crate) fn rows(&self, evaluator: &Evaluator<'_>) -> Bits {
        match self {
            Self::One { rows, .. } => rows.clone(),
            Self::Many(sets) => {
                let mut out = Bits::none(evaluator.len());
                sets.iter().flat_map(|set| &set.rows).for_each(|row| out.set((row - evaluator.from) as usize));
                out
            }
        }
    }

    /// One entry a spanset, by trace.
    pub(crate) fn into_list(self, evaluator: &Evaluator<'_>) -> Vec<Set> {
        match self {
            Self::Many(sets) => sets,
            Self::One { rows, mut attributes } => {
                let mut out = Vec::new();
                evaluator.each_trace(&rows, |trace, from, to| {
                    let rows = rows.ones_in(from, to).map(|at| evaluator.from + at as u32).collect();
                    out.push(Set { trace, rows, attributes: attributes.remove(&trace).unwrap_or_default() });
                });
                out
            }
        }
    }
}
