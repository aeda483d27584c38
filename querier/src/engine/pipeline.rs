//! Pipelines over whole traces: from all their spans to the spansets that stay.
//!
//! As long as a trace has one spanset, those of all traces together are one set of rows; only `by()` makes lists of them.

use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use spanhouse_common::columns::Rows;

use super::EngineError;
use super::bits::Bits;
use super::expr::Expr;
use super::field::Encoded;
use super::filter::PartView;
use super::key::Interned;
use super::plan::{AggregateFunction, Plan, ScalarStep, SetExpr, Step};
use super::value::{Cell, Value, compare};
use crate::traceql::ast::SpansetOp;

/// Attributes of a spanset: what `by()` and aggregates found.
pub(crate) type SetAttributes = Vec<(Arc<str>, Cell)>;

/// The spansets of some traces.
#[derive(Debug)]
pub(crate) enum Sets {
    /// One a trace: the rows (numbered from the evaluator's first) of all of them.
    One {
        rows: Bits,
        found: Vec<Found>,
    },
    Many(Groups),
}

/// What an aggregate found for traces that have one spanset.
#[derive(Debug)]
pub(crate) struct Found {
    name: Arc<str>,
    /// By trace, ascending.
    values: Vec<(u32, Cell)>,
}

/// Spansets in columns: by trace, then by their first rows.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Number of the trace in its part, by set.
    traces: Vec<u32>,
    /// Where the rows of each set end.
    ends: Vec<u32>,
    /// Rows of the part: those of a set ascend.
    rows: Vec<u32>,
    columns: Vec<GroupColumn>,
}

/// A value for each set.
#[derive(Debug, Clone)]
struct GroupColumn {
    name: Arc<str>,
    values: GroupValues,
}

#[derive(Debug, Clone)]
enum GroupValues {
    Coded { codes: Vec<u32>, table: Rc<Vec<Cell>> },
    Plain(Vec<Cell>),
}

impl GroupColumn {
    fn get(&self, set: usize) -> Cell {
        match &self.values {
            GroupValues::Coded { codes, table } => table[codes[set] as usize].clone(),
            GroupValues::Plain(all) => all[set].clone(),
        }
    }

    fn pick(&self, sets: &[u32]) -> Self {
        let values = match &self.values {
            GroupValues::Coded { codes, table } => {
                GroupValues::Coded { codes: sets.iter().map(|set| codes[*set as usize]).collect(), table: Rc::clone(table) }
            }
            GroupValues::Plain(all) => GroupValues::Plain(sets.iter().map(|set| all[*set as usize].clone()).collect()),
        };
        Self { name: Arc::clone(&self.name), values }
    }
}

impl Groups {
    pub(crate) fn len(&self) -> usize {
        self.traces.len()
    }

    pub(crate) fn rows_of(&self, set: usize) -> &[u32] {
        let from = set.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.rows[from..self.ends[set] as usize]
    }

    pub(crate) fn attributes_of(&self, set: usize) -> SetAttributes {
        self.columns.iter().map(|column| (Arc::clone(&column.name), column.get(set))).collect()
    }

    /// The sets of a trace.
    pub(crate) fn of_trace(&self, trace: u32) -> std::ops::Range<usize> {
        self.traces.partition_point(|known| *known < trace)..self.traces.partition_point(|known| *known <= trace)
    }

    /// The traces that have any, ascending.
    pub(crate) fn traces(&self) -> Vec<u32> {
        let mut out = self.traces.clone();
        out.dedup();
        out
    }

    fn push(&mut self, trace: u32, rows: impl IntoIterator<Item = u32>) {
        self.rows.extend(rows);
        self.traces.push(trace);
        self.ends.push(self.rows.len() as u32);
    }

    /// Some of the sets, in the order given.
    fn pick(&self, sets: &[u32]) -> Self {
        let mut out = Self::default();
        for set in sets {
            out.push(self.traces[*set as usize], self.rows_of(*set as usize).iter().copied());
        }
        out.columns = self.columns.iter().map(|column| column.pick(sets)).collect();
        out
    }

    /// In their order, if they are not.
    fn sorted(self) -> Self {
        let key = |set: usize| (self.traces[set], self.rows_of(set).first().copied());
        if (1..self.len()).all(|set| key(set - 1) <= key(set)) {
            return self;
        }
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_by_key(|set| key(*set as usize));
        self.pick(&order)
    }

    fn heap_bytes(&self) -> usize {
        let column = |column: &GroupColumn| match &column.values {
            GroupValues::Coded { codes, .. } => codes.len() * 4,
            GroupValues::Plain(all) => all.len() * size_of::<Cell>(),
        };
        (self.traces.len() * 2 + self.rows.len()) * 4 + self.columns.iter().map(column).sum::<usize>()
    }
}

/// How rows are found among the slots of a frame.
enum Slots {
    /// The frame is of all rows from this one on.
    From(u32),
    /// The frame is of these.
    Among(Vec<u32>),
}

impl Slots {
    fn of(&self, row: u32) -> usize {
        match self {
            Self::From(first) => (row - first) as usize,
            Self::Among(rows) => rows.binary_search(&row).unwrap_or_default(),
        }
    }

    fn rows<'r>(&'r self, evaluator: &Evaluator<'_>) -> Rows<'r> {
        match self {
            Self::From(first) => Rows::Range(*first, evaluator.to),
            Self::Among(rows) => Rows::At(rows),
        }
    }
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
                let mut sets = Sets::one(rows.clone());
                for step in steps {
                    self.view.budget.check()?;
                    sets = self.step(step, sets)?;
                }
                // Groups of groups too: by their first spans.
                if let Sets::Many(groups) = sets {
                    sets = Sets::Many(groups.sorted());
                }
                Ok(sets)
            }
            Plan::Binary { op, left, right } => {
                let (left, right) = (self.run(left, rows)?, self.run(right, rows)?);
                let (left_rows, right_rows) = (left.rows(self), right.rows(self));
                let table = &self.view.traces.table;
                let meets = |trace: &u32, other: &Bits| {
                    let range = table.rows(*trace as usize);
                    other.any_in((range.start - self.from) as usize, (range.end - self.from) as usize)
                };
                if matches!(op, SpansetOp::Structural { .. })
                    && (left.several().iter().any(|trace| meets(trace, &right_rows))
                        || right.several().iter().any(|trace| meets(trace, &left_rows)))
                {
                    let text =
                        "spanset operators are not supported for multiple spansets per trace. consider using coalesce()";
                    return Err(EngineError::Evaluation(text.into()));
                }
                self.combine(*op, &left_rows, &right_rows).map(Sets::one)
            }
        }
    }

    fn step(&self, step: &Step, sets: Sets) -> Result<Sets, EngineError> {
        match (step, sets) {
            (Step::Select, sets) => Ok(sets),
            (Step::Coalesce, sets) => Ok(Sets::one(sets.rows(self))),
            (Step::Spanset(expr), Sets::One { rows, found }) => Ok(Sets::One { rows: self.spanset(expr, &rows)?, found }),
            (Step::Spanset(expr), Sets::Many(groups)) => self.spanset_of_groups(expr, &groups),
            (Step::Group { expr, name }, sets) => self.group(expr, name, &sets.into_groups(self)),
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
        if let Expr::Const(Cell::Bool(true)) = filter {
            return Ok(input.clone());
        }
        self.view.select_in(filter, input, self.from)
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
                    if !left.any_in(from, to) || !right.any_in(from, to) {
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

    fn spanset_of_groups(&self, expr: &SetExpr, groups: &Groups) -> Result<Sets, EngineError> {
        let mut out = Groups::default();
        let mut kept_sets: Vec<u32> = Vec::new();
        let mut keep = |set: usize, rows: Vec<u32>| {
            if !rows.is_empty() {
                out.push(groups.traces[set], rows);
                kept_sets.push(set as u32);
            }
        };
        // Filters see all rows at once; what combines them goes group by group.
        if let SetExpr::Filter(filter) = expr {
            let mut input = Bits::none(self.len());
            groups.rows.iter().for_each(|row| input.set((row - self.from) as usize));
            let output = self.filter(filter, &input)?;
            for set in 0..groups.len() {
                let rows = groups.rows_of(set).iter().copied();
                keep(set, rows.filter(|row| output.get((row - self.from) as usize)).collect());
            }
        } else {
            for set in 0..groups.len() {
                let range = self.view.traces.table.rows(groups.traces[set] as usize);
                let inner = Evaluator { view: self.view, from: range.start, to: range.end };
                let mut input = Bits::none(range.len());
                groups.rows_of(set).iter().for_each(|row| input.set((row - range.start) as usize));
                let output = inner.spanset(expr, &input)?;
                keep(set, output.ones().map(|at| range.start + at as u32).collect());
            }
        }
        out.columns = groups.columns.iter().map(|column| column.pick(&kept_sets)).collect();
        Ok(Sets::Many(out))
    }

    /// A frame for some rows: of all, where most are wanted.
    fn slots(&self, rows: &[u32]) -> Slots {
        if rows.len() * 4 >= self.len() {
            return Slots::From(self.from);
        }
        let mut rows = rows.to_vec();
        if !rows.is_sorted() {
            rows.sort_unstable();
        }
        Slots::Among(rows)
    }

    fn group(&self, expr: &Expr, name: &Arc<str>, groups: &Groups) -> Result<Sets, EngineError> {
        let slots = self.slots(&groups.rows);
        let encoded = self.encode(expr, slots.rows(self))?;
        let mut out = Groups { rows: vec![0; groups.rows.len()], ..Groups::default() };
        // By code: the set that had it last, and its group then.
        let mut last_set = vec![u32::MAX; encoded.table.len()];
        let mut group_of = vec![0u32; encoded.table.len()];
        let (mut from_sets, mut codes): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let mut row_codes: Vec<u32> = Vec::new();
        let mut next: Vec<u32> = Vec::new();
        let mut base = 0u32;
        for set in 0..groups.len() {
            let rows = groups.rows_of(set);
            row_codes.clear();
            next.clear();
            let first = codes.len() as u32;
            for row in rows {
                let code = encoded.codes[slots.of(*row)];
                row_codes.push(code);
                if last_set[code as usize] != set as u32 {
                    last_set[code as usize] = set as u32;
                    group_of[code as usize] = codes.len() as u32 - first;
                    codes.push(code);
                    from_sets.push(set as u32);
                    out.traces.push(groups.traces[set]);
                    next.push(0);
                }
                next[group_of[code as usize] as usize] += 1;
            }
            // Counts become places.
            for next in &mut next {
                let count = *next;
                *next = base;
                base += count;
                out.ends.push(base);
            }
            for (row, code) in rows.iter().zip(&row_codes) {
                let place = &mut next[group_of[*code as usize] as usize];
                out.rows[*place as usize] = *row;
                *place += 1;
            }
        }
        out.columns = groups.columns.iter().map(|column| column.pick(&from_sets)).collect();
        let values = GroupValues::Coded { codes, table: Rc::new(encoded.table) };
        out.columns.push(GroupColumn { name: Arc::clone(name), values });
        self.view.budget.charge(out.heap_bytes())?;
        Ok(Sets::Many(out))
    }

    /// Values of an expression for some rows, by code.
    fn encode(&self, expr: &Expr, rows: Rows<'_>) -> Result<Encoded, EngineError> {
        let frame = self.view.frame(rows);
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
        let passes = |value: &Cell| compare(scalar.op, value.value(), scalar.value.value());
        match sets {
            Sets::One { mut rows, mut found } => {
                let mut values: Vec<(u32, Cell)> = Vec::new();
                let mut gone: Vec<(usize, usize)> = Vec::new();
                let mut judge = |trace: u32, value: Option<Cell>, from: usize, to: usize| match value.filter(&passes) {
                    Some(value) => values.push((trace, value)),
                    None => gone.push((from, to)),
                };
                match &scalar.operand {
                    None => self.each_trace(&rows, |trace, from, to| {
                        judge(trace, Some(Cell::Int(rows.count_range(from, to) as i64)), from, to);
                    }),
                    Some(operand) => {
                        let at: Vec<u32> = rows.ones().map(|at| self.from + at as u32).collect();
                        let slots = self.slots(&at);
                        let operands = Operands::read(self, operand, slots.rows(self))?;
                        let is_dense = matches!(slots, Slots::From(_));
                        let mut slot = 0;
                        self.each_trace(&rows, |trace, from, to| {
                            let value = if is_dense {
                                operands.aggregate(scalar.function, rows.ones_in(from, to))
                            } else {
                                let count = rows.count_range(from, to);
                                slot += count;
                                operands.aggregate(scalar.function, slot - count..slot)
                            };
                            judge(trace, value, from, to);
                        });
                    }
                }
                gone.into_iter().for_each(|(from, to)| rows.clear_range(from, to));
                found.push(Found { name: Arc::clone(&scalar.name), values });
                Ok(Sets::One { rows, found })
            }
            Sets::Many(groups) => {
                let slots = self.slots(&groups.rows);
                let operands = match &scalar.operand {
                    None => None,
                    Some(operand) => Some(Operands::read(self, operand, slots.rows(self))?),
                };
                let (mut kept, mut values) = (Vec::new(), Vec::new());
                for set in 0..groups.len() {
                    let rows = groups.rows_of(set);
                    let value = match &operands {
                        None => Some(Cell::Int(rows.len() as i64)),
                        Some(operands) => operands.aggregate(scalar.function, rows.iter().map(|row| slots.of(*row))),
                    };
                    if let Some(value) = value.filter(&passes) {
                        kept.push(set as u32);
                        values.push(value);
                    }
                }
                let mut out = groups.pick(&kept);
                out.columns.push(GroupColumn { name: Arc::clone(&scalar.name), values: GroupValues::Plain(values) });
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
    fn read(evaluator: &Evaluator<'_>, operand: &'e Expr, rows: Rows<'_>) -> Result<Self, EngineError> {
        let frame = evaluator.view.frame(rows);
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
    pub(crate) fn one(rows: Bits) -> Self {
        Self::One { rows, found: Vec::new() }
    }

    /// The traces that have more than one.
    fn several(&self) -> Vec<u32> {
        let Self::Many(groups) = self else { return Vec::new() };
        let pairs = groups.traces.windows(2).filter(|pair| pair[0] == pair[1]);
        pairs.map(|pair| pair[0]).collect()
    }

    /// The rows of all sets, numbered from the evaluator's first.
    pub(crate) fn rows(&self, evaluator: &Evaluator<'_>) -> Bits {
        match self {
            Self::One { rows, .. } => rows.clone(),
            Self::Many(groups) => {
                let mut out = Bits::none(evaluator.len());
                groups.rows.iter().for_each(|row| out.set((row - evaluator.from) as usize));
                out
            }
        }
    }

    fn into_groups(self, evaluator: &Evaluator<'_>) -> Groups {
        let (rows, found) = match self {
            Self::Many(groups) => return groups,
            Self::One { rows, found } => (rows, found),
        };
        let mut out = Groups::default();
        evaluator.each_trace(&rows, |trace, from, to| {
            out.push(trace, rows.ones_in(from, to).map(|at| evaluator.from + at as u32));
        });
        for found in found {
            let value = |trace: &u32| found.value(*trace).unwrap_or(Cell::Nil);
            let values = GroupValues::Plain(out.traces.iter().map(value).collect());
            out.columns.push(GroupColumn { name: Arc::clone(&found.name), values });
        }
        out
    }
}

impl Found {
    pub(crate) fn value(&self, trace: u32) -> Option<Cell> {
        let at = self.values.binary_search_by_key(&trace, |(known, _)| *known).ok()?;
        Some(self.values[at].1.clone())
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }
}
