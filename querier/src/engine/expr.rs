//! Expressions as the engine runs them: attributes numbered, patterns compiled, conditions on events and links gathered.
//!
//! Owns what an expression means for one set of values. Does not own where values come from ([`super::field`]) nor running over
//! many spans at once ([`super::filter`]).

use std::sync::Arc;

use regex::bytes::Regex;
use spanhouse_common::columns::List;

use super::EngineError;
use super::form::FormTest;
use super::value::{Cell, Value, calculate, compare, matches, negate};
use crate::traceql::ast::{Attribute, BinaryOp, FieldExpr, Intrinsic, Items, Scope, Static, UnaryOp};
use crate::traceql::compile_regex;

/// Number of an attribute in [`Attributes`].
pub(crate) type AttrId = usize;

/// Every attribute a query reads, each once, in order of first mention.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes(Vec<Attribute>);

impl Attributes {
    pub(crate) fn id(&mut self, attribute: &Attribute) -> AttrId {
        match self.0.iter().position(|known| known == attribute) {
            Some(id) => id,
            None => {
                self.0.push(attribute.clone());
                self.0.len() - 1
            }
        }
    }

    pub(crate) fn get(&self, id: AttrId) -> &Attribute {
        &self.0[id]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (AttrId, &Attribute)> {
        self.0.iter().enumerate()
    }
}

/// An expression over the values of one span.
#[derive(Debug, Clone)]
pub(crate) enum Expr {
    Const(Cell),
    Attr(AttrId),
    Negate(Box<Expr>),
    Not(Box<Expr>),
    Calculate(BinaryOp, Box<Expr>, Box<Expr>),
    Compare(BinaryOp, Box<Expr>, Box<Expr>),
    Match {
        inner: Box<Expr>,
        regex: Arc<Regex>,
        negated: bool,
    },
    /// A condition on an attribute in its string form.
    Form {
        id: AttrId,
        test: Arc<FormTest>,
    },
    /// All hold.
    And(Vec<Expr>),
    /// One holds, and all are true or false.
    Or(Vec<Expr>),
    Exists {
        inner: Box<Expr>,
        negated: bool,
    },
    /// Some event (or link) of the span is one that `inner` holds for.
    Any {
        list: List,
        id: usize,
        inner: Box<Expr>,
    },
}

/// The list an attribute is of.
pub(crate) fn list_of(attribute: &Attribute) -> Option<List> {
    match attribute {
        Attribute::Intrinsic(Intrinsic::EventName | Intrinsic::EventTimeSinceStart)
        | Attribute::EventTime
        | Attribute::Scoped { scope: Scope::Event, .. }
        | Attribute::StringForm { scope: Scope::Event, .. } => Some(List::Events),
        Attribute::Intrinsic(Intrinsic::LinkTraceId | Intrinsic::LinkSpanId)
        | Attribute::LinkTraceState
        | Attribute::Scoped { scope: Scope::Link, .. }
        | Attribute::StringForm { scope: Scope::Link, .. } => Some(List::Links),
        _ => None,
    }
}

/// Compiles the expressions of one query.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    pub(crate) attributes: Attributes,
    /// How many [`Expr::Any`] there are.
    anys: usize,
    /// Whose items are looked at one by one: what is said of one means that one.
    within: Option<List>,
}

impl Compiler {
    /// The condition of a `{ }`.
    pub(crate) fn filter(&mut self, expr: &FieldExpr) -> Result<Expr, EngineError> {
        let mut conjuncts = Vec::new();
        flatten(expr, BinaryOp::And, &mut conjuncts);
        // Joined by `&&`, conditions on events are about the same event, those on links about the same link.
        let (mut all, mut events, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for conjunct in conjuncts {
            match condition_list(conjunct) {
                Some(List::Events) => events.push(self.compile(conjunct)?),
                Some(List::Links) => links.push(self.compile(conjunct)?),
                None => all.push(self.boolean(conjunct)?),
            }
        }
        for (list, conditions) in [(List::Events, events), (List::Links, links)] {
            if !conditions.is_empty() {
                let inner = and(conditions);
                all.push(self.any(list, inner));
            }
        }
        Ok(and(all))
    }

    /// An expression whose value is wanted: of events and links, the first one's.
    pub(crate) fn value(&mut self, expr: &FieldExpr) -> Result<Expr, EngineError> {
        match expr {
            FieldExpr::Static(_) | FieldExpr::Attribute(_) => self.compile(expr),
            FieldExpr::Unary { op: UnaryOp::Not, .. } | FieldExpr::Exists { .. } | FieldExpr::OneOf { .. } => {
                self.boolean(expr)
            }
            FieldExpr::Binary { op, .. } if !is_arithmetic(*op) => self.boolean(expr),
            _ => self.compile(expr),
        }
    }

    fn any(&mut self, list: List, inner: Expr) -> Expr {
        self.anys += 1;
        Expr::Any { list, id: self.anys - 1, inner: Box::new(inner) }
    }

    /// A condition, each comparison on events or links on its own.
    fn boolean(&mut self, expr: &FieldExpr) -> Result<Expr, EngineError> {
        match expr {
            FieldExpr::Binary { op: op @ (BinaryOp::And | BinaryOp::Or), .. } => {
                let mut parts = Vec::new();
                if *op == BinaryOp::And {
                    flatten(expr, *op, &mut parts);
                } else {
                    spine(expr, *op, &mut parts);
                }
                let parts = parts.into_iter().map(|part| self.boolean(part)).collect::<Result<Vec<_>, _>>()?;
                if *op == BinaryOp::And {
                    return Ok(and(parts));
                }
                // An operand that may be nil makes only its own pair false.
                if parts.iter().all(Expr::is_bool) {
                    return Ok(Expr::Or(parts));
                }
                let pairs = parts.into_iter().reduce(|left, right| Expr::Or(vec![left, right]));
                Ok(pairs.unwrap_or(Expr::Const(Cell::Bool(false))))
            }
            FieldExpr::Unary { op: UnaryOp::Not, inner } => Ok(Expr::Not(Box::new(self.boolean(inner)?))),
            FieldExpr::OneOf { items, inner } => {
                let list = match items {
                    Items::Events => List::Events,
                    Items::Links => List::Links,
                };
                let outer = self.within.replace(list);
                let inner = self.boolean(inner);
                self.within = outer;
                Ok(self.any(list, inner?))
            }
            _ => {
                let compiled = self.compile(expr)?;
                Ok(match condition_list(expr) {
                    Some(list) if self.within != Some(list) => self.any(list, compiled),
                    _ => compiled,
                })
            }
        }
    }

    fn compile(&mut self, expr: &FieldExpr) -> Result<Expr, EngineError> {
        Ok(match expr {
            FieldExpr::Static(value) => Expr::Const(Cell::of_static(value)),
            FieldExpr::Attribute(attribute) => Expr::Attr(self.attributes.id(attribute)),
            FieldExpr::Unary { op: UnaryOp::Negate, inner } => Expr::Negate(Box::new(self.value(inner)?)),
            FieldExpr::Unary { op: UnaryOp::Not, inner } => Expr::Not(Box::new(self.boolean(inner)?)),
            FieldExpr::Exists { inner, negated } => Expr::Exists { inner: Box::new(self.value(inner)?), negated: *negated },
            FieldExpr::Binary { op: BinaryOp::And | BinaryOp::Or, .. } | FieldExpr::OneOf { .. } => self.boolean(expr)?,
            FieldExpr::Binary { op: op @ (BinaryOp::Match | BinaryOp::NotMatch), left, right } => {
                let FieldExpr::Static(Static::Str(pattern)) = &**right else {
                    return Err(EngineError::Evaluation("a pattern must be a string".into()));
                };
                let regex = compile_regex(pattern).map_err(|e| EngineError::Evaluation(e.to_string()))?;
                let inner = Box::new(self.value(left)?);
                Expr::Match { inner, regex: Arc::new(regex), negated: *op == BinaryOp::NotMatch }
            }
            FieldExpr::Binary { op, left, right } => {
                if let (FieldExpr::Attribute(attribute @ Attribute::StringForm { .. }), FieldExpr::Static(value)) =
                    (&**left, &**right)
                {
                    let test = FormTest::new(*op, value)
                        .ok_or_else(|| EngineError::Evaluation("a value without a string form".into()))?;
                    return Ok(Expr::Form { id: self.attributes.id(attribute), test: Arc::new(test) });
                }
                let (left, right) = (self.value(left)?, self.value(right)?);
                if is_arithmetic(*op) {
                    if let (Expr::Const(Cell::Int(_)), Expr::Const(Cell::Int(0))) = (&left, &right) {
                        match op {
                            BinaryOp::Div => return Err(EngineError::Evaluation("division by zero".into())),
                            BinaryOp::Mod => return Err(EngineError::Evaluation("modulo by zero".into())),
                            _ => {}
                        }
                    }
                    return Ok(Expr::Calculate(*op, Box::new(left), Box::new(right)));
                }
                let is_equality = matches!(op, BinaryOp::Equal | BinaryOp::NotEqual);
                let (left, right) = if is_equality { self.normal_ids(left, right) } else { (left, right) };
                Expr::Compare(*op, Box::new(left), Box::new(right))
            }
        })
    }

    /// Ids are compared in the form columns have: lower case, spans' padded, traces' without leading zeros.
    fn normal_ids(&self, left: Expr, right: Expr) -> (Expr, Expr) {
        let id_of = |expr: &Expr| match expr {
            Expr::Attr(id) => match self.attributes.get(*id) {
                Attribute::Intrinsic(intrinsic) => Some(*intrinsic),
                _ => None,
            },
            _ => None,
        };
        let normal = |of: Option<Intrinsic>, expr: Expr| match (of, expr) {
            (Some(intrinsic), Expr::Const(Cell::Str(text))) => Expr::Const(Cell::Str(normal_id(intrinsic, &text))),
            (_, expr) => expr,
        };
        let (of_left, of_right) = (id_of(&left), id_of(&right));
        (normal(of_right, left), normal(of_left, right))
    }
}

fn normal_id(intrinsic: Intrinsic, text: &Arc<str>) -> Arc<str> {
    let is_hex = text.bytes().all(|b| b.is_ascii_hexdigit());
    match intrinsic {
        _ if !is_hex || text.is_empty() => Arc::clone(text),
        Intrinsic::SpanId | Intrinsic::ParentId | Intrinsic::LinkSpanId => {
            format!("{:0>16}", text.to_ascii_lowercase()).into()
        }
        Intrinsic::TraceId | Intrinsic::LinkTraceId => text.trim_start_matches('0').to_ascii_lowercase().into(),
        _ => Arc::clone(text),
    }
}

pub(crate) fn is_arithmetic(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Pow)
}

/// The operands of a chain of one operator as it was written, from the left. The chain is a deep tree, so this is a loop.
fn spine<'e>(expr: &'e FieldExpr, op: BinaryOp, out: &mut Vec<&'e FieldExpr>) {
    let first = out.len();
    let mut at = expr;
    while let FieldExpr::Binary { op: found, left, right } = at {
        if *found != op {
            break;
        }
        out.push(right);
        at = left;
    }
    out.push(at);
    out[first..].reverse();
}

/// As [`spine`], with the operands of chains in parentheses among them.
fn flatten<'e>(expr: &'e FieldExpr, op: BinaryOp, out: &mut Vec<&'e FieldExpr>) {
    let mut parts = Vec::new();
    spine(expr, op, &mut parts);
    for part in parts {
        match part {
            FieldExpr::Binary { op: found, .. } if *found == op => flatten(part, op, out),
            _ => out.push(part),
        }
    }
}

/// The list whose items a condition is about: that of an operand.
fn condition_list(expr: &FieldExpr) -> Option<List> {
    let of = |operand: &FieldExpr| match operand {
        FieldExpr::Attribute(attribute) => list_of(attribute),
        _ => None,
    };
    match expr {
        FieldExpr::Exists { inner, .. } => of(inner),
        FieldExpr::Binary { op, left, right } if !is_arithmetic(*op) && !matches!(op, BinaryOp::And | BinaryOp::Or) => {
            of(left).or(of(right))
        }
        _ => None,
    }
}

fn and(mut parts: Vec<Expr>) -> Expr {
    match parts.len() {
        0 => Expr::Const(Cell::Bool(true)),
        1 => parts.remove(0),
        _ => Expr::And(parts),
    }
}

impl Expr {
    /// Whether the value is true or false whatever the span has.
    pub(crate) fn is_bool(&self) -> bool {
        match self {
            Self::Compare(..)
            | Self::Match { .. }
            | Self::Form { .. }
            | Self::And(_)
            | Self::Or(_)
            | Self::Exists { .. }
            | Self::Any { .. } => true,
            Self::Not(inner) => inner.is_bool(),
            Self::Const(cell) => matches!(cell, Cell::Bool(_)),
            Self::Attr(_) | Self::Negate(_) | Self::Calculate(..) => false,
        }
    }

    /// Calls `each` for every attribute read, those of events and links included.
    pub(crate) fn each_attr(&self, each: &mut impl FnMut(AttrId)) {
        match self {
            Self::Const(_) => {}
            Self::Attr(id) | Self::Form { id, .. } => each(*id),
            Self::Negate(inner) | Self::Not(inner) | Self::Match { inner, .. } => inner.each_attr(each),
            Self::Exists { inner, .. } | Self::Any { inner, .. } => inner.each_attr(each),
            Self::Calculate(_, left, right) | Self::Compare(_, left, right) => {
                left.each_attr(each);
                right.each_attr(each);
            }
            Self::And(parts) | Self::Or(parts) => parts.iter().for_each(|part| part.each_attr(each)),
        }
    }

    /// The only attribute it reads, if it reads one and no list.
    pub(crate) fn only_attr(&self) -> Option<AttrId> {
        let (mut only, mut several) = (None, false);
        self.each_attr(&mut |id| match only {
            None => only = Some(id),
            Some(known) => several |= known != id,
        });
        if several || self.has_any() { None } else { only }
    }

    fn has_any(&self) -> bool {
        match self {
            Self::Any { .. } => true,
            Self::Const(_) | Self::Attr(_) | Self::Form { .. } => false,
            Self::Negate(inner) | Self::Not(inner) | Self::Match { inner, .. } | Self::Exists { inner, .. } => {
                inner.has_any()
            }
            Self::Calculate(_, left, right) | Self::Compare(_, left, right) => left.has_any() || right.has_any(),
            Self::And(parts) | Self::Or(parts) => parts.iter().any(Self::has_any),
        }
    }

    /// The value for one span, given those of its attributes and which [`Expr::Any`] hold for it.
    pub(crate) fn eval<'a>(&'a self, get: &impl Fn(AttrId) -> Value<'a>, any: &impl Fn(usize) -> bool) -> Value<'a> {
        match self {
            Self::Const(cell) => cell.value(),
            Self::Attr(id) => get(*id),
            Self::Negate(inner) => negate(inner.eval(get, any)),
            Self::Not(inner) => match inner.eval(get, any) {
                Value::Bool(value) => Value::Bool(!value),
                _ => Value::Nil,
            },
            Self::Calculate(op, left, right) => calculate(*op, left.eval(get, any), right.eval(get, any)),
            Self::Compare(op, left, right) => Value::Bool(compare(*op, left.eval(get, any), right.eval(get, any))),
            Self::Match { inner, regex, negated } => Value::Bool(matches(inner.eval(get, any), regex, *negated)),
            Self::Form { id, test } => Value::Bool(test.holds(get(*id))),
            Self::And(parts) => Value::Bool(parts.iter().all(|part| part.eval(get, any) == Value::Bool(true))),
            Self::Or(parts) => {
                let mut holds = false;
                for part in parts {
                    match part.eval(get, any) {
                        Value::Bool(value) => holds |= value,
                        _ => return Value::Bool(false),
                    }
                }
                Value::Bool(holds)
            }
            Self::Exists { inner, negated } => match inner.eval(get, any) {
                Value::Opaque => Value::Bool(false),
                value => Value::Bool((value == Value::Nil) == *negated),
            },
            Self::Any { id, .. } => Value::Bool(any(*id)),
        }
    }
}

impl Expr {
    /// Whether it holds if its only attribute has this value; `None` if that is neither true nor false.
    pub(crate) fn eval_one(&self, value: Value<'_>, any: &impl Fn(usize) -> bool) -> Option<bool> {
        match self.eval_bound(value, any) {
            Value::Bool(holds) => Some(holds),
            _ => None,
        }
    }

    fn eval_bound<'a>(&'a self, value: Value<'a>, any: &impl Fn(usize) -> bool) -> Value<'a> {
        self.eval(&|_| value, any)
    }
}
