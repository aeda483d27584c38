//! What is asked: parameters, and a search of Zipkin as a query of ours.
//!
//! A trace is found if its spans of the service together meet what is asked: each condition on one of them, not all on the same.
//! Tags are compared with what [`super::span`] shows, so that what a user sees can be searched for.

use std::sync::Arc;
use std::time::Duration;

use spanhouse_common::id::TraceId;
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::ZipkinError;
use super::span::ANNOTATION;
use crate::jaeger::model::double_text;
use crate::traceql::ast::{
    Attribute, BinaryOp, FieldExpr, Intrinsic, Kind, Pipeline, PipelineExpr, Query, Root, Scope, SpansetExpr, SpansetOp,
    Stage, Static, Status,
};

/// Most conditions of an annotation query, as in Zipkin.
const MAX_CONDITIONS: usize = 100;
/// Most ids of one request, likewise.
const MAX_IDS: usize = 1_000;

/// The parameters of a URL. Of one that repeats the first counts, and empty is absent.
#[derive(Debug)]
pub(super) struct Params(pub(super) Vec<(String, String)>);

impl Params {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let named = self.0.iter().find(|(key, _)| key == name);
        named.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, ZipkinError> {
        self.get(name).ok_or_else(|| ZipkinError::Invalid(format!("parameter {name} is required")))
    }

    fn number(&self, name: &str) -> Result<Option<i64>, ZipkinError> {
        let parse = |text: &str| {
            text.parse().map_err(|_| ZipkinError::Invalid(format!("parameter {name} must be a whole number, not {text:?}")))
        };
        self.get(name).map(parse).transpose()
    }

    /// A number that must be above zero.
    fn positive(&self, name: &str) -> Result<Option<u64>, ZipkinError> {
        match self.number(name)? {
            Some(number) if number <= 0 => Err(ZipkinError::Invalid(format!("{name} <= 0"))),
            number => Ok(number.map(i64::unsigned_abs)),
        }
    }

    /// `endTs` and `lookback`, in milliseconds.
    pub(super) fn window(&self, now: UnixNanos, lookback: Duration, end_required: bool) -> Result<TimeRange, ZipkinError> {
        if end_required {
            self.required("endTs")?;
        }
        let end = self.positive("endTs")?.unwrap_or(now.0.div_ceil(1_000_000));
        let lookback = self.positive("lookback")?.map_or(lookback, Duration::from_millis);
        // Zipkin looks at microseconds: all of the last one counts.
        let max = UnixNanos(end.saturating_mul(1_000_000).saturating_add(999));
        let min = UnixNanos(end.saturating_mul(1_000_000)).saturating_sub(lookback);
        Ok(TimeRange { min, max })
    }
}

/// A trace id as Zipkin takes it.
pub(super) fn trace_id(text: &str) -> Result<TraceId, ZipkinError> {
    let text = text.trim();
    let invalid = |why: &str| Err(ZipkinError::Invalid(why.to_owned()));
    if text.is_empty() {
        return invalid("traceId is empty");
    }
    if text.len() > 32 {
        return invalid("traceId.length > 32");
    }
    match text.parse::<TraceId>() {
        Err(_) => Err(ZipkinError::Invalid(format!("{text} should be lower-hex encoded with no prefix"))),
        Ok(id) if !id.is_valid() => invalid("traceId is all zeros"),
        Ok(id) => Ok(id),
    }
}

/// The ids of `traceIds`: more than one, each once.
pub(super) fn trace_ids(params: &Params) -> Result<Vec<TraceId>, ZipkinError> {
    let texts = params.get("traceIds").ok_or_else(|| ZipkinError::Invalid("traceIds parameter is empty".into()))?;
    let mut ids = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for text in texts.split(',') {
        let id = trace_id(text)?;
        if !seen.insert(id) {
            return Err(ZipkinError::Invalid(format!("redundant traceId: {text}")));
        }
        ids.push(id);
    }
    match ids.len() {
        1 => Err(ZipkinError::Invalid("Use /api/v2/trace/{traceId} endpoint to retrieve a single trace".into())),
        2..=MAX_IDS => Ok(ids),
        _ => Err(ZipkinError::Invalid(format!("traceIds names more than {MAX_IDS} traces"))),
    }
}

/// What `/api/v2/traces` is asked for.
#[derive(Debug, PartialEq)]
pub(super) struct TracesQuery {
    pub(super) service: Option<String>,
    pub(super) remote_service: Option<String>,
    pub(super) span_name: Option<String>,
    pub(super) annotations: Vec<AnnotationQuery>,
    /// Microseconds, both inclusive.
    pub(super) min_duration: Option<u64>,
    pub(super) max_duration: Option<u64>,
    pub(super) window: TimeRange,
    pub(super) limit: usize,
}

/// `key=value`; without a value, a tag or an annotation of that name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AnnotationQuery {
    pub(super) key: String,
    pub(super) value: Option<String>,
}

impl TracesQuery {
    pub(super) fn of(params: &Params, now: UnixNanos, lookback: Duration, max_limit: usize) -> Result<Self, ZipkinError> {
        let text = |name: &str| params.get(name).map(str::to_owned);
        let window = params.window(now, lookback, false)?;
        let limit = params.positive("limit")?.map_or(10, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let (min_duration, max_duration) = (params.positive("minDuration")?, params.number("maxDuration")?);
        let invalid = |why: &str| Err(ZipkinError::Invalid(why.to_owned()));
        match (min_duration, max_duration) {
            (None, Some(_)) => return invalid("maxDuration is only valid with minDuration"),
            (Some(min), Some(max)) if u64::try_from(max).unwrap_or_default() < min => {
                return invalid("maxDuration < minDuration");
            }
            _ => {}
        }
        Ok(Self {
            service: text("serviceName"),
            remote_service: text("remoteServiceName"),
            // A name that means any.
            span_name: text("spanName").filter(|name| !name.eq_ignore_ascii_case("all")),
            annotations: annotation_query(params.get("annotationQuery").unwrap_or_default())?,
            min_duration,
            max_duration: max_duration.map(i64::unsigned_abs),
            window,
            limit: limit.min(max_limit),
        })
    }
}

/// `a=b and c`. Of a tag that repeats the last value counts.
fn annotation_query(text: &str) -> Result<Vec<AnnotationQuery>, ZipkinError> {
    let mut all: Vec<AnnotationQuery> = Vec::new();
    for part in text.split(" and ") {
        let (key, value) = part.split_once('=').map_or((part, ""), |(key, value)| (key, value));
        let (key, value) = (key.trim(), Some(value.trim().to_owned()).filter(|value| !value.is_empty()));
        if key.is_empty() {
            continue;
        }
        match all.iter_mut().find(|known| known.key == key) {
            Some(known) if value.is_some() => known.value = value,
            Some(_) => {}
            None => all.push(AnnotationQuery { key: key.to_owned(), value }),
        }
        if all.len() > MAX_CONDITIONS {
            return Err(ZipkinError::Invalid(format!("annotationQuery has more than {MAX_CONDITIONS} conditions")));
        }
    }
    Ok(all)
}

/// The query whose traces are asked for. `services` and `span_names` are the names that are meant, in the case the data has them.
pub(super) fn spans_query(query: &TracesQuery, services: &[String], span_names: &[String]) -> Arc<Query> {
    let service = any_of(services.iter().map(|name| equal(scoped(Scope::Resource, "service.name"), text(name))));
    let mut conditions = Vec::new();
    conditions.extend(any_of(span_names.iter().map(|name| equal(Attribute::Intrinsic(Intrinsic::Name), text(name)))));
    if let Some(remote) = &query.remote_service {
        conditions.extend(any_of(cases(remote).iter().map(|name| equal(scoped(Scope::Span, "peer.service"), text(name)))));
    }
    conditions.extend(duration(query));
    conditions.extend(query.annotations.iter().map(annotation));
    let spanset = |condition: Option<FieldExpr>| {
        let all = service.iter().cloned().chain(condition).reduce(|left, right| binary(BinaryOp::And, left, right));
        SpansetExpr::Filter(all.unwrap_or(FieldExpr::Static(Static::Bool(true))))
    };
    let both = |left, right| SpansetExpr::Binary { op: SpansetOp::And, left: Box::new(left), right: Box::new(right) };
    let spansets = conditions.into_iter().map(|condition| spanset(Some(condition))).reduce(both);
    let stages = vec![Stage::Spanset(spansets.unwrap_or_else(|| spanset(None)))];
    Arc::new(Query { root: Root::Spans(PipelineExpr::Pipeline(Pipeline { stages })), hints: Vec::new() })
}

/// Spans of these services; `None` if there are none.
pub(super) fn of_services(services: &[String]) -> Option<Arc<FieldExpr>> {
    any_of(services.iter().map(|name| equal(scoped(Scope::Resource, "service.name"), text(name)))).map(Arc::new)
}

/// A name in the cases it may have where it cannot be looked up.
pub(super) fn cases(name: &str) -> Vec<String> {
    let lower = name.to_lowercase();
    if lower == name { vec![lower] } else { vec![name.to_owned(), lower] }
}

/// As it is shown: whole microseconds, of less than one one.
fn duration(query: &TracesQuery) -> Option<FieldExpr> {
    let nanos = |nanos: u64| Static::Duration(i64::try_from(nanos).unwrap_or(i64::MAX));
    let bound =
        |op, bound: u64| binary(op, FieldExpr::Attribute(Attribute::Intrinsic(Intrinsic::Duration)), value(nanos(bound)));
    let min = query.min_duration.map(|min| {
        let min = if min == 1 { 1 } else { min.saturating_mul(1_000) };
        bound(BinaryOp::GreaterEqual, min)
    });
    let max = query.max_duration.map(|max| bound(BinaryOp::LessEqual, max.saturating_mul(1_000).saturating_add(999)));
    min.into_iter().chain(max).reduce(|left, right| binary(BinaryOp::And, left, right))
}

fn annotation(asked: &AnnotationQuery) -> FieldExpr {
    let AnnotationQuery { key, value } = asked;
    let error = || equal(Attribute::Intrinsic(Intrinsic::Status), Static::Status(Status::Error));
    match (key.as_str(), value.as_deref()) {
        ("error", None) => binary(BinaryOp::Or, error(), annotated(key)),
        ("error", Some(said)) => {
            let said_so = tag_is("error", said);
            // What says nothing more is shown as true.
            let shown = if said == "true" { binary(BinaryOp::Or, said_so, absent("error")) } else { said_so };
            binary(BinaryOp::And, error(), shown)
        }
        (key, None) => {
            let attribute = binary(BinaryOp::Or, exists(Scope::Span, key), exists(Scope::Resource, key));
            let tag = special(key, None).into_iter().fold(attribute, |all, one| binary(BinaryOp::Or, all, one));
            binary(BinaryOp::Or, tag, annotated(key))
        }
        (key, Some(said)) => {
            special(key, Some(said)).into_iter().fold(tag_is(key, said), |all, one| binary(BinaryOp::Or, all, one))
        }
    }
}

/// Tags that stand for something else than an attribute.
fn special(key: &str, said: Option<&str>) -> Option<FieldExpr> {
    let intrinsic = |intrinsic| {
        let attribute = Attribute::Intrinsic(intrinsic);
        let op = if said.is_some() { BinaryOp::Equal } else { BinaryOp::NotEqual };
        Some(binary(op, FieldExpr::Attribute(attribute), value(text(said.unwrap_or_default()))))
    };
    let status = |status| equal(Attribute::Intrinsic(Intrinsic::Status), Static::Status(status));
    match (key, said) {
        ("otel.library.name", _) => intrinsic(Intrinsic::InstrumentationName),
        ("otel.library.version", _) => intrinsic(Intrinsic::InstrumentationVersion),
        ("otel.status_description", _) => intrinsic(Intrinsic::StatusMessage),
        ("otel.status_code", Some(word)) if word.eq_ignore_ascii_case("ok") => Some(status(Status::Ok)),
        ("otel.status_code", Some(word)) if word.eq_ignore_ascii_case("error") => Some(status(Status::Error)),
        ("otel.status_code", None) => Some(binary(BinaryOp::Or, status(Status::Ok), status(Status::Error))),
        ("span.kind", None | Some("internal")) => {
            Some(equal(Attribute::Intrinsic(Intrinsic::Kind), Static::Kind(Kind::Internal)))
        }
        _ => None,
    }
}

/// An attribute of the span or its resource whose text this is, whatever its type.
fn tag_is(key: &str, said: &str) -> FieldExpr {
    let mut values = vec![text(said)];
    values.extend(said.parse().ok().filter(|number: &i64| number.to_string() == said).map(Static::Int));
    let double = said.parse().ok().filter(|number: &f64| number.is_finite() && double_text(*number) == said);
    values.extend(double.map(Static::Float));
    values.extend(said.parse().ok().map(Static::Bool));
    let all = [Scope::Span, Scope::Resource].into_iter().flat_map(|scope| {
        let of_scope = |value: &Static| equal(scoped(scope, key), value.clone());
        values.iter().map(of_scope).collect::<Vec<_>>()
    });
    any_of(all).unwrap_or(FieldExpr::Static(Static::Bool(false)))
}

/// An annotation of this text.
fn annotated(said: &str) -> FieldExpr {
    let name = equal(Attribute::Intrinsic(Intrinsic::EventName), text(said));
    if said.contains('|') { binary(BinaryOp::Or, name, equal(scoped(Scope::Event, ANNOTATION), text(said))) } else { name }
}

fn exists(scope: Scope, key: &str) -> FieldExpr {
    FieldExpr::Exists { inner: Box::new(FieldExpr::Attribute(scoped(scope, key))), negated: false }
}

fn absent(key: &str) -> FieldExpr {
    FieldExpr::Exists { inner: Box::new(FieldExpr::Attribute(scoped(Scope::Span, key))), negated: true }
}

pub(super) fn scoped(scope: Scope, name: &str) -> Attribute {
    Attribute::Scoped { scope, name: Arc::from(name) }
}

fn text(text: &str) -> Static {
    Static::Str(Arc::from(text))
}

fn value(value: Static) -> FieldExpr {
    FieldExpr::Static(value)
}

pub(super) fn equal(attribute: Attribute, to: Static) -> FieldExpr {
    binary(BinaryOp::Equal, FieldExpr::Attribute(attribute), value(to))
}

pub(super) fn binary(op: BinaryOp, left: FieldExpr, right: FieldExpr) -> FieldExpr {
    FieldExpr::Binary { op, left: Box::new(left), right: Box::new(right) }
}

/// `None` of nothing.
fn any_of(all: impl IntoIterator<Item = FieldExpr>) -> Option<FieldExpr> {
    all.into_iter().reduce(|left, right| binary(BinaryOp::Or, left, right))
}
