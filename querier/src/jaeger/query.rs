//! A search as a filter of the engine: one tree over one span, so that everything the engine knows of leaving out blocks, reading
//! little and ending early serves Jaeger's searches too.
//!
//! Owns which keys mean more than an attribute, and where attributes are looked for. Pure.

use std::sync::Arc;

use super::TraceSearch;
use super::adjust::{EMPTY_SPAN_NAME, NAMELESS_SERVICES};
use super::tags::Condition;
use crate::traceql::ast::{
    Attribute, BinaryOp, FieldExpr, Intrinsic, Kind, Pipeline, PipelineExpr, Query, Root, Scope, SpansetExpr, Stage, Static,
    Status, UnaryOp,
};
use crate::traceql::parse_duration;

/// Where a tag may be.
const SCOPES: [Scope; 5] = [Scope::Span, Scope::Resource, Scope::Instrumentation, Scope::Event, Scope::Link];

/// The spans a search finds.
pub(super) fn query(search: &TraceSearch, conditions: &[Condition]) -> Query {
    let mut all: Vec<FieldExpr> = Vec::new();
    all.extend(search.service.as_deref().map(service));
    all.extend(search.operation.as_deref().map(operation));
    let duration = |nanos: u64| Static::Duration(i64::try_from(nanos).unwrap_or(i64::MAX));
    let min = search.duration_min.map(|min| binary(BinaryOp::GreaterEqual, intrinsic(Intrinsic::Duration), duration(min)));
    let max = search.duration_max.map(|max| binary(BinaryOp::LessEqual, intrinsic(Intrinsic::Duration), duration(max)));
    all.extend(min.into_iter().chain(max));
    all.extend(conditions.iter().map(condition));
    let time = |nanos: u64| Static::Int(i64::try_from(nanos).unwrap_or(i64::MAX));
    let is_bound = |max: &u64| i64::try_from(*max).is_ok();
    all.extend(
        search.start_min.filter(|min| *min > 0).map(|min| binary(BinaryOp::GreaterEqual, Attribute::Start, time(min))),
    );
    all.extend(search.start_max.filter(is_bound).map(|max| binary(BinaryOp::LessEqual, Attribute::Start, time(max))));
    all.extend(search.filter.clone());
    let filter = join(BinaryOp::And, all).unwrap_or(FieldExpr::Static(Static::Bool(true)));
    let stages = vec![Stage::Spanset(SpansetExpr::Filter(filter))];
    Query { root: Root::Spans(PipelineExpr::Pipeline(Pipeline { stages })), hints: Vec::new() }
}

/// Spans of a service. By what the query API calls a service without a name, all without one are found: why they have none is not told
/// apart where services are looked up.
fn service(name: &str) -> FieldExpr {
    let attribute = || scoped(Scope::Resource, "service.name");
    let named = equal(attribute(), text(name));
    if !NAMELESS_SERVICES.contains(&name) {
        return named;
    }
    either(named, not(binary(BinaryOp::NotEqual, attribute(), text(""))))
}

/// Spans of a name; by what the query API calls them, those without one.
fn operation(name: &str) -> FieldExpr {
    let named = equal(intrinsic(Intrinsic::Name), text(name));
    if name != EMPTY_SPAN_NAME {
        return named;
    }
    either(named, equal(intrinsic(Intrinsic::Name), text("")))
}

fn condition(condition: &Condition) -> FieldExpr {
    match condition {
        Condition::Equals { key, text } => equals(key, text),
        Condition::Compares { key, op, text } => compares(key, *op, text),
    }
}

/// A tag with this text.
fn equals(key: &str, value: &str) -> FieldExpr {
    let attribute = anywhere(key, BinaryOp::Equal, value);
    match special(key, value) {
        Special::None => attribute,
        Special::Also(known) => join(BinaryOp::Or, vec![known, attribute.clone()]).unwrap_or(attribute),
        Special::Not(known) => not(known),
    }
}

/// What a key means beside the attribute of that name.
enum Special {
    None,
    /// Holds too.
    Also(FieldExpr),
    /// Holds where this does not, whatever the attribute says.
    Not(FieldExpr),
}

fn special(key: &str, value: &str) -> Special {
    let status = |status| equal(intrinsic(Intrinsic::Status), Static::Status(status));
    match key {
        "error" => match bool_of(value) {
            Some(true) => Special::Also(status(Status::Error)),
            // A span is one or the other, never both.
            Some(false) => Special::Not(equals(key, "true")),
            None => Special::None,
        },
        // The kind of an operation that has none.
        "span.kind" if value.is_empty() => Special::Also(equal(intrinsic(Intrinsic::Kind), Static::Kind(Kind::Unspecified))),
        "span.kind" => match Kind::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(value)) {
            Some(kind) => Special::Also(equal(intrinsic(Intrinsic::Kind), Static::Kind(kind))),
            None => Special::None,
        },
        "span.status" | "otel.status_code" => {
            match Status::ALL.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(value)) {
                Some(known) => Special::Also(status(known)),
                None => Special::None,
            }
        }
        "scope.name" | "otel.scope.name" | "otel.library.name" => {
            Special::Also(equal(intrinsic(Intrinsic::InstrumentationName), text(value)))
        }
        "scope.version" | "otel.scope.version" | "otel.library.version" => {
            Special::Also(equal(intrinsic(Intrinsic::InstrumentationVersion), text(value)))
        }
        // What is not there is no tag.
        "otel.status_description" if !value.is_empty() => {
            Special::Also(equal(intrinsic(Intrinsic::StatusMessage), text(value)))
        }
        "w3c.tracestate" if !value.is_empty() => Special::Also(equal(Attribute::TraceState, text(value))),
        _ => match key.strip_prefix("resource.") {
            Some(name) if !name.is_empty() => Special::Also(equal(form(Scope::Resource, name), text(value))),
            _ => Special::None,
        },
    }
}

/// A comparison. What is not equal has the key, and with no such value.
fn compares(key: &str, op: BinaryOp, value: &str) -> FieldExpr {
    if key == "duration"
        && let Some(nanos) = parse_duration(value)
    {
        return binary(op, intrinsic(Intrinsic::Duration), Static::Duration(nanos));
    }
    if op != BinaryOp::NotEqual {
        let resource = key.strip_prefix("resource.").filter(|name| !name.is_empty());
        let resource = resource.map(|name| binary(op, form(Scope::Resource, name), text(value)));
        let all = resource.into_iter().chain([anywhere(key, op, value)]).collect();
        return join(BinaryOp::Or, all).unwrap_or(FieldExpr::Static(Static::Bool(false)));
    }
    let differs = not(equals(key, value));
    match special(key, value) {
        Special::None => {
            let has = |scope| FieldExpr::Exists { inner: Box::new(FieldExpr::Attribute(form(scope, key))), negated: false };
            match join(BinaryOp::Or, SCOPES.map(has).into()) {
                Some(has_key) => join(BinaryOp::And, vec![differs.clone(), has_key]).unwrap_or(differs),
                None => differs,
            }
        }
        _ => differs,
    }
}

/// An attribute of the span, or of what it belongs to or has.
fn anywhere(key: &str, op: BinaryOp, value: &str) -> FieldExpr {
    let all = SCOPES.map(|scope| binary(op, form(scope, key), text(value)));
    join(BinaryOp::Or, all.into()).unwrap_or(FieldExpr::Static(Static::Bool(false)))
}

/// As Go reads a truth value.
fn bool_of(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

pub(super) fn text(text: &str) -> Static {
    Static::Str(Arc::from(text))
}

pub(super) fn intrinsic(intrinsic: Intrinsic) -> Attribute {
    Attribute::Intrinsic(intrinsic)
}

pub(super) fn scoped(scope: Scope, name: &str) -> Attribute {
    Attribute::Scoped { scope, name: Arc::from(name) }
}

fn form(scope: Scope, name: &str) -> Attribute {
    Attribute::StringForm { scope, name: Arc::from(name) }
}

pub(super) fn equal(attribute: Attribute, value: Static) -> FieldExpr {
    binary(BinaryOp::Equal, attribute, value)
}

fn binary(op: BinaryOp, attribute: Attribute, value: Static) -> FieldExpr {
    let (left, right) = (FieldExpr::Attribute(attribute), FieldExpr::Static(value));
    FieldExpr::Binary { op, left: Box::new(left), right: Box::new(right) }
}

fn not(inner: FieldExpr) -> FieldExpr {
    FieldExpr::Unary { op: UnaryOp::Not, inner: Box::new(inner) }
}

fn either(left: FieldExpr, right: FieldExpr) -> FieldExpr {
    FieldExpr::Binary { op: BinaryOp::Or, left: Box::new(left), right: Box::new(right) }
}

/// `None` of nothing.
pub(super) fn join(op: BinaryOp, all: Vec<FieldExpr>) -> Option<FieldExpr> {
    let pair = |left, right| FieldExpr::Binary { op, left: Box::new(left), right: Box::new(right) };
    all.into_iter().reduce(pair)
}
