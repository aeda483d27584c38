//! What an expression is on one span.

use std::sync::Arc;

use spanhouse_common::model::{Attribute as ModelAttribute, Event, Link, StoredSpan};

use super::trace::{Trace, service};
use super::value::{Value, compare, compare_ids, compute};
use crate::traceql::ast::{Attribute, BinaryOp, FieldExpr, Intrinsic, Kind, Scope, Static, Status, UnaryOp};

/// One event and one link, where a condition asks about one of each; else the first that has a value speaks for all.
#[derive(Debug, Clone, Copy, Default)]
struct Bound<'a> {
    event: Option<&'a Event>,
    link: Option<&'a Link>,
}

/// Whether a filter keeps a span. Conditions joined by `&&` must all be met by the same event and the same link.
pub(super) fn holds(filter: &FieldExpr, trace: &Trace<'_>, at: usize) -> bool {
    let mut terms = Vec::new();
    conjunction(filter, &mut terms);
    let (about_lists, others): (Vec<_>, Vec<_>) = terms.into_iter().partition(|term| asks_event(term) || asks_link(term));
    others.iter().all(|term| evaluate(term, trace, at).is_true()) && exists(&about_lists, trace, at)
}

fn conjunction<'a>(expr: &'a FieldExpr, terms: &mut Vec<&'a FieldExpr>) {
    match expr {
        FieldExpr::Binary { op: BinaryOp::And, left, right } => {
            conjunction(left, terms);
            conjunction(right, terms);
        }
        _ => terms.push(expr),
    }
}

/// Whether some event and some link meet all conditions.
fn exists(conditions: &[&FieldExpr], trace: &Trace<'_>, at: usize) -> bool {
    let span = &trace.spans[at].span;
    let events: Vec<Option<&Event>> =
        if conditions.iter().any(|c| asks_event(c)) { span.events.iter().map(Some).collect() } else { vec![None] };
    let links: Vec<Option<&Link>> =
        if conditions.iter().any(|c| asks_link(c)) { span.links.iter().map(Some).collect() } else { vec![None] };
    events.iter().any(|event| {
        links.iter().any(|link| {
            let bound = Bound { event: *event, link: *link };
            conditions.iter().all(|condition| condition_holds(condition, trace, at, bound))
        })
    })
}

/// Whether it is a condition with an operand of an event.
fn asks_event(expr: &FieldExpr) -> bool {
    operands(expr).iter().any(|operand| matches!(operand, FieldExpr::Attribute(a) if is_event(a)))
}

fn asks_link(expr: &FieldExpr) -> bool {
    operands(expr).iter().any(|operand| matches!(operand, FieldExpr::Attribute(a) if is_link(a)))
}

/// Of a condition; empty for what is none.
fn operands(expr: &FieldExpr) -> Vec<&FieldExpr> {
    match expr {
        FieldExpr::Binary { op, left, right } if is_comparison(*op) => vec![left, right],
        FieldExpr::Exists { inner, .. } => vec![inner],
        _ => vec![],
    }
}

pub(super) fn is_event(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::Intrinsic(Intrinsic::EventName | Intrinsic::EventTimeSinceStart)
            | Attribute::Scoped { scope: Scope::Event, .. }
    )
}

pub(super) fn is_link(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::Intrinsic(Intrinsic::LinkTraceId | Intrinsic::LinkSpanId) | Attribute::Scoped { scope: Scope::Link, .. }
    )
}

fn is_comparison(op: BinaryOp) -> bool {
    use BinaryOp::*;
    matches!(op, Equal | NotEqual | Less | LessEqual | Greater | GreaterEqual | Match | NotMatch)
}

pub(super) fn evaluate(expr: &FieldExpr, trace: &Trace<'_>, at: usize) -> Value {
    match expr {
        FieldExpr::Static(value) => Value::of_static(value),
        FieldExpr::Attribute(attribute) => lookup(attribute, trace, at),
        FieldExpr::Unary { op, inner } => match (op, evaluate(inner, trace, at)) {
            (UnaryOp::Not, Value::Bool(v)) => Value::Bool(!v),
            (UnaryOp::Negate, Value::Int(v)) => Value::Int(v.wrapping_neg()),
            (UnaryOp::Negate, Value::Float(v)) => Value::Float(-v),
            (UnaryOp::Negate, Value::Duration(v)) => Value::Duration(v.wrapping_neg()),
            _ => Value::Nil,
        },
        FieldExpr::Exists { .. } => Value::Bool(exists(&[expr], trace, at)),
        // No query in the language says it.
        FieldExpr::OneOf { .. } => Value::Nil,
        FieldExpr::Binary { op, .. } if is_comparison(*op) => Value::Bool(exists(&[expr], trace, at)),
        FieldExpr::Binary { op, left, right } => {
            let (left, right) = (evaluate(left, trace, at), evaluate(right, trace, at));
            match (op, left, right) {
                (BinaryOp::And, Value::Bool(left), Value::Bool(right)) => Value::Bool(left && right),
                (BinaryOp::Or, Value::Bool(left), Value::Bool(right)) => Value::Bool(left || right),
                (BinaryOp::And | BinaryOp::Or, _, _) => Value::Bool(false),
                (op, left, right) => compute(*op, &left, &right),
            }
        }
    }
}

fn condition_holds(condition: &FieldExpr, trace: &Trace<'_>, at: usize, bound: Bound<'_>) -> bool {
    let value = |operand: &FieldExpr| match operand {
        FieldExpr::Attribute(attribute) => lookup_bound(attribute, trace, at, bound),
        _ => evaluate(operand, trace, at),
    };
    match condition {
        FieldExpr::Exists { inner, negated: true } => matches!(value(inner), Value::Nil),
        FieldExpr::Exists { inner, negated: false } => value(inner).is_there(),
        FieldExpr::Binary { op, left, right } if is_id(left) || is_id(right) => {
            compare_ids(*op, &value(left), &value(right))
        }
        FieldExpr::Binary { op, left, right } => compare(*op, &value(left), &value(right)),
        _ => false,
    }
}

fn is_id(expr: &FieldExpr) -> bool {
    use Intrinsic::{LinkSpanId, LinkTraceId, ParentId, SpanId, TraceId};
    let FieldExpr::Attribute(Attribute::Intrinsic(intrinsic)) = expr else { return false };
    matches!(intrinsic, SpanId | ParentId | TraceId | LinkTraceId | LinkSpanId)
}

/// The value of an attribute; of events and links that of the first that has one.
pub(super) fn lookup(attribute: &Attribute, trace: &Trace<'_>, at: usize) -> Value {
    let span = &trace.spans[at].span;
    let first = |mut values: Box<dyn Iterator<Item = Value> + '_>| values.find(Value::is_there).unwrap_or(Value::Nil);
    let of_event = |event| lookup_bound(attribute, trace, at, Bound { event: Some(event), link: None });
    let of_link = |link| lookup_bound(attribute, trace, at, Bound { event: None, link: Some(link) });
    if is_event(attribute) {
        first(Box::new(span.events.iter().map(of_event)))
    } else if is_link(attribute) {
        first(Box::new(span.links.iter().map(of_link)))
    } else {
        lookup_bound(attribute, trace, at, Bound::default())
    }
}

fn lookup_bound(attribute: &Attribute, trace: &Trace<'_>, at: usize, bound: Bound<'_>) -> Value {
    let StoredSpan { span, resource, scope, .. } = trace.spans[at];
    match attribute {
        Attribute::Intrinsic(intrinsic) => intrinsic_value(*intrinsic, trace, at, bound),
        Attribute::Scoped { scope: Scope::Resource, name } if &**name == "service.name" => {
            Value::text(service(trace.spans[at]).unwrap_or_default())
        }
        Attribute::Scoped { scope: within, name } => {
            let found = match within {
                Scope::None => named(&span.attributes, name).or_else(|| named(&resource.attributes, name)),
                Scope::Span => named(&span.attributes, name),
                Scope::Resource => named(&resource.attributes, name),
                Scope::Instrumentation => named(&scope.attributes, name),
                Scope::Event => bound.event.and_then(|event| named(&event.attributes, name)),
                Scope::Link => bound.link.and_then(|link| named(&link.attributes, name)),
                Scope::Parent(_) => None,
            };
            found.unwrap_or(Value::Nil)
        }
        // No query in the language names them.
        _ => Value::Nil,
    }
}

/// Of keys that repeat, the first.
fn named(attributes: &[ModelAttribute], name: &str) -> Option<Value> {
    attributes.iter().find(|attribute| attribute.key == name).map(|attribute| Value::of_attribute(&attribute.value))
}

fn intrinsic_value(intrinsic: Intrinsic, trace: &Trace<'_>, at: usize, bound: Bound<'_>) -> Value {
    let StoredSpan { span, scope, .. } = trace.spans[at];
    match intrinsic {
        Intrinsic::Name => Value::text(&span.name),
        Intrinsic::Duration => Value::Duration(span.end_unix_nano.saturating_sub(span.start_unix_nano) as i64),
        Intrinsic::Status => Value::Status(status(span.status_code)),
        Intrinsic::StatusMessage => Value::text(&span.status_message),
        Intrinsic::Kind => Value::Kind(kind(span.kind)),
        Intrinsic::ChildCount => Value::Int(trace.child_count(at) as i64),
        Intrinsic::SpanId => Value::text(&span.span_id.to_string()),
        Intrinsic::ParentId => Value::text(&span.parent_span_id.unwrap_or_default().to_string()),
        Intrinsic::TraceId => Value::text(trace.id.to_string().trim_start_matches('0')),
        Intrinsic::TraceDuration => Value::Duration(trace.duration as i64),
        Intrinsic::RootName => Value::Str(trace.root_name().unwrap_or_default()),
        Intrinsic::RootService => Value::Str(trace.root_service().unwrap_or_default()),
        Intrinsic::EventName => bound.event.map_or(Value::Nil, |event| Value::text(&event.name)),
        Intrinsic::EventTimeSinceStart => bound
            .event
            .map_or(Value::Nil, |event| Value::Duration(event.time_unix_nano.wrapping_sub(span.start_unix_nano) as i64)),
        Intrinsic::LinkTraceId => {
            bound.link.map_or(Value::Nil, |link| Value::text(hex(&link.trace_id).trim_start_matches('0')))
        }
        Intrinsic::LinkSpanId => bound.link.map_or(Value::Nil, |link| Value::text(&hex(&link.span_id))),
        Intrinsic::InstrumentationName => Value::text(&scope.name),
        Intrinsic::InstrumentationVersion => Value::text(&scope.version),
        Intrinsic::NestedSetLeft => Value::Int(trace.nested[at].left),
        Intrinsic::NestedSetRight => Value::Int(trace.nested[at].right),
        Intrinsic::NestedSetParent => Value::Int(trace.nested[at].parent),
        Intrinsic::Parent => Value::Nil,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn status(code: i32) -> Status {
    match code {
        1 => Status::Ok,
        2 => Status::Error,
        _ => Status::Unset,
    }
}

fn kind(number: i32) -> Kind {
    match number {
        1 => Kind::Internal,
        2 => Kind::Server,
        3 => Kind::Client,
        4 => Kind::Producer,
        5 => Kind::Consumer,
        _ => Kind::Unspecified,
    }
}

/// Why an expression can be evaluated nowhere: a division of literals by zero, which the parser leaves alone.
pub(super) fn constant_failure(expr: &FieldExpr) -> Option<&'static str> {
    let is_int = |expr: &FieldExpr| matches!(expr, FieldExpr::Static(Static::Int(_)));
    let is_zero = |expr: &FieldExpr| matches!(expr, FieldExpr::Static(Static::Int(0)));
    match expr {
        FieldExpr::Binary { op: BinaryOp::Div, left, right } if is_int(left) && is_zero(right) => Some("division by zero"),
        FieldExpr::Binary { op: BinaryOp::Mod, left, right } if is_int(left) && is_zero(right) => Some("modulo by zero"),
        FieldExpr::Binary { left, right, .. } => constant_failure(left).or_else(|| constant_failure(right)),
        FieldExpr::Unary { inner, .. } | FieldExpr::Exists { inner, .. } | FieldExpr::OneOf { inner, .. } => {
            constant_failure(inner)
        }
        FieldExpr::Static(_) | FieldExpr::Attribute(_) => None,
    }
}

/// Adds the attributes an expression mentions, in the order of the text.
pub(super) fn mentions<'a>(expr: &'a FieldExpr, found: &mut Vec<&'a Attribute>) {
    match expr {
        FieldExpr::Static(_) => {}
        FieldExpr::Attribute(attribute) => found.push(attribute),
        FieldExpr::Unary { inner, .. } | FieldExpr::Exists { inner, .. } | FieldExpr::OneOf { inner, .. } => {
            mentions(inner, found);
        }
        FieldExpr::Binary { left, right, .. } => {
            mentions(left, found);
            mentions(right, found);
        }
    }
}

/// The name without scope.
pub(super) fn bare_name(attribute: &Attribute) -> Arc<str> {
    match attribute {
        Attribute::Scoped { name, .. } => Arc::clone(name),
        _ => Arc::from(attribute.to_string()),
    }
}
