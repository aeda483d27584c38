//! Jaeger's structured filter: a tree of calls, as an expression over one span that the engine runs.
//!
//! Owns what each call means and what is refused. A leaf whose operand a span does not have is false, `ne` too; an attribute of events
//! or links holds if one of them has it, each leaf for itself. Not served: `some`, which binds one event or link for several leaves, and
//! the few fields that are not kept by column (`endTime`, `schemaURL`, times of events, trace states of links) or that the
//! bounds of a search are there for (`startTime`). Pure.

mod json;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use spanhouse_proto::jaeger_expression::expression::Term;
use spanhouse_proto::jaeger_expression::{Call, Expression, FieldReference, List, Scalar};

use super::JaegerError;
use super::query::{equal, intrinsic, join, scoped, text};
use crate::api::go::parse_duration;
use crate::engine::form::float_form;
use crate::traceql::ast::{Attribute, BinaryOp, FieldExpr, Intrinsic, Kind, Scope, Static, Status, UnaryOp};

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
pub const OPERATORS: [&str; 13] =
    ["and", "or", "not", "eq", "ne", "gt", "lt", "gte", "lte", "regex", "exists", "in", "not_in"];

/// The condition a filter puts on a span.
pub fn condition(filter: &Call) -> Result<FieldExpr, JaegerError> {
    Compiler { terms: 0, patterns: 0 }.call(filter, 1)
}

/// What a leaf compares.
enum Operand {
    /// An attribute, at one of these levels.
    Attribute {
        key: Arc<str>,
        scopes: &'static [Scope],
    },
    /// A text that is always there, perhaps empty.
    Text(Attribute),
    Kind,
    Status,
    Duration(Attribute),
}

struct Compiler {
    terms: usize,
    patterns: usize,
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
            ("exists", [of]) => exists(&operand(of)?),
            (op @ ("eq" | "ne"), [of, value]) => {
                let of = operand(of)?;
                let is_equal = equals(&of, scalar(value)?)?;
                if op == "eq" { Ok(is_equal) } else { differs(&of, is_equal) }
            }
            (op @ ("in" | "not_in"), [of, list]) => {
                let (of, List { values, r#type }) = (operand(of)?, self.list(list)?);
                let one = |value: &String| equals(&of, &Scalar { value: value.clone(), r#type: r#type.clone() });
                let parts = values.iter().map(one).collect::<Result<Vec<_>, _>>()?;
                let is_in = all(BinaryOp::Or, parts)?;
                if op == "in" { Ok(is_in) } else { differs(&of, is_in) }
            }
            (op @ ("gt" | "lt" | "gte" | "lte"), [of, value]) => {
                let op = match op {
                    "gt" => BinaryOp::Greater,
                    "lt" => BinaryOp::Less,
                    "gte" => BinaryOp::GreaterEqual,
                    _ => BinaryOp::LessEqual,
                };
                orders(&operand(of)?, op, scalar(value)?)
            }
            ("regex", [of, pattern]) => {
                self.patterns += 1;
                if self.patterns > MAX_PATTERNS {
                    return invalid(format_args!("more than {MAX_PATTERNS} patterns"));
                }
                matches(&operand(of)?, &scalar(pattern)?.value)
            }
            ("some", _) => invalid("`some` is not supported by this storage"),
            (op, args) if OPERATORS.contains(&op) => invalid(format_args!("`{op}` of {} operands", args.len())),
            (op, _) => invalid(format_args!("unknown operator `{op}`")),
        }
    }

    fn inner(&mut self, of: &Expression, depth: usize) -> Result<FieldExpr, JaegerError> {
        match &of.term {
            Some(Term::Call(call)) => self.call(call, depth + 1),
            _ => invalid("`and`, `or` and `not` are of calls"),
        }
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
        _ => invalid("a comparison is of an attribute or field and a scalar, in this order"),
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
        _ => invalid("a comparison is of an attribute or field and a scalar, in this order"),
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
        ("resource", "service") => Ok(Operand::Text(scoped(Scope::Resource, "service.name"))),
        ("scope", "name") => text(Intrinsic::InstrumentationName),
        ("scope", "version") => text(Intrinsic::InstrumentationVersion),
        ("event", "name") => text(Intrinsic::EventName),
        ("event", "timeSinceStart") => Ok(Operand::Duration(intrinsic(Intrinsic::EventTimeSinceStart))),
        ("link", "traceID") => text(Intrinsic::LinkTraceId),
        ("link", "spanID") => text(Intrinsic::LinkSpanId),
        (level, name) => invalid(format_args!("the field `{name}` of `{level}` is not supported by this storage")),
    }
}

fn equals(of: &Operand, value: &Scalar) -> Result<FieldExpr, JaegerError> {
    match of {
        Operand::Attribute { key, scopes } => {
            // A type asked for by name is meant; without, and for numbers, the text decides.
            let typed = value.r#type == "string";
            let written = Static::Str(attribute_text(value)?);
            let one = |scope: &Scope| equal(attribute(*scope, key, !typed), written.clone());
            all(BinaryOp::Or, scopes.iter().map(one).collect())
        }
        Operand::Text(of) => Ok(alone(equal(of.clone(), text(&value.value)))),
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
        Operand::Text(of) => Ok(alone(binary(op, of.clone(), text(&value.value)))),
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
        Operand::Text(of) => Ok(alone(binary(BinaryOp::Match, of.clone(), pattern))),
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
        // A root's parent is all zeros.
        Operand::Text(of @ Attribute::Intrinsic(Intrinsic::ParentId)) => {
            Ok(binary(BinaryOp::NotEqual, of.clone(), text("0000000000000000")))
        }
        Operand::Text(of) => Ok(alone(binary(BinaryOp::NotEqual, of.clone(), text("")))),
        Operand::Kind => Ok(not(equal(intrinsic(Intrinsic::Kind), Static::Kind(Kind::Unspecified)))),
        Operand::Status => Ok(FieldExpr::Static(Static::Bool(true))),
        Operand::Duration(of) => Ok(alone(binary(BinaryOp::GreaterEqual, of.clone(), Static::Duration(i64::MIN)))),
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

/// A duration as Go writes it, or nanoseconds.
fn duration(written: &str) -> Result<Static, JaegerError> {
    let nanos = written.parse::<i64>().ok().or_else(|| parse_duration(written).ok());
    nanos.map_or_else(|| invalid(format_args!("`{written}` is no duration")), |nanos| Ok(Static::Duration(nanos)))
}
