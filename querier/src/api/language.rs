//! TraceQL in requests: the parser, and the texts each endpoint puts around its errors.

use std::sync::Arc;

use super::error::ApiError;
use crate::traceql::ast::{self, Attribute, FieldExpr, Intrinsic, PipelineExpr, Root, SpansetExpr, Stage, Static};
use crate::traceql::{self, TraceQlError};

/// The query of a search.
pub(crate) fn search_query(text: &str) -> Result<Arc<ast::Query>, ApiError> {
    let query = traceql::parse_and_check(text);
    query.map(Arc::new).map_err(|error| ApiError::BadParameter(format!("invalid TraceQL query: {error}")))
}

/// The query of a metrics endpoint. `lead` goes before errors of syntax; those of meaning have one of their own.
pub(crate) fn metrics_query(text: &str, lead: &str) -> Result<Arc<ast::Query>, ApiError> {
    let query = traceql::parse_and_check(text).map_err(|error| {
        ApiError::BadMetricsQuery(match error {
            TraceQlError::Parse(error) => format!("{lead}{error}"),
            TraceQlError::Validation(error) => format!("compiling query: {error}"),
        })
    })?;
    match query.root {
        Root::Metrics(_) => Ok(Arc::new(query)),
        Root::Spans(_) => Err(ApiError::BadMetricsQuery("not a metrics query".to_owned())),
    }
}

/// A tag by its name in the language.
pub(crate) fn tag(name: &str) -> Result<Attribute, ApiError> {
    traceql::parse_attribute(name)
        .map_err(|error| ApiError::BadParameter(format!("please provide a valid tagName: {error}")))
}

/// What a half-written query says of the spans to look at, `None` for nothing.
pub(crate) fn lenient_filter(text: &str) -> Result<Option<Arc<FieldExpr>>, ApiError> {
    let filter = traceql::parse_filter_leniently(text);
    filter.map(|filter| filter.map(Arc::new)).map_err(|error| ApiError::BadParameter(error.to_string()))
}

/// The filter of trace by id: one `{ }` of what a span alone knows; `None` if it holds for every span.
pub(crate) fn span_filter(text: &str) -> Result<Option<FieldExpr>, ApiError> {
    let bad = |why: String| ApiError::BadParameter(format!("invalid TraceQL filter: {why}"));
    let query =
        traceql::parse_and_check(text).map_err(|error| bad(format!("failed to parse TraceQL spanset filter: {error}")))?;
    let filter = match query.root {
        Root::Spans(PipelineExpr::Pipeline(mut pipeline)) => match (pipeline.stages.pop(), pipeline.stages.is_empty()) {
            (Some(Stage::Spanset(SpansetExpr::Filter(filter))), true) => Some(filter),
            _ => None,
        },
        _ => None,
    };
    let filter = filter.ok_or_else(|| bad(format!("only a single TraceQL filter is supported: {text}")))?;
    if let Some(intrinsic) = foreign(&filter) {
        return Err(bad(format!("intrinsic is not supported by this filter: {intrinsic}")));
    }
    Ok(Some(filter).filter(|filter| *filter != FieldExpr::Static(Static::Bool(true))))
}

/// An intrinsic that no span knows of itself.
fn foreign(filter: &FieldExpr) -> Option<&'static str> {
    match filter {
        FieldExpr::Static(_) => None,
        FieldExpr::Unary { inner, .. } | FieldExpr::Exists { inner, .. } | FieldExpr::OneOf { inner, .. } => foreign(inner),
        FieldExpr::Binary { left, right, .. } => foreign(left).or_else(|| foreign(right)),
        FieldExpr::Attribute(Attribute::Intrinsic(intrinsic)) => {
            let of_the_trace = matches!(
                intrinsic,
                Intrinsic::TraceId
                    | Intrinsic::TraceDuration
                    | Intrinsic::RootName
                    | Intrinsic::RootService
                    | Intrinsic::ChildCount
                    | Intrinsic::NestedSetLeft
                    | Intrinsic::NestedSetRight
                    | Intrinsic::NestedSetParent
                    | Intrinsic::Parent
            );
            of_the_trace.then(|| intrinsic.as_str())
        }
        FieldExpr::Attribute(_) => None,
    }
}
