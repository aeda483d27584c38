//! Jaeger's structured filter: a tree of calls, as an expression over one span that the engine runs.
//!
//! Owns what each call means and what is refused. A leaf whose operand a span does not have is false, `ne` too; what is said of events
//! or links holds if one of them is so, each leaf for itself, unless `some` binds one of them for several leaves. Not served:
//! `some` inside `some` of the same items, or that names the outer one's; and two attributes or fields in one comparison. Pure.

mod json;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use spanhouse_proto::jaeger_expression::expression::Term;
use spanhouse_proto::jaeger_expression::{Call, Expression, FieldReference, List, Scalar};

use super::JaegerError;
use super::query::{equal, intrinsic, join, scoped, text};
use crate::api::go::{parse_duration, parse_rfc3339};
use crate::engine::form::float_form;
use crate::traceql::ast::{Attribute, BinaryOp, FieldExpr, Intrinsic, Items, Kind, Scope, Static, Status, UnaryOp};

pub use json::from_json;

/// Calls may be nested so deep.
const MAX_DEPTH: usize = 20;

/// Calls, and values of lists, in one filter.
const MAX_TERMS: usize = 500;

/// Patterns in one filter: each takes memory while it runs.
const MAX_PATTERNS: usize = 20;

/// Levels at which attributes and fields are named.
pub const LEVELS: [&str; 5] = ["span", "resource", "scope", "event", "link"];

/// Calls that are served.
pub const OPERATORS: [&str; 14] =
    ["and", "or", "not", "eq", "ne", "gt", "lt", "gte", "lte", "regex", "exists", "in", "not_in", "some"];

/// The condition a filter puts on a span.
pub fn condition(filter: &Call) -> Result<FieldExpr, JaegerError> {
    Compiler::default().call(filter, 1)
}

/// What a leaf compares.
enum Operand {
    /// An attribute, at one of these levels.
    Attribute {
        key: Arc<str>,
        scopes: &'static [Scope],
    },
    /// A text. Empty is not there, but for names.
    Text(Attribute),
    Kind,
    Status,
    Duration(Attribute),
    Time(Attribute),
}

#[derive(Default)]
struct Compiler {
    terms: usize,
    patterns: usize,
    /// What each `some` around this call binds one of.
    bound: Vec<Items>,
}

fn invalid<T>(text: impl std::fmt::Display) -> Result<T, JaegerError> {
    Err(JaegerError::Invalid(format!("malformed filter: {text}")))
}

impl Compiler {
    fn call(&mut self, call: &Call, depth: usize) -> Result<FieldExpr, JaegerError> {
        if depth > MAX_DEPTH {
            return invalid(format_args!("more than {MAX_DEPTH} calls inside each other"));
        }
        self.count(1)?;
        match (call.op.as_str(), call.args.as_slice()) {
            (op @ ("and" | "or"), [_, ..]) => {
                let parts = call.args.iter().map(|arg| self.inner(arg, depth)).collect::<Result<Vec<_>, _>>()?;
                all(if op == "and" { BinaryOp::And } else { BinaryOp::Or }, parts)
            }
            ("not", [inner]) => Ok(not(self.inner(inner, depth)?)),
            ("exists", [of]) => exists(&self.operand(of)?),
            (op @ ("eq" | "ne"), [left, right]) => {
                let (of, value, _) = self.sides(left, right)?;
                let is_equal = equals(&of, value)?;
                if op == "eq" { Ok(is_equal) } else { differs(&of, is_equal) }
            }
            (op @ ("in" | "not_in"), [of, list]) => {
                let (of, List { values, r#type }) = (self.operand(of)?, self.list(list)?);
                let one = |value: &String| equals(&of, &Scalar { value: value.clone(), r#type: r#type.clone() });
                let parts = values.iter().map(one).collect::<Result<Vec<_>, _>>()?;
                let is_in = all(BinaryOp::Or, parts)?;
                if op == "in" { Ok(is_in) } else { differs(&of, is_in) }
            }
            (op @ ("gt" | "lt" | "gte" | "lte"), [left, right]) => {
                let (of, value, is_turned) = self.sides(left, right)?;
                let op = match (op, is_turned) {
                    ("gt", false) | ("lt", true) => BinaryOp::Greater,
                    ("lt", false) | ("gt", true) => BinaryOp::Less,
                    ("gte", false) | ("lte", true) => BinaryOp::GreaterEqual,
                    _ => BinaryOp::LessEqual,
                };
                orders(&of, op, value)
            }
            ("regex", [of, pattern]) => {
                self.patterns += 1;
                if self.patterns > MAX_PATTERNS {
                    return invalid(format_args!("more than {MAX_PATTERNS} patterns"));
                }
                matches(&self.operand(of)?, &scalar(pattern)?.value)
            }
            ("some", [of, inner]) => self.some(of, inner, depth),
            (op, args) if OPERATORS.contains(&op) => invalid(format_args!("`{op}` of {} operands", args.len())),
            (op, _) => invalid(format_args!("unknown operator `{op}`")),
        }
    }

    fn inner(&mut self, of: &Expression, depth: usize) -> Result<FieldExpr, JaegerError> {
        match &of.term {
            Some(Term::Call(call)) => self.call(call, depth + 1),
            _ => invalid("`and`, `or`, `not` and what holds of `some` are of calls"),
        }
    }

    /// One event or link for which all of `inner` holds.
    fn some(&mut self, of: &Expression, inner: &Expression, depth: usize) -> Result<FieldExpr, JaegerError> {
        let items = match &of.term {
            Some(Term::Nested(nested)) if nested.level == "event" => Items::Events,
            Some(Term::Nested(nested)) if nested.level == "link" => Items::Links,
            _ => return invalid("`some` is of nested `event` or `link`, and a call"),
        };
        if self.bound.contains(&items) {
            return invalid("`some` inside `some` of the same level: name all that holds of the one in one `some`");
        }
        self.bound.push(items);
        let inner = self.inner(inner, depth);
        self.bound.pop();
        Ok(FieldExpr::OneOf { items, inner: Box::new(inner?) })
    }

    /// What is compared, what with, and whether they were written the other way round.
    fn sides<'e>(&self, left: &'e Expression, right: &'e Expression) -> Result<(Operand, &'e Scalar, bool), JaegerError> {
        match (&left.term, &right.term) {
            (Some(Term::Attr(_) | Term::Field(_)), Some(Term::Attr(_) | Term::Field(_))) => {
                invalid("two attributes or fields cannot be compared with each other: compare each with a value")
            }
            (Some(Term::Scalar(value)), _) => Ok((self.operand(right)?, value, true)),
            _ => Ok((self.operand(left)?, scalar(right)?, false)),
        }
    }

    fn operand(&self, of: &Expression) -> Result<Operand, JaegerError> {
        let level = match &of.term {
            Some(Term::Attr(attribute)) => &attribute.level,
            Some(Term::Field(field)) => &field.level,
            _ => return invalid("a comparison is of an attribute or field and a value"),
        };
        let items = match level.as_str() {
            "event" => Some(Items::Events),
            "link" => Some(Items::Links),
            _ => None,
        };
        if items.is_some_and(|items| self.bound.contains(&items)) && self.bound.last() != items.as_ref() {
            return invalid(format_args!(
                "inside another `some`, an outer {level} cannot be named: say of it what holds outside"
            ));
        }
        operand(of)
    }

    fn list<'e>(&mut self, of: &'e Expression) -> Result<&'e List, JaegerError> {
        match &of.term {
            Some(Term::List(list)) if !list.values.is_empty() => {
                self.count(list.values.len())?;
                Ok(list)
            }
            _ => invalid("`in` and `not_in` are of a list with a value at least"),
        }
    }

    fn count(&mut self, more: usize) -> Result<(), JaegerError> {
        self.terms = self.terms.saturating_add(more);
        if self.terms > MAX_TERMS { invalid(format_args!("more than {MAX_TERMS} calls and values")) } else { Ok(()) }
    }
}

fn scalar(of: &Expression) -> Result<&Scalar, JaegerError> {
    match &of.term {
        Some(Term::Scalar(scalar)) => Ok(scalar),
        _ => invalid("a comparison is of an attribute or field and a value"),
    }
}

fn operand(of: &Expression) -> Result<Operand, JaegerError> {
    match &of.term {
        Some(Term::Attr(attribute)) => {
            let scopes: &[Scope] = match attribute.level.as_str() {
                "" => &[Scope::Span, Scope::Resource],
                "span" => &[Scope::Span],
                "resource" => &[Scope::Resource],
                "scope" => &[Scope::Instrumentation],
                "event" => &[Scope::Event],
                "link" => &[Scope::Link],
                other => return invalid(format_args!("unknown level `{other}`")),
            };
            Ok(Operand::Attribute { key: Arc::from(attribute.key.as_str()), scopes })
        }
        Some(Term::Field(field)) => field_operand(field),
        _ => invalid("a comparison is of an attribute or field and a value"),
    }
}

fn field_operand(field: &FieldReference) -> Result<Operand, JaegerError> {
    let text = |of| Ok(Operand::Text(intrinsic(of)));
    match (field.level.as_str(), field.name.as_str()) {
        ("" | "span", "name") => text(Intrinsic::Name),
        ("" | "span", "traceID") => text(Intrinsic::TraceId),
        ("" | "span", "spanID") => text(Intrinsic::SpanId),
        ("" | "span", "parentSpanID") => text(Intrinsic::ParentId),
        ("" | "span", "traceState") => Ok(Operand::Text(Attribute::TraceState)),
        ("" | "span", "statusMessage") => text(Intrinsic::StatusMessage),
        ("" | "span", "kind") => Ok(Operand::Kind),
        ("" | "span", "status") => Ok(Operand::Status),
        ("" | "span", "duration") => Ok(Operand::Duration(intrinsic(Intrinsic::Duration))),
        ("" | "span", "startTime") => Ok(Operand::Time(Attribute::Start)),
        ("" | "span", "endTime") => Ok(Operand::Time(Attribute::End)),
        ("resource", "service") => Ok(Operand::Text(scoped(Scope::Resource, "service.name"))),
        ("resource", "schemaURL") => Ok(Operand::Text(Attribute::ResourceSchema)),
        ("scope", "name") => text(Intrinsic::InstrumentationName),
        ("scope", "version") => text(Intrinsic::InstrumentationVersion),
        ("scope", "schemaURL") => Ok(Operand::Text(Attribute::ScopeSchema)),
        ("event", "name") => text(Intrinsic::EventName),
        ("event", "time") => Ok(Operand::Time(Attribute::EventTime)),
        ("event", "timeSinceStart") => Ok(Operand::Duration(intrinsic(Intrinsic::EventTimeSinceStart))),
        ("link", "traceID") => text(Intrinsic::LinkTraceId),
        ("link", "spanID") => text(Intrinsic::LinkSpanId),
        ("link", "traceState") => Ok(Operand::Text(Attribute::LinkTraceState)),
        (level, name) => {
            let level = if level.is_empty() { "span" } else { level };
            match FIELDS.into_iter().find(|(known, _)| *known == level) {
                Some((_, fields)) => invalid(format_args!("`{level}` has no field `{name}`: it has {fields}")),
                None => invalid(format_args!("unknown level `{level}`")),
            }
        }
    }
}

/// The fields of each level, for who names another.
const FIELDS: [(&str, &str); 5] = [
    (
        "span",
        "traceID, spanID, parentSpanID, traceState, name, kind, startTime, endTime, status, statusMessage and duration",
    ),
    ("resource", "service and schemaURL"),
    ("scope", "name, version and schemaURL"),
    ("event", "name, time and timeSinceStart"),
    ("link", "traceID, spanID and traceState"),
];

fn equals(of: &Operand, value: &Scalar) -> Result<FieldExpr, JaegerError> {
    match of {
        Operand::Attribute { key, scopes } => {
            // A type asked for by name is meant; without, and for numbers, the text decides.
            let typed = value.r#type == "string";
            let written = Static::Str(attribute_text(value)?);
            let one = |scope: &Scope| equal(attribute(*scope, key, !typed), written.clone());
            all(BinaryOp::Or, scopes.iter().map(one).collect())
        }
        Operand::Text(of) => text_leaf(of, equal(of.clone(), text(&value.value))),
        Operand::Time(of) => Ok(alone(equal(of.clone(), time(&value.value)?))),
        Operand::Kind => Ok(equal(intrinsic(Intrinsic::Kind), Static::Kind(kind(&value.value)?))),
        Operand::Status => Ok(equal(intrinsic(Intrinsic::Status), Static::Status(status(&value.value)?))),
        Operand::Duration(of) => Ok(alone(equal(of.clone(), duration(&value.value)?))),
    }
}

/// There, and not equal.
fn differs(of: &Operand, is_equal: FieldExpr) -> Result<FieldExpr, JaegerError> {
    all(BinaryOp::And, vec![exists(of)?, not(is_equal)])
}

fn orders(of: &Operand, op: BinaryOp, value: &Scalar) -> Result<FieldExpr, JaegerError> {
    match of {
        Operand::Attribute { key, scopes } => {
            let written = Static::Str(attribute_text(value)?);
            let one = |scope: &Scope| binary(op, attribute(*scope, key, true), written.clone());
            all(BinaryOp::Or, scopes.iter().map(one).collect())
        }
        Operand::Text(of) => text_leaf(of, binary(op, of.clone(), text(&value.value))),
        Operand::Time(of) => Ok(alone(binary(op, of.clone(), time(&value.value)?))),
        Operand::Duration(of) => Ok(alone(binary(op, of.clone(), duration(&value.value)?))),
        Operand::Kind | Operand::Status => invalid("`kind` and `status` have no order"),
    }
}

/// A pattern may match anywhere in a text.
fn matches(of: &Operand, pattern: &str) -> Result<FieldExpr, JaegerError> {
    let pattern: Arc<str> = format!(".*(?:{pattern}).*").into();
    if let Err(error) = crate::traceql::compile_regex(&pattern) {
        return invalid(error);
    }
    let pattern = Static::Str(pattern);
    match of {
        Operand::Attribute { key, scopes } => {
            let one = |scope: &Scope| binary(BinaryOp::Match, attribute(*scope, key, false), pattern.clone());
            all(BinaryOp::Or, scopes.iter().map(one).collect())
        }
        Operand::Text(of) => text_leaf(of, binary(BinaryOp::Match, of.clone(), pattern)),
        _ => invalid("a pattern is for texts"),
    }
}

fn exists(of: &Operand) -> Result<FieldExpr, JaegerError> {
    match of {
        Operand::Attribute { key, scopes } => {
            let one = |scope: &Scope| FieldExpr::Exists {
                inner: Box::new(FieldExpr::Attribute(attribute(*scope, key, true))),
                negated: false,
            };
            all(BinaryOp::Or, scopes.iter().map(one).collect())
        }
        Operand::Text(of) => Ok(alone(match absent(of) {
            Some(absent) => binary(BinaryOp::NotEqual, of.clone(), text(absent)),
            None => binary(BinaryOp::GreaterEqual, of.clone(), text("")),
        })),
        Operand::Time(of) => Ok(alone(binary(BinaryOp::GreaterEqual, of.clone(), Static::Int(0)))),
        Operand::Kind => Ok(not(equal(intrinsic(Intrinsic::Kind), Static::Kind(Kind::Unspecified)))),
        Operand::Status => Ok(FieldExpr::Static(Static::Bool(true))),
        Operand::Duration(of) => Ok(alone(binary(BinaryOp::GreaterEqual, of.clone(), Static::Duration(i64::MIN)))),
    }
}

/// The text that stands for none. `None` where every text is one: names may be empty, and the others have no value then.
fn absent(of: &Attribute) -> Option<&'static str> {
    match of {
        // A root's parent is all zeros.
        Attribute::Intrinsic(Intrinsic::ParentId) => Some("0000000000000000"),
        Attribute::Intrinsic(
            Intrinsic::StatusMessage | Intrinsic::InstrumentationName | Intrinsic::InstrumentationVersion,
        )
        | Attribute::Scoped { .. }
        | Attribute::ResourceSchema
        | Attribute::ScopeSchema => Some(""),
        _ => None,
    }
}

/// A condition on a text, for which it must be there.
fn text_leaf(of: &Attribute, condition: FieldExpr) -> Result<FieldExpr, JaegerError> {
    match absent(of) {
        Some(absent) => all(BinaryOp::And, vec![binary(BinaryOp::NotEqual, of.clone(), text(absent)), condition]),
        None => Ok(alone(condition)),
    }
}

/// What is said of an event must not be bound to what a neighbour says of one: a condition in an alternative stands for itself.
fn alone(condition: FieldExpr) -> FieldExpr {
    let never = FieldExpr::Static(Static::Bool(false));
    FieldExpr::Binary { op: BinaryOp::Or, left: Box::new(condition), right: Box::new(never) }
}

/// Conditions joined. Alternatives of one stand for themselves too.
fn all(op: BinaryOp, parts: Vec<FieldExpr>) -> Result<FieldExpr, JaegerError> {
    match join(op, parts) {
        Some(joined) if op == BinaryOp::Or => Ok(alone(joined)),
        Some(joined) => Ok(joined),
        None => invalid("nothing to join"),
    }
}

fn attribute(scope: Scope, name: &Arc<str>, as_text: bool) -> Attribute {
    let name = Arc::clone(name);
    if as_text { Attribute::StringForm { scope, name } } else { Attribute::Scoped { scope, name } }
}

fn binary(op: BinaryOp, attribute: Attribute, value: Static) -> FieldExpr {
    FieldExpr::Binary { op, left: Box::new(FieldExpr::Attribute(attribute)), right: Box::new(FieldExpr::Static(value)) }
}

fn not(inner: FieldExpr) -> FieldExpr {
    FieldExpr::Unary { op: UnaryOp::Not, inner: Box::new(inner) }
}

/// The text by which an attribute of that type is compared.
fn attribute_text(value: &Scalar) -> Result<Arc<str>, JaegerError> {
    let written = value.value.as_str();
    let text = match value.r#type.as_str() {
        "" | "string" => Some(written.to_owned()),
        "int" => written.parse::<i64>().ok().map(|number| number.to_string()),
        "double" => written.parse::<f64>().ok().map(float_form),
        "bool" => written.parse::<bool>().ok().map(|value| value.to_string()),
        other => return invalid(format_args!("unknown type `{other}`")),
    };
    text.map_or_else(|| invalid(format_args!("`{written}` is no {}", value.r#type)), |text| Ok(text.into()))
}

fn kind(word: &str) -> Result<Kind, JaegerError> {
    let known = Kind::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(word));
    known.map_or_else(|| invalid(format_args!("`{word}` is no kind of span")), Ok)
}

fn status(word: &str) -> Result<Status, JaegerError> {
    let known = Status::ALL.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(word));
    known.map_or_else(|| invalid(format_args!("`{word}` is no status")), Ok)
}

/// A moment as in RFC 3339.
fn time(written: &str) -> Result<Static, JaegerError> {
    match parse_rfc3339(written) {
        Some(nanos) => Ok(Static::Int(i64::try_from(nanos).unwrap_or(i64::MAX))),
        None => invalid(format_args!("`{written}` is no time as in 2006-01-02T15:04:05.999999999Z")),
    }
}

/// A duration as Go writes it, or nanoseconds.
fn duration(written: &str) -> Result<Static, JaegerError> {
    let nanos = written.parse::<i64>().ok().or_else(|| parse_duration(written).ok());
    nanos.map_or_else(|| invalid(format_args!("`{written}` is no duration")), |nanos| Ok(Static::Duration(nanos)))
}
